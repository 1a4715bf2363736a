//! Tests of the room `security/seccomp`.

use std::collections::BTreeSet;
use std::path::Path;

use super::*;

/// What the kernel does with a filter's rule for one call: the first rule whose conditions hold.
fn verdict(profile: &LinuxSeccomp, call: &str, args: [u64; 2]) -> (LinuxSeccompAction, Option<u32>) {
    for rule in profile.syscalls().as_deref().unwrap_or_default() {
        if !rule.names().iter().any(|name| name == call) {
            continue;
        }
        let holds = rule.args().as_deref().unwrap_or_default().iter().all(|arg| {
            let actual = args[arg.index()];
            match arg.op() {
                LinuxSeccompOperator::ScmpCmpEq => actual == arg.value(),
                LinuxSeccompOperator::ScmpCmpMaskedEq => actual & arg.value() == arg.value_two().unwrap_or(0),
                other => panic!("the default profile uses {other}"),
            }
        });
        if holds {
            return (rule.action(), rule.errno_ret());
        }
    }
    (profile.default_action(), profile.default_errno_ret())
}

fn allowed(profile: &LinuxSeccomp, call: &str, args: [u64; 2]) -> bool {
    verdict(profile, call, args).0 == LinuxSeccompAction::ScmpActAllow
}

fn plain() -> LinuxSeccomp {
    default_profile(Arch::X86_64, CapSet::EMPTY)
}

#[test]
fn cve_2026_31431_af_alg_and_af_vsock_are_refused_even_with_garbage_in_the_high_half() {
    for caps in [CapSet::EMPTY, CapSet::all()] {
        let profile = default_profile(Arch::X86_64, caps);
        for family in [table::AF_ALG, table::AF_VSOCK] {
            for high in [0, 1 << 32, 0xffff_ffff << 32, 1 << 63] {
                let seen = verdict(&profile, "socket", [family | high, 0]);
                assert_eq!(seen, (LinuxSeccompAction::ScmpActErrno, Some(97)), "{family} | {high:x}");
            }
        }
        let first = &profile.syscalls().as_ref().unwrap()[0];
        assert_eq!(
            first.names(),
            &["socketcall"],
            "libseccomp allows it, unless it is refused before `socket` is named"
        );
        assert_eq!(verdict(&profile, "socketcall", [1, 0]), (LinuxSeccompAction::ScmpActErrno, Some(38)));
    }
}

#[test]
fn each_family_is_allowed_or_refused_exactly_as_listed() {
    let profile = plain();
    for family in 0..256 {
        let want = family < table::FAMILIES_END && !table::DENIED_FAMILIES.contains(&family);
        assert_eq!(allowed(&profile, "socket", [family, 0]), want, "family {family}");
    }
    for family in [1, 2, 10, 16, 17] {
        assert!(allowed(&profile, "socket", [family, 0]), "family {family}");
    }
}

#[test]
fn namespaces_are_made_only_with_sys_admin() {
    let newuser = 0x1000_0000;
    let thread = 0x003d_0f00;
    let (without, with) = (plain(), default_profile(Arch::X86_64, [Cap::SYS_ADMIN].into_iter().collect()));
    assert!(allowed(&without, "clone", [thread, 0]));
    assert!(!allowed(&without, "clone", [newuser | 17, 0]));
    assert_eq!(verdict(&without, "clone3", [0, 0]), (LinuxSeccompAction::ScmpActErrno, Some(38)));
    for call in ["unshare", "setns", "mount", "open_tree", "move_mount"] {
        assert!(!allowed(&without, call, [0, 0]), "{call}");
        assert!(allowed(&with, call, [0, 0]), "{call}");
    }
    assert!(allowed(&with, "clone", [newuser | 17, 0]) && allowed(&with, "clone3", [0, 0]));
}

/// Every name and every rule, to be compared with what the field's runtimes ship. Last compared in step with moby's
/// profile of June 2026: it has besides what we have `riscv_hwprobe` on every machine; we have besides `file_getattr`,
/// `file_setattr` (Linux 6.17) and `uprobe` (6.18), refuse more socket families, and refuse `socketcall`.
#[test]
fn the_default_profile_as_a_whole() {
    let arches = [Arch::X86_64, Arch::Aarch64, Arch::Riscv64, Arch::S390x, Arch::Ppc64le, Arch::Loongarch64];
    insta::assert_json_snapshot!("default_x86_64", default_profile(Arch::X86_64, CapSet::EMPTY));
    let plain: BTreeSet<String> = names(&default_profile(Arch::Loongarch64, CapSet::EMPTY));
    let of_machine = |arch| {
        let profile = default_profile(arch, CapSet::EMPTY);
        let own: Vec<_> = names(&profile).difference(&plain).cloned().collect();
        (format!("{arch:?}"), profile.architectures().clone().unwrap(), own)
    };
    insta::assert_json_snapshot!("default_by_machine", arches.map(of_machine));
    let with = |cap: &Cap| {
        let profile = default_profile(Arch::Loongarch64, [*cap].into_iter().collect());
        let more: Vec<_> = names(&profile).difference(&plain).cloned().collect();
        (format!("{cap:?}"), more)
    };
    let by_cap: Vec<_> = table::WITH_CAP.iter().map(|(cap, _)| with(cap)).collect();
    insta::assert_json_snapshot!("default_by_capability", by_cap);
}

