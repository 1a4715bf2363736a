//! Reading the files of both cgroup versions (kernel: cgroup-v2.rst, cgroup-v1/memory.rst, cgroup-v1/blkio-controller.rst).

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::parse::{key, pairs, pressure};
use super::{Cpu, DeviceIo, Memory, Pressure, StatsError, Swap, Throttling, Usage};
use crate::sys::cgroup::{Cgroup, CgroupVersion};
use crate::sys::host::now_ns;

/// The longest of the files, `memory.stat`, has some 5 KiB; the rest of a longer one is not looked at.
const FILE_CAP: usize = 16 << 10;

/// A list of processes is counted no further than this: half a million of them.
const PROCS_CAP: usize = 4 << 20;

/// Devices of one reading; a list of them fits into [`FILE_CAP`] anyway.
const MAX_DEVICES: usize = 64;

/// Version 1 writes "no limit" as the highest number of whole pages.
const V1_NO_LIMIT: u64 = 1 << 62;

/// The version 1 controllers whose files are read.
const V1: [&str; 5] = ["cpuacct", "cpu", "memory", "pids", "blkio"];

/// Descriptors that a [`Reader`] keeps at most.
pub const KEPT_DESCRIPTORS: usize = V1.len();

/// Reads one cgroup again and again, below descriptors of its folders that it keeps. Paths are not walked a second time,
/// and a cgroup that went and came back under the same name is not taken for the same one.
#[derive(Debug)]
pub struct Reader {
    cgroup: Cgroup,
    dirs: Vec<(&'static str, OwnedFd)>,
    buffer: Vec<u8>,
}

impl Usage {
    /// Reads all there is of a cgroup, once.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn read(cgroup: &Cgroup) -> Result<Self, StatsError> {
        Reader::new(cgroup.clone()).read()
    }
}

impl Reader {
    /// Nothing is opened before the first reading.
    #[must_use]
    pub fn new(cgroup: Cgroup) -> Self {
        Self { cgroup, dirs: Vec::new(), buffer: Vec::new() }
    }

    /// Reads all there is, now.
    ///
    /// # Errors
    /// [`StatsError::Gone`] when neither processor nor memory can be read because the cgroup is not there,
    /// [`StatsError::Read`] when the kernel refuses a file.
    pub fn read(&mut self) -> Result<Usage, StatsError> {
        self.open()?;
        self.buffer.resize(FILE_CAP, 0);
        let mut usage = match self.cgroup.version() {
            CgroupVersion::V1 => self.read_v1()?,
            CgroupVersion::V2 => self.read_v2()?,
        };
        if usage.cpu.is_none() && usage.memory.is_none() {
            self.close();
            return Err(StatsError::Gone { cgroup: self.cgroup.path().as_str().to_owned() });
        }
        usage.timestamp = now_ns();
        Ok(usage)
    }

    /// Gives the descriptors back; the next reading opens them anew.
    pub fn close(&mut self) {
        self.dirs = Vec::new();
        self.buffer = Vec::new();
    }

    fn open(&mut self) -> Result<(), StatsError> {
        if !self.dirs.is_empty() {
            return Ok(());
        }
        let controllers: &[&'static str] = if self.cgroup.version() == CgroupVersion::V2 { &[""] } else { &V1 };
        for controller in controllers {
            let Some(path) = self.cgroup.dir(controller) else { continue };
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            match rustix::fs::open(path, flags, Mode::empty()) {
                Ok(fd) => self.dirs.push((controller, fd)),
                Err(error) => missing(error, path)?,
            }
        }
        Ok(())
    }

    /// The folder of a controller; `None` without it, or when the cgroup was gone at the first reading.
    fn dir(&mut self, controller: &str) -> Option<Dir<'_>> {
        let (_, fd) = self.dirs.iter().find(|(name, _)| *name == controller)?;
        Some(Dir { path: self.cgroup.dir(controller)?, fd, buffer: &mut self.buffer })
    }

