//! Our ends of a process's streams: pipes, and the masters of pseudo-terminals.
//!
//! Non-blocking mode belongs to the open end and not to the descriptor, so it is set on our ends only: the process at the
//! other end sees ordinary, blocking streams.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::pipe::PipeFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::session::WindowSize;
use crate::sys::reactor;

/// A pipe whose reading end is ours: (ours, theirs).
pub(super) fn output() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    non_blocking(read.as_fd())?;
    Ok((read, write))
}

/// A pipe whose writing end is ours: (ours, theirs).
pub(super) fn input() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    non_blocking(write.as_fd())?;
    Ok((write, read))
}

/// Makes one of our ends non-blocking.
pub(super) fn non_blocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}

/// Gives a terminal its size; its foreground processes hear of it by SIGWINCH. `ioctl_tty(2)`.
/// A terminal that takes none is left as it is.
pub(super) fn resize(master: &OwnedFd, size: WindowSize) {
    let size = rustix::termios::Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
    if let Err(error) = rustix::termios::tcsetwinsize(master, size) {
        tracing::debug!(%error, "a terminal takes no size");
    }
}

/// An end that is read.
#[derive(Debug)]
pub(super) struct Source {
    fd: AsyncFd<OwnedFd>,
}

impl Source {
    /// The end must be non-blocking.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { fd: reactor::register(fd, Interest::READABLE)? })
    }

    /// Reads what there is, and waits when there is nothing; 0 at the end. A caller that drops the future loses nothing.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.fd.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut *buffer)?)).await {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // How a pseudo-terminal says that its last user has gone.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(0),
                result => return result,
            }
        }
    }

    /// The number of bytes that can be read at once.
    pub(super) fn waiting(&self) -> u64 {
        rustix::io::ioctl_fionread(self.fd.get_ref()).unwrap_or(0)
    }
}

impl std::os::fd::AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }
}

/// An end that is written to.
#[derive(Debug)]
pub(super) struct Sink {
    fd: AsyncFd<OwnedFd>,
}

impl Sink {
    /// The end must be non-blocking.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { fd: reactor::register(fd, Interest::WRITABLE)? })
    }

    /// Writes all of it, and waits for as long as the reader takes nothing.
    ///
    /// # Errors
    /// `BrokenPipe` when there is no reader any more.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.fd.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?)).await {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                written => bytes = &bytes[written?..],
            }
        }
        Ok(())
    }
}
