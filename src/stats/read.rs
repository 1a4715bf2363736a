//! Reading the files of both cgroup versions (kernel: cgroup-v2.rst, cgroup-v1/memory.rst).

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{Mode, OFlags};

use super::{Cpu, Memory, Pressure, Stall, StatsError, Swap, Usage};
use crate::sys::cgroup::{Cgroup, CgroupVersion};

/// The longest of the files, `memory.stat`, has some 5 KiB; the rest of a longer one is not looked at.
const FILE_CAP: usize = 16 << 10;

/// Version 1 writes "no limit" as the highest number of whole pages.
const V1_NO_LIMIT: u64 = 1 << 62;

impl Usage {
    /// Reads all there is of a cgroup, now.
    ///
    /// # Errors
    /// [`StatsError::Gone`] when neither processor nor memory can be read because the cgroup is not there,
    /// [`StatsError::Read`] when the kernel refuses a file.
    pub fn read(cgroup: &Cgroup) -> Result<Self, StatsError> {
        let mut buffer = vec![0; FILE_CAP];
        let mut usage = match cgroup.version() {
            CgroupVersion::V1 => read_v1(cgroup, &mut buffer)?,
            CgroupVersion::V2 => read_v2(cgroup, &mut buffer)?,
        };
        if usage.cpu.is_none() && usage.memory.is_none() {
            return Err(StatsError::Gone { cgroup: cgroup.path().as_str().to_owned() });
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        usage.timestamp = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
        Ok(usage)
    }
}

fn read_v2(cgroup: &Cgroup, buffer: &mut [u8]) -> Result<Usage, StatsError> {
    let Some(mut dir) = Dir::open(cgroup.dir("memory"), buffer)? else { return Ok(Usage::default()) };
    let cpu = dir.text("cpu.stat")?.and_then(|text| key(text, "usage_usec"));
    let cpu_pressure = dir.pressure("cpu.pressure")?;
    let memory_pressure = dir.pressure("memory.pressure")?;
    let io_pressure = dir.pressure("io.pressure")?;
    let current = dir.number("memory.current")?;
    let limit = dir.number("memory.max")?;
    let swap = dir.number("memory.swap.current")?;
    let swap_limit = dir.number("memory.swap.max")?;
    let pids = dir.number("pids.current")?;
    let stat = dir.text("memory.stat")?.unwrap_or_default();
    Ok(Usage {
        timestamp: 0,
        cpu: cpu.map(|us| Cpu { usage_ns: us.saturating_mul(1000), pressure: cpu_pressure }),
        memory: current.map(|usage| Memory {
            usage,
            working_set: usage.saturating_sub(key(stat, "inactive_file").unwrap_or(0)),
            limit,
            rss: key(stat, "anon"),
            page_faults: key(stat, "pgfault"),
            major_page_faults: key(stat, "pgmajfault"),
            pressure: memory_pressure,
        }),
        swap: swap.map(|usage| Swap { usage, available: swap_limit.map(|limit| limit.saturating_sub(usage)) }),
        io_pressure,
        pids,
    })
}

fn read_v1(cgroup: &Cgroup, buffer: &mut [u8]) -> Result<Usage, StatsError> {
    let mut found = Usage::default();
    if let Some(mut dir) = Dir::open(cgroup.dir("cpuacct"), buffer)? {
        found.cpu = dir.number("cpuacct.usage")?.map(|usage_ns| Cpu { usage_ns, pressure: None });
    }
    if let Some(mut dir) = Dir::open(cgroup.dir("pids"), buffer)? {
        found.pids = dir.number("pids.current")?;
    }
    if let Some(mut dir) = Dir::open(cgroup.dir("memory"), buffer)? {
        let limited = |limit: Option<u64>| limit.filter(|bytes| *bytes < V1_NO_LIMIT);
        let usage = dir.number("memory.usage_in_bytes")?;
        let limit = limited(dir.number("memory.limit_in_bytes")?);
        let both = dir.number("memory.memsw.usage_in_bytes")?;
        let both_limit = limited(dir.number("memory.memsw.limit_in_bytes")?);
        let stat = dir.text("memory.stat")?.unwrap_or_default();
        // The plain keys are the cgroup's own, those with the prefix count what is below it too, as the usage does.
        found.memory = usage.map(|usage| Memory {
            usage,
            working_set: usage.saturating_sub(key(stat, "total_inactive_file").unwrap_or(0)),
            limit,
            rss: key(stat, "total_rss"),
            page_faults: key(stat, "total_pgfault"),
            major_page_faults: key(stat, "total_pgmajfault"),
            pressure: None,
        });
        // Without swap accounting the memsw files are missing; the limit is on memory and swap together.
        found.swap = both.map(|both| Swap {
            usage: key(stat, "total_swap").unwrap_or_else(|| both.saturating_sub(usage.unwrap_or(both))),
            available: both_limit.map(|limit| limit.saturating_sub(both)),
        });
    }
    Ok(found)
}

/// A folder of one hierarchy, and room for one file at a time.
struct Dir<'a> {
    path: &'a Path,
    fd: OwnedFd,
    buffer: &'a mut [u8],
}

