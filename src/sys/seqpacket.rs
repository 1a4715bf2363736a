//! Datagrams with descriptors over `SOCK_SEQPACKET` unix sockets. Sockets are non-blocking and close on exec.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    recvmsg, sendmsg, socket_with,
};

/// Descriptors that one datagram may carry.
pub const MAX_FDS: usize = 16;
/// Bytes that one datagram may carry.
pub const MAX_BYTES: usize = 64 * 1024;

/// One received datagram.
#[derive(Debug)]
pub struct Datagram {
    pub bytes: Vec<u8>,
    pub fds: Vec<OwnedFd>,
    /// The datagram was longer than [`MAX_BYTES`]; its rest is lost.
    pub cut: bool,
    /// It carried more than [`MAX_FDS`] descriptors, or this process has no room for them; some are lost.
    pub fds_lost: bool,
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Binds and listens. The path must not exist and must be shorter than 108 bytes.
///
/// # Errors
/// What `socket`, `bind` or `listen` refuse.
pub fn listener(path: &Path) -> io::Result<OwnedFd> {
    let fd = socket()?;
    bind(&fd, &SocketAddrUnix::new(path)?)?;
    listen(&fd, 16)?;
    Ok(fd)
}

/// Connects to a listener.
///
/// # Errors
/// What `socket` or `connect` refuse: `ENOENT` and `ECONNREFUSED` mean that nobody listens.
pub fn dial(path: &Path) -> io::Result<OwnedFd> {
    let fd = socket()?;
    connect(&fd, &SocketAddrUnix::new(path)?)?;
    Ok(fd)
}

/// Takes one connection.
///
/// # Errors
/// What `accept4` refuses; `WouldBlock` when nobody waits.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
}

/// The effective user of the process at the other end, at the time it connected.
///
/// # Errors
/// What `getsockopt(SO_PEERCRED)` refuses.
pub fn peer_uid(connection: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(rustix::net::sockopt::socket_peercred(connection)?.uid.as_raw())
}

/// Sends one datagram. A peer that has gone gives `EPIPE`, never a signal.
///
/// # Errors
/// `InvalidInput` above [`MAX_BYTES`] or [`MAX_FDS`], `WouldBlock` when the socket is full, else what `sendmsg` refuses.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if bytes.len() > MAX_BYTES || fds.len() > MAX_FDS {
        let text = format!("{} bytes and {} descriptors do not fit one datagram", bytes.len(), fds.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "descriptors do not fit one datagram"));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one datagram; `None` when the peer has closed. Descriptors arrive with close-on-exec set.
/// `buffer` is scratch space of [`MAX_BYTES`] that the caller keeps between calls.
///
/// # Errors
/// `WouldBlock` when there is none, else what `recvmsg` refuses.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<Datagram>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            fds.extend(received);
        }
    }
    // Aligned, the space has room for a few more than were asked for.
    let too_many = fds.len() > MAX_FDS;
    fds.truncate(MAX_FDS);
    if message.bytes == 0 && fds.is_empty() && !message.flags.contains(ReturnFlags::TRUNC) {
        return Ok(None);
    }
    Ok(Some(Datagram {
        bytes: buffer[..message.bytes].to_vec(),
        fds,
        cut: message.flags.contains(ReturnFlags::TRUNC),
        fds_lost: too_many || message.flags.contains(ReturnFlags::CTRUNC),
    }))
}

/// Borrows each of some owned descriptors.
pub fn borrowed<'a, F: AsFd + 'a>(fds: impl IntoIterator<Item = &'a F>) -> Vec<BorrowedFd<'a>> {
    fds.into_iter().map(AsFd::as_fd).collect()
}
