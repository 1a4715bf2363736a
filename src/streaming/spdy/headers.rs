//! Header blocks (SPDY protocol, draft 3.1, section 2.6.10): names and values inside one zlib stream for each direction of a
//! connection, which begins with a known dictionary.
//!
//! What we write is a valid zlib stream of stored blocks. A real compressor would hold a quarter of a mebibyte for each
//! connection, to shorten the four bytes of an empty SYN_REPLY, which is all that a server of ours sends.

use flate2::{Decompress, FlushDecompress, Status};

use super::dictionary::{DICTIONARY, ID};
use super::error::SpdyError;

/// The names and values of a block, in its order.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value of a header, whose name is compared without regard to case. Several values of one name are separated by
    /// zero bytes, as the protocol has it.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

impl<'a> FromIterator<(&'a str, &'a str)> for Headers {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect())
    }
}

/// Reads the blocks of one direction, each once and in order, those of unwanted streams too: a later block refers to them.
#[derive(Debug)]
pub struct Inflater {
    zlib: Decompress,
    max_bytes: usize,
    max_headers: u32,
}

impl Inflater {
    pub fn new(max_bytes: usize, max_headers: u32) -> Self {
        Self { zlib: Decompress::new(true), max_bytes, max_headers }
    }

    /// Reads one block.
    ///
    /// # Errors
    /// When it is damaged, or has more bytes or headers than allowed. The zlib stream is then of no more use, so the
    /// session has to end.
    pub fn read(&mut self, block: &[u8]) -> Result<Headers, SpdyError> {
        let bytes = self.inflate(block)?;
        parse(&bytes, self.max_headers)
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, SpdyError> {
        // One byte more than allowed, which tells a block that just fits from one that is too large.
        let mut bytes = Vec::with_capacity(self.max_bytes + 1);
        loop {
            let (read_before, had) = (self.zlib.total_in(), bytes.len());
            match self.zlib.decompress_vec(block, &mut bytes, FlushDecompress::Sync) {
                Ok(Status::StreamEnd) => return Err(damaged("the stream of all blocks ends")),
                Ok(Status::Ok | Status::BufError) => {}
                Err(error) if error.needs_dictionary() == Some(ID) => {
                    self.zlib.set_dictionary(&DICTIONARY).map_err(|_| damaged("the dictionary does not fit"))?;
                }
                Err(error) if error.needs_dictionary().is_some() => return Err(damaged("an unknown dictionary")),
                Err(_) => return Err(damaged("it does not inflate")),
            }
            let read = usize::try_from(self.zlib.total_in() - read_before).unwrap_or(block.len());
            block = block.get(read..).unwrap_or_default();
            if bytes.len() > self.max_bytes {
                return Err(SpdyError::HeaderBlockTooLarge { limit: self.max_bytes });
            }
            if block.is_empty() {
                return Ok(bytes);
            }
            if read == 0 && bytes.len() == had {
                return Err(damaged("it does not inflate further"));
            }
        }
    }
}

fn damaged(reason: &'static str) -> SpdyError {
    SpdyError::HeaderBlock { reason }
}

fn parse(mut bytes: &[u8], max_headers: u32) -> Result<Headers, SpdyError> {
    let count = number(&mut bytes)?;
    if count > max_headers {
        return Err(damaged("too many headers"));
    }
    let mut headers = Headers::default();
    for _ in 0..count {
        let name = text(&mut bytes)?;
        let value = text(&mut bytes)?;
        if name.is_empty() {
            return Err(damaged("a header without a name"));
        }
        if headers.get(&name).is_some() {
            return Err(damaged("a name twice"));
        }
        headers.0.push((name, value));
    }
    if bytes.is_empty() { Ok(headers) } else { Err(damaged("bytes after the last header")) }
}

fn number(bytes: &mut &[u8]) -> Result<u32, SpdyError> {
    let (word, rest) = bytes.split_first_chunk::<4>().ok_or_else(|| damaged("it ends early"))?;
    *bytes = rest;
    Ok(u32::from_be_bytes(*word))
}

/// A length is compared with what is there before anything is copied (CVE-2026-35469).
fn text(bytes: &mut &[u8]) -> Result<String, SpdyError> {
    let length = usize::try_from(number(bytes)?).unwrap_or(usize::MAX);
    let (text, rest) = bytes.split_at_checked(length).ok_or_else(|| damaged("a length beyond its end"))?;
    *bytes = rest;
    String::from_utf8(text.to_vec()).map_err(|_| damaged("text that is not UTF-8"))
}

/// Writes the blocks of one direction, in order.
#[derive(Debug, Default)]
pub struct Deflater {
    begun: bool,
}

/// Header of a zlib stream with a 32 KiB window and a dictionary (RFC 1950, section 2.2); together a multiple of 31.
const ZLIB_HEADER: [u8; 2] = [0x78, 0xbb];

/// The most that one stored block of deflate can hold (RFC 1951, section 3.2.4).
const STORED: usize = u16::MAX as usize;

impl Deflater {
    /// Writes one block.
    pub fn write(&mut self, headers: &Headers) -> Vec<u8> {
        let mut plain = Vec::new();
        put_length(&mut plain, headers.0.len());
        for (name, value) in &headers.0 {
            for text in [name, value] {
                put_length(&mut plain, text.len());
                plain.extend_from_slice(text.as_bytes());
            }
        }
        let mut block = Vec::with_capacity(plain.len() + 16);
        if !std::mem::replace(&mut self.begun, true) {
            block.extend_from_slice(&ZLIB_HEADER);
            block.extend_from_slice(&ID.to_be_bytes());
        }
        for part in plain.chunks(STORED) {
            let length = u16::try_from(part.len()).unwrap_or(u16::MAX);
            // Not the last block, stored; the rest of this byte is padding.
            block.push(0);
            block.extend_from_slice(&length.to_le_bytes());
            block.extend_from_slice(&(!length).to_le_bytes());
            block.extend_from_slice(part);
        }
        // An empty block, as a sync flush ends with one: Go's inflater hands out what it has only when it meets it.
        block.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
        block
    }
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
}
