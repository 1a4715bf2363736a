//! Two streams that make one connection.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::spdy::{self, IncomingStream};

/// Both streams of a connection.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) port: u16,
    pub(super) data: spdy::Stream,
    pub(super) error: spdy::Stream,
}

/// Connections of which one stream is there.
#[derive(Debug)]
pub(super) struct Pairs {
    halves: HashMap<String, Half>,
    clock: Duration,
}

#[derive(Debug)]
struct Half {
    ends: Instant,
    port: u16,
    kind: Kind,
    stream: spdy::Stream,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Error,
}

impl Pairs {
    /// None yet. A half whose other half does not come within `clock` is reset.
    pub(super) fn new(clock: Duration) -> Self {
        Self { halves: HashMap::new(), clock }
    }

    /// Takes a stream of the client, and gives the connection when it is the second one. A stream that makes no sense is
    /// refused, and so is one past `room` connections.
    pub(super) fn take(&mut self, stream: IncomingStream, room: usize) -> Option<Pair> {
        let parsed = match parse(&stream) {
            Ok(parsed) => parsed,
            Err(why) => {
                tracing::debug!(why, "a stream of a port-forward is refused");
                stream.refuse();
                return None;
            }
        };
        let (id, port, kind) = parsed;
        let Some(half) = self.halves.remove(&id) else {
            if self.halves.len() >= room {
                tracing::debug!(port, "a stream of a port-forward is refused: too many connections");
                stream.refuse();
                return None;
            }
            let half = Half { ends: Instant::now() + self.clock, port, kind, stream: stream.accept() };
            self.halves.insert(id, half);
            return None;
        };
        if half.kind == kind || half.port != port {
            tracing::debug!(port, "a stream of a port-forward is refused: it does not fit its other half");
            stream.refuse();
            self.halves.insert(id, half);
            return None;
        }
        let (first, second) = (half.stream, stream.accept());
        let (data, error) = if kind == Kind::Error { (first, second) } else { (second, first) };
        Some(Pair { port, data, error })
    }

    /// Returns when a half has waited for too long; it is gone then.
    pub(super) async fn expired(&mut self) {
        let Some(first) = self.halves.values().map(|half| half.ends).min() else {
            return std::future::pending().await;
        };
        tokio::time::sleep_until(first).await;
        self.halves.retain(|_, half| half.ends > first);
    }
}

/// Longest `requestID`, in bytes. Clients count.
const MAX_REQUEST_ID: usize = 64;

fn parse(stream: &IncomingStream) -> Result<(String, u16, Kind), &'static str> {
    let kind = match stream.header("streamType") {
        Some("data") => Kind::Data,
        Some("error") => Kind::Error,
        _ => return Err("its streamType is neither data nor error"),
    };
    let port = stream.header("port").and_then(|port| port.parse().ok()).filter(|port| *port != 0);
    let port = port.ok_or("its port is no number from 1 to 65535")?;
    match stream.header("requestID") {
        Some(id) if !id.is_empty() && id.len() <= MAX_REQUEST_ID => Ok((id.to_owned(), port, kind)),
        _ => Err("its requestID is missing or longer than 64 bytes"),
    }
}
