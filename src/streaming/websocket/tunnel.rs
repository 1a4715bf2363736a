//! A stream of bytes in the binary messages of a WebSocket: how SPDY gets through proxies that know WebSocket only
//! (`SPDY/3.1+portforward.k8s.io`). Where messages begin and end means nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frame::{Event, Sent};
use super::socket::{SocketError, WebSocket};
use super::{CLOSE_NORMAL, CLOSE_UNSUPPORTED};

/// Bytes in one message at most.
const MAX_MESSAGE: usize = 32 * 1024;

/// The stream.
#[derive(Debug)]
pub struct Tunnel<IO> {
    socket: WebSocket<IO>,
    rest: Bytes,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Tunnel<IO> {
    /// Over a connection after its upgrade.
    pub fn new(io: IO) -> Self {
        Self { socket: WebSocket::new(io), rest: Bytes::new() }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Tunnel<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.rest.is_empty() {
            match ready!(this.socket.poll_event(cx)).map_err(into_io)? {
                None => return Poll::Ready(Ok(())),
                Some(Event::Data(data)) => this.rest = data,
                Some(Event::Begin { text: true }) => {
                    this.socket.close(CLOSE_UNSUPPORTED);
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a text message in a tunnel")));
                }
                Some(_) => {}
            }
        }
        let count = this.rest.len().min(buffer.remaining());
        buffer.put_slice(&this.rest[..count]);
        this.rest.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Tunnel<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.socket.poll_ready(cx))?;
        if this.socket.is_read_ended() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let data = &data[..data.len().min(MAX_MESSAGE)];
        this.socket.queue(Sent::Binary, data, &[]);
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().socket.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.socket.close(CLOSE_NORMAL);
        this.socket.poll_shutdown(cx)
    }
}

fn into_io(error: SocketError) -> io::Error {
    match error {
        SocketError::Io(error) => error,
        SocketError::Frame(error) => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}
