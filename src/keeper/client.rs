//! The daemon's side of the keeper: a handle that survives the keeper's death.
//!
//! One task (`link.rs`) owns the socket and the table of requests, so that a caller may drop its future at any point.
//! Whatever was handed over is kept here too (`mirror.rs`): that is what a new keeper is given when the old one dies.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use self::link::{Answer, Command, OnLoss};
use self::mirror::Mirror;
use super::KeeperError;
use super::protocol::{Body, ErrorCode, Exit, ExitStatus, HoldOp, InitOp, Op, SpawnOp};
use crate::sys::seqpacket::MAX_FDS;
use crate::sys::{host, pidfd, reactor};

mod link;
mod mirror;
mod start;

/// Where the keeper is, and how one is started.
#[derive(Debug, Clone)]
pub struct KeeperOptions {
    /// At most 107 bytes, in a directory that only the daemon's user may enter.
    pub socket: PathBuf,
    /// The binary that knows `keeper --socket PATH [--cgroup PATH]…`.
    pub exe: PathBuf,
    /// Cgroups that it moves itself into, one of each hierarchy; it makes those that are missing.
    pub cgroup_dirs: Vec<PathBuf>,
}

impl KeeperOptions {
    /// A keeper that runs this same binary, in this process's cgroups.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, exe: PathBuf::from("/proc/self/exe"), cgroup_dirs: Vec::new() }
    }
}

/// A program for the keeper to run. The child gets exactly `env`, the working directory `/`, and `stdio`.
#[derive(Debug)]
pub struct SpawnRequest {
    /// The first is the program's absolute path.
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub stdio: [Arc<OwnedFd>; 3],
    /// The mount namespace that it runs in, if not the keeper's. See [`Keeper::enters_mount_namespaces`].
    pub mounts: Option<Arc<OwnedFd>>,
    /// The process that it leaves behind.
    pub process: Option<ProcessFile>,
    /// After this long its process group is killed. One day at most.
    pub timeout: Duration,
}

/// Registers the process whose number a program writes to a file.
#[derive(Debug)]
pub struct ProcessFile {
    pub id: String,
    pub pid_file: PathBuf,
    /// Kept under the id from before the program runs: 12 at most.
    pub hold: Vec<(String, Arc<OwnedFd>)>,
}

/// How a program ended.
#[derive(Debug, Clone)]
pub struct Spawned {
    pub status: ExitStatus,
    /// There when the program succeeded and a [`ProcessFile`] was asked for.
    pub process: Option<HeldProcess>,
}

/// A registered process. It may have ended already.
#[derive(Debug, Clone)]
pub struct HeldProcess {
    pub pid: i32,
    pub pidfd: Arc<OwnedFd>,
}

/// What the keeper holds under one id.
#[derive(Debug, Clone)]
pub struct Held {
    pub id: String,
    pub pid: Option<i32>,
    pub exit: Option<Exit>,
    /// A runtime that an earlier daemon asked for still runs; `pid` may come.
    pub in_flight: bool,
    /// The process's own is under [`PIDFD`](super::protocol::PIDFD).
    pub fds: HashMap<String, Arc<OwnedFd>>,
}

impl Held {
    /// The registered process, if there is one.
    #[must_use]
    pub fn process(&self) -> Option<HeldProcess> {
        Some(HeldProcess { pid: self.pid?, pidfd: Arc::clone(self.fds.get(super::protocol::PIDFD)?) })
    }
}

/// A handle on the node's keeper; clones share the connection. When the last one is dropped the connection closes and
/// the keeper stays.
#[derive(Debug, Clone)]
pub struct Keeper {
    commands: mpsc::Sender<Command>,
    mirror: Arc<Mirror>,
}

/// The clock of everything that the keeper does at once, and what is added to the clock of a program.
const AT_ONCE: Duration = Duration::from_secs(15);
/// How long the keeper's word on an exit is awaited once the process is gone, before its pidfd is asked.
const WORD: Duration = Duration::from_secs(5);
/// How long a process may take from its end until whoever is its parent reaps it.
const REAPING: Duration = Duration::from_secs(2);

impl Keeper {
    /// Connects to the keeper, or starts one.
    ///
    /// # Errors
    /// When there is none and none can be started, or the one there is does not answer.
    pub async fn connect_or_start(options: KeeperOptions) -> Result<Self, KeeperError> {
        let mirror = Arc::new(Mirror::default());
        let connected = start::connect_or_start(&options).await?;
        // Few: each waits for a caller, and a full channel holds callers back.
        let (commands, inbox) = mpsc::channel(64);
        let link = link::Link::new(options, Arc::clone(&mirror), inbox, connected);
        drop(crate::task::spawn("keeper-link", link.run()));
        Ok(Self { commands, mirror })
    }

