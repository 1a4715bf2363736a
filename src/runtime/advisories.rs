//! Known advisories of the runtimes, and the versions in which their projects have mended them.
//!
//! A version says less than it seems to: distributions mend an old version and keep its number (Debian's crun 1.8.1 and runc
//! 1.1.5 have had such repairs, and print nothing of them). So what is found here is a warning in the log and in Status, to
//! be held against the distribution's own list, and never a reason to refuse a runtime (docs/decisions/024).

/// Said beside every list of ids.
pub const NOTE: &str =
    "by its version alone; a distribution may have mended it without a new version, see its security tracker";

/// Major, minor, patch, and the number of a release candidate, which comes before its release.
type Version = [u32; 4];

const fn release(major: u32, minor: u32, patch: u32) -> Version {
    [major, minor, patch, u32::MAX]
}

const fn candidate(major: u32, minor: u32, patch: u32, number: u32) -> Version {
    [major, minor, patch, number]
}

/// gVisor's releases are dates.
const fn dated(date: u32) -> Version {
    [date, 0, 0, u32::MAX]
}

/// The advisory, the name that `--version` begins with, and the first version without it of each branch that has one, in
/// order. A branch that is newer than all of them never had it; one in between that is not named was never mended.
const ADVISORIES: &[(&str, &str, &[Version])] = &[
    ("CVE-2019-5736", "runc", &[candidate(1, 0, 0, 7)]),
    ("CVE-2019-16884", "runc", &[candidate(1, 0, 0, 9)]),
    ("CVE-2019-19921", "runc", &[candidate(1, 0, 0, 10)]),
    ("CVE-2021-30465", "runc", &[candidate(1, 0, 0, 95)]),
    ("CVE-2021-43784", "runc", &[release(1, 0, 3)]),
    ("CVE-2022-29162", "runc", &[release(1, 1, 2)]),
    ("CVE-2023-25809", "runc", &[release(1, 1, 5)]),
    ("CVE-2023-27561", "runc", &[release(1, 1, 5)]),
    ("CVE-2023-28642", "runc", &[release(1, 1, 5)]),
    ("CVE-2024-21626", "runc", &[release(1, 1, 12)]),
    ("CVE-2024-45310", "runc", &[release(1, 1, 14), candidate(1, 2, 0, 3)]),
    ("CVE-2025-31133", "runc", &[release(1, 2, 8), release(1, 3, 3), candidate(1, 4, 0, 3)]),
    ("CVE-2025-52565", "runc", &[release(1, 2, 8), release(1, 3, 3), candidate(1, 4, 0, 3)]),
    ("CVE-2025-52881", "runc", &[release(1, 2, 8), release(1, 3, 3), candidate(1, 4, 0, 3)]),
    ("CVE-2026-41579", "runc", &[release(1, 3, 6), release(1, 4, 3), candidate(1, 5, 0, 3)]),
    ("CVE-2019-18837", "crun", &[release(0, 10, 5)]),
    ("CVE-2022-27650", "crun", &[release(1, 4, 4)]),
    ("CVE-2025-24965", "crun", &[release(1, 20, 0)]),
    ("CVE-2026-30892", "crun", &[release(1, 27, 0)]),
    ("CVE-2026-47766", "crun", &[release(1, 28, 0)]),
    ("CVE-2025-27612", "youki", &[release(0, 5, 3)]),
    ("CVE-2025-54867", "youki", &[release(0, 5, 5)]),
    ("CVE-2025-62161", "youki", &[release(0, 5, 7)]),
    ("CVE-2025-62596", "youki", &[release(0, 5, 7)]),
    ("CVE-2024-10026", "runsc", &[dated(20_241_028)]),
    ("CVE-2024-10603", "runsc", &[dated(20_241_028)]),
    ("CVE-2025-2713", "runsc", &[dated(20_250_319)]),
];

/// The advisories that a runtime is open to if its version, the first line of `--version`, is all there is to know. Empty
/// for a runtime or a version that cannot be told.
#[must_use]
pub fn of(line: &str) -> Vec<&'static str> {
    let Some((name, version)) = parse(line) else { return Vec::new() };
    let open = |fixed: &[Version]| {
        let newest = fixed.last().is_some_and(|last| version >= *last);
        !newest && !fixed.iter().any(|first| first[..2] == version[..2] && version >= *first)
    };
    ADVISORIES.iter().filter(|(_, runtime, fixed)| *runtime == name && open(fixed)).map(|(id, ..)| *id).collect()
}

