//! ExecSync: a command in a running container, its output and its exit code.
//!
//! The runtime starts the command detached, through the keeper, which parents and reaps it: its exit code is the kernel's,
//! not what a runtime makes of it. The command runs in a task of its own that is cancelled when the caller goes away.

use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use oci_spec::runtime::Spec;
use rustix::pipe::PipeFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use crate::keeper::HeldProcess;
use crate::runtime::{ExecRequest, Stdio as RuntimeStdio};
use crate::spec::SpecError;
use crate::state::{ContainerPhase, ContainerRecord};
use crate::sys::{process, reactor};

use super::{ContainerError, Containers, Resources, state_name, write_file};

/// What is kept of both streams together, in bytes; the rest is read and dropped, and the command goes on (CVE-2022-1708,
/// CVE-2022-31030). The clients of the field take an answer of 16 MiB, so that is what the whole of it may have.
pub const EXEC_OUTPUT_CAP: usize = 16 * 1024 * 1024 - 64 * 1024;

/// How long the pipes may stay open after the command has ended, held by what it left in the background.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// The clock of `runtime exec` itself, which returns as soon as the command runs.
const START_CLOCK: Duration = Duration::from_secs(60);

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
        let record = self.find(id)?.record();
        if command.is_empty() {
            return Err(ContainerError::ExecEmpty);
        }
        if record.phase != ContainerPhase::Running {
            let state = state_name(record.phase);
            return Err(ContainerError::WrongState { id: record.id.clone(), state, wanted: "RUNNING" });
        }
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

type Caller = oneshot::Sender<Result<ExecOutput, ContainerError>>;

async fn run(
    resources: &Arc<Resources>,
    record: &ContainerRecord,
    command: &[String],
    timeout: Option<Duration>,
    caller: &mut Caller,
) -> Result<ExecOutput, ContainerError> {
    let exec_id = format!("exec-{}", crate::sys::host::random_hex::<8>());
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK);
    let failed = |source: rustix::io::Errno| ContainerError::Pipe { source: source.into() };
    let (stdout, stdout_w) = pipe().map_err(failed)?;
    let (stderr, stderr_w) = pipe().map_err(failed)?;
    for theirs in [&stdout_w, &stderr_w] {
        // Only our end is non-blocking: the command must see an ordinary pipe.
        let flags = rustix::fs::fcntl_getfl(theirs).map_err(failed)?;
        rustix::fs::fcntl_setfl(theirs, flags - rustix::fs::OFlags::NONBLOCK).map_err(failed)?;
    }
    let room = Arc::new(AtomicUsize::new(EXEC_OUTPUT_CAP));
    let (mut out, mut err) = (Capture::new(stdout, room.clone())?, Capture::new(stderr, room)?);
    let stdin = crate::sys::host::dev_null().map_err(|source| ContainerError::Pipe { source })?;
    let process = start(resources, record, &exec_id, command, [stdin, stdout_w, stderr_w]).await?;
    let ended = tokio::select! {
        ended = finish(resources, &exec_id, &process, &mut out, &mut err) => Ok(ended),
        after = clock(timeout) => Err(ContainerError::ExecTimeout { id: record.id.clone(), after }),
        () = caller.closed() => Err(ContainerError::ExecCancelled),
    };
    let result = match ended {
        Ok(exit_code) => Ok(ExecOutput { stdout: out.kept, stderr: err.kept, exit_code }),
        Err(error) => {
            kill(resources, record, &process, &[out.fd.get_ref().as_fd(), err.fd.get_ref().as_fd()]).await;
            resources.keeper.wait_exit(&exec_id, &process.pidfd).await;
            Err(error)
        }
    };
    resources.keeper.forget(&exec_id).await?;
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

async fn start(
    resources: &Arc<Resources>,
    record: &ContainerRecord,
    exec_id: &str,
    command: &[String],
    stdio: [OwnedFd; 3],
) -> Result<HeldProcess, ContainerError> {
    let runtime = resources.runtime(&record.handler)?;
    let bundle = resources.bundle(&record.id);
    let process_json = bundle.join(format!("{exec_id}.json"));
    let template = read_spec(bundle.join("config.json"))?;
    let process = crate::spec::exec_process(&template, command, false).map_err(SpecError::from)?;
    let bytes = serde_json::to_vec(&process)
        .map_err(|source| ContainerError::Bundle { path: process_json.clone(), source: source.into() })?;
    write_file(&process_json, &bytes)?;
    let request = ExecRequest {
        container_id: record.id.clone(),
        exec_id: exec_id.to_owned(),
        process_json: process_json.clone(),
        dir: bundle,
        stdio: RuntimeStdio::Fds(stdio.map(Arc::new)),
        timeout: START_CLOCK,
        hold: Vec::new(),
    };
    let started = runtime.exec(&resources.keeper, request).await;
    // The bundle goes with the container; a file left in it is harmless.
    let _ = fs::remove_file(process_json);
    Ok(started?)
}

fn read_spec(path: PathBuf) -> Result<Spec, ContainerError> {
    let failed = |source| ContainerError::ReadBundle { path: path.clone(), source };
    let bytes = fs::read(&path).map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))
}

/// Reads both streams while the command runs, then what is left in them.
async fn finish(
    resources: &Resources,
    exec_id: &str,
    process: &HeldProcess,
    out: &mut Capture,
    err: &mut Capture,
) -> i32 {
    let exit = resources.keeper.wait_exit(exec_id, &process.pidfd);
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
    exit.status.code()
}

/// Kills the command and everything that it started: its descendants, its session, and whoever holds its pipes.
async fn kill(resources: &Arc<Resources>, record: &ContainerRecord, process: &HeldProcess, pipes: &[BorrowedFd<'_>]) {
    let inodes: Vec<u64> = pipes.iter().filter_map(|pipe| process::inode(*pipe).ok()).collect();
    let (pid, pidfd) = (process.pid, process.pidfd.clone());
    let (cgroups, path) = (resources.cgroups.clone(), record.cgroups_path.clone());
    crate::task::blocking(move || {
        process::kill_tree(pid, pidfd.as_fd(), &inodes, || cgroups.procs(&path).unwrap_or_default());
    })
    .await;
}

/// One stream of the command, as far as there is room.
struct Capture {
    fd: AsyncFd<OwnedFd>,
    kept: Vec<u8>,
    /// What both streams may still keep.
    room: Arc<AtomicUsize>,
}

impl Capture {
    fn new(fd: OwnedFd, room: Arc<AtomicUsize>) -> Result<Self, ContainerError> {
        let fd = reactor::register(fd, Interest::READABLE).map_err(|source| ContainerError::Pipe { source })?;
        Ok(Self { fd, kept: Vec::new(), room })
    }

    async fn read_to_end(&mut self) {
        let mut chunk = vec![0_u8; 64 * 1024];
        loop {
            let Ok(mut ready) = self.fd.readable().await else { return };
            match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut chunk)?)) {
                Ok(Ok(0)) => return,
                Ok(Ok(n)) => {
                    // One task reads both streams, so nobody else takes of the room meanwhile.
                    let taken = n.min(self.room.load(Ordering::Relaxed));
                    self.room.fetch_sub(taken, Ordering::Relaxed);
                    self.kept.extend_from_slice(&chunk[..taken]);
                }
                Ok(Err(error)) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(Err(_)) => return,
                Err(_would_block) => {}
            }
        }
    }
}
