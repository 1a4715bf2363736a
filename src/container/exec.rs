//! Commands in a running container: ExecSync here, sessions of clients in `session`.
//!
//! The runtime starts the command detached, through the keeper, which parents and reaps it: its exit code is the kernel's,
//! not what a runtime makes of it. The command runs in a task of its own that is cancelled when the caller goes away.

mod command;
mod session;

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::runtime::Stdio;
use crate::state::{ContainerPhase, ContainerRecord};

use super::pipes::{self, Source};
use super::{Container, ContainerError, Containers, Resources};
use command::{Running, Wanted};

/// What is kept of both streams together, in bytes; the rest is read and dropped, and the command goes on (CVE-2022-1708,
/// CVE-2022-31030). The clients of the field take an answer of 16 MiB, so that is what the whole of it may have.
pub const EXEC_OUTPUT_CAP: usize = 16 * 1024 * 1024 - 64 * 1024;

/// How long the pipes may stay open after the command has ended, held by what it left in the background.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// 128 + n when signal n ended it.
    pub exit_code: i32,
}

impl Containers {
    /// Runs a command in a running container and waits for it.
    ///
    /// # Errors
    /// [`ContainerError::ExecTimeout`] when it did not end in time (all of its processes are then dead); an error of the
    /// runtime when it cannot be started.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, ContainerError> {
        let record = running(&*self.find(id)?, &command)?;
        let resources = self.resources().clone();
        let (mut reply, answer) = oneshot::channel();
        crate::task::spawn("exec", async move {
            let result = run(&resources, &record, &command, timeout, &mut reply).await;
            // A caller that went away made `run` kill the command.
            let _ = reply.send(result);
        });
        answer.await.map_err(|_| ContainerError::ExecCancelled)?
    }
}

/// The record of a container in which this command may be run.
fn running(container: &Container, command: &[String]) -> Result<Arc<ContainerRecord>, ContainerError> {
    if command.is_empty() {
        return Err(ContainerError::ExecEmpty);
    }
    let record = container.record();
    match record.phase {
        ContainerPhase::Running => Ok(record),
        _ => Err(ContainerError::wrong_state(&record, "RUNNING")),
    }
}

type Caller = oneshot::Sender<Result<ExecOutput, ContainerError>>;

async fn run(
    resources: &Arc<Resources>,
    record: &Arc<ContainerRecord>,
    command: &[String],
    timeout: Option<Duration>,
    caller: &mut Caller,
) -> Result<ExecOutput, ContainerError> {
    let failed = |source| ContainerError::Pipe { source };
    let (stdout, stdout_w) = pipes::output().map_err(failed)?;
    let (stderr, stderr_w) = pipes::output().map_err(failed)?;
    let room = Arc::new(AtomicUsize::new(EXEC_OUTPUT_CAP));
    let mut out = Capture::new(Source::new(stdout).map_err(failed)?, room.clone());
    let mut err = Capture::new(Source::new(stderr).map_err(failed)?, room);
    let held = command::inodes([out.source.as_fd(), err.source.as_fd()]);
    let stdin = crate::sys::host::dev_null().map_err(failed)?;
    let stdio = Stdio::Fds([stdin, stdout_w, stderr_w].map(Arc::new));
    let process = Running::start(resources, record, Wanted { command, stdio, tty: false, size: None }).await?;
    let ended = tokio::select! {
        ended = finish(&process, &mut out, &mut err) => Ok(ended),
        after = clock(timeout) => Err(ContainerError::ExecTimeout { id: record.id.clone(), after }),
        () = caller.closed() => Err(ContainerError::ExecCancelled),
    };
    let result = match ended {
        Ok(exit_code) => Ok(ExecOutput { stdout: out.kept, stderr: err.kept, exit_code }),
        Err(error) => {
            process.kill(held).await;
            process.exit().await;
            Err(error)
        }
    };
    process.forget().await?;
    result
}

async fn clock(timeout: Option<Duration>) -> Duration {
    match timeout {
        Some(timeout) => {
            tokio::time::sleep(timeout).await;
            timeout
        }
        None => std::future::pending().await,
    }
}

/// Reads both streams while the command runs, then what is left in them.
async fn finish(process: &Running, out: &mut Capture, err: &mut Capture) -> i32 {
    let exit = process.exit();
    tokio::pin!(exit);
    let mut reading = std::pin::pin!(async {
        tokio::join!(out.read_to_end(), err.read_to_end());
    });
    let mut read = false;
    let exit = loop {
        tokio::select! {
            exit = &mut exit => break exit,
            () = &mut reading, if !read => read = true,
        }
    };
    if !read {
        // What the command left in the background may hold the pipes for ever; what it wrote is read all the same.
        let _ = tokio::time::timeout(DRAIN_LIMIT, reading).await;
    }
    exit
}

/// One stream of the command, as far as there is room.
struct Capture {
    source: Source,
    kept: Vec<u8>,
    /// What both streams may still keep.
    room: Arc<AtomicUsize>,
}

impl Capture {
    fn new(source: Source, room: Arc<AtomicUsize>) -> Self {
        Self { source, kept: Vec::new(), room }
    }

    async fn read_to_end(&mut self) {
        let mut chunk = vec![0_u8; 64 * 1024];
        while let Ok(n) = self.source.read(&mut chunk).await {
            if n == 0 {
                return;
            }
            // One task reads both streams, so nobody else takes of the room meanwhile.
            let taken = n.min(self.room.load(Ordering::Relaxed));
            self.room.fetch_sub(taken, Ordering::Relaxed);
            self.kept.extend_from_slice(&chunk[..taken]);
        }
    }
}
