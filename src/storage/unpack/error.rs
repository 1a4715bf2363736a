//! Why a layer is not unpacked.

use std::io;

use super::Compression;

/// Why a layer is not unpacked. Names from the layer are shown escaped and cut.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("the layer is empty: not one byte")]
    Empty,
    #[error("the {compression} stream is damaged, or ends early")]
    Stream { compression: Compression, source: io::Error },
    #[error("the decompression thread cannot be started")]
    Thread { source: io::Error },
    #[error("malformed tar archive near byte {at}: {why}")]
    Malformed { at: u64, why: String },
    #[error("entry {name}: {why}")]
    Entry { name: String, why: String },
    #[error("the layer has more than {limit} {what}")]
    Limit { what: &'static str, limit: u64 },
    #[error("entry {name}: {operation}")]
    Write { name: String, operation: &'static str, source: io::Error },
    #[error("the skeleton of the archive: {operation}")]
    Skeleton { operation: &'static str, source: io::Error },
    #[error("scratch file: {operation}")]
    Scratch { operation: &'static str, source: io::Error },
}

/// A name from a layer, fit for a message: escaped, and at most 200 bytes of it.
pub(super) fn shown(name: &[u8]) -> String {
    const CUT: usize = 200;
    let dots = if name.len() > CUT { "…" } else { "" };
    format!("\"{}\"{dots}", name[..name.len().min(CUT)].escape_ascii())
}
