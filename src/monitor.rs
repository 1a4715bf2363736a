//! One monitor task per container: it reads the container's output into its CRI log, waits for its end, and says how it
//! ended, in that order.
//!
//! ```text
//!   stdout ─┐                       ┌─ Reopen
//!           ├─▶ records ─▶ log file ◀┘
//!   stderr ─┘      └─▶ outlets of attached clients
//!   pidfd / keeper ─▶ exit ─▶ drain the pipes ─▶ OOM verdict ─▶ Exit report to the container's driver
//! ```
//!
//! **Invariant: log before EXITED.** The report is sent only after every byte that the container had written when it died
//! is in the log. A process that outlives the container and holds its pipe cannot delay the report beyond
//! [`DRAIN_LIMIT`].
//!
//! **Invariant: nothing is buffered here.** What a read returned is written before the next read: the end of a line that
//! has not come yet does not hold back its beginning, which becomes a partial record. A daemon that is killed loses
//! nothing that it had taken from a pipe for longer than one write.
//!
//! **Invariant: nobody who looks on slows the container.** An attached client (`outlets`) has a queue of its own with a
//! bound; one that falls behind it reads the log instead.

pub mod log;
mod outlets;
mod output;
mod replay;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::keeper::{Exit, Keeper};
use crate::sys::cgroup::{Cgroups, OomWatch};
use log::{LogError, LogFile, LogPlace, Stream};
use outlets::{Outlets, Place};
use output::Output;

pub use outlets::{MAX_ROTATIONS, Outlet, OutletError, Piece, QUEUE, Wants};

/// How long the pipes of a dead container may stay open (held by a process that left it) before the report goes out.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// A container's descriptors as the daemon reads them.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Write end of the stdin pipe, while it is open.
    pub stdin: Option<Arc<OwnedFd>>,
    /// Read end of the stdout pipe, or the pty's master.
    pub stdout: Option<Arc<OwnedFd>>,
    pub stderr: Option<Arc<OwnedFd>>,
    pub terminal: bool,
}

impl Stdio {
    /// Where input for the container is written to.
    #[must_use]
    pub fn input(&self) -> Option<Arc<OwnedFd>> {
        if self.terminal { self.stdout.clone() } else { self.stdin.clone() }
    }
}

/// What the monitor watches.
#[derive(Debug)]
pub struct Watched {
    pub id: String,
    pub pidfd: Arc<OwnedFd>,
    pub stdio: Stdio,
    pub log: Option<LogPlace>,
    /// Longest text of one log record, in bytes.
    pub max_line: usize,
    /// `None` where the cgroup cannot be watched; the verdict is then never "OOM".
    pub oom: Option<OomWatch>,
    /// Set where the pid namespace is shared: what the first process leaves behind in this cgroup is killed with it.
    pub leftovers: Option<(Cgroups, String)>,
}

/// How a container ended.
#[derive(Debug, Clone)]
pub struct ExitReport {
    pub exit: Exit,
    /// A process of the container was killed for lack of memory.
    pub oom_killed: bool,
}

/// Handle of a running monitor. Dropping it does not stop the task: the container's end does.
#[derive(Debug, Clone)]
pub struct Monitor {
    commands: mpsc::Sender<Reopen>,
    outlets: Arc<Outlets>,
}

#[derive(Debug)]
struct Reopen {
    done: oneshot::Sender<Result<(), LogError>>,
}

