//! The content of an image as a volume: its layers, read-only, and nothing of its configuration.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, OFlags};

use super::{Digest, Storage, StorageError};
use crate::sys::mount;
use crate::sys::mount::overlay::{Overlay, OverlayError, Writable};
use crate::sys::mount::private::in_private_namespace;
use crate::sys::root::{Root, file_type};

/// A detached mount of an image, or of a part of it.
#[derive(Debug)]
pub struct Volume {
    pub mount: OwnedFd,
    /// Of anything else than a directory, a file.
    pub directory: bool,
}

impl Storage {
    /// Makes a mount of the layers, base layer first in `chains`, and of what `sub_path` names in them: all, if it is
    /// empty. Symlinks are followed inside the image. The mount is attached nowhere, and goes with its last user; the
    /// caller holds a lease on the layers for as long as it may last. With a user namespace, what an id of the image owns
    /// is the property of that id inside.
    ///
    /// # Errors
    /// [`StorageError::Missing`] for an unknown layer, [`StorageError::VolumePath`] for a path that the image does not
    /// have, or that is neither a directory nor a file, [`StorageError::Volume`].
    pub fn volume(
        &self,
        chains: &[Digest],
        sub_path: &str,
        user_namespace: Option<BorrowedFd<'_>>,
    ) -> Result<Volume, StorageError> {
        let mut lower = self.lower(chains)?;
        let target = self.0.empty();
        let nothing = lower == [target.clone()];
        if lower.len() == 1 {
            // The kernel merges two or more.
            lower.push(target.clone());
        }
        let overlay = Overlay { lower, writable: None };
        // The overlay is mounted before it is looked into: a detached mount cannot be copied from before Linux 6.15.
        let made = in_private_namespace(|| {
            if nothing {
                return part_of(&target, sub_path);
            }
            let mapped = user_namespace.map(|user| overlay.map_owners(user)).transpose();
            let mapped = mapped.map_err(|source| StorageError::Volume { source })?;
            let mounted = mapped.as_ref().map_or(&overlay, |(mapped, _held)| mapped).mount(&target);
            mounted.map_err(|source| StorageError::Volume { source })?;
            part_of(&target, sub_path)
        });
        made.map_err(|source| StorageError::Volume { source: OverlayError::Namespace { source } })?
    }

    /// Whether a layer's owners can be mapped to a user namespace, tried once with an overlay that is never used.
    ///
    /// # Errors
    /// What the kernel refuses, and [`StorageError::Directory`] when there is no room to try.
    pub fn try_mapping(&self, user_namespace: BorrowedFd<'_>) -> Result<(), StorageError> {
        let path = self.0.options.containers.join(".mapping");
        let failed = |source| StorageError::directory(&path, "cannot be made for a try", source);
        let folder = Root::make(&path, 0o700).map_err(failed)?;
        let target = path.join("target");
        // A daemon that was killed in the middle of this has left its mount.
        mount::detach(&target).map_err(|source| StorageError::Unmount { target: target.clone(), source })?;
        let tried = (|| {
            for name in ["upper", "work", "target"] {
                folder.ensure_dir(name, 0o700).map_err(failed)?;
            }
            let writable = Some(Writable { upper: path.join("upper"), work: path.join("work") });
            let overlay = Overlay { lower: vec![self.0.empty()], writable };
            overlay.mount_mapped(user_namespace, &target).map_err(|source| StorageError::Volume { source })?;
            mount::detach(&target).map_err(|source| StorageError::Unmount { target, source })?;
            Ok(())
        })();
        let removed = super::removal::remove_tree(self.0.containers.as_fd(), ".mapping".as_ref());
        tried.and(removed.map_err(|source| StorageError::directory(&path, "cannot be removed", source)))
    }
}

fn part_of(target: &Path, sub_path: &str) -> Result<Volume, StorageError> {
    let failed = |source| StorageError::VolumePath { path: sub_path.to_owned(), source };
    let root = Root::open(target).map_err(failed)?;
    let name = if sub_path.is_empty() { "." } else { sub_path };
    let part = root.open_in_root(name, OFlags::PATH | OFlags::CLOEXEC, 0).map_err(failed)?;
    let kind = file_type(&rustix::fs::fstat(&part).map_err(|errno| failed(errno.into()))?);
    if !matches!(kind, FileType::Directory | FileType::RegularFile) {
        return Err(failed(std::io::Error::other("neither a directory nor a file")));
    }
    let mount = mount::clone_tree(part.as_fd(), false).map_err(failed)?;
    Ok(Volume { mount, directory: kind == FileType::Directory })
}
