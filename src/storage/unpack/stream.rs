//! The byte stream of a layer: decompressed on a thread of its own, hashed and handed out in slices on the caller's.

use std::io::{self, BufReader, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use flate2::bufread::MultiGzDecoder;

use super::{Compression, UnpackError, zstd_window};
use crate::storage::digest::{Digest, Hasher};
use crate::storage::early::Early;
use crate::storage::skeleton;
use crate::sys::calm::Calm;

/// One buffer; large enough that handing it over costs nothing beside filling it.
const BUFFER: usize = 256 << 10;

/// Buffers under way between the two threads. With one in each hand, six in all: 1.5 MiB.
const UNDER_WAY: usize = 4;

enum Chunk {
    Data(Vec<u8>),
    End,
    Failed(UnpackError),
}

/// The uncompressed stream, as slices of whatever has arrived.
pub(super) struct Blocks {
    chunks: Receiver<Chunk>,
    used: Sender<Vec<u8>>,
    buffer: Vec<u8>,
    position: usize,
    taken: u64,
    ended: bool,
    hash: Hasher,
    received: u64,
    limit: u64,
    /// Gets every byte that is consumed.
    skeleton: Option<skeleton::Writer>,
    /// Is told of every buffer, when the stream becomes files.
    early: Option<Early>,
}

/// Runs `consume` on the uncompressed stream.
pub(super) fn decompressed<T>(
    compression: Compression,
    reader: impl Read + Send,
    limit: u64,
    consume: impl FnOnce(Blocks) -> Result<T, UnpackError>,
) -> Result<T, UnpackError> {
    let (send, chunks) = sync_channel(UNDER_WAY);
    let (used, reuse) = channel();
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("decompress".to_owned())
            .spawn_scoped(scope, move || produce(compression, reader, &send, &reuse))
            .map_err(|source| UnpackError::Thread { source })?;
        let blocks = Blocks {
            chunks,
            used,
            buffer: Vec::new(),
            position: 0,
            taken: 0,
            ended: false,
            hash: Hasher::new(),
            received: 0,
            limit,
            skeleton: None,
            early: None,
        };
        consume(blocks)
    })
}

fn produce(compression: Compression, reader: impl Read, send: &SyncSender<Chunk>, reuse: &Receiver<Vec<u8>>) {
    let _calm = Calm::begin();
    let mut input = BufReader::with_capacity(BUFFER, reader);
    let last = match std::io::BufRead::fill_buf(&mut input) {
        Err(source) => Chunk::Failed(UnpackError::Stream { compression, source }),
        Ok([]) => Chunk::Failed(UnpackError::Empty),
        Ok(_) => {
            let copied = match compression {
                Compression::None => copy(input, send, reuse),
                Compression::Gzip => copy(MultiGzDecoder::new(input), send, reuse),
                Compression::Zstd => zstd_window::decoded(input, |decoder| copy(decoder, send, reuse)),
            };
            match copied {
                Ok(()) => Chunk::End,
                Err(source) => Chunk::Failed(UnpackError::Stream { compression, source }),
            }
        }
    };
    // A consumer that is gone has an error of its own to tell.
    let _ = send.send(last);
}

/// Fills buffers until the source ends, or nobody wants them any more.
fn copy(mut source: impl Read, send: &SyncSender<Chunk>, reuse: &Receiver<Vec<u8>>) -> io::Result<()> {
    loop {
        let mut buffer = reuse.try_recv().unwrap_or_default();
        buffer.resize(BUFFER, 0);
        let mut filled = 0;
        let mut ended = false;
        while filled < BUFFER && !ended {
            match source.read(&mut buffer[filled..]) {
                Ok(0) => ended = true,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer.truncate(filled);
        if send.send(Chunk::Data(buffer)).is_err() || ended {
            return Ok(());
        }
    }
}

impl Blocks {
    /// What has arrived and is not consumed; empty only at the end of the stream.
    pub(super) fn fill(&mut self) -> Result<&[u8], UnpackError> {
        while self.position == self.buffer.len() && !self.ended {
            match self.chunks.recv() {
                Ok(Chunk::Data(buffer)) => {
                    let drained = std::mem::replace(&mut self.buffer, buffer);
                    self.position = 0;
                    if drained.capacity() > 0 {
                        // Nobody to reuse it when the stream has ended.
                        let _ = self.used.send(drained);
                    }
                    self.received += u64::try_from(self.buffer.len()).expect("a buffer is smaller than 2^64");
                    if self.received > self.limit {
                        return Err(UnpackError::Limit { what: "bytes", limit: self.limit });
                    }
                    self.hash.update(&self.buffer);
                    if let Some(early) = &self.early {
                        early.unpacked(self.buffer.len());
                    }
                }
                Ok(Chunk::End) => self.ended = true,
                Ok(Chunk::Failed(error)) => return Err(error),
                Err(_) => {
                    let source = io::Error::other("the decompression thread is gone");
                    return Err(UnpackError::Thread { source });
                }
            }
        }
        Ok(&self.buffer[self.position..])
    }

    /// Has all that is consumed written down.
    pub(super) fn recorded_in(mut self, skeleton: skeleton::Writer) -> Self {
        self.skeleton = Some(skeleton);
        self
    }

    /// What it becomes is written in portions.
    pub(super) fn written_by(mut self, early: Option<&Early>) -> Self {
        self.early = early.cloned();
        self
    }

    /// Marks bytes of the last slice as consumed. They are in no file of the tree.
    pub(super) fn consume(&mut self, bytes: usize) {
        let slice = self.advance(bytes);
        if let Some(skeleton) = &mut self.skeleton {
            skeleton.raw(&self.buffer[slice]);
        }
    }

    /// Marks bytes of the last slice as consumed. They went into a file.
    pub(super) fn consume_content(&mut self, bytes: usize) {
        let slice = self.advance(bytes);
        if let Some(skeleton) = &mut self.skeleton {
            skeleton.content(&self.buffer[slice]);
        }
    }

    fn advance(&mut self, bytes: usize) -> std::ops::Range<usize> {
        let from = self.position;
        self.position = (from + bytes).min(self.buffer.len());
        self.taken += u64::try_from(bytes).expect("a buffer is smaller than 2^64");
        from..self.position
    }

    /// What writes down the bytes, when something does.
    pub(super) fn skeleton(&mut self) -> Option<&mut skeleton::Writer> {
        self.skeleton.as_mut()
    }

    /// Bytes consumed so far.
    pub(super) fn position(&self) -> u64 {
        self.taken
    }

    /// Fills a buffer; says how much of it could be filled before the stream ended.
    pub(super) fn read_full(&mut self, into: &mut [u8]) -> Result<usize, UnpackError> {
        let mut filled = 0;
        while filled < into.len() {
            let slice = self.fill()?;
            if slice.is_empty() {
                break;
            }
            let step = slice.len().min(into.len() - filled);
            into[filled..filled + step].copy_from_slice(&slice[..step]);
            self.consume(step);
            filled += step;
        }
        Ok(filled)
    }

    /// The digest of all that was received, and what wrote it down; call it at the end.
    pub(super) fn finish(self) -> (Digest, Option<skeleton::Writer>) {
        (self.hash.finish(), self.skeleton)
    }
}
