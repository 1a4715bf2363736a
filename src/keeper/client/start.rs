//! Finding a living keeper, or bringing one to life.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::KeeperOptions;
use crate::keeper::KeeperError;
use crate::keeper::protocol::{Body, Op, Reply, Request, VERSION};
use crate::sys::exec::{self, Readiness};
use crate::sys::reactor;
use crate::sys::seqpacket::{self, Datagram, MAX_BYTES};

/// The first answer, and the first line of a new keeper, come within this time or not at all.
const GREETING: Duration = Duration::from_secs(5);

/// A keeper that has answered.
#[derive(Debug)]
pub struct Connected {
    pub socket: Socket,
    pub pid: i32,
    /// Tells it from the one before.
    pub instance: String,
    /// It runs programs in mount namespaces that it is given.
    pub mount_namespaces: bool,
}

/// The connection.
#[derive(Debug)]
pub struct Socket(AsyncFd<OwnedFd>);

impl Socket {
    /// Receives one datagram, `None` at the end. May be dropped at any point without losing one.
    pub async fn receive(&self) -> io::Result<Option<Datagram>> {
        let take = |fd: &OwnedFd| seqpacket::receive(std::os::fd::AsFd::as_fd(fd), &mut vec![0; MAX_BYTES]);
        self.0.async_io(Interest::READABLE, take).await
    }

    /// Sends one datagram. When dropped it has been sent as a whole or not at all.
    pub async fn send(&self, bytes: &[u8], fds: &[std::sync::Arc<OwnedFd>]) -> io::Result<()> {
        let give = |fd: &OwnedFd| {
            let fds = seqpacket::borrowed(fds.iter().map(AsRef::as_ref));
            seqpacket::send(std::os::fd::AsFd::as_fd(fd), bytes, &fds)
        };
        self.0.async_io(Interest::WRITABLE, give).await
    }
}

/// Nobody listens: there is no keeper, or it has died.
pub fn is_absent(error: &KeeperError) -> bool {
    let KeeperError::Connect { source, .. } = error else { return false };
    matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// Connects and exchanges greetings.
pub async fn connect(path: &Path) -> Result<Connected, KeeperError> {
    let connect_error = |source| KeeperError::Connect { path: path.to_owned(), source };
    let socket = seqpacket::dial(path).and_then(|fd| reactor::register(fd, Interest::READABLE | Interest::WRITABLE));
    let socket = socket.map(Socket).map_err(connect_error)?;
    let hello = Request { v: VERSION, seq: 1, op: &Op::Hello };
    let hello = serde_json::to_vec(&hello).map_err(|error| connect_error(error.into()))?;
    let greeting = async {
        socket.send(&hello, &[]).await.map_err(connect_error)?;
        loop {
            // A keeper that dies now has not been there.
            let gone = || connect_error(io::ErrorKind::ConnectionRefused.into());
            let datagram = socket.receive().await.map_err(connect_error)?.ok_or_else(gone)?;
            match serde_json::from_slice(&datagram.bytes) {
                Ok(Reply { seq: 1, body: Body::Hello { pid, instance, mount_namespaces, .. } }) => {
                    return Ok((pid, instance, mount_namespaces));
                }
                // An event that was on its way.
                Ok(Reply { seq: 0, .. }) => {}
                _ => return Err(KeeperError::WrongAnswer { operation: "hello" }),
            }
        }
    };
    let greeted = tokio::time::timeout(GREETING, greeting).await;
    let (pid, instance, mount_namespaces) =
        greeted.unwrap_or(Err(KeeperError::NoAnswer { operation: "hello", after: GREETING }))?;
    Ok(Connected { socket, pid, instance, mount_namespaces })
}

/// Connects, and starts a keeper when there is none.
pub async fn connect_or_start(options: &KeeperOptions) -> Result<Connected, KeeperError> {
    match connect(&options.socket).await {
        Err(error) if is_absent(&error) => {}
        other => return other,
    }
    match start(options).await {
        Ok(()) => connect(&options.socket).await,
        // Another process may have started one at the same time: then that one is as good.
        Err(not_ready @ KeeperError::NotReady { .. }) => connect(&options.socket).await.map_err(|_| not_ready),
        Err(error) => Err(error),
    }
}

async fn start(options: &KeeperOptions) -> Result<(), KeeperError> {
    let mut args: Vec<OsString> = vec!["keeper".into(), "--socket".into(), options.socket.clone().into()];
    for dir in &options.cgroup_dirs {
        args.extend(["--cgroup".into(), dir.clone().into()]);
    }
    let exe = &options.exe;
    let started = exec::start_service(exe, "cricket", &args, GREETING).await;
    let service = started.map_err(|source| KeeperError::Start { exe: exe.clone(), source })?;
    match service.readiness {
        Readiness::Line(ref line) if line == "ready" => {}
        Readiness::Line(said) => return Err(KeeperError::NotReady { exe: exe.clone(), said }),
        Readiness::TimedOut => return Err(KeeperError::NoAnswer { operation: "start", after: GREETING }),
    }
    // It outlives this daemon; as long as both live, its end must be reaped.
    drop(crate::task::spawn("keeper-reaper", async move { service.ended().await }));
    Ok(())
}
