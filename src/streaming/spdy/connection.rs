//! The task that owns a connection. It reads frames and hands them to the [`Table`], asks the table for frames and writes
//! them, in turns, and never waits for a stream: one that nobody reads is a matter of its window.

use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_util::io::poll_read_buf;

use super::error::SpdyError;
use super::frame::{self, Control, Farewell, HEAD, Head, Status};
use super::headers::Inflater;
use super::limits::Limits;
use super::session::Shared;
use super::table::Table;

/// Bytes that are read from the connection at once.
const READ: usize = 64 * 1024;
/// Bytes of frames that are made before they are written.
const WRITE: usize = 64 * 1024;
/// Turns of reading and writing before other tasks of the runtime get theirs.
const ROUNDS: usize = 16;

/// The payload of a DATA frame, as far as it is still to come. It is handed on in the pieces in which it arrives, so that a
/// frame of 16 MiB takes no more memory than a small one.
#[derive(Debug)]
struct Body {
    stream: u32,
    left: usize,
    fin: bool,
}

/// Why nothing more was made of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wants {
    /// The rest of a frame.
    Bytes,
    /// Room in the buffer of a stream.
    Room,
    /// The peer to take our answers first.
    Answers,
}

/// Counts the streams that the peer resets (CVE-2023-44487).
#[derive(Debug)]
struct Resets {
    left: u32,
    refilled: Instant,
}

#[derive(Debug)]
pub(super) struct Connection<IO> {
    io: IO,
    shared: Arc<Shared>,
    limits: Limits,
    inflater: Inflater,
    resets: Resets,
    /// What was read; up to `at` it has been dealt with.
    input: Vec<u8>,
    at: usize,
    body: Option<Body>,
    /// Our bounds have been told. Only after the peer's first byte: Go's client loses what comes together with the
    /// answer to its HTTP request.
    greeted: bool,
    /// Answers to the peer's frames.
    answers: Vec<u8>,
    /// Frames on their way; up to `written` they are out.
    output: Vec<u8>,
    written: usize,
    unflushed: bool,
    clock: Option<Pin<Box<Sleep>>>,
    /// What is written is only a probe, which keeps no idle session alive.
    probing: bool,
}

impl<IO: AsyncRead + AsyncWrite + Send + Unpin> Connection<IO> {
    pub fn new(io: IO, shared: Arc<Shared>, limits: Limits) -> Self {
        Self {
            io,
            shared,
            inflater: Inflater::new(limits.header_block, limits.headers),
            resets: Resets { left: limits.resets, refilled: Instant::now() },
            limits,
            input: Vec::new(),
            at: 0,
            body: None,
            greeted: false,
            answers: Vec::new(),
            output: Vec::new(),
            written: 0,
            unflushed: false,
            clock: None,
            probing: false,
        }
    }

    /// Serves the connection until either side ends it.
    pub async fn run(mut self) {
        let reason = match poll_fn(|cx| self.poll_serve(cx)).await {
            Ok(()) => SpdyError::Closed,
            Err(error) => error,
        };
        tracing::debug!(reason = %reason, "SPDY session over");
        let (lost, violation) = (reason.is_lost(), reason.is_violation());
        let last = self.shared.with(|table| {
            table.end(reason);
            table.last_remote()
        });
        if !lost {
            let farewell = if violation { Farewell::ProtocolError } else { Farewell::Ok };
            frame::put_goaway(&mut self.output, last, farewell);
            if let Ok(Ok(())) = timeout(self.limits.stall, poll_fn(|cx| self.poll_drain(cx))).await {
                let _ = timeout(self.limits.linger, poll_fn(|cx| self.poll_ignore(cx))).await;
            }
        }
        let shared = self.shared.clone();
        // Closes the connection before anybody hears that it is closed.
        drop(self);
        shared.end();
    }

