//! The streams of a session with a container: what Exec and Attach read from and write to. The streaming server makes them
//! of a connection; the container room does not know of which protocol.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::sync::mpsc;

use super::pipes::Sink;

/// Where a session's input comes from. Its end is the end of the client's input.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;

/// Where a session's output goes. Shutting it down tells the client that no more comes.
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// Window sizes that wait at most; a client that sends more is held back.
pub const RESIZE_QUEUE: usize = 4;

/// Sessions (Exec and Attach together) that one container may have at a time.
pub const MAX_SESSIONS: usize = 256;

/// What one read of a client's input takes at most, in bytes. It is all of the input that is kept in memory.
const INPUT_CHUNK: usize = 16 * 1024;

/// The size of a client's terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowSize {
    pub width: u16,
    pub height: u16,
}

/// The client's ends. A stream that the request did not ask for is `None`.
pub struct SessionStreams {
    pub stdin: Option<Reader>,
    pub stdout: Option<Writer>,
    /// Always `None` in a session with a terminal.
    pub stderr: Option<Writer>,
    /// The sender is dropped when the client goes away or sends no sizes any more.
    pub resize: mpsc::Receiver<WindowSize>,
}

impl std::fmt::Debug for SessionStreams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionStreams")
            .field("stdin", &self.stdin.is_some())
            .field("stdout", &self.stdout.is_some())
            .field("stderr", &self.stderr.is_some())
            .finish_non_exhaustive()
    }
}

/// Carries a client's input to a process, as fast as that reads it, until either of them ends it.
pub(super) async fn feed(mut client: Reader, process: Sink) {
    let mut chunk = vec![0_u8; INPUT_CHUNK];
    loop {
        // A connection that breaks is the end of the input, as its orderly end is.
        let n = client.read(&mut chunk).await.unwrap_or(0);
        // A process that closed its input takes no more; what the client sends stays with the client.
        if n == 0 || process.write_all(&chunk[..n]).await.is_err() {
            return;
        }
    }
}
