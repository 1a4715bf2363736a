//! The request's mounts: checked, then put into the OCI form.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use cri_proto::runtime::v1 as cri;
use oci_spec::runtime::Mount;

use super::source::SourcePropagation;
use super::{MAX_MOUNTS, MountError, builtin, target};
use crate::spec::namespaces::say;
use crate::spec::{Asked, ResolvedMount, SpecInput};

/// A checked mount.
pub(super) struct Request {
    pub target: PathBuf,
    /// Where the target leads in the image.
    pub place: PathBuf,
    source: PathBuf,
    propagation: cri::MountPropagation,
    options: Vec<&'static str>,
}

/// What the container's root must be, from least to most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RootPropagation {
    Slave,
    Shared,
}

impl RootPropagation {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Slave => "rslave",
            Self::Shared => "rshared",
        }
    }
}

impl Request {
    pub(super) fn rootfs_propagation(&self) -> Option<RootPropagation> {
        match self.propagation {
            cri::MountPropagation::PropagationPrivate => None,
            cri::MountPropagation::PropagationHostToContainer => Some(RootPropagation::Slave),
            cri::MountPropagation::PropagationBidirectional => Some(RootPropagation::Shared),
        }
    }

    pub(super) fn into_oci(self) -> Mount {
        builtin::mount("bind", &self.source, &self.target, &self.options)
    }
}

pub(super) fn mounts(input: &SpecInput<'_>, asked: &Asked<'_>) -> Result<Vec<Request>, MountError> {
    let count = input.config.mounts.len();
    if count > MAX_MOUNTS || input.mounts.len() > MAX_MOUNTS {
        return Err(MountError::TooMany { count: count.max(input.mounts.len()) });
    }
    if input.mounts.len() < count {
        return Err(MountError::Unresolved { asked: count, resolved: input.mounts.len() });
    }
    let mut places: HashMap<PathBuf, usize> = HashMap::new();
    let mut list = Vec::with_capacity(input.mounts.len());
    for (index, mount) in input.mounts.iter().enumerate() {
        let checked = one(index, mount, input, asked)?;
        if let Some(earlier) = places.insert(checked.target.clone(), index) {
            return Err(MountError::Duplicate { index, path: shorten(&mount.cri.container_path), earlier });
        }
        list.push(checked);
    }
    Ok(list)
}

fn one(
    index: usize,
    mount: &ResolvedMount<'_>,
    input: &SpecInput<'_>,
    asked: &Asked<'_>,
) -> Result<Request, MountError> {
    let request = mount.cri;
    let path = || shorten(&request.container_path);
    let target = target::checked(&request.container_path, request.readonly, asked.privileged)
        .map_err(|refusal| MountError::Target { index, path: path(), refusal })?;
    if let Some(resolved) = &mount.resolved_target {
        target::allowed(resolved, request.readonly, asked.privileged).map_err(|refusal| MountError::LinkedTarget {
            index,
            path: path(),
            resolved: resolved.clone(),
            refusal,
        })?;
    }
    let image = is_image(request);
    sub_path(index, request)?;
    if !image && request.host_path.is_empty() {
        return Err(MountError::NoSource { index, path: path() });
    }
    let source = mount.source.clone();
    let legal = source.is_absolute() && source.to_str().is_some_and(|text| !text.contains('\0') && text.len() <= 4096);
    if !legal {
        return Err(MountError::Source { index, source_path: source });
    }
    owners(index, request, input)?;
    let propagation = cri::MountPropagation::try_from(request.propagation)
        .map_err(|_| MountError::Propagation { index, value: request.propagation })?;
    shareable(index, request, propagation, input)?;
    check_source(index, &source, propagation, mount.source_propagation)?;
    let mut options = vec!["rbind", propagation_option(propagation), access(index, request, propagation, input)?];
    options.extend(extra_options(index, request)?);
    let place = mount.resolved_target.clone().unwrap_or_else(|| target.clone());
    Ok(Request { target, place, source, propagation, options })
}

/// The mount is of an image's content, not of a path of the host.
pub fn is_image(mount: &cri::Mount) -> bool {
    mount.image.as_ref().is_some_and(|image| !image.image.is_empty())
}

fn sub_path(index: usize, request: &cri::Mount) -> Result<(), MountError> {
    let path = &request.image_sub_path;
    if path.is_empty() {
        return Ok(());
    }
    if !is_image(request) {
        let sub_path = shorten(path);
        return Err(MountError::NoImage { index, sub_path, path: shorten(&request.container_path) });
    }
    let climbs = Path::new(path).components().any(|part| part == std::path::Component::ParentDir);
    if path.starts_with('/') || path.len() > 4096 || path.contains('\0') || climbs {
        return Err(MountError::SubPath { index, sub_path: shorten(path) });
    }
    Ok(())
}

