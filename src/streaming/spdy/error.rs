//! What ends a stream or a session.

use std::io;

use super::frame::Status;

/// Why a session ended, or why a stream cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SpdyError {
    #[error("reading from the connection")]
    Read { source: io::Error },
    #[error("writing to the connection")]
    Write { source: io::Error },
    #[error("the peer hung up without ending the session")]
    HungUp,
    #[error("the session was closed")]
    Closed,
    #[error("the peer took nothing for {seconds} s while the session was closing")]
    Stalled { seconds: u64 },
    #[error("control frame of version {version}; only 3 is spoken here")]
    Version { version: u16 },
    #[error("control frame of kind {kind} with {length} bytes; at most {limit} are taken")]
    ControlFrameTooLong { kind: u16, length: u32, limit: u32 },
    #[error("control frame of kind {kind} cannot have {length} bytes")]
    FrameLength { kind: u16, length: usize },
    #[error("SETTINGS with {count} entries; at most {limit} are taken")]
    TooManySettings { count: u32, limit: u32 },
    #[error("INITIAL_WINDOW_SIZE of {size}")]
    WindowSize { size: u32 },
    #[error("the session's window was raised by {delta}, which is no step or too large")]
    WindowDelta { delta: u32 },
    #[error("the header block is damaged: {reason}")]
    HeaderBlock { reason: &'static str },
    #[error("the header block has more than {limit} bytes")]
    HeaderBlockTooLarge { limit: usize },
    #[error("a stream was opened with the id {id}: {reason}")]
    StreamId { id: u32, reason: &'static str },
    #[error("frame of kind {kind} for stream {id}, which was never opened")]
    IdleStream { kind: &'static str, id: u32 },
    #[error("the peer reset more than {limit} streams")]
    ResetStorm { limit: u32 },
    #[error("{limit} streams are open already")]
    StreamLimit { limit: usize },
    #[error("all stream ids are used up")]
    OutOfIds,
    #[error("the peer takes no new streams")]
    GoneAway,
    #[error("the peer reset the stream: {status}")]
    Reset { status: Status },
}

impl SpdyError {
    /// The peer broke the protocol or a limit, and is told so in the GOAWAY.
    pub(super) fn is_violation(&self) -> bool {
        !matches!(self, Self::Read { .. } | Self::Write { .. } | Self::HungUp | Self::Closed | Self::Stalled { .. })
    }

    /// The connection is of no use any more, not even for a GOAWAY.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Write { .. } | Self::HungUp | Self::Stalled { .. })
    }
}
