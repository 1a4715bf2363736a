//! The mounts that every container has.

use std::path::Path;

use oci_spec::runtime::Mount;

use crate::spec::{Asked, PodFiles};

pub(in crate::spec) fn mount(kind: &str, source: &Path, destination: &Path, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(destination.to_owned())
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(source.to_owned()))
        .set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
    mount
}

/// The kernel's file systems. `/sys` and the cgroup tree are writable to privileged containers only.
pub(super) fn mounts(privileged: bool) -> Vec<Mount> {
    let access = if privileged { "rw" } else { "ro" };
    let list: [(&str, &str, &str, &[&str]); 6] = [
        ("proc", "proc", "/proc", &["nosuid", "noexec", "nodev"]),
        ("tmpfs", "tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("sysfs", "sysfs", "/sys", &["nosuid", "noexec", "nodev", access]),
        ("devpts", "devpts", "/dev/pts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        ("mqueue", "mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
        ("cgroup", "cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "relatime", access]),
    ];
    list.iter().map(|(kind, from, to, options)| mount(kind, Path::new(from), Path::new(to), options)).collect()
}

/// The daemon's files of the pod: read-only where the container's root is, and where writing could fill a file system that
/// others need (CVE-2020-8557).
pub(super) fn pod_files(files: &PodFiles, asked: &Asked<'_>) -> Vec<Mount> {
    let writable = (files.writable || asked.privileged) && !asked.security.readonly_rootfs;
    let access = if writable { "rw" } else { "ro" };
    let file = |source: &Path, target: &str| {
        mount("bind", source, Path::new(target), &["rbind", "rprivate", "nosuid", "nodev", "noexec", access])
    };
    let shm = ["rbind", "rprivate", "nosuid", "nodev", "noexec", "rw"];
    let mut list =
        vec![mount("bind", &files.shm, Path::new("/dev/shm"), &shm), file(&files.resolv_conf, "/etc/resolv.conf")];
    list.extend(files.hostname.as_deref().map(|path| file(path, "/etc/hostname")));
    list.extend(files.hosts.as_deref().map(|path| file(path, "/etc/hosts")));
    list
}
