//! Why the store refuses or fails.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use super::digest::Digest;
use super::unpack::UnpackError;
use crate::sys::mount::overlay::OverlayError;

/// Why the store refuses or fails.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("{}: {operation}", path.display())]
    Directory { path: PathBuf, operation: &'static str, source: io::Error },
    #[error("layer {chain} is not in the store")]
    Missing { chain: Digest },
    #[error("layer {chain} cannot be unpacked")]
    Unpack { chain: Digest, source: UnpackError },
    #[error("layer {chain}: its content has the digest {got}, the image says {want}")]
    DiffId { chain: Digest, want: Digest, got: Digest },
    #[error("layer {chain}: {operation}")]
    Layer { chain: Digest, operation: &'static str, source: io::Error },
    #[error(
        "layer {chain} was unpacked by an older version, which kept no skeleton of the archive; remove the image and pull it again"
    )]
    NoSkeleton { chain: Digest },
    #[error("layer {chain}: the skeleton of its archive cannot be read")]
    Skeleton { chain: Digest, source: io::Error },
    #[error("layer {chain}: it cannot be compared")]
    Verify { chain: Digest, source: io::Error },
    #[error("layer {chain} lies on layer {parent}, which is not the one given before it: the base comes first")]
    Order { chain: Digest, parent: Digest },
    #[error("{path:?} in the image cannot be read")]
    Read { path: String, source: io::Error },
    #[error("{path:?} in the image is larger than {cap} bytes")]
    TooLarge { path: String, cap: u64 },
    #[error("{path:?} in the image is not a regular file")]
    NotAFile { path: String },
    #[error("{path:?} in the image leads through too many symlinks")]
    Links { path: String },
    #[error("{id:?} is no container id")]
    ContainerId { id: String },
    #[error("container {id}: {operation}")]
    Container { id: String, operation: &'static str, source: io::Error },
    #[error("container {id}: the root file system cannot be mounted on {}", target.display())]
    Mount { id: String, target: PathBuf, source: OverlayError },
    #[error("the layers cannot be mounted as a volume")]
    Volume { source: OverlayError },
    #[error("{path:?} in the image cannot be mounted")]
    VolumePath { path: String, source: io::Error },
    #[error("{} carries another mount already", target.display())]
    Busy { target: PathBuf },
    #[error("{}: cannot be unmounted", target.display())]
    Unmount { target: PathBuf, source: io::Error },
}

impl StorageError {
    pub(super) fn directory(path: &Path, operation: &'static str, source: io::Error) -> Self {
        Self::Directory { path: path.to_owned(), operation, source }
    }

    /// Whether the disk, or a quota on it, is full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        let mut cause: Option<&(dyn Error + 'static)> = Some(self);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                return matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
            }
            cause = error.source();
        }
        false
    }
}
