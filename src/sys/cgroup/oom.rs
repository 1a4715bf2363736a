//! Counting the OOM kills of a container.
//!
//! Version 2 wakes a poll on `memory.events` whenever a counter in it moves, so one descriptor both waits and reads; there
//! is no inotify instance, of which a user has few. Version 1 wakes an eventfd *before* the kill, and again when the cgroup
//! goes away; its counter is in `memory.oom_control` (Linux 4.13). Under systemd a scope may be removed as soon as its last
//! process is gone: from then on the descriptor answers ENODEV and the last count seen stands.
//!
//! On version 2 the container's kill and its scope's removal may both come before we have read anything. The slice above it
//! stays, and its counter has the kills of all below it (cgroup-v2.rst, "memory.events"), so it is read as well: what it has
//! risen by since the last look at which the container's own counter still answered is the container's, unless a sibling was
//! killed for memory in that same moment.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys::reactor;

use super::{Cgroup, CgroupError, CgroupVersion, Cgroups, read_small};

/// The file has a handful of short lines.
const EVENTS_CAP: usize = 4096;

impl Cgroup {
    /// How many processes of the cgroup the kernel has killed for want of memory, since the cgroup was made. `None` when
    /// the cgroup or its counter is not there.
    ///
    /// # Errors
    /// [`CgroupError::Read`].
    pub fn oom_kills(&self) -> Result<Option<u64>, CgroupError> {
        let Some(path) = events_file(self) else { return Ok(None) };
        Ok(read_small(&path, EVENTS_CAP as u64)?.and_then(|text| oom_kill(&text)))
    }
}

fn events_file(cgroup: &Cgroup) -> Option<PathBuf> {
    let name = match cgroup.version() {
        CgroupVersion::V1 => "memory.oom_control",
        CgroupVersion::V2 => "memory.events",
    };
    Some(cgroup.dir("memory")?.join(name))
}

/// The line `oom_kill N`, which both versions have.
fn oom_kill(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")).and_then(|n| n.trim().parse().ok())
}

/// The counter of the cgroup above.
#[derive(Debug)]
struct Above {
    events: File,
    wake: Option<AsyncFd<OwnedFd>>,
    /// The count at the last look at which the container's own counter answered.
    settled: AtomicU64,
}

impl Above {
    /// `None` where there is no such counter (the root has none) or it cannot be watched: then only the container's own counts.
    fn of(cgroup: &Cgroup) -> Option<Self> {
        let path = cgroup.dir("memory")?.parent()?.join("memory.events");
        let events = File::open(path).ok()?;
        let wake = pollable(events.as_fd().try_clone_to_owned().ok()?, Interest::PRIORITY).ok()?;
        let settled = AtomicU64::new(count(&events)?);
        Some(Self { events, wake, settled })
    }

    /// Waits until some cgroup below it may have had a kill.
    async fn changed(&self) {
        let Some(wake) = &self.wake else { return std::future::pending().await };
        match wake.ready(Interest::PRIORITY).await {
            // Taken back before the counters are read, so that what happens after the read wakes again.
            Ok(mut guard) => guard.clear_ready(),
            Err(_) => std::future::pending().await,
        }
    }
}

/// The count that a descriptor of an events file answers; `None` once its cgroup is gone.
fn count(events: &File) -> Option<u64> {
    let mut buffer = [0; EVENTS_CAP];
    let length = rustix::io::pread(events, &mut buffer, 0).ok()?;
    oom_kill(std::str::from_utf8(&buffer[..length]).ok()?)
}

/// A counter that outlives its cgroup. Open it once the cgroup exists and before the container's process starts.
#[derive(Debug)]
pub struct OomWatch {
    events: File,
    wake: Option<AsyncFd<OwnedFd>>,
    version: CgroupVersion,
    seen: AtomicU64,
    /// Version 2: the counter of the cgroup above, which outlives this one.
    above: Option<Above>,
    /// Version 1: memory ran out while the cgroup existed, so a kill is under way that the counter may not show yet.
    ran_out: AtomicBool,
}

impl OomWatch {
    /// Starts to watch a container, by its `cgroupsPath`.
    ///
    /// # Errors
    /// [`CgroupError::Name`], and as [`Self::of`].
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O.
    pub fn open(cgroups: &Cgroups, cgroups_path: &str) -> Result<Self, CgroupError> {
        Self::of(&cgroups.container(cgroups_path)?)
    }