/// `crun version 1.8.1`, `runc version 1.4.0-rc.2`, `youki 0.5.5`, `runsc version release-20250319.0`.
fn parse(line: &str) -> Option<(&str, Version)> {
    let mut words = line.split_whitespace();
    let name = words.next()?;
    let text = words.map(|word| word.trim_start_matches("release-").trim_start_matches('v'));
    let text = text.into_iter().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    if name == "runsc" {
        // Debian writes 0.0~20250319.0.
        let date = numbers.flatten().find(|number| *number > 20_000_000)?;
        return Some((name, dated(date)));
    }
    let mut part = || numbers.next().and_then(Result::ok).unwrap_or(0);
    let [major, minor, patch] = [part(), part(), part()];
    // Only what follows the three numbers at once: a package's own suffixes begin with `+` or `~`.
    let after = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').strip_prefix("-rc");
    let number = after.map(|rest| {
        let digits = rest.trim_start_matches('.');
        digits.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
    });
    Some((name, [major, minor, patch, number.unwrap_or(u32::MAX)]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_versions_say() {
        let five = ["CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881", "CVE-2026-41579"];
        for (line, count, some) in [
            ("crun version 1.8.1", 3, &["CVE-2025-24965", "CVE-2026-30892", "CVE-2026-47766"][..]),
            ("crun version 1.27.1", 1, &["CVE-2026-47766"]),
            ("crun version 1.28", 0, &[]),
            ("crun version UNKNOWN", 0, &[]),
            ("runc version 1.1.5+ds1", 6, &["CVE-2024-21626", "CVE-2024-45310"]),
            ("runc version 1.1.14", 4, &five),
            ("runc version 1.2.8", 1, &five[3..]),
            ("runc version 1.3.2", 4, &five),
            ("runc version 1.3.5", 1, &five[3..]),
            ("runc version 1.3.6", 0, &[]),
            ("runc version 1.4.0-rc.2", 4, &five),
            ("runc version 1.4.0-rc.3", 1, &five[3..]),
            ("runc version 1.4.3", 0, &[]),
            ("runc version 1.5.0-rc.2", 1, &five[3..]),
            ("runc version 1.5.1", 0, &[]),
            ("runc version 1.0.0-rc6+dev", 15, &["CVE-2019-5736"]),
            ("runc version 1.0.0-rc93", 12, &["CVE-2021-30465"]),
            ("youki version 0.7.0", 0, &[]),
            ("youki 0.5.4", 3, &["CVE-2025-54867"]),
            ("runsc version release-20250312.0", 1, &["CVE-2025-2713"]),
            ("runsc version release-20260101.0-3-gabcdef", 0, &[]),
            ("runsc version 0.0~20240729.0", 3, &["CVE-2024-10603"]),
            ("runsc version VERSION_MISSING", 0, &[]),
            ("kata-runtime  : 3.1.0", 0, &[]),
            ("", 0, &[]),
        ] {
            let found = of(line);
            assert_eq!(found.len(), count, "{line}: {found:?}");
            assert!(some.iter().all(|id| found.contains(id)), "{line}: {found:?}");
        }
    }

    #[test]
    fn the_table_is_in_order() {
        for (id, runtime, fixed) in ADVISORIES {
            assert!(id.starts_with("CVE-") && !fixed.is_empty() && fixed.is_sorted(), "{id} {runtime}");
            let branches: std::collections::BTreeSet<_> = fixed.iter().map(|version| &version[..2]).collect();
            assert_eq!(branches.len(), fixed.len(), "{id} {runtime}: two versions of one branch");
        }
    }

    proptest! {
        /// Within a branch nothing comes back, and no text is too odd.
        #[test]
        fn a_later_patch_is_open_to_no_more(minor in 0..40_u32, patch in 0..40_u32, more in 0..40_u32) {
            for name in ["crun", "runc", "youki"] {
                let of = |patch: u32| super::of(&format!("{name} version 1.{minor}.{patch}"));
                let (before, after) = (of(patch), of(patch + more));
                prop_assert!(after.iter().all(|id| before.contains(id)), "{name} 1.{minor}.{patch}+{more}");
            }
        }

        #[test]
        fn any_line_is_read(line in "(crun|runc|youki|runsc)?.{0,60}") {
            let _ = of(&line);
        }
    }
}
