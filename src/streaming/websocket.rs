//! WebSocket, the server's side, after the upgrade.
//!
//! ```text
//! frame      bytes to events and back; pure
//!   socket     a connection: frames over any stream, pings answered, the handshake of closing
//!     channels   many channels in one connection, each message beginning with the number of its channel
//!     tunnel     one stream of bytes in binary messages, for SPDY
//! ```
//!
//! The code is ours and not a library's because messages must not be held: a client may send a whole archive as one
//! message, and the libraries keep a message in memory until it is whole.

pub mod channels;
pub mod frame;
pub mod socket;
pub mod tunnel;

/// Close codes (RFC 6455, 7.4.1).
pub const CLOSE_NORMAL: u16 = 1000;
pub const CLOSE_PROTOCOL: u16 = 1002;
pub const CLOSE_UNSUPPORTED: u16 = 1003;
