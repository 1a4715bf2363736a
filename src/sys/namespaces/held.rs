//! A pinned network namespace that is held open while others have their hands on its pin.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::{NamespaceError, NetnsError, is_namespace, netns, unmount};

/// A namespace, and the path that it is pinned at. While it is held the pin is in use: only `MNT_DETACH` takes it away.
#[derive(Debug)]
pub struct HeldNamespace {
    path: PathBuf,
    file: File,
}

impl HeldNamespace {
    /// Opens what is pinned at `path`.
    ///
    /// # Errors
    /// When `path` is missing or is no pinned namespace.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        Ok(Self { path: path.to_owned(), file: netns::open_namespace(path)? })
    }

    /// Whether it is still what is pinned at its path. The kernel's number for it is not used again while it is held.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        let (Ok(held), Ok(there)) = (self.file.metadata(), std::fs::metadata(&self.path)) else { return false };
        (held.dev(), held.ino()) == (there.dev(), there.ino()) && is_namespace(&self.path)
    }

    /// Pins it at its path again, in the place of whatever is there.
    ///
    /// # Errors
    /// When the kernel refuses to unmount or to mount, or when the file to mount on cannot be made.
    pub fn pin_again(&self) -> Result<(), NamespaceError> {
        unmount(&self.path)?;
        // The file may have gone with the pin; what is in its place otherwise is covered.
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o400)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&self.path)
            .map_err(|source| NamespaceError::MakePin { path: self.path.clone(), source })?;
        // The number is our own descriptor's: no other process can stand behind this path.
        let source = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        rustix::mount::mount_bind(source, &self.path)
            .map_err(|errno| NamespaceError::Pin { path: self.path.clone(), source: errno.into() })
    }
}
