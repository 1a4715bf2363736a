//! What the process becomes before it serves: nothing inherited, nobody's child, hard to kill by accident, one of its kind.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::fs::{FlockOperation, Mode};
use rustix::process::{Resource, Rlimit};

use super::spawn::ChildSettings;
use crate::keeper::KeeperError;
use crate::sys::{clone, seqpacket};

/// As low as it goes without being exempt altogether.
const OOM_SCORE_ADJ: &str = "-999";

/// The signals that the loop reads.
fn handled() -> SigSet {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        signals.add(signal);
    }
    signals
}

fn setup<T, E: Into<io::Error>>(what: &'static str, result: Result<T, E>) -> Result<T, KeeperError> {
    result.map_err(|error| KeeperError::Setup { what, source: error.into() })
}

/// A remark for whoever reads the node's log; standard error may be gone.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr(), "cricket-keeper: {text}");
}

/// Leaves what the process came from. Must be the first thing that it does: it closes what it does not know.
///
/// # Errors
/// Names the call that was refused.
pub fn detach() -> Result<(), KeeperError> {
    setup("closing inherited descriptors", clone::close_inherited())?;
    // Refused to the leader of a process group, which is detached enough.
    let _ = rustix::process::setsid();
    setup("chdir /", rustix::process::chdir("/"))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // Any process is meant, so the number does not matter.
    setup("PR_SET_CHILD_SUBREAPER", rustix::process::set_child_subreaper(Some(rustix::process::getpid())))?;
    setup("PR_SET_NAME", rustix::thread::set_name(c"cricket-keeper"))
}

/// Blocks the signals that the loop reads. SIGPIPE is ignored: the runtime library of Rust sees to that.
///
/// # Errors
/// Names the call that was refused.
pub fn signals() -> Result<SignalFd, KeeperError> {
    let handled = handled();
    setup("sigprocmask", handled.thread_block())?;
    setup("signalfd", SignalFd::with_flags(&handled, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK))
}

/// Raises the limit of open files to what is allowed, and lowers the chance of being killed for memory.
/// Gives what a child must have back.
///
/// # Errors
/// When the limit cannot be set; an oom score that is refused is only noted.
pub fn limits() -> Result<ChildSettings, KeeperError> {
    let open_files = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: open_files.maximum, maximum: open_files.maximum };
    setup("RLIMIT_NOFILE", rustix::process::setrlimit(Resource::Nofile, raised))?;
    let path = "/proc/self/oom_score_adj";
    let before = std::fs::read_to_string(path).unwrap_or_default();
    if let Err(error) = std::fs::write(path, OOM_SCORE_ADJ) {
        note(&format!("oom_score_adj stays {}: {error}", before.trim()));
    }
    Ok(ChildSettings { open_files, oom_score_adj: child_score(&before) })
}

/// The `oom_score_adj` of what the keeper starts, from the one that it was started with. A score below 0 is the node's own
/// protection and no container's: crun up to at least 1.8.1 takes `oomScoreAdj: 0` for none given, and its container would
/// keep whatever crun had.
fn child_score(before: &str) -> String {
    before.trim().parse::<i32>().unwrap_or(0).max(0).to_string()
}

/// Moves this process into cgroups, one of each hierarchy; missing ones are made.
///
/// # Errors
/// Names the cgroup.
pub fn join_cgroups(dirs: &[PathBuf]) -> Result<(), KeeperError> {
    for dir in dirs {
        join(dir).map_err(|source| KeeperError::Cgroup { path: dir.clone(), source })?;
    }
    Ok(())
}

fn join(dir: &Path) -> io::Result<()> {
    let mut missing: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.exists()).collect();
    while let Some(dir) = missing.pop() {
        match std::fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    // A new cpuset of cgroup v1 is empty, and takes no process while it is.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        fill_cpuset(dir, file)?;
    }
    // Not created when missing: then this is no cgroup.
    OpenOptions::new().write(true).open(dir.join("cgroup.procs"))?.write_all(b"0")
}

fn fill_cpuset(dir: &Path, file: &str) -> io::Result<String> {
    let path = dir.join(file);
    let Ok(own) = std::fs::read_to_string(&path) else { return Ok(String::new()) };
    // cgroup v2 has "effective" files, and an empty cpuset there means the parent's.
    if !own.trim().is_empty() || dir.join("cgroup.controllers").exists() {
        return Ok(own);
    }
    let Some(parent) = dir.parent() else { return Ok(own) };
    let inherited = fill_cpuset(parent, file)?;
    if !inherited.trim().is_empty() {
        std::fs::write(&path, inherited.trim())?;
    }
    Ok(inherited)
}

/// The socket, and the lock that makes this keeper the only one on it.
#[derive(Debug)]
pub struct Place {
    pub listener: OwnedFd,
    pub socket: PathBuf,
    /// Held for as long as the process lives; the kernel lets go of it.
    _lock: File,
}

/// Takes the place of a keeper that has died, if any.
///
/// # Errors
/// [`KeeperError::AlreadyRunning`] when it has not died.
pub fn take_place(socket: &Path) -> Result<Place, KeeperError> {
    let mut lock_path = OsString::from(socket);
    lock_path.push(".lock");
    let lock_error = |source| KeeperError::Lock { path: lock_path.clone().into(), source };
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&lock_path)
        .map_err(lock_error)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(KeeperError::AlreadyRunning { path: socket.to_owned() }),
        other => other.map_err(|error| lock_error(error.into()))?,
    }
    let listen_error = |source| KeeperError::Listen { path: socket.to_owned(), source };
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(listen_error(error)),
        _ => {}
    }
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = seqpacket::listener(socket);
    rustix::process::umask(before);
    Ok(Place { listener: listener.map_err(listen_error)?, socket: socket.to_owned(), _lock: lock })
}

/// Tells whoever started this process why it will not serve, in one line.
pub fn report_failure(error: &KeeperError) {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    let mut stdout = io::stdout();
    // Nobody may be listening.
    let _ = writeln!(stdout, "{}", text.replace('\n', " ")).and_then(|()| stdout.flush());
}

/// Tells whoever started this process that it can be connected to, and lets go of standard input and output.
///
/// # Errors
/// When `/dev/null` cannot take their places.
pub fn report_ready() -> Result<(), KeeperError> {
    let mut stdout = io::stdout();
    // Nobody may be listening.
    let _ = stdout.write_all(b"ready\n").and_then(|()| stdout.flush());
    let null = setup("/dev/null", OpenOptions::new().read(true).write(true).open("/dev/null"))?;
    let stderr = setup("standard error", io::stderr().as_fd().try_clone_to_owned())?;
    setup("standard input and output", clone::replace_stdio([null.as_fd(), null.as_fd(), stderr.as_fd()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_child_is_protected_as_the_node_is() {
        for (before, wanted) in [("-999\n", "0"), ("-1000", "0"), ("0\n", "0"), ("300\n", "300"), ("", "0")] {
            assert_eq!(child_score(before), wanted, "{before:?}");
        }
    }
}
