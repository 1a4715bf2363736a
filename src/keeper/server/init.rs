//! The first process of a pod's shared pid namespace. It reaps, and holds, sees and may do nothing.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use crate::sys::caps::{self, DropError};
use crate::sys::clone::{self, Child, CommandLine, Fresh, SingleThread};
use crate::sys::process;

/// Its name, in ps and top.
const NAME: &std::ffi::CStr = c"cricket-init";
/// What it runs as.
const NOBODY: u32 = 65534;
/// It only makes system calls until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// What the child says when it has become what it should.
const READY: &str = "ready";

/// The namespaces that it enters, by their names in the request.
#[derive(Debug, Default)]
pub struct Namespaces {
    user: Option<OwnedFd>,
    others: Vec<(String, OwnedFd)>,
}

impl Namespaces {
    #[must_use]
    pub fn new(named: Vec<(String, OwnedFd)>) -> Self {
        let mut all = Self::default();
        for (name, fd) in named {
            if name == "user" {
                all.user = Some(fd);
            } else {
                all.others.push((name, fd));
            }
        }
        all
    }
}

/// An init that is not ready yet.
#[derive(Debug)]
pub struct InitFlight {
    pub seq: u64,
    pub id: String,
    pub deadline: Instant,
    /// `None` for an init in a user namespace: a child of the keeper forks it, and tells its number.
    pub child: Option<Child>,
    report: std::fs::File,
    text: Vec<u8>,
}

/// The step that an init could not take.
#[derive(Debug, thiserror::Error)]
enum InitError {
    #[error("entering the {name} namespace")]
    Enter { name: String, source: io::Error },
    #[error("forking in the user namespace")]
    Fork { source: io::Error },
    #[error("{step}")]
    Root { step: &'static str, source: io::Error },
    #[error("setsid")]
    Session { source: io::Error },
    #[error("dropping privileges")]
    Drop { source: DropError },
    #[error("closing descriptors")]
    Close { source: io::Error },
}

impl InitFlight {
    /// Forks the init.
    ///
    /// # Errors
    /// When the kernel gives no pipe or process.
    pub fn start(single: &SingleThread, seq: u64, id: String, namespaces: Namespaces) -> io::Result<Self> {
        let (report, say) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&report, true)?;
        let command_line = CommandLine::find().ok();
        let in_user = namespaces.user.is_some();
        let fresh = if in_user { Fresh::Nothing } else { Fresh::PidAndMount };
        let say = std::fs::File::from(say);
        let child = single.fork(fresh, || {
            if !in_user {
                become_init(&namespaces, command_line, say);
            }
            match fork_in_user_namespace(single, &namespaces, command_line, &say) {
                Ok(()) => 0,
                Err(error) => fail(&say, &error),
            }
        })?;
        let deadline = Instant::now() + READY_WITHIN;
        Ok(Self { seq, id, deadline, child: (!in_user).then_some(child), report: report.into(), text: Vec::new() })
    }

    /// The pipe on which it reports.
    #[must_use]
    pub fn report(&self) -> std::os::fd::BorrowedFd<'_> {
        self.report.as_fd()
    }

    /// Reads what there is of its report. `None` while it goes on; then its pid if another process forked it, or the error.
    pub fn read(&mut self) -> Option<Result<Option<i32>, String>> {
        let mut chunk = [0; 512];
        loop {
            match self.report.read(&mut chunk) {
                Ok(0) => break,
                Ok(n) if self.text.len() < 4096 => self.text.extend_from_slice(&chunk[..n]),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) => return Some(Err(error.to_string())),
            }
        }
        let text = String::from_utf8_lossy(&self.text).into_owned();
        let pid = text.lines().find_map(|line| line.strip_prefix("pid ")?.parse().ok());
        if text.lines().any(|line| line == READY) {
            return Some(Ok(pid));
        }
        let cause = text.lines().find(|line| !line.starts_with("pid ")).unwrap_or("it died");
        Some(Err(format!("the pod's init: {cause}")))
    }
}

