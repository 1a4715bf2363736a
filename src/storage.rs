//! Layers on disk and the overlay mounts made from them.

mod digest;

pub use digest::{Digest, DigestError};
