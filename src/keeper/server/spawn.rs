//! Running a program and adopting the process that it leaves behind.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal};

use crate::keeper::protocol::SpawnOp;
use crate::sys::clone::{Fresh, Image, SingleThread, replace_stdio};
use crate::sys::process::Stat;

/// The longest clock of a program.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// How long a killed program may take to be gone before its caller is answered regardless.
const AFTER_KILL: Duration = Duration::from_secs(2);

/// What this process changed for itself and a program that it runs must not inherit.
#[derive(Debug)]
pub struct ChildSettings {
    pub open_files: Rlimit,
    /// What a program starts with: the score that the keeper was started with, but never one below 0.
    pub oom_score_adj: String,
}

/// The descriptors of a program.
#[derive(Debug)]
pub struct Given {
    /// Its descriptors 0 to 2.
    pub stdio: [OwnedFd; 3],
    /// The mount namespace that it runs in, where that is not the keeper's.
    pub mounts: Option<OwnedFd>,
}

/// A program that runs.
#[derive(Debug)]
pub struct Flight {
    pub seq: u64,
    pub op: SpawnOp,
    pub pid: i32,
    pub started: Instant,
    /// Its wait status, once it has been reaped.
    pub status: Option<i32>,
    pub timed_out: bool,
    deadline: Instant,
    /// Holds a text when the program could not be run.
    failure: std::fs::File,
}

/// What is due for a program whose clock is looked at.
#[derive(Debug, PartialEq, Eq)]
pub enum Due {
    Nothing,
    /// It has just been killed.
    Killed,
    /// It was killed and is still not gone: its caller has waited long enough.
    GiveUp,
}

impl Flight {
    /// Forks and runs the program.
    ///
    /// # Errors
    /// When the arguments are no program's, or the kernel gives no pipe or process.
    pub fn start(
        single: &SingleThread,
        settings: &ChildSettings,
        seq: u64,
        op: SpawnOp,
        given: &Given,
    ) -> io::Result<Self> {
        let image = Image::new(&op.argv, &op.env)?;
        if let Some(path) = &op.pid_file {
            // What an earlier run left must not be taken for this one's.
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let (failure, say) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        // Neither end may ever block: the texts are far shorter than a pipe, and this process waits for nothing.
        rustix::io::ioctl_fionbio(&failure, true)?;
        let keeper = rustix::process::getpid();
        let child = single.fork(Fresh::Nothing, || {
            let error = become_program(&image, settings, given, keeper);
            let _ = std::fs::File::from(say).write_all(error.to_string().as_bytes());
            127
        })?;
        // The child does the same; whoever comes first. After this the group can be killed as a whole.
        if let Some(pid) = Pid::from_raw(child.pid) {
            let _ = rustix::process::setpgid(Some(pid), Some(pid));
        }
        let started = Instant::now();
        let timeout = Duration::from_millis(op.timeout_ms).min(MAX_TIMEOUT);
        Ok(Self {
            seq,
            op,
            pid: child.pid,
            started,
            status: None,
            timed_out: false,
            deadline: started + timeout,
            failure: failure.into(),
        })
    }

    /// When its clock must be looked at again.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Looks at the clock.
    pub fn check_clock(&mut self, now: Instant) -> Due {
        if self.status.is_some() || now < self.deadline {
            return Due::Nothing;
        }
        if self.timed_out {
            // Its reaping is still awaited, but by nobody in particular.
            self.deadline = now + MAX_TIMEOUT;
            return Due::GiveUp;
        }
        self.timed_out = true;
        self.deadline = now + AFTER_KILL;
        // Not reaped yet, so the number is still its own.
        if let Some(group) = Pid::from_raw(self.pid) {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
            let _ = rustix::process::kill_process(group, Signal::KILL);
        }
        Due::Killed
    }

    /// Why the program could not be run, if so. For a program that has ended.
    pub fn failure(&mut self) -> Option<String> {
        let mut text = Vec::new();
        let _ = (&mut self.failure).take(1024).read_to_end(&mut text);
        (!text.is_empty()).then(|| String::from_utf8_lossy(&text).into_owned())
    }
}

/// In the child: gives back what the keeper took for itself, and runs the program. Comes back only with the error.
fn become_program(image: &Image, settings: &ChildSettings, given: &Given, keeper: Pid) -> io::Error {
    let prepared = || -> io::Result<()> {
        // The group may have been set by the parent already.
        let _ = rustix::process::setpgid(None, None);
        // A runtime without a keeper would make a container that nobody knows of.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() != Some(keeper) {
            return Err(io::Error::other("the keeper has died"));
        }
        crate::sys::process::reset_signals()?;
        rustix::process::setrlimit(Resource::Nofile, settings.open_files)?;
        std::fs::write("/proc/self/oom_score_adj", &settings.oom_score_adj)?;
        if let Some(mounts) = &given.mounts {
            // The working directory and the root change with it, to those of that namespace.
            rustix::thread::move_into_link_name_space(mounts.as_fd(), Some(rustix::thread::LinkNameSpaceType::Mount))?;
        }
        let [stdin, stdout, stderr] = &given.stdio;
        replace_stdio([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])
    };
    match prepared() {
        Ok(()) => image.execute(),
        Err(error) => error,
    }
}

/// The number in a pid-file.
///
/// # Errors
/// Says what is wrong with the file.
pub fn read_pid_file(path: &Path) -> Result<i32, String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| format!("its pid-file {}: {error}", path.display()))?;
    file.take(32).read_to_string(&mut text).map_err(|error| format!("its pid-file {}: {error}", path.display()))?;
    let pid = text.trim().parse().ok().filter(|pid| *pid > 1);
    pid.ok_or_else(|| format!("its pid-file {} holds {text:?}", path.display()))
}

/// How a living process is related to this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kin {
    Child,
    /// A descendant whose parent still lives.
    Descendant,
    Stranger,
}

/// Looks at a process's parents. A zombie counts as living.
#[must_use]
pub fn kin(pid: i32) -> Kin {
    let me = rustix::process::getpid().as_raw_pid();
    let mut at = pid;
    // A chain of parents is short; the bound is against one that changes under our eyes.
    for depth in 0..64 {
        match Stat::of(at) {
            Ok(stat) if stat.parent == me => return if depth == 0 { Kin::Child } else { Kin::Descendant },
            Ok(stat) if stat.parent > 1 => at = stat.parent,
            _ => return Kin::Stranger,
        }
    }
    Kin::Stranger
}
