//! Port-forward: connections of a client to ports of a pod.
//!
//! Over SPDY, directly or through a WebSocket, the client opens two streams for each connection, `data` and `error`, which
//! belong together by the header `requestID`. Text on the error stream says that the connection could not be made; its bare
//! end says that all is over. What goes wrong in a connection that was made resets its own streams and nothing else.
//! Over plain WebSocket there are two channels for each port of the request, made once.

mod pairs;
mod relay;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio_util::task::AbortOnDropHandle;

use crate::telemetry::chain;

use super::PortForwardRequest;
use super::activity::Activity;
use super::spdy;
use super::target::Target;
use super::websocket::channels::{self, Layout};
use pairs::{Pair, Pairs};

/// Connections of one client at a time; more are refused.
const MAX_CONNECTIONS: usize = 256;

/// Ports of one request over plain WebSocket: a channel's number is one byte, and a port needs two of them.
const MAX_PORTS: usize = 64;

/// Clocks of a session.
#[derive(Debug, Clone, Copy)]
pub struct Clocks {
    /// Without a byte in any connection for so long, the session ends.
    pub idle: Duration,
    /// Time from the first stream of a connection to the second.
    pub creation: Duration,
}

/// Serves a client until it goes, or nothing has moved for long.
pub async fn over_spdy<IO>(io: IO, request: PortForwardRequest, target: Arc<dyn Target>, clocks: Clocks)
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (session, mut incoming) = spdy::server(io, spdy::Limits::default());
    let activity = Activity::new();
    let mut pairs = Pairs::new(clocks.creation);
    // Dropped with this: a client that goes takes its connections along.
    let mut connections = FuturesUnordered::new();
    let sandbox: Arc<str> = request.sandbox_id.into();
    loop {
        tokio::select! {
            stream = incoming.next() => {
                let Some(stream) = stream else { break };
                activity.touch();
                if let Some(pair) = pairs.take(stream, MAX_CONNECTIONS.saturating_sub(connections.len())) {
                    let (sandbox, target, activity) = (sandbox.clone(), target.clone(), activity.clone());
                    let work = async move { connect(pair, &sandbox, &*target, &activity).await };
                    connections.push(AbortOnDropHandle::new(crate::task::spawn("port-forward", work)));
                }
            }
            Some(_) = connections.next() => {}
            () = pairs.expired() => {}
            () = activity.idle_for(clocks.idle) => {
                tracing::debug!("a port-forward was idle for too long");
                break;
            }
        }
    }
    drop(connections);
    session.close();
    session.closed().await;
}

/// One connection from its making to its end.
async fn connect(pair: Pair, sandbox: &str, target: &dyn Target, activity: &Activity) {
    let Pair { port, data, mut error } = pair;
    match target.port_forward(sandbox, port).await {
        Ok(tcp) => {
            // A fault of this connection is no fault of the session: it is not said on the error stream, at whose text
            // clients give up all of their connections.
            if let Err(fault) = relay::run(data, tcp, activity).await {
                tracing::debug!(port, %fault, "a forwarded connection broke");
            }
        }
        Err(fault) => {
            let text = format!("forwarding port {port}: {}", chain(&fault));
            tracing::debug!(error = %text, "a port could not be forwarded");
            // The client may have gone meanwhile.
            let _ = error.write_all(text.as_bytes()).await;
        }
    }
    let _ = error.shutdown().await;
}

/// The ports of a request over plain WebSocket: channel 2i carries the data of the i-th port, 2i+1 its errors, and the first
/// message on each is the port's number in two bytes, the low one first.
pub async fn over_websocket<IO>(
    io: IO,
    base64: bool,
    request: PortForwardRequest,
    target: Arc<dyn Target>,
    idle: Duration,
) where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let ports = &request.ports[..request.ports.len().min(MAX_PORTS)];
    let inputs = ports.iter().flat_map(|_| [true, false]).collect();
    let (readers, handle) = channels::open(io, &Layout { inputs, base64, closes: false });
    let activity = Activity::new();
    let mut connections = FuturesUnordered::new();
    for ((port, reader), channel) in ports.iter().zip(readers.into_iter().flatten()).zip((0_u8..).step_by(2)) {
        for channel in [channel, channel + 1] {
            handle.send(channel, Bytes::copy_from_slice(&port.to_le_bytes())).await;
        }
        let data = tokio::io::join(reader, handle.writer(channel));
        let mut error = handle.writer(channel + 1);
        let (port, sandbox) = (*port, request.sandbox_id.as_str());
        let (target, activity) = (&target, &activity);
        connections.push(async move {
            match target.port_forward(sandbox, port).await {
                Ok(tcp) => {
                    if let Err(fault) = relay::run(data, tcp, activity).await {
                        tracing::debug!(port, %fault, "a forwarded connection broke");
                    }
                }
                Err(fault) => {
                    let text = format!("forwarding port {port}: {}", chain(&fault));
                    let _ = error.write_all(text.as_bytes()).await;
                }
            }
        });
    }
    tokio::select! {
        () = async { while connections.next().await.is_some() {} } => {
            // All ports are done with; the client hears it by the end.
            let _ = tokio::time::timeout(FAREWELL, async { drop(connections); handle.close().await }).await;
        }
        () = handle.ended() => {}
        () = activity.idle_for(idle) => tracing::debug!("a port-forward was idle for too long"),
    }
}

/// How long a client may take to fetch what is left.
const FAREWELL: Duration = Duration::from_secs(60);
