//! The one daemon that is connected: a socket, and what it has not taken yet.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::table::Held;
use crate::keeper::protocol::{Body, ErrorCode, Reply};
use crate::sys::seqpacket::{self, Datagram};

/// No further request is read while this many answers wait. An event adds at most one for each registered process, and
/// a list one for each held id, so the queue is bounded by what is held.
const PATIENCE: usize = 64;

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    queue: VecDeque<(Vec<u8>, Vec<Held>)>,
    broken: bool,
}

impl Connection {
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, queue: VecDeque::new(), broken: false }
    }

    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The peer has closed, or the socket failed.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    #[must_use]
    pub fn wants_to_write(&self) -> bool {
        !self.queue.is_empty()
    }

    #[must_use]
    pub fn may_read(&self) -> bool {
        self.queue.len() < PATIENCE
    }

    /// Sends as soon as the peer takes it.
    pub fn send(&mut self, seq: u64, body: Body, fds: Vec<Held>) {
        let text = serde_json::to_vec(&Reply { seq, body }).unwrap_or_default();
        self.queue.push_back((text, fds));
        self.flush();
    }

    /// Sends an error.
    pub fn refuse(&mut self, seq: u64, code: ErrorCode, message: impl Into<String>) {
        let mut message = message.into();
        // Far below what a datagram takes, even when every character is escaped.
        if message.len() > 4096 {
            message = message.chars().take(1024).collect();
        }
        self.send(seq, Body::Error { code, message }, Vec::new());
    }

    /// Sends what waits, until the socket is full.
    pub fn flush(&mut self) {
        while let Some((bytes, fds)) = self.queue.front() {
            let fds = seqpacket::borrowed(fds.iter().map(AsRef::as_ref));
            match seqpacket::send(self.socket.as_fd(), bytes, &fds) {
                Ok(()) => drop(self.queue.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.broken = true;
                    return;
                }
            }
        }
    }

    /// Takes one datagram, if there is one.
    pub fn receive(&mut self, scratch: &mut [u8]) -> Option<Datagram> {
        match seqpacket::receive(self.socket.as_fd(), scratch) {
            Ok(Some(datagram)) => Some(datagram),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => None,
            Ok(None) | Err(_) => {
                self.broken = true;
                None
            }
        }
    }
}
