//! Clients that look on at a container's output.
//!
//! ```text
//!                       ┌─ live ────▶ queue (256 KiB) ──────────────────┐
//!   monitor ─▶ log, then│              │ full          ▲ caught up       ├─▶ client
//!                       └─ behind ──▶  ▼  the log, from where the queue ended ┘
//! ```
//!
//! A client reads at its own pace and never holds up the monitor, whose part is one push into a queue under a lock that
//! nobody keeps for longer than that. When the queue is full the client is *behind*: from then on the monitor only notes
//! how far the log goes, and the client reads the log itself, whose records give back exactly what the container wrote
//! (`replay`). Once it has read all, it is live again; monitor and client decide that under the same lock, so no byte
//! comes twice or not at all. Rotated logs stay open for a client that has not read them yet.
//!
//! What cannot be delivered whole is an error to the client, never a gap: a client that falls behind where there is no
//! log, or whose log is changed by somebody else, or that is [`MAX_ROTATIONS`] rotations behind.
//!
//! A client costs at most [`QUEUE`] bytes here, and twice [`READ`] while it is behind.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::log::Stream;
use super::replay::{self, Records};

/// What waits for one client at most, in bytes.
pub const QUEUE: usize = 256 * 1024;

/// Log files that are kept open for a client that is behind. Each may be a deleted file whose space is not free yet, so
/// this bounds the disk that an idle client costs: as many times the size at which the kubelet rotates.
pub const MAX_ROTATIONS: usize = 8;

/// What one read of the log takes at most, in bytes.
const READ: usize = 64 * 1024;

/// What a piece in a queue costs beside its text, in bytes, so that many small ones are bounded too.
const PIECE_COST: usize = 64;

/// Which streams a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wants {
    pub stdout: bool,
    pub stderr: bool,
}

impl Wants {
    fn has(self, stream: Stream) -> bool {
        match stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        }
    }
}

/// Some output, as the container wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub stream: Stream,
    pub bytes: Arc<[u8]>,
}

/// Why a client can be given no more output.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OutletError {
    #[error("the client fell {QUEUE} bytes behind, and the container has no log from which it could catch up")]
    NoLog,
    #[error("the client fell behind, and a part of what it missed could not be written to the container's log")]
    NotLogged,
    #[error("the client fell behind by more than {MAX_ROTATIONS} rotations of the container's log")]
    TooFarBehind,
    #[error("the client fell behind, and the container's log was changed by somebody else")]
    LogChanged,
    #[error("the client fell behind, and the container's log cannot be read")]
    ReadLog { source: Arc<io::Error> },
}

/// Where the records of some output are.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) file: Arc<File>,
    pub(super) start: u64,
    pub(super) end: u64,
}

/// A part of a log that a client has yet to read.
#[derive(Debug, Clone)]
struct Segment {
    file: Arc<File>,
    at: u64,
    /// A boundary of records, always.
    end: u64,
}

#[derive(Debug)]
struct Queue {
    wants: Wants,
    pieces: VecDeque<Piece>,
    cost: usize,
    /// Empty for a client that is live.
    behind: VecDeque<Segment>,
    failure: Option<OutletError>,
    wake: Arc<Notify>,
}

impl Queue {
    fn push(&mut self, piece: &Piece, place: Option<&Place>) {
        if self.failure.is_some() {
            return;
        }
        if let Some(segment) = self.behind.back_mut() {
            match place {
                Some(place) => segment.end = place.end,
                None => self.fail(OutletError::NotLogged),
            }
            return;
        }
        if !self.wants.has(piece.stream) {
            return;
        }
        let cost = piece.bytes.len() + PIECE_COST;
        if self.cost + cost <= QUEUE {
            self.cost += cost;
            self.pieces.push_back(piece.clone());
            self.wake.notify_one();
            return;
        }
        match place {
            Some(place) => {
                self.behind.push_back(Segment { file: place.file.clone(), at: place.start, end: place.end });
            }
            None => self.fail(OutletError::NoLog),
        }
    }

    fn fail(&mut self, failure: OutletError) {
        // The files are let go of at once; what is in the queue is still delivered.
        self.behind.clear();
        self.failure = Some(failure);
        self.wake.notify_one();
    }

    /// What the client does next.
    fn next(&mut self, ended: bool) -> Next {
        if let Some(piece) = self.pieces.pop_front() {
            self.cost -= piece.bytes.len() + PIECE_COST;
            return Next::Piece(piece);
        }
        if let Some(failure) = &self.failure {
            return Next::Failed(failure.clone());
        }
        while let Some(segment) = self.behind.front() {
            if segment.at < segment.end {
                return Next::Read(segment.clone());
            }
            // All is read. After the last one the client is live again, before the monitor can push anything.
            self.behind.pop_front();
        }
        if ended { Next::End } else { Next::Wait }
    }
}

enum Next {
    Piece(Piece),
    Read(Segment),
    Wait,
    End,
    Failed(OutletError),
}

#[derive(Debug, Default)]
struct Registry {
    queues: BTreeMap<u64, Queue>,
    next_key: u64,
    ended: bool,
}

