//! Samples: taken when somebody asks and those there are have become old, by one thread for all who ask.
//!
//! Reading a kernel file can hang (a process in uninterruptible sleep that holds a lock of the memory controller, say). The
//! thread that hangs is then given up, and so is the container that it hangs on until the read comes back: its last sample
//! stays, with its old time. Another thread reads the others. A question waits for the containers that it asks about, but
//! never longer than [`PATIENCE`], and for one that hangs no longer than twice [`STALL`], and only the first time.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::sync::watch;

use super::network::{Interface, Links};
use super::read::{KEPT_DESCRIPTORS, Reader};
use super::{CpuRate, StatsError, Usage};
use crate::sys::cgroup::Cgroup;
use crate::sys::host::now_ns;

/// The age up to which a sample is given again instead of a new one.
pub const FRESH: Duration = Duration::from_secs(1);

/// A thread that makes no step for so long is given up. On a busy machine that happens to one that only waits for its turn,
/// and costs no more than a sample that comes late.
const STALL: Duration = Duration::from_millis(100);

/// A read that takes so long does hang, and the log is told.
const TELL: Duration = Duration::from_secs(10);

/// What a question waits at most; then it is answered with what there is.
const PATIENCE: Duration = Duration::from_secs(1);

/// Threads that read, those that hang included. When all of them hang, old samples are all there is.
const MAX_THREADS: usize = 8;

/// A container younger than this has its first rate from its start on.
const YOUNG: Duration = Duration::from_secs(60);

/// Where the numbers of a container or pod come from.
#[derive(Debug, Clone, Default)]
pub struct Source {
    pub cgroup: Option<Cgroup>,
    /// The pinned network namespace of a pod.
    pub netns: Option<PathBuf>,
    /// When it began to use its cgroup, in nanoseconds since 1970.
    pub started_at: i64,
}

impl Source {
    /// For the log.
    fn name(&self) -> String {
        let cgroup = self.cgroup.as_ref().map(|cgroup| cgroup.path().as_str().to_owned());
        cgroup.or_else(|| Some(self.netns.as_ref()?.display().to_string())).unwrap_or_default()
    }
}

/// What was read at one time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// Empty where there is no cgroup of its own, or it could not be read.
    pub usage: Usage,
    /// Billionths of a core, on average since the sample before.
    pub nano_cores: Option<u64>,
    /// `None` without a network namespace of its own.
    pub interfaces: Option<Vec<Interface>>,
    /// Nanoseconds since 1970.
    pub timestamp: i64,
}

/// The samples of all containers and pods, by id. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Sampler {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    targets: Mutex<BTreeMap<String, Arc<Target>>>,
    queue: Mutex<Queue>,
    /// Moves when targets have been read or given up.
    progress: watch::Sender<()>,
    /// Names of block devices by number, each looked up once.
    devices: Mutex<HashMap<(u32, u32), Arc<str>>>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Arc<Target>>,
    /// What the threads are at, those that hang included.
    reading: Vec<Reading>,
    threads: usize,
    /// Counts steps of the threads.
    steps: u64,
    watched: bool,
}

#[derive(Debug)]
struct Reading {
    target: Arc<Target>,
    since: Instant,
    /// The log has been told that it hangs.
    told: bool,
}

#[derive(Debug)]
struct Target {
    source: Source,
    state: AtomicU8,
    /// Held by the thread that reads; nothing else waits for it.
    readers: Mutex<Readers>,
    sample: ArcSwapOption<Sample>,
    /// When the last attempt ended, with or without a sample.
    attempted: ArcSwapOption<Instant>,
}

#[derive(Debug)]
struct Readers {
    cgroup: Option<Reader>,
    links: Option<Links>,
    rate: CpuRate,
}

/// The values of [`Target::state`].
mod state {
    pub(super) const IDLE: u8 = 0;
    pub(super) const QUEUED: u8 = 1;
    pub(super) const READING: u8 = 2;
    pub(super) const HANGS: u8 = 3;
}

