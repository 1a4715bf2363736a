//! Children, and trees of processes: reaping, looking into `/proc`, killing all of an exec.
#![allow(unsafe_code)] // raw system calls

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::process::{Pid, Signal, WaitOptions};

use super::pidfd;

/// A child that has ended, with its wait status in the form of wait(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub pid: i32,
    pub status: i32,
}

/// Names one child that has ended without reaping it; `None` when there is none.
///
/// # Errors
/// What `waitid` refuses; `ECHILD` (no children at all) counts as none.
pub fn peek_ended_child() -> io::Result<Option<i32>> {
    // SAFETY: an all-zero siginfo_t is a valid value of that plain structure.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the structure lives through the call.
    if unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) } < 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ECHILD) { Ok(None) } else { Err(error) };
    }
    // SAFETY: waitid fills in the SIGCHLD form of the structure, or leaves it zeroed.
    let pid = unsafe { info.si_pid() };
    Ok((pid > 0).then_some(pid))
}

/// Reaps one child that has ended.
///
/// # Errors
/// What `wait4` refuses; `WouldBlock` when it has not ended.
pub fn reap(pid: i32) -> io::Result<Ended> {
    let target = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    match rustix::process::waitpid(Some(target), WaitOptions::NOHANG)? {
        Some((_, status)) => Ok(Ended { pid, status: status.as_raw() }),
        None => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// Waits for the end of a child that was told to end, and reaps it.
///
/// # Errors
/// Those of `waitpid(2)`.
pub fn wait(pid: i32) -> io::Result<()> {
    let target = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    rustix::process::waitpid(Some(target), WaitOptions::empty())?;
    Ok(())
}

/// Waits for one of some blocked signals. Gives its number and the pid of its sender: 0 when the kernel sent it, or a
/// process that this one's pid namespace does not show.
///
/// # Errors
/// `Interrupted` when the process was stopped or traced meanwhile.
pub fn wait_signal(signals: &nix::sys::signal::SigSet) -> io::Result<(i32, i32)> {
    // SAFETY: an all-zero siginfo_t is a valid value of that plain structure.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: both structures live through the call.
    let signal = unsafe { libc::sigwaitinfo(signals.as_ref(), &raw mut info) };
    if signal < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the two signals that are waited for, SIGCHLD and those sent by kill(2), carry a pid.
    Ok((signal, unsafe { info.si_pid() }))
}

/// In a forked child that will run a program: no signal is blocked or ignored.
///
/// # Errors
/// What `sigprocmask` refuses.
pub fn reset_signals() -> io::Result<()> {
    nix::sys::signal::SigSet::empty().thread_set_mask()?;
    // All zero is SIG_DFL, no flags, no mask. The structure is the kernel's own, at most this long: the C library hides
    // two signals from its callers, and its posix_spawn leaves just those ignored in everything that it starts.
    let default = [0_u64; 4];
    let none = std::ptr::null_mut::<u64>();
    for signal in 1..=64 {
        // SAFETY: no function is installed, so nothing can run at an unexpected moment; the array lives through the
        // call. SIGKILL and SIGSTOP are refused, which is right.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), none, 8) };
    }
    Ok(())
}

/// What `/proc/<pid>/stat` says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub pid: i32,
    pub state: char,
    pub parent: i32,
    pub group: i32,
    pub session: i32,
    /// In clock ticks since boot: with the pid it tells a process from a later one of the same number.
    pub start: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        let pid = text.split(' ').next()?.parse().ok()?;
        // The name may hold spaces and parentheses: the fields go on after the last one.
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let mut number = || fields.next()?.parse::<i32>().ok();
        let (parent, group, session) = (number()?, number()?, number()?);
        // proc(5): the start time is field 22, and six fields have been taken.
        let start = fields.nth(15)?.parse().ok()?;
        Some(Self { pid, state, parent, group, session, start })
    }

    /// # Errors
    /// `NotFound` when there is no such process.
    pub fn of(pid: i32) -> io::Result<Self> {
        // The name is the program's choice and need not be UTF-8.
        let bytes = std::fs::read(format!("/proc/{pid}/stat"))?;
        Self::parse(&String::from_utf8_lossy(&bytes)).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Dead, bar the reaping.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

/// The inode of a pipe or socket, as the links in `/proc/<pid>/fd` show it.
///
/// # Errors
/// What `fstat` refuses.
pub fn inode(fd: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(rustix::fs::fstat(fd)?.st_ino)
}

fn holds_pipe(pid: i32, inodes: &[u64]) -> bool {
    let Ok(links) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    links.flatten().filter_map(|link| std::fs::read_link(link.path()).ok()).any(|target| {
        let inode = target.to_str().and_then(|text| text.strip_prefix("pipe:[")?.strip_suffix(']')?.parse().ok());
        inode.is_some_and(|inode| inodes.contains(&inode))
    })
}

/// What [`kill_tree`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Killed {
    /// Processes that got SIGKILL.
    pub processes: usize,
    /// New ones were still turning up when the rounds ran out: something forks faster than it is found.
    pub gave_up: bool,
}

/// Rounds of looking for new members of a tree. Members are stopped as they are found, so that each round finds only
/// what was forked during the one before.
const ROUNDS: usize = 64;

/// Kills all that an exec has started, without touching the container that it ran in.
///
/// Members are, of `candidates` only (the processes of the container's cgroup): the exec's first process, descendants
/// of a member, processes of the session that the first one leads, and holders of the exec's own pipes. Each is named
/// through a pidfd that is opened before it is looked at a second time, so a number that is given to another process
/// in between hits nobody. All are stopped before the first one is killed: a killed parent would lose its children to pid 1.
pub fn kill_tree(
    root_pid: i32,
    root: BorrowedFd<'_>,
    pipe_inodes: &[u64],
    candidates: impl Fn() -> Vec<i32>,
) -> Killed {
    let mut members: BTreeMap<i32, (Stat, OwnedFd)> = BTreeMap::new();
    // When the first process is gone its number may belong to somebody else; it then counts as a session only.
    let root_lives = || pidfd::signal_zero(root).is_ok();
    let mut result = Killed { processes: 0, gave_up: true };
    for _ in 0..ROUNDS {
        let lives = root_lives();
        let found = find_new(&candidates(), &members, Root { pid: root_pid, lives }, pipe_inodes);
        let opened: Vec<_> = found.into_iter().filter_map(|stat| Some((stat, pidfd::open(stat.pid).ok()?))).collect();
        let still: BTreeSet<i32> = if opened.is_empty() { BTreeSet::new() } else { candidates().into_iter().collect() };
        let mut news = false;
        for (stat, fd) in opened {
            let same = Stat::of(stat.pid).is_ok_and(|now| now.start == stat.start);
            let is_root_reused = stat.pid == root_pid && lives && !root_lives();
            if !same || is_root_reused || !still.contains(&stat.pid) {
                continue;
            }
            if pidfd::signal(fd.as_fd(), Signal::STOP).is_ok() {
                news = true;
                members.insert(stat.pid, (stat, fd));
            }
        }
        if !news {
            result.gave_up = false;
            break;
        }
    }
    for (_, fd) in members.values() {
        if pidfd::signal(fd.as_fd(), Signal::KILL).is_ok() {
            result.processes += 1;
        }
    }
    // The first process may sit outside the candidates for a moment (a runtime moves it into the cgroup): its pidfd is
    // exact, so it dies in any case.
    if !members.contains_key(&root_pid) && pidfd::signal(root, Signal::KILL).is_ok() {
        result.processes += 1;
    }
    result
}

#[derive(Clone, Copy)]
struct Root {
    pid: i32,
    lives: bool,
}

fn find_new(
    candidates: &[i32],
    members: &BTreeMap<i32, (Stat, OwnedFd)>,
    root: Root,
    pipe_inodes: &[u64],
) -> Vec<Stat> {
    let stats: Vec<Stat> = candidates
        .iter()
        .filter_map(|pid| Stat::of(*pid).ok())
        .filter(|stat| !stat.is_dead() && !members.contains_key(&stat.pid))
        .collect();
    let holders: BTreeSet<i32> =
        stats.iter().map(|stat| stat.pid).filter(|pid| holds_pipe(*pid, pipe_inodes)).collect();
    let mut chosen: BTreeSet<i32> = members.keys().copied().collect();
    let mut found: Vec<Stat> = Vec::new();
    let mut rest = stats;
    loop {
        let (new, other): (Vec<Stat>, Vec<Stat>) = rest.into_iter().partition(|stat| {
            let of_session = stat.session == root.pid && (root.lives || stat.pid != root.pid);
            (stat.pid == root.pid && root.lives)
                || (of_session && session_is_ours(root))
                || chosen.contains(&stat.parent)
                || holders.contains(&stat.pid)
        });
        rest = other;
        if new.is_empty() {
            return found;
        }
        chosen.extend(new.iter().map(|stat| stat.pid));
        found.extend(new);
    }
}

/// While the first process lives its number is its own. After that the kernel gives the number to nobody for as long
/// as a member of the session lives; a process that bears it again is a new leader, and its session is not ours.
fn session_is_ours(root: Root) -> bool {
    root.lives || Stat::of(root.pid).is_err()
}

#[cfg(test)]
#[path = "process/tests.rs"]
mod tests;