/// The calls that are allowed without a look at their arguments.
fn names(profile: &LinuxSeccomp) -> BTreeSet<String> {
    let rules = profile.syscalls().iter().flatten();
    let plain = rules.filter(|rule| rule.action() == LinuxSeccompAction::ScmpActAllow && rule.args().is_none());
    plain.flat_map(|rule| rule.names().clone()).collect()
}

#[test]
fn s390_is_looked_at_in_its_second_argument() {
    let profile = default_profile(Arch::S390x, CapSet::EMPTY);
    assert!(!allowed(&profile, "clone", [0, 0x1000_0000]));
    assert!(allowed(&profile, "clone", [0x1000_0000, 0]));
}

#[test]
fn what_no_container_gets_by_default() {
    let profile = plain();
    for call in [
        "add_key",
        "bpf",
        "delete_module",
        "finit_module",
        "init_module",
        "io_uring_enter",
        "io_uring_register",
        "io_uring_setup",
        "iopl",
        "kexec_file_load",
        "kexec_load",
        "keyctl",
        "mbind",
        "open_by_handle_at",
        "perf_event_open",
        "pivot_root",
        "reboot",
        "request_key",
        "setns",
        "settimeofday",
        "swapoff",
        "swapon",
        "syslog",
        "umount2",
        "unshare",
        "userfaultfd",
        "chroot",
        "acct",
        "nfsservctl",
        "ustat",
        "sysfs",
        "uselib",
    ] {
        assert_eq!(verdict(&profile, call, [0, 0]), (LinuxSeccompAction::ScmpActErrno, Some(1)), "{call}");
    }
    let everything = default_profile(Arch::X86_64, CapSet::all());
    for call in ["io_uring_setup", "keyctl", "add_key", "kexec_load", "userfaultfd"] {
        assert!(!allowed(&everything, call, [0, 0]), "{call} comes with no capability");
    }
}

#[test]
fn no_name_is_listed_twice_and_each_looks_like_a_system_call() {
    let mut seen = BTreeSet::new();
    for name in table::ALWAYS.iter().flat_map(|topic| topic.split_whitespace()) {
        assert!(seen.insert(name), "{name} is listed twice");
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{name}");
    }
    for (cap, calls) in table::WITH_CAP {
        for name in calls.split_whitespace() {
            assert!(!seen.contains(name), "{name} needs no {cap}: it is always allowed");
        }
    }
}

fn parse(json: &str) -> Result<LinuxSeccomp, LocalhostError> {
    parse_localhost(Path::new("/p/x.json"), json.as_bytes(), Arch::X86_64, CapSet::EMPTY, (6, 1))
}

#[test]
fn an_oci_profile_and_a_docker_profile_are_read() {
    let oci = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],
        "syscalls":[{"names":["chmod","fchmod"],"action":"SCMP_ACT_ERRNO"}]}"#;
    let profile = parse(oci).unwrap();
    assert!(!allowed(&profile, "chmod", [0, 0]) && allowed(&profile, "read", [0, 0]));

    let docker = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,
        "archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]},
                   {"architecture":"SCMP_ARCH_AARCH64","subArchitectures":null}],
        "syscalls":[
          {"names":["read"],"action":"SCMP_ACT_ALLOW","args":null,"comment":"","includes":{},"excludes":{}},
          {"name":"ptrace","action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4.8"}},
          {"names":["bpf"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
          {"names":["clone"],"action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_SYS_ADMIN"],"arches":["s390x"]}},
          {"names":["swapcontext"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["ppc64le"]}}]}"#;
    let profile = parse(docker).unwrap();
    let seen: Vec<bool> =
        ["read", "ptrace", "bpf", "clone", "swapcontext"].iter().map(|c| allowed(&profile, c, [0, 0])).collect();
    assert_eq!(seen, [true, true, false, true, false]);
    assert_eq!(profile.architectures().as_ref().unwrap().len(), 2);
}

#[test]
fn cve_2023_2431_a_broken_profile_is_an_error_that_names_the_path() {
    let too_large = " ".repeat(MAX_PROFILE_SIZE + 1);
    for json in [
        "",
        "null",
        "[]",
        "{}",
        "{\"defaultAction\":\"SCMP_ACT_NONSENSE\"}",
        "{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"sycalls\":[]}",
        "{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"syscalls\":[{\"action\":\"SCMP_ACT_ERRNO\"}]}",
        "{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"syscalls\":[{\"names\":[],\"action\":\"SCMP_ACT_ERRNO\"}]}",
        "{\"defaultAction\":\"SCMP_ACT_ALLOW\",\"syscalls\":[{\"names\":[\"x\"],\"action\":\"SCMP_ACT_ERRNO\",\
          \"includes\":{\"caps\":[\"CAP_NO_SUCH\"]}}]}",
        "{\"defaultAction\":\"SCMP_ACT_ALLOW\"} trailing",
        &too_large,
    ] {
        let error = parse(json).expect_err("was taken");
        assert!(error.to_string().contains("/p/x.json"), "{error}");
    }
}
