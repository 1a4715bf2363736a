//! Containers: one driver task owns each, and publishes what readers see.
//!
//! ```text
//!             create                start                 exit
//!   (nothing) ───────▶ CREATED ───────────▶ RUNNING ───────────▶ EXITED ──remove──▶ (nothing)
//!       ▲                 │  start fails: StartError  │                ▲
//!       └── undo          └───────────────────────────┴────────────────┘
//! ```
//!
//! * **Create** runs in a flight of its own (`create`): phases, each with its undo. Only when all of it stands does the
//!   container appear and its driver start.
//! * **The driver** (`driver`) takes commands one at a time: start, stop, remove, reopen the log, change limits (`update`),
//!   and the monitor's exit report. A stop does not occupy the driver: it is a deadline that the driver keeps beside its
//!   inbox, so that a second stop can shorten it and the exit is heard at once.
//! * **Readers** load the published [`ContainerRecord`] and never wait (invariant 3).
//! * **Exec** (`exec`) and **Attach** (`attach`) need no driver: they read the published state and have their own tasks.

mod attach;
mod console;
mod create;
mod driver;
mod exec;
mod files;
mod pipes;
mod recover;
pub mod session;
mod stage;
mod update;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::admission::AdmissionError;
use crate::events::{Events, Kind};
use crate::image::{ImageError, Images};
use crate::keeper::{Keeper, KeeperError};
use crate::monitor::{MonitorError, OutletError};
use crate::runtime::{Handlers, HandlersError, OciRuntime, RuntimeError};
use crate::spec::{HandlerPolicy, HostFacts, NamespacePaths, PodFiles, SpecError};
use crate::state::ids::{self, Match};
use crate::state::{ContainerPhase, ContainerRecord, StateError, Store};
use crate::stats::{Disks, Sampler};
use crate::storage::{Storage, StorageError};
use crate::sys::cgroup::Cgroups;
use crate::task::flight::{FlightError, Flights};

pub use exec::{EXEC_OUTPUT_CAP, ExecOutput};

/// Commands that wait for a driver at most; a sender past that waits for room.
const INBOX: usize = 16;

/// What containers are made with. One for the daemon.
#[derive(Debug)]
pub struct Resources {
    pub keeper: Keeper,
    /// Replaced as a whole when the configuration is read again.
    pub runtimes: ArcSwap<Runtimes>,
    pub storage: Storage,
    pub images: Images,
    pub store: Store,
    pub cgroups: Cgroups,
    pub events: Events,
    /// What containers and pods use, and what their writable layers occupy.
    pub sampler: Sampler,
    pub disks: Disks,
    pub host: HostFacts,
    pub cdi: Arc<crate::devices::cdi::Cdi>,
    pub apparmor: crate::security::apparmor::Profiles,
    pub state_dir: PathBuf,
    /// A folder that everyone may walk to, beside the state folder, which only root may enter. Nothing is ever put into it:
    /// it is mounted over in the mount namespaces that runtimes are run in.
    pub shelf: PathBuf,
    /// Why no pod can have a user namespace on this node, if so.
    pub user_namespaces: Result<(), String>,
    /// Longest text of one log record, in bytes.
    pub max_log_line: usize,
}

/// The handlers, and what the operator allows each.
#[derive(Debug)]
pub struct Runtimes {
    pub handlers: Handlers,
    /// `[runtime.handlers]`, as configured.
    pub config: BTreeMap<String, crate::config::Handler>,
}

impl Resources {
    /// The runtime of a handler; the default one for an empty name.
    ///
    /// # Errors
    /// [`HandlersError::Unknown`], with the names that there are.
    pub fn runtime(&self, handler: &str) -> Result<Arc<OciRuntime>, HandlersError> {
        self.runtimes.load().handlers.lookup(handler)
    }

    /// What containers of a handler may have: the operator's word, and what the runtime said that it can do.
    #[must_use]
    pub fn policy(&self, runtime: &OciRuntime) -> HandlerPolicy {
        let runtimes = self.runtimes.load();
        let configured = runtimes.config.get(runtime.handler());
        HandlerPolicy {
            allowed_annotations: configured.map(|handler| handler.allowed_annotations.clone()).unwrap_or_default(),
            privileged_without_host_devices: configured.is_some_and(|handler| handler.privileged_without_host_devices),
            recursive_read_only: self.host.kernel.recursive_read_only,
        }
    }

