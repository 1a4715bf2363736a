//! The streaming server: exec, attach and port-forward over SPDY/3.1 and WebSocket. An edge like [`crate::rpc`]: its
//! protocols stop here, and the container room sees [`crate::container::session::SessionStreams`].
//!
//! ```text
//!   RPC Exec ──▶ token ──▶ URL ─ ─ ─ ▶ client
//!                                        │ GET or POST /exec/<token>
//!   server (HTTP/1.1, TLS) ◀─────────────┘
//!     └▶ protocol (which one?) ──▶ spdy | websocket ──▶ remote ──▶ session ──▶ container
//!                                                  └──▶ portforward ──▶ pod
//! ```
//!
//! Whoever may call the RPC is who may use its URL: the token in it is the permission, good once, for one minute, for that
//! request only. A session ends with its client, at its own end, after `streaming.idle_timeout` without a byte, and with
//! the daemon: unlike containers, sessions do not survive a restart.

mod activity;
mod connection;
mod portforward;
mod protocol;
mod remote;
mod resize;
mod server;
mod session;
pub mod spdy;
mod target;
mod tls;
mod token;
mod url;
mod verdict;
pub(crate) mod websocket;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use token::Tokens;
use url::{Base, Kind};

pub use server::{MAX_PENDING, MAX_SESSIONS};
pub use target::{Outcome, Target, TargetError};
pub use tls::{TlsError, TlsFiles};
pub use token::{MAX_TOKENS, TOKEN_TTL};

/// How to serve.
#[derive(Debug, Clone)]
pub struct StreamingOptions {
    pub listen: SocketAddr,
    /// Host in URLs; empty: the address of `listen`.
    pub advertise: String,
    pub tls: Option<TlsFiles>,
    pub idle_timeout: Duration,
    pub creation_timeout: Duration,
    /// How long a URL is good for: [`TOKEN_TTL`], but in tests.
    pub token_ttl: Duration,
}

/// Why there is no streaming server, or no URL.
#[derive(Debug, thiserror::Error)]
pub enum StreamingError {
    #[error("streaming.listen {address} cannot be opened")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("TLS of the streaming server")]
    Tls(#[from] TlsError),
    #[error(transparent)]
    TooManyTokens(#[from] token::Full),
}

/// Which streams a session has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streams {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// A command that may be run.
#[derive(Debug, Clone)]
pub struct ExecRequest {
    pub container_id: String,
    pub command: Vec<String>,
    pub streams: Streams,
}

/// A container that may be attached to.
#[derive(Debug, Clone)]
pub struct AttachRequest {
    pub container_id: String,
    pub streams: Streams,
}

/// A pod whose ports may be forwarded.
#[derive(Debug, Clone)]
pub struct PortForwardRequest {
    pub sandbox_id: String,
    /// For plain WebSocket only; over SPDY the client names the port of each connection.
    pub ports: Vec<u16>,
}

/// What a token stands for.
#[derive(Debug)]
enum Ticket {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward(PortForwardRequest),
}

struct Shared {
    tokens: Tokens<Ticket>,
    sessions: Arc<Semaphore>,
    tls: ArcSwapOption<TlsAcceptorKept>,
    target: Arc<dyn Target>,
    idle: Duration,
    creation: Duration,
}

struct TlsAcceptorKept(TlsAcceptor);

impl Shared {
    fn acceptor(&self) -> Option<TlsAcceptor> {
        self.tls.load().as_ref().map(|kept| kept.0.clone())
    }
}

/// The server's handle. The server goes on when it is dropped: it lives as long as the daemon.
pub struct Streaming {
    shared: Arc<Shared>,
    base: Base,
    address: SocketAddr,
    files: Option<TlsFiles>,
}

impl std::fmt::Debug for Streaming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streaming").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Streaming {
    /// Opens the port and serves.
    ///
    /// # Errors
    /// When the port cannot be opened or the certificates cannot be used.
    pub async fn start(options: StreamingOptions, target: Arc<dyn Target>) -> Result<Self, StreamingError> {
        let acceptor = match &options.tls {
            Some(files) => Some(Arc::new(TlsAcceptorKept(read_tls(files.clone()).await?))),
            None => None,
        };
        let failed = |source| StreamingError::Listen { address: options.listen, source };
        let listener = TcpListener::bind(options.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let base = Base::new(address, &options.advertise, options.tls.is_some());
        let client_certificates = options.tls.as_ref().is_some_and(|files| files.client_ca.is_some());
        if !address.ip().is_loopback() && !client_certificates {
            tracing::warn!(
                %address,
                "the streaming server can be reached from other machines and asks for no client certificates: \
                 only the one-time tokens in its URLs guard it (streaming.tls_client_ca)"
            );
        }
        let shared = Arc::new(Shared {
            tokens: Tokens::new(options.token_ttl, MAX_TOKENS),
            sessions: Arc::new(Semaphore::new(MAX_SESSIONS)),
            tls: ArcSwapOption::new(acceptor),
            target,
            idle: options.idle_timeout,
            creation: options.creation_timeout,
        });
        crate::task::spawn("streaming-server", server::serve(listener, shared.clone()));
        Ok(Self { shared, base, address, files: options.tls })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL for running a command.
    ///
    /// # Errors
    /// [`StreamingError::TooManyTokens`].
    pub fn exec(&self, request: ExecRequest) -> Result<String, StreamingError> {
        self.issue(Kind::Exec, Ticket::Exec(request))
    }

    /// The URL for attaching.
    ///
    /// # Errors
    /// [`StreamingError::TooManyTokens`].
    pub fn attach(&self, request: AttachRequest) -> Result<String, StreamingError> {
        self.issue(Kind::Attach, Ticket::Attach(request))
    }

    /// The URL for forwarding ports.
    ///
    /// # Errors
    /// [`StreamingError::TooManyTokens`].
    pub fn port_forward(&self, request: PortForwardRequest) -> Result<String, StreamingError> {
        self.issue(Kind::PortForward, Ticket::PortForward(request))
    }

    /// Reads the TLS files anew, for connections from now on. Without TLS nothing is done.
    ///
    /// # Errors
    /// When they cannot be used; the old ones stay in force.
    pub async fn reload(&self) -> Result<(), StreamingError> {
        if let Some(files) = &self.files {
            let acceptor = read_tls(files.clone()).await?;
            self.shared.tls.store(Some(Arc::new(TlsAcceptorKept(acceptor))));
        }
        Ok(())
    }

    fn issue(&self, kind: Kind, ticket: Ticket) -> Result<String, StreamingError> {
        let token = self.shared.tokens.issue(kind, ticket)?;
        Ok(self.base.session(kind, &token))
    }
}

async fn read_tls(files: TlsFiles) -> Result<TlsAcceptor, TlsError> {
    crate::task::blocking(move || tls::acceptor(&files)).await
}

impl TlsFiles {
    /// Of configured paths; empty ones are not set. Without a certificate there is no TLS.
    #[must_use]
    pub fn of(cert: &std::path::Path, key: &std::path::Path, client_ca: &std::path::Path) -> Option<Self> {
        let set = |path: &std::path::Path| (!path.as_os_str().is_empty()).then(|| PathBuf::from(path));
        Some(Self { cert: set(cert)?, key: set(key)?, client_ca: set(client_ca) })
    }
}

#[cfg(test)]
mod tests;
