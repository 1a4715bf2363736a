//! Watching the folder of configurations: inotify where it can be had, and a poll that carries everything without it.
//!
//! The folder may be missing, deleted and made again, or be renamed over. So its nearest parent that exists is watched too,
//! and all watches are set anew at each look: a watch on a folder that is gone can never be the only one.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use inotify::{Event, EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::io::unix::AsyncFd;

use super::Network;
use crate::{sys, task};

/// Between looks while the network is not ready, or when inotify cannot be had.
const SOON: Duration = Duration::from_secs(5);
/// Between looks while it is ready: what plugins say of themselves (STATUS) changes without a trace in the folder.
const LATER: Duration = Duration::from_secs(30);
/// A folder is written file by file; a look waits so long for the rest.
const SETTLE: Duration = Duration::from_millis(50);
/// Least time between two looks, however often the status is asked for.
const PAUSE: Duration = Duration::from_secs(1);
/// Most folders inside the folder that are watched too.
const FOLDERS_MAX: usize = 16;

impl Network {
    /// Starts the watcher and what is done in the background; all end when the last owner of the network is gone.
    pub fn start(self: &Arc<Self>) {
        self.start_retries();
        // The handle is not needed: the task ends by itself, and has nothing to hand back.
        drop(task::spawn("network-watch", watch(Arc::downgrade(self))));
    }
}

async fn watch(network: Weak<Network>) {
    let mut watcher = Watcher::new();
    if let Err(error) = &watcher {
        tracing::warn!(%error, "no inotify for the CNI configuration: it is read every {} s", SOON.as_secs());
    }
    loop {
        let (poke, period) = {
            let Some(network) = network.upgrade() else { return };
            // Armed before the look, so that what changes during it is seen.
            if let Ok(watcher) = &mut watcher {
                watcher.arm(&network.config.conf_dir);
            }
            network.refresh_status().await;
            let ready = network.current.load().status.ready;
            (Arc::clone(&network.poke), if ready && watcher.is_ok() { LATER } else { SOON })
        };
        let changed = async {
            match &mut watcher {
                Ok(watcher) => watcher.changed().await,
                Err(_) => std::future::pending().await,
            }
        };
        let asked = async {
            tokio::time::sleep(PAUSE).await;
            poke.notified().await;
        };
        tokio::select! {
            () = changed => tokio::time::sleep(SETTLE).await,
            () = asked => {}
            () = tokio::time::sleep(period) => {}
        }
    }
}

struct Watcher {
    inotify: AsyncFd<Inotify>,
    watches: Vec<WatchDescriptor>,
    /// The watch on the nearest parent, and the one name in it that matters.
    parent: Option<(WatchDescriptor, OsString)>,
}

impl Watcher {
    fn new() -> io::Result<Self> {
        Ok(Self { inotify: sys::inotify::open()?, watches: Vec::new(), parent: None })
    }

    /// Watches the folder, the folders in it (a network's plugins may be in one) and its nearest parent that exists.
    fn arm(&mut self, dir: &Path) {
        let mut watches = self.inotify.get_ref().watches();
        for watch in self.watches.drain(..).chain(self.parent.take().map(|(watch, _)| watch)) {
            // The kernel has dropped those of folders that are gone.
            let _ = watches.remove(watch);
        }
        // One that is gone already is found by the watch on its parent, or by the poll.
        if let Some((path, name)) = nearest_parent(dir) {
            let mask = WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF;
            self.parent = watches.add(path, mask | WatchMask::ONLYDIR).ok().map(|watch| (watch, name));
        }
        let content = WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ATTRIB
            | WatchMask::ONLYDIR;
        let inside = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        for path in std::iter::once(dir.to_owned()).chain(inside.filter(|path| path.is_dir()).take(FOLDERS_MAX)) {
            self.watches.extend(watches.add(path, content));
        }
    }

    /// Waits until something happened to a watched folder.
    async fn changed(&mut self) {
        let mut buffer = [0; 4096];
        loop {
            let Ok(mut ready) = self.inotify.readable_mut().await else {
                // The poll goes on without it.
                return std::future::pending().await;
            };
            match ready.get_inner_mut().read_events(&mut buffer) {
                Ok(mut events) => {
                    if events.any(|event| matters(&event, self.parent.as_ref())) {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(_) => return std::future::pending().await,
            }
        }
    }
}

/// Watches that were taken off report that themselves, and a parent like /etc has many other children.
fn matters(event: &Event<&OsStr>, parent: Option<&(WatchDescriptor, OsString)>) -> bool {
    if event.mask.contains(EventMask::IGNORED) {
        return false;
    }
    match (parent, event.name) {
        (Some((watch, wanted)), Some(name)) if *watch == event.wd => name == wanted,
        _ => true,
    }
}

/// The nearest folder above `dir` that exists, and the name in it on the way to `dir`.
fn nearest_parent(dir: &Path) -> Option<(PathBuf, OsString)> {
    let mut below = dir;
    for ancestor in dir.ancestors().skip(1) {
        if ancestor.is_dir() {
            return Some((ancestor.to_owned(), below.file_name()?.to_owned()));
        }
        below = ancestor;
    }
    None
}
