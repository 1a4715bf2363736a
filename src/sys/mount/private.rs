//! Mount namespaces of a single purpose: what is mounted in one is seen by nobody else, and goes with it.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::MountFlags;

use crate::sys::netns::on_own_thread;

/// Runs `work` on a thread of its own in a fresh copy of the mount namespace, and waits for it. Mounts that the host makes
/// meanwhile appear in the copy; those made in the copy stay there. A detached mount that `work` returns outlives it.
///
/// It blocks, for longer the more mounts there are: call it from the blocking pool.
///
/// # Errors
/// When there is no thread, or the kernel refuses the copy.
///
/// # Panics
/// Goes on with the panic of the work, if it panics.
pub fn in_private_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_own_thread("private-mounts", || -> io::Result<T> {
        nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
        super::make_slave(Path::new("/"), true)?;
        Ok(work())
    })?
}

/// The calling thread's mount namespace: it lives for as long as the descriptor.
fn current() -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, "/proc/thread-self/ns/mnt", flags, Mode::empty())?)
}

/// A detached mount, and where it goes on the shelf.
#[derive(Debug)]
pub struct Shelved {
    /// One plain file name.
    pub name: String,
    pub mount: OwnedFd,
    pub directory: bool,
}

/// Which step of [`shelve`] the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    #[error("a mount namespace cannot be made")]
    Namespace { source: io::Error },
    #[error("{}: no shelf can be mounted there", path.display())]
    Shelf { path: PathBuf, source: io::Error },
    #[error("{}: the place for a mount cannot be made", path.display())]
    Place { path: PathBuf, source: io::Error },
    #[error("{}: the mount cannot be put there", path.display())]
    Attach { path: PathBuf, source: io::Error },
}

/// Makes a mount namespace, a copy of the caller's, in which a small file system is mounted on `shelf` (which exists, and
/// stays as it is for everyone else) with each of the mounts below its name. Everyone may walk through the shelf, so that
/// what is on it can be reached by a process that cannot reach where it comes from.
///
/// It blocks, as [`in_private_namespace`] does.
///
/// # Errors
/// [`ShelfError`]; nothing is left behind.
pub fn shelve(shelf: &Path, mounts: Vec<Shelved>) -> Result<OwnedFd, ShelfError> {
    let made = in_private_namespace(move || {
        let failed = |source: io::Error| ShelfError::Shelf { path: shelf.to_owned(), source };
        // Each mount needs one inode, and the shelf its root; nobody else can write there.
        let options = format!("mode=755,size=64k,nr_inodes={}", mounts.len() + 8);
        let options = std::ffi::CString::new(options).expect("digits hold no NUL");
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        rustix::mount::mount("cricket-shelf", shelf, "tmpfs", flags, options.as_c_str())
            .map_err(|errno| failed(errno.into()))?;
        for shelved in mounts {
            let path = shelf.join(&shelved.name);
            place(&path, shelved.directory).map_err(|source| ShelfError::Place { path: path.clone(), source })?;
            super::attach(shelved.mount.as_fd(), &path).map_err(|source| ShelfError::Attach { path, source })?;
        }
        current().map_err(|source| ShelfError::Namespace { source })
    });
    made.map_err(|source| ShelfError::Namespace { source })?
}

fn place(path: &Path, directory: bool) -> io::Result<()> {
    if directory {
        return DirBuilder::new().mode(0o755).create(path);
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::from_raw_mode(0o644))?;
    Ok(())
}
