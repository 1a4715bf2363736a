//! What a cgroup has used, read from its files, and the same in the words of the CRI.
//!
//! One reading is a dozen small reads below descriptors of the cgroup's folders; nothing is started, nothing is locked, and
//! nothing of it is kept but the rate of each container, in [`Samples`]. A value that the kernel does not offer (swap
//! accounting off, pressure off, version 1) is `None`, which is not the same as 0.

mod cri;
mod read;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use cri::{container_stats, cpu_usage, io_usage, memory_usage, process_usage, swap_usage};

/// One reading. Bytes and nanoseconds throughout.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// When it was taken, in nanoseconds since 1970.
    pub timestamp: i64,
    pub cpu: Option<Cpu>,
    pub memory: Option<Memory>,
    pub swap: Option<Swap>,
    /// Version 2 with pressure accounting.
    pub io_pressure: Option<Pressure>,
    /// Tasks in the cgroup and below it.
    pub pids: Option<u64>,
}

/// Processor time of the cgroup and all below it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cpu {
    /// User and system time over all cores since the cgroup was made.
    pub usage_ns: u64,
    pub pressure: Option<Pressure>,
}

/// Memory of the cgroup and all below it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Memory {
    pub usage: u64,
    /// What the kernel could not give back at once: the usage without the inactive file pages.
    pub working_set: u64,
    /// The limit, if there is one.
    pub limit: Option<u64>,
    /// Anonymous memory.
    pub rss: Option<u64>,
    pub page_faults: Option<u64>,
    pub major_page_faults: Option<u64>,
    pub pressure: Option<Pressure>,
}

/// Swap of the cgroup and all below it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Swap {
    pub usage: u64,
    /// How much more it may take; `None` without a limit.
    pub available: Option<u64>,
}

/// Pressure stall information of one resource (kernel: accounting/psi.rst).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pressure {
    pub some: Stall,
    pub full: Stall,
}

/// Share of time, in percent, in which work stood still for want of the resource, and the time in all.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stall {
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    pub total_ns: u64,
}

/// Why there is no reading.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// The container ended meanwhile: leave it out of a list.
    #[error("cgroup {cgroup} is gone")]
    Gone { cgroup: String },
    #[error("{}: cannot be read", path.display())]
    Read { path: PathBuf, source: io::Error },
}

/// The shortest time over which a rate is worked out; asked again before, the last rate is given again.
const MIN_RATE_WINDOW: Duration = Duration::from_millis(500);

/// Cores in use, from two readings. One for each container, kept from question to question.
#[derive(Debug, Clone, Copy, Default)]
pub struct CpuRate {
    last: Option<(Instant, u64)>,
    nano_cores: Option<u64>,
}

impl CpuRate {
    /// Takes a reading and answers the rate since the one before, in billionths of a core; `None` after the first one. A
    /// counter that went back (another cgroup under the same name) starts anew.
    pub fn update(&mut self, at: Instant, usage_ns: u64) -> Option<u64> {
        let Some((then, before)) = self.last else {
            self.last = Some((at, usage_ns));
            return None;
        };
        if usage_ns < before {
            *self = Self { last: Some((at, usage_ns)), nano_cores: None };
            return None;
        }
        let elapsed = at.saturating_duration_since(then);
        if elapsed >= MIN_RATE_WINDOW {
            let rate = u128::from(usage_ns - before) * 1_000_000_000 / elapsed.as_nanos();
            *self = Self { last: Some((at, usage_ns)), nano_cores: u64::try_from(rate).ok() };
        }
        self.nano_cores
    }
}

/// The rates of all containers. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Samples(Arc<Mutex<HashMap<String, CpuRate>>>);

impl Samples {
    /// Reads a cgroup now; the second value is its rate in billionths of a core since the last reading under this id.
    ///
    /// # Errors
    /// As [`Usage::read`]; the id is then forgotten.
    pub fn read(&self, id: &str, cgroup: &crate::sys::cgroup::Cgroup) -> Result<(Usage, Option<u64>), StatsError> {
        let usage = match Usage::read(cgroup) {
            Ok(usage) => usage,
            Err(error) => {
                self.rates().remove(id);
                return Err(error);
            }
        };
        let now = Instant::now();
        let rate = usage.cpu.as_ref().and_then(|cpu| {
            let mut rates = self.rates();
            match rates.get_mut(id) {
                Some(rate) => rate.update(now, cpu.usage_ns),
                None => rates.entry(id.to_owned()).or_default().update(now, cpu.usage_ns),
            }
        });
        Ok((usage, rate))
    }

    /// Drops the rates of those that are no more. To be called when the list of containers is at hand anyway.
    pub fn retain(&self, lives: impl Fn(&str) -> bool) {
        self.rates().retain(|id, _| lives(id));
    }

    /// Held for a look-up in a map, never across a read or an await.
    fn rates(&self) -> MutexGuard<'_, HashMap<String, CpuRate>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
