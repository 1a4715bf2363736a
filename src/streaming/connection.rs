//! A client's connection: TCP or TLS, with what HTTP had read ahead, and an end that loses nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::server::TlsStream;

/// How long the end of a connection waits for the client's end.
const LINGER: Duration = Duration::from_secs(5);

/// The bytes on the wire.
#[derive(Debug)]
pub enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, data),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_write(cx, data),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
        }
    }
}

/// A connection after its upgrade.
///
/// Closing a TCP connection on which something arrives that nobody reads makes the kernel send a reset, and a reset takes
/// away from the client what it has not read yet: the last of the output, or the exit code. So when this is dropped before
/// the client's end was seen, a task ends our direction and reads what still comes, for [`LINGER`] at most. The place among
/// the sessions is kept until then, so that these are bounded too.
#[derive(Debug)]
pub struct Upgraded {
    inner: Option<(Socket, OwnedSemaphorePermit)>,
    read_ahead: Bytes,
    /// The client's end or an error was seen: nothing is left to lose.
    ended: bool,
}

impl Upgraded {
    /// After the upgrade, with what was read beyond the request.
    pub fn new(socket: Socket, read_ahead: Bytes, permit: OwnedSemaphorePermit) -> Self {
        Self { inner: Some((socket, permit)), read_ahead, ended: false }
    }

    fn socket(&mut self) -> Pin<&mut Socket> {
        let (socket, _) = self.inner.as_mut().expect("taken only by drop");
        Pin::new(socket)
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.read_ahead.is_empty() {
            let count = this.read_ahead.len().min(buffer.remaining());
            buffer.put_slice(&this.read_ahead[..count]);
            this.read_ahead.advance(count);
            return Poll::Ready(Ok(()));
        }
        let (before, room) = (buffer.filled().len(), buffer.remaining());
        let read = this.socket().poll_read(cx, buffer);
        if let Poll::Ready(result) = &read {
            this.ended |= result.is_err() || (room > 0 && buffer.filled().len() == before);
        }
        read
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = this.socket().poll_write(cx, data);
        this.ended |= matches!(written, Poll::Ready(Err(_)));
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = this.socket().poll_write_vectored(cx, parts);
        this.ended |= matches!(written, Poll::Ready(Err(_)));
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.as_ref().is_some_and(|(socket, _)| socket.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().socket().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().socket().poll_shutdown(cx)
    }
}

impl Drop for Upgraded {
    fn drop(&mut self) {
        let Some((mut socket, permit)) = self.inner.take() else { return };
        // Outside of a runtime, at the daemon's end, there is no time for it.
        if self.ended || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        crate::task::spawn("linger", async move {
            let _permit = permit;
            let rest = async {
                socket.shutdown().await?;
                let mut dropped = [0_u8; 4096];
                while socket.read(&mut dropped).await? > 0 {}
                io::Result::Ok(())
            };
            // Neither an error nor the clock matters to anybody any more.
            let _ = tokio::time::timeout(LINGER, rest).await;
        });
    }
}
