//! The handle of one stream.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::error::SpdyError;
use super::frame::Status;
use super::headers::Headers;
use super::session::Shared;
use super::table::{Broken, Entry, Fin, Table};

/// A stream that the peer has opened. Dropping it refuses it.
#[derive(Debug)]
pub struct IncomingStream {
    stream: Stream,
    headers: Headers,
}

impl IncomingStream {
    pub(super) fn new(stream: Stream, headers: Headers) -> Self {
        Self { stream, headers }
    }

    /// The value of a header, whose name is compared without regard to case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }

    /// Answers with SYN_REPLY.
    pub fn accept(self) -> Stream {
        self.stream.shared.with(|table| table.accept(self.stream.id));
        self.stream
    }

    /// Answers with RST_STREAM (REFUSED_STREAM).
    pub fn refuse(self) {
        self.stream.shared.with(|table| table.reset(self.stream.id, Status::REFUSED_STREAM));
    }
}

/// Both directions of a stream.
///
/// Reading ends (`Ok` without bytes) at the peer's FIN. A stream that the peer resets gives `ConnectionReset` and a session
/// that ends before the FIN `ConnectionAborted`, both after the bytes that had come before. Shutting down sends the FIN
/// after everything written, and is done when it is in the connection's own buffer. Dropping a stream that was not shut
/// down resets it and throws away what was not sent yet; dropping one that was, sends all of it first.
#[derive(Debug)]
pub struct Stream {
    id: u32,
    shared: Arc<Shared>,
}

impl Stream {
    pub(super) fn new(id: u32, shared: Arc<Shared>) -> Self {
        Self { id, shared }
    }

    /// The number of the stream on the wire.
    pub fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.with(|table| table.release(self.id));
    }
}

impl Broken {
    pub(super) fn into_error(self) -> SpdyError {
        match self {
            Self::ByPeer(status) => SpdyError::Reset { status },
            Self::Here => SpdyError::Closed,
        }
    }
}

/// Why a stream can neither be read nor written, if so.
fn failure(table: &mut Table, id: u32) -> Option<io::Error> {
    let over = table.over.clone();
    match table.entry(id).map(|entry| entry.broken) {
        Some(Some(broken @ Broken::ByPeer(_))) => {
            Some(io::Error::new(io::ErrorKind::ConnectionReset, broken.into_error()))
        }
        Some(None) if over.is_none() => None,
        _ => match over {
            Some(reason) => Some(io::Error::new(io::ErrorKind::ConnectionAborted, reason)),
            None => Some(io::Error::new(io::ErrorKind::ConnectionAborted, SpdyError::Closed)),
        },
    }
}

/// Copies what fits out of a stream's buffer.
fn take(entry: &mut Entry, buf: &mut ReadBuf<'_>) -> usize {
    let (front, back) = entry.received.as_slices();
    let first = front.len().min(buf.remaining());
    buf.put_slice(&front[..first]);
    let second = back.len().min(buf.remaining());
    buf.put_slice(&back[..second]);
    entry.received.drain(..first + second);
    first + second
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        self.shared.with(|table| {
            if let Some(entry) = table.entry(self.id) {
                let taken = take(entry, buf);
                let ended = entry.peer_fin;
                if taken > 0 {
                    table.consumed(self.id, taken);
                }
                if taken > 0 || ended {
                    return Poll::Ready(Ok(()));
                }
            }
            if let Some(error) = failure(table, self.id) {
                return Poll::Ready(Err(error));
            }
            if let Some(entry) = table.entry(self.id) {
                entry.reader = Some(cx.waker().clone());
            }
            Poll::Pending
        })
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.shared.with(|table| {
            if let Some(error) = failure(table, self.id) {
                return Poll::Ready(Err(error));
            }
            let Some((fin, unsent)) = table.entry(self.id).map(|entry| (entry.fin, entry.unsent.len())) else {
                return Poll::Pending;
            };
            if fin != Fin::Open {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, "the stream was shut down")));
            }
            let count = table.room(unsent).min(bytes.len());
            if count > 0 {
                table.queue(self.id, &bytes[..count]);
            }
            if count > 0 || bytes.is_empty() {
                return Poll::Ready(Ok(count));
            }
            if let Some(entry) = table.entry(self.id) {
                entry.writer = Some(cx.waker().clone());
            }
            Poll::Pending
        })
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.with(|table| sent(table, self.id, cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.with(|table| {
            table.finish(self.id);
            sent(table, self.id, cx)
        })
    }
}

/// Ready when nothing of a stream waits to be sent.
fn sent(table: &mut Table, id: u32, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    if table.entry(id).is_some_and(|entry| entry.fin == Fin::Sent) {
        return Poll::Ready(Ok(()));
    }
    if let Some(error) = failure(table, id) {
        return Poll::Ready(Err(error));
    }
    match table.entry(id) {
        Some(entry) if entry.fin == Fin::Asked || !entry.unsent.is_empty() => {
            entry.writer = Some(cx.waker().clone());
            Poll::Pending
        }
        _ => Poll::Ready(Ok(())),
    }
}
