//! Finds out, once at start, what the kernel offers and what this daemon may do.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

use super::CgroupVersion;
use super::caps::{Cap, CapSet};
use super::seccomp::Arch;

/// `CGROUP2_SUPER_MAGIC` of `linux/magic.h`.
const CGROUP2_MAGIC: i64 = 0x6367_7270;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// What this daemon can give to a container: both permitted to it and in its bounding set.
    pub caps: CapSet,
    /// The machine, when cricket has a seccomp profile for it.
    pub arch: Option<Arch>,
    /// Major and minor version of the kernel.
    pub kernel: (u32, u32),
    /// The kernel can filter system calls.
    pub seccomp: bool,
    pub selinux: super::selinux::State,
    /// A bind mount can be made read-only with all that is mounted below it (`mount_setattr(2)`, Linux 5.12).
    pub recursive_read_only: bool,
    /// The lowest `oom_score_adj` that this daemon can give: −1000, or its own value without CAP_SYS_RESOURCE.
    pub min_oom_score_adj: i32,
    /// The highest hard limit on open files that this daemon can give.
    pub max_open_files: u64,
    pub cgroup: CgroupVersion,
    /// Swap can be limited per cgroup.
    pub swap_accounting: bool,
    /// Huge pages can be limited per cgroup.
    pub hugetlb: bool,
}

/// A file of the kernel that must be there is not, or does not read as it should.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("{}: cannot be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: has no line {key:?} with a number", path.display())]
    Status { path: PathBuf, key: &'static str },
    #[error("/sys/fs/cgroup: its file system cannot be examined")]
    Cgroup { source: io::Error },
}

/// Reads the facts. A dozen small reads of procfs and sysfs; it never waits for a disk or another process.
///
/// # Errors
/// [`ProbeError`] when the kernel does not say what every supported kernel says.
pub fn probe() -> Result<Facts, ProbeError> {
    let status_path = Path::new("/proc/self/status");
    let status = read(status_path)?;
    let fields = parse_status(&status);
    let mask = |key| {
        let text = fields.get(key).ok_or(ProbeError::Status { path: status_path.to_owned(), key })?;
        u64::from_str_radix(text, 16).map_err(|_| ProbeError::Status { path: status_path.to_owned(), key })
    };
    let caps = CapSet::from_bits(mask("CapPrm")? & mask("CapBnd")?);
    let kernel = parse_release(rustix::system::uname().release().to_string_lossy().as_ref());
    let cgroup = cgroup_version()?;
    Ok(Facts {
        caps,
        arch: Arch::native(),
        kernel,
        seccomp: fields.contains_key("Seccomp"),
        selinux: super::selinux::probe(),
        recursive_read_only: kernel >= (5, 12),
        min_oom_score_adj: min_oom_score_adj(caps)?,
        max_open_files: max_open_files(caps)?,
        cgroup,
        swap_accounting: match cgroup {
            CgroupVersion::V1 => Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists(),
            CgroupVersion::V2 => Path::new("/proc/swaps").exists(),
        },
        hugetlb: hugetlb(cgroup),
    })
}

fn read(path: &Path) -> Result<String, ProbeError> {
    std::fs::read_to_string(path).map_err(|source| ProbeError::Read { path: path.to_owned(), source })
}

fn parse_status(text: &str) -> HashMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key, value.trim())).collect()
}

/// `6.1.0-18-amd64` is (6, 1); what does not read as a version is (0, 0), the oldest there is.
fn parse_release(text: &str) -> (u32, u32) {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn cgroup_version() -> Result<CgroupVersion, ProbeError> {
    let fs = rustix::fs::statfs("/sys/fs/cgroup").map_err(|errno| ProbeError::Cgroup { source: errno.into() })?;
    Ok(if fs.f_type == CGROUP2_MAGIC { CgroupVersion::V2 } else { CgroupVersion::V1 })
}

fn hugetlb(cgroup: CgroupVersion) -> bool {
    match cgroup {
        CgroupVersion::V1 => Path::new("/sys/fs/cgroup/hugetlb/cgroup.procs").exists(),
        CgroupVersion::V2 => std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
            .is_ok_and(|text| text.split_whitespace().any(|controller| controller == "hugetlb")),
    }
}

fn min_oom_score_adj(caps: CapSet) -> Result<i32, ProbeError> {
    if caps.contains(Cap::SYS_RESOURCE) {
        return Ok(-1000);
    }
    // The kernel's own floor (`oom_score_adj_min`) is not shown anywhere; the value in force is never below it.
    let path = Path::new("/proc/self/oom_score_adj");
    let text = read(path)?;
    text.trim().parse().map_err(|_| ProbeError::Status { path: path.to_owned(), key: "oom_score_adj" })
}

fn max_open_files(caps: CapSet) -> Result<u64, ProbeError> {
    if caps.contains(Cap::SYS_RESOURCE) {
        let path = Path::new("/proc/sys/fs/nr_open");
        let text = read(path)?;
        return text.trim().parse().map_err(|_| ProbeError::Status { path: path.to_owned(), key: "nr_open" });
    }
    Ok(getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_can_be_probed() {
        let facts = probe().unwrap();
        assert!(facts.kernel >= (4, 0), "{facts:?}");
        assert!(facts.max_open_files > 0 && (-1000..=1000).contains(&facts.min_oom_score_adj), "{facts:?}");
        assert!(!facts.caps.contains(Cap::SYS_RESOURCE) || facts.min_oom_score_adj == -1000, "{facts:?}");
    }

    #[test]
    fn releases_of_all_kinds() {
        let cases =
            [("6.18.44-fc-v769", (6, 18)), ("5.12", (5, 12)), ("6.1.0-18-amd64", (6, 1)), ("", (0, 0)), ("x", (0, 0))];
        for (text, want) in cases {
            assert_eq!(parse_release(text), want, "{text}");
        }
    }
}
