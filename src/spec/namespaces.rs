//! Which namespaces a container has of its own, and which it joins.

use std::path::PathBuf;

use cri_proto::runtime::v1 as cri;
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceType};

use super::SpecInput;
use crate::security::CgroupVersion;

/// The pod's namespaces as the pod driver pinned them. An absent path is the host's own namespace.
#[derive(Debug, Clone)]
pub struct NamespacePaths {
    pub net: Option<PathBuf>,
    pub ipc: Option<PathBuf>,
    pub uts: Option<PathBuf>,
    pub pid: PidNamespace,
    /// Absent: the host's.
    pub user: Option<UserNamespace>,
}

/// The pod's user namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserNamespace {
    pub path: PathBuf,
    /// What the request said: one range of each, which admission has checked.
    pub uids: cri::IdMapping,
    pub gids: cri::IdMapping,
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
    #[error("linux.security_context.namespace_options.userns_options {asked}: the pod's is {pod}")]
    UserNamespace { asked: String, pod: String },
}

/// The mount namespace is always new; so is the cgroup namespace on cgroup v2, also for privileged containers
/// (CVE-2023-25809). On v1 the runtime's own view of `/sys/fs/cgroup` already ends at the container.
pub(super) fn namespaces(input: &SpecInput<'_>) -> Result<Vec<LinuxNamespace>, NamespaceError> {
    check_user_namespace(input)?;
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
    if let Some(user) = &paths.user {
        list.push(namespace(LinuxNamespaceType::User, Some(user.path.clone())));
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

/// The maps of the pod's user namespace, which runtimes want beside its path.
pub(super) fn user_maps(paths: &NamespacePaths) -> (Option<Vec<LinuxIdMapping>>, Option<Vec<LinuxIdMapping>>) {
    let oci = |mapping: &cri::IdMapping| {
        let builder = LinuxIdMappingBuilder::default();
        let builder = builder.container_id(mapping.container_id).host_id(mapping.host_id).size(mapping.length);
        vec![builder.build().expect("a mapping has these three fields, and all are set")]
    };
    (paths.user.as_ref().map(|user| oci(&user.uids)), paths.user.as_ref().map(|user| oci(&user.gids)))
}

/// A container has its pod's user namespace; one that says nothing of it has that, too.
fn check_user_namespace(input: &SpecInput<'_>) -> Result<(), NamespaceError> {
    let security = input.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let options = security.and_then(|security| security.namespace_options.as_ref());
    let Some(asked) = options.and_then(|options| options.userns_options.as_ref()) else { return Ok(()) };
    let same = match (cri::NamespaceMode::try_from(asked.mode), &input.namespaces.user) {
        (Ok(cri::NamespaceMode::Node), None) => true,
        (Ok(cri::NamespaceMode::Pod), Some(pod)) => asked.uids == [pod.uids] && asked.gids == [pod.gids],
        _ => false,
    };
    if same {
        return Ok(());
    }
    let pod = input.namespaces.user.as_ref().map_or_else(
        || "NODE".to_owned(),
        |pod| format!("POD {} {}", say(std::slice::from_ref(&pod.uids)), say(std::slice::from_ref(&pod.gids))),
    );
    let mode = cri::NamespaceMode::try_from(asked.mode).map_or("unknown", |mode| mode.as_str_name());
    Err(NamespaceError::UserNamespace { asked: format!("{mode} {} {}", say(&asked.uids), say(&asked.gids)), pod })
}

/// `0:100000:65536`, for error messages; a long list is cut.
pub(super) fn say(mappings: &[cri::IdMapping]) -> String {
    let words = mappings.iter().take(4).map(|m| format!("{}:{}:{}", m.container_id, m.host_id, m.length));
    format!("[{}{}]", words.collect::<Vec<_>>().join(" "), if mappings.len() > 4 { " …" } else { "" })
}
