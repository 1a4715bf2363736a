//! Entries of a tar archive: ustar, GNU, old V7, with pax and GNU extension headers.
//!
//! The `tar` crate decodes the fixed header; the records around it are walked here, so that a layer means the same to us
//! as to the other readers of the field, or is refused: sizes come from pax before the header (RUSTSEC-2026-0068,
//! RUSTSEC-2025-0111), links, devices and directories have no content whatever their size says, and extension headers
//! that are doubled, malformed or without an entry are errors.

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::error::shown;
use super::pax::{self, Records};
use super::stream::Blocks;
use super::{Limits, UnpackError};
use crate::storage::digest::Digest;
use crate::storage::skeleton;

const BLOCK: usize = 512;

/// Most regions of a sparse file, those without data too; each costs 16 bytes of memory (CVE-2025-58183).
const MAX_REGIONS: usize = 1 << 16;

/// Seconds since the epoch, and nanoseconds on top of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::storage) struct Timestamp {
    pub seconds: i64,
    pub nanoseconds: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::storage) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One entry, with its extensions applied. Names are as in the archive.
#[derive(Debug)]
pub(in crate::storage) struct Entry {
    pub kind: Kind,
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    /// Permission bits with set-uid, set-gid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    /// Bytes of the file, holes included.
    pub size: u64,
    /// Offset and length of the data of a sparse file, in order; the archive holds just these.
    pub regions: Option<Vec<(u64, u64)>>,
    pub device: (u32, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

pub(super) struct Archive<'l> {
    blocks: Blocks,
    limits: &'l Limits,
    entries: u64,
    /// Bytes described by files so far.
    described: u64,
    /// Content of the current entry that was not taken, and the padding after it.
    content: u64,
    padding: u64,
}

/// What the extension headers before an entry said.
#[derive(Default)]
struct Extensions {
    pax: Option<Records>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<'l> Archive<'l> {
    pub(super) fn new(blocks: Blocks, limits: &'l Limits) -> Self {
        Self { blocks, limits, entries: 0, described: 0, content: 0, padding: 0 }
    }

    fn malformed(&self, why: impl Into<String>) -> UnpackError {
        UnpackError::Malformed { at: self.blocks.position(), why: why.into() }
    }

    /// The next entry; its content may then be taken with [`Archive::content`], and what is left is skipped.
    pub(super) fn next_entry(&mut self) -> Result<Option<Entry>, UnpackError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip()?;
            let Some(block) = self.header()? else {
                let orphan =
                    extensions.pax.is_some() || extensions.long_name.is_some() || extensions.long_link.is_some();
                return if orphan { Err(self.malformed("an extension header without an entry")) } else { Ok(None) };
            };
            self.entries += 1;
            if self.entries > self.limits.entries {
                return Err(UnpackError::Limit { what: "entries", limit: self.limits.entries });
            }
            let header = Header::from_byte_slice(&block);
            let old = header.as_old();
            let size = self.number(&old.size, "size")?;
            let size = u64::try_from(size).map_err(|_| self.malformed("a negative size"))?;
            match old.linkflag[0] {
                b'x' => {
                    let data = self.extension(size)?;
                    let records = pax::parse(&data, self.limits.xattr).map_err(|why| self.malformed(why))?;
                    if extensions.pax.replace(records).is_some() {
                        return Err(self.malformed("two pax headers for one entry"));
                    }
                }
                b'g' => {
                    let data = self.extension(size)?;
                    self.check_global(&data)?;
                }
                b'L' => {
                    let name = self.extension(size)?;
                    if extensions.long_name.replace(until_nul(&name)).is_some() {
                        return Err(self.malformed("two long names for one entry"));
                    }
                }
                b'K' => {
                    let link = self.extension(size)?;
                    if extensions.long_link.replace(until_nul(&link)).is_some() {
                        return Err(self.malformed("two long link names for one entry"));
                    }
                }
                _ => return self.entry(header, size, extensions).map(Some),
            }
        }
    }

