//! Where a mount may go.
//!
//! An unprivileged container's request must not cover what the runtime works through while it builds the container, nor
//! undo what it was promised:
//!
//! | target | unprivileged | privileged |
//! |---|---|---|
//! | `/` | no | no |
//! | `/proc` and below | no: labels and masks are written there (CVE-2019-16884, CVE-2023-27561, CVE-2025-52881); except the plain statistics files that lxcfs fakes | yes |
//! | `/sys` | read-only | yes |
//! | below `/sys` | read-only, or where the kernel itself has other file systems mounted (`/sys/fs/cgroup`, `/sys/fs/bpf`, …): sysfs was promised to be read-only | yes |
//! | `/dev` | read-only: the runtime would make nodes and links in what is mounted there (CVE-2026-47766) | yes |
//! | `/dev/null`, `/dev/pts`, `/dev/console`, … | no: masks and terminals are made of them (CVE-2025-31133, CVE-2025-52565) | yes |
//! | else below `/dev` (`/dev/shm`, `/dev/termination-log`, `/dev/dri`, …) | yes | yes |
//!
//! Reading a part of the host this way gains nothing over mounting it elsewhere, so that is not what is guarded here.

use std::fmt;
use std::path::{Component, Path, PathBuf};

/// Why a target is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    NotAbsolute,
    TooLong,
    Nul,
    Root,
    Proc,
    Sys,
    Dev,
    DevNode,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAbsolute => "not an absolute path",
            Self::TooLong => "longer than 4096 bytes",
            Self::Nul => "has a NUL byte",
            Self::Root => "nothing can be mounted over the container's root",
            Self::Proc => "only a privileged container may mount over a part of /proc",
            Self::Sys => "only a privileged container may mount this over a part of /sys other than read-only",
            Self::Dev => "only a privileged container may mount over /dev other than read-only",
            Self::DevNode => "only a privileged container may mount over this part of /dev",
        })
    }
}

/// The statistics of the whole machine, which lxcfs replaces by the container's share of them. The kernel steers nothing
/// by these files.
const PROC_STATISTICS: [&str; 9] =
    ["cpuinfo", "diskstats", "loadavg", "meminfo", "net/dev", "slabinfo", "stat", "swaps", "uptime"];

/// Where the kernel, or the service manager, mounts file systems of their own.
const SYS_MOUNT_POINTS: [&str; 10] = [
    "/sys/fs/cgroup",
    "/sys/fs/bpf",
    "/sys/fs/pstore",
    "/sys/fs/resctrl",
    "/sys/fs/selinux",
    "/sys/fs/fuse/connections",
    "/sys/kernel/config",
    "/sys/kernel/debug",
    "/sys/kernel/security",
    "/sys/kernel/tracing",
];

const DEV_NODES: [&str; 10] = ["console", "fd", "full", "null", "ptmx", "pts", "stderr", "stdin", "stdout", "tty"];

/// The path without `.`, empty parts and `..`, as text: no link is looked at. A `..` at the root stays at the root.
#[must_use]
pub fn clean(path: &str) -> PathBuf {
    clean_path(Path::new(path))
}

fn clean_path(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    out
}

/// The cleaned target, if a mount may go there.
pub(super) fn checked(text: &str, readonly: bool, privileged: bool) -> Result<PathBuf, Refusal> {
    if !text.starts_with('/') {
        return Err(Refusal::NotAbsolute);
    }
    if text.len() > 4096 {
        return Err(Refusal::TooLong);
    }
    if text.contains('\0') {
        return Err(Refusal::Nul);
    }
    let target = clean(text);
    allowed(&target, readonly, privileged).map(|()| target)
}

/// The same rules for a path that the caller resolved inside the image.
pub(super) fn allowed(target: &Path, readonly: bool, privileged: bool) -> Result<(), Refusal> {
    let target = clean_path(target);
    if target == Path::new("/") {
        return Err(Refusal::Root);
    }
    if privileged {
        return Ok(());
    }
    if let Ok(below) = target.strip_prefix("/proc") {
        let statistics = PROC_STATISTICS.iter().any(|name| below == Path::new(name));
        return if statistics { Ok(()) } else { Err(Refusal::Proc) };
    }
    if target.starts_with("/sys") {
        let foreign = SYS_MOUNT_POINTS.iter().any(|point| target.starts_with(point));
        return if readonly || foreign { Ok(()) } else { Err(Refusal::Sys) };
    }
    if let Ok(below) = target.strip_prefix("/dev") {
        if below.as_os_str().is_empty() {
            return if readonly { Ok(()) } else { Err(Refusal::Dev) };
        }
        let node = DEV_NODES.iter().any(|name| below.starts_with(name));
        return if node { Err(Refusal::DevNode) } else { Ok(()) };
    }
    Ok(())
}
