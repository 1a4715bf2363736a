//! The driver: the one task that changes a container.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use cri_proto::runtime::v1::LinuxContainerResources;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::events::Kind;
use crate::keeper::{Exit, ExitStatus, HeldProcess};
use crate::monitor::{ExitReport, Monitor, MonitorError};
use crate::runtime::OciRuntime;
use crate::state::{ContainerPhase, ContainerRecord, Ending};
use crate::storage::LayerLease;
use crate::sys::pidfd;

use super::{Container, ContainerError, Containers, files, update};

/// How long a process may take to die of SIGKILL before a stop is answered with an error.
const KILL_PATIENCE: Duration = Duration::from_secs(30);

/// The exit code of a process that SIGKILL ended.
const KILLED: i32 = 128 + libc::SIGKILL;

/// The answer to a command.
pub(super) type Reply = oneshot::Sender<Result<(), ContainerError>>;

/// What a driver is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    Start {
        reply: Reply,
    },
    Stop {
        grace: Duration,
        reply: Reply,
    },
    Remove {
        reply: Reply,
    },
    ReopenLog {
        reply: Reply,
    },
    /// The end of the container's input, for good.
    CloseInput {
        reply: Reply,
    },
    Update {
        request: Box<LinuxContainerResources>,
        reply: Reply,
    },
    /// From the monitor, once.
    Exited(ExitReport),
}

/// All that belongs to one container.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) record: ContainerRecord,
    /// `None` when the handler is no longer configured.
    pub(super) runtime: Option<Arc<OciRuntime>>,
    /// The first process; `None` once it has ended.
    pub(super) process: Option<HeldProcess>,
    pub(super) monitor: Option<Monitor>,
    /// Write end of its stdin, or the master of its terminal, until the container's handle takes it.
    pub(super) input: Option<Arc<OwnedFd>>,
    /// Keeps the layers of the rootfs from being collected.
    pub(super) lease: Option<LayerLease>,
    /// Where the monitor's report comes from, until it has come.
    pub(super) report: Option<oneshot::Receiver<ExitReport>>,
}

struct Driver {
    containers: Containers,
    handle: Arc<Container>,
    owned: Owned,
    stopping: Option<Stopping>,
    /// Callers of Remove, waiting for the process to be dead.
    removing: Vec<Reply>,
    /// The runtime could not start it: what StartContainer answers once the container is EXITED.
    start_failure: Option<(ContainerError, Reply)>,
}

/// A stop in progress.
struct Stopping {
    /// When SIGKILL is due; after it, when patience ends.
    deadline: Instant,
    killed: bool,
    waiters: Vec<Reply>,
}

enum Next {
    GoOn,
    End,
}

/// Starts the driver of a container that stands.
pub(super) fn start(
    containers: Containers,
    handle: Arc<Container>,
    mut commands: mpsc::Receiver<Command>,
    mut owned: Owned,
) {
    let report = owned.report.take();
    if let Some(report) = report {
        let inbox = handle.inbox.clone();
        crate::task::spawn("exit-report", async move {
            if let Ok(report) = report.await {
                // A driver that is gone has no use for it.
                let _ = inbox.send(Command::Exited(report)).await;
            }
        });
    }
    let mut driver = Driver { containers, handle, owned, stopping: None, removing: Vec::new(), start_failure: None };
    crate::task::spawn("container", async move {
        loop {
            let deadline = driver.stopping.as_ref().map(|stopping| stopping.deadline);
            let next = tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => driver.handle(command).await,
                    None => Next::End,
                },
                () = sleep_until(deadline) => {
                    driver.escalate().await;
                    Next::GoOn
                }
            };
            if matches!(next, Next::End) {
                return;
            }
        }
    });
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

impl Driver {
    async fn handle(&mut self, command: Command) -> Next {
        match command {
            Command::Start { reply } => self.start(reply).await,
            Command::Stop { grace, reply } => self.stop(grace, reply).await,
            Command::Remove { reply } => return self.remove(reply).await,
            Command::ReopenLog { reply } => answer(reply, self.reopen_log().await),
            Command::CloseInput { reply } => answer(reply, self.close_input().await),
            Command::Update { request, reply } => answer(reply, self.update(&request).await),
            Command::Exited(report) => return self.exited(report).await,
        }
        Next::GoOn
    }

    async fn start(&mut self, reply: Reply) {
        let id = self.owned.record.id.clone();
        if self.owned.record.phase != ContainerPhase::Created || self.start_failure.is_some() {
            return answer(reply, Err(self.wrong_state("CREATED")));
        }
        let Some(runtime) = self.owned.runtime.clone() else {
            return answer(reply, Err(self.wrong_state("of a configured handler")));
        };
        match runtime.start(&id).await {
            Ok(()) => {
                self.owned.record.phase = ContainerPhase::Running;
                self.owned.record.started_at = crate::sys::host::now_ns();
                // The process runs whatever the disk says; what follows corrects a record that could not be written.
                if let Err(error) = self.containers.resources().store.put_container(&self.owned.record) {
                    tracing::warn!(%id, error = %crate::telemetry::chain(&error), "the record of a started container cannot be written");
                }
                self.publish(&[Kind::Started]);
                answer(reply, Ok(()));
            }
            Err(error) => {
                self.start_failure = Some((error.into(), reply));
                self.kill().await;
            }
        }
    }

