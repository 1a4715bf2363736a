//! OCI runtimes behind handlers, spoken to by their command line (runc's, which crun, youki and runsc share).
//!
//! `create` and `exec` go through the keeper, which becomes the parent of what they leave behind. The other operations are
//! short and are run by the daemon itself. Every call has a clock; a runtime that hangs is killed with its process group.

mod error;
mod features;
mod handlers;
mod log;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::keeper::{HeldProcess, Keeper, KeeperError, ProcessFile, SpawnRequest};
use crate::spec::HandlerPolicy;
use crate::sys::exec::{self, Exec, Output};

pub use error::RuntimeError;
pub use features::Features;
pub use handlers::Handlers;

/// The clock of the short operations: start, state, delete.
const SHORT_CLOCK: Duration = Duration::from_secs(60);

/// What is kept of a runtime's own output, in bytes.
const OUTPUT_CAP: usize = 64 * 1024;

/// The whole environment of a runtime: nothing of the daemon's (sockets of systemd, proxies) reaches it or a hook.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// One handler: a runtime's binary, where it keeps its state, and what it may do.
#[derive(Debug)]
pub struct OciRuntime {
    handler: String,
    path: PathBuf,
    /// `<state>/runtime/<handler>`: the runtime's `--root`.
    root: PathBuf,
    systemd_cgroup: bool,
    policy: HandlerPolicy,
    features: Features,
}

/// What to create. The bundle has its config.json and rootfs.
#[derive(Debug)]
pub struct CreateRequest {
    pub id: String,
    pub bundle: PathBuf,
    /// The container's streams; with a console socket, the runtime's own.
    pub stdio: [OwnedFd; 3],
    /// Where the runtime sends the master of the container's terminal.
    pub console_socket: Option<PathBuf>,
    pub timeout: Duration,
    /// Descriptors that the keeper keeps under the container's id.
    pub hold: Vec<(String, Arc<OwnedFd>)>,
}

/// A command to run in a container.
#[derive(Debug)]
pub struct ExecRequest {
    pub container_id: String,
    /// The id under which the keeper knows the command's process.
    pub exec_id: String,
    /// The OCI process, as JSON: never flags, which runtimes have read otherwise than meant (CVE-2026-30892).
    pub process_json: PathBuf,
    pub pid_file: PathBuf,
    pub stdio: [OwnedFd; 3],
    pub console_socket: Option<PathBuf>,
    pub timeout: Duration,
}

/// What `runtime state` says.
#[derive(Debug, Clone, Deserialize)]
pub struct State {
    /// `creating`, `created`, `running`, `stopped` or `paused`.
    pub status: String,
    #[serde(default)]
    pub pid: i32,
}

impl OciRuntime {
    /// The handler's name in the configuration.
    #[must_use]
    pub fn handler(&self) -> &str {
        &self.handler
    }

    /// The runtime's binary.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the configuration allows containers of this handler.
    #[must_use]
    pub fn policy(&self) -> &HandlerPolicy {
        &self.policy
    }

    /// What the runtime said of itself at the daemon's start.
    #[must_use]
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Creates a container: its first process waits for [`Self::start`], as a child of the keeper.
    ///
    /// # Errors
    /// [`RuntimeError`] with the runtime's own words; whatever the runtime had made by then is deleted.
    pub async fn create(&self, keeper: &Keeper, request: CreateRequest) -> Result<HeldProcess, RuntimeError> {
        let log = log::RuntimeLog::new(request.bundle.join("log.json"));
        let pid_file = request.bundle.join("init.pid");
        let mut args = self.global_args(Some(log.path()));
        args.extend(["create".into(), "--bundle".into(), request.bundle.clone().into_os_string()]);
        args.extend(["--pid-file".into(), pid_file.clone().into_os_string()]);
        if let Some(socket) = &request.console_socket {
            args.extend(["--console-socket".into(), socket.clone().into_os_string()]);
        }
        args.push(request.id.clone().into());
        let process = ProcessFile { id: request.id.clone(), pid_file, hold: request.hold };
        let created = self.through_keeper(keeper, "create", args, request.stdio, process, request.timeout).await;
        match created {
            Ok(process) => Ok(process),
            Err(error) => {
                let error = error.with_words(log.last_error());
                if let Err(left) = self.delete(&request.id, true).await {
                    tracing::warn!(id = %request.id, error = %crate::telemetry::chain(&left), "the rest of a failed creation is left");
                }
                Err(error)
            }
        }
    }

    /// Lets a created container's process run.
    ///
    /// # Errors
    /// [`RuntimeError::Failed`] with the runtime's own words, [`RuntimeError::TimedOut`].
    pub async fn start(&self, id: &str) -> Result<(), RuntimeError> {
        self.short("start", id, &["start".into(), id.into()]).await.map(|_| ())
    }

