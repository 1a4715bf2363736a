//! A peer without rules: it sends the bytes that a test gives it and shows every frame that comes back. Its header blocks are
//! compressed as Go's client compresses them.

use flate2::{Compress, Compression, FlushCompress};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::super::dictionary::DICTIONARY;
use super::super::frame::{self, Head};
use super::super::{Incoming, Limits, Session, Status, server};
use super::soon;

/// A frame as it came.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    SynReply(u32),
    Reset(u32, Status),
    Settings(Vec<(u32, u32)>),
    Ping(u32),
    /// Last stream, status.
    GoAway(u32, u32),
    Window(u32, u32),
    Data(u32, bool, Vec<u8>),
}

pub struct Raw {
    pub io: DuplexStream,
    zlib: Compress,
}

/// A session as the server, and its peer.
pub fn raw(limits: Limits) -> (Raw, Session, Incoming) {
    let (near, far) = duplex(64 * 1024);
    let (session, incoming) = server(far, limits);
    (Raw { io: near, zlib: compressor() }, session, incoming)
}

pub fn compressor() -> Compress {
    let mut zlib = Compress::new(Compression::best(), true);
    zlib.set_dictionary(&DICTIONARY).unwrap();
    zlib
}

/// A header block before compression, with whatever count is given.
pub fn plain(count: u32, pairs: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut plain = count.to_be_bytes().to_vec();
    for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
        plain.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
        plain.extend_from_slice(text);
    }
    plain
}

pub fn compress(zlib: &mut Compress, plain: &[u8]) -> Vec<u8> {
    let mut block = Vec::with_capacity(plain.len() + 1000);
    let before = zlib.total_in();
    zlib.compress_vec(plain, &mut block, FlushCompress::Sync).unwrap();
    assert_eq!(zlib.total_in() - before, plain.len() as u64);
    block
}

/// A control frame of version 3.
pub fn control(kind: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x80, 3];
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
    bytes[4] = flags;
    bytes.extend_from_slice(payload);
    bytes
}

pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

pub fn data(stream: u32, fin: bool, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::put_data_head(&mut out, stream, fin, bytes.len());
    out.extend_from_slice(bytes);
    out
}

impl Raw {
    pub fn compress(&mut self, plain: &[u8]) -> Vec<u8> {
        compress(&mut self.zlib, plain)
    }

    pub fn syn(&mut self, stream: u32, flags: u8) -> Vec<u8> {
        let block = self.compress(&plain(1, &[(b"streamtype", b"data")]));
        self.syn_with(stream, flags, &block)
    }

    pub fn syn_with(&mut self, stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
        let mut payload = words(&[stream, 0]);
        payload.extend_from_slice(&[0, 0]);
        payload.extend_from_slice(block);
        control(1, flags, &payload)
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        soon("the session to read", self.io.write_all(bytes)).await.unwrap();
    }

    /// The next frame; `None` at the end of the connection.
    pub async fn see(&mut self) -> Option<Seen> {
        let mut bytes = [0; 8];
        soon("a frame or the end", self.io.read_exact(&mut bytes)).await.ok()?;
        let head = frame::head(bytes);
        let length = match head {
            Head::Control { length, .. } | Head::Data { length, .. } => length as usize,
        };
        let mut payload = vec![0; length];
        soon("the rest of a frame", self.io.read_exact(&mut payload)).await.unwrap();
        Some(seen(head, payload))
    }

    /// Frames up to the first that is not a greeting, which every session sends after the peer's first byte.
    pub async fn see_after_greeting(&mut self) -> Option<Seen> {
        loop {
            match self.see().await {
                Some(Seen::Settings(_) | Seen::Window(0, _)) => {}
                other => return other,
            }
        }
    }
}

fn seen(head: Head, payload: Vec<u8>) -> Seen {
    let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
    match head {
        Head::Data { stream, fin, .. } => Seen::Data(stream, fin, payload),
        Head::Control { version: 3, kind: 2, .. } => Seen::SynReply(word(0)),
        Head::Control { version: 3, kind: 3, .. } => Seen::Reset(word(0), Status(word(4))),
        Head::Control { version: 3, kind: 4, .. } => {
            assert_eq!(payload.len(), 4 + 8 * word(0) as usize);
            Seen::Settings((0..word(0) as usize).map(|at| (word(4 + 8 * at), word(8 + 8 * at))).collect())
        }
        Head::Control { version: 3, kind: 6, .. } => Seen::Ping(word(0)),
        Head::Control { version: 3, kind: 7, .. } => Seen::GoAway(word(0), word(4)),
        Head::Control { version: 3, kind: 9, .. } => Seen::Window(word(0), word(4)),
        other => panic!("{other:?}"),
    }
}