    async fn stop(&mut self, grace: Duration, reply: Reply) {
        match self.owned.record.phase {
            ContainerPhase::Created | ContainerPhase::Running => self.begin_stop(grace, Some(reply)).await,
            _ => answer(reply, Ok(())),
        }
    }

    async fn begin_stop(&mut self, grace: Duration, reply: Option<Reply>) {
        let now = Instant::now();
        // One that was never started has nobody to hear its stop signal.
        let grace = if self.owned.record.phase == ContainerPhase::Created { Duration::ZERO } else { grace };
        // A grace beyond what a clock can hold is "for ever" to everyone.
        let due = now.checked_add(grace).unwrap_or_else(|| now + Duration::from_secs(u64::from(u32::MAX)));
        match &mut self.stopping {
            Some(stopping) => {
                stopping.waiters.extend(reply);
                if !stopping.killed && due < stopping.deadline {
                    stopping.deadline = due;
                }
            }
            None => {
                self.stopping = Some(Stopping { deadline: due, killed: false, waiters: reply.into_iter().collect() });
                if !grace.is_zero() {
                    self.signal(self.owned.record.stop_signal);
                }
            }
        }
        if grace.is_zero() {
            self.escalate().await;
        }
    }

    /// The grace is over: SIGKILL; or, when that was long ago, an error to those who wait.
    async fn escalate(&mut self) {
        let Some(stopping) = &mut self.stopping else { return };
        if !stopping.killed {
            stopping.killed = true;
            stopping.deadline = Instant::now() + KILL_PATIENCE;
            self.kill().await;
            return;
        }
        if Instant::now() < stopping.deadline {
            return;
        }
        let waiters = std::mem::take(&mut stopping.waiters);
        self.stopping = None;
        for reply in waiters.into_iter().chain(std::mem::take(&mut self.removing)) {
            answer(reply, Err(self.unkillable()));
        }
    }

    fn signal(&self, signal: i32) {
        let Some(process) = &self.owned.process else { return };
        if let Err(error) = pidfd::send(process.pidfd.as_fd(), signal) {
            tracing::debug!(id = %self.owned.record.id, signal, %error, "the process is gone already");
        }
    }

