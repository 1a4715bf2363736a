//! Notifications of the kernel about what changed.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{RecvFlags, SocketFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{Family, HEADER, NetlinkError, open};
use crate::sys::reactor;

/// A change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// `port` is the socket ([`super::Socket::port`]) whose request caused it; 0 for the kernel itself.
    Changed { kind: u16, port: u32, payload: Vec<u8> },
    /// There were more changes than fit into the socket, and some are lost.
    Lost,
}

/// A socket that hears of changes.
#[derive(Debug)]
pub struct Monitor {
    socket: AsyncFd<OwnedFd>,
}

impl Monitor {
    /// Listens to groups of a family, given as a mask: bit n - 1 is group n.
    ///
    /// # Errors
    /// When the kernel has no such family.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn open(family: Family, groups: u32) -> Result<Self, NetlinkError> {
        let failed = |source| NetlinkError::Socket { family, source };
        let (fd, _) = open(family, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, groups).map_err(failed)?;
        Ok(Self { socket: reactor::register(fd, Interest::READABLE).map_err(failed)? })
    }

    /// Waits for the next changes.
    ///
    /// # Errors
    /// When the socket is of no use any more.
    pub async fn next(&mut self) -> io::Result<Vec<Event>> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let mut ready = self.socket.readable().await?;
            match rustix::net::recv(ready.get_inner(), &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((read, _)) => return Ok(events(&buffer[..read])),
                Err(rustix::io::Errno::NOBUFS) => return Ok(vec![Event::Lost]),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) if errno == rustix::io::Errno::AGAIN => ready.clear_ready(),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

fn events(bytes: &[u8]) -> Vec<Event> {
    let mut rest = bytes;
    let mut found = Vec::new();
    while let Some((piece, more)) = super::cut(rest) {
        let port = rest.get(12..HEADER).and_then(|port| port.try_into().ok()).map_or(0, u32::from_ne_bytes);
        found.push(Event::Changed { kind: piece.kind, port, payload: piece.payload.to_vec() });
        rest = more;
    }
    found
}
