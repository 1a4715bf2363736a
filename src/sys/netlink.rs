//! Netlink: messages built attribute by attribute, and a blocking socket of the routing or the netfilter family.
//!
//! The kernel answers a request within `send`, so a socket is never waited on for long; a clock on receiving is the bound
//! of last resort. A socket stays in the network namespace that it was opened in (netlink(7)).
#![allow(unsafe_code)] // three socket options that no crate wraps

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

pub use attribute::{attributes, be16, be32, find, ne32, text};
pub use message::Message;
pub use monitor::{Event, Monitor};

mod attribute;
mod message;
mod monitor;

/// Longest wait for an answer of the kernel.
const CLOCK: Duration = Duration::from_secs(10);
/// Largest piece of an answer, in bytes. A dump is cut into pieces that fit.
const PIECE: usize = 64 * 1024;
/// Room for one send, in bytes: a whole nftables transaction must fit.
const SEND_ROOM: libc::c_int = 32 * 1024 * 1024;
/// A dump during which the kernel's tables changed is asked for again so often.
const DUMP_TRIES: usize = 8;

const HEADER: usize = 16;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Which part of the kernel a socket speaks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Links, addresses, routes, queues (rtnetlink(7)).
    Route,
    /// nftables and connection tracking.
    Netfilter,
}

impl Family {
    fn protocol(self) -> Option<rustix::net::Protocol> {
        match self {
            // NETLINK_ROUTE is 0, which is what "no protocol" means.
            Self::Route => None,
            Self::Netfilter => Some(netlink::NETFILTER),
        }
    }
}

/// Why the kernel was not asked, or refused.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("no {family:?} netlink socket")]
    Socket { family: Family, source: io::Error },
    #[error("{what}: the request cannot be sent")]
    Send { what: String, source: io::Error },
    #[error("{what}: no answer")]
    Receive { what: String, source: io::Error },
    #[error("{what}: the kernel's answer has not the form of netlink(7)")]
    Malformed { what: String },
    #[error("{what}: the tables changed during each of {DUMP_TRIES} readings")]
    Changing { what: String },
    /// `said` is the kernel's own explanation (extended acknowledgement), often empty.
    #[error("{what}{}{said}", if said.is_empty() { "" } else { ": " })]
    Refused { what: String, said: String, source: io::Error },
}

impl NetlinkError {
    /// The error number with which the kernel refused; `None` when it did not come to that.
    #[must_use]
    pub fn errno(&self) -> Option<rustix::io::Errno> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error().map(rustix::io::Errno::from_raw_os_error),
            _ => None,
        }
    }

    /// Says which message of a transaction was refused, from 0 on.
    fn of_message(self, number: u32) -> Self {
        match self {
            Self::Refused { what, said, source } => {
                Self::Refused { what: format!("{what} (message {number})"), said, source }
            }
            other => other,
        }
    }

    /// Says what was refused, of several things.
    fn about(self, what: String) -> Self {
        match self {
            Self::Refused { said, source, .. } => Self::Refused { what, said, source },
            other => other,
        }
    }

    /// Whether what was asked about does not exist.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self.errno(), Some(rustix::io::Errno::NOENT | rustix::io::Errno::NODEV | rustix::io::Errno::SRCH))
    }
}

/// A socket for requests. Its methods block for as long as the kernel works.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    port: u32,
    sequence: u32,
}

/// One message of an answer.
struct Piece<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

impl Socket {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the kernel has no such family, or no descriptor is free.
    pub fn open(family: Family) -> Result<Self, NetlinkError> {
        let failed = |source| NetlinkError::Socket { family, source };
        let (fd, port) = open(family, SocketFlags::CLOEXEC, 0).map_err(failed)?;
        set_option(&fd, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1).map_err(failed)?;
        // Without it a refusal repeats the whole request, which may be larger than the room for an answer.
        set_option(&fd, libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1).map_err(failed)?;
        set_option(&fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_ROOM).map_err(failed)?;
        rustix::net::sockopt::set_socket_timeout(&fd, rustix::net::sockopt::Timeout::Recv, Some(CLOCK))
            .map_err(|errno| failed(errno.into()))?;
        Ok(Self { fd, port, sequence: 0 })
    }

    /// The number that the kernel gave the socket; notifications name it as their cause.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Asks for one thing to be done, and waits until it is. `what` begins the message of an error.
    ///
    /// # Errors
    /// The kernel's refusal, or that it could not be asked.
    pub fn request(&mut self, what: &str, message: Message) -> Result<(), NetlinkError> {
        self.answer(what, message).map(drop)
    }

    /// Asks for one thing, and returns the payload of the answer, empty when it is a bare acknowledgement.
    ///
    /// # Errors
    /// As for [`Self::request`].
    pub fn answer(&mut self, what: &str, message: Message) -> Result<Vec<u8>, NetlinkError> {
        let sequence = self.next();
        self.send(what, &message.finish(NLM_F_REQUEST | NLM_F_ACK, sequence))?;
        let mut found = Vec::new();
        self.receive(what, sequence, |piece| found.extend_from_slice(piece.payload)).map_err(|(error, _)| error)?;
        Ok(found)
    }

