//! What is unpacked goes to the disk while the rest still comes, so that the commit has little left to wait for.
//!
//! The kernel alone would begin when the memory for unwritten pages runs low, or half a minute later; the `syncfs` of the
//! commit then waited for everything, with idle processors, after it had waited for processors with an idle disk.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::sys::calm::Calm;
use crate::sys::root::Root;

/// Unpacked bytes after which the disk gets them. Smaller portions cost more of the journal's time, larger ones leave more to
/// the commit; between 100 and 200 MB there is no difference to be measured.
const PORTION: u64 = 192 << 20;

/// Counts what is unpacked into one file system. Clones count together.
#[derive(Debug, Clone)]
pub(super) struct Early(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    portion: AtomicU64,
    unwritten: AtomicU64,
    writing: AtomicBool,
}

impl Early {
    pub(super) fn new(folder: PathBuf) -> Self {
        let (portion, unwritten) = (AtomicU64::new(PORTION), AtomicU64::new(0));
        Self(Arc::new(Inner { folder, portion, unwritten, writing: AtomicBool::new(false) }))
    }

    /// Notes bytes that were unpacked, and has a portion written once there is one. Never waits.
    pub(super) fn unpacked(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).expect("a buffer is smaller than 2^64");
        let unwritten = self.0.unwritten.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if unwritten < self.0.portion.load(Ordering::Relaxed) || self.0.writing.swap(true, Ordering::Relaxed) {
            return;
        }
        self.0.unwritten.store(0, Ordering::Relaxed);
        let inner = Arc::clone(&self.0);
        let started = std::thread::Builder::new().name("write-early".to_owned()).spawn(move || inner.write());
        if let Err(error) = started {
            // Nothing is lost by it: the commit writes what there is.
            self.0.writing.store(false, Ordering::Relaxed);
            tracing::debug!(%error, "no thread to write early");
        }
    }

    /// The commit has written everything.
    pub(super) fn written(&self) {
        self.0.unwritten.store(0, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn each(&self, portion: u64) {
        self.0.portion.store(portion, Ordering::Relaxed);
    }
}

impl Inner {
    fn write(&self) {
        let _calm = Calm::begin();
        // Opened anew: each open file is told once of a write that failed, and the one that the commit asks by must be.
        let written = Root::open(&self.folder).and_then(|folder| Ok(rustix::fs::syncfs(&folder)?));
        self.writing.store(false, Ordering::Relaxed);
        if let Err(error) = written {
            tracing::warn!(folder = %self.folder.display(), %error, "what is unpacked cannot be written");
        }
    }
}
