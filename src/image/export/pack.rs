//! A layer's archive on its way out: hashed, and compressed if it is to be.

use std::io::{self, Read, Write};

use crate::storage::Hasher;

/// How layers are compressed in an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packed {
    None,
    Gzip,
    Zstd,
}

/// What the tools of these formats take when they are not told.
const GZIP_LEVEL: u32 = 6;
const ZSTD_LEVEL: i32 = 3;

impl Packed {
    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// An archive, hashed as it is read. An error is remembered, to be told from one of writing.
pub(super) struct Source<R> {
    archive: R,
    pub hasher: Hasher,
    pub failed: Option<io::Error>,
}

impl<R: Read> Source<R> {
    pub(super) fn new(archive: R) -> Self {
        Self { archive, hasher: Hasher::new(), failed: None }
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.archive.read(into) {
            Ok(read) => {
                self.hasher.update(&into[..read]);
                Ok(read)
            }
            Err(error) => {
                let kind = error.kind();
                self.failed = Some(error);
                Err(kind.into())
            }
        }
    }
}

/// Copies all of the source.
pub(super) fn pack(source: &mut impl Read, packed: Packed, mut out: &mut dyn Write) -> io::Result<()> {
    match packed {
        Packed::None => copy(source, &mut out),
        Packed::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::new(GZIP_LEVEL));
            copy(source, &mut encoder)?;
            encoder.finish().map(drop)
        }
        Packed::Zstd => {
            let mut encoder = zstd::Encoder::new(out, ZSTD_LEVEL)?;
            copy(source, &mut encoder)?;
            encoder.finish().map(drop)
        }
    }
}

/// With a larger buffer than the library's.
fn copy(source: &mut impl Read, out: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        match source.read(&mut buffer)? {
            0 => return Ok(()),
            read => out.write_all(&buffer[..read])?,
        }
    }
}