    /// Asks for several things to be done one after the other, each with the beginning of its error. They go to the kernel at
    /// once, so a refusal keeps none of them back.
    ///
    /// # Errors
    /// The first refusal, or that the kernel could not be asked.
    pub fn requests(&mut self, requests: Vec<(String, Message)>) -> Result<(), NetlinkError> {
        let mut bytes = Vec::new();
        let mut asked = Vec::new();
        for (what, message) in requests {
            let sequence = self.next();
            bytes.extend_from_slice(&message.finish(NLM_F_REQUEST | NLM_F_ACK, sequence));
            asked.push((what, sequence));
        }
        let Some((first, last)) = asked.first().zip(asked.last()).map(|(first, last)| (first.0.clone(), last.1)) else {
            return Ok(());
        };
        self.send(&first, &bytes)?;
        self.receive(&first, last, |_| {}).map_err(|(error, refused)| {
            self.drain();
            let what = asked.into_iter().find(|(_, sequence)| *sequence == refused).map_or(first, |(what, _)| what);
            error.about(what)
        })
    }

    /// The index of a link. Other than the link's whole description it costs next to nothing.
    ///
    /// # Errors
    /// When there is no such link.
    pub fn link_index(&self, name: &str) -> Result<u32, NetlinkError> {
        rustix::net::netdevice::name_to_index(&self.fd, name).map_err(|errno| NetlinkError::Refused {
            what: format!("link {name}"),
            said: String::new(),
            source: errno.into(),
        })
    }

    /// Sends a batch as one transaction: all of it is done or nothing. The last message but one must ask for an answer, which
    /// [`Message::acknowledged`] does; the kernel sends none for the end of a batch before Linux 6.10.
    ///
    /// # Errors
    /// The first refusal; nothing was changed then.
    pub fn transaction(&mut self, what: &str, messages: Vec<Message>) -> Result<(), NetlinkError> {
        let mut bytes = Vec::new();
        let (first, mut last) = (self.sequence.wrapping_add(1), 0);
        for message in messages {
            let sequence = self.next();
            if message.asks_for_answer() {
                last = sequence;
            }
            bytes.extend_from_slice(&message.finish(NLM_F_REQUEST, sequence));
        }
        self.send(what, &bytes)?;
        let done = self
            .receive(what, last, |_| {})
            .map_err(|(error, sequence)| error.of_message(sequence.wrapping_sub(first)));
        self.drain();
        done
    }

    /// Reads a whole table. `each` gets the kind and the payload of each message; when the table changed meanwhile, `restart`
    /// is called and everything comes again.
    ///
    /// # Errors
    /// As for [`Self::request`].
    pub fn dump<T: Default>(
        &mut self,
        what: &str,
        message: &Message,
        mut each: impl FnMut(&mut T, u16, &[u8]),
    ) -> Result<T, NetlinkError> {
        for _ in 0..DUMP_TRIES {
            let sequence = self.next();
            self.send(what, &message.clone().finish(NLM_F_REQUEST | NLM_F_DUMP, sequence))?;
            let (mut found, mut torn) = (T::default(), false);
            self.receive(what, sequence, |piece| {
                torn |= piece.flags & NLM_F_DUMP_INTR != 0;
                each(&mut found, piece.kind, piece.payload);
            })
            .map_err(|(error, _)| error)?;
            if !torn {
                return Ok(found);
            }
        }
        Err(NetlinkError::Changing { what: what.to_owned() })
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn send(&self, what: &str, bytes: &[u8]) -> Result<(), NetlinkError> {
        let failed = |source| NetlinkError::Send { what: what.to_owned(), source };
        let sent = rustix::io::retry_on_intr(|| rustix::net::send(&self.fd, bytes, SendFlags::empty()));
        match sent {
            Ok(sent) if sent == bytes.len() => Ok(()),
            Ok(_) => Err(failed(io::ErrorKind::WriteZero.into())),
            Err(errno) => Err(failed(errno.into())),
        }
    }

    /// Reads up to the acknowledgement of `sequence`, or the first refusal of any message, which comes with its number.
    fn receive(&self, what: &str, sequence: u32, mut each: impl FnMut(&Piece<'_>)) -> Result<(), (NetlinkError, u32)> {
        let mut buffer = vec![0; PIECE];
        loop {
            let read = rustix::io::retry_on_intr(|| rustix::net::recv(&self.fd, &mut buffer[..], RecvFlags::empty()));
            let (read, _) = read
                .map_err(|errno| (NetlinkError::Receive { what: what.to_owned(), source: errno.into() }, sequence))?;
            let mut rest = &buffer[..read];
            while !rest.is_empty() {
                let malformed = || (NetlinkError::Malformed { what: what.to_owned() }, sequence);
                let (piece, more) = cut(rest).ok_or_else(malformed)?;
                rest = more;
                match piece.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        let code = piece.payload.get(..4).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes);
                        // The end of a dump has no code in some kernels.
                        let code = code.unwrap_or(0);
                        if code != 0 {
                            let said = explanation(&piece);
                            let source = io::Error::from_raw_os_error(code.saturating_neg());
                            return Err((
                                NetlinkError::Refused { what: what.to_owned(), said, source },
                                piece.sequence,
                            ));
                        }
                        if piece.sequence == sequence {
                            return Ok(());
                        }
                    }
                    _ if piece.sequence == sequence => each(&piece),
                    // The rest of an answer that was given up.
                    _ => {}
                }
            }
        }
    }

    /// Throws away what is left of the answers to a transaction.
    fn drain(&self) {
        let mut buffer = [0; 4096];
        while rustix::net::recv(&self.fd, &mut buffer[..], RecvFlags::DONTWAIT).is_ok() {}
    }
}

