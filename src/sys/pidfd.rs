//! Process descriptors: a handle that stays with one process, whatever happens to its number.
#![allow(unsafe_code)] // raw system calls

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, Signal};

/// `struct pidfd_info` of linux/pidfd.h in its first published form (64 bytes); the kernel takes any size from there on.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    /// Real, effective, saved and filesystem user and group.
    ids: [u32; 8],
    exit_code: i32,
}

const PIDFD_INFO_PID: u64 = 1;
const PIDFD_INFO_EXIT: u64 = 1 << 3;
/// `_IOWR(0xFF, 11, struct pidfd_info)` with the 64-byte form.
const PIDFD_GET_INFO: libc::c_ulong = (3 << 30) | (64 << 16) | (0xFF << 8) | 11;
const _: () = assert!(size_of::<PidfdInfo>() == 64);

/// Opens a descriptor for a process; a zombie that has not been reaped is fine.
///
/// # Errors
/// `ESRCH` when there is none (any more).
pub fn open(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).filter(|pid| pid.as_raw_nonzero().get() > 0).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Sends a signal.
///
/// # Errors
/// `ESRCH` when the process has been reaped.
pub fn signal(pidfd: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    Ok(rustix::process::pidfd_send_signal(pidfd, signal)?)
}

/// Sends a signal by its number, real-time signals included.
///
/// # Errors
/// `EINVAL` for a number that is no signal, `ESRCH` when the process has been reaped.
pub fn send(pidfd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the call takes plain numbers and a null pointer, which it allows.
    let done = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), number, none, 0) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Asks whether a signal could be sent: the process has not been reaped.
///
/// # Errors
/// `ESRCH` when it has been.
pub fn signal_zero(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the call takes plain numbers and a null pointer, which it allows.
    let done = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), 0, none, 0) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The process has ended, reaped or not.
#[must_use]
pub fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(n) if n > 0)
}

fn info(pidfd: BorrowedFd<'_>, mask: u64) -> io::Result<PidfdInfo> {
    let mut info = PidfdInfo { mask, ..PidfdInfo::default() };
    // SAFETY: the request states the size of the structure that the pointer leads to, which lives through the call.
    let got = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(info) }
}

/// The wait status of a process that somebody else has reaped; `None` while it has not been reaped.
///
/// The kernel keeps it for as long as a descriptor of the process is open (`PIDFD_INFO_EXIT`, Linux 6.15).
///
/// # Errors
/// `ENOTTY`, `EINVAL` or `ESRCH` on kernels that do not keep it.
pub fn exit_status(pidfd: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let info = info(pidfd, PIDFD_INFO_EXIT)?;
    Ok((info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code))
}

/// The process's number as this process sees it.
///
/// # Errors
/// `ESRCH` when it has been reaped; what reading `/proc/self/fdinfo` refuses on kernels without the ioctl.
pub fn pid(pidfd: BorrowedFd<'_>) -> io::Result<i32> {
    if let Ok(info) = info(pidfd, PIDFD_INFO_PID)
        && let Ok(pid) = i32::try_from(info.tgid)
        && pid > 0
    {
        return Ok(pid);
    }
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_fd().as_raw_fd()))?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")).and_then(|n| n.trim().parse().ok());
    pid.filter(|pid| *pid > 0).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}
