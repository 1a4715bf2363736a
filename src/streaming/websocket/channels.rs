//! Channels in one WebSocket connection: each message begins with the number of its channel, and from version 5 on the
//! message `255, n` says that the client sends no more on channel `n`.
//!
//! One task drives the connection. In the `base64` protocols messages are texts: a digit for the channel, then base64.
//!
//! What waits is bounded: for each channel of the client's two pieces of at most 32 KiB, for the client two such pieces and
//! [`super::socket::WebSocket`]'s buffer. WebSocket has no flow control of its own, so a channel that nobody reads holds up
//! the others and with them the client's pings; the client is then sent signs of life, since it would give up otherwise.

mod base64;
mod ends;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, PollSender};
use tokio_util::task::AbortOnDropHandle;

use super::frame::{Event, Sent};
use super::socket::{SocketError, WebSocket};
use super::{CLOSE_NORMAL, CLOSE_PROTOCOL};

pub use ends::{ChannelReader, ChannelWriter};

/// Begins a message that closes a channel (version 5).
const CLOSE_CHANNEL: u8 = 255;

/// Pieces for the client that wait at most.
const OUT_QUEUE: usize = 2;

/// How often a client whose input is not read hears that we are alive. Clients give up after a minute.
const SIGN_OF_LIFE: Duration = Duration::from_secs(20);

/// How long a client that broke the rules may take to hear so.
const FAREWELL: Duration = Duration::from_secs(5);

/// How a connection is divided.
#[derive(Debug, Clone)]
pub struct Layout {
    /// For each channel by its number, whether the client may send on it. What it sends on others is dropped.
    pub inputs: Vec<bool>,
    pub base64: bool,
    /// The client may close a channel (version 5).
    pub closes: bool,
}

/// What goes out, in order.
#[derive(Debug)]
enum Outgoing {
    Data { channel: u8, data: Bytes },
    Close(u16),
}

/// The connection, as its session sees it. Dropping it ends the connection at once.
#[derive(Debug)]
pub struct Handle {
    out: mpsc::Sender<Outgoing>,
    ended: CancellationToken,
    _driver: AbortOnDropHandle<()>,
}

/// Takes over a connection after its upgrade: a reader for each channel that the client may send on, and the handle.
pub fn open<IO>(io: IO, layout: &Layout) -> (Vec<Option<ChannelReader>>, Handle)
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (out, outgoing) = mpsc::channel(OUT_QUEUE);
    let mut readers = Vec::new();
    let mut inputs = Vec::new();
    for wanted in &layout.inputs {
        let (sender, receiver) = mpsc::channel(1);
        readers.push(wanted.then(|| ChannelReader::new(receiver)));
        inputs.push(wanted.then(|| PollSender::new(sender)));
    }
    let driver = Driver {
        socket: WebSocket::new(io),
        outgoing,
        inputs,
        base64: layout.base64.then(base64::Decoder::default),
        closes: layout.closes,
        message: Message::None,
        waiting: None,
        closing: false,
        stalled: None,
        failed: None,
    };
    let ended = CancellationToken::new();
    let guard = ended.clone().drop_guard();
    let task = crate::task::spawn("websocket", async move {
        let _guard = guard;
        if let Err(error) = driver.await {
            tracing::debug!(error = %crate::telemetry::chain(&error), "a WebSocket connection failed");
        }
    });
    (readers, Handle { out, ended, _driver: AbortOnDropHandle::new(task) })
}

impl Handle {
    /// The client's end of a channel that we send on.
    pub fn writer(&self, channel: u8) -> ChannelWriter {
        ChannelWriter::new(self.out.clone(), channel)
    }

    /// Sends one message, which may be empty; a connection that has ended takes it silently.
    pub async fn send(&self, channel: u8, data: Bytes) {
        let _ = self.out.send(Outgoing::Data { channel, data }).await;
    }

    /// Returns when the connection has ended.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Sends what waits and a close frame, and returns when the client has closed too. A writer that was left in the middle of
    /// a write must have been dropped or shut down: it keeps its place in the queue, and this one is behind it.
    pub async fn close(self) {
        let _ = self.out.send(Outgoing::Close(CLOSE_NORMAL)).await;
        self.ended.cancelled().await;
    }
}

/// Where the rest of the message that is being read goes.
#[derive(Debug, Clone, Copy)]
enum Message {
    None,
    /// The next byte is the channel.
    Start,
    To(usize),
    /// The next byte is the channel that the client closes.
    Close,
    Closed,
    Dropped,
}

/// A client that breaks the rules of the channels.
#[derive(Debug, thiserror::Error)]
enum ChannelError {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("a message that closes a channel has two bytes, and the channel must exist")]
    CloseChannel,
    #[error("a message is not base64")]
    Base64,
}

