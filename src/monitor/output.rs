//! The reading side of a container's stdout or stderr: a pipe, or the master of its pseudo-terminal.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::log::Stream;
use crate::sys::reactor;

/// What one read takes at most, in bytes: the default capacity of a pipe is four times that.
const CHUNK: usize = 16 * 1024;

/// One stream. The descriptor is a duplicate of one that the keeper holds, so non-blocking mode is shared with it, which
/// is harmless: the keeper never reads.
#[derive(Debug)]
pub(super) struct Output {
    fd: AsyncFd<OwnedFd>,
    stream: Stream,
}

impl Output {
    /// Reads through a duplicate of its own: the reactor takes each number once.
    pub(super) fn new(fd: &OwnedFd, stream: Stream) -> io::Result<Self> {
        let fd = fd.try_clone()?;
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Self { fd: reactor::register(fd, Interest::READABLE)?, stream })
    }

    pub(super) async fn readable(&self) {
        // The guard is dropped without clearing readiness: transfer() does that when a read would block.
        if self.fd.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Reads once, when the reactor has said that there is something, and hands the bytes on. False at the end of the
    /// stream.
    pub(super) fn transfer(&mut self, take: impl FnMut(Stream, &[u8])) -> bool {
        // On the stack, so that an idle container costs no buffer.
        let mut chunk = [0_u8; CHUNK];
        let read = self.fd.try_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut chunk)?));
        self.taken(read, &chunk, take) != Taken::End
    }

    /// Reads until the stream is empty, whatever the reactor has heard so far. False at the end of the stream.
    pub(super) fn transfer_all(&mut self, mut take: impl FnMut(Stream, &[u8])) -> bool {
        let mut chunk = [0_u8; CHUNK];
        loop {
            let read = rustix::io::read(self.fd.get_ref(), &mut chunk).map_err(io::Error::from);
            match self.taken(read, &chunk, &mut take) {
                Taken::Bytes => {}
                Taken::Nothing => return true,
                Taken::End => return false,
            }
        }
    }

    fn taken(&self, read: io::Result<usize>, chunk: &[u8], mut take: impl FnMut(Stream, &[u8])) -> Taken {
        match read {
            Ok(0) => Taken::End,
            Ok(n) => {
                take(self.stream, &chunk[..n]);
                Taken::Bytes
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Taken::Bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Taken::Nothing,
            // EIO is how a pseudo-terminal says that its last user has gone.
            Err(_) => Taken::End,
        }
    }
}

/// What a read gave.
#[derive(Debug, PartialEq, Eq)]
enum Taken {
    Bytes,
    Nothing,
    End,
}
