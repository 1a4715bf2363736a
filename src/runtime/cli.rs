//! The command line that every OCI runtime understands.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::features::RuntimeFeatures;
use super::{Call, PATH, RuntimeError, report};
use crate::keeper::{ExitStatus, HeldProcess, Keeper, KeeperError, ProcessFile, SpawnRequest, Spawned};
use crate::sys::exec::{self, Exec, ExecError, Output};

/// The clock of calls that only talk to the kernel.
const SHORT: Duration = Duration::from_secs(30);
/// The clock of a delete, which waits for the processes that it kills.
const DELETE: Duration = Duration::from_secs(60);
/// The clock of a probe.
const PROBE: Duration = Duration::from_secs(10);
/// Bytes kept of each of a runtime's outputs.
const OUTPUT: usize = 64 * 1024;

/// How a handler's runtime is run.
#[derive(Debug, Clone)]
pub struct RuntimeSetup {
    pub handler: String,
    pub program: PathBuf,
    /// Where the runtime keeps its own state.
    pub root: PathBuf,
    pub systemd_cgroup: bool,
}

/// A handler's runtime.
#[derive(Debug)]
pub struct OciRuntime {
    pub(super) setup: RuntimeSetup,
    pub features: RuntimeFeatures,
}

/// Where a process's standard input, output and error go.
#[derive(Debug)]
pub enum Stdio {
    Fds([Arc<OwnedFd>; 3]),
    /// A unix socket to which the runtime sends the master of a new terminal. At most 107 bytes.
    Console(PathBuf),
}

/// A container to be made from its bundle.
#[derive(Debug)]
pub struct CreateRequest {
    pub id: String,
    /// Holds `config.json`. `init.pid` and `log.json` are written into it.
    pub bundle: PathBuf,
    pub stdio: Stdio,
    pub timeout: Duration,
    /// What the keeper holds beside the process, under the container's id, from before the runtime runs.
    pub hold: Vec<(String, Arc<OwnedFd>)>,
    /// The mount namespace that the runtime runs in, if not the keeper's.
    pub mounts: Option<Arc<OwnedFd>>,
}

/// A process to be run in a container.
#[derive(Debug)]
pub struct ExecRequest {
    pub container_id: String,
    /// Under which the keeper registers the process.
    pub exec_id: String,
    /// The runtime-spec's process object.
    pub process_json: PathBuf,
    /// `<exec id>.pid` and `<exec id>.log` are written here, and removed.
    pub dir: PathBuf,
    pub stdio: Stdio,
    pub timeout: Duration,
    pub hold: Vec<(String, Arc<OwnedFd>)>,
}

/// What a runtime says of a container (runtime-spec, runtime.md "State").
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RuntimeState {
    /// `creating`, `created`, `running` or `stopped`; `paused` with most runtimes.
    pub status: String,
    #[serde(default)]
    pub pid: i32,
}

/// A call that the keeper makes for us.
struct Kept {
    operation: &'static str,
    container: String,
    id: String,
    args: Vec<String>,
    pid_file: PathBuf,
    log: PathBuf,
    stdio: Stdio,
    timeout: Duration,
    hold: Vec<(String, Arc<OwnedFd>)>,
    mounts: Option<Arc<OwnedFd>>,
}

/// The runtime may have made a part of what it was asked for.
fn may_have_run(error: &RuntimeError) -> bool {
    match error {
        RuntimeError::Failed { .. } | RuntimeError::TimedOut { .. } => true,
        RuntimeError::Keeper { source, .. } => {
            matches!(source, KeeperError::Died { .. } | KeeperError::NoAnswer { .. } | KeeperError::NoPid { .. })
        }
        RuntimeError::Exec { .. }
        | RuntimeError::Prepare { .. }
        | RuntimeError::Lacks { .. }
        | RuntimeError::Answer { .. } => false,
    }
}

fn environment() -> Vec<(OsString, OsString)> {
    vec![("PATH".into(), PATH.into())]
}

impl OciRuntime {
    /// Asks the runtime what it can do. One that cannot be asked is still a runtime: its first use will say why it fails.
    pub async fn load(setup: RuntimeSetup) -> Self {
        let mut runtime = Self { setup, features: RuntimeFeatures::default() };
        let ask = |args: [&str; 1]| runtime.run_raw(args.map(OsString::from).to_vec(), Vec::new(), PROBE);
        let version = ask(["--version"]).await.map(|output| output.stdout).unwrap_or_default();
        let features = ask(["features"]).await.ok().filter(|output| output.status.success());
        let version = String::from_utf8_lossy(&version).into_owned();
        runtime.features = RuntimeFeatures::parse(&version, features.as_ref().map(|output| output.stdout.as_slice()));
        runtime
    }

