//! The sizes of writable layers: counted by a walk of the disk, which may be slow, and therefore behind everybody's back.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::sys::host::now_ns;

/// How old a count may be before it is taken anew.
const DISK_AGE: Duration = Duration::from_secs(30);

/// How long a question waits for the first count of a container; after it the answer goes out without.
const FIRST_COUNT: Duration = Duration::from_millis(200);

/// What a writable layer occupies, and when that was counted (nanoseconds since 1970).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUse {
    pub timestamp: i64,
    pub bytes: u64,
    pub inodes: u64,
}

/// Counts the bytes and inodes of a container's layer; `None` when there is none.
type Count = dyn Fn(&str) -> Option<(u64, u64)> + Send + Sync;

/// The counts of all containers. One thread counts, one container after the other: a walk that hangs leaves old counts,
/// and holds up no answer. Clones share them.
#[derive(Clone)]
pub struct Disks {
    inner: Arc<Inner>,
}

struct Inner {
    device: String,
    count: Box<Count>,
    table: Mutex<Table>,
    done: watch::Sender<()>,
}

#[derive(Default)]
struct Table {
    entries: HashMap<String, Entry>,
    waiting: VecDeque<String>,
    /// The thread is at work, and looks at what waits before it ends.
    counting: bool,
}

#[derive(Default)]
struct Entry {
    last: Option<DiskUse>,
    /// When the last count ended.
    at: Option<Instant>,
    waits: bool,
}

impl fmt::Debug for Disks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disks").field("known", &self.table().entries.len()).finish()
    }
}

impl Disks {
    /// Nothing is counted yet. All layers lie on one block device, of this name.
    #[must_use]
    pub fn new(device: String, count: impl Fn(&str) -> Option<(u64, u64)> + Send + Sync + 'static) -> Self {
        let done = watch::Sender::new(());
        Self { inner: Arc::new(Inner { device, count: Box::new(count), table: Mutex::default(), done }) }
    }

    /// The block device on which the layers lie.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.inner.device
    }

    /// Has the old and the missing counts of these containers taken; waits a moment for those that are missing.
    pub async fn refresh(&self, ids: &[&str]) {
        let deadline = tokio::time::Instant::now() + FIRST_COUNT;
        let mut done = self.inner.done.subscribe();
        if self.enqueue(ids) {
            let this = self.clone();
            crate::task::spawn("disk-count", async move {
                crate::task::blocking(move || while this.count_one() {}).await;
            });
        }
        while self.some_missing(ids) {
            if tokio::time::timeout_at(deadline, done.changed()).await.is_err() {
                return;
            }
        }
    }

    /// The last count of a container.
    #[must_use]
    pub fn last(&self, id: &str) -> Option<DiskUse> {
        self.table().entries.get(id)?.last
    }

    /// A container is no more.
    pub fn forget(&self, id: &str) {
        self.table().entries.remove(id);
    }

    /// Notes what is due; says whether a thread must be started for it.
    fn enqueue(&self, ids: &[&str]) -> bool {
        let mut table = self.table();
        let Table { entries, waiting, counting } = &mut *table;
        for id in ids {
            let entry = entries.entry((*id).to_owned()).or_default();
            if !entry.waits && entry.at.is_none_or(|at| at.elapsed() >= DISK_AGE) {
                entry.waits = true;
                waiting.push_back((*id).to_owned());
            }
        }
        !waiting.is_empty() && !std::mem::replace(counting, true)
    }

    /// On the counting thread; says whether to go on.
    fn count_one(&self) -> bool {
        let id = {
            let mut table = self.table();
            match table.waiting.pop_front() {
                Some(id) => id,
                None => {
                    table.counting = false;
                    return false;
                }
            }
        };
        let counted = (self.inner.count)(&id);
        if let Some(entry) = self.table().entries.get_mut(&id) {
            let fresh = counted.map(|(bytes, inodes)| DiskUse { timestamp: now_ns(), bytes, inodes });
            *entry = Entry { last: fresh.or(entry.last), at: Some(Instant::now()), waits: false };
        }
        self.inner.done.send_replace(());
        true
    }

    fn some_missing(&self, ids: &[&str]) -> bool {
        let table = self.table();
        ids.iter().any(|id| table.entries.get(*id).is_some_and(|entry| entry.at.is_none()))
    }

    /// Held for look-ups, never across a count or an await.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.inner.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_count_is_taken_once_and_kept() {
        let counts = Arc::new(AtomicU64::new(0));
        let seen = counts.clone();
        let disks = Disks::new("/dev/vda".to_owned(), move |id| {
            let n = seen.fetch_add(1, Ordering::Relaxed);
            (id != "gone").then_some((100 + n, 1))
        });
        disks.refresh(&["a", "gone"]).await;
        disks.refresh(&["a", "gone"]).await;
        assert_eq!(counts.load(Ordering::Relaxed), 2);
        assert_eq!(disks.last("a").map(|usage| (usage.bytes, usage.inodes)), Some((100, 1)));
        assert_eq!(disks.last("gone"), None);
        disks.forget("a");
        assert_eq!(disks.last("a"), None);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_walk_that_hangs_holds_up_no_answer() {
        let (go, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let disks = Disks::new("/dev/vda".to_owned(), move |_| {
            let _ = gate.lock().unwrap().recv();
            Some((7, 1))
        });
        // It returns although the count never ends; what hangs is not counted a second time meanwhile.
        disks.refresh(&["slow"]).await;
        disks.refresh(&["slow", "other"]).await;
        assert_eq!(disks.last("slow"), None);
        assert_eq!(disks.table().waiting.len(), 1, "only the other one waits");
        drop(go);
        let mut done = disks.inner.done.subscribe();
        while disks.last("slow").is_none() || disks.last("other").is_none() {
            done.changed().await.unwrap();
        }
    }
}
