//! The streams of a session and what is to be sent for them: plain state that the connection's task and the handles change
//! under one lock, never held over an await or a system call. Who has to be woken is noted and woken after the lock.
//!
//! A stream's entry goes through
//!
//! ```text
//! opened by the peer:  Offered ──accept──▶ Accepting ──SYN_REPLY written──▶ Open
//! opened by us:        Opening ──SYN_STREAM written──▶ Waiting ──SYN_REPLY read──▶ Open
//! ```
//!
//! and stays until its handle is dropped *and* nothing is left to be sent for it.

use std::collections::{HashMap, VecDeque};
use std::task::Waker;

use super::error::SpdyError;
use super::frame::{self, Status};
use super::headers::{Deflater, Headers};
use super::limits::Limits;
use super::window::{Credit, SendWindow};

mod output;
mod windows;

/// Which side of the connection this is. The client's streams have odd ids, the server's even ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Client,
    Server,
}

#[derive(Debug)]
pub enum Phase {
    Offered(Headers),
    Accepting,
    Opening(Headers),
    Waiting,
    Open,
}

/// How far our side has ended a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fin {
    Open,
    /// FIN follows what is queued.
    Asked,
    Sent,
}

/// Why a stream is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    ByPeer(Status),
    /// We reset it.
    Here,
}

#[derive(Debug)]
pub struct Entry {
    pub phase: Phase,
    pub broken: Option<Broken>,
    /// A RST_STREAM that is still to be written.
    reset_due: Option<Status>,
    /// The handle exists.
    held: bool,
    /// It is in [`Table::ready`].
    queued: bool,
    /// It is in [`Table::parked`].
    parked: bool,
    pub received: VecDeque<u8>,
    pub peer_fin: bool,
    credit: Credit,
    pub reader: Option<Waker>,
    pub unsent: VecDeque<u8>,
    pub fin: Fin,
    window: SendWindow,
    pub writer: Option<Waker>,
}

impl Entry {
    fn new(phase: Phase, limits: &Limits) -> Self {
        Self {
            phase,
            broken: None,
            reset_due: None,
            held: true,
            queued: false,
            parked: false,
            received: VecDeque::new(),
            peer_fin: false,
            credit: Credit::new(limits.stream_window),
            reader: None,
            unsent: VecDeque::new(),
            fin: Fin::Open,
            window: SendWindow::default(),
            writer: None,
        }
    }

    /// Nobody will read what arrives.
    fn discards(&self) -> bool {
        !self.held || self.broken.is_some()
    }

    fn is_settled(&self) -> bool {
        // A stream that neither side may send on is still owed its reply.
        let ended = self.fin == Fin::Sent && self.peer_fin && !matches!(self.phase, Phase::Accepting);
        !self.held && self.reset_due.is_none() && (self.broken.is_some() || ended)
    }
}

/// What became of received bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivered {
    /// So many were taken; fewer than there are means that their stream has no room.
    pub taken: usize,
}

#[derive(Debug)]
pub struct Table {
    pub limits: Limits,
    role: Role,
    next_local: u32,
    last_remote: u32,
    entries: HashMap<u32, Entry>,
    /// Streams of the peer that nobody has taken yet.
    backlog: VecDeque<u32>,
    /// Nobody takes streams of the peer any more.
    deaf: bool,
    pub incoming: Option<Waker>,
    /// Streams for which something may have to be sent, each once.
    ready: VecDeque<u32>,
    /// Streams with data that wait for the session's window, or for the peer to let all streams send more.
    parked: Vec<u32>,
    /// Bytes received and not read, over all streams.
    buffered: usize,
    /// Bytes taken from writers and not sent, over all streams.
    unsent: usize,
    credit: Credit,
    window: SendWindow,
    /// The window with which the peer lets a stream begin, and whether it has said so.
    stream_size: u32,
    sized: bool,
    /// The peer has set or widened a window, so it counts them.
    counts: bool,
    /// The peer sent more than a window: it knows none, or had not read ours yet. It is held back by not reading.
    heedless: bool,
    deflater: Deflater,
    /// The connection's task.
    pub task: Option<Waker>,
    /// We are ending the session.
    pub closing: bool,
    /// The peer is: it opens no more streams, and takes none.
    leaving: bool,
    /// The connection is over, because of this.
    pub over: Option<std::sync::Arc<SpdyError>>,
    wakes: Vec<Waker>,
}