    /// The handler's name.
    #[must_use]
    pub fn handler(&self) -> &str {
        &self.setup.handler
    }

    #[must_use]
    pub fn program(&self) -> &Path {
        &self.setup.program
    }

    /// Makes a container; its process waits for [`start`](Self::start). It is registered in the keeper under its id.
    /// After a failure nothing is left of it. An id that the runtime knows already is refused and left alone.
    /// A caller that drops the future forgoes the cleaning up.
    ///
    /// # Errors
    /// With the runtime's own message. A failed call without a log may have said more on the container's standard error.
    pub async fn create(&self, keeper: &Keeper, request: CreateRequest) -> Result<HeldProcess, RuntimeError> {
        let id = request.id;
        if std::fs::symlink_metadata(self.setup.root.join(&id)).is_ok() {
            // Said here, since what follows a failure would kill the one that there is.
            let message = "there is a container of this id already".to_owned();
            return Err(RuntimeError::Failed { call: self.call("create", &id), message });
        }
        let mut args = vec!["create".to_owned(), "--bundle".into(), self.text("create", &id, &request.bundle)?];
        self.add_console(&mut args, "create", &id, &request.stdio)?;
        let kept = Kept {
            operation: "create",
            container: id.clone(),
            id: id.clone(),
            args,
            pid_file: request.bundle.join("init.pid"),
            log: request.bundle.join("log.json"),
            stdio: request.stdio,
            timeout: request.timeout,
            hold: request.hold,
            mounts: request.mounts,
        };
        let created = self.run_kept(keeper, kept).await;
        if created.as_ref().is_err_and(may_have_run) {
            // The first error is the one to tell; whatever the delete finds, the container's driver deletes again.
            let _ = self.delete(&id, true).await;
            let _ = keeper.forget(&id).await;
        }
        created
    }

    /// Runs a process in a container. It is registered in the keeper under the exec's id.
    ///
    /// # Errors
    /// With the runtime's own message: a command that does not exist in the container is one of these.
    pub async fn exec(&self, keeper: &Keeper, request: ExecRequest) -> Result<HeldProcess, RuntimeError> {
        let id = request.container_id;
        let mut args = vec!["exec".to_owned(), "--detach".into(), "--process".into()];
        args.push(self.text("exec", &id, &request.process_json)?);
        self.add_console(&mut args, "exec", &id, &request.stdio)?;
        let pid_file = request.dir.join(format!("{}.pid", request.exec_id));
        let log = request.dir.join(format!("{}.log", request.exec_id));
        let kept = Kept {
            operation: "exec",
            container: id,
            id: request.exec_id,
            args,
            pid_file: pid_file.clone(),
            log: log.clone(),
            stdio: request.stdio,
            timeout: request.timeout,
            hold: request.hold,
            mounts: None,
        };
        let started = self.run_kept(keeper, kept).await;
        for path in [pid_file, log] {
            // Missing after a failure; the directory goes with the container.
            let _ = std::fs::remove_file(path);
        }
        started
    }

    /// Lets a created container run.
    ///
    /// # Errors
    /// With the runtime's own message.
    pub async fn start(&self, id: &str) -> Result<(), RuntimeError> {
        self.run("start", id, &["start", "--", id], Vec::new(), SHORT).await.map(drop)
    }

