//! Every bound of a SPDY session, in one place.

use std::time::Duration;

/// What a session may cost. Whatever the peer does, a session holds at most `session_window` received bytes,
/// `session_send_buffer` bytes to be sent (and [`Limits::SEND_FLOOR`] more for each stream), `replies` bytes of answers,
/// `streams` × `header_block` bytes of headers, two connection buffers of about 64 KiB and the inflater (some 48 KiB).
#[derive(Debug, Clone)]
pub struct Limits {
    /// Streams at one time, counted until their handle is dropped. A peer that resets its streams as fast as it opens them
    /// (CVE-2023-44487) therefore cannot have more work under way than one that keeps them. More are refused.
    pub streams: usize,
    /// Bytes of a control frame's payload, which holds the header block before inflation.
    pub control_frame: u32,
    /// Bytes of a header block after inflation.
    pub header_block: usize,
    /// Headers in one block.
    pub headers: u32,
    /// Entries of a SETTINGS frame.
    pub settings: u32,
    /// Bytes that one stream may have received and not handed on; the window that the peer is told.
    pub stream_window: u32,
    /// The same over all streams. At least 64 KiB, with which the protocol begins.
    pub session_window: u32,
    /// Bytes that one stream may have taken from its writer and not sent.
    pub send_buffer: usize,
    /// The same over all streams.
    pub session_send_buffer: usize,
    /// Bytes of answers (PING, RST_STREAM) that wait for a peer that does not read; then nothing more is read from it.
    pub replies: usize,
    /// Streams that the peer may reset before our side has ended them: so many at once, and so many more each second.
    /// Beyond that the session ends.
    pub resets: u32,
    pub resets_per_second: u32,
    /// How long a closing session waits for a peer that takes nothing.
    pub stall: Duration,
    /// How long after the last byte the peer has to hang up first. Closing with unread input makes the kernel send a TCP
    /// reset, which can cost the peer the end of our output.
    pub linger: Duration,
    /// How often a peer whose data we do not read is sent a frame without meaning, to learn whether it is still there.
    pub probe: Duration,
}

impl Limits {
    /// A stream that has nothing waiting may always queue this many bytes, or one greedy stream could starve it.
    pub const SEND_FLOOR: usize = 4 * 1024;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: 1024,
            control_frame: 16 * 1024,
            header_block: 8 * 1024,
            headers: 64,
            settings: 64,
            stream_window: 256 * 1024,
            session_window: 4 * 1024 * 1024,
            send_buffer: 64 * 1024,
            session_send_buffer: 4 * 1024 * 1024,
            replies: 16 * 1024,
            resets: 1000,
            resets_per_second: 100,
            stall: Duration::from_secs(10),
            linger: Duration::from_secs(5),
            probe: Duration::from_secs(15),
        }
    }
}