impl<'a> Dir<'a> {
    /// `None` without the controller, or when the cgroup is gone.
    fn open(path: Option<&'a Path>, buffer: &'a mut [u8]) -> Result<Option<Self>, StatsError> {
        let Some(path) = path else { return Ok(None) };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { path, fd, buffer })),
            Err(e) => missing(e, path.to_owned()).map(|()| None),
        }
    }

    /// A file's text; `None` where the kernel has no such file, or has switched it off.
    fn text(&mut self, name: &str) -> Result<Option<&str>, StatsError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let mut length = 0;
        let read = rustix::fs::openat(&self.fd, name, flags, Mode::empty()).and_then(|file| {
            // The kernel hands out a page at a time.
            while let Some(room) = self.buffer.get_mut(length..).filter(|room| !room.is_empty()) {
                match rustix::io::read(&file, room)? {
                    0 => break,
                    n => length += n,
                }
            }
            Ok(())
        });
        match read {
            Ok(()) => Ok(std::str::from_utf8(&self.buffer[..length]).ok()),
            Err(e) => missing(e, self.path.join(name)).map(|()| None),
        }
    }

    /// A file that holds one number; `max` is no number.
    fn number(&mut self, name: &str) -> Result<Option<u64>, StatsError> {
        Ok(self.text(name)?.and_then(|text| text.trim().parse().ok()))
    }

    fn pressure(&mut self, name: &str) -> Result<Option<Pressure>, StatsError> {
        Ok(self.text(name)?.and_then(parse_pressure))
    }
}

/// What is not there, or not offered, is no error.
fn missing(error: rustix::io::Errno, path: PathBuf) -> Result<(), StatsError> {
    use rustix::io::Errno;
    match error {
        Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP => Ok(()),
        other => Err(StatsError::Read { path, source: io::Error::from(other) }),
    }
}

/// The value of a line `key value`.
fn key(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    value.trim().parse().ok()
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=166`, and the same for `full`, which older kernels leave out for the
/// processor. The file's total is in microseconds.
fn parse_pressure(text: &str) -> Option<Pressure> {
    let stall = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
        let field = |name: &str| line.split(' ').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let average = |name: &str| field(name).and_then(|value| value.parse().ok()).filter(|a: &f64| a.is_finite());
        Some(Stall {
            avg10: average("avg10")?,
            avg60: average("avg60")?,
            avg300: average("avg300")?,
            total_ns: field("total")?.trim().parse::<u64>().ok()?.saturating_mul(1000),
        })
    };
    Some(Pressure { some: stall("some")?, full: stall("full").unwrap_or_default() })
}
