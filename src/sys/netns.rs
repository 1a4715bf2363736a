//! Network namespaces: running code inside one, and bringing its loopback interface up.
//!
//! A thread that entered another namespace is never used again: both ways in start a thread of their own that ends with
//! the work, so that no worker of the async runtime and no thread of a pool can be left in a pod's namespace.
#![allow(unsafe_code)] // the two ioctls that set an interface up

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// `f_type` of the file system behind `/proc/<pid>/ns/*` (linux/magic.h, `NSFS_MAGIC`).
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Why code could not be run inside a network namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    #[error("{}: the network namespace cannot be opened", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{}: not a namespace", path.display())]
    NotNamespace { path: PathBuf },
    #[error("{}: the network namespace cannot be entered", path.display())]
    Enter { path: PathBuf, source: io::Error },
    #[error("no thread for a network namespace")]
    Thread { source: io::Error },
}

/// Runs `work` on a thread of its own inside the network namespace at `path`, and waits for it.
///
/// Sockets that `work` opens stay in that namespace and may be handed out. It blocks: call it from the blocking pool.
///
/// # Errors
/// When `path` is missing, is no pinned namespace, or is not a network namespace.
///
/// # Panics
/// Goes on with the panic of the work, if it panics.
pub fn enter_net<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    let file = open_namespace(path)?;
    on_own_thread("netns", || {
        nix::sched::setns(file.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(|errno| NetnsError::Enter { path: path.to_owned(), source: errno.into() })?;
        Ok(work())
    })
    .map_err(|source| NetnsError::Thread { source })?
}

/// Whether something that can be entered is pinned at `path`. A plain file, which is what a pin leaves behind once its
/// mount is gone, is not.
#[must_use]
pub fn is_namespace(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|info| is_nsfs(&info))
}

fn is_nsfs(info: &rustix::fs::StatFs) -> bool {
    u64::try_from(info.f_type).is_ok_and(|kind| kind == NSFS_MAGIC)
}

/// Opens a pinned namespace; a fifo or a device at that path is not waited for.
pub(in crate::sys) fn open_namespace(path: &Path) -> Result<File, NetnsError> {
    use rustix::fs::{Mode, OFlags};
    let open = |source: rustix::io::Errno| NetnsError::Open { path: path.to_owned(), source: source.into() };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(open)?;
    if is_nsfs(&rustix::fs::fstatfs(&fd).map_err(open)?) {
        Ok(File::from(fd))
    } else {
        Err(NetnsError::NotNamespace { path: path.to_owned() })
    }
}

/// Runs `work` on a new thread, which ends with it.
pub(in crate::sys) fn on_own_thread<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, work)?;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Sets `lo` up in the network namespace of the calling thread; the kernel then gives it 127.0.0.1/8 and ::1.
pub(in crate::sys) fn set_loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: ifreq is plain old data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::try_from(*from).expect("ASCII");
    }
    // SAFETY: the descriptor is an open socket and the argument an ifreq with a name that ends in a zero byte.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let up = libc::c_short::try_from(libc::IFF_UP).expect("IFF_UP is 1");
    // SAFETY: SIOCGIFFLAGS filled in the flags of the union.
    request.ifr_ifru.ifru_flags = up | unsafe { request.ifr_ifru.ifru_flags };
    // SAFETY: as for the call above.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
