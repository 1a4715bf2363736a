//! From the async download to the blocking unpacker: a bounded channel read as a stream, hashed on the way.

use std::io::{self, Read};

use tokio::sync::mpsc;

use super::super::document::ContentError;
use super::super::registry::Bytes;
use crate::storage::{Digest, Hasher};

/// The reading end. It ends after exactly the bytes that the descriptor promised: a download that stops earlier is an
/// error, never an end of file, so that no unpacker takes a cut layer for a whole one.
#[derive(Debug)]
pub(super) struct Pipe {
    pieces: mpsc::Receiver<Bytes>,
    current: Bytes,
    hasher: Hasher,
    seen: u64,
    size: u64,
}

impl Pipe {
    pub(super) fn new(pieces: mpsc::Receiver<Bytes>, size: u64) -> Self {
        Self { pieces, current: Bytes::new(), hasher: Hasher::new(), seen: 0, size }
    }

    /// Reads what the unpacker left and compares the digest.
    ///
    /// # Errors
    /// [`PipeError::Stopped`] when the download ended early, [`PipeError::Content`] when it is not the right content.
    pub(super) fn finish(mut self, want: &Digest) -> Result<(), PipeError> {
        io::copy(&mut self, &mut io::sink()).map_err(|_| PipeError::Stopped)?;
        let got = self.hasher.finish();
        if got == *want {
            Ok(())
        } else {
            Err(PipeError::Content(ContentError::Digest { what: "the layer", want: want.clone(), got }))
        }
    }
}

/// Why a pipe did not end well.
#[derive(Debug)]
pub(super) enum PipeError {
    Stopped,
    Content(ContentError),
}

impl Read for Pipe {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        while self.current.is_empty() {
            if self.seen == self.size {
                return Ok(0);
            }
            match self.pieces.blocking_recv() {
                Some(piece) => {
                    self.hasher.update(&piece);
                    self.seen += u64::try_from(piece.len()).unwrap_or(u64::MAX);
                    self.current = piece;
                }
                None => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the download stopped")),
            }
        }
        let n = self.current.len().min(into.len());
        into[..n].copy_from_slice(&self.current.split_to(n));
        Ok(n)
    }
}
