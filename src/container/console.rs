//! The socket on which an OCI runtime hands over the master of a container's pseudo-terminal.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::Interest;
use tokio::net::UnixListener;

/// How long the master may take to be read once the runtime has ended well.
const LATE: Duration = Duration::from_secs(5);

/// A listening socket whose file goes away with it.
#[derive(Debug)]
pub(super) struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    /// Listens on a short path below the state folder: a socket address holds 107 bytes.
    pub(super) fn listen(state_dir: &Path) -> io::Result<Self> {
        let dir = state_dir.join("tty");
        std::fs::create_dir_all(&dir)?;
        let path = dir.join(crate::sys::host::random_hex::<4>());
        Ok(Self { listener: UnixListener::bind(&path)?, path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a call of the runtime, which hands a terminal over meanwhile; `opened` is told at once, since the process may
    /// be running by the time the call returns. What the call made is given back without a terminal too: it has to be undone.
    pub(super) async fn during<T, E>(
        &self,
        call: impl Future<Output = Result<T, E>>,
        opened: impl Fn(&Arc<OwnedFd>),
    ) -> Result<(T, io::Result<Arc<OwnedFd>>), E> {
        let mut master = None;
        tokio::pin!(call);
        // One wait for the whole call: dropped half-way it would drop a connection that the runtime has made already.
        let mut handed = std::pin::pin!(self.master());
        let made = loop {
            tokio::select! {
                made = &mut call => break made?,
                fd = &mut handed, if master.is_none() => master = Some(fd.inspect(&opened)),
            }
        };
        let master = match master {
            Some(master) => master,
            // The call has ended, so what the runtime sent is here already, if it sent anything.
            None => match tokio::time::timeout(LATE, handed).await {
                Ok(master) => master.inspect(&opened),
                Err(_) => Err(io::Error::other("the runtime handed over no terminal")),
            },
        };
        Ok((made, master))
    }

    /// Waits for the runtime and takes the master from it. The caller bounds the wait: a runtime that never connects has
    /// failed and says so itself.
    async fn master(&self) -> io::Result<Arc<OwnedFd>> {
        let (stream, _) = self.listener.accept().await?;
        loop {
            stream.readable().await?;
            match stream.try_io(Interest::READABLE, || receive(&stream)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result.map(Arc::new),
            }
        }
    }
}

fn receive(stream: &tokio::net::UnixStream) -> io::Result<OwnedFd> {
    let mut text = [0_u8; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(stream, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .ok_or_else(|| io::Error::other("the runtime sent no descriptor"))
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