/// The owners of a mount's files are the host's, or those of the pod's user namespace: another mapping would give files
/// owners that nobody in the pod is.
fn owners(index: usize, request: &cri::Mount, input: &SpecInput<'_>) -> Result<(), MountError> {
    if request.uid_mappings.is_empty() && request.gid_mappings.is_empty() {
        return Ok(());
    }
    let user = input.namespaces.user.as_ref();
    for (field, asked, pod) in [
        ("uid_mappings", &request.uid_mappings, user.map(|user| &user.uids)),
        ("gid_mappings", &request.gid_mappings, user.map(|user| &user.gids)),
    ] {
        if pod.map_or(!asked.is_empty(), |pod| *asked != [*pod]) {
            let pod = pod.map_or_else(|| "no user namespace".to_owned(), |pod| say(std::slice::from_ref(pod)));
            let path = shorten(&request.container_path);
            return Err(MountError::IdMapping { index, field, asked: say(asked), pod, path });
        }
    }
    Ok(())
}

/// Whether mounts can be passed on as asked, apart from what the source allows.
fn shareable(
    index: usize,
    request: &cri::Mount,
    propagation: cri::MountPropagation,
    input: &SpecInput<'_>,
) -> Result<(), MountError> {
    let reason = match propagation {
        cri::MountPropagation::PropagationPrivate => return Ok(()),
        _ if is_image(request) => "an image's content has no mounts to share",
        // The kernel makes every mount a slave that a namespace of less privilege gets a copy of.
        cri::MountPropagation::PropagationBidirectional if input.namespaces.user.is_some() => {
            "mounts of a pod with a user namespace do not reach the host"
        }
        _ => return Ok(()),
    };
    let path = shorten(&request.container_path);
    Err(MountError::Unshareable { index, asked: propagation.as_str_name(), reason, path })
}

fn propagation_option(propagation: cri::MountPropagation) -> &'static str {
    match propagation {
        cri::MountPropagation::PropagationPrivate => "rprivate",
        cri::MountPropagation::PropagationHostToContainer => "rslave",
        cri::MountPropagation::PropagationBidirectional => "rshared",
    }
}

fn check_source(
    index: usize,
    source: &Path,
    asked: cri::MountPropagation,
    actual: Option<SourcePropagation>,
) -> Result<(), MountError> {
    let needed = match (asked, actual) {
        (_, None | Some(SourcePropagation::Shared)) | (cri::MountPropagation::PropagationPrivate, _) => return Ok(()),
        (cri::MountPropagation::PropagationHostToContainer, Some(SourcePropagation::Slave)) => return Ok(()),
        (cri::MountPropagation::PropagationHostToContainer, _) => "shared or slave",
        (cri::MountPropagation::PropagationBidirectional, _) => "shared",
    };
    Err(MountError::SourcePropagation {
        index,
        source_path: source.to_owned(),
        asked: asked.as_str_name(),
        needed,
        actual: actual.map_or("unknown", SourcePropagation::as_str),
    })
}

fn access(
    index: usize,
    request: &cri::Mount,
    propagation: cri::MountPropagation,
    input: &SpecInput<'_>,
) -> Result<&'static str, MountError> {
    if !request.recursive_read_only {
        return Ok(if request.readonly || is_image(request) { "ro" } else { "rw" });
    }
    let path = || shorten(&request.container_path);
    if !request.readonly {
        let reason = "needs readonly";
        return Err(MountError::RecursiveReadOnly { index, path: path(), reason });
    }
    if propagation != cri::MountPropagation::PropagationPrivate {
        let reason = "needs private propagation";
        return Err(MountError::RecursiveReadOnly { index, path: path(), reason });
    }
    match (input.host.kernel.recursive_read_only, input.handler.recursive_read_only) {
        (true, true) => Ok("rro"),
        (false, _) => Err(MountError::RroUnsupported { index, path: path(), lacking: "kernel" }),
        (true, false) => Err(MountError::RroUnsupported { index, path: path(), lacking: "runtime" }),
    }
}

fn extra_options(index: usize, request: &cri::Mount) -> Result<Vec<&'static str>, MountError> {
    const KNOWN: [&str; 3] = ["noexec", "nodev", "nosuid"];
    let mut options = if is_image(request) { KNOWN.to_vec() } else { Vec::new() };
    for asked in &request.mount_options {
        let known = KNOWN.iter().find(|known| *known == asked);
        let option = *known.ok_or_else(|| MountError::Option { index, option: shorten(asked) })?;
        if !options.contains(&option) {
            options.push(option);
        }
    }
    Ok(options)
}

fn shorten(text: &str) -> String {
    text.chars().take(256).collect()
}
