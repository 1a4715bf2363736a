//! The streams of exec and attach, over SPDY and over WebSocket.
//!
//! SPDY: the client opens a stream for each of error, stdin, stdout, stderr and resize that the request asked for, with a
//! header `streamType`; the session begins when all are there. WebSocket: channels 0 stdin, 1 stdout, 2 stderr, 3 error,
//! 4 resize, all there from the start.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::container::session::{Reader, Writer};

use super::Streams;
use super::connection::Upgraded;
use super::protocol::Version;
use super::session::{Carrier, Ends};
use super::spdy::{self, IncomingStream};
use super::websocket::channels::{self, Layout};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// Why no session began.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the client did not open all of its streams within {} s; {missing} are missing", after.as_secs())]
    Late { missing: String, after: Duration },
    #[error("the client went away before its streams were open")]
    Gone,
}

/// One stream of a session, by what it carries.
const NAMES: [&str; 5] = ["error", "stdin", "stdout", "stderr", "resize"];

/// Waits for the streams that a request asked for. What is not asked for, or is opened twice, is refused.
pub async fn over_spdy(
    io: Upgraded,
    version: Version,
    wanted: Streams,
    clock: Duration,
) -> Result<(Ends, Carrier), OpenError> {
    let (session, mut incoming) = spdy::server(io, spdy::Limits::default());
    let asked = [true, wanted.stdin, wanted.stdout, wanted.stderr, wanted.tty && version.has_resize()];
    let mut found: [Option<Shared>; 5] = Default::default();
    let missing = |found: &[Option<Shared>; 5]| {
        let pairs = NAMES.iter().zip(asked.iter().zip(found));
        pairs.filter(|(_, (asked, found))| **asked && found.is_none()).map(|(name, _)| *name).collect::<Vec<_>>()
    };
    let collect = async {
        while !missing(&found).is_empty() {
            let stream = incoming.next().await.ok_or(OpenError::Gone)?;
            let kind = stream.header("streamType").unwrap_or_default();
            match NAMES.iter().position(|name| *name == kind) {
                Some(index) if asked[index] && found[index].is_none() => {
                    found[index] = Some(Shared::new(stream.accept()))
                }
                _ => refuse_late(stream),
            }
        }
        Ok(())
    };
    match tokio::time::timeout(clock, collect).await {
        Ok(collected) => collected?,
        Err(_) => return Err(OpenError::Late { missing: missing(&found).join(", "), after: clock }),
    }
    // Each of them ends with a FIN, which follows the reply that its opener waits for. A stream that is dropped is reset, and
    // a command that fails at once could have its terminal's sizes reset before that reply: clients take that for a refusal.
    let closers = found[1..].iter().flatten().map(|stream| Box::new(stream.clone()) as Writer).collect();
    let [error, stdin, stdout, stderr, resize] = found;
    let writer = |stream: Option<Shared>| stream.map(|stream| Box::new(stream) as Writer);
    let reader = |stream: Option<Shared>| stream.map(|stream| Box::new(stream) as Reader);
    let ends = Ends {
        stdin: reader(stdin),
        stdout: writer(stdout),
        stderr: writer(stderr),
        resize: reader(resize),
        error: writer(error).ok_or(OpenError::Gone)?,
        closers,
    };
    Ok((ends, Carrier::Spdy(session, incoming)))
}

/// Refuses a stream that belongs to no session.
pub fn refuse_late(stream: IncomingStream) {
    let kind: String = stream.header("streamType").unwrap_or("(none)").chars().take(32).collect();
    tracing::debug!(?kind, "the client opens a stream that was not asked for");
    stream.refuse();
}

/// Divides a WebSocket connection into the streams that a request asked for.
pub async fn over_websocket(io: Upgraded, version: Version, base64: bool, wanted: Streams) -> (Ends, Carrier) {
    let inputs = vec![wanted.stdin, false, false, false, wanted.tty];
    let layout = Layout { inputs, base64, closes: version >= Version::V5 };
    let (mut readers, handle) = channels::open(io, &layout);
    let mut reader = |channel: u8| readers[usize::from(channel)].take().map(|reader| Box::new(reader) as Reader);
    let (stdin, resize) = (reader(STDIN), reader(RESIZE));
    let writer = |channel: u8| Box::new(handle.writer(channel)) as Writer;
    let ends = Ends {
        stdin,
        stdout: wanted.stdout.then(|| writer(STDOUT)),
        stderr: wanted.stderr.then(|| writer(STDERR)),
        resize,
        error: writer(ERROR),
        closers: Vec::new(),
    };
    // An empty message tells clients that the session has begun; they are used to it.
    let first = if wanted.stdout {
        STDOUT
    } else if wanted.stderr {
        STDERR
    } else {
        ERROR
    };
    handle.send(first, Bytes::new()).await;
    (ends, Carrier::WebSocket(handle))
}

/// A SPDY stream with two owners: the container room, and the session, which ends it in the right order. Never contended.
#[derive(Debug, Clone)]
struct Shared(Arc<Mutex<spdy::Stream>>);

impl Shared {
    fn new(stream: spdy::Stream) -> Self {
        Self(Arc::new(Mutex::new(stream)))
    }

    fn with<T>(&self, work: impl FnOnce(Pin<&mut spdy::Stream>) -> T) -> T {
        work(Pin::new(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl AsyncRead for Shared {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Shared {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.with(|stream| stream.poll_write(cx, data))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_shutdown(cx))
    }
}
