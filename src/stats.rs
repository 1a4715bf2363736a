//! What cgroups have used and what went over pods' links, and the same in the words of the CRI.
//!
//! ```text
//!   question ─▶ Sampler ─▶ fresh enough? ─yes─▶ published sample
//!                 │ no
//!                 ▼
//!          queue ─▶ one reading thread ─▶ cgroup files, /proc/net/dev of the pod ─▶ sample is published
//!                   (another when that one hangs; the container that it hangs on is left alone)
//! ```
//!
//! Statistics are answered from samples that are at most [`FRESH`] old when asked ([`Sampler`]). Nothing is read while
//! nobody asks, so an idle node costs nothing; however many ask, one thread reads. One reading is a few dozen small reads
//! below descriptors that are kept; nothing is started, and no process of the pod is needed. A value that the kernel does
//! not offer (swap accounting off, pressure off, version 1) is `None`, which is not the same as 0.

mod cri;
mod disk;
pub mod metrics;
mod network;
mod parse;
mod read;
mod sampler;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use cri::{
    container_stats, cpu_usage, io_usage, memory_usage, network_usage, pod_stats, process_usage, swap_usage,
};
pub use disk::{DiskUse, Disks};
pub use network::Interface;
pub use read::Reader;
pub use sampler::{FRESH, Sample, Sampler, Source};

/// One reading. Bytes and nanoseconds throughout.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// When it was taken, in nanoseconds since 1970.
    pub timestamp: i64,
    pub cpu: Option<Cpu>,
    pub memory: Option<Memory>,
    pub swap: Option<Swap>,
    /// By block device, those that the cgroup has used.
    pub io: Vec<DeviceIo>,
    /// Version 2 with pressure accounting.
    pub io_pressure: Option<Pressure>,
    /// Processes of the cgroup that were killed for want of memory.
    pub oom_kills: Option<u64>,
    /// Tasks (threads) in the cgroup and below it.
    pub pids: Option<u64>,
    /// Processes in the cgroup, without those below it.
    pub processes: Option<u64>,
}

/// Processor time of the cgroup and all below it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cpu {
    /// User and system time over all cores since the cgroup was made.
    pub usage_ns: u64,
    pub user_ns: Option<u64>,
    pub system_ns: Option<u64>,
    pub throttling: Option<Throttling>,
    pub pressure: Option<Pressure>,
}

/// How a CPU quota was felt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Throttling {
    pub periods: u64,
    /// Those of the periods in which the quota was used up.
    pub throttled_periods: u64,
    pub throttled_ns: u64,
}

/// Memory of the cgroup and all below it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Memory {
    pub usage: u64,
    /// What the kernel could not give back at once: the usage without the inactive file pages.
    pub working_set: u64,
    /// The limit, if there is one.
    pub limit: Option<u64>,
    /// The highest usage there was (version 2: Linux 5.19).
    pub peak: Option<u64>,
    /// How often the limit was hit.
    pub limit_hits: Option<u64>,
    /// Anonymous memory.
    pub rss: Option<u64>,
    /// Page cache.
    pub cache: Option<u64>,
    pub mapped_file: Option<u64>,
    pub active_file: Option<u64>,
    pub inactive_file: Option<u64>,
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

/// What a cgroup and all below it have moved to and from a block device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// Major and minor number.
    pub device: (u32, u32),
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub reads: u64,
    pub writes: u64,
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
    #[error("the links of a pod cannot be counted")]
    Network(#[from] crate::sys::netns::NetnsError),
}

impl Usage {
    /// What several cgroups use together: for a pod whose containers have no parent of their own. Pressure has no sum.
    #[must_use]
    pub fn sum<'a>(usages: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut sum = Self::default();
        let add = |to: &mut Option<u64>, more: Option<u64>| {
            if let Some(more) = more {
                *to = Some(to.unwrap_or(0).saturating_add(more));
            }
        };
        for usage in usages {
            sum.timestamp = sum.timestamp.max(usage.timestamp);
            if let Some(cpu) = &usage.cpu {
                let total = sum.cpu.get_or_insert_default();
                total.usage_ns = total.usage_ns.saturating_add(cpu.usage_ns);
                add(&mut total.user_ns, cpu.user_ns);
                add(&mut total.system_ns, cpu.system_ns);
            }
            if let Some(memory) = &usage.memory {
                let total = sum.memory.get_or_insert_default();
                total.usage = total.usage.saturating_add(memory.usage);
                total.working_set = total.working_set.saturating_add(memory.working_set);
                add(&mut total.rss, memory.rss);
                add(&mut total.cache, memory.cache);
                add(&mut total.page_faults, memory.page_faults);
                add(&mut total.major_page_faults, memory.major_page_faults);
            }
            if let Some(swap) = &usage.swap {
                let total = sum.swap.get_or_insert_default();
                total.usage = total.usage.saturating_add(swap.usage);
            }
            add(&mut sum.oom_kills, usage.oom_kills);
            add(&mut sum.pids, usage.pids);
            add(&mut sum.processes, usage.processes);
        }
        sum
    }
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
    /// A rate that begins where nothing was used yet, so that the first reading has one already.
    #[must_use]
    pub fn since(start: Instant) -> Self {
        Self { last: Some((start, 0)), nano_cores: None }
    }

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

#[cfg(test)]
mod tests;
