//! Waiting for descriptors on tokio's event loop.
#![allow(unsafe_code)] // tokio asks for a promise about the descriptor

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor that polls (a socket, pipe, pidfd, …). It must be non-blocking if it is to be read or written.
/// A duplicate may be registered beside its original.
///
/// # Errors
/// `EPERM` for a descriptor that does not poll, such as a regular file's.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd always gives the same number, and that number is open until it is dropped, which AsyncFd does
    // after it has taken it off the event loop.
    let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
    Ok(registered?)
}
