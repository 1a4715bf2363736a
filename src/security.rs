//! What the kernel and this daemon can enforce: capabilities, seccomp, AppArmor, SELinux, and the probe that finds out.
//!
//! Nothing here decides for a container; [`crate::spec`] does, from the facts that [`probe()`] reports.

pub mod apparmor;
pub mod caps;
pub mod probe;
pub mod seccomp;
pub mod selinux;

pub use apparmor::AppArmor;
pub use caps::{Cap, CapSet};
pub use probe::{Facts, ProbeError, probe};
pub use seccomp::Arch;

/// Which cgroup hierarchy the host mounts at `/sys/fs/cgroup`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupVersion {
    /// One hierarchy per controller, with or without the hybrid `unified` mount.
    V1,
    /// The single hierarchy.
    V2,
}
