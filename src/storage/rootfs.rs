//! The writable layer and the overlay mount of each container.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Uid};

use super::removal::remove_tree;
use super::usage::measure;
use super::{Digest, Storage, StorageError, Usage, names};
use crate::sys::mount;
use crate::sys::mount::overlay::{Overlay, Writable};

/// Longest container id taken: it becomes a file name.
const MAX_ID: usize = 200;

/// A target that was mounted on more often than this is not of our making.
const MAX_STACKED: usize = 16;

/// The user namespace that a root file system is seen from.
#[derive(Debug, Clone, Copy)]
pub struct Viewer<'a> {
    pub namespace: BorrowedFd<'a>,
    /// The host's ids of its root.
    pub root: (u32, u32),
}

impl Storage {
    /// Mounts the root file system of a container on `target`, base layer first in `chains`; makes the writable layer
    /// and the target when they are missing. An overlay that is mounted there already is left as it is. The caller holds
    /// a lease on the layers for as long as the mount lasts. With a viewer, what an id of the image owns is the property
    /// of that id in the viewer's user namespace: no file is touched for it.
    ///
    /// # Errors
    /// [`StorageError::Missing`] for an unknown layer, [`StorageError::Busy`] when something else is mounted there,
    /// [`StorageError::Container`], [`StorageError::Directory`], [`StorageError::Mount`].
    pub fn mount_rootfs(
        &self,
        container_id: &str,
        chains: &[Digest],
        target: &Path,
        viewer: Option<Viewer<'_>>,
    ) -> Result<(), StorageError> {
        check_id(container_id)?;
        let lower = self.lower(chains)?;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(target)
            .map_err(|source| StorageError::directory(target, "cannot be made", source))?;
        if self.is_mounted(target)? {
            return Ok(());
        }
        let failed = |source| StorageError::Container {
            id: container_id.to_owned(),
            operation: "its writable layer cannot be made",
            source,
        };
        let own = self.0.containers.ensure_dir(container_id, 0o700).map_err(failed)?;
        // The mode of the upper directory is what the container sees as the mode of `/`.
        let upper = own.ensure_dir("upper", 0o755).map_err(failed)?;
        if let Some(Viewer { root: (uid, gid), .. }) = viewer {
            rustix::fs::fchown(&upper, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .map_err(|errno| failed(errno.into()))?;
        }
        own.ensure_dir("work", 0o700).map_err(failed)?;
        let own = self.0.options.containers.join(container_id);
        let writable = Some(Writable { upper: own.join("upper"), work: own.join("work") });
        let overlay = Overlay { lower, writable };
        let mounted = match viewer {
            Some(viewer) => overlay.mount_mapped(viewer.namespace, target),
            None => overlay.mount(target),
        };
        mounted.map_err(|source| StorageError::Mount { id: container_id.to_owned(), target: target.to_owned(), source })
    }

    /// The folders of the layers that show through, topmost first; the empty one when there is none.
    pub(super) fn lower(&self, chains: &[Digest]) -> Result<Vec<PathBuf>, StorageError> {
        let layers = self.0.options.images.join("layers");
        let visible = self.visible(chains)?;
        let mut lower: Vec<_> = visible.iter().map(|chain| layers.join(chain.hex()).join("diff")).collect();
        if lower.is_empty() {
            lower.push(self.0.empty());
        }
        Ok(lower)
    }

    fn is_mounted(&self, target: &Path) -> Result<bool, StorageError> {
        let unknown = |source| StorageError::directory(target, "cannot be examined", source);
        if !mount::is_mount_point(target).map_err(unknown)? {
            return Ok(false);
        }
        let table = mount::mount_table().map_err(unknown)?;
        match table.iter().rev().find(|entry| entry.mount_point == target) {
            Some(entry) if entry.file_system == "overlay" => Ok(true),
            _ => Err(StorageError::Busy { target: target.to_owned() }),
        }
    }

    /// Takes the root file system of a container away from `target`; one that is not mounted, or a target that is
    /// missing, is fine. The target itself stays.
    ///
    /// # Errors
    /// [`StorageError::Unmount`].
    pub fn unmount_rootfs(&self, target: &Path) -> Result<(), StorageError> {
        for _ in 0..MAX_STACKED {
            let detached =
                mount::detach(target).map_err(|source| StorageError::Unmount { target: target.to_owned(), source })?;
            if !detached {
                break;
            }
        }
        Ok(())
    }

    /// Removes the writable layer of a container; a missing one is fine. Unmount its root file system before.
    ///
    /// # Errors
    /// [`StorageError::ContainerId`], [`StorageError::Container`].
    pub fn remove_container(&self, container_id: &str) -> Result<(), StorageError> {
        check_id(container_id)?;
        remove_tree(self.0.containers.as_fd(), container_id.as_ref()).map_err(|source| StorageError::Container {
            id: container_id.to_owned(),
            operation: "its writable layer cannot be removed",
            source,
        })
    }

    /// What the writable layer of a container occupies. A walk, bounded but not cheap: keep the answer for a while.
    ///
    /// # Errors
    /// [`StorageError::ContainerId`]; [`StorageError::Container`] also when there is no such container.
    pub fn container_usage(&self, container_id: &str) -> Result<Usage, StorageError> {
        check_id(container_id)?;
        let upper = self.0.containers.open_dir(format!("{container_id}/upper"));
        upper.and_then(|upper| measure(upper.as_fd())).map_err(|source| StorageError::Container {
            id: container_id.to_owned(),
            operation: "its writable layer cannot be measured",
            source,
        })
    }

    /// The containers that have a writable layer on disk: what is not a container any more is to be removed.
    ///
    /// # Errors
    /// [`StorageError::Directory`].
    pub fn known_containers(&self) -> Result<Vec<String>, StorageError> {
        let mut known = names(&self.0.containers, &self.0.options.containers)?;
        known.retain(|name| check_id(name).is_ok());
        known.sort();
        Ok(known)
    }
}

/// An id is one plain file name.
fn check_id(id: &str) -> Result<(), StorageError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let legal = !id.is_empty() && id.len() <= MAX_ID && !id.starts_with('.') && id.bytes().all(plain);
    if legal { Ok(()) } else { Err(StorageError::ContainerId { id: id.chars().take(MAX_ID).collect() }) }
}
