//! Both directions of a forwarded connection, each with its own end.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Activity;

/// Bytes in one direction of a connection that are kept in memory.
const CHUNK: usize = 16 * 1024;

/// Carries bytes both ways. The end of one direction is handed on and leaves the other open. Returns when both have ended,
/// or at the first fault that leaves nothing to deliver: the streams are then dropped, which resets them.
pub(super) async fn run<D>(data: D, tcp: TcpStream, activity: &Activity) -> io::Result<()>
where
    D: AsyncRead + AsyncWrite + Unpin,
{
    // Small answers are not to wait for more.
    let _ = tcp.set_nodelay(true);
    let (client_in, client_out) = tokio::io::split(data);
    let (pod_in, pod_out) = tcp.into_split();
    let mut up = std::pin::pin!(carry(client_in, pod_out, activity));
    let mut down = std::pin::pin!(carry(pod_in, client_out, activity));
    let mut up_open = true;
    loop {
        tokio::select! {
            done = &mut down => {
                done.map_err(Fault::into_io)?;
                break;
            }
            done = &mut up, if up_open => match done {
                // The pod takes no more, but what it has said already may still be under way.
                Ok(()) | Err(Fault::Write(_)) => up_open = false,
                Err(fault @ Fault::Read(_)) => return Err(fault.into_io()),
            },
        }
    }
    // A client that resets its stream now has all of the pod's answer and needs no more: the common end.
    if up_open { up.await.or(Ok(())) } else { Ok(()) }
}

enum Fault {
    Read(io::Error),
    Write(io::Error),
}

impl Fault {
    fn into_io(self) -> io::Error {
        match self {
            Self::Read(error) | Self::Write(error) => error,
        }
    }
}

async fn carry<R, W>(mut from: R, mut to: W, activity: &Activity) -> Result<(), Fault>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut chunk = vec![0_u8; CHUNK];
    loop {
        let count = from.read(&mut chunk).await.map_err(Fault::Read)?;
        activity.touch();
        if count == 0 {
            return to.shutdown().await.map_err(Fault::Write);
        }
        to.write_all(&chunk[..count]).await.map_err(Fault::Write)?;
    }
}
