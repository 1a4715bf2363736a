//! SPDY/3.1 as the clients of Kubernetes speak it after an HTTP upgrade: many streams of bytes over one connection. Written
//! from the protocol (SPDY protocol, draft 3.1); no library that fits is to be had.
//!
//! One task owns the connection (`connection`); it and the handles change the `table` of streams under one short lock.
//! Frames (`frame`), header blocks (`headers`) and flow control (`window`) are plain functions and values. All that a
//! peer can make a session cost is in [`Limits`].
//!
//! ```text
//!   connection ──▶ digest ──▶ Table ──▶ Stream (AsyncRead)
//!       ▲                       │
//!       └──────── collect ◀─────┴──────  Stream (AsyncWrite)
//! ```

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

mod connection;
mod dictionary;
mod error;
mod frame;
mod headers;
mod limits;
mod session;
mod stream;
mod table;
#[cfg(test)]
mod tests;
mod window;

pub use error::SpdyError;
pub use frame::Status;
pub use limits::Limits;
pub use session::{Incoming, Session};
pub use stream::{IncomingStream, Stream};
use table::{Role, Table};

/// Takes over a connection as its server, after the upgrade. The connection is a TCP or TLS stream, or a WebSocket that
/// carries SPDY. Whether a peer without a trace is still there is for TCP's keepalive to find out.
///
/// Must be called inside a tokio runtime with time.
pub fn server<IO>(io: IO, limits: Limits) -> (Session, Incoming)
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    begin(io, Role::Server, limits)
}

/// The client's side of the same, for tests: no client of ours exists.
pub fn client<IO>(io: IO, limits: Limits) -> (Session, Incoming)
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    begin(io, Role::Client, limits)
}

fn begin<IO>(io: IO, role: Role, limits: Limits) -> (Session, Incoming)
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let shared = Arc::new(session::Shared::new(Table::new(role, limits.clone())));
    let connection = connection::Connection::new(io, shared.clone(), limits);
    crate::task::spawn("spdy connection", connection.run());
    (Session(shared.clone()), Incoming(shared))
}