    /// Deletes a container; one that does not exist is fine. With `force` a running one is killed first.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn delete(&self, id: &str, force: bool) -> Result<(), RuntimeError> {
        if !self.root.join(id).exists() {
            return Ok(());
        }
        let mut args: Vec<OsString> = vec!["delete".into()];
        if force {
            args.push("--force".into());
        }
        args.push(id.into());
        match self.short("delete", id, &args).await {
            Ok(_) => Ok(()),
            // Somebody else was faster, or the folder held no container.
            Err(_) if !self.root.join(id).exists() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The container as its runtime sees it; `None` when the runtime does not know it.
    ///
    /// # Errors
    /// [`RuntimeError::Answer`] when the answer is not what the specification says, else as [`Self::start`].
    pub async fn state(&self, id: &str) -> Result<Option<State>, RuntimeError> {
        if !self.root.join(id).exists() {
            return Ok(None);
        }
        let output = self.short("state", id, &["state".into(), id.into()]).await?;
        serde_json::from_slice(&output.stdout).map(Some).map_err(|source| RuntimeError::Answer {
            operation: "state",
            id: id.to_owned(),
            source,
        })
    }

    /// Runs a command in a container, detached: it becomes a child of the keeper, known there as `exec_id`.
    ///
    /// # Errors
    /// [`RuntimeError`] with the runtime's own words when the command cannot be started.
    pub async fn exec(&self, keeper: &Keeper, request: ExecRequest) -> Result<HeldProcess, RuntimeError> {
        let log = log::RuntimeLog::new(request.process_json.with_extension("log"));
        let mut args = self.global_args(Some(log.path()));
        args.extend(["exec".into(), "--detach".into()]);
        args.extend(["--process".into(), request.process_json.clone().into_os_string()]);
        args.extend(["--pid-file".into(), request.pid_file.clone().into_os_string()]);
        if let Some(socket) = &request.console_socket {
            args.extend(["--console-socket".into(), socket.clone().into_os_string()]);
        }
        args.push(request.container_id.clone().into());
        let process = ProcessFile { id: request.exec_id.clone(), pid_file: request.pid_file, hold: Vec::new() };
        let started = self.through_keeper(keeper, "exec", args, request.stdio, process, request.timeout).await;
        let started = started.map_err(|error| error.with_words(log.last_error()));
        log.remove();
        started
    }

    fn global_args(&self, log: Option<&Path>) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["--root".into(), self.root.clone().into_os_string()];
        if self.systemd_cgroup {
            args.push("--systemd-cgroup".into());
        }
        if let Some(log) = log {
            args.extend(["--log".into(), log.as_os_str().to_owned(), "--log-format".into(), "json".into()]);
        }
        args
    }

    async fn through_keeper(
        &self,
        keeper: &Keeper,
        operation: &'static str,
        args: Vec<OsString>,
        stdio: [OwnedFd; 3],
        process: ProcessFile,
        timeout: Duration,
    ) -> Result<HeldProcess, RuntimeError> {
        let id = process.id.clone();
        let text = |arg: OsString| {
            arg.into_string().map_err(|arg| RuntimeError::NotText { operation, id: id.clone(), value: arg.into() })
        };
        let mut argv = vec![text(self.path.clone().into_os_string())?];
        for arg in args {
            argv.push(text(arg)?);
        }
        let request = SpawnRequest {
            argv,
            env: vec![("PATH".to_owned(), PATH.to_owned())],
            stdio: stdio.map(Arc::new),
            process: Some(process),
            timeout,
        };
        let spawned = keeper.spawn(request).await.map_err(|source| match source {
            KeeperError::TimedOut { after, .. } => RuntimeError::TimedOut { operation, id: id.clone(), after },
            source => RuntimeError::Keeper { operation, id: id.clone(), source },
        })?;
        spawned.process.ok_or_else(|| RuntimeError::Failed {
            operation,
            id: id.clone(),
            status: format!("{:?}", spawned.status),
            words: String::new(),
        })
    }

    async fn short(&self, operation: &'static str, id: &str, args: &[OsString]) -> Result<Output, RuntimeError> {
        let mut all = self.global_args(None);
        all.extend_from_slice(args);
        let output = run(&self.path, all, SHORT_CLOCK).await.map_err(|source| match source {
            exec::ExecError::TimedOut { after, .. } => RuntimeError::TimedOut { operation, id: id.to_owned(), after },
            source => RuntimeError::Run { operation, id: id.to_owned(), source },
        })?;
        if output.status.success() {
            return Ok(output);
        }
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(RuntimeError::Failed { operation, id: id.to_owned(), status: output.status.to_string(), words })
    }
}

/// Runs a runtime's binary with the runtimes' fixed environment.
async fn run(path: &Path, args: Vec<OsString>, timeout: Duration) -> Result<Output, exec::ExecError> {
    exec::run(Exec {
        program: path.to_owned(),
        args,
        env: vec![("PATH".into(), PATH.into())],
        stdin: Vec::new(),
        timeout,
        output_cap: OUTPUT_CAP,
    })
    .await
}