    /// The keeper's process. Changes when it dies and another is started.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.mirror.keeper_pid()
    }

    /// Whether this keeper runs programs in mount namespaces that it is given. One that an older daemon started does not.
    #[must_use]
    pub fn enters_mount_namespaces(&self) -> bool {
        self.mirror.enters_mount_namespaces()
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// [`KeeperError::TimedOut`], [`KeeperError::Exec`], [`KeeperError::NoPid`]; [`KeeperError::Died`] when the keeper
    /// dies meanwhile: the program is killed with it, but what it had done by then is not undone.
    /// A program that fails is no error: see [`Spawned::status`].
    pub async fn spawn(&self, request: SpawnRequest) -> Result<Spawned, KeeperError> {
        let program = request.argv.first().cloned().unwrap_or_default();
        let timeout = request.timeout;
        let (id, pid_file, hold) = match request.process {
            Some(ProcessFile { id, pid_file, hold }) => (Some(id), Some(path_text("spawn", pid_file)?), hold),
            None => (None, None, Vec::new()),
        };
        let op = Op::Spawn(SpawnOp {
            argv: request.argv,
            env: request.env,
            id,
            pid_file,
            hold: hold.iter().map(|(name, _)| name.clone()).collect(),
            mount_namespace: request.mounts.is_some(),
            // Rounded up: a clock of zero would kill at once.
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).saturating_add(1),
        });
        let held = hold.into_iter().map(|(_, fd)| fd);
        let fds = request.stdio.into_iter().chain(held).chain(request.mounts).collect();
        let answer = self.ask("spawn", op, fds, OnLoss::Fail, timeout.saturating_add(AT_ONCE)).await;
        match answer.map(|answer| (answer.body, answer.process)) {
            Ok((Body::Spawned { status, .. }, process)) => Ok(Spawned { status, process }),
            Ok((Body::Error { code: ErrorCode::Exec, message }, _)) => Err(KeeperError::Exec { program, message }),
            Ok((Body::Error { code: ErrorCode::TimedOut, .. }, _)) => {
                Err(KeeperError::TimedOut { program, after: timeout })
            }
            Ok((Body::Error { code: ErrorCode::NoPid, message }, _)) => Err(KeeperError::NoPid { program, message }),
            Ok((body, _)) => Err(unexpected("spawn", body)),
            Err(error) => Err(error),
        }
    }

    /// Forks the first process of a new pid namespace, in the given other namespaces, which are named as in
    /// `/proc/<pid>/ns` (`net`, `ipc`, `uts`, `user`).
    ///
    /// # Errors
    /// When the id has a process, or the init could not become what it should; it is then dead.
    pub async fn fork_init(
        &self,
        id: &str,
        namespaces: Vec<(String, Arc<OwnedFd>)>,
    ) -> Result<HeldProcess, KeeperError> {
        let (names, fds) = namespaces.into_iter().unzip();
        let op = Op::ForkInit(InitOp { id: id.to_owned(), namespaces: names });
        let answer = self.ask("fork_init", op, fds, OnLoss::Fail, AT_ONCE).await?;
        match (answer.body, answer.process) {
            (Body::Forked { .. }, Some(process)) => Ok(process),
            (body, _) => Err(unexpected("fork_init", body)),
        }
    }

    /// Gives the keeper duplicates. A name that the id holds already is replaced.
    ///
    /// # Errors
    /// When the keeper's table of descriptors is full, or a name is not one.
    pub async fn hold(&self, id: &str, fds: Vec<(String, Arc<OwnedFd>)>) -> Result<(), KeeperError> {
        let mut rest = fds;
        loop {
            let next = rest.split_off(rest.len().min(MAX_FDS));
            let (names, fds) = rest.into_iter().unzip();
            let op = Op::Hold(HoldOp { id: id.to_owned(), names, pid: None, exit: None });
            self.ask_done("hold", op, fds).await?;
            if next.is_empty() {
                return Ok(());
            }
            rest = next;
        }
    }

    /// Everything that is held, with its descriptors.
    ///
    /// # Errors
    /// When the keeper does not answer.
    pub async fn held(&self) -> Result<Vec<Held>, KeeperError> {
        let answer = self.ask("list", Op::List, Vec::new(), OnLoss::Again, AT_ONCE).await?;
        match answer.body {
            Body::Done => Ok(self.mirror.held(answer.listed)),
            body => Err(unexpected("list", body)),
        }
    }

    /// Drops all that is held for an id: descriptors, process, exit. This acknowledges the exit. Fine for an unknown id.
    ///
    /// # Errors
    /// When the keeper does not answer.
    pub async fn forget(&self, id: &str) -> Result<(), KeeperError> {
        self.ask_done("forget", Op::Forget { id: id.to_owned() }, Vec::new()).await
    }

    /// Waits for the end of a process. The keeper knows how its own children end; for others, and for those whose
    /// keeper has died, the kernel is asked through the pidfd (Linux 6.15), else the status is [`ExitStatus::Unknown`].
    pub async fn wait_exit(&self, id: &str, process: &Arc<OwnedFd>) -> Exit {
        if let Some(mut fate) = self.mirror.watch(id) {
            let word =
                async { fate.wait_for(|fate| fate.exit.is_some() || !fate.own).await.ok().and_then(|fate| fate.exit) };
            tokio::pin!(word);
            let told = tokio::select! {
                biased;
                told = &mut word => told,
                () = ended(process) => tokio::time::timeout(WORD, word).await.ok().flatten(),
            };
            if let Some(exit) = told {
                return exit;
            }
        }
        ended(process).await;
        let status = status_of_reaped(process).await;
        Exit { status, finished_at_ns: host::now_ns() }
    }

    /// Ends the keeper if it holds nothing; else nothing happens.
    pub async fn quit_if_idle(&self) {
        // A refusal is the answer for a keeper that is in use.
        let _ = self.ask("quit", Op::Quit, Vec::new(), OnLoss::Stop, AT_ONCE).await;
    }

    async fn ask_done(&self, operation: &'static str, op: Op, fds: Vec<Arc<OwnedFd>>) -> Result<(), KeeperError> {
        match self.ask(operation, op, fds, OnLoss::Again, AT_ONCE).await?.body {
            Body::Done => Ok(()),
            body => Err(unexpected(operation, body)),
        }
    }

    async fn ask(
        &self,
        operation: &'static str,
        op: Op,
        fds: Vec<Arc<OwnedFd>>,
        on_loss: OnLoss,
        clock: Duration,
    ) -> Result<Answer, KeeperError> {
        if fds.len() > MAX_FDS {
            return Err(KeeperError::TooLarge { operation });
        }
        let (reply, answer) = oneshot::channel();
        let command = Command { operation, op, fds, on_loss, reply };
        let asked = async {
            // The link ends for good only when another daemon has taken over.
            self.commands.send(command).await.map_err(|_| KeeperError::TakenOver)?;
            answer.await.unwrap_or(Err(KeeperError::TakenOver))
        };
        let late = |_| Err(KeeperError::NoAnswer { operation, after: clock });
        tokio::time::timeout(clock, asked).await.unwrap_or_else(late)
    }
}