/// The clients of one container. The lock is never held across an await or a call of the kernel.
#[derive(Debug, Default)]
pub(super) struct Outlets {
    registry: Mutex<Registry>,
}

impl Outlets {
    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client from now on; `None` when there will be no more output.
    pub(super) fn open(this: &Arc<Self>, wants: Wants) -> Option<Outlet> {
        let wake = Arc::new(Notify::new());
        let mut registry = this.lock();
        if registry.ended {
            return None;
        }
        let key = registry.next_key;
        registry.next_key += 1;
        let (pieces, behind) = (VecDeque::new(), VecDeque::new());
        registry.queues.insert(key, Queue { wants, pieces, cost: 0, behind, failure: None, wake: wake.clone() });
        drop(registry);
        Some(Outlet { outlets: this.clone(), key, wants, wake, records: Records::default(), ready: VecDeque::new() })
    }

    /// Somebody looks on.
    pub(super) fn is_watched(&self) -> bool {
        !self.lock().queues.is_empty()
    }

    /// Hands output on that is in the log at `place`, or in none.
    pub(super) fn push(&self, stream: Stream, bytes: &[u8], place: Option<Place>) {
        let piece = Piece { stream, bytes: bytes.into() };
        for queue in self.lock().queues.values_mut() {
            queue.push(&piece, place.as_ref());
        }
    }

    /// The log goes on in another file, of this length so far.
    pub(super) fn reopened(&self, file: &Arc<File>, length: Option<u64>) {
        for queue in self.lock().queues.values_mut().filter(|queue| !queue.behind.is_empty()) {
            match length {
                _ if queue.behind.len() > MAX_ROTATIONS => queue.fail(OutletError::TooFarBehind),
                Some(length) => queue.behind.push_back(Segment { file: file.clone(), at: length, end: length }),
                None => queue.fail(OutletError::NotLogged),
            }
        }
    }

    /// There will be no more output; clients still get what there was.
    pub(super) fn end(&self) {
        let mut registry = self.lock();
        registry.ended = true;
        for queue in registry.queues.values() {
            queue.wake.notify_one();
        }
    }
}

/// One client's view of the output. Dropping it detaches.
#[derive(Debug)]
pub struct Outlet {
    outlets: Arc<Outlets>,
    key: u64,
    wants: Wants,
    wake: Arc<Notify>,
    records: Records,
    /// What one read of the log gave.
    ready: VecDeque<Piece>,
}

impl Outlet {
    /// The next piece of output, waiting for one; `None` when there will be none any more.
    ///
    /// # Errors
    /// [`OutletError`] when what follows cannot be given whole; nothing is given after that.
    pub async fn next(&mut self) -> Result<Option<Piece>, OutletError> {
        loop {
            match self.step() {
                Next::Piece(piece) => return Ok(Some(piece)),
                Next::End => return Ok(None),
                Next::Failed(error) => return Err(error),
                Next::Wait => self.wake.notified().await,
                Next::Read(segment) => {
                    let read = crate::task::blocking(move || Self::read(&segment)).await;
                    self.take(read)?;
                }
            }
        }
    }

    fn step(&mut self) -> Next {
        if let Some(piece) = self.ready.pop_front() {
            return Next::Piece(piece);
        }
        let mut registry = self.outlets.lock();
        let ended = registry.ended;
        registry.queues.get_mut(&self.key).map_or(Next::End, |queue| queue.next(ended))
    }

    fn read(segment: &Segment) -> io::Result<Vec<u8>> {
        let left = usize::try_from(segment.end - segment.at).unwrap_or(READ);
        replay::read_at(&segment.file, segment.at, left.min(READ))
    }

    /// Takes what was read of the first segment.
    fn take(&mut self, read: io::Result<Vec<u8>>) -> Result<(), OutletError> {
        let taken = read.map_err(|source| OutletError::ReadLog { source: Arc::new(source) }).and_then(|bytes| {
            // A file that is shorter than what was written to it was cut by somebody.
            if bytes.is_empty() {
                return Err(OutletError::LogChanged);
            }
            let (wants, ready) = (self.wants, &mut self.ready);
            let give = |stream, text: &[u8]| {
                if wants.has(stream) {
                    ready.push_back(Piece { stream, bytes: text.into() });
                }
            };
            self.records.read(&bytes, give).map_err(|_| OutletError::LogChanged)?;
            Ok(bytes.len() as u64)
        });
        let mut registry = self.outlets.lock();
        let Some(queue) = registry.queues.get_mut(&self.key) else { return Ok(()) };
        let result = taken.and_then(|taken| {
            // A failure that came meanwhile has taken the segments away.
            let Some(segment) = queue.behind.front_mut() else { return Ok(()) };
            segment.at += taken;
            if segment.at == segment.end && !self.records.at_rest() {
                return Err(OutletError::LogChanged);
            }
            Ok(())
        });
        if let Err(error) = &result {
            queue.fail(error.clone());
        }
        result
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        // Outside of the lock: closing files may take a moment.
        let queue = self.outlets.lock().queues.remove(&self.key);
        drop(queue);
    }
}

#[cfg(test)]
#[path = "outlets/tests.rs"]
mod tests;
