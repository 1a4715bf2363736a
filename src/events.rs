//! What happened to sandboxes and containers, for whoever wants to hear of it (GetContainerEvents).
//!
//! ```text
//!   pod driver ───────┐                                   ┌─▶ subscription
//!                     ├─▶ table of records ─▶ ring (2048) ┼─▶ subscription
//!   container driver ─┘   (what a list shows)             └─▶ subscription
//! ```
//!
//! A driver tells of a change *after* it has published the record that shows it, so whoever hears an event and then asks
//! finds at least that state. All tellings go through one short lock: events have one order for the whole node, and each
//! carries the sandbox and its containers exactly as they were then, never as they are by the time that it is read.
//!
//! **Telling never waits.** The ring holds the last [`RING`] events for all subscribers together. One that falls further
//! behind has lost some, and is told so instead of being left with gaps ([`Missed`]); it lists everything and subscribes
//! anew, as after a restart of the daemon. Nothing is replayed. With no subscriber an event costs a look at a counter.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use crate::state::{ContainerRecord, SandboxRecord};
use crate::sys::host::now_ns;

/// Events that a subscriber may be behind. A node of 110 pods makes some 1300 when all of them start.
pub const RING: usize = 2048;

/// Subscribers at most. A node has one kubelet, and perhaps a few agents.
pub const SUBSCRIBERS: usize = 64;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Created,
    Started,
    Stopped,
    Deleted,
}

/// One event. The records are those that everybody else reads, not copies.
#[derive(Debug, Clone)]
pub struct Event {
    /// The container's, or the sandbox's own.
    pub id: String,
    pub kind: Kind,
    /// The pod as it was then.
    pub pod: Moment,
}

/// A pod at one point of the order of events.
#[derive(Debug, Clone, Default)]
pub struct Moment {
    /// Nanoseconds since 1970; it never goes back from one event to the next.
    pub at: i64,
    /// Of a sandbox that has just been removed, the last there was.
    pub sandbox: Option<Arc<SandboxRecord>>,
    /// All its containers, oldest first.
    pub containers: Vec<Arc<ContainerRecord>>,
}

/// The node's events. Clones are the same.
#[derive(Debug, Clone)]
pub struct Events {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    table: Mutex<Table>,
    ring: broadcast::Sender<Arc<Event>>,
}

#[derive(Debug, Default)]
struct Table {
    pods: HashMap<String, PodRecords>,
    last: i64,
}

#[derive(Debug, Default)]
struct PodRecords {
    sandbox: Option<Arc<SandboxRecord>>,
    containers: BTreeMap<String, Arc<ContainerRecord>>,
}

/// One reader of the events.
#[derive(Debug)]
pub struct Subscription {
    ring: broadcast::Receiver<Arc<Event>>,
}

/// The subscriber was so far behind that `count` events are lost to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{count} events were not read in time and are lost; list everything and subscribe again")]
pub struct Missed {
    pub count: u64,
}

/// [`SUBSCRIBERS`] are there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there are {SUBSCRIBERS} subscribers to events already")]
pub struct Crowded;

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

impl Events {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new() -> Self {
        Self::with_ring(RING)
    }

    fn with_ring(size: usize) -> Self {
        Self { inner: Arc::new(Inner { table: Mutex::default(), ring: broadcast::Sender::new(size) }) }
    }

    /// A container's record as it was just published, and what that means; nothing for a change that is no event.
    pub fn container(&self, record: &Arc<ContainerRecord>, kinds: &[Kind]) {
        let mut table = self.table();
        let pod = table.pods.entry(record.sandbox_id.clone()).or_default();
        if kinds.contains(&Kind::Deleted) {
            pod.containers.remove(&record.id);
        } else {
            pod.containers.insert(record.id.clone(), record.clone());
        }
        self.tell(&mut table, &record.sandbox_id, &record.id, kinds);
        table.drop_if_empty(&record.sandbox_id);
    }

    /// A sandbox's record as it was just published, and what that means.
    pub fn sandbox(&self, record: &Arc<SandboxRecord>, kinds: &[Kind]) {
        let mut table = self.table();
        table.pods.entry(record.id.clone()).or_default().sandbox = Some(record.clone());
        self.tell(&mut table, &record.id, &record.id, kinds);
        if kinds.contains(&Kind::Deleted) {
            table.pods.entry(record.id.clone()).or_default().sandbox = None;
            table.drop_if_empty(&record.id);
        }
    }

    /// A sandbox and its containers as they are now: every event from before is in it, and none from after.
    #[must_use]
    pub fn moment(&self, sandbox_id: &str) -> Moment {
        self.table().moment(sandbox_id)
    }

    /// Hears every event from now on.
    ///
    /// # Errors
    /// [`Crowded`] when [`SUBSCRIBERS`] listen already.
    pub fn subscribe(&self) -> Result<Subscription, Crowded> {
        // Below the lock, so that two cannot take the last place.
        let _table = self.table();
        if self.inner.ring.receiver_count() >= SUBSCRIBERS {
            return Err(Crowded);
        }
        Ok(Subscription { ring: self.inner.ring.subscribe() })
    }

    fn tell(&self, table: &mut Table, sandbox_id: &str, id: &str, kinds: &[Kind]) {
        if self.inner.ring.receiver_count() == 0 {
            return;
        }
        for kind in kinds {
            let event = Event { id: id.to_owned(), kind: *kind, pod: table.moment(sandbox_id) };
            // The last subscriber may just have gone.
            let _ = self.inner.ring.send(Arc::new(event));
        }
    }

    /// Held for a change of the maps and a send that does not block, never across an await.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.inner.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn moment(&mut self, sandbox_id: &str) -> Moment {
        // The clock may be set back; the order may not.
        self.last = now_ns().max(self.last);
        let Some(pod) = self.pods.get(sandbox_id) else { return Moment { at: self.last, ..Moment::default() } };
        let mut containers: Vec<_> = pod.containers.values().cloned().collect();
        containers.sort_by_key(|record| record.created_at);
        Moment { at: self.last, sandbox: pod.sandbox.clone(), containers }
    }

    fn drop_if_empty(&mut self, sandbox_id: &str) {
        if self.pods.get(sandbox_id).is_some_and(|pod| pod.sandbox.is_none() && pod.containers.is_empty()) {
            self.pods.remove(sandbox_id);
        }
    }
}

impl Subscription {
    /// The next event; `None` once the daemon ends. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`Missed`], once, when events are lost; what comes after it is without gaps again.
    pub async fn next(&mut self) -> Result<Option<Arc<Event>>, Missed> {
        match self.ring.recv().await {
            Ok(event) => Ok(Some(event)),
            Err(broadcast::error::RecvError::Closed) => Ok(None),
            Err(broadcast::error::RecvError::Lagged(count)) => Err(Missed { count }),
        }
    }
}

#[cfg(test)]
mod tests;