    /// Starts to watch. Kills from before count as well: the counter is the cgroup's, which has one container.
    ///
    /// # Errors
    /// [`CgroupError::Watch`] when the memory controller or the cgroup is missing, or the kernel refuses to wake us for
    /// another reason than that it cannot.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O.
    pub fn of(cgroup: &Cgroup) -> Result<Self, CgroupError> {
        let path = events_file(cgroup).ok_or_else(|| CgroupError::Watch {
            path: cgroup.path().as_path().to_owned(),
            source: io::Error::new(io::ErrorKind::NotFound, "the memory controller is not mounted"),
        })?;
        let failed = |source| CgroupError::Watch { path: path.clone(), source };
        let events = File::open(&path).map_err(failed)?;
        let wake = match cgroup.version() {
            CgroupVersion::V2 => {
                let fd = events.as_fd().try_clone_to_owned().map_err(failed)?;
                pollable(fd, Interest::PRIORITY)
            }
            CgroupVersion::V1 => eventfd(&path, &events).and_then(|fd| pollable(fd, Interest::READABLE)),
        };
        let wake = wake.map_err(failed)?;
        let version = cgroup.version();
        let above = if version == CgroupVersion::V2 { Above::of(cgroup) } else { None };
        let watch = Self { events, wake, version, seen: AtomicU64::new(0), above, ran_out: AtomicBool::new(false) };
        watch.oom_kills();
        Ok(watch)
    }

    /// Returns when the count may have risen. After the cgroup is gone, and where the kernel cannot wake us, it waits for
    /// ever. Dropping the future loses nothing.
    pub async fn changed(&self) {
        loop {
            let Some(wake) = &self.wake else { return std::future::pending().await };
            let ready = match (self.version, &self.above) {
                (CgroupVersion::V1, _) => wake.ready(Interest::READABLE).await,
                (CgroupVersion::V2, None) => wake.ready(Interest::PRIORITY).await,
                (CgroupVersion::V2, Some(above)) => tokio::select! {
                    ready = wake.ready(Interest::PRIORITY) => ready,
                    () = above.changed() => {
                        let before = self.seen.load(Ordering::Relaxed);
                        match self.read() {
                            Some(now) if now > before => return,
                            Some(_) => continue,
                            None => return std::future::pending().await,
                        }
                    }
                },
            };
            let Ok(mut guard) = ready else { return std::future::pending().await };
            if self.version == CgroupVersion::V1 {
                // Empties the eventfd; it does not block.
                let mut count = [0; 8];
                let _ = rustix::io::read(wake.get_ref(), &mut count);
            }
            let before = self.seen.load(Ordering::Relaxed);
            // The read also tells the kernel that this state is known, so the wake-up must be taken back before it.
            guard.clear_ready();
            match self.read() {
                Some(now) => {
                    let ran_out = self.version == CgroupVersion::V1 && !self.ran_out.swap(true, Ordering::Relaxed);
                    if now > before || ran_out {
                        return;
                    }
                }
                None => return std::future::pending().await,
            }
        }
    }

    /// The kills so far: read now, or the last count seen when the cgroup is gone. Call it at exit *before* anything that
    /// takes time, since systemd may remove the cgroup within milliseconds.
    pub fn oom_kills(&self) -> u64 {
        match self.read() {
            Some(now) => now,
            None => {
                let seen = self.seen.load(Ordering::Relaxed);
                if seen == 0
                    && let Some(above) = &self.above
                {
                    let risen = count(&above.events).is_some_and(|now| now > above.settled.load(Ordering::Relaxed));
                    return u64::from(risen);
                }
                // The wake-up came before the kill, and the cgroup went before the kill was counted.
                if seen == 0 && self.ran_out.load(Ordering::Relaxed) { 1 } else { seen }
            }
        }
    }

    fn read(&self) -> Option<u64> {
        // The one above first: a kill between the two reads then shows in our own counter, and is not taken for settled.
        let all = self.above.as_ref().and_then(|above| count(&above.events));
        let now = count(&self.events)?;
        if let (Some(above), Some(all)) = (&self.above, all) {
            above.settled.fetch_max(all, Ordering::Relaxed);
        }
        Some(self.seen.fetch_max(now, Ordering::Relaxed).max(now))
    }
}

/// `None` where the file cannot be polled, as a plain file in a test: the counter still works.
fn pollable(fd: OwnedFd, interest: Interest) -> io::Result<Option<AsyncFd<OwnedFd>>> {
    match reactor::register(fd, interest) {
        Ok(fd) => Ok(Some(fd)),
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Version 1: an eventfd that is signalled when the cgroup runs out of memory (kernel: cgroup-v1/memory.rst, "OOM control").
/// Where the kernel has no such registration (it is being phased out) the eventfd simply stays silent.
fn eventfd(oom_control: &Path, events: &File) -> io::Result<OwnedFd> {
    use rustix::event::EventfdFlags;
    let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let control = oom_control.with_file_name("cgroup.event_control");
    let line = format!("{} {}", fd.as_raw_fd(), events.as_raw_fd());
    match std::fs::OpenOptions::new().write(true).open(&control).and_then(|mut file| file.write_all(line.as_bytes())) {
        Ok(()) => Ok(fd),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP)) => Ok(fd),
        Err(e) => Err(e),
    }
}
