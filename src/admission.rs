//! Which request is legal, and which two requests are the same: pure, no I/O.
//!
//! What is checked here is what the daemon itself would trip over or be led astray by: names that become keys and file
//! names (CVE-2025-0750), paths, sizes (CVE-2021-43784), lines that go into resolv.conf, ports, sysctls (CVE-2022-0811,
//! CVE-2022-0532). What only the container sees (environment, user, capabilities, limits) is checked by [`crate::spec`].

mod container;
mod field;
mod identity;
mod sandbox;
mod session;
#[cfg(test)]
mod tests;
mod update;

use std::fmt;

pub use container::create_container;
pub use identity::{ContainerKey, SandboxKey, config_hash};
pub use sandbox::{cgroup_parent, run_pod_sandbox};
pub use session::{attach, exec, exec_sync, port_forward};
pub use update::{update_container_resources, update_pod_sandbox_resources};

/// Bytes of all labels, or of all annotations, of one object. Kubernetes allows 256 KiB of annotations, and the kubelet
/// adds some of its own.
pub const MAX_METADATA: usize = 320 * 1024;
/// Most mounts and most devices of one request.
pub const MAX_MOUNTS: usize = 4096;
/// Linux's `PATH_MAX`.
pub const MAX_PATH: usize = 4096;

/// A request that is not carried out: which field, what it held, why not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {value:?}: {reason}")]
pub struct AdmissionError {
    /// The field's path in the request, as in the contract.
    pub field: String,
    /// What it held, at most 256 characters.
    pub value: String,
    pub reason: String,
}

impl AdmissionError {
    fn new(field: impl Into<String>, value: impl fmt::Display, reason: impl Into<String>) -> Self {
        let value = value.to_string().chars().take(256).collect();
        Self { field: field.into(), value, reason: reason.into() }
    }

    fn missing(field: impl Into<String>) -> Self {
        Self::new(field, "", "must be given")
    }
}
