//! A WebSocket connection over any stream of bytes, to be polled by one task (or by two, one for each direction).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};

use super::frame::{Decoder, Event, FrameError, Sent, put_header};
use super::{CLOSE_NORMAL, CLOSE_PROTOCOL};

/// Bytes read at once at most.
const READ_SIZE: usize = 32 * 1024;

/// Nothing more is queued while so many bytes wait to be written. One message and one pong may come on top of it.
const WRITE_HIGH: usize = 64 * 1024;

/// Why a connection ended other than by a close frame or its end.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("the connection failed")]
    Io(#[source] io::Error),
    #[error("the client broke the protocol")]
    Frame(#[from] FrameError),
}

/// The connection.
#[derive(Debug)]
pub struct WebSocket<IO> {
    io: IO,
    decoder: Decoder,
    input: BytesMut,
    output: BytesMut,
    /// What the last ping carried, until there is room for the answer: one answer may stand for several pings.
    pong: Option<Bytes>,
    /// No more can be read: the client has closed, or it broke the protocol.
    read_ended: bool,
    /// A close frame was queued; nothing may follow it.
    close_sent: bool,
    /// Whoever waits for room to write, for the time that the reader writes pongs.
    writer: Option<Waker>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> WebSocket<IO> {
    /// After the upgrade.
    pub fn new(io: IO) -> Self {
        Self {
            io,
            decoder: Decoder::default(),
            input: BytesMut::new(),
            output: BytesMut::new(),
            pong: None,
            read_ended: false,
            close_sent: false,
            writer: None,
        }
    }

    /// The next event of a data message; pings and pongs are dealt with here. `None` is the end of the connection, with or
    /// without a close frame. A client that breaks the protocol is told so by a close frame, which is to be flushed.
    pub fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Event>, SocketError>> {
        loop {
            if self.read_ended {
                return Poll::Ready(Ok(None));
            }
            match self.decoder.decode(&mut self.input) {
                Ok(Some(Event::Ping(payload))) => {
                    self.pong = Some(payload);
                    self.try_write(cx)?;
                }
                Ok(Some(Event::Pong)) => {}
                Ok(Some(Event::Close(code))) => {
                    self.read_ended = true;
                    self.close(code.filter(|code| (1000..5000).contains(code)).unwrap_or(CLOSE_NORMAL));
                    self.try_write(cx)?;
                }
                Ok(Some(event)) => return Poll::Ready(Ok(Some(event))),
                Ok(None) => match ready!(self.poll_fill(cx)).map_err(SocketError::Io)? {
                    0 => self.read_ended = true,
                    _ => self.try_write(cx)?,
                },
                Err(error) => {
                    self.read_ended = true;
                    self.close(CLOSE_PROTOCOL);
                    self.try_write(cx)?;
                    return Poll::Ready(Err(error.into()));
                }
            }
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // An idle connection holds no buffer: it is made when there is something to read.
        let mut space = [std::mem::MaybeUninit::uninit(); READ_SIZE];
        let mut buffer = tokio::io::ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
        if self.input.is_empty() {
            self.input = BytesMut::from(buffer.filled());
        } else {
            self.input.extend_from_slice(buffer.filled());
        }
        Poll::Ready(Ok(buffer.filled().len()))
    }

    /// Room for one more message.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.output.len() >= WRITE_HIGH {
            self.writer = Some(cx.waker().clone());
            let written = ready!(self.poll_some(cx))?;
            debug_assert!(written > 0);
        }
        Poll::Ready(Ok(()))
    }

    /// Queues a message in two parts; nothing after a close frame.
    pub fn queue(&mut self, kind: Sent, first: &[u8], second: &[u8]) {
        if !self.close_sent {
            put_header(&mut self.output, kind, first.len() + second.len());
            self.output.extend_from_slice(first);
            self.output.extend_from_slice(second);
        }
    }

    /// Queues a pong that no ping asked for: a sign of life (RFC 6455, 5.5.3).
    pub fn queue_sign_of_life(&mut self) {
        self.pong.get_or_insert_default();
    }

    /// Queues a close frame; a second one is not sent.
    pub fn close(&mut self, code: u16) {
        self.queue(Sent::Close, &code.to_be_bytes(), &[]);
        self.close_sent = true;
        self.pong = None;
    }

    /// Writes what waits, until all of it is on its way.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.take_pong();
            if self.output.is_empty() {
                return Pin::new(&mut self.io).poll_flush(cx);
            }
            self.writer = Some(cx.waker().clone());
            ready!(self.poll_some(cx))?;
        }
    }

    /// Writes what waits and ends our direction of the connection.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// The client has closed.
    pub fn is_read_ended(&self) -> bool {
        self.read_ended
    }

    /// Writes as the reader: its waker must not keep a writer of another task asleep.
    fn try_write(&mut self, cx: &mut Context<'_>) -> Result<(), SocketError> {
        self.take_pong();
        if self.output.is_empty() {
            return Ok(());
        }
        while !self.output.is_empty() {
            match self.poll_some(cx) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Err(SocketError::Io(error)),
                Poll::Pending => return Ok(()),
            }
        }
        if let Poll::Ready(Err(error)) = Pin::new(&mut self.io).poll_flush(cx) {
            return Err(SocketError::Io(error));
        }
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
        Ok(())
    }

    fn take_pong(&mut self) {
        if self.output.len() < WRITE_HIGH
            && let Some(payload) = self.pong.take()
        {
            self.queue(Sent::Pong, &payload, &[]);
        }
    }

    fn poll_some(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.output))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.output.advance(written);
        if self.output.is_empty() {
            // The memory goes back: most sessions are idle most of the time.
            self.output = BytesMut::new();
        }
        Poll::Ready(Ok(written))
    }
}
