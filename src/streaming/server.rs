//! The HTTP side: connections, their clocks and caps, and the way from a token to a session.
//!
//! A connection is *pending* until it has shown a token. Pending ones have little time and few bytes; when there are too
//! many, the oldest goes, so that clients that say nothing cannot keep out those that do (CVE-2020-8551). After the upgrade
//! it is a session, which has its own cap and clocks. Every answer but an upgrade ends its connection, and none is a
//! redirect (CVE-2020-8559).

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;

use super::connection::{Socket, Upgraded};
use super::protocol::{Agreement, Mode, Refusal, negotiate};
use super::session::{self, Remote};
use super::url::{self, Kind};
use super::websocket::tunnel::Tunnel;
use super::{Shared, Ticket, portforward, remote};

/// Connections that have not shown a token yet.
pub const MAX_PENDING: usize = 256;

/// Sessions at a time, over all containers and pods. So there are never more than `MAX_PENDING + MAX_SESSIONS` connections:
/// whatever is neither has been closed. No cap is set on those of one address, since all come from the API server's.
pub const MAX_SESSIONS: usize = 1024;

/// How long a client may take for its TLS handshake, and then again for the head of its request.
const HEAD_CLOCK: Duration = Duration::from_secs(10);

/// Bytes of a request's head, and its header lines.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

/// Pause after a connection could not be accepted: without descriptors, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The time between two warnings of a flood.
const WARN_PAUSE: Duration = Duration::from_secs(60);

/// Takes connections for as long as the daemon lives.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut pending: VecDeque<AbortHandle> = VecDeque::new();
    let mut warned = None;
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a streaming connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if pending.len() >= MAX_PENDING {
            pending.retain(|connection| !connection.is_finished());
        }
        if pending.len() >= MAX_PENDING
            && let Some(oldest) = pending.pop_front()
        {
            // A flood of connections is not to become a flood of lines.
            if warned.is_none_or(|at: Instant| at.elapsed() >= WARN_PAUSE) {
                tracing::warn!("too many streaming connections without a token: the oldest are closed");
                warned = Some(Instant::now());
            }
            oldest.abort();
        }
        let task = crate::task::spawn("streaming", connection(stream, peer, shared.clone()));
        pending.push_back(task.abort_handle());
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>) {
    if let Err(error) = tune(&stream) {
        tracing::debug!(%peer, %error, "a streaming connection ended before it began");
        return;
    }
    let socket = match shared.acceptor() {
        None => Socket::Plain(stream),
        Some(acceptor) => match tokio::time::timeout(HEAD_CLOCK, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => Socket::Tls(Box::new(stream)),
            Ok(Err(error)) => return tracing::debug!(%peer, %error, "the TLS handshake failed"),
            Err(_) => return tracing::debug!(%peer, "the TLS handshake takes too long"),
        },
    };
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(answer(request, &shared)) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_CLOCK)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
    if let Err(error) = served.await {
        tracing::debug!(%peer, error = %crate::telemetry::chain(&error), "a streaming connection failed");
    }
}

/// Small messages go at once, and a client that has vanished without a word is found out in some minutes.
fn tune(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    rustix::net::sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
    rustix::net::sockopt::set_tcp_keepintvl(stream, Duration::from_secs(15))?;
    rustix::net::sockopt::set_tcp_keepcnt(stream, 8)?;
    Ok(())
}

type Answer = Response<Full<Bytes>>;

fn answer(request: Request<Incoming>, shared: &Arc<Shared>) -> Answer {
    match begin(request, shared) {
        Ok(answer) => answer,
        Err(refusal) => {
            tracing::debug!(status = %refusal.status, why = refusal.message, "a streaming request is refused");
            let mut answer = Response::new(Full::from(format!("{}\n", refusal.message)));
            *answer.status_mut() = refusal.status;
            let text = HeaderValue::from_static("text/plain; charset=utf-8");
            answer.headers_mut().insert(CONTENT_TYPE, text);
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            for (name, value) in refusal.headers {
                answer.headers_mut().append(name, value);
            }
            answer
        }
    }
}