    /// SIGKILL to the first process and, where the pid namespace is shared, to all that is in the cgroup.
    async fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        if self.owned.record.shares_pids {
            let cgroups = self.containers.resources().cgroups.clone();
            let path = self.owned.record.cgroups_path.clone();
            if let Err(error) = crate::task::blocking(move || cgroups.kill_all(&path)).await {
                tracing::warn!(id = %self.owned.record.id, error = %crate::telemetry::chain(&error), "not every process of the cgroup could be killed");
            }
        }
    }

    async fn reopen_log(&mut self) -> Result<(), ContainerError> {
        if self.owned.record.phase != ContainerPhase::Running {
            return Err(self.wrong_state("RUNNING"));
        }
        match &self.owned.monitor {
            Some(monitor) => Ok(monitor.reopen_log().await?),
            None => Err(MonitorError::Ended.into()),
        }
    }

    /// Done here, so that it cannot come after the keeper was told to forget the container.
    async fn close_input(&mut self) -> Result<(), ContainerError> {
        let Some(attaching) = self.handle.attaching.load_full() else { return Ok(()) };
        let null = crate::sys::host::dev_null().map_err(|source| ContainerError::Pipe { source })?;
        attaching.close_input();
        // What is held under a name is replaced by what comes next under it, in every keeper that there ever was.
        let placeholder = vec![("stdin".to_owned(), Arc::new(null))];
        Ok(self.containers.resources().keeper.hold(&self.owned.record.id, placeholder).await?)
    }

    async fn update(&mut self, request: &LinuxContainerResources) -> Result<(), ContainerError> {
        let alive = matches!(self.owned.record.phase, ContainerPhase::Created | ContainerPhase::Running);
        if !alive || self.start_failure.is_some() {
            return Err(self.wrong_state("CREATED or RUNNING"));
        }
        let Some(runtime) = self.owned.runtime.clone() else {
            return Err(self.wrong_state("of a configured handler"));
        };
        let resources = self.containers.resources().clone();
        update::apply(&resources, &runtime, &mut self.owned.record, request).await?;
        self.publish(&[]);
        Ok(())
    }

    async fn exited(&mut self, report: ExitReport) -> Next {
        let failure = self.start_failure.take();
        let record = &mut self.owned.record;
        record.ending = Some(match &failure {
            Some((error, _)) => Ending {
                exit_code: 128,
                finished_at: report.exit.finished_at_ns,
                reason: "StartError".to_owned(),
                message: crate::telemetry::chain(error),
            },
            None => ending(&report),
        });
        record.phase = ContainerPhase::Exited;
        self.owned.process = None;
        self.owned.monitor = None;
        self.handle.attaching.store(None);
        self.handle.pid.store(0, std::sync::atomic::Ordering::Relaxed);
        if let Err(error) = self.containers.resources().store.put_container(&self.owned.record) {
            // The keeper remembers the exit until it is forgotten, so a restart learns it again.
            tracing::warn!(id = %self.owned.record.id, error = %crate::telemetry::chain(&error), "the record of an exit cannot be written");
        }
        self.publish(&[Kind::Stopped]);
        self.containers.resources().sampler.forget(&self.owned.record.id);
        if let Some((error, reply)) = failure {
            answer(reply, Err(error));
        }
        for reply in self.stopping.take().map(|stopping| stopping.waiters).unwrap_or_default() {
            answer(reply, Ok(()));
        }
        let removers = std::mem::take(&mut self.removing);
        if removers.is_empty() { Next::GoOn } else { self.finish_remove(removers).await }
    }

    async fn remove(&mut self, reply: Reply) -> Next {
        if self.owned.process.is_some() {
            self.removing.push(reply);
            self.begin_stop(Duration::ZERO, None).await;
            return Next::GoOn;
        }
        self.finish_remove(vec![reply]).await
    }

    /// Takes everything away that the record names, and the record last.
    async fn finish_remove(&mut self, callers: Vec<Reply>) -> Next {
        let before = self.owned.record.phase;
        self.owned.record.phase = ContainerPhase::Removing;
        let removed = self.take_away().await;
        match removed {
            Ok(()) => {
                self.containers.forget(&self.owned.record.id);
                self.containers.resources().sampler.forget(&self.owned.record.id);
                self.containers.resources().disks.forget(&self.owned.record.id);
                self.containers.resources().events.container(&Arc::new(self.owned.record.clone()), &[Kind::Deleted]);
                for reply in callers {
                    answer(reply, Ok(()));
                }
                Next::End
            }
            Err(error) => {
                self.owned.record.phase = before;
                let shared = Arc::new(error);
                for reply in callers {
                    answer(reply, Err(ContainerError::Shared(shared.clone())));
                }
                Next::GoOn
            }
        }
    }

    async fn take_away(&mut self) -> Result<(), ContainerError> {
        let resources = self.containers.resources().clone();
        // A record that cannot be written (full disk) must not keep the container that fills the disk.
        if let Err(error) = resources.store.put_container(&self.owned.record) {
            tracing::warn!(id = %self.owned.record.id, error = %crate::telemetry::chain(&error), "removal goes on without a record of it");
        }
        files::take_away(
            &resources,
            &self.owned.record.id,
            &self.owned.record.cgroups_path,
            self.owned.runtime.as_deref(),
        )
        .await?;
        self.owned.lease = None;
        resources.keeper.forget(&self.owned.record.id).await?;
        resources.store.remove(&self.owned.record.id)?;
        Ok(())
    }

    /// Lets readers see the record, and then tells those who listen what it means.
    fn publish(&self, kinds: &[Kind]) {
        let record = Arc::new(self.owned.record.clone());
        self.handle.record.store(record.clone());
        self.containers.resources().events.container(&record, kinds);
    }

    fn wrong_state(&self, wanted: &'static str) -> ContainerError {
        ContainerError::wrong_state(&self.owned.record, wanted)
    }

    fn unkillable(&self) -> ContainerError {
        let pid = self.owned.process.as_ref().map_or(0, |process| process.pid);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let state = status.lines().find_map(|line| line.strip_prefix("State:")).unwrap_or("unknown").trim().to_owned();
        ContainerError::Unkillable { id: self.owned.record.id.clone(), pid, seconds: KILL_PATIENCE.as_secs(), state }
    }
}

fn answer(reply: Reply, result: Result<(), ContainerError>) {
    // A caller whose deadline is over has gone; the work is done all the same.
    let _ = reply.send(result);
}

/// The CRI's view of an exit: 128 + n for a signal, 255 where nobody knows.
pub(super) fn ending(report: &ExitReport) -> Ending {
    let Exit { status, finished_at_ns } = report.exit;
    let exit_code = status.code();
    let message = match status {
        ExitStatus::Code(_) => String::new(),
        ExitStatus::Signal(signal) => format!("killed by signal {signal}"),
        ExitStatus::Unknown => "the exit code is unknown: nobody was there to reap the process".to_owned(),
    };
    let reason = match status {
        ExitStatus::Unknown => "Unknown",
        // Only a death by SIGKILL, of the first process or passed on by a shell: a container that lost a child to the OOM
        // killer an hour ago and now exits 143 was stopped, not killed for memory.
        _ if report.oom_killed && exit_code == KILLED => "OOMKilled",
        ExitStatus::Code(0) => "Completed",
        _ => "Error",
    };
    Ending { exit_code, finished_at: finished_at_ns, reason: reason.to_owned(), message }
}
