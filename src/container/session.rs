//! The streams of a session with a container: what Exec and Attach read from and write to. The streaming server makes them
//! of a connection; the container room does not know of which protocol.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// Where a session's input comes from. Its end is the end of the client's input.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;

/// Where a session's output goes. Shutting it down tells the client that no more comes.
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// Window sizes that wait at most; a client that sends more is held back.
pub const RESIZE_QUEUE: usize = 4;

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