fn begin(mut request: Request<Incoming>, shared: &Arc<Shared>) -> Result<Answer, Refusal> {
    let method = request.method().clone();
    if method != Method::GET && method != Method::POST {
        let allow = vec![(ALLOW, HeaderValue::from_static("GET, POST"))];
        return Err(Refusal {
            headers: allow,
            ..Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "GET or POST is wanted")
        });
    }
    let unknown =
        || Refusal::new(StatusCode::NOT_FOUND, "no such session; a token is good for one use within a minute");
    let (kind, token) = url::parse_path(request.uri().path()).ok_or_else(unknown)?;
    // Before the token is spent: the client may come again.
    let permit = shared.sessions.clone().try_acquire_owned().map_err(|_| {
        Refusal::new(StatusCode::TOO_MANY_REQUESTS, format!("{MAX_SESSIONS} sessions are open already"))
    })?;
    let ticket = shared.tokens.take(kind, token).ok_or_else(unknown)?;
    let Agreement { mode, reply } = negotiate(kind, &method, request.headers())?;
    tracing::debug!(kind = kind.word(), ?mode, "a session begins");
    let upgrade = hyper::upgrade::on(&mut request);
    let owner = shared.clone();
    crate::task::spawn("session", async move {
        match upgrade.await {
            Ok(upgraded) => begin_session(upgraded, mode, ticket, permit, &owner).await,
            Err(error) => tracing::debug!(%error, "the client went away during the upgrade"),
        }
    });
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().extend(reply);
    Ok(answer)
}

async fn begin_session(
    upgraded: hyper::upgrade::Upgraded,
    mode: Mode,
    ticket: Ticket,
    permit: OwnedSemaphorePermit,
    shared: &Shared,
) {
    let Ok(parts) = upgraded.downcast::<TokioIo<Socket>>() else {
        return tracing::error!("a connection came back from its upgrade as another type");
    };
    let io = Upgraded::new(parts.io.into_inner(), parts.read_buf, permit);
    let kind = ticket.kind();
    // Each session is a large state machine; it is not to be copied about.
    Box::pin(run(io, mode, ticket, shared)).await;
    tracing::debug!(kind = kind.word(), "the session is over");
}

async fn run(io: Upgraded, mode: Mode, ticket: Ticket, shared: &Shared) {
    let clocks = portforward::Clocks { idle: shared.idle, creation: shared.creation };
    let (target, idle) = (shared.target.clone(), shared.idle);
    let remote = match (mode, ticket) {
        (Mode::SpdyForward, Ticket::PortForward(request)) => {
            return portforward::over_spdy(io, request, target, clocks).await;
        }
        (Mode::Tunnel, Ticket::PortForward(request)) => {
            return portforward::over_spdy(Tunnel::new(io), request, target, clocks).await;
        }
        (Mode::WebSocketForward { base64 }, Ticket::PortForward(request)) => {
            return portforward::over_websocket(io, base64, request, target, idle).await;
        }
        (_, Ticket::Exec(request)) => Remote::Exec(request),
        (_, Ticket::Attach(request)) => Remote::Attach(request),
        // Negotiation offers nothing else for a port-forward.
        (_, Ticket::PortForward(_)) => return,
    };
    let wanted = remote.streams();
    let (version, opened) = match mode {
        Mode::Spdy(version) => (version, remote::over_spdy(io, version, wanted, clocks.creation).await),
        Mode::WebSocket { version, base64 } => (version, Ok(remote::over_websocket(io, version, base64, wanted).await)),
        _ => return,
    };
    match opened {
        Ok((ends, carrier)) => session::run(remote, version, ends, carrier, &*target, idle).await,
        Err(error) => tracing::debug!(%error, "a session did not begin"),
    }
}

impl Ticket {
    fn kind(&self) -> Kind {
        match self {
            Self::Exec(_) => Kind::Exec,
            Self::Attach(_) => Kind::Attach,
            Self::PortForward(_) => Kind::PortForward,
        }
    }
}