    fn poll_serve(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SpdyError>> {
        self.shared.with(|table| table.task = Some(cx.waker().clone()));
        for _ in 0..ROUNDS {
            let wrote = self.poll_output(cx)?;
            let (read, wants) = self.poll_input(cx)?;
            if wrote || read {
                self.clock = None;
            }
            let (ending, done) = self.shared.with(|table| {
                let drained = self.output.is_empty() && self.answers.is_empty() && !self.unflushed;
                (table.closing, drained && (table.has_left() || (table.closing && table.is_drained())))
            });
            if done {
                return Poll::Ready(Ok(()));
            }
            if !wrote && !read {
                return self.poll_clock(cx, ending, wants);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Nothing can be done now. Two cases need a clock.
    fn poll_clock(&mut self, cx: &mut Context<'_>, ending: bool, wants: Wants) -> Poll<Result<(), SpdyError>> {
        let period = if ending {
            self.limits.stall
        } else if wants == Wants::Room && self.output.is_empty() {
            self.limits.probe
        } else {
            self.clock = None;
            return Poll::Pending;
        };
        let clock = self.clock.get_or_insert_with(|| Box::pin(sleep(period)));
        ready!(clock.as_mut().poll(cx));
        self.clock = None;
        if ending {
            return Poll::Ready(Err(SpdyError::Stalled { seconds: period.as_secs() }));
        }
        // A peer that has gone does not show as long as nothing is read. A frame that asks for no answer does not disturb
        // one that is there, and makes the kernel of one that has gone say so.
        frame::put_settings(&mut self.answers, &[]);
        self.probing = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes once. Says whether anything went out.
    fn poll_output(&mut self, cx: &mut Context<'_>) -> Result<bool, SpdyError> {
        if self.output.len() - self.written < WRITE {
            self.output.drain(..self.written);
            self.written = 0;
            self.output.append(&mut self.answers);
            let output = &mut self.output;
            self.shared.with(|table| table.collect(output, WRITE));
        }
        if self.output.is_empty() {
            if self.unflushed {
                match Pin::new(&mut self.io).poll_flush(cx) {
                    Poll::Ready(Ok(())) => self.unflushed = false,
                    Poll::Ready(Err(source)) => return Err(SpdyError::Write { source }),
                    Poll::Pending => {}
                }
            }
            return Ok(false);
        }
        match self.poll_write(cx) {
            Poll::Ready(Ok(())) => Ok(true),
            Poll::Ready(Err(source)) => Err(SpdyError::Write { source }),
            Poll::Pending => Ok(false),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let count = ready!(Pin::new(&mut self.io).poll_write(cx, &self.output[self.written..]))?;
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.written += count;
        self.unflushed = true;
        if !std::mem::take(&mut self.probing) {
            self.shared.touch();
        }
        if self.written == self.output.len() {
            // An idle connection holds no buffer.
            self.output = Vec::new();
            self.written = 0;
        }
        Poll::Ready(Ok(()))
    }

    /// Deals with what was read, and reads once. Says whether anything came in, and what is missing to go on.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Result<(bool, Wants), SpdyError> {
        let before = self.at;
        let input = std::mem::take(&mut self.input);
        let wants = self.digest(&input);
        self.input = input;
        let wants = wants?;
        let progress = self.at != before;
        if wants != Wants::Bytes {
            return Ok((progress, wants));
        }
        self.input.drain(..self.at);
        self.at = 0;
        self.input.reserve(READ);
        match poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input) {
            Poll::Ready(Ok(0)) => Err(SpdyError::HungUp),
            Poll::Ready(Ok(_)) => {
                self.shared.touch();
                if !std::mem::replace(&mut self.greeted, true) {
                    let answers = &mut self.answers;
                    self.shared.with(|table| table.greet(answers));
                }
                Ok((true, wants))
            }
            Poll::Ready(Err(source)) => Err(SpdyError::Read { source }),
            Poll::Pending => {
                if self.input.is_empty() {
                    // An idle connection holds no buffer.
                    self.input = Vec::new();
                }
                Ok((progress, wants))
            }
        }
    }

    /// Deals with as much of the input as can be dealt with now.
    fn digest(&mut self, input: &[u8]) -> Result<Wants, SpdyError> {
        loop {
            if self.answers.len() >= self.limits.replies {
                return Ok(Wants::Answers);
            }
            let rest = &input[self.at..];
            if let Some(body) = &mut self.body {
                if body.left > 0 {
                    let piece = &rest[..body.left.min(rest.len())];
                    if piece.is_empty() {
                        return Ok(Wants::Bytes);
                    }
                    let delivered = self.shared.with(|table| table.deliver(body.stream, piece));
                    body.left -= delivered.taken;
                    self.at += delivered.taken;
                    if delivered.taken < piece.len() {
                        return Ok(Wants::Room);
                    }
                } else {
                    if body.fin {
                        self.shared.with(|table| table.peer_finished(body.stream));
                    }
                    self.body = None;
                }
                continue;
            }
            let Some((bytes, rest)) = rest.split_first_chunk::<HEAD>() else { return Ok(Wants::Bytes) };
            let head = frame::head(*bytes);
            match head {
                Head::Data { stream, fin, length } => {
                    self.shared.with(|table| table.data_begins(stream))?;
                    self.body = Some(Body { stream, left: length as usize, fin });
                    self.at += HEAD;
                }
                Head::Control { kind, length, .. } => {
                    if length > self.limits.control_frame {
                        let limit = self.limits.control_frame;
                        return Err(SpdyError::ControlFrameTooLong { kind, length, limit });
                    }
                    let Some(payload) = rest.get(..length as usize) else { return Ok(Wants::Bytes) };
                    self.at += HEAD + payload.len();
                    self.take_control(frame::control(head, payload, self.limits.settings)?)?;
                }
            }
        }
    }

    fn take_control(&mut self, control: Control<'_>) -> Result<(), SpdyError> {
        match control {
            Control::SynStream { stream, fin, unidirectional, block } => {
                let headers = self.inflater.read(block)?;
                if !self.shared.with(|table| table.offered(stream, headers, fin, unidirectional))? {
                    frame::put_rst_stream(&mut self.answers, stream, Status::REFUSED_STREAM);
                }
            }
            Control::SynReply { stream, fin, block } => {
                self.inflater.read(block)?;
                self.shared.with(|table| table.replied(stream, fin))?;
            }
            Control::Headers { stream, fin, block } => {
                self.inflater.read(block)?;
                self.shared.with(|table| table.more_headers(stream, fin))?;
            }
            Control::RstStream { stream, status } => {
                if self.shared.with(|table| table.peer_reset(stream, status))? {
                    self.resets.count(&self.limits)?;
                }
            }
            Control::Settings { entries } => {
                for (id, value) in entries.iter().map(|entry| frame::setting(*entry)) {
                    if id == frame::INITIAL_WINDOW_SIZE {
                        self.shared.with(|table| table.initial_window(value))?;
                    }
                }
            }
            // The other side's own pings come back with the ids of that side; those of this side would be answers to pings
            // that were never sent.
            Control::Ping { id } => {
                if self.shared.with(|table| table.is_remote(id)) {
                    frame::put_ping(&mut self.answers, id);
                }
            }
            Control::GoAway { .. } => self.shared.with(Table::peer_leaves),
            Control::WindowUpdate { stream, delta } => self.shared.with(|table| table.widened(stream, delta))?,
            Control::Unknown => {}
        }
        Ok(())
    }

    /// Writes the rest and tells the peer that no more comes.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            ready!(self.poll_write(cx))?;
        }
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// Reads until the peer hangs up.
    fn poll_ignore(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            self.input.clear();
            self.input.reserve(READ);
            match ready!(poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input)) {
                Ok(count) if count > 0 => {}
                _ => return Poll::Ready(()),
            }
        }
    }
}

impl Resets {
    fn count(&mut self, limits: &Limits) -> Result<(), SpdyError> {
        let seconds = u32::try_from(self.refilled.elapsed().as_secs()).unwrap_or(u32::MAX);
        if seconds > 0 {
            let refill = seconds.saturating_mul(limits.resets_per_second);
            self.left = self.left.saturating_add(refill).min(limits.resets);
            self.refilled += Duration::from_secs(u64::from(seconds));
        }
        self.left = self.left.checked_sub(1).ok_or(SpdyError::ResetStorm { limit: limits.resets })?;
        Ok(())
    }
}