    fn read_v2(&mut self) -> Result<Usage, StatsError> {
        let Some(mut dir) = self.dir("") else { return Ok(Usage::default()) };
        let cpu_pressure = dir.pressure("cpu.pressure")?;
        let memory_pressure = dir.pressure("memory.pressure")?;
        let io_pressure = dir.pressure("io.pressure")?;
        let us = |text: &str, name| key(text, name).map(|us| us.saturating_mul(1000));
        let cpu = dir.text("cpu.stat")?.and_then(|text| {
            let throttling = key(text, "nr_periods").map(|periods| Throttling {
                periods,
                throttled_periods: key(text, "nr_throttled").unwrap_or(0),
                throttled_ns: us(text, "throttled_usec").unwrap_or(0),
            });
            Some(Cpu {
                usage_ns: us(text, "usage_usec")?,
                user_ns: us(text, "user_usec"),
                system_ns: us(text, "system_usec"),
                throttling,
                pressure: cpu_pressure,
            })
        });
        let current = dir.number("memory.current")?;
        let limit = dir.number("memory.max")?;
        let peak = dir.number("memory.peak")?;
        let swap = dir.number("memory.swap.current")?;
        let swap_limit = dir.number("memory.swap.max")?;
        let pids = dir.number("pids.current")?;
        let processes = dir.lines("cgroup.procs")?;
        let events = dir.text("memory.events")?;
        let (limit_hits, oom_kills) = (events.and_then(|t| key(t, "max")), events.and_then(|t| key(t, "oom_kill")));
        let io = dir.text("io.stat")?.map(io_v2).unwrap_or_default();
        let stat = dir.text("memory.stat")?.unwrap_or_default();
        Ok(Usage {
            timestamp: 0,
            cpu,
            memory: current.map(|usage| Memory {
                usage,
                working_set: usage.saturating_sub(key(stat, "inactive_file").unwrap_or(0)),
                limit,
                peak,
                limit_hits,
                rss: key(stat, "anon"),
                cache: key(stat, "file"),
                mapped_file: key(stat, "file_mapped"),
                active_file: key(stat, "active_file"),
                inactive_file: key(stat, "inactive_file"),
                page_faults: key(stat, "pgfault"),
                major_page_faults: key(stat, "pgmajfault"),
                pressure: memory_pressure,
            }),
            swap: swap.map(|usage| Swap { usage, available: swap_limit.map(|limit| limit.saturating_sub(usage)) }),
            io,
            io_pressure,
            oom_kills,
            pids,
            processes,
        })
    }

    fn read_v1(&mut self) -> Result<Usage, StatsError> {
        let mut found = Usage::default();
        if let Some(mut dir) = self.dir("cpuacct") {
            let (user_ns, system_ns) = (dir.number("cpuacct.usage_user")?, dir.number("cpuacct.usage_sys")?);
            let usage = dir.number("cpuacct.usage")?;
            found.cpu = usage.map(|usage_ns| Cpu { usage_ns, user_ns, system_ns, throttling: None, pressure: None });
        }
        if let (Some(mut dir), Some(cpu)) = (self.dir("cpu"), &mut found.cpu) {
            cpu.throttling = dir.text("cpu.stat")?.and_then(|text| {
                Some(Throttling {
                    periods: key(text, "nr_periods")?,
                    throttled_periods: key(text, "nr_throttled").unwrap_or(0),
                    throttled_ns: key(text, "throttled_time").unwrap_or(0),
                })
            });
        }
        if let Some(mut dir) = self.dir("pids") {
            found.pids = dir.number("pids.current")?;
        }
        if let Some(mut dir) = self.dir("blkio") {
            let mut io = Vec::new();
            if let Some(text) = dir.text("blkio.throttle.io_service_bytes_recursive")? {
                io_v1(text, &mut io, |device| (&mut device.read_bytes, &mut device.write_bytes));
            }
            if let Some(text) = dir.text("blkio.throttle.io_serviced_recursive")? {
                io_v1(text, &mut io, |device| (&mut device.reads, &mut device.writes));
            }
            found.io = io;
        }
        if let Some(mut dir) = self.dir("memory") {
            memory_v1(&mut dir, &mut found)?;
        }
        Ok(found)
    }
}

fn memory_v1(dir: &mut Dir<'_>, found: &mut Usage) -> Result<(), StatsError> {
    let limited = |limit: Option<u64>| limit.filter(|bytes| *bytes < V1_NO_LIMIT);
    let usage = dir.number("memory.usage_in_bytes")?;
    let limit = limited(dir.number("memory.limit_in_bytes")?);
    let peak = dir.number("memory.max_usage_in_bytes")?;
    let limit_hits = dir.number("memory.failcnt")?;
    let both = dir.number("memory.memsw.usage_in_bytes")?;
    let both_limit = limited(dir.number("memory.memsw.limit_in_bytes")?);
    found.oom_kills = dir.text("memory.oom_control")?.and_then(|text| key(text, "oom_kill"));
    found.processes = dir.lines("cgroup.procs")?;
    let stat = dir.text("memory.stat")?.unwrap_or_default();
    // The plain keys are the cgroup's own, those with the prefix count what is below it too, as the usage does.
    found.memory = usage.map(|usage| Memory {
        usage,
        working_set: usage.saturating_sub(key(stat, "total_inactive_file").unwrap_or(0)),
        limit,
        peak,
        limit_hits,
        rss: key(stat, "total_rss"),
        cache: key(stat, "total_cache"),
        mapped_file: key(stat, "total_mapped_file"),
        active_file: key(stat, "total_active_file"),
        inactive_file: key(stat, "total_inactive_file"),
        page_faults: key(stat, "total_pgfault"),
        major_page_faults: key(stat, "total_pgmajfault"),
        pressure: None,
    });
    // Without swap accounting the memsw files are missing; the limit is on memory and swap together.
    found.swap = both.map(|both| Swap {
        usage: key(stat, "total_swap").unwrap_or_else(|| both.saturating_sub(usage.unwrap_or(both))),
        available: both_limit.map(|limit| limit.saturating_sub(both)),
    });
    Ok(())
}

