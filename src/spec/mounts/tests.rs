//! Tests of the room `spec/mounts`.

use std::path::{Path, PathBuf};

use super::target::{Refusal, allowed, checked};
use super::*;
use crate::spec::tests::Case;

#[test]
fn text_is_cleaned_without_leaving_the_root() {
    for (text, want) in [
        ("/a/b", "/a/b"),
        ("/a//b/", "/a/b"),
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/../../etc", "/etc"),
        ("/..", "/"),
        ("/proc/../proc", "/proc"),
    ] {
        assert_eq!(clean(text), PathBuf::from(want), "{text}");
    }
}

/// (target, unprivileged read-write, unprivileged read-only, privileged)
const TARGETS: &[(&str, bool, bool, bool)] = &[
    ("/", false, false, false),
    ("/..", false, false, false),
    ("/data", true, true, true),
    ("/etc/hosts", true, true, true),
    ("/etc/resolv.conf", true, true, true),
    ("/process", true, true, true),
    ("/system/x", true, true, true),
    ("/devices", true, true, true),
    ("/proc", false, false, true),
    ("/proc/../proc", false, false, true),
    ("//proc", false, false, true),
    ("/proc/sys", false, false, true),
    ("/proc/self/attr/current", false, false, true),
    ("/proc/meminfo", true, true, true),
    ("/proc/net/dev", true, true, true),
    ("/proc/net", false, false, true),
    ("/proc/meminfo/x", false, false, true),
    ("/sys", false, true, true),
    ("/sys/devices/system/node", false, true, true),
    ("/sys/fs/cgroup", true, true, true),
    ("/sys/fs/bpf", true, true, true),
    ("/sys/fs/bpfx", false, true, true),
    ("/sys/kernel/debug", true, true, true),
    ("/sys/kernel", false, true, true),
    ("/dev", false, true, true),
    ("/dev/shm", true, true, true),
    ("/dev/termination-log", true, true, true),
    ("/dev/dri/card0", true, true, true),
    ("/dev/random", true, true, true),
    ("/dev/null", false, false, true),
    ("/dev/pts", false, false, true),
    ("/dev/pts/0", false, false, true),
    ("/dev/ptmx", false, false, true),
    ("/dev/console", false, false, true),
    ("/dev/./../dev/null", false, false, true),
];

#[test]
fn cve_2019_16884_targets_that_a_runtime_works_through_are_refused() {
    for (target, rw, ro, privileged) in TARGETS {
        assert_eq!(checked(target, false, false).is_ok(), *rw, "{target} read-write");
        assert_eq!(checked(target, true, false).is_ok(), *ro, "{target} read-only");
        assert_eq!(checked(target, false, true).is_ok(), *privileged, "{target} privileged");
        assert_eq!(allowed(Path::new(target), false, false).is_ok(), *rw, "{target} resolved");
    }
    assert_eq!(checked("relative", true, true), Err(Refusal::NotAbsolute));
    assert_eq!(checked("", true, true), Err(Refusal::NotAbsolute));
    assert_eq!(checked("/a\0b", true, true), Err(Refusal::Nul));
    assert_eq!(checked(&format!("/{}", "x".repeat(4096)), true, true), Err(Refusal::TooLong));
}

#[test]
fn cve_2019_16884_a_link_in_the_image_is_no_way_there() {
    let mut case = Case { resolved_target: Some("/proc".into()), ..Case::default() };
    case.mount("/p");
    let error = case.refused();
    assert!(error.contains("\"/p\"") && error.contains("\"/proc\""), "{error}");
}

#[test]
fn cve_2022_23648_volumes_are_cleaned_and_those_of_the_system_are_left_out() {
    let volumes =
        ["/data", "data/", "/../../../etc", "/proc", "/sys/fs/cgroup", "/dev/shm", "/", "", "/taken", "/a\0b"];
    let volumes: Vec<String> = volumes.iter().map(|path| (*path).to_owned()).collect();
    let image = ImageFacts { volumes: &volumes, ..ImageFacts::default() };
    let mut case = Case::default();
    case.mount("/taken/");
    assert_eq!(image_volumes(&image, &case.config), [PathBuf::from("/data"), PathBuf::from("/etc")]);
}

#[test]
fn cve_2021_43784_sizes_are_capped() {
    let mut case = Case::default();
    for number in 0..=MAX_MOUNTS {
        case.mount(&format!("/m{number}"));
    }
    assert!(case.refused().contains("4097"));
    let mut case = Case::default();
    case.mount(&"/x".repeat(35_000));
    assert!(case.refused().contains("4096"));
}

