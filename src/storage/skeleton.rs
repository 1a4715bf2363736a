//! A layer's skeleton: what its archive had beside the content of files, so that archive and tree are the same thing twice.
//!
//! With it the uncompressed archive can be had again from the unpacked tree, bit by bit ([`Rebuilt`]), and the tree can be
//! compared with what the archive says. It lies beside the tree as `skeleton.zst`, a zstd stream with that format's own
//! checksum. Inside, after [`MAGIC`], records in the order of the archive; numbers are little-endian:
//!
//! ```text
//! R  u32 length · bytes                                        bytes as they were: headers, padding, what follows the end
//! F  u32 length · path · u32 n · n × (u64 offset · u64 length) · u32 CRC-32     content that is in a file of the tree
//! M  u32 length · path · u64 number                            a later entry took this name: see below
//! E  u64 length                                                the end, and the length of the whole archive
//! ```
//!
//! A path is one below `diff/` that leads through no symlink. What a later entry of the same archive replaces would be lost
//! from the tree; it is moved to `replaced/<number>` beside `diff/`, and `M` says so. A record `F` before an `M` of its path
//! or of a directory above it has its content there.

use std::fs::File;
use std::io::{self, Write as _};

use crc32fast::Hasher as Crc;

use crate::sys::root::Root;

mod reader;
mod rebuilt;

#[cfg(test)]
mod tests;

pub(super) use rebuilt::{Damage, Rebuilt, Wrong};

/// The file's name in a layer's directory.
pub(super) const NAME: &str = "skeleton.zst";
/// The folder of what was replaced.
pub(super) const REPLACED: &str = "replaced";

const MAGIC: &[u8] = b"cricket skeleton 1\n";
/// Of zstd. Headers of tar are mostly zeros and repetition: higher levels cost time and gain little.
const LEVEL: i32 = 1;
/// As a power of two: several layers are written at once, and headers repeat what came shortly before.
const WINDOW: u32 = 17;
/// Records are handed to the compressor in pieces of about so many bytes.
const BATCH: usize = 64 << 10;

/// Writes a skeleton while its layer is unpacked. Failures show in the end, so that reading the archive needs no second
/// kind of error.
pub(super) struct Writer {
    out: zstd::Encoder<'static, File>,
    batch: Vec<u8>,
    /// Where the length of the open record of raw bytes is in the batch.
    open: Option<usize>,
    crc: Crc,
    total: u64,
    failed: io::Result<()>,
}

/// A finished skeleton.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recorded {
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes of the archive.
    pub archive: u64,
}

impl Writer {
    /// Begins a skeleton in a layer's directory.
    ///
    /// # Errors
    /// Those of making the file, and of memory.
    pub(super) fn create(layer: &Root) -> io::Result<Self> {
        let mut out = zstd::Encoder::new(layer.create_file(NAME, 0o600)?, LEVEL)?;
        out.include_checksum(true)?;
        out.window_log(WINDOW)?;
        let batch = MAGIC.to_vec();
        Ok(Self { out, batch, open: None, crc: Crc::new(), total: 0, failed: Ok(()) })
    }

    /// Takes bytes that are in no file.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.total += u64::try_from(bytes.len()).expect("a slice is smaller than 2^64");
        if self.open.is_none() {
            self.batch.push(b'R');
            self.open = Some(self.batch.len());
            self.batch.extend_from_slice(&[0; 4]);
        }
        self.batch.extend_from_slice(bytes);
        self.send(BATCH);
    }

    /// Takes bytes that go into a file of the tree; [`Writer::file`] says which.
    pub(super) fn content(&mut self, bytes: &[u8]) {
        self.total += u64::try_from(bytes.len()).expect("a slice is smaller than 2^64");
        self.crc.update(bytes);
    }

    /// The content since the last call is in this file, in these regions.
    pub(super) fn file(&mut self, path: &[u8], regions: &[(u64, u64)]) {
        self.close();
        self.batch.push(b'F');
        self.text(path);
        self.batch.extend_from_slice(&small(regions.len()).to_le_bytes());
        for (offset, length) in regions {
            self.batch.extend_from_slice(&offset.to_le_bytes());
            self.batch.extend_from_slice(&length.to_le_bytes());
        }
        self.batch.extend_from_slice(&self.crc.clone().finalize().to_le_bytes());
        self.crc.reset();
        self.send(BATCH);
    }

    /// What had this path is in `replaced` now.
    pub(super) fn moved(&mut self, path: &[u8], number: u64) {
        self.close();
        self.batch.push(b'M');
        self.text(path);
        self.batch.extend_from_slice(&number.to_le_bytes());
        self.send(BATCH);
    }

    /// Writes the end.
    ///
    /// # Errors
    /// The first failure since the start.
    pub(super) fn finish(mut self) -> io::Result<Recorded> {
        self.close();
        self.batch.push(b'E');
        self.batch.extend_from_slice(&self.total.to_le_bytes());
        self.send(0);
        self.failed?;
        let file = self.out.finish()?;
        Ok(Recorded { bytes: file.metadata()?.len(), archive: self.total })
    }

    fn text(&mut self, path: &[u8]) {
        self.batch.extend_from_slice(&small(path.len()).to_le_bytes());
        self.batch.extend_from_slice(path);
    }

    /// Ends the open record of raw bytes.
    fn close(&mut self) {
        if let Some(at) = self.open.take() {
            let length = small(self.batch.len() - at - 4);
            self.batch[at..at + 4].copy_from_slice(&length.to_le_bytes());
        }
    }

    /// Hands the batch on once it has so many bytes.
    fn send(&mut self, from: usize) {
        if self.batch.len() < from {
            return;
        }
        self.close();
        if self.failed.is_ok() {
            self.failed = self.out.write_all(&self.batch);
        }
        self.batch.clear();
    }
}

/// A length below 2^32: a batch, a path and a sparse map all have bounds far below.
fn small(length: usize) -> u32 {
    u32::try_from(length).expect("a bounded length")
}