    /// Whether pods of a handler can have user namespaces.
    ///
    /// # Errors
    /// What is lacking.
    pub fn user_namespaces(&self, runtime: &OciRuntime) -> Result<(), String> {
        self.user_namespaces.clone()?;
        if runtime.features.user_namespaces() {
            return Ok(());
        }
        let version = &runtime.features.version;
        Err(format!("{version:?} does not say that it can put a container into a user namespace"))
    }

    /// The OCI bundle of a container.
    #[must_use]
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.state_dir.join("k8s.io").join(id)
    }
}

/// What a container needs to know of its pod. The pod room makes it.
#[derive(Debug)]
pub struct Sandbox {
    pub id: String,
    pub config: Arc<cri_proto::runtime::v1::PodSandboxConfig>,
    pub runtime: Arc<OciRuntime>,
    pub namespaces: NamespacePaths,
    pub files: PodFiles,
    pub cgroup_parent: String,
    /// In effect: the node's own in a pod of the host's network.
    pub hostname: String,
    /// For containers that ask for none of their own; `None` where SELinux is off.
    pub selinux_level: Option<String>,
}

/// All containers of the node.
#[derive(Debug, Clone)]
pub struct Containers {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    resources: Arc<Resources>,
    index: RwLock<BTreeMap<String, Arc<Container>>>,
    creating: Flights<String, ContainerError>,
}

/// Handle of one container: a published record and the inbox of its driver.
#[derive(Debug)]
pub struct Container {
    id: String,
    record: ArcSwap<ContainerRecord>,
    inbox: mpsc::Sender<driver::Command>,
    /// 0 once the process has ended.
    pid: AtomicI32,
    /// What Attach needs, for as long as the container lives.
    attaching: ArcSwapOption<attach::Attaching>,
    /// Room for [`session::MAX_SESSIONS`].
    sessions: Arc<Semaphore>,
}