/// Why a monitor could not be started or asked.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    #[error("the container's log")]
    Log(#[from] LogError),
    #[error("the container's {stream} cannot be read")]
    Output { stream: &'static str, source: io::Error },
    #[error("the container has ended; its log takes nothing more")]
    Ended,
}

impl Monitor {
    /// Opens the log and starts the task; `report` is called once, at the end.
    ///
    /// # Errors
    /// When the log cannot be opened or a pipe cannot be registered with the reactor.
    pub fn start(
        keeper: Keeper,
        watched: Watched,
        report: impl FnOnce(ExitReport) + Send + 'static,
    ) -> Result<Self, MonitorError> {
        let log = watched.log.clone().map(|place| LogFile::open(place, watched.max_line)).transpose()?;
        let open = |fd: Option<Arc<OwnedFd>>, stream, name| {
            fd.map(|fd| Output::new(&fd, stream).map_err(|source| MonitorError::Output { stream: name, source }))
                .transpose()
        };
        let stdout = open(watched.stdio.stdout, Stream::Stdout, "stdout")?;
        let stderr = open(watched.stdio.stderr, Stream::Stderr, "stderr")?;
        let (commands, inbox) = mpsc::channel(4);
        let Watched { id, pidfd, oom, leftovers, .. } = watched;
        let outlets = Arc::new(Outlets::default());
        let taker = Taker { log, outlets: outlets.clone() };
        let task = Task { keeper, id, pidfd, oom, leftovers, taker, stdout, stderr, inbox };
        crate::task::spawn("monitor", async move { report(task.run().await) });
        Ok(Self { commands, outlets })
    }

    /// Looks on at the container's output from now on.
    ///
    /// # Errors
    /// [`MonitorError::Ended`] once the container has ended.
    pub fn attach(&self, wants: Wants) -> Result<Outlet, MonitorError> {
        Outlets::open(&self.outlets, wants).ok_or(MonitorError::Ended)
    }

    /// Opens the log anew at its path, after the kubelet renamed the file.
    ///
    /// # Errors
    /// [`MonitorError::Ended`] once the container has ended (no file is made then), [`MonitorError::Log`] when the new
    /// file cannot be opened; the old one then goes on.
    pub async fn reopen_log(&self) -> Result<(), MonitorError> {
        let (done, answer) = oneshot::channel();
        self.commands.send(Reopen { done }).await.map_err(|_| MonitorError::Ended)?;
        answer.await.map_err(|_| MonitorError::Ended)?.map_err(MonitorError::Log)
    }
}

/// Where output goes: the log, and those who are attached. Dropping it is the end of the output.
struct Taker {
    log: Option<LogFile>,
    outlets: Arc<Outlets>,
}

impl Taker {
    fn take(&mut self, stream: Stream, bytes: &[u8]) {
        let written = self.log.as_mut().and_then(|log| log.write(stream, bytes));
        if !self.outlets.is_watched() {
            return;
        }
        let place = self.log.as_ref().zip(written).and_then(|(log, written)| {
            let end = log.position().ok()?;
            Some(Place { file: log.file().clone(), start: end.checked_sub(written)?, end })
        });
        self.outlets.push(stream, bytes, place);
    }

    fn reopen(&mut self) -> Result<(), LogError> {
        let Some(log) = &mut self.log else { return Ok(()) };
        log.reopen()?;
        self.outlets.reopened(log.file(), log.length().ok());
        Ok(())
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        self.outlets.end();
    }
}

struct Task {
    keeper: Keeper,
    id: String,
    pidfd: Arc<OwnedFd>,
    oom: Option<OomWatch>,
    leftovers: Option<(Cgroups, String)>,
    taker: Taker,
    stdout: Option<Output>,
    stderr: Option<Output>,
    inbox: mpsc::Receiver<Reopen>,
}

impl Task {
    async fn run(mut self) -> ExitReport {
        let keeper = self.keeper.clone();
        let (id, pidfd) = (self.id.clone(), self.pidfd.clone());
        let exit = keeper.wait_exit(&id, &pidfd);
        tokio::pin!(exit);
        let mut inbox_open = true;
        let exit = loop {
            tokio::select! {
                biased;
                command = self.inbox.recv(), if inbox_open => match command {
                    Some(command) => self.reopen(command),
                    None => inbox_open = false,
                },
                () = readable(&self.stdout), if self.stdout.is_some() => step(&mut self.stdout, &mut self.taker),
                () = readable(&self.stderr), if self.stderr.is_some() => step(&mut self.stderr, &mut self.taker),
                () = oom_changed(&mut self.oom) => {}
                exit = &mut exit => break exit,
            }
        };
        // First of all: systemd may remove the cgroup, and its counter, within milliseconds.
        let oom_killed = self.oom.as_ref().is_some_and(|watch| watch.oom_kills() > 0);
        // Commands that come from here on find the channel closed, so nobody makes a new file for a log that has ended.
        self.inbox.close();
        while let Ok(command) = self.inbox.try_recv() {
            self.reopen(command);
        }
        if let Some((cgroups, path)) = self.leftovers.take()
            && let Err(error) = crate::task::blocking(move || cgroups.kill_all(&path)).await
        {
            tracing::warn!(id = %self.id, error = %crate::telemetry::chain(&error), "processes of an ended container are left");
        }
        self.drain().await;
        ExitReport { exit, oom_killed }
    }

    fn reopen(&mut self, command: Reopen) {
        // A caller that went away has no use for the answer.
        let _ = command.done.send(self.taker.reopen());
    }

    /// Reads what is left in the pipes. A pipe whose other end is closed is read to its end; one that a process outside
    /// the container still holds is read until it is empty, and waited for no longer than [`DRAIN_LIMIT`].
    async fn drain(&mut self) {
        for output in [&mut self.stdout, &mut self.stderr] {
            if output
                .as_mut()
                .is_some_and(|source| !source.transfer_all(|stream, bytes| self.taker.take(stream, bytes)))
            {
                *output = None;
            }
        }
        let rest = async {
            while self.stdout.is_some() || self.stderr.is_some() {
                tokio::select! {
                    () = readable(&self.stdout), if self.stdout.is_some() => step(&mut self.stdout, &mut self.taker),
                    () = readable(&self.stderr), if self.stderr.is_some() => step(&mut self.stderr, &mut self.taker),
                }
            }
        };
        if tokio::time::timeout(DRAIN_LIMIT, rest).await.is_err() {
            tracing::debug!(id = %self.id, "a process outside the container holds its output; the log is closed");
        }
    }
}

async fn readable(output: &Option<Output>) {
    match output {
        Some(output) => output.readable().await,
        None => std::future::pending().await,
    }
}

async fn oom_changed(watch: &mut Option<OomWatch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

/// Moves one read's worth from the pipe to the log; at the end of the pipe the output becomes `None`.
fn step(output: &mut Option<Output>, taker: &mut Taker) {
    if output.as_mut().is_some_and(|source| !source.transfer(|stream, bytes| taker.take(stream, bytes))) {
        *output = None;
    }
}