impl Target {
    fn new(source: Source) -> Self {
        let age = Duration::from_nanos(now_ns().saturating_sub(source.started_at).unsigned_abs());
        let start = Instant::now().checked_sub(age).filter(|_| age < YOUNG && source.started_at > 0);
        let readers = Readers {
            cgroup: source.cgroup.clone().map(Reader::new),
            links: source.netns.clone().map(Links::new),
            rate: start.map(CpuRate::since).unwrap_or_default(),
        };
        Self {
            source,
            state: AtomicU8::new(state::IDLE),
            readers: Mutex::new(readers),
            sample: ArcSwapOption::empty(),
            attempted: ArcSwapOption::empty(),
        }
    }

    fn is_old(&self) -> bool {
        self.attempted.load().as_ref().is_none_or(|at| at.elapsed() >= FRESH)
    }

    /// Somebody reads it, or is about to.
    fn is_awaited(&self) -> bool {
        matches!(self.state.load(Ordering::Acquire), state::QUEUED | state::READING)
    }

    fn say(&self, error: &StatsError) {
        tracing::debug!(of = self.source.name(), error = %crate::telemetry::chain(error), "no sample");
    }

    /// Reads it, on a thread that may hang in here.
    fn read(&self, keep: bool) {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let usage = readers.cgroup.as_mut().map(Reader::read).transpose();
        let at = Instant::now();
        let interfaces = readers.links.as_mut().map(Links::read).transpose();
        let sample = usage.map(Option::unwrap_or_default).map(|usage| {
            let nano_cores = usage.cpu.as_ref().and_then(|cpu| readers.rate.update(at, cpu.usage_ns));
            // A pod whose network is going is still a pod.
            let interfaces = interfaces.inspect_err(|error| self.say(error)).ok().flatten();
            Arc::new(Sample { usage, nano_cores, interfaces, timestamp: now_ns() })
        });
        self.sample.store(sample.inspect_err(|error| self.say(error)).ok());
        if !keep && let Some(reader) = readers.cgroup.as_mut() {
            reader.close();
        }
        self.attempted.store(Some(Arc::new(at)));
    }
}

impl Sampler {
    /// Nothing is known yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins to care for a container or a pod; nothing is read before a question. The source is only made where it is new.
    pub fn watch(&self, id: &str, source: impl FnOnce() -> Source) {
        let mut targets = self.targets();
        if !targets.contains_key(id) {
            targets.insert(id.to_owned(), Arc::new(Target::new(source())));
        }
    }

    /// A container or pod has ended, or will: descriptors of its cgroup and of its network are closed, at once unless a
    /// thread is just reading there.
    pub fn forget(&self, id: &str) {
        self.targets().remove(id);
    }

    /// The last sample.
    #[must_use]
    pub fn sample(&self, id: &str) -> Option<Arc<Sample>> {
        let target = self.targets().get(id).cloned();
        target?.sample.load_full()
    }

    /// The name of a block device that was in a sample, `/dev/sda`; its numbers where the kernel knows no name.
    #[must_use]
    pub fn device_name(&self, device: (u32, u32)) -> Arc<str> {
        let known = self.devices().get(&device).cloned();
        known.unwrap_or_else(|| format!("{}:{}", device.0, device.1).into())
    }