/// Lines `8:0 rbytes=1 wbytes=2 rios=3 wios=4 …`.
fn io_v2(text: &str) -> Vec<DeviceIo> {
    let lines = text.lines().filter_map(|line| {
        let (device, rest) = line.split_once(' ')?;
        let field = |name: &str| pairs(rest).find(|(own, _)| *own == name).and_then(|(_, value)| value.parse().ok());
        Some(DeviceIo {
            device: device_number(device)?,
            read_bytes: field("rbytes").unwrap_or(0),
            write_bytes: field("wbytes").unwrap_or(0),
            reads: field("rios").unwrap_or(0),
            writes: field("wios").unwrap_or(0),
        })
    });
    lines.take(MAX_DEVICES).collect()
}

/// Lines `8:0 Read 4096`; what is neither read nor written (`Sync`, `Total`, …) counts the same again.
fn io_v1(text: &str, into: &mut Vec<DeviceIo>, fields: impl Fn(&mut DeviceIo) -> (&mut u64, &mut u64)) {
    for line in text.lines() {
        let mut words = line.split(' ');
        let (Some(device), Some(kind), Some(value)) = (words.next(), words.next(), words.next()) else { continue };
        let (Some(device), Ok(value)) = (device_number(device), value.parse()) else { continue };
        let at = match into.iter().position(|own| own.device == device) {
            Some(at) => at,
            None if into.len() < MAX_DEVICES => {
                into.push(DeviceIo { device, ..DeviceIo::default() });
                into.len() - 1
            }
            None => continue,
        };
        let (read, write) = fields(&mut into[at]);
        match kind {
            "Read" => *read = value,
            "Write" => *write = value,
            _ => {}
        }
    }
}

fn device_number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// A folder of one hierarchy, and room for one file at a time.
struct Dir<'a> {
    path: &'a Path,
    fd: &'a OwnedFd,
    buffer: &'a mut [u8],
}

impl Dir<'_> {
    /// A file's text; `None` where the kernel has no such file, or has switched it off.
    fn text(&mut self, name: &str) -> Result<Option<&str>, StatsError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let mut length = 0;
        let read = rustix::fs::openat(self.fd, name, flags, Mode::empty()).and_then(|file| {
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
            Err(error) => missing(error, &self.path.join(name)).map(|()| None),
        }
    }

    /// The number of lines of a file that may be long.
    fn lines(&mut self, name: &str) -> Result<Option<u64>, StatsError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let (mut lines, mut length) = (0, 0);
        let read = rustix::fs::openat(self.fd, name, flags, Mode::empty()).and_then(|file| {
            while length < PROCS_CAP {
                match rustix::io::read(&file, &mut *self.buffer)? {
                    0 => break,
                    n => {
                        length += n;
                        lines += self.buffer[..n].iter().filter(|byte| **byte == b'\n').count() as u64;
                    }
                }
            }
            Ok(())
        });
        match read {
            Ok(()) => Ok(Some(lines)),
            Err(error) => missing(error, &self.path.join(name)).map(|()| None),
        }
    }

    /// A file that holds one number; `max` is no number.
    fn number(&mut self, name: &str) -> Result<Option<u64>, StatsError> {
        Ok(self.text(name)?.and_then(|text| text.trim().parse().ok()))
    }

    fn pressure(&mut self, name: &str) -> Result<Option<Pressure>, StatsError> {
        Ok(self.text(name)?.and_then(pressure))
    }
}

/// Not an error: the controller or its accounting is off, or the cgroup is gone.
fn missing(error: rustix::io::Errno, path: &Path) -> Result<(), StatsError> {
    use rustix::io::Errno;
    match error {
        Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP => Ok(()),
        other => Err(StatsError::Read { path: path.to_owned(), source: io::Error::from(other) }),
    }
}
