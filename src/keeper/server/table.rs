//! What is held: ids, their descriptors, their processes, and the exits that nobody has acknowledged yet.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use crate::keeper::protocol::{EntryBody, Exit, MAX_NAME, PIDFD};
use crate::sys::seqpacket::MAX_FDS;

/// A held descriptor; the queue of a slow connection may share it for a while.
pub type Held = Rc<OwnedFd>;

/// One id.
#[derive(Debug, Default)]
pub struct Entry {
    pub pid: Option<i32>,
    /// The process is, or will be, a child of this keeper.
    pub own: bool,
    pub exit: Option<Exit>,
    pub in_flight: bool,
    pub fds: BTreeMap<String, Held>,
}

/// Every id.
#[derive(Debug, Default)]
pub struct Table {
    entries: BTreeMap<String, Entry>,
    /// Living children of this keeper that are registered.
    children: BTreeMap<i32, String>,
}

/// A name that can be an id or name a descriptor.
#[must_use]
pub fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME && !name.chars().any(char::is_control)
}

impl Table {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Entry> {
        self.entries.get(id)
    }

    /// The id has a process, or will have one.
    #[must_use]
    pub fn is_taken(&self, id: &str) -> bool {
        self.entries.get(id).is_some_and(|entry| entry.pid.is_some() || entry.in_flight)
    }

    /// The entry of an id, made if there is none.
    pub fn entry(&mut self, id: &str) -> &mut Entry {
        self.entries.entry(id.to_owned()).or_default()
    }

    /// Registers a process under an id.
    pub fn register(&mut self, id: &str, pid: i32, pidfd: Held, own: bool) {
        let entry = self.entry(id);
        entry.pid = Some(pid);
        entry.own = own;
        entry.in_flight = false;
        entry.fds.insert(PIDFD.to_owned(), pidfd);
        if own {
            self.children.insert(pid, id.to_owned());
        }
    }

    /// Takes back what a failed spawn has put under its id; an id that held nothing else is gone.
    pub fn withdraw(&mut self, id: &str, names: &[String]) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        entry.in_flight = false;
        for name in names {
            entry.fds.remove(name);
        }
        if entry.fds.is_empty() && entry.pid.is_none() {
            self.entries.remove(id);
        }
    }

    /// Drops all that is held for an id. A child of this keeper that still lives is then reaped unseen.
    pub fn forget(&mut self, id: &str) {
        if let Some(pid) = self.entries.remove(id).and_then(|entry| entry.pid)
            && self.children.get(&pid).is_some_and(|owner| owner == id)
        {
            self.children.remove(&pid);
        }
    }

    /// The id of a living registered child.
    #[must_use]
    pub fn is_child(&self, pid: i32) -> bool {
        self.children.contains_key(&pid)
    }

    /// Records the exit of a registered child and names its id. The number may be given to another process from now on.
    pub fn ended(&mut self, pid: i32, exit: Exit) -> Option<String> {
        let id = self.children.remove(&pid)?;
        self.entries.get_mut(&id)?.exit = Some(exit);
        Some(id)
    }

    /// The answers to `list`: as many for each id as its descriptors need.
    #[must_use]
    pub fn list(&self) -> Vec<(EntryBody, Vec<Held>)> {
        let mut parts = Vec::new();
        for (id, entry) in &self.entries {
            let names: Vec<&String> = entry.fds.keys().collect();
            let no_names: [&[&String]; 1] = [&[]];
            let chunks: Vec<&[&String]> =
                if names.is_empty() { no_names.to_vec() } else { names.chunks(MAX_FDS).collect() };
            for chunk in chunks {
                let body = EntryBody {
                    id: id.clone(),
                    pid: entry.pid,
                    own: entry.own,
                    exit: entry.exit,
                    in_flight: entry.in_flight,
                    names: chunk.iter().map(|name| (*name).clone()).collect(),
                };
                parts.push((body, chunk.iter().map(|name| Rc::clone(&entry.fds[*name])).collect()));
            }
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::protocol::ExitStatus;

    fn fd() -> Held {
        Rc::new(rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap())
    }

    #[test]
    fn an_exit_is_kept_until_it_is_forgotten_and_the_number_is_free_at_once() {
        let exit = Exit { status: ExitStatus::Code(7), finished_at_ns: 1 };
        let mut table = Table::default();
        table.register("a", 10, fd(), true);
        assert!(table.is_taken("a") && table.is_child(10));
        assert_eq!(table.ended(10, exit), Some("a".into()));
        assert_eq!(table.ended(10, exit), None);
        table.register("b", 10, fd(), true);
        table.forget("a");
        assert!(table.is_child(10), "forgetting the dead must not touch the living of the same number");
        table.forget("b");
        assert!(table.is_empty());
    }

    #[test]
    fn a_failed_spawn_takes_back_only_its_own() {
        let mut table = Table::default();
        table.entry("a").fds.insert("before".into(), fd());
        table.entry("a").fds.insert("mine".into(), fd());
        table.withdraw("a", &["mine".into()]);
        assert_eq!(table.get("a").unwrap().fds.keys().collect::<Vec<_>>(), ["before"]);
        table.entry("b").fds.insert("mine".into(), fd());
        table.withdraw("b", &["mine".into()]);
        assert!(table.get("b").is_none());
    }

    #[test]
    fn an_id_with_many_descriptors_is_listed_in_parts() {
        let mut table = Table::default();
        for n in 0..MAX_FDS + 1 {
            table.entry("a").fds.insert(format!("fd{n:02}"), fd());
        }
        table.entry("empty");
        let list = table.list();
        let sizes: Vec<_> = list.iter().map(|(body, fds)| (body.id.as_str(), body.names.len(), fds.len())).collect();
        assert_eq!(sizes, [("a", MAX_FDS, MAX_FDS), ("a", 1, 1), ("empty", 0, 0)]);
    }
}