fn of_image(mount: &mut cri_proto::runtime::v1::Mount, sub_path: &str, propagation: i32) {
    mount.host_path.clear();
    mount.image = Some(cri_proto::runtime::v1::ImageSpec { image: "i".into(), ..Default::default() });
    mount.image_sub_path = sub_path.to_owned();
    mount.propagation = propagation;
}

#[test]
fn the_content_of_an_image_is_only_ever_read() {
    let mut case = Case::default();
    of_image(case.mount("/data"), "a/b", 0);
    let built = case.built();
    let mounts = built.spec.mounts().clone().unwrap();
    let mount = mounts.iter().find(|mount| mount.destination() == Path::new("/data")).unwrap();
    let options: Vec<_> = mount.options().iter().flatten().map(String::as_str).collect();
    assert_eq!(options, ["rbind", "rprivate", "ro", "noexec", "nodev", "nosuid"]);
}

#[test]
fn what_is_wrong_with_a_mount_is_named() {
    type Change = fn(&mut cri_proto::runtime::v1::Mount);
    let cases: [(Change, &str); 14] = [
        (|m| m.host_path = String::new(), "host_path"),
        (|m| m.host_path = "relative".into(), "relative"),
        (|m| m.propagation = 7, "propagation 7"),
        (|m| m.recursive_read_only = true, "needs readonly"),
        (|m| (m.recursive_read_only, m.readonly, m.propagation) = (true, true, 1), "private"),
        (|m| (m.recursive_read_only, m.readonly, m.propagation) = (true, true, 2), "private"),
        (|m| m.mount_options = vec!["exec".into()], "exec"),
        (
            |m| m.uid_mappings = vec![Default::default()],
            "uid_mappings [0:0:0]: want none, or the pod's no user namespace",
        ),
        (|m| m.gid_mappings = vec![Default::default()], "gid_mappings"),
        (|m| m.image_sub_path = "a".into(), "without an image"),
        (|m| of_image(m, "/a", 0), "image_sub_path \"/a\""),
        (|m| of_image(m, "a/../b", 0), "image_sub_path \"a/../b\""),
        (|m| of_image(m, "a\0", 0), "image_sub_path"),
        (|m| of_image(m, "a", 1), "no mounts to share"),
    ];
    for (change, named) in cases {
        let mut case = Case::default();
        change(case.mount("/data"));
        let error = case.refused();
        assert!(error.contains(named), "{error}");
    }
    let mut case = Case::default();
    case.mount("/data");
    case.mount("/x/../data/");
    let error = case.refused();
    assert!(error.contains("mounts[1]") && error.contains("/x/../data/") && error.contains("mounts[0]"), "{error}");
}

#[test]
fn recursive_read_only_is_refused_by_the_name_that_the_kubelet_knows() {
    for lacking in ["kernel", "runtime"] {
        let mut case = Case::default();
        case.host.kernel.recursive_read_only = lacking != "kernel";
        case.handler.recursive_read_only = lacking != "runtime";
        let mount = case.mount("/data");
        (mount.readonly, mount.recursive_read_only) = (true, true);
        let error = case.build().expect_err("was built");
        assert!(error.to_string().starts_with("RROUnsupported: "), "{error}");
        assert_eq!(error.kind(), ErrorKind::Named);
    }
}

#[test]
fn propagation_needs_a_source_that_propagates() {
    for (propagation, actual, fine) in [
        (0, SourcePropagation::Private, true),
        (1, SourcePropagation::Private, false),
        (1, SourcePropagation::Slave, true),
        (1, SourcePropagation::Shared, true),
        (2, SourcePropagation::Private, false),
        (2, SourcePropagation::Slave, false),
        (2, SourcePropagation::Shared, true),
    ] {
        let mut case = Case { source_propagation: Some(actual), ..Case::default() };
        case.mount("/data").propagation = propagation;
        assert_eq!(case.build().is_ok(), fine, "{propagation} {actual:?}");
    }
}

#[test]
fn cve_2020_8557_the_daemons_files_cannot_be_filled() {
    let access = |case: &Case| -> Vec<bool> {
        let built = case.built();
        let mounts = built.spec.mounts().clone().unwrap();
        ["/etc/resolv.conf", "/etc/hostname"]
            .iter()
            .map(|path| mounts.iter().find(|m| m.destination() == Path::new(path)).unwrap())
            .map(|mount| mount.options().as_ref().unwrap().contains(&"rw".to_owned()))
            .collect()
    };
    let mut case = Case::default();
    assert_eq!(access(&case), [false, false]);
    case.files.writable = true;
    assert_eq!(access(&case), [true, true]);
    case.security().readonly_rootfs = true;
    assert_eq!(access(&case), [false, false]);
}