struct Driver<IO> {
    socket: WebSocket<IO>,
    outgoing: mpsc::Receiver<Outgoing>,
    inputs: Vec<Option<PollSender<Bytes>>>,
    base64: Option<base64::Decoder>,
    closes: bool,
    message: Message,
    /// A piece that its channel has no room for yet.
    waiting: Option<(usize, Bytes)>,
    /// We have sent a close frame.
    closing: bool,
    stalled: Option<Pin<Box<Sleep>>>,
    /// What ended the connection, while the client is being told.
    failed: Option<(ChannelError, Pin<Box<Sleep>>)>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Future for Driver<IO> {
    type Output = Result<(), ChannelError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if this.failed.is_some() {
            return this.poll_farewell(cx);
        }
        this.send_queued(cx)?;
        loop {
            match ready!(this.poll_input(cx)) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    this.socket.close(CLOSE_PROTOCOL);
                    this.failed = Some((error, Box::pin(tokio::time::sleep(FAREWELL))));
                    return this.poll_farewell(cx);
                }
            }
        }
        // The client has closed; our answer to that is on its way or cannot be sent.
        let _ = ready!(this.socket.poll_flush(cx));
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Driver<IO> {
    /// Writes the close frame that says why. To try only once is not enough: a connection that has much room may still be
    /// told to wait, after the many answers of a client's many pings.
    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ChannelError>> {
        let Some((_, clock)) = &mut self.failed else { return Poll::Ready(Ok(())) };
        if self.socket.poll_flush(cx).is_pending() && clock.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(self.failed.take().map_or(Ok(()), |(error, _)| Err(error)))
    }

    fn send_queued(&mut self, cx: &mut Context<'_>) -> Result<(), ChannelError> {
        let failed = |error| ChannelError::Socket(SocketError::Io(error));
        loop {
            match self.socket.poll_ready(cx) {
                Poll::Ready(ready) => ready.map_err(failed)?,
                // Woken when there is room.
                Poll::Pending => return Ok(()),
            }
            match self.outgoing.poll_recv(cx) {
                Poll::Ready(Some(Outgoing::Data { channel, data })) => self.queue(channel, &data),
                Poll::Ready(Some(Outgoing::Close(code))) => {
                    self.closing = true;
                    self.socket.close(code);
                }
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        match self.socket.poll_flush(cx) {
            Poll::Ready(flushed) => flushed.map_err(failed),
            Poll::Pending => Ok(()),
        }
    }

    fn queue(&mut self, channel: u8, data: &[u8]) {
        if self.base64.is_some() {
            let text = base64::encode(data);
            self.socket.queue(Sent::Text, &[b'0' + channel], text.as_bytes());
        } else {
            self.socket.queue(Sent::Binary, &[channel], data);
        }
    }

    /// One step of what the client sends; `false` at its end.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, ChannelError>> {
        ready!(self.poll_hand_over(cx))?;
        Poll::Ready(match ready!(self.socket.poll_event(cx))? {
            None => Ok(false),
            Some(Event::Begin { .. }) => {
                self.message = Message::Start;
                Ok(true)
            }
            Some(Event::Data(data)) => self.take(data).map(|()| true),
            Some(Event::End) => self.end_message().map(|()| true),
            // The socket deals with these itself.
            Some(Event::Ping(_) | Event::Pong | Event::Close(_)) => Ok(true),
        })
    }

    /// Gives the piece that waits to its channel.
    fn poll_hand_over(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ChannelError>> {
        let Some((channel, _)) = &self.waiting else { return Poll::Ready(Ok(())) };
        let channel = *channel;
        let Some(sender) = &mut self.inputs[channel] else {
            self.waiting = None;
            return Poll::Ready(Ok(()));
        };
        match sender.poll_reserve(cx) {
            Poll::Pending => {
                ready!(self.poll_stall(cx))?;
                return Poll::Pending;
            }
            Poll::Ready(Ok(())) => {
                if let Some((_, data)) = self.waiting.take() {
                    // Fails only for a reader that has just gone, which is told by the next reservation.
                    let _ = sender.send_item(data);
                }
            }
            Poll::Ready(Err(_)) => {
                self.waiting = None;
                self.inputs[channel] = None;
            }
        }
        self.stalled = None;
        Poll::Ready(Ok(()))
    }

    /// While a channel does not take its piece: the client hears from time to time that we are alive.
    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ChannelError>> {
        let timer = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(SIGN_OF_LIFE)));
        while timer.as_mut().poll(cx).is_ready() {
            timer.as_mut().reset(tokio::time::Instant::now() + SIGN_OF_LIFE);
            self.socket.queue_sign_of_life();
            if let Poll::Ready(Err(error)) = self.socket.poll_flush(cx) {
                return Poll::Ready(Err(SocketError::Io(error).into()));
            }
        }
        Poll::Pending
    }

    fn take(&mut self, mut data: Bytes) -> Result<(), ChannelError> {
        if self.closing {
            return Ok(());
        }
        while !data.is_empty() {
            match self.message {
                Message::None | Message::Start => {
                    let first = data.get_u8();
                    self.message = self.destination(first);
                }
                Message::Close => {
                    let channel = usize::from(data.get_u8());
                    *self.inputs.get_mut(channel).ok_or(ChannelError::CloseChannel)? = None;
                    self.message = Message::Closed;
                }
                Message::Closed => return Err(ChannelError::CloseChannel),
                Message::Dropped => return Ok(()),
                Message::To(channel) => {
                    let piece = std::mem::take(&mut data);
                    let piece = match &mut self.base64 {
                        Some(decoder) => decoder.decode(&piece).ok_or(ChannelError::Base64)?,
                        None => piece,
                    };
                    if !piece.is_empty() {
                        self.waiting = Some((channel, piece));
                    }
                }
            }
        }
        Ok(())
    }

    fn destination(&self, first: u8) -> Message {
        if self.closes && first == CLOSE_CHANNEL {
            return Message::Close;
        }
        let channel = usize::from(if self.base64.is_some() { first.wrapping_sub(b'0') } else { first });
        match self.inputs.get(channel) {
            Some(Some(_)) => Message::To(channel),
            _ => Message::Dropped,
        }
    }

    fn end_message(&mut self) -> Result<(), ChannelError> {
        let message = std::mem::replace(&mut self.message, Message::None);
        if matches!(message, Message::Close) && !self.closing {
            return Err(ChannelError::CloseChannel);
        }
        let whole = self.base64.as_mut().is_none_or(base64::Decoder::finish);
        if whole || self.closing { Ok(()) } else { Err(ChannelError::Base64) }
    }
}

#[cfg(test)]
mod tests;