    /// Reads a header block and checks its sum; `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, UnpackError> {
        let mut block = [0; BLOCK];
        match self.blocks.read_full(&mut block)? {
            0 => return Ok(None),
            BLOCK => {}
            _ => return Err(self.malformed("it ends in the middle of a header")),
        }
        if block.iter().all(|byte| *byte == 0) {
            // The mark is two blocks of zeros; that the stream ends after one is tolerated.
            let mut second = [0; BLOCK];
            self.blocks.read_full(&mut second)?;
            return if second.iter().all(|byte| *byte == 0) {
                Ok(None)
            } else {
                Err(self.malformed("a block of zeros between entries"))
            };
        }
        let stated = self.number(&block[148..156], "checksum")?;
        let (mut unsigned, mut signed) = (0_i64, 0_i64);
        for (at, byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        if stated == unsigned || stated == signed {
            Ok(Some(block))
        } else {
            Err(self.malformed("a header's checksum is wrong"))
        }
    }

    /// The whole content of an extension header.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, UnpackError> {
        let length = usize::try_from(size).ok().filter(|length| *length <= self.limits.extension);
        let Some(length) = length else {
            let limit = u64::try_from(self.limits.extension).unwrap_or(u64::MAX);
            return Err(UnpackError::Limit { what: "bytes in one extension header", limit });
        };
        let mut data = vec![0; length];
        if self.blocks.read_full(&mut data)? < length {
            return Err(self.malformed("it ends in the middle of an extension header"));
        }
        self.content = 0;
        self.padding = padding(size);
        Ok(data)
    }

    /// Readers disagree on whether a global header counts; one that would make a difference is refused.
    fn check_global(&self, data: &[u8]) -> Result<(), UnpackError> {
        let records = pax::parse(data, self.limits.xattr).map_err(|why| self.malformed(why))?;
        let matters = records.path.is_some() || records.linkpath.is_some() || records.size.is_some() || records.sparse;
        if matters { Err(self.malformed("a global pax header that names a path, link or size")) } else { Ok(()) }
    }

    fn entry(&mut self, header: &Header, size: u64, extensions: Extensions) -> Result<Entry, UnpackError> {
        let pax = extensions.pax.unwrap_or_default();
        let name = extensions.long_name.or(pax.path).unwrap_or_else(|| header.path_bytes().into_owned());
        let refuse = |why: String| UnpackError::Entry { name: shown(&name), why };
        let flag = header.as_old().linkflag[0];
        let kind = match flag {
            0 if name.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(refuse(format!("its type '{}' is not supported", other.escape_ascii()))),
        };
        if pax.sparse {
            return Err(refuse("it is a sparse file in pax format, which is not supported".to_owned()));
        }
        let stored = if kind == Kind::File { pax.size.unwrap_or(size) } else { 0 };
        let (regions, full) = if flag == b'S' {
            let (regions, full) = self.sparse(header, stored).map_err(|why| match why {
                SparseError::Stream(error) => error,
                SparseError::Map(why) => refuse(why.to_owned()),
            })?;
            (Some(regions), full)
        } else {
            (None, stored)
        };
        self.content = stored;
        self.padding = padding(stored);
        self.described = self.described.saturating_add(full);
        if self.described > self.limits.bytes {
            return Err(UnpackError::Limit { what: "bytes in its files", limit: self.limits.bytes });
        }
        let id = |from_pax: Option<u64>, field: &[u8], what: &str| -> Result<u32, UnpackError> {
            let id = match from_pax {
                Some(id) => id,
                None => u64::try_from(self.number(field, what)?).unwrap_or(u64::MAX),
            };
            // All ones means "leave it" to chown(2).
            u32::try_from(id)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| refuse(format!("its {what} is out of range")))
        };
        let old = header.as_old();
        let mode = self.number(&old.mode, "mode")? & 0o7777;
        let seconds = self.number(&old.mtime, "time")?;
        Ok(Entry {
            kind,
            mode: u32::try_from(mode).expect("twelve bits"),
            uid: id(pax.uid, &old.uid, "user id")?,
            gid: id(pax.gid, &old.gid, "group id")?,
            mtime: pax.mtime.unwrap_or(Timestamp { seconds, nanoseconds: 0 }),
            size: full,
            regions,
            device: self.device(header, kind).ok_or_else(|| refuse("its device number is out of range".to_owned()))?,
            link: extensions
                .long_link
                .or(pax.linkpath)
                .unwrap_or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default()),
            xattrs: pax.xattrs,
            name,
        })
    }

    fn device(&self, header: &Header, kind: Kind) -> Option<(u32, u32)> {
        if !matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
            return Some((0, 0));
        }
        let (major, minor) = match (header.as_ustar(), header.as_gnu()) {
            (Some(ustar), _) => (&ustar.dev_major, &ustar.dev_minor),
            (_, Some(gnu)) => (&gnu.dev_major, &gnu.dev_minor),
            (None, None) => return Some((0, 0)),
        };
        let part = |field: &[u8], bits: u32| {
            let number = numeric(field).and_then(|number| u32::try_from(number).ok());
            number.filter(|number| *number < 1 << bits)
        };
        // Twelve and twenty bits: the kernel's dev_t.
        Some((part(major, 12)?, part(minor, 20)?))
    }

    /// The map of an old GNU sparse file: in its header, and in blocks after it.
    fn sparse(&mut self, header: &Header, stored: u64) -> Result<(Vec<(u64, u64)>, u64), SparseError> {
        let gnu = header.as_gnu().ok_or(SparseError::Map("a sparse file without a GNU header"))?;
        let full = numeric(&gnu.realsize).and_then(|size| u64::try_from(size).ok());
        let full = full.ok_or(SparseError::Map("its full size is out of range"))?;
        let mut map = SparseMap { regions: Vec::new(), slots: 0, end: 0, stored: 0 };
        for region in &gnu.sparse {
            map.add(region)?;
        }
        let mut more = gnu.is_extended();
        while more {
            let mut next = GnuExtSparseHeader::new();
            if self.blocks.read_full(next.as_mut_bytes()).map_err(SparseError::Stream)? < BLOCK {
                return Err(SparseError::Map("the archive ends in the middle of its sparse map"));
            }
            for region in next.sparse() {
                map.add(region)?;
            }
            more = next.is_extended();
        }
        if map.stored != stored || map.end > full {
            return Err(SparseError::Map("its sparse map contradicts its size"));
        }
        Ok((map.regions, full))
    }

    /// Content of the current entry, as much as is at hand; empty once all was taken.
    pub(super) fn content(&mut self) -> Result<&[u8], UnpackError> {
        if self.content == 0 {
            return Ok(&[]);
        }
        let left = usize::try_from(self.content).unwrap_or(usize::MAX);
        let at = self.blocks.position();
        let slice = self.blocks.fill()?;
        if slice.is_empty() {
            return Err(UnpackError::Malformed { at, why: "it ends in the middle of a file".to_owned() });
        }
        Ok(&slice[..slice.len().min(left)])
    }

    /// Marks content as written to a file, at most what the last slice held.
    pub(super) fn took(&mut self, bytes: usize) {
        self.blocks.consume_content(bytes);
        self.content -= u64::try_from(bytes).expect("a slice is smaller than 2^64");
    }

    /// All content of the current entry is in the file at this path, which leads through no symlink.
    pub(super) fn stored(&mut self, path: &[u8], entry: &Entry) {
        let whole = [(0, entry.size)];
        let regions = entry.regions.as_deref().unwrap_or(&whole);
        if let Some(skeleton) = self.blocks.skeleton()
            && regions.iter().any(|(_, length)| *length > 0)
        {
            skeleton.file(path, regions);
        }
    }

    /// What an earlier entry made at this path was moved away.
    pub(super) fn moved(&mut self, path: &[u8], number: u64) {
        if let Some(skeleton) = self.blocks.skeleton() {
            skeleton.moved(path, number);
        }
    }

    /// Passes over what is left of the current entry.
    fn skip(&mut self) -> Result<(), UnpackError> {
        let mut left = self.content + self.padding;
        (self.content, self.padding) = (0, 0);
        while left > 0 {
            let slice = self.blocks.fill()?.len();
            if slice == 0 {
                return Err(self.malformed("it ends in the middle of a file"));
            }
            let step = slice.min(usize::try_from(left).unwrap_or(usize::MAX));
            self.blocks.consume(step);
            left -= u64::try_from(step).expect("a slice is smaller than 2^64");
        }
        Ok(())
    }

    /// Reads the stream to its end, which must be zeros, and gives its digest, and what wrote it down.
    pub(super) fn finish(mut self) -> Result<(Digest, Option<skeleton::Writer>), UnpackError> {
        loop {
            let slice = self.blocks.fill()?;
            if slice.is_empty() {
                return Ok(self.blocks.finish());
            }
            if slice.iter().any(|byte| *byte != 0) {
                return Err(self.malformed("data after the end of the archive"));
            }
            let length = slice.len();
            self.blocks.consume(length);
        }
    }

    fn number(&self, field: &[u8], what: &str) -> Result<i64, UnpackError> {
        numeric(field).ok_or_else(|| self.malformed(format!("a header's {what} is no number")))
    }
}

