//! The two ends of a channel as streams of bytes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

use super::Outgoing;

/// Bytes in one message at most.
const MAX_PIECE: usize = 32 * 1024;

/// What the client sends on a channel, until it closes the channel or the connection.
#[derive(Debug)]
pub struct ChannelReader {
    pieces: mpsc::Receiver<Bytes>,
    rest: Bytes,
}

impl ChannelReader {
    pub(super) fn new(pieces: mpsc::Receiver<Bytes>) -> Self {
        Self { pieces, rest: Bytes::new() }
    }
}

impl AsyncRead for ChannelReader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.rest.is_empty() {
            match ready!(this.pieces.poll_recv(cx)) {
                Some(piece) => this.rest = piece,
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = this.rest.len().min(buffer.remaining());
        buffer.put_slice(&this.rest[..count]);
        this.rest.advance(count);
        if this.rest.is_empty() {
            // Not the memory of the whole piece for an empty rest of it.
            this.rest = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

/// What we send on a channel. WebSocket has no end of a channel for the client to see: shutting it down only stops us.
#[derive(Debug)]
pub struct ChannelWriter {
    out: PollSender<Outgoing>,
    channel: u8,
    closed: bool,
}

impl ChannelWriter {
    pub(super) fn new(out: mpsc::Sender<Outgoing>, channel: u8) -> Self {
        Self { out: PollSender::new(out), channel, closed: false }
    }
}

impl AsyncWrite for ChannelWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(this.out.poll_reserve(cx)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        let data = Bytes::copy_from_slice(&data[..data.len().min(MAX_PIECE)]);
        let count = data.len();
        let sent = this.out.send_item(Outgoing::Data { channel: this.channel, data });
        Poll::Ready(sent.map(|()| count).map_err(|_| io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.closed = true;
        // A place in the queue that was reserved is given back.
        self.out.abort_send();
        Poll::Ready(Ok(()))
    }
}