impl Table {
    pub fn new(role: Role, limits: Limits) -> Self {
        Self {
            role,
            next_local: if role == Role::Client { 1 } else { 2 },
            last_remote: 0,
            entries: HashMap::new(),
            backlog: VecDeque::new(),
            deaf: false,
            incoming: None,
            ready: VecDeque::new(),
            parked: Vec::new(),
            buffered: 0,
            unsent: 0,
            credit: Credit::new(limits.session_window),
            window: SendWindow::default(),
            stream_size: frame::INITIAL_WINDOW,
            sized: false,
            counts: false,
            heedless: false,
            deflater: Deflater::default(),
            task: None,
            closing: false,
            leaving: false,
            over: None,
            wakes: Vec::new(),
            limits,
        }
    }

    pub fn take_wakes(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.wakes)
    }

    pub fn wake_task(&mut self) {
        self.wakes.extend(self.task.clone());
    }

    pub fn last_remote(&self) -> u32 {
        self.last_remote
    }

    /// The peer has said that it leaves.
    pub fn peer_leaves(&mut self) {
        self.leaving = true;
    }

    /// It does, and no stream keeps it.
    pub fn has_left(&self) -> bool {
        self.leaving && self.entries.is_empty()
    }

    pub fn entry(&mut self, id: u32) -> Option<&mut Entry> {
        self.entries.get_mut(&id)
    }

    /// Notes that something may have to be sent for a stream.
    fn notice(&mut self, id: u32) {
        if let Some(entry) = self.entries.get_mut(&id)
            && !std::mem::replace(&mut entry.queued, true)
        {
            self.ready.push_back(id);
            self.wake_task();
        }
    }

    /// Forgets a stream that is done.
    fn settle(&mut self, id: u32) {
        if self.entries.get(&id).is_some_and(Entry::is_settled) {
            self.entries.remove(&id);
            // The task may wait for the last stream of a session that ends.
            self.wake_task();
        }
    }

    fn wake_both(&mut self, id: u32) {
        if let Some(entry) = self.entries.get_mut(&id) {
            self.wakes.extend(entry.reader.take());
            self.wakes.extend(entry.writer.take());
        }
    }

    /// The peer numbers its streams, and its pings, so.
    pub fn is_remote(&self, id: u32) -> bool {
        (id % 2 == 1) == (self.role == Role::Server)
    }

    /// A frame names a stream that exists, or did.
    fn check_opened(&self, id: u32, kind: &'static str) -> Result<(), SpdyError> {
        let opened = if self.is_remote(id) { id <= self.last_remote } else { id != 0 && id < self.next_local };
        if opened { Ok(()) } else { Err(SpdyError::IdleStream { kind, id }) }
    }

    // What the handles do.

    /// Opens a stream; its SYN_STREAM is written in the order of the ids.
    pub fn open(&mut self, headers: Headers) -> Result<u32, SpdyError> {
        if self.closing || self.over.is_some() {
            return Err(SpdyError::Closed);
        }
        if self.leaving {
            return Err(SpdyError::GoneAway);
        }
        if self.entries.len() >= self.limits.streams {
            return Err(SpdyError::StreamLimit { limit: self.limits.streams });
        }
        let id = self.next_local;
        if id > frame::MAX_STREAM {
            return Err(SpdyError::OutOfIds);
        }
        self.next_local += 2;
        self.entries.insert(id, Entry::new(Phase::Opening(headers), &self.limits));
        self.notice(id);
        Ok(id)
    }

    /// The next stream of the peer, with its headers.
    pub fn take_offered(&mut self) -> Option<(u32, Headers)> {
        while let Some(id) = self.backlog.pop_front() {
            if let Some(Entry { phase: Phase::Offered(headers), .. }) = self.entries.get_mut(&id) {
                return Some((id, std::mem::take(headers)));
            }
        }
        None
    }

    pub fn accept(&mut self, id: u32) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.phase = Phase::Accepting;
            self.notice(id);
        }
    }

    /// Nobody takes streams any more; those that wait are refused.
    pub fn deafen(&mut self) {
        self.deaf = true;
        for id in std::mem::take(&mut self.backlog) {
            self.release(id);
        }
    }

    /// Room for a writer's bytes.
    pub fn room(&self, entry_unsent: usize) -> usize {
        if self.unsent < self.limits.session_send_buffer {
            self.limits.send_buffer.saturating_sub(entry_unsent)
        } else {
            Limits::SEND_FLOOR.saturating_sub(entry_unsent)
        }
    }

    /// Takes a writer's bytes, for which there is room.
    pub fn queue(&mut self, id: u32, bytes: &[u8]) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.unsent.extend(bytes);
            self.unsent += bytes.len();
            self.notice(id);
        }
    }

    pub fn finish(&mut self, id: u32) {
        if let Some(entry) = self.entries.get_mut(&id)
            && entry.fin == Fin::Open
        {
            entry.fin = Fin::Asked;
            self.notice(id);
        }
    }

    /// The handle was dropped. What it finished is still sent; anything else is reset.
    pub fn release(&mut self, id: u32) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.held = false;
        let unopened = matches!(entry.phase, Phase::Opening(_));
        let offered = matches!(entry.phase, Phase::Offered(_));
        self.discard_received(id);
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if entry.broken.is_none() && (offered || entry.fin == Fin::Open) {
            if unopened {
                // The peer never hears of it.
                entry.broken = Some(Broken::Here);
            } else {
                self.reset(id, if offered { Status::REFUSED_STREAM } else { Status::CANCEL });
            }
        }
        // A finished one may still have to ask the peer to stop; that follows its FIN.
        self.notice(id);
        self.settle(id);
    }

    /// Resets a stream from here. What had come before is still its reader's: without it a FIN that came too would look
    /// like the end of less.
    pub fn reset(&mut self, id: u32, status: Status) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if entry.broken.is_none() {
            entry.broken = Some(Broken::Here);
            entry.reset_due = Some(status);
            self.discard_unsent(id);
            self.wake_both(id);
            self.notice(id);
        }
    }

    fn discard_received(&mut self, id: u32) {
        if let Some(entry) = self.entries.get_mut(&id) {
            let count = std::mem::take(&mut entry.received).len();
            self.consumed(id, count);
        }
    }

    fn discard_unsent(&mut self, id: u32) {
        if let Some(entry) = self.entries.get_mut(&id) {
            self.unsent -= std::mem::take(&mut entry.unsent).len();
        }
    }

    /// Ends the session from here: what was finished is sent, anything else is reset.
    pub fn close(&mut self) {
        if !std::mem::replace(&mut self.closing, true) {
            let unfinished: Vec<u32> =
                self.entries.iter().filter(|(_, entry)| entry.fin == Fin::Open).map(|(id, _)| *id).collect();
            for id in unfinished {
                self.reset(id, Status::CANCEL);
            }
            for id in self.entries.keys().copied().collect::<Vec<_>>() {
                self.wake_both(id);
            }
            self.wakes.extend(self.incoming.take());
            self.wake_task();
        }
    }

    /// The connection is over: everybody who waits learns why.
    pub fn end(&mut self, reason: SpdyError) {
        self.over.get_or_insert_with(|| std::sync::Arc::new(reason));
        for id in self.entries.keys().copied().collect::<Vec<_>>() {
            self.discard_unsent(id);
            self.wake_both(id);
        }
        self.entries.retain(|_, entry| entry.held);
        self.wakes.extend(self.incoming.take());
    }

    // What the peer's frames do.

    /// The peer opens a stream. `Ok(false)`: it is to be refused.
    pub fn offered(&mut self, id: u32, headers: Headers, fin: bool, one_way: bool) -> Result<bool, SpdyError> {
        if id == 0 || !self.is_remote(id) {
            return Err(SpdyError::StreamId { id, reason: "ids of this side are not the peer's to use" });
        }
        if id <= self.last_remote {
            return Err(SpdyError::StreamId { id, reason: "it is not above the last one" });
        }
        self.last_remote = id;
        if self.deaf || self.closing || self.leaving || self.entries.len() >= self.limits.streams {
            return Ok(false);
        }
        let mut entry = Entry::new(Phase::Offered(headers), &self.limits);
        entry.peer_fin = fin;
        // Nothing may be sent on such a stream, so our side has ended before it began.
        entry.fin = if one_way { Fin::Sent } else { Fin::Open };
        self.entries.insert(id, entry);
        self.backlog.push_back(id);
        self.wakes.extend(self.incoming.take());
        Ok(true)
    }

    /// A DATA frame begins.
    pub fn data_begins(&mut self, id: u32) -> Result<(), SpdyError> {
        self.check_opened(id, "DATA")?;
        if self.entries.get(&id).is_some_and(|entry| entry.peer_fin) {
            self.reset(id, Status::STREAM_ALREADY_CLOSED);
        }
        Ok(())
    }

    /// Hands received bytes to their stream, as far as it has room.
    pub fn deliver(&mut self, id: u32, bytes: &[u8]) -> Delivered {
        let session_room = (self.limits.session_window as usize).saturating_sub(self.buffered);
        match self.entries.get_mut(&id) {
            Some(entry) if !entry.discards() && !self.closing => {
                let room = (self.limits.stream_window as usize).saturating_sub(entry.received.len());
                let taken = room.min(session_room).min(bytes.len());
                entry.received.extend(&bytes[..taken]);
                self.buffered += taken;
                let beyond = entry.credit.received(taken) | self.credit.received(taken);
                self.heedless |= beyond || taken < bytes.len();
                if taken > 0 {
                    self.wakes.extend(entry.reader.take());
                }
                Delivered { taken }
            }
            _ => {
                // Nobody wants them, but the session's window has room again.
                self.credit.received(bytes.len());
                if self.credit.consumed(bytes.len()) {
                    self.wake_task();
                }
                Delivered { taken: bytes.len() }
            }
        }
    }

    /// The peer has ended its side of a stream.
    pub fn peer_finished(&mut self, id: u32) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.peer_fin = true;
            self.wakes.extend(entry.reader.take());
            self.settle(id);
        }
    }

    /// The peer answers to a stream that we opened.
    pub fn replied(&mut self, id: u32, fin: bool) -> Result<(), SpdyError> {
        self.check_opened(id, "SYN_REPLY")?;
        if self.is_remote(id) {
            return Err(SpdyError::StreamId { id, reason: "a reply to a stream of the peer's own" });
        }
        if let Some(entry) = self.entries.get_mut(&id) {
            match entry.phase {
                Phase::Waiting => entry.phase = Phase::Open,
                _ => return Err(SpdyError::StreamId { id, reason: "a second reply" }),
            }
            self.wake_both(id);
            self.notice(id);
        }
        if fin {
            self.peer_finished(id);
        }
        Ok(())
    }

    /// More headers for a stream; only their FIN means something here.
    pub fn more_headers(&mut self, id: u32, fin: bool) -> Result<(), SpdyError> {
        self.check_opened(id, "HEADERS")?;
        if fin {
            self.peer_finished(id);
        }
        Ok(())
    }

    /// The peer resets a stream. Says whether that cut off work of ours.
    pub fn peer_reset(&mut self, id: u32, status: Status) -> Result<bool, SpdyError> {
        self.check_opened(id, "RST_STREAM")?;
        let Some(entry) = self.entries.get_mut(&id) else { return Ok(false) };
        let early = entry.fin != Fin::Sent;
        if entry.broken.is_none() {
            entry.broken = Some(Broken::ByPeer(status));
        }
        entry.reset_due = None;
        if let Some(at) = self.backlog.iter().position(|waiting| *waiting == id) {
            self.backlog.remove(at);
            entry.held = false;
        }
        self.discard_unsent(id);
        self.wake_both(id);
        if self.entries.get(&id).is_some_and(|entry| !entry.held) {
            self.discard_received(id);
        }
        self.settle(id);
        Ok(early)
    }
}

#[cfg(test)]
impl Table {
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn is_heedless(&self) -> bool {
        self.heedless
    }

    pub fn peer_counts(&self) -> bool {
        self.counts
    }

    /// Bytes received and not read.
    pub fn held(&self) -> usize {
        self.buffered
    }

    /// Bytes written and not sent.
    pub fn unsent(&self) -> usize {
        self.unsent
    }
}
