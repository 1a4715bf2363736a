//! What is mounted in a container, and in which order.
//!
//! First the built-in mounts, then the daemon's files of the pod, then the request's mounts; all sorted by depth, so that a
//! parent never hides what was mounted below it. A mount of the request takes the place of a built-in one at the same path.

mod builtin;
mod request;
mod source;
mod target;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;

use super::error::ErrorKind;
use super::{Asked, ImageFacts, SpecInput};

pub(super) use builtin::mount as oci_mount;
pub use request::is_image;
pub use source::{SourcePropagation, propagation_of};
pub use target::{Refusal, clean};

/// Most mounts of one request (CVE-2021-43784).
pub const MAX_MOUNTS: usize = 4096;

/// Why a mount cannot be had. `index` counts the request's mounts.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("mounts: {count} mounts, the limit is {MAX_MOUNTS}")]
    TooMany { count: usize },
    #[error("mounts[{index}].container_path {path:?}: {refusal}")]
    Target { index: usize, path: String, refusal: Refusal },
    #[error("mounts[{index}].container_path {path:?}: leads to {resolved:?} in the image; {refusal}")]
    LinkedTarget { index: usize, path: String, resolved: PathBuf, refusal: Refusal },
    #[error("mounts[{index}].container_path {path:?}: mounts[{earlier}] has the same path")]
    Duplicate { index: usize, path: String, earlier: usize },
    #[error("mounts[{index}].host_path: empty, for container path {path:?}")]
    NoSource { index: usize, path: String },
    #[error("mounts[{index}].host_path {source_path:?}: not an absolute path in UTF-8 without NUL")]
    Source { index: usize, source_path: PathBuf },
    #[error("mounts[{index}].propagation {value}: unknown")]
    Propagation { index: usize, value: i32 },
    #[error(
        "mounts[{index}].propagation: {asked} of {source_path:?} needs its mount to be {needed}, and it is {actual}"
    )]
    SourcePropagation {
        index: usize,
        source_path: PathBuf,
        asked: &'static str,
        needed: &'static str,
        actual: &'static str,
    },
    #[error("mounts[{index}].recursive_read_only: {reason}, for container path {path:?}")]
    RecursiveReadOnly { index: usize, path: String, reason: &'static str },
    #[error("RROUnsupported: mounts[{index}] at {path:?}: the {lacking} cannot make mounts recursively read-only")]
    RroUnsupported { index: usize, path: String, lacking: &'static str },
    #[error("mounts[{index}].mount_options {option:?}: want noexec, nodev or nosuid")]
    Option { index: usize, option: String },
    #[error("mounts[{index}].{field} {asked}: want none, or the pod's {pod}, for container path {path:?}")]
    IdMapping { index: usize, field: &'static str, asked: String, pod: String, path: String },
    #[error("mounts[{index}].propagation {asked}: {reason}, for container path {path:?}")]
    Unshareable { index: usize, asked: &'static str, reason: &'static str, path: String },
    #[error("mounts[{index}].image_sub_path {sub_path:?}: want a relative path of at most 4096 bytes without NUL")]
    SubPath { index: usize, sub_path: String },
    #[error("mounts[{index}].image_sub_path {sub_path:?}: given without an image, for container path {path:?}")]
    NoImage { index: usize, sub_path: String, path: String },
    #[error("the request has {asked} mounts, {resolved} were resolved")]
    Unresolved { asked: usize, resolved: usize },
}

impl MountError {
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            Self::RroUnsupported { .. } => ErrorKind::Named,
            Self::SourcePropagation { .. } => ErrorKind::FailedPrecondition,
            _ => ErrorKind::InvalidArgument,
        }
    }
}

pub(super) struct Built {
    pub mounts: Vec<Mount>,
    /// What the container's root must propagate like for its mounts to do so; `None`: the runtime's default.
    pub rootfs_propagation: Option<&'static str>,
}

pub(super) fn build(input: &SpecInput<'_>, asked: &Asked<'_>) -> Result<Built, MountError> {
    let asked_for = request::mounts(input, asked)?;
    let taken: BTreeSet<PathBuf> = asked_for.iter().flat_map(|mount| [&mount.target, &mount.place]).cloned().collect();
    let mut list = builtin::mounts(asked.privileged);
    list.extend(builtin::pod_files(input.files, asked));
    list.retain(|mount| !replaced(mount.destination(), &taken));
    let rootfs_propagation = asked_for.iter().filter_map(|mount| mount.rootfs_propagation()).max();
    let depth = |path: &Path| path.components().count();
    let built_in = list.into_iter().map(|mount| (depth(mount.destination()), mount));
    // A target that is a link in the image lies where the link leads.
    let of_request = asked_for.into_iter().map(|mount| (depth(&mount.place), mount.into_oci()));
    let mut list: Vec<_> = built_in.chain(of_request).collect();
    // Stable: of two mounts of the same depth the earlier stays the earlier, and the later covers it where both lead to
    // one place.
    list.sort_by_key(|(depth, _)| *depth);
    let list = list.into_iter().map(|(_, mount)| mount).collect();
    Ok(Built { mounts: list, rootfs_propagation: rootfs_propagation.map(request::RootPropagation::as_str) })
}

/// A request that brings its own `/dev` brings what is below it, too.
fn replaced(destination: &Path, taken: &BTreeSet<PathBuf>) -> bool {
    taken.contains(destination) || (destination.starts_with("/dev") && taken.contains(Path::new("/dev")))
}

/// The image's `VOLUME` paths that want a writable directory: cleaned, sorted, none twice, and without those that the
/// request mounts over or that would cover a part of the system (CVE-2022-23648, CVE-2019-16884): of these the container
/// has the real ones. The caller makes the directories, resolving the paths inside the image's root, and hands them to
/// [`super::build`] as mounts if it wants them apart from the container's layer.
#[must_use]
pub fn image_volumes(image: &ImageFacts<'_>, config: &cri_proto::runtime::v1::ContainerConfig) -> Vec<PathBuf> {
    let taken: BTreeSet<PathBuf> = config.mounts.iter().map(|mount| clean(&mount.container_path)).collect();
    let volumes = image.volumes.iter().map(|path| clean(&format!("/{path}")));
    let wanted = volumes.filter(|path| {
        !path.as_os_str().as_encoded_bytes().contains(&0)
            && !["/proc", "/sys", "/dev"].iter().any(|system| path.starts_with(system))
            && path != Path::new("/")
            && !taken.contains(path)
    });
    let sorted: BTreeSet<PathBuf> = wanted.collect();
    sorted.into_iter().take(MAX_MOUNTS).collect()
}
