//! A session of exec or attach, whatever protocol carries it.
//!
//! The order at the end is what clients rely on: all output, the end of the output streams, the verdict on the error stream
//! and its end, and only then the end of the connection.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;

use crate::container::session::{RESIZE_QUEUE, Reader, SessionStreams, Writer};
use crate::telemetry::chain;

use super::activity::{Activity, Counted};
use super::protocol::Version;
use super::resize;
use super::target::{Target, TargetError};
use super::verdict::Verdict;
use super::websocket::channels::Handle;
use super::{AttachRequest, ExecRequest, Streams};
use super::{remote, spdy};

/// How long a client may take to fetch what is left, once the session itself has ended.
const FINISH_LIMIT: Duration = Duration::from_secs(60);

/// What is run.
#[derive(Debug)]
pub enum Remote {
    Exec(ExecRequest),
    Attach(AttachRequest),
}

impl Remote {
    /// The streams that the request asked for.
    pub fn streams(&self) -> Streams {
        match self {
            Self::Exec(request) => request.streams,
            Self::Attach(request) => request.streams,
        }
    }
}

/// The client's ends, as a protocol has made them.
pub struct Ends {
    pub stdin: Option<Reader>,
    pub stdout: Option<Writer>,
    pub stderr: Option<Writer>,
    pub resize: Option<Reader>,
    pub error: Writer,
    /// Streams that are to be shut down before the verdict, for those protocols in which the client sees that.
    pub closers: Vec<Writer>,
}

/// What carries a session.
pub enum Carrier {
    Spdy(spdy::Session, spdy::Incoming),
    WebSocket(Handle),
}

impl Carrier {
    /// Returns when the client has gone. Streams that it still opens are refused.
    async fn gone(&mut self) {
        match self {
            Self::Spdy(session, incoming) => {
                while let Some(stream) = incoming.next().await {
                    remote::refuse_late(stream);
                }
                session.closed().await;
            }
            Self::WebSocket(handle) => handle.ended().await,
        }
    }

    /// Delivers what waits, says goodbye and returns when the client has done so too.
    async fn close(self) {
        match self {
            Self::Spdy(session, _incoming) => {
                session.close();
                session.closed().await;
            }
            Self::WebSocket(handle) => handle.close().await,
        }
    }
}

/// Runs a session to its end, the client's or its own.
pub async fn run(
    remote: Remote,
    version: Version,
    ends: Ends,
    mut carrier: Carrier,
    target: &dyn Target,
    idle: Duration,
) {
    let activity = Activity::new();
    let Ends { stdin, stdout, stderr, resize, mut error, closers } = ends;
    let (sizes, resizes) = mpsc::channel(RESIZE_QUEUE);
    let streams = SessionStreams {
        stdin: stdin.map(|stdin| Box::new(Counted::new(stdin, &activity)) as Reader),
        stdout: stdout.map(|stdout| counted(stdout, &activity)),
        stderr: stderr.map(|stderr| counted(stderr, &activity)),
        resize: resizes,
    };
    let resizing = async move {
        if let Some(resize) = resize {
            resize::forward(resize, sizes).await;
        }
        std::future::pending::<()>().await;
    };
    let verdict = tokio::select! {
        verdict = perform(&remote, streams, target) => verdict,
        () = carrier.gone() => {
            tracing::debug!("the client went away before the session's end");
            return;
        }
        () = activity.idle_for(idle) => {
            Verdict::Failed(format!("nothing was sent or received for {} s (streaming.idle_timeout)", idle.as_secs()))
        }
        () = resizing => return,
    };
    tracing::debug!(?verdict, "the session has ended");
    let finish = async {
        for mut closer in closers {
            // A stream that the client has reset needs no end.
            let _ = closer.shutdown().await;
        }
        let text = verdict.encode(version);
        if error.write_all(&text).await.is_ok() {
            let _ = error.shutdown().await;
        }
        carrier.close().await;
    };
    if tokio::time::timeout(FINISH_LIMIT, finish).await.is_err() {
        tracing::debug!("the client did not fetch the session's end");
    }
}

async fn perform(remote: &Remote, streams: SessionStreams, target: &dyn Target) -> Verdict {
    let failed = |what: &str, error: TargetError| {
        let text = format!("{what}: {}", chain(&error));
        tracing::debug!(error = %text, "a session failed");
        Verdict::Failed(text)
    };
    match remote {
        Remote::Exec(request) => {
            let command = request.command.clone();
            match target.exec(&request.container_id, command, request.streams.tty, streams).await {
                Ok(code) => Verdict::of_exit(code),
                Err(error) => failed("exec", error),
            }
        }
        Remote::Attach(request) => match target.attach(&request.container_id, streams).await {
            Ok(()) => Verdict::Success,
            Err(error) => failed("attach", error),
        },
    }
}

fn counted(writer: Writer, activity: &Arc<Activity>) -> Writer {
    Box::new(Counted::new(writer, activity))
}
