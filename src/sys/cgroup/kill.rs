//! The processes of a cgroup, and their end.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Cgroup, CgroupError, read_small};

/// A list of processes is refused beyond this size: the kernel's highest pid has 7 digits, so this is half a million.
const PROCS_CAP: u64 = 4 << 20;

/// How long one round waits for its processes before it looks for new ones.
const ROUND: Duration = Duration::from_millis(100);

impl Cgroup {
    /// The processes in the cgroup and in all below it, by pid, over all hierarchies. A missing cgroup has none.
    ///
    /// # Errors
    /// [`CgroupError::Read`] when a list cannot be read, [`CgroupError::TooManyNested`].
    pub fn procs(&self) -> Result<Vec<i32>, CgroupError> {
        let mut pids = BTreeSet::new();
        for hierarchy in &self.dirs {
            for dir in super::tree::walk(&hierarchy.dir)? {
                // A threaded cgroup refuses the list (EOPNOTSUPP); its processes are in the domain above it.
                let text = match read_small(&dir.join("cgroup.procs"), PROCS_CAP) {
                    Err(CgroupError::Read { source, .. }) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => None,
                    other => other?,
                };
                let listed =
                    text.as_deref().unwrap_or_default().lines().filter_map(|line| line.trim().parse::<i32>().ok());
                // 0 stands for a process of another pid namespace.
                pids.extend(listed.filter(|pid| *pid > 0));
            }
        }
        Ok(pids.into_iter().collect())
    }

    /// Kills every process in the cgroup and below it and waits until none is left, at most `limit`.
    ///
    /// Version 2 kernels since 5.14 do it in one write that no fork can escape. Elsewhere SIGKILL goes to one process after
    /// the other, in rounds until a round finds none; frozen cgroups are not thawed. The calling process is spared. The wait
    /// blocks the thread: for the blocking pool.
    ///
    /// # Errors
    /// [`CgroupError::StillAlive`] when the time is over (processes in an uninterruptible call), [`CgroupError::Signal`]
    /// when the kernel refuses a signal, [`CgroupError::Read`].
    pub fn kill_all(&self, limit: Duration) -> Result<(), CgroupError> {
        let started = Instant::now();
        loop {
            let killed_at_once = self.kill_file()?;
            let alive = self.open_alive()?;
            let Some(&(first, _)) = alive.first() else { return Ok(()) };
            if !killed_at_once {
                for (pid, pidfd) in &alive {
                    self.signal(*pid, pidfd)?;
                }
            }
            let left = limit.saturating_sub(started.elapsed());
            if left.is_zero() {
                let after_ms = started.elapsed().as_millis();
                return Err(CgroupError::StillAlive { cgroup: self.name(), alive: alive.len(), first, after_ms });
            }
            // Whoever is not dead by then is found again in the next round.
            wait_all(&alive, ROUND.min(left));
        }
    }

    /// Whether the kernel took `cgroup.kill` (cgroup2, since 5.14) for this cgroup.
    fn kill_file(&self) -> Result<bool, CgroupError> {
        if self.version != super::CgroupVersion::V2 {
            return Ok(false);
        }
        let Some(dir) = self.dir("") else { return Ok(false) };
        let path = dir.join("cgroup.kill");
        match std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut f| std::io::Write::write_all(&mut f, b"1"))
        {
            Ok(()) => Ok(true),
            // Absent: an older kernel, or the cgroup is gone. Not supported: a threaded cgroup.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP)) => Ok(false),
            Err(source) => Err(CgroupError::Write { path, source }),
        }
    }

    /// Descriptors of the live processes. A pid that was given to another process between the list and the open is not in
    /// the second list, and one that was given away after it is caught by the descriptor: a stranger is never hit.
    fn open_alive(&self) -> Result<Vec<(i32, OwnedFd)>, CgroupError> {
        let me = rustix::process::getpid().as_raw_nonzero().get();
        let mut opened = Vec::new();
        for pid in self.procs()?.into_iter().filter(|pid| *pid != me) {
            if let Some(Ok(pidfd)) = Pid::from_raw(pid).map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
                opened.push((pid, pidfd));
            }
        }
        let still: BTreeSet<i32> = self.procs()?.into_iter().collect();
        opened.retain(|(pid, pidfd)| still.contains(pid) && !has_exited(pidfd));
        Ok(opened)
    }

    fn signal(&self, pid: i32, pidfd: &OwnedFd) -> Result<(), CgroupError> {
        match pidfd_send_signal(pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(CgroupError::Signal { cgroup: self.name(), pid, source: e.into() }),
        }
    }

    fn name(&self) -> String {
        self.path.as_str().to_owned()
    }
}

/// A pidfd reads as ready once its process has exited, reaped or not.
fn has_exited(pidfd: &OwnedFd) -> bool {
    wait_exit(pidfd, Duration::ZERO)
}

fn wait_exit(pidfd: &OwnedFd, limit: Duration) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let limit = Timespec::try_from(limit).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
    poll(&mut fds, Some(&limit)).is_ok_and(|ready| ready > 0)
}

fn wait_all(alive: &[(i32, OwnedFd)], limit: Duration) {
    let started = Instant::now();
    for (_, pidfd) in alive {
        wait_exit(pidfd, limit.saturating_sub(started.elapsed()));
    }
}
