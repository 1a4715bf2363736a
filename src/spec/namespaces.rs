//! Which namespaces a container has of its own, and which it joins.

use std::path::PathBuf;

use cri_proto::runtime::v1 as cri;
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};

use super::SpecInput;
use crate::security::CgroupVersion;

/// The pod's namespaces as the pod driver pinned them. An absent path is the host's own namespace.
#[derive(Debug, Clone)]
pub struct NamespacePaths {
    pub net: Option<PathBuf>,
    pub ipc: Option<PathBuf>,
    pub uts: Option<PathBuf>,
    pub pid: PidNamespace,
}

/// Whose processes a container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PidNamespace {
    /// A namespace of its own (mode CONTAINER).
    Own,
    /// The host's (mode NODE).
    Host,
    /// The pod's, or another container's (modes POD and TARGET).
    Path(PathBuf),
}

/// A namespace that was asked for and cannot be given.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamespaceError {
    #[error("namespace_options.userns_options.mode {mode}: user namespaces are not supported yet")]
    UserNamespace { mode: &'static str },
}

/// The mount namespace is always new; so is the cgroup namespace on cgroup v2, also for privileged containers
/// (CVE-2023-25809). On v1 the runtime's own view of `/sys/fs/cgroup` already ends at the container.
pub(super) fn namespaces(input: &SpecInput<'_>) -> Result<Vec<LinuxNamespace>, NamespaceError> {
    refuse_user_namespace(input)?;
    let paths = input.namespaces;
    let mut list = vec![namespace(LinuxNamespaceType::Mount, None)];
    let shared = [
        (LinuxNamespaceType::Network, &paths.net),
        (LinuxNamespaceType::Ipc, &paths.ipc),
        (LinuxNamespaceType::Uts, &paths.uts),
    ];
    for (kind, path) in shared {
        if let Some(path) = path {
            list.push(namespace(kind, Some(path.clone())));
        }
    }
    match &paths.pid {
        PidNamespace::Own => list.push(namespace(LinuxNamespaceType::Pid, None)),
        PidNamespace::Path(path) => list.push(namespace(LinuxNamespaceType::Pid, Some(path.clone()))),
        PidNamespace::Host => {}
    }
    if input.host.kernel.cgroup == CgroupVersion::V2 {
        list.push(namespace(LinuxNamespaceType::Cgroup, None));
    }
    Ok(list)
}

fn namespace(kind: LinuxNamespaceType, path: Option<PathBuf>) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(kind).set_path(path);
    namespace
}

fn refuse_user_namespace(input: &SpecInput<'_>) -> Result<(), NamespaceError> {
    let security = input.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let options = security.and_then(|security| security.namespace_options.as_ref());
    let Some(userns) = options.and_then(|options| options.userns_options.as_ref()) else { return Ok(()) };
    match cri::NamespaceMode::try_from(userns.mode) {
        Ok(cri::NamespaceMode::Node) => Ok(()),
        Ok(mode) => Err(NamespaceError::UserNamespace { mode: mode.as_str_name() }),
        Err(_) => Err(NamespaceError::UserNamespace { mode: "unknown" }),
    }
}
