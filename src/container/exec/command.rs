//! A command that runs in a container: how it is started below the keeper, and how it and all that it started is ended.

use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::{BoxBuilder, Spec};

use crate::keeper::HeldProcess;
use crate::runtime::{ExecRequest, Stdio};
use crate::spec::SpecError;
use crate::state::ContainerRecord;
use crate::sys::{pidfd, process};

use super::super::session::WindowSize;
use super::super::{ContainerError, Resources, write_file};

/// The clock of `runtime exec` itself, which returns as soon as the command runs.
const START_CLOCK: Duration = Duration::from_secs(60);

/// What is to be run.
pub(super) struct Wanted<'a> {
    pub(super) command: &'a [String],
    pub(super) stdio: Stdio,
    pub(super) tty: bool,
    /// The terminal's size, when it is known already.
    pub(super) size: Option<WindowSize>,
}

/// A command that was started, which may have ended since.
pub(super) struct Running {
    resources: Arc<Resources>,
    record: Arc<ContainerRecord>,
    exec_id: String,
    process: HeldProcess,
}

impl Running {
    /// Starts a command with the container's own user, limits, environment and labels.
    pub(super) async fn start(
        resources: &Arc<Resources>,
        record: &Arc<ContainerRecord>,
        wanted: Wanted<'_>,
    ) -> Result<Self, ContainerError> {
        let exec_id = format!("exec-{}", crate::sys::host::random_hex::<8>());
        let runtime = resources.runtime(&record.handler)?;
        let bundle = resources.bundle(&record.id);
        let process_json = bundle.join(format!("{exec_id}.json"));
        let bytes = process_document(bundle.join("config.json"), &process_json, &wanted)?;
        write_file(&process_json, &bytes)?;
        let request = ExecRequest {
            container_id: record.id.clone(),
            exec_id: exec_id.clone(),
            process_json: process_json.clone(),
            dir: bundle,
            stdio: wanted.stdio,
            timeout: START_CLOCK,
            hold: Vec::new(),
        };
        let started = runtime.exec(&resources.keeper, request).await;
        // The bundle goes with the container; a file left in it is harmless.
        let _ = fs::remove_file(process_json);
        Ok(Self { resources: resources.clone(), record: record.clone(), exec_id, process: started? })
    }

    /// Waits for its end: the exit code, 128 + n when signal n ended it.
    pub(super) async fn exit(&self) -> i32 {
        self.resources.keeper.wait_exit(&self.exec_id, &self.process.pidfd).await.status.code()
    }

    /// Tells its first process that the terminal, or the client, has gone.
    pub(super) fn hang_up(&self) {
        // One that has ended needs no telling.
        let _ = pidfd::send(self.process.pidfd.as_fd(), libc::SIGHUP);
    }

    /// Kills it and everything that it started: its descendants, its session, and whoever holds its pipes.
    pub(super) async fn kill(&self, pipes: Vec<u64>) {
        let (pid, pidfd) = (self.process.pid, self.process.pidfd.clone());
        let (cgroups, path) = (self.resources.cgroups.clone(), self.record.cgroups_path.clone());
        crate::task::blocking(move || {
            process::kill_tree(pid, pidfd.as_fd(), &pipes, || cgroups.procs(&path).unwrap_or_default());
        })
        .await;
    }

    /// Lets the keeper forget it. It must have ended, or nobody would reap it knowingly.
    pub(super) async fn forget(self) -> Result<(), ContainerError> {
        Ok(self.resources.keeper.forget(&self.exec_id).await?)
    }
}

/// The names under which [`Running::kill`] finds the holders of pipes.
pub(super) fn inodes<'a>(pipes: impl IntoIterator<Item = BorrowedFd<'a>>) -> Vec<u64> {
    pipes.into_iter().filter_map(|pipe| process::inode(pipe).ok()).collect()
}

fn process_document(spec: PathBuf, path: &std::path::Path, wanted: &Wanted<'_>) -> Result<Vec<u8>, ContainerError> {
    let failed = |source| ContainerError::ReadBundle { path: spec.clone(), source };
    let bytes = fs::read(&spec).map_err(failed)?;
    let template: Spec = serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))?;
    let mut process = crate::spec::exec_process(&template, wanted.command, wanted.tty).map_err(SpecError::from)?;
    if let (Some(process), Some(size)) = (&mut process, wanted.size) {
        let size = BoxBuilder::default().width(size.width).height(size.height).build();
        process.set_console_size(size.ok());
    }
    serde_json::to_vec(&process).map_err(|source| ContainerError::Bundle { path: path.into(), source: source.into() })
}
