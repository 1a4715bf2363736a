//! The daemon's own copy of what the keeper holds: what a new keeper is given when the old one dies.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::Held;
use super::start::Connected;
use crate::keeper::protocol::{EntryBody, Exit, PIDFD};

/// What is known of the end of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fate {
    pub exit: Option<Exit>,
    /// The living keeper is its parent, and will tell.
    pub own: bool,
}

#[derive(Debug, Default)]
struct Entry {
    fds: BTreeMap<String, Arc<OwnedFd>>,
    pid: Option<i32>,
    fate: watch::Sender<Fate>,
}

/// One entry, as a new keeper must be given it.
#[derive(Debug)]
pub struct Handover {
    pub id: String,
    pub pid: Option<i32>,
    pub exit: Option<Exit>,
    pub fds: Vec<(String, Arc<OwnedFd>)>,
}

/// A part of a list, with its descriptors.
pub type Listed = Vec<(EntryBody, Vec<OwnedFd>)>;

/// Every id. The lock is never held across an await, and guards plain maps: a panic elsewhere leaves them usable.
#[derive(Debug, Default)]
pub struct Mirror {
    entries: Mutex<BTreeMap<String, Entry>>,
    keeper: AtomicI32,
    enters_mount_namespaces: AtomicBool,
}

impl Mirror {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn keeper_pid(&self) -> i32 {
        self.keeper.load(Ordering::Relaxed)
    }

    pub fn enters_mount_namespaces(&self) -> bool {
        self.enters_mount_namespaces.load(Ordering::Relaxed)
    }

    /// Notes what the keeper said of itself.
    pub fn greet(&self, connected: &Connected) {
        self.keeper.store(connected.pid, Ordering::Relaxed);
        self.enters_mount_namespaces.store(connected.mount_namespaces, Ordering::Relaxed);
    }

    /// Follows a registered process; `None` when the id has none.
    pub fn watch(&self, id: &str) -> Option<watch::Receiver<Fate>> {
        self.lock().get(id).filter(|entry| entry.pid.is_some()).map(|entry| entry.fate.subscribe())
    }

    pub fn hold(&self, id: &str, fds: impl IntoIterator<Item = (String, Arc<OwnedFd>)>) {
        self.lock().entry(id.to_owned()).or_default().fds.extend(fds);
    }

    /// Takes back what a failed spawn has put under its id.
    pub fn withdraw(&self, id: &str, names: &[String]) {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(id) else { return };
        for name in names {
            entry.fds.remove(name);
        }
        if entry.fds.is_empty() && entry.pid.is_none() {
            entries.remove(id);
        }
    }

    pub fn register(&self, id: &str, pid: i32, pidfd: Arc<OwnedFd>, own: bool) {
        let mut entries = self.lock();
        let entry = entries.entry(id.to_owned()).or_default();
        entry.pid = Some(pid);
        entry.fds.insert(PIDFD.to_owned(), pidfd);
        entry.fate.send_replace(Fate { exit: None, own });
    }

    pub fn ended(&self, id: &str, pid: i32, exit: Exit) {
        if let Some(entry) = self.lock().get(id).filter(|entry| entry.pid == Some(pid)) {
            entry.fate.send_modify(|fate| fate.exit = Some(exit));
        }
    }

    pub fn forget(&self, id: &str) {
        // Outside of the lock: closing may take a moment.
        let entry = self.lock().remove(id);
        drop(entry);
    }

    /// The keeper has died: nobody will tell how its children end.
    pub fn orphan_all(&self) {
        for entry in self.lock().values() {
            entry.fate.send_modify(|fate| fate.own = false);
        }
    }

    /// All that a new keeper must be given.
    pub fn handovers(&self) -> Vec<Handover> {
        let all = |(id, entry): (&String, &Entry)| Handover {
            id: id.clone(),
            pid: entry.pid,
            exit: entry.fate.borrow().exit,
            fds: entry.fds.iter().map(|(name, fd)| (name.clone(), Arc::clone(fd))).collect(),
        };
        self.lock().iter().map(all).collect()
    }

    /// Takes over what the keeper says that it holds. Descriptors that are here already are not doubled.
    pub fn held(&self, listed: Listed) -> Vec<Held> {
        let mut all: BTreeMap<String, Held> = BTreeMap::new();
        let mut entries = self.lock();
        for (body, fds) in listed {
            let entry = entries.entry(body.id.clone()).or_default();
            entry.pid = body.pid;
            entry.fate.send_if_modified(|fate| {
                let now = Fate { exit: body.exit.or(fate.exit), own: body.own };
                std::mem::replace(fate, now) != now
            });
            let held = all.entry(body.id.clone()).or_insert_with(|| Held {
                id: body.id,
                pid: body.pid,
                exit: body.exit,
                in_flight: body.in_flight,
                fds: HashMap::new(),
            });
            for (name, fd) in body.names.into_iter().zip(fds) {
                let fd = entry.fds.entry(name.clone()).or_insert_with(|| Arc::new(fd));
                held.fds.insert(name, Arc::clone(fd));
            }
        }
        all.into_values().collect()
    }
}