    /// Removes what the runtime keeps of a container; with `force` it kills its processes first. Fine when there is none.
    ///
    /// # Errors
    /// With the runtime's own message.
    pub async fn delete(&self, id: &str, force: bool) -> Result<(), RuntimeError> {
        // What a runtime knows of a container is a folder of its root. Without one there is nothing to ask it, which also
        // spares a container that never came to be from a runtime that has gone away.
        let known = std::fs::symlink_metadata(self.setup.root.join(id));
        if known.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
            return Ok(());
        }
        let args: &[&str] = if force { &["delete", "--force", "--", id] } else { &["delete", "--", id] };
        match self.run("delete", id, args, Vec::new(), DELETE).await {
            Err(RuntimeError::Failed { message, .. }) if self.says_unknown(id, &message) => Ok(()),
            Err(RuntimeError::Exec { source: ExecError::Spawn { .. }, .. }) if force => self.delete_without(id),
            other => other.map(drop),
        }
    }

    /// The runtime's program has gone away, which must not keep the container: what the runtime noted of it goes. Its
    /// processes and its cgroup are the caller's to see to.
    fn delete_without(&self, id: &str) -> Result<(), RuntimeError> {
        tracing::warn!(id, runtime = %self.setup.program.display(), "deleted without its runtime, which cannot be started");
        std::fs::remove_dir_all(self.setup.root.join(id)).map_err(|source| RuntimeError::Prepare {
            call: self.call("delete", id),
            what: "what the runtime noted cannot be removed".to_owned(),
            source,
        })
    }

    /// What the runtime knows of a container; `None` when it knows none of this id.
    ///
    /// # Errors
    /// With the runtime's own message.
    pub async fn state(&self, id: &str) -> Result<Option<RuntimeState>, RuntimeError> {
        match self.run("state", id, &["state", "--", id], Vec::new(), SHORT).await {
            Ok(output) => serde_json::from_slice(&output.stdout).map(Some).map_err(|_| RuntimeError::Answer {
                call: self.call("state", id),
                answer: String::from_utf8_lossy(&output.stdout).chars().take(256).collect(),
            }),
            Err(RuntimeError::Failed { message, .. }) if self.says_unknown(id, &message) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a signal to a container's first process.
    ///
    /// # Errors
    /// With the runtime's own message, also when the process has ended.
    pub async fn kill(&self, id: &str, signal: i32) -> Result<(), RuntimeError> {
        self.run("kill", id, &["kill", "--", id, &signal.to_string()], Vec::new(), SHORT).await.map(drop)
    }

    /// Freezes a container's processes.
    ///
    /// # Errors
    /// With the runtime's own message.
    pub async fn pause(&self, id: &str) -> Result<(), RuntimeError> {
        self.run("pause", id, &["pause", "--", id], Vec::new(), SHORT).await.map(drop)
    }

    /// Thaws them.
    ///
    /// # Errors
    /// With the runtime's own message.
    pub async fn resume(&self, id: &str) -> Result<(), RuntimeError> {
        self.run("resume", id, &["resume", "--", id], Vec::new(), SHORT).await.map(drop)
    }

    /// Sets limits of a running container: `resources` is the runtime-spec's `linux.resources` object, of which only
    /// what is there is set.
    ///
    /// # Errors
    /// With the runtime's own message.
    pub async fn update(&self, id: &str, resources: &[u8]) -> Result<(), RuntimeError> {
        // A name for standard input that every runtime can open as a file.
        let args = ["update", "--resources", "/dev/stdin", "--", id];
        self.run("update", id, &args, resources.to_vec(), SHORT).await.map(drop)
    }

    /// What a failure means that a runtime only words: it has no such container. Words may change, so the absence of its
    /// directory counts as well.
    fn says_unknown(&self, id: &str, message: &str) -> bool {
        let words = ["does not exist", "not found", "no such container", "No such file or directory"];
        let absent = std::fs::symlink_metadata(self.setup.root.join(id))
            .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
        absent && words.iter().any(|words| message.contains(words)) || message.contains("container does not exist")
    }

    fn global_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["--root".into(), self.setup.root.clone().into()];
        if self.setup.systemd_cgroup {
            args.push("--systemd-cgroup".into());
        }
        args
    }

    async fn run_raw(&self, args: Vec<OsString>, stdin: Vec<u8>, timeout: Duration) -> Result<Output, ExecError> {
        let program = self.setup.program.clone();
        exec::run(Exec { program, args, env: environment(), stdin, timeout, output_cap: OUTPUT }).await
    }

    /// Runs a call as our own child; its errors are on its standard error.
    async fn run(
        &self,
        operation: &'static str,
        id: &str,
        args: &[&str],
        stdin: Vec<u8>,
        timeout: Duration,
    ) -> Result<Output, RuntimeError> {
        let mut all = self.global_args();
        all.extend(args.iter().map(OsString::from));
        let call = self.call(operation, id);
        match self.run_raw(all, stdin, timeout).await {
            Ok(output) if output.status.success() => Ok(output),
            Ok(output) => {
                let status = output.status;
                let message = report::last_words(&output.stderr).unwrap_or_else(|| format!("it ended with {status}"));
                Err(RuntimeError::Failed { call, message })
            }
            Err(ExecError::TimedOut { after, stderr, .. }) => {
                let message = report::last_words(&stderr).unwrap_or_default();
                Err(RuntimeError::TimedOut { call, after, message })
            }
            Err(source) => Err(RuntimeError::Exec { call, source }),
        }
    }

    pub(super) fn call(&self, operation: &'static str, id: &str) -> Box<Call> {
        Box::new(Call { runtime: self.setup.handler.clone(), operation, container: id.to_owned() })
    }

    fn text(&self, operation: &'static str, id: &str, path: &Path) -> Result<String, RuntimeError> {
        path.to_str().map(str::to_owned).ok_or_else(|| RuntimeError::Prepare {
            call: self.call(operation, id),
            what: format!("{} is not UTF-8", path.display()),
            source: std::io::ErrorKind::InvalidInput.into(),
        })
    }

    fn add_console(
        &self,
        args: &mut Vec<String>,
        operation: &'static str,
        id: &str,
        stdio: &Stdio,
    ) -> Result<(), RuntimeError> {
        if let Stdio::Console(socket) = stdio {
            args.push("--console-socket".into());
            args.push(self.text(operation, id, socket)?);
        }
        Ok(())
    }

    /// Runs a call in the keeper. The runtime's own errors go to a log of its own, since its standard error is the
    /// container's.
    async fn run_kept(&self, keeper: &Keeper, kept: Kept) -> Result<HeldProcess, RuntimeError> {
        let (operation, container) = (kept.operation, kept.container.clone());
        let call = self.call(operation, &container);
        // What an earlier call has left would be taken for this one's.
        let _ = std::fs::remove_file(&kept.log);
        let mut argv = vec![self.text(operation, &container, &self.setup.program)?];
        for arg in self.global_args() {
            argv.push(self.text(operation, &container, Path::new(&arg))?);
        }
        argv.extend(["--log".into(), self.text(operation, &container, &kept.log)?]);
        argv.extend(["--log-format".into(), "json".into()]);
        argv.extend(kept.args);
        argv.extend(["--pid-file".into(), self.text(operation, &container, &kept.pid_file)?]);
        argv.extend(["--".into(), container]);
        let stdio = match own_stdio(kept.stdio) {
            Ok(stdio) => stdio,
            Err(source) => return Err(RuntimeError::Prepare { call, what: "its standard error".into(), source }),
        };
        let request = SpawnRequest {
            argv,
            env: vec![("PATH".into(), PATH.into())],
            stdio: stdio.fds,
            mounts: kept.mounts,
            process: Some(ProcessFile { id: kept.id, pid_file: kept.pid_file, hold: kept.hold }),
            timeout: kept.timeout,
        };
        let said = || {
            report::last_error(&kept.log).or_else(|| {
                let mut bytes = Vec::new();
                read_from_start(stdio.words.as_ref()?, &mut bytes);
                report::last_words(&bytes)
            })
        };
        match keeper.spawn(request).await {
            Ok(Spawned { process: Some(process), .. }) => Ok(process),
            Ok(Spawned { status, process: None }) => {
                Err(RuntimeError::Failed { call, message: said().unwrap_or_else(|| ending(status)) })
            }
            Err(KeeperError::TimedOut { after, .. }) => {
                Err(RuntimeError::TimedOut { call, after, message: said().unwrap_or_default() })
            }
            Err(source) => Err(RuntimeError::Keeper { call, source }),
        }
    }
}