/// The first message of `bytes`, and the rest.
fn cut(bytes: &[u8]) -> Option<(Piece<'_>, &[u8])> {
    let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let half = |at: usize| bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes);
    let length = usize::try_from(word(0)?).ok()?;
    let payload = bytes.get(HEADER..length)?;
    let piece = Piece { kind: half(4)?, flags: half(6)?, sequence: word(8)?, payload };
    let next = length.next_multiple_of(4).min(bytes.len());
    Some((piece, &bytes[next..]))
}

/// What the kernel says about its refusal in words.
fn explanation(piece: &Piece<'_>) -> String {
    if piece.flags & NLM_F_ACK_TLVS == 0 {
        return String::new();
    }
    // The code, then the head of the request, and the request itself unless the answer is capped.
    let echoed = piece.payload.get(4..8).and_then(|length| length.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let skip = match (piece.kind, piece.flags & NLM_F_CAPPED) {
        (NLMSG_DONE, _) => 4,
        (_, 0) => 4 + usize::try_from(echoed).unwrap_or(usize::MAX).next_multiple_of(4),
        _ => 4 + HEADER,
    };
    let said = piece.payload.get(skip..).and_then(|rest| find(rest, NLMSGERR_ATTR_MSG));
    said.map(|said| text(said).chars().filter(|c| !c.is_control()).take(256).collect()).unwrap_or_default()
}

/// A bound socket, and the number that it was given.
fn open(family: Family, flags: SocketFlags, groups: u32) -> io::Result<(OwnedFd, u32)> {
    let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, family.protocol())?;
    rustix::net::bind(&fd, &SocketAddrNetlink::new(0, groups))?;
    let address = SocketAddrNetlink::try_from(rustix::net::getsockname(&fd)?)?;
    Ok((fd, address.pid()))
}

fn set_option(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<libc::c_int>()).expect("four bytes");
    // SAFETY: the descriptor is open, and the value is an int that lives through the call, as all three options want it.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_lists_the_loopback_link() {
        let mut socket = Socket::open(Family::Route).unwrap();
        let names: Vec<String> = socket
            .dump("links", &Message::new(18, 0, &[0; 16]), |names: &mut Vec<String>, _, payload| {
                names.extend(payload.get(16..).and_then(|rest| find(rest, 3)).map(text));
            })
            .unwrap();
        assert!(names.iter().any(|name| name == "lo"), "{names:?}");
    }

    #[test]
    fn a_refusal_is_told_with_its_number() {
        let mut socket = Socket::open(Family::Route).unwrap();
        let message = Message::new(18, 0, &[0; 16]).string(3, "no-such-link");
        let error = socket.answer("link no-such-link", message).unwrap_err();
        assert!(error.is_missing(), "{error:?}");
        assert!(error.to_string().starts_with("link no-such-link"), "{error}");
    }

    #[test]
    fn of_several_requests_the_refused_one_is_named() {
        let mut socket = Socket::open(Family::Route).unwrap();
        let ask = |name: &str| (format!("link {name}"), Message::new(18, 0, &[0; 16]).string(3, name));
        socket.requests(vec![ask("lo"), ask("lo")]).unwrap();
        let error = socket.requests(vec![ask("lo"), ask("no-such-link"), ask("lo")]).unwrap_err();
        assert!(error.is_missing() && error.to_string().starts_with("link no-such-link"), "{error:?}");
        // Nothing of the answers is left in the way of the next request.
        socket.request("link lo", ask("lo").1).unwrap();
        assert!(socket.requests(Vec::new()).is_ok());
        assert_eq!(socket.link_index("lo").unwrap(), 1);
        assert!(socket.link_index("no-such-link").unwrap_err().is_missing());
    }

    #[test]
    fn a_torn_answer_is_no_message() {
        let mut whole = Message::new(16, 0, &[0; 16]).finish(0, 7);
        assert_eq!(cut(&whole).unwrap().0.sequence, 7);
        whole.truncate(20);
        assert!(cut(&whole).is_none());
        assert!(cut(&[0; 3]).is_none());
    }
}
