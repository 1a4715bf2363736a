//! PortForward: connections to a port of a pod, from inside of its network namespace.
//!
//! A socket belongs to the namespace of the thread that makes it, whoever connects it later. So a short-lived thread enters
//! the namespace to make sockets, and the connecting is the daemon's, without a thread that waits and without a helper
//! process in the pod.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::net::{TcpSocket, TcpStream};

use cri_proto::runtime::v1::NamespaceMode;

use super::{Paths, PodError, Pods, namespace_options};
use crate::state::SandboxPhase;
use crate::sys::namespaces::enter_net;

/// How long a connection may take, both families together.
const CONNECT_CLOCK: Duration = Duration::from_secs(10);

impl Pods {
    /// Connects to a port of localhost in the network namespace of a READY pod, which may be the host's: 127.0.0.1 first,
    /// then ::1.
    ///
    /// # Errors
    /// [`PodError::NotReady`]; [`PodError::PortRefused`] when nobody listens; [`PodError::PortTimeout`] after 10 s;
    /// [`PodError::Port`] for anything else that the kernel refuses.
    pub async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<TcpStream, PodError> {
        let pod = self.find(sandbox_id)?;
        let record = pod.record();
        let id = || record.id.clone();
        if record.phase != SandboxPhase::Ready {
            return Err(PodError::NotReady { id: id() });
        }
        let on_host = namespace_options(&record.config).network() == NamespaceMode::Node;
        let sockets = if on_host {
            Sockets::open()
        } else {
            let namespace = Paths::new(&self.containers().resources().state_dir, &record.id).namespaces.join("net");
            crate::task::blocking(move || enter_net(&namespace, Sockets::open))
                .await
                .map_err(|source| PodError::PortNamespace { id: id(), source })?
        };
        match tokio::time::timeout(CONNECT_CLOCK, sockets.connect(port)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) if source.kind() == io::ErrorKind::ConnectionRefused => {
                Err(PodError::PortRefused { id: id(), port })
            }
            Ok(Err(source)) => Err(PodError::Port { id: id(), port, source }),
            Err(_) => Err(PodError::PortTimeout { id: id(), port, after: CONNECT_CLOCK }),
        }
    }
}

/// Sockets of one network namespace, not connected yet, in the order in which they are tried.
struct Sockets(Vec<(IpAddr, io::Result<OwnedFd>)>);

impl Sockets {
    /// In the namespace of the calling thread.
    fn open() -> Self {
        let open = |family| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
        };
        Self(vec![
            (Ipv4Addr::LOCALHOST.into(), open(AddressFamily::INET)),
            (Ipv6Addr::LOCALHOST.into(), open(AddressFamily::INET6)),
        ])
    }

    /// The first that connects. Of the errors the first one counts: 127.0.0.1 is what a client is told about.
    async fn connect(self, port: u16) -> io::Result<TcpStream> {
        let mut first = None;
        for (address, socket) in self.0 {
            let tried = match socket {
                Ok(socket) => connect(socket, SocketAddr::new(address, port)).await,
                Err(error) => Err(error),
            };
            match tried {
                Ok(stream) => return Ok(stream),
                Err(error) => _ = first.get_or_insert(error),
            }
        }
        Err(first.unwrap_or_else(|| io::ErrorKind::ConnectionRefused.into()))
    }
}

async fn connect(socket: OwnedFd, address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpSocket::from_std_stream(std::net::TcpStream::from(socket)).connect(address).await?;
    // A port of the ephemeral range on which nobody listens may be the very one that the kernel gave to this socket: TCP
    // then connects it with itself (RFC 9293, simultaneous open).
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    stream.set_nodelay(true)?;
    Ok(stream)
}
