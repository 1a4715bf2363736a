//! Reads the records of a skeleton. It may be damaged: every length has a bound, and the checksum is looked at in the end.

use std::io::{self, BufReader, Read};

use super::MAGIC;

/// Longest path: what the kernel takes, and so what was written.
const MAX_PATH: u32 = 4096;
/// Most regions of one file: what unpacking takes.
const MAX_REGIONS: u32 = 1 << 16;
/// As a power of two: 8 MiB, what every decoder has to offer (RFC 8878).
const MAX_WINDOW: u32 = 23;

pub(super) enum Record {
    /// So many bytes follow, to be read with [`Records::raw`].
    Raw(u32),
    File {
        path: Vec<u8>,
        regions: Vec<(u64, u64)>,
        crc: u32,
    },
    Moved {
        path: Vec<u8>,
        number: u64,
    },
    /// Nothing follows, and the checksum was right.
    End {
        archive: u64,
    },
}

pub(super) struct Records<R: Read>(BufReader<zstd::Decoder<'static, BufReader<R>>>);

impl<R: Read> Records<R> {
    pub(super) fn open(source: R) -> io::Result<Self> {
        let mut decoder = zstd::Decoder::new(source)?;
        decoder.window_log_max(MAX_WINDOW)?;
        let mut records = Self(BufReader::with_capacity(64 << 10, decoder));
        let mut magic = [0; MAGIC.len()];
        records.0.read_exact(&mut magic)?;
        if magic == *MAGIC { Ok(records) } else { Err(bad("it is of another version")) }
    }

    pub(super) fn next(&mut self) -> io::Result<Record> {
        let [tag] = self.bytes()?;
        match tag {
            b'R' => Ok(Record::Raw(self.number()?)),
            b'F' => {
                let path = self.path()?;
                let count = self.number()?;
                if count > MAX_REGIONS {
                    return Err(bad("a file has too many regions"));
                }
                let mut regions = Vec::new();
                for _ in 0..count {
                    let (offset, length) = (self.long()?, self.long()?);
                    if offset.checked_add(length).is_none_or(|end| i64::try_from(end).is_err()) {
                        return Err(bad("a region is out of range"));
                    }
                    regions.push((offset, length));
                }
                Ok(Record::File { path, regions, crc: self.number()? })
            }
            b'M' => Ok(Record::Moved { path: self.path()?, number: self.long()? }),
            b'E' => {
                let archive = self.long()?;
                // The decoder compares the checksum when it comes to its end.
                if self.0.read(&mut [0])? == 0 {
                    Ok(Record::End { archive })
                } else {
                    Err(bad("something follows its end"))
                }
            }
            _ => Err(bad("a record is of no known kind")),
        }
    }

    /// Reads raw bytes, at least one.
    pub(super) fn raw(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.0.read(into)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => Ok(read),
        }
    }

    pub(super) fn skip(&mut self, bytes: u32) -> io::Result<()> {
        let skipped = io::copy(&mut self.0.by_ref().take(bytes.into()), &mut io::sink())?;
        if skipped == u64::from(bytes) { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn path(&mut self) -> io::Result<Vec<u8>> {
        let length = self.number()?;
        if length > MAX_PATH {
            return Err(bad("a path is too long"));
        }
        let mut path = vec![0; usize::try_from(length).unwrap_or(0)];
        self.0.read_exact(&mut path)?;
        Ok(path)
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn number(&mut self) -> io::Result<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn long(&mut self) -> io::Result<u64> {
        self.bytes().map(u64::from_le_bytes)
    }
}

fn bad(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