enum SparseError {
    Stream(UnpackError),
    Map(&'static str),
}

struct SparseMap {
    regions: Vec<(u64, u64)>,
    /// Places for a region so far: a map could go on for ever with empty ones.
    slots: usize,
    end: u64,
    stored: u64,
}

impl SparseMap {
    fn add(&mut self, region: &GnuSparseHeader) -> Result<(), SparseError> {
        self.slots += 1;
        if self.slots > MAX_REGIONS {
            return Err(SparseError::Map("its sparse map has too many regions"));
        }
        if region.is_empty() {
            return Ok(());
        }
        let part = |field: &[u8]| numeric(field).and_then(|number| u64::try_from(number).ok());
        let bad = SparseError::Map("its sparse map is malformed");
        let (Some(offset), Some(length)) = (part(&region.offset), part(&region.numbytes)) else { return Err(bad) };
        let end = offset.checked_add(length).filter(|end| i64::try_from(*end).is_ok());
        let (Some(end), true) = (end, offset >= self.end) else { return Err(bad) };
        self.end = end;
        self.stored += length;
        if length > 0 {
            self.regions.push((offset, length));
        }
        Ok(())
    }
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % 512
}

fn until_nul(name: &[u8]) -> Vec<u8> {
    name.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

/// A numeric field: octal digits among spaces and NULs, or, when its first bit is set, a big-endian two's complement
/// number of the remaining bits. A blank field is 0.
fn numeric(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => {
            let negative = first & 0x40 != 0;
            let mut number: i128 = if negative { -1 } else { 0 };
            for (at, byte) in field.iter().enumerate() {
                let byte = if at == 0 { if negative { byte | 0x80 } else { byte & 0x7f } } else { *byte };
                number = (number << 8) | i128::from(byte);
                if i64::try_from(number).is_err() {
                    return None;
                }
            }
            i64::try_from(number).ok()
        }
        _ => {
            let text = field.trim_ascii();
            let blank = |byte: &u8| *byte == 0 || *byte == b' ';
            let start = text.iter().position(|byte| !blank(byte)).unwrap_or(text.len());
            let digits = text[start..].split(blank).next().unwrap_or_default();
            if digits.is_empty() {
                return if text.iter().all(blank) { Some(0) } else { None };
            }
            if !digits.iter().all(|digit| (b'0'..=b'7').contains(digit)) {
                return None;
            }
            i64::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
        }
    }
}

#[cfg(test)]
mod numbers {
    use super::numeric;

    #[test]
    fn octal_and_binary_fields() {
        for (field, want) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"00009\0\0\0", None),
            (b"-1\0\0\0\0\0\0", None),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"77777777777\0", Some(0o77_777_777_777)),
        ] {
            assert_eq!(numeric(field), want, "{}", field.escape_ascii());
        }
    }
}
