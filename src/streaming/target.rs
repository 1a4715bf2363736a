//! What sessions lead to: containers and pods, or whatever a test puts in their place.

use std::future::Future;
use std::pin::Pin;

use tokio::net::TcpStream;

use crate::container::ContainerError;
use crate::container::session::SessionStreams;
use crate::pod::{PodError, Pods};

/// The outcome of a session. Dropping it means that the client has gone away.
pub type Outcome<'a, T> = Pin<Box<dyn Future<Output = Result<T, TargetError>> + Send + 'a>>;

/// Why a session failed.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error(transparent)]
    Pod(#[from] PodError),
}

/// Where sessions go.
pub trait Target: Send + Sync + 'static {
    /// Runs a command in a container and returns its exit code.
    fn exec<'a>(&'a self, id: &'a str, command: Vec<String>, tty: bool, streams: SessionStreams) -> Outcome<'a, i32>;

    /// Follows a container until its output ends.
    fn attach<'a>(&'a self, id: &'a str, streams: SessionStreams) -> Outcome<'a, ()>;

    /// Connects to a port inside of a pod.
    fn port_forward<'a>(&'a self, sandbox: &'a str, port: u16) -> Outcome<'a, TcpStream>;
}

impl Target for Pods {
    fn exec<'a>(&'a self, id: &'a str, command: Vec<String>, tty: bool, streams: SessionStreams) -> Outcome<'a, i32> {
        Box::pin(async move { Ok(self.containers().exec_session(id, command, tty, streams).await?) })
    }

    fn attach<'a>(&'a self, id: &'a str, streams: SessionStreams) -> Outcome<'a, ()> {
        Box::pin(async move { Ok(self.containers().attach(id, streams).await?) })
    }

    fn port_forward<'a>(&'a self, sandbox: &'a str, port: u16) -> Outcome<'a, TcpStream> {
        Box::pin(async move { Ok(Self::port_forward(self, sandbox, port).await?) })
    }
}
