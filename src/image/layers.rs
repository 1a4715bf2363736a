//! What the image store asks of the layer store.
//!
//! All methods block; callers wrap them in [`crate::task::blocking`].

use std::any::Any;
use std::collections::HashSet;
use std::fmt;
use std::io::Read;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::storage::Digest;

/// Where unpacked layers live.
pub trait LayerStore: Send + Sync + 'static {
    /// Whether the layer is there, whole and durable.
    fn has_layer(&self, chain: &Digest) -> bool;

    /// Unpacks one layer beside the others; nothing shows until [`LayerStore::commit`]. Without a `diff_id`, what the archive
    /// is made of is verified by the caller, who made it.
    ///
    /// # Errors
    /// [`LayerError`] when the archive is not acceptable, its diff id differs, or the disk refuses.
    fn stage(
        &self,
        chain: &Digest,
        diff_id: Option<&Digest>,
        packing: Packing,
        content: &mut (dyn Read + Send),
    ) -> Result<Staged, LayerError>;

    /// Unpacks one layer from the archive of another that is here, staged or committed: what comes out has the diff id. `None`
    /// when there is none, or none that is whole, and nothing is left then. `wanted` is asked again and again, and ends the work.
    fn restage(&self, chain: &Digest, diff_id: &Digest, wanted: &(dyn Fn() -> bool + Sync)) -> Option<Staged>;

    /// Makes staged layers durable and visible. A layer that somebody else committed meanwhile is no error.
    ///
    /// # Errors
    /// [`LayerError`] when the disk refuses; the staged layers are then gone.
    fn commit(&self, staged: Vec<Staged>) -> Result<(), LayerError>;

    /// Keeps layers from [`LayerStore::remove_unleased`] for as long as the lease lives, present or not yet.
    fn lease(&self, chain: &[Digest]) -> Lease;

    /// Frees every layer that is neither in `keep` nor leased.
    ///
    /// # Errors
    /// [`LayerError`] when the disk refuses.
    fn remove_unleased(&self, keep: &HashSet<Digest>) -> Result<(), LayerError>;

    /// Is notified when a layer that [`LayerStore::remove_unleased`] left for its lease alone has none any more.
    fn freed(&self) -> Arc<Notify>;

    /// Bytes and inodes of all layers.
    fn usage(&self) -> Usage;

    /// Bytes and inodes of one layer.
    fn layer_size(&self, chain: &Digest) -> Option<Usage>;
}

/// How a layer's archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    None,
    Gzip,
    Zstd,
}

/// Room taken on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

/// A layer that is unpacked but not committed. Dropping it removes it.
pub struct Staged(pub Box<dyn Any + Send>);

/// A hold on layers. Dropping it lets go.
pub struct Lease(#[allow(dead_code, reason = "held for its drop")] pub Box<dyn Any + Send + Sync>);

/// The layer store refused; the text is the whole chain of causes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct LayerError {
    pub text: String,
    /// This node is at fault (its disk is full, say), so the same layer from elsewhere would fare no better.
    pub local: bool,
}

impl LayerError {
    /// The layer itself is at fault.
    pub(super) fn of_the_layer(text: impl Into<String>) -> Self {
        Self { text: text.into(), local: false }
    }
}

impl Packing {
    /// Tells the compression by the first bytes, as every engine does: media types of real images are not reliable,
    /// and the diff id decides in the end what was meant.
    #[must_use]
    pub fn sniff(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A zstd skippable frame may come first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

impl fmt::Debug for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Staged")
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lease")
    }
}

mod on_disk;

#[cfg(test)]
pub(super) mod fake;
