//! An inotify instance that a task can wait on.
#![allow(unsafe_code)] // registering a descriptor asks for a promise

use std::io;

use inotify::Inotify;
use tokio::io::unix::AsyncFd;

/// Makes an inotify instance in the current runtime's reactor.
///
/// # Errors
/// When the kernel has no instance left for this user (`fs.inotify.max_user_instances`).
pub fn open() -> io::Result<AsyncFd<Inotify>> {
    let inotify = Inotify::init()?;
    // SAFETY: an Inotify owns one descriptor, shows always that one, and closes it only when it is dropped or consumed,
    // which the AsyncFd that owns it rules out.
    Ok(unsafe { AsyncFd::register(inotify) }?)
}