fn unexpected(operation: &'static str, body: Body) -> KeeperError {
    match body {
        Body::Error { message, .. } => KeeperError::Refused { operation, message },
        _ => KeeperError::WrongAnswer { operation },
    }
}

fn path_text(operation: &'static str, path: PathBuf) -> Result<String, KeeperError> {
    let text = path.into_os_string().into_string();
    text.map_err(|path| KeeperError::Refused { operation, message: format!("{} is not UTF-8", path.display()) })
}

/// Waits until a process has ended, reaped or not.
async fn ended(process: &OwnedFd) {
    // A duplicate, since tokio takes each number once. Without one, look from time to time.
    let registered = process.try_clone().and_then(|fd| reactor::register(fd, tokio::io::Interest::READABLE));
    if let Ok(fd) = registered
        && fd.readable().await.is_ok()
    {
        return;
    }
    while !pidfd::has_ended(process.as_fd()) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn status_of_reaped(process: &OwnedFd) -> ExitStatus {
    let deadline = tokio::time::Instant::now() + REAPING;
    let mut pause = Duration::from_millis(1);
    loop {
        match pidfd::exit_status(process.as_fd()) {
            Ok(Some(status)) => return ExitStatus::from_wait(status),
            Ok(None) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(50));
            }
            Ok(None) | Err(_) => return ExitStatus::Unknown,
        }
    }
}
