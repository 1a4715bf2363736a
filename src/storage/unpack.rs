//! Unpacking one layer: compressed bytes in, a directory tree out, in one pass.
//!
//! ```text
//! reader ─▶ [thread: decompress] ─▶ bounded channel of 256 KiB buffers ─▶ [caller: hash · parse tar · write tree]
//! ```
//!
//! A layer is hostile. Its bytes meet a parser with bounds ([`archive`], [`pax`], [`name`]), and every path is resolved by
//! the kernel below the descriptor of the layer's own directory ([`tree`]). The whole stream is read, so that the digest
//! covers what follows the archive, too. Memory is bounded: six buffers, one extension header, and the caches of the tree.

use std::io::Read;

use crate::sys::calm::Calm;
use crate::sys::root::Root;

mod archive;
mod error;
mod name;
mod pax;
mod stream;
mod tree;
mod zstd_window;

#[cfg(test)]
mod tests;

pub(super) use archive::{Entry, Kind, Timestamp};
pub use error::UnpackError;
pub(super) use name::{CleanName, Meaning, os};
pub(super) use tree::{OPAQUE, Written, is_of_the_host, is_whiteout, wanted};

use super::digest::Digest;
use super::early::Early;
use super::skeleton;
use super::usage::{BLOCK, Usage};

/// How a layer's bytes are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl std::fmt::Display for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "uncompressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

/// What one layer may ask for. Reaching a limit is an error that names it.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Entries in the archive.
    pub entries: u64,
    /// Bytes of the uncompressed stream, and of the files that it describes (which differ when files are sparse).
    pub bytes: u64,
    /// Bytes in one path, once cleaned.
    pub path: usize,
    /// Bytes in one extended attribute.
    pub xattr: usize,
    /// Bytes in one extension header of the archive, all its records together.
    pub extension: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 4_000_000, bytes: 256 << 30, path: 4096, xattr: 64 << 10, extension: 1 << 20 }
    }
}

/// What was unpacked.
#[derive(Debug)]
pub(super) struct Unpacked {
    /// The digest of the uncompressed stream.
    pub diff_id: Digest,
    pub usage: Usage,
    /// The layer hides everything below it.
    pub opaque_root: bool,
    /// Directories that had to be made because the layer has files in them, though no entry for them. Their mode and
    /// owner are those of the layer below, which is not known here.
    pub implied: Vec<Vec<u8>>,
    /// Paths at which whiteouts were made, some of them more than once; what is there now may be something else. Those that
    /// hide nothing go when the layers below are known.
    pub whiteouts: Option<Written<0>>,
    /// Bytes of the uncompressed stream.
    pub archive: u64,
}

/// Parent directories kept open, so that each file below them costs no resolution of its own.
const OPEN_PARENTS: usize = 8;

/// Unpacks a layer into an empty directory. `beside` is the layer's own: it gets the skeleton of the archive, what later
/// entries replaced, and an unnamed temporary file.
///
/// The reader must end: when its source stalls, it has to fail, since an unpack that fails for another reason still
/// waits for the read in flight.
///
/// # Errors
/// [`UnpackError`]; the directory then holds a part of the layer, to be removed by the caller.
pub(super) fn unpack(
    into: &Root,
    beside: &Root,
    compression: Compression,
    reader: impl Read + Send,
    limits: &Limits,
    early: Option<&Early>,
) -> Result<Unpacked, UnpackError> {
    unpack_caching(OPEN_PARENTS, into, beside, (compression, reader), limits, early)
}

fn unpack_caching(
    parents: usize,
    into: &Root,
    beside: &Root,
    (compression, reader): (Compression, impl Read + Send),
    limits: &Limits,
    early: Option<&Early>,
) -> Result<Unpacked, UnpackError> {
    // A node that pulls still answers: this may take minutes of processor time.
    let _calm = Calm::begin();
    stream::decompressed(compression, reader, limits.bytes, |blocks| {
        let unwritten = |source| UnpackError::Skeleton { operation: "it cannot be written", source };
        let skeleton = skeleton::Writer::create(beside).map_err(unwritten)?;
        let mut archive = archive::Archive::new(blocks.recorded_in(skeleton).written_by(early), limits);
        let mut tree = tree::Tree::new(into, beside, limits, parents)?;
        while let Some(entry) = archive.next_entry()? {
            tree.apply(&mut archive, &entry)?;
        }
        let (diff_id, skeleton) = archive.finish()?;
        let recorded = skeleton.expect("it was just given").finish().map_err(unwritten)?;
        let done = tree.finish()?;
        let usage = done.usage.plus(Usage { bytes: recorded.bytes.next_multiple_of(BLOCK), inodes: 1 });
        Ok(Unpacked {
            diff_id,
            usage,
            opaque_root: done.opaque_root,
            implied: done.implied,
            whiteouts: done.whiteouts,
            archive: recorded.archive,
        })
    })
}

/// Reads an uncompressed archive, and gives each entry to `take`, without its content. Gives the digest of the stream.
///
/// # Errors
/// Those of [`unpack`] that come from the stream, and those of `take`.
pub(super) fn entries(
    reader: impl Read + Send,
    limits: &Limits,
    mut take: impl FnMut(&Entry) -> Result<(), UnpackError>,
) -> Result<Digest, UnpackError> {
    stream::decompressed(Compression::None, reader, limits.bytes, |blocks| {
        let mut archive = archive::Archive::new(blocks, limits);
        while let Some(entry) = archive.next_entry()? {
            take(&entry)?;
        }
        Ok(archive.finish()?.0)
    })
}