/// Why a request about a container failed.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    #[error("container {id:?} not found")]
    NotFound { id: String },
    #[error("container id {id:?} is ambiguous: it begins {count} ids")]
    Ambiguous { id: String, count: usize },
    #[error("the name {name:?} is in use by container {holder}")]
    NameTaken { name: String, holder: String },
    #[error("container {id} is {state}, not {wanted}")]
    WrongState { id: String, state: &'static str, wanted: &'static str },
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("image {reference:?} is not present; pull it first")]
    NoImage { reference: String },
    #[error(
        "image {reference:?} is an artifact: it can be mounted as an image volume, but no container can be made of it"
    )]
    Artifact { reference: String },
    #[error("cgroup")]
    Cgroup(#[from] crate::sys::cgroup::CgroupError),
    #[error("image")]
    Image(#[source] ImageError),
    #[error("the rootfs of the image has {path} as a {kind}; a runtime could be led outside by it")]
    UnsafeRootfs { path: &'static str, kind: &'static str },
    #[error("mounts: host_path {path:?} of container_path {target:?} cannot be used")]
    MountSource { path: PathBuf, target: String, source: io::Error },
    #[error("mounts[{index}].host_path {path:?} of container_path {target:?}: {what}")]
    Mount { index: usize, path: PathBuf, target: String, what: &'static str, source: io::Error },
    #[error("the mount of container_path {} cannot be restricted", target.display())]
    Restrict { target: PathBuf, source: io::Error },
    #[error("ImageVolumeMountFailed: mounts[{index}].image {image:?} at {target:?}: {why}")]
    ImageVolume { index: usize, image: String, target: String, why: String },
    #[error("the container's mounts cannot be prepared")]
    Shelf(#[from] crate::sys::mount::private::ShelfError),
    #[error(
        "the keeper is of an older cricket, which cannot give a runtime mounts that were prepared: it is replaced when no container runs"
    )]
    OldKeeper,
    #[error("seccomp profile {path:?} cannot be read")]
    SeccompProfile { path: PathBuf, source: io::Error },
    #[error("mounts: selinux_relabel of container_path {target:?}")]
    Relabel { target: String, source: crate::security::selinux::RelabelError },
    #[error(transparent)]
    Device(#[from] crate::devices::DeviceError),
    #[error("AppArmor")]
    AppArmor(#[from] crate::security::apparmor::AppArmorError),
    #[error(transparent)]
    Cdi(#[from] crate::devices::cdi::CdiError),
    #[error("storage")]
    Storage(#[from] StorageError),
    #[error("{}: cannot be written", path.display())]
    Bundle { path: PathBuf, source: io::Error },
    #[error("the container's pipes cannot be made")]
    Pipe { source: io::Error },
    #[error("{}: cannot be read", path.display())]
    ReadBundle { path: PathBuf, source: io::Error },
    #[error("OCI runtime")]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Handler(#[from] HandlersError),
    #[error("keeper")]
    Keeper(#[from] KeeperError),
    #[error("resources.memory_limit_in_bytes {limit}: the container uses {used} bytes that it cannot give back")]
    MemoryInUse { limit: u64, used: u64 },
    #[error("what it uses cannot be read")]
    Usage(#[from] crate::stats::StatsError),
    #[error("the limits for the runtime cannot be encoded")]
    UpdateEncode { source: serde_json::Error },
    #[error("the limits cannot be changed, and stay as they were")]
    Update { source: Box<ContainerError> },
    #[error("the limits cannot be changed, and not all could be put back ({left})")]
    UpdateUndo { source: Box<ContainerError>, left: String },
    #[error("monitor")]
    Monitor(#[from] MonitorError),
    #[error("record")]
    State(#[from] StateError),
    #[error("process {pid} of container {id} is still there {seconds} s after SIGKILL (state {state})")]
    Unkillable { id: String, pid: i32, seconds: u64, state: String },
    #[error("exec in {id}: no exit after {} s; its processes were killed", after.as_secs())]
    ExecTimeout { id: String, after: Duration },
    #[error("the caller went away; the command was killed")]
    ExecCancelled,
    #[error("exec needs a command")]
    ExecEmpty,
    #[error("container {id} has {limit} exec and attach sessions, which is all that it may have")]
    TooManySessions { id: String, limit: usize },
    #[error("container {id} was created without stdin; attach to it without stdin")]
    NoStdin { id: String },
    #[error(
        "stdin of container {id} was closed when the first session with it ended (stdin_once); attach without stdin"
    )]
    StdinClosed { id: String },
    #[error("output of container {id}")]
    Attach { id: String, source: OutletError },
    #[error(transparent)]
    Flight(#[from] FlightError),
    /// The outcome of an operation that several callers share.
    #[error("{}", crate::telemetry::chain(&**.0))]
    Shared(Arc<ContainerError>),
}

impl ContainerError {
    fn wrong_state(record: &ContainerRecord, wanted: &'static str) -> Self {
        Self::WrongState { id: record.id.clone(), state: state_name(record.phase), wanted }
    }
}

impl Container {
    /// Its id: 64 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What is known of it now. Never waits.
    #[must_use]
    pub fn record(&self) -> Arc<ContainerRecord> {
        self.record.load_full()
    }

    /// Number of the first process while it lives.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        let pid = self.pid.load(Ordering::Relaxed);
        (pid != 0).then_some(pid)
    }

    /// A place among the container's sessions; it is free again when the permit is dropped.
    fn session(&self) -> Result<OwnedSemaphorePermit, ContainerError> {
        let full = |_| ContainerError::TooManySessions { id: self.id.clone(), limit: session::MAX_SESSIONS };
        self.sessions.clone().try_acquire_owned().map_err(full)
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, ContainerError>>) -> driver::Command,
    ) -> Option<Result<T, ContainerError>> {
        let (reply, answer) = oneshot::channel();
        self.inbox.send(command(reply)).await.ok()?;
        answer.await.ok()
    }
}

impl Containers {
    /// No container yet.
    #[must_use]
    pub fn new(resources: Arc<Resources>) -> Self {
        Self { inner: Arc::new(Inner { resources, index: RwLock::default(), creating: Flights::new() }) }
    }

    /// What they are made with.
    #[must_use]
    pub fn resources(&self) -> &Arc<Resources> {
        &self.inner.resources
    }

    /// Every container, by id.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Container>> {
        self.read().values().cloned().collect()
    }

    /// The containers of a sandbox.
    #[must_use]
    pub fn of_sandbox(&self, sandbox_id: &str) -> Vec<Arc<Container>> {
        let mut all = self.list();
        all.retain(|container| container.record.load().sandbox_id == sandbox_id);
        all
    }

    /// The container with this id, or the only one whose id begins so.
    ///
    /// # Errors
    /// [`ContainerError::NotFound`], or [`ContainerError::Ambiguous`] with the number of ids that the prefix fits.
    pub fn find(&self, id: &str) -> Result<Arc<Container>, ContainerError> {
        match ids::find(&self.read(), id) {
            Match::One(container) => Ok(container),
            Match::None => Err(ContainerError::NotFound { id: id.to_owned() }),
            Match::Many(count) => Err(ContainerError::Ambiguous { id: id.to_owned(), count }),
        }
    }

    /// Starts a created container.
    ///
    /// # Errors
    /// When it is not in state CREATED, or the runtime cannot start it; it is then EXITED with reason `StartError`.
    pub async fn start(&self, id: &str) -> Result<(), ContainerError> {
        let container = self.find(id)?;
        let gone = || ContainerError::NotFound { id: id.to_owned() };
        container.ask(|reply| driver::Command::Start { reply }).await.unwrap_or_else(|| Err(gone()))
    }

    /// Stops a container: its stop signal, then after `grace` SIGKILL. One that has ended or is unknown is fine; a second
    /// call can only shorten the grace of the first. Returns when the container is EXITED.
    ///
    /// # Errors
    /// [`ContainerError::Unkillable`] when its process is still there some time after SIGKILL.
    pub async fn stop(&self, id: &str, grace: Duration) -> Result<(), ContainerError> {
        let Some(container) = self.find_any(id)? else { return Ok(()) };
        container.ask(|reply| driver::Command::Stop { grace, reply }).await.unwrap_or(Ok(()))
    }

    /// Removes a container, killing it first when it runs. One that is unknown is fine. The log stays.
    ///
    /// # Errors
    /// When a piece cannot be removed; the container stays listed and the call can be repeated.
    pub async fn remove(&self, id: &str) -> Result<(), ContainerError> {
        let Some(container) = self.find_any(id)? else { return Ok(()) };
        container.ask(|reply| driver::Command::Remove { reply }).await.unwrap_or(Ok(()))
    }

    /// Opens the log anew at its path.
    ///
    /// # Errors
    /// When the container does not run (no file is made then) or the file cannot be opened.
    pub async fn reopen_log(&self, id: &str) -> Result<(), ContainerError> {
        let container = self.find(id)?;
        let gone = || ContainerError::NotFound { id: id.to_owned() };
        container.ask(|reply| driver::Command::ReopenLog { reply }).await.unwrap_or_else(|| Err(gone()))
    }

    /// Changes the limits of a container that is CREATED or RUNNING: all that is asked, or nothing. Zero and empty fields
    /// leave a limit as it is. The status shows the new limits, in the words of the request, from the answer on.
    ///
    /// # Errors
    /// [`ContainerError::Spec`] for a value that is not legal, [`ContainerError::MemoryInUse`] for a memory limit below what
    /// is used now, [`ContainerError::Update`] when the runtime or the kernel refuses; the limits are then as before.
    pub async fn update(
        &self,
        id: &str,
        request: cri_proto::runtime::v1::LinuxContainerResources,
    ) -> Result<(), ContainerError> {
        let container = self.find(id)?;
        let gone = || ContainerError::NotFound { id: id.to_owned() };
        let request = Box::new(request);
        container.ask(|reply| driver::Command::Update { request, reply }).await.unwrap_or_else(|| Err(gone()))
    }

    /// As [`Self::find`], with an unknown id as `None`.
    fn find_any(&self, id: &str) -> Result<Option<Arc<Container>>, ContainerError> {
        match self.find(id) {
            Ok(container) => Ok(Some(container)),
            Err(ContainerError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Arc<Container>>> {
        self.inner.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a container visible, tells of it and starts its driver.
    fn adopt(&self, mut owned: driver::Owned, kinds: &[Kind]) -> Arc<Container> {
        let (inbox, commands) = mpsc::channel(INBOX);
        let record = Arc::new(owned.record.clone());
        let pid = AtomicI32::new(owned.process.as_ref().map_or(0, |process| process.pid));
        // Taken, not shared: to close the input for good, nobody else may have it.
        let input = owned.input.take();
        let attaching = owned.monitor.clone().map(|monitor| attach::Attaching::new(monitor, input));
        let container = Arc::new(Container {
            id: record.id.clone(),
            record: ArcSwap::new(record.clone()),
            inbox,
            pid,
            attaching: ArcSwapOption::new(attaching.map(Arc::new)),
            sessions: Arc::new(Semaphore::new(session::MAX_SESSIONS)),
        });
        self.inner
            .index
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(container.id.clone(), container.clone());
        self.resources().events.container(&record, kinds);
        driver::start(self.clone(), container.clone(), commands, owned);
        container
    }

    fn forget(&self, id: &str) {
        self.inner.index.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

/// The state's name in the CRI's words.
#[must_use]
pub fn state_name(phase: ContainerPhase) -> &'static str {
    match phase {
        ContainerPhase::Creating => "being created",
        ContainerPhase::Created => "CREATED",
        ContainerPhase::Running => "RUNNING",
        ContainerPhase::Exited => "EXITED",
        ContainerPhase::Removing => "being removed",
    }
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), ContainerError> {
    files::write(path, bytes).map_err(|source| ContainerError::Bundle { path: path.to_owned(), source })
}