/// What a call in the keeper gets for its descriptors 0 to 2.
struct OwnStdio {
    fds: [Arc<OwnedFd>; 3],
    /// The runtime's own standard error, where that is not the container's.
    words: Option<Arc<OwnedFd>>,
}

/// With a terminal the three descriptors are the runtime's own: its words go to a file in memory.
fn own_stdio(stdio: Stdio) -> std::io::Result<OwnStdio> {
    if let Stdio::Fds(fds) = stdio {
        return Ok(OwnStdio { fds, words: None });
    }
    let null = Arc::new(OwnedFd::from(std::fs::File::options().read(true).write(true).open("/dev/null")?));
    let words = Arc::new(rustix::fs::memfd_create("runtime-stderr", rustix::fs::MemfdFlags::CLOEXEC)?);
    Ok(OwnStdio { fds: [Arc::clone(&null), null, Arc::clone(&words)], words: Some(words) })
}

fn read_from_start(fd: &OwnedFd, into: &mut Vec<u8>) {
    into.resize(OUTPUT, 0);
    // At the place 0: the runtime has moved the shared one to the end.
    let n = rustix::io::pread(fd, into.as_mut_slice(), 0).unwrap_or(0);
    into.truncate(n);
}

fn ending(status: ExitStatus) -> String {
    match status {
        ExitStatus::Code(code) => format!("it ended with code {code} and said nothing"),
        ExitStatus::Signal(signal) => format!("it was killed by signal {signal}"),
        ExitStatus::Unknown => "it ended".into(),
    }
}