    /// Has the old samples of these ids taken anew, and waits for them within the bounds of this room.
    pub async fn refresh(&self, ids: &[&str]) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut progress = self.inner.progress.subscribe();
        let mut wanted: Vec<_> = {
            let targets = self.targets();
            ids.iter().filter_map(|id| targets.get(*id).cloned()).collect()
        };
        self.enqueue(&wanted);
        loop {
            wanted.retain(|target| target.is_awaited());
            if wanted.is_empty() || tokio::time::timeout_at(deadline, progress.changed()).await.is_err() {
                return;
            }
        }
    }

    /// Puts what is old into the queue, and sees to it that a thread reads it and a watcher looks after the thread.
    fn enqueue(&self, wanted: &[Arc<Target>]) {
        let mut queue = self.queue();
        for target in wanted.iter().filter(|target| target.is_old()) {
            let idle = target.state.compare_exchange(state::IDLE, state::QUEUED, Ordering::AcqRel, Ordering::Acquire);
            if idle.is_ok() {
                queue.waiting.push_back(target.clone());
            }
        }
        if queue.waiting.is_empty() {
            return;
        }
        if queue.threads == queue.hanging() {
            self.start_thread(&mut queue);
        }
        if !std::mem::replace(&mut queue.watched, true) {
            let this = self.clone();
            crate::task::spawn("stats-watch", async move { this.watch_threads().await });
        }
    }

    /// Starts a thread if one more is allowed.
    fn start_thread(&self, queue: &mut Queue) {
        if queue.threads >= MAX_THREADS {
            return;
        }
        queue.threads += 1;
        let this = self.clone();
        crate::task::spawn("stats-read", async move {
            crate::task::blocking(move || while this.read_one() {}).await;
        });
    }

    /// On a thread; says whether to go on.
    fn read_one(&self) -> bool {
        let Some(target) = self.take_one() else { return false };
        target.read(self.may_keep());
        self.name_devices(&target);
        let mut queue = self.queue();
        queue.steps += 1;
        queue.reading.retain(|reading| !Arc::ptr_eq(&reading.target, &target));
        target.state.store(state::IDLE, Ordering::Release);
        // Those who wait look at all that they want each time: not after every single one.
        if queue.waiting.is_empty() || queue.steps.is_multiple_of(32) {
            self.inner.progress.send_replace(());
        }
        true
    }

    fn take_one(&self) -> Option<Arc<Target>> {
        let mut queue = self.queue();
        // One that was given up and came back may find another thread in its place.
        let surplus = queue.threads > queue.hanging() + 1;
        let next = if surplus { None } else { queue.waiting.pop_front() };
        match next {
            Some(target) => {
                queue.steps += 1;
                target.state.store(state::READING, Ordering::Release);
                queue.reading.push(Reading { target: target.clone(), since: Instant::now(), told: false });
                Some(target)
            }
            None => {
                queue.threads -= 1;
                None
            }
        }
    }

    /// As long as there is something to read, or to tell: gives up what hangs, and has another thread read the rest.
    async fn watch_threads(&self) {
        let mut last = None;
        loop {
            tokio::time::sleep(STALL).await;
            let mut queue = self.queue();
            if last.replace(queue.steps) == Some(queue.steps) {
                for reading in &queue.reading {
                    reading.target.state.store(state::HANGS, Ordering::Release);
                }
                if queue.threads < MAX_THREADS && !queue.waiting.is_empty() {
                    self.start_thread(&mut queue);
                } else {
                    for target in queue.waiting.drain(..) {
                        target.state.store(state::IDLE, Ordering::Release);
                    }
                }
                self.inner.progress.send_replace(());
            }
            queue.tell();
            if queue.waiting.is_empty() && queue.reading.iter().all(|reading| reading.told) {
                queue.watched = false;
                return;
            }
        }
    }

    /// Descriptors are kept while they are a small part of what the daemon may have.
    fn may_keep(&self) -> bool {
        let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
        let kept = self.targets().len().saturating_mul(KEPT_DESCRIPTORS);
        u64::try_from(kept).is_ok_and(|kept| kept <= most / 4)
    }

    fn name_devices(&self, target: &Target) {
        let Some(sample) = target.sample.load_full() else { return };
        for io in &sample.usage.io {
            let known = self.devices().contains_key(&io.device);
            if !known {
                let name = crate::sys::host::device_name(io.device);
                self.devices().insert(io.device, name.into());
            }
        }
    }

    /// Each of these is held for look-ups and changes, never across a read or an await.
    fn targets(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Target>>> {
        self.inner.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.inner.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn devices(&self) -> MutexGuard<'_, HashMap<(u32, u32), Arc<str>>> {
        self.inner.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Threads that were given up.
    fn hanging(&self) -> usize {
        self.reading.iter().filter(|reading| reading.target.state.load(Ordering::Acquire) == state::HANGS).count()
    }

    /// Tells the log of what has hung for long, once.
    fn tell(&mut self) {
        for reading in self.reading.iter_mut().filter(|reading| !reading.told && reading.since.elapsed() >= TELL) {
            reading.told = true;
            tracing::warn!(of = reading.target.source.name(), "reading statistics hangs; the last sample stands");
        }
    }
}

#[cfg(test)]
mod tests;