fn enter(name: &str, fd: &OwnedFd) -> Result<(), InitError> {
    let entered = rustix::thread::move_into_link_name_space(fd.as_fd(), None);
    entered.map_err(|error| InitError::Enter { name: name.to_owned(), source: error.into() })
}

/// The pid namespace must belong to the user namespace, so the fork comes after entering it. The keeper becomes the
/// init's parent when this process ends.
fn fork_in_user_namespace(
    single: &SingleThread,
    namespaces: &Namespaces,
    command_line: Option<CommandLine>,
    say: &std::fs::File,
) -> Result<(), InitError> {
    if let Some(user) = &namespaces.user {
        enter("user", user)?;
    }
    let for_child = say.try_clone().map_err(|source| InitError::Fork { source })?;
    let forked = single.fork(Fresh::PidAndMount, move || become_init(namespaces, command_line, for_child));
    let child = forked.map_err(|source| InitError::Fork { source })?;
    tell(say, &format!("pid {}\n", child.pid));
    Ok(())
}

fn tell(mut say: &std::fs::File, text: &str) {
    // Without a reader the keeper is gone, and there is nobody left to tell.
    let _ = say.write_all(text.as_bytes());
}

fn fail(say: &std::fs::File, error: &InitError) -> i32 {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    tell(say, &format!("{text}\n"));
    1
}

/// Never comes back: some of the descriptors that the keeper's structures own are closed here, so nothing may be dropped.
fn become_init(namespaces: &Namespaces, command_line: Option<CommandLine>, say: std::fs::File) -> ! {
    if let Err(error) = prepare(namespaces, command_line, &say) {
        clone::exit_now(fail(&say, &error));
    }
    tell(&say, &format!("{READY}\n"));
    drop(say);
    reap_for_ever()
}

fn prepare(namespaces: &Namespaces, command_line: Option<CommandLine>, say: &std::fs::File) -> Result<(), InitError> {
    for (name, fd) in &namespaces.others {
        enter(name, fd)?;
    }
    empty_root()?;
    rustix::process::setsid().map_err(|error| InitError::Session { source: error.into() })?;
    // For ps and top only.
    let _ = rustix::thread::set_name(NAME);
    if let Some(command_line) = command_line {
        command_line.replace(NAME.to_bytes());
    }
    clone::close_all_but(say.as_fd()).map_err(|source| InitError::Close { source })?;
    caps::drop_everything(NOBODY).map_err(|source| InitError::Drop { source })
}

/// Leaves an empty read-only root as the only mount of this mount namespace. The copies of the host's mounts must go:
/// as long as they exist, what the host unmounts stays busy.
fn empty_root() -> Result<(), InitError> {
    let step = |step: &'static str| move |error: rustix::io::Errno| InitError::Root { step, source: error.into() };
    // Without this the host would lose its mounts with us.
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(step("making all mounts private"))?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // Any directory that surely exists will do.
    rustix::mount::mount("cricket-init", "/proc", "tmpfs", flags, c"size=4k,nr_inodes=1,mode=0555")
        .map_err(step("mounting the empty root"))?;
    rustix::process::chdir("/proc").map_err(step("entering the empty root"))?;
    rustix::process::pivot_root(".", ".").map_err(step("pivot_root"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(step("leaving the host's root"))?;
    rustix::process::chdir("/").map_err(step("chdir /"))
}

/// Reaps whatever the pod's processes leave behind. Ends on a SIGTERM that comes from outside the pod; one from
/// inside is ignored, since it would let any process that may signal it end the whole pod.
fn reap_for_ever() -> ! {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.add(Signal::SIGTERM);
    // Blocked in the keeper already, but that is the keeper's business.
    let _ = signals.thread_block();
    loop {
        while let Ok(Some(pid)) = process::peek_ended_child() {
            let _ = process::reap(pid);
        }
        if let Ok((signal, 0)) = process::wait_signal(&signals)
            && signal == libc::SIGTERM
        {
            clone::exit_now(0);
        }
    }
}
