//! Lets in clients whose `:authority` is no legal authority.
//!
//! gRPC clients in C++, Python, Java and Swift put a unix socket's path into `:authority`: `%2Frun%2Fx.sock`, `/run/x.sock`,
//! or nothing. The h2 crate resets such a stream with PROTOCOL_ERROR before any handler sees it, where the servers of the
//! field take it. [`Authority`] stands between the accepted socket and h2, follows the frames that come in, and writes
//! `localhost` instead. What the server writes is not looked at.
//!
//! ```text
//! socket ─▶ preface ─▶ frame header ─▶ HEADERS, CONTINUATION… ─▶ decoded; authority legal so far: passed on as it was
//!                          │                                     else this block and all later ones are written anew
//!                          └─▶ any other frame: passed on
//! ```
//!
//! A connection whose authorities are all legal (the kubelet's, crictl's) reaches h2 byte for byte. After the first bad one
//! the two ends' header tables have come apart, so every later block is written out in full; h2's table is then not used.
//! What cannot be followed (no HTTP/2, broken framing, a block too large) is left to h2 to refuse as long as nothing has
//! been changed on the connection; after that the connection ends with an error.

mod block;
mod rewrite;

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use rewrite::{Broken, Rewriter};

/// Bytes read from the socket at a time: one full frame of the default size.
const CHUNK: usize = 16 << 10;

/// A stream of an HTTP/2 client with its authorities made legal. It holds at most one chunk, one header block as it came
/// (64 KiB) and one written anew (256 KiB).
pub struct Authority<S> {
    inner: S,
    rewriter: Rewriter,
    /// Read from the socket; the part in `unread` is not yet looked at.
    chunk: Box<[u8]>,
    unread: std::ops::Range<usize>,
    /// To be handed to h2 before anything else, from `handed` on.
    output: Vec<u8>,
    handed: usize,
    ended: bool,
    broken: Option<Broken>,
}

impl<S> Authority<S> {
    /// Wraps an accepted connection from which nothing has been read.
    pub fn new(inner: S) -> Self {
        Self {
            inner,
            rewriter: Rewriter::new(),
            chunk: vec![0; CHUNK].into_boxed_slice(),
            unread: 0..0,
            output: Vec::new(),
            handed: 0,
            ended: false,
            broken: None,
        }
    }

    /// Moves into `buf` what has been looked at; says whether there was anything.
    fn hand_over(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let ready = &self.output[self.handed..];
        let mut count = ready.len().min(buf.remaining());
        buf.put_slice(&ready[..count]);
        self.handed += count;
        if self.handed == self.output.len() {
            self.handed = 0;
            self.output.clear();
            // A large block is rare; its room is given back.
            self.output.shrink_to(CHUNK);
            // The body of a frame that is not looked at goes from the chunk to `buf` without a stop.
            let passed = self.rewriter.pass(self.unread.len().min(buf.remaining()));
            buf.put_slice(&self.chunk[self.unread.start..self.unread.start + passed]);
            self.unread.start += passed;
            count += passed;
        }
        count > 0
    }

    /// Fills `buf` from what has been read from the socket.
    fn fill(&mut self, buf: &mut ReadBuf<'_>) -> Result<(), Broken> {
        while buf.remaining() > 0 {
            if !self.hand_over(buf) {
                if self.unread.is_empty() {
                    break;
                }
                let fresh = &self.chunk[self.unread.clone()];
                self.unread.start += self.rewriter.feed(fresh, &mut self.output)?;
            }
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Authority<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            let filled = match this.broken {
                Some(broken) => Err(broken),
                None => this.fill(buf),
            };
            this.broken = filled.err();
            // What was in order before the break still goes to h2.
            if buf.filled().len() > before || (this.ended && this.broken.is_none()) {
                return Poll::Ready(Ok(()));
            }
            if let Some(broken) = this.broken {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, broken)));
            }
            if this.rewriter.is_transparent() {
                return Pin::new(&mut this.inner).poll_read(cx, buf);
            }
            let mut chunk = ReadBuf::new(&mut this.chunk);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut chunk))?;
            this.unread = 0..chunk.filled().len();
            if this.unread.is_empty() {
                this.ended = true;
                this.rewriter.flush(&mut this.output);
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Authority<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

impl<S: Connected> Connected for Authority<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> S::ConnectInfo {
        self.inner.connect_info()
    }
}

impl<S> fmt::Debug for Authority<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("transparent", &self.rewriter.is_transparent()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
