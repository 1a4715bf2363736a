//! What the fuzzing targets in `fuzz/` reach of the crate's inside. It is no interface for anybody else, and nothing in the
//! daemon uses it.
//!
//! It is part of every build and behind no feature: a change that breaks a target is then an error at once, and `cargo
//! test` replays the targets' corpora (`tests/corpora.rs`) with what it has built anyway. What nobody calls is not linked.

/// `crate::streaming::spdy`.
pub mod spdy {
    pub use crate::streaming::spdy::{Incoming, IncomingStream, Limits, Session, SpdyError, Stream, client, server};
}

/// `crate::streaming::websocket`.
pub mod websocket {
    pub use crate::streaming::websocket::channels::{ChannelReader, ChannelWriter, Handle, Layout, open};
    pub use crate::streaming::websocket::frame::{Decoder, Event, FrameError};
    pub use crate::streaming::websocket::tunnel::Tunnel;
}

/// What of an image, and of the files about registries, is read.
pub mod image {
    pub use crate::image::registry::auth::challenges;
    pub use crate::image::{config, document, policy, reference, registries, registry};
    pub use crate::storage::{Compression, Digest, Limits, Storage, StorageOptions};
}
