//! Pod sandboxes: one driver task owns each, and publishes what readers see.
//!
//! ```text
//!             run                    stop / init dies / reboot            remove
//!   (nothing) ───────▶ READY ─────────────────────────────▶ NOTREADY ──────────▶ (nothing)
//!       ▲       │
//!       └─ undo ┘
//! ```
//!
//! * **Run** is a flight (`run`): record → files → namespaces → pid 1 if shared → network → READY. Either everything
//!   exists or nothing.
//! * **The driver** (`driver`) takes Stop and Remove, one at a time; containers are killed before the network goes.
//! * **Creation of containers** holds the pod's gate for reading, a stop takes it for writing: a container is never made
//!   in a pod that is being stopped.

mod driver;
mod files;
mod forward;
mod recover;
mod run;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use cri_proto::runtime::v1::{
    ContainerConfig, LinuxContainerResources, NamespaceMode, NamespaceOption, PodSandboxConfig,
};
use tokio::sync::{mpsc, oneshot};

use crate::admission::AdmissionError;
use crate::container::{ContainerError, Containers, Sandbox};
use crate::events::Kind;
use crate::keeper::{HeldProcess, KeeperError};
use crate::network::{Network, NetworkError};
use crate::runtime::HandlersError;
use crate::security::selinux::Levels;
use crate::spec::{NamespacePaths, PidNamespace, PodFiles, UserNamespace};
use crate::state::ids::{self, Match};
use crate::state::{SandboxPhase, SandboxRecord, StateError};
use crate::sys::cgroup::CgroupError;
use crate::sys::namespaces::{IdRange, NamespaceError, NetnsError, Owners};
use crate::task::flight::{FlightError, Flights};

const INBOX: usize = 16;

/// All pod sandboxes of the node.
#[derive(Debug, Clone)]
pub struct Pods {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    containers: Containers,
    network: Arc<Network>,
    index: RwLock<BTreeMap<String, Arc<Pod>>>,
    default_parent: String,
    running: Flights<String, PodError>,
    levels: Levels,
    /// Pids 1 of the pods that share a pid namespace, by sandbox.
    inits: Mutex<HashMap<String, HeldProcess>>,
}

/// Handle of one sandbox: a published record and the inbox of its driver.
#[derive(Debug)]
pub struct Pod {
    id: String,
    record: ArcSwap<SandboxRecord>,
    inbox: mpsc::Sender<driver::Command>,
    gate: Arc<tokio::sync::RwLock<()>>,
}

/// Why a request about a sandbox failed.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    #[error("pod sandbox {id:?} not found")]
    NotFound { id: String },
    #[error("pod sandbox id {id:?} is ambiguous: it begins {count} ids")]
    Ambiguous { id: String, count: usize },
    #[error("the name {name:?} is in use by pod sandbox {holder}")]
    NameTaken { name: String, holder: String },
    #[error("pod sandbox {id} is not READY")]
    NotReady { id: String },
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    #[error("runtime_handler")]
    Handler(#[from] HandlersError),
    #[error("linux.security_context.namespace_options.userns_options.mode POD: handler {handler:?}: {lacking}")]
    UserNamespaces { handler: String, lacking: String },
    #[error("linux.cgroup_parent")]
    Cgroup(#[from] CgroupError),
    #[error("record")]
    State(#[from] StateError),
    #[error("{}: cannot be made", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("SELinux labels of the pod's files")]
    Label(#[from] crate::security::selinux::RelabelError),
    #[error("namespaces")]
    Namespace(#[from] NamespaceError),
    #[error("keeper")]
    Keeper(#[from] KeeperError),
    #[error("network")]
    Network(#[from] NetworkError),
    #[error("the record of the network's answer cannot be encoded")]
    NetworkRecord { source: serde_json::Error },
    #[error("port {port} of pod sandbox {id}: connection refused, nobody listens on it on localhost")]
    PortRefused { id: String, port: u16 },
    #[error("port {port} of pod sandbox {id}: no connection after {} s", after.as_secs())]
    PortTimeout { id: String, port: u16, after: Duration },
    #[error("port {port} of pod sandbox {id} cannot be connected to")]
    Port { id: String, port: u16, source: std::io::Error },
    #[error("network namespace of pod sandbox {id}")]
    PortNamespace { id: String, source: NetnsError },
    // Its text must come first: the kubelet knows some errors by their first word.
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error(transparent)]
    Flight(#[from] FlightError),
    /// The outcome of an operation that several callers share.
    #[error("{}", crate::telemetry::chain(&**.0))]
    Shared(Arc<PodError>),
}

impl Pod {
    /// Its id: 64 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What is known of it now. Never waits.
    #[must_use]
    pub fn record(&self) -> Arc<SandboxRecord> {
        self.record.load_full()
    }
}

impl Pods {
    /// No sandbox yet.
    #[must_use]
    pub fn new(containers: Containers, network: Arc<Network>, default_parent: String) -> Self {
        let index = RwLock::default();
        Self {
            inner: Arc::new(Inner {
                containers,
                network,
                default_parent,
                index,
                running: Flights::new(),
                levels: Levels::new(crate::sys::host::random_u32()),
                inits: Mutex::default(),
            }),
        }
    }

    /// The containers of all pods.
    #[must_use]
    pub fn containers(&self) -> &Containers {
        &self.inner.containers
    }

    /// The pod network.
    #[must_use]
    pub fn network(&self) -> &Arc<Network> {
        &self.inner.network
    }

    /// The containers' cgroup parent for a pod that names none.
    pub(crate) fn default_parent(&self) -> &str {
        &self.inner.default_parent
    }

    /// Where the network namespace of a sandbox is pinned; `None` with the host's network.
    #[must_use]
    pub fn network_namespace(&self, record: &SandboxRecord) -> Option<PathBuf> {
        let own = namespace_options(&record.config).network() != NamespaceMode::Node;
        own.then(|| Paths::new(&self.containers().resources().state_dir, &record.id).namespaces.join("net"))
    }

    /// Every sandbox, by id.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Pod>> {
        self.read().values().cloned().collect()
    }

    /// The sandbox with this id, or the only one whose id begins so.
    ///
    /// # Errors
    /// [`PodError::NotFound`], or [`PodError::Ambiguous`] with the number of ids that the prefix fits.
    pub fn find(&self, id: &str) -> Result<Arc<Pod>, PodError> {
        match ids::find(&self.read(), id) {
            Match::One(pod) => Ok(pod),
            Match::None => Err(PodError::NotFound { id: id.to_owned() }),
            Match::Many(count) => Err(PodError::Ambiguous { id: id.to_owned(), count }),
        }
    }

    /// Stops a sandbox: kills its containers, takes down its network. One that is stopped or unknown is fine.
    ///
    /// # Errors
    /// When a container cannot be killed or the network cannot be taken down; the sandbox is NOTREADY all the same, and
    /// the call can be repeated.
    pub async fn stop(&self, id: &str) -> Result<(), PodError> {
        self.ask(id, |reply| driver::Command::Stop { reply }).await
    }

    /// Removes a sandbox and its containers, stopping it first. One that is unknown is fine.
    ///
    /// # Errors
    /// When a piece cannot be removed; the sandbox stays listed, and the call can be repeated.
    pub async fn remove(&self, id: &str) -> Result<(), PodError> {
        self.ask(id, |reply| driver::Command::Remove { reply }).await
    }

    /// Keeps what a sandbox costs now, and the sum of its containers. The limits themselves are the kubelet's to set, on a
    /// cgroup of its own; it tells them so that whoever sizes a sandbox by them can follow.
    ///
    /// # Errors
    /// When the sandbox is unknown, or its record cannot be written; what was known before then stands.
    pub async fn update(
        &self,
        id: &str,
        overhead: Option<LinuxContainerResources>,
        resources: Option<LinuxContainerResources>,
    ) -> Result<(), PodError> {
        let pod = self.find(id)?;
        let gone = || PodError::NotFound { id: id.to_owned() };
        let (reply, answer) = oneshot::channel();
        let command = driver::Command::Update { told: Box::new((overhead, resources)), reply };
        pod.inbox.send(command).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Creates a container in a READY sandbox.
    ///
    /// # Errors
    /// As [`Containers::create`], and when the sandbox is unknown or not READY.
    pub async fn create_container(&self, id: &str, config: ContainerConfig) -> Result<String, PodError> {
        let pod = self.find(id)?;
        let not_ready = || PodError::NotReady { id: pod.id.clone() };
        // Owned by the work, not by this call: a caller that goes away must not open the gate under a creation.
        let (containers, this, owned_pod) = (self.containers().clone(), self.clone(), pod.clone());
        let work = async move {
            let _gate = owned_pod.gate.clone().read_owned().await;
            let record = owned_pod.record();
            if record.phase != SandboxPhase::Ready {
                return Err(PodError::NotReady { id: owned_pod.id.clone() });
            }
            let sandbox = this.sandbox(&record, &config)?;
            Ok(containers.create(Arc::new(sandbox), config).await?)
        };
        crate::task::spawn("create-container", work).await.map_err(|_| not_ready())?
    }

    async fn ask(&self, id: &str, command: impl FnOnce(driver::Reply) -> driver::Command) -> Result<(), PodError> {
        let pod = match self.find(id) {
            Ok(pod) => pod,
            Err(PodError::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let (reply, answer) = oneshot::channel();
        // A driver that has ended has removed its sandbox.
        if pod.inbox.send(command(reply)).await.is_err() {
            return Ok(());
        }
        answer.await.unwrap_or(Ok(()))
    }

    /// What a container of this sandbox needs to know of it.
    fn sandbox(&self, record: &SandboxRecord, config: &ContainerConfig) -> Result<Sandbox, PodError> {
        let resources = self.containers().resources();
        let paths = Paths::new(&resources.state_dir, &record.id);
        let options = namespace_options(&record.config);
        let host_network = options.network() == NamespaceMode::Node;
        let wanted = container_options(config).unwrap_or_else(|| options.clone());
        let pinned = |name: &str, host: bool| (!host).then(|| paths.namespaces.join(name));
        let pid = match wanted.pid() {
            NamespaceMode::Node => PidNamespace::Host,
            NamespaceMode::Container => PidNamespace::Own,
            NamespaceMode::Pod if record.has_init => PidNamespace::Path(paths.namespaces.join("pid")),
            NamespaceMode::Pod => PidNamespace::Own,
            NamespaceMode::Target => PidNamespace::Path(self.target_pid_namespace(&record.id, &wanted.target_id)?),
        };
        Ok(Sandbox {
            id: record.id.clone(),
            config: Arc::new(record.config.clone()),
            runtime: resources.runtime(&record.resolved_handler)?,
            namespaces: NamespacePaths {
                net: pinned("net", host_network),
                ipc: pinned("ipc", options.ipc() == NamespaceMode::Node),
                uts: pinned("uts", host_network),
                pid,
                user: user_namespace(&options).map(|asked| UserNamespace {
                    path: paths.namespaces.join("user"),
                    uids: asked.uids.first().cloned().unwrap_or_default(),
                    gids: asked.gids.first().cloned().unwrap_or_default(),
                }),
            },
            files: PodFiles {
                hostname: Some(paths.hostname()),
                resolv_conf: paths.resolv_conf(),
                shm: if options.ipc() == NamespaceMode::Node { PathBuf::from("/dev/shm") } else { paths.shm() },
                // A pod that an older daemon made has none.
                hosts: Some(paths.hosts()).filter(|path| path.exists()),
                writable: false,
            },
            cgroup_parent: record.cgroup_parent.clone(),
            hostname: record.hostname.clone(),
            selinux_level: Some(record.selinux_level.clone()).filter(|level| !level.is_empty()),
        })
    }

    /// The pid namespace of another running container of the same pod (ephemeral debug containers).
    fn target_pid_namespace(&self, sandbox_id: &str, target: &str) -> Result<PathBuf, PodError> {
        let container = self.containers().find(target)?;
        let record = container.record();
        if record.sandbox_id != sandbox_id {
            return Err(ContainerError::NotFound { id: target.to_owned() }.into());
        }
        match container.pid() {
            Some(pid) => Ok(PathBuf::from(format!("/proc/{pid}/ns/pid"))),
            None => Err(ContainerError::WrongState {
                id: record.id.clone(),
                state: crate::container::state_name(record.phase),
                wanted: "RUNNING",
            }
            .into()),
        }
    }

    /// Makes a sandbox visible, tells of it and starts its driver.
    fn adopt(&self, record: SandboxRecord, kinds: &[Kind]) -> Arc<Pod> {
        let (inbox, commands) = mpsc::channel(INBOX);
        let published = Arc::new(record.clone());
        let pod = Arc::new(Pod {
            id: record.id.clone(),
            record: ArcSwap::new(published.clone()),
            inbox,
            gate: Arc::default(),
        });
        self.inner.index.write().unwrap_or_else(PoisonError::into_inner).insert(pod.id.clone(), pod.clone());
        self.containers().resources().events.sandbox(&published, kinds);
        driver::start(self.clone(), pod.clone(), commands, record);
        self.watch_init(&pod);
        pod
    }

    /// Tells the driver when the pod's pid 1 ends: every container of the pod has then ended with it.
    fn watch_init(&self, pod: &Arc<Pod>) {
        let init = self.inner.inits.lock().unwrap_or_else(PoisonError::into_inner).get(&pod.id).cloned();
        let Some(init) = init else { return };
        let keeper = self.containers().resources().keeper.clone();
        let (id, inbox) = (init_id(&pod.id), pod.inbox.downgrade());
        crate::task::spawn("pod-init", async move {
            keeper.wait_exit(&id, &init.pidfd).await;
            if let Some(inbox) = inbox.upgrade() {
                // A driver that is gone has no use for it.
                let _ = inbox.send(driver::Command::InitEnded).await;
            }
        });
    }

    /// Notes the pid 1 of a pod.
    fn note_init(&self, id: &str, init: HeldProcess) {
        self.inner.inits.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), init);
    }

    fn forget(&self, id: &str) {
        self.inner.index.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Arc<Pod>>> {
        self.inner.index.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a sandbox keeps its things; all of it follows from the id.
#[derive(Debug)]
struct Paths {
    /// `<state>/pods/<id>`: resolv.conf, hostname, shm.
    files: PathBuf,
    /// `<state>/ns/<id>`: the pinned namespaces.
    namespaces: PathBuf,
}

impl Paths {
    fn new(state_dir: &Path, id: &str) -> Self {
        Self { files: state_dir.join("pods").join(id), namespaces: state_dir.join("ns").join(id) }
    }

    fn resolv_conf(&self) -> PathBuf {
        self.files.join("resolv.conf")
    }

    fn hostname(&self) -> PathBuf {
        self.files.join("hostname")
    }

    fn hosts(&self) -> PathBuf {
        self.files.join("hosts")
    }

    fn shm(&self) -> PathBuf {
        self.files.join("shm")
    }
}

/// The key under which the keeper knows the pid 1 of a pod.
fn init_id(sandbox_id: &str) -> String {
    format!("init-{sandbox_id}")
}

/// The pod's namespace options; absent means all of the pod's own.
#[must_use]
pub fn namespace_options(config: &PodSandboxConfig) -> NamespaceOption {
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    security.and_then(|security| security.namespace_options.clone()).unwrap_or_default()
}

/// The user namespace that a pod asks for; `None` for the host's, which an absent field means as well.
fn user_namespace(options: &NamespaceOption) -> Option<&cri_proto::runtime::v1::UserNamespace> {
    options.userns_options.as_ref().filter(|asked| asked.mode() == NamespaceMode::Pod)
}

/// Whose the pod's ids are on the host; `None` where they are the host's. Admission has seen to it that there is one range
/// of each, from id 0 on.
fn owners(options: &NamespaceOption) -> Option<Owners> {
    let asked = user_namespace(options)?;
    let range = |mappings: &[cri_proto::runtime::v1::IdMapping]| {
        mappings.first().map(|mapping| IdRange { host: mapping.host_id, length: mapping.length })
    };
    Some(Owners { uids: range(&asked.uids)?, gids: range(&asked.gids)? })
}

fn container_options(config: &ContainerConfig) -> Option<NamespaceOption> {
    config.linux.as_ref()?.security_context.as_ref()?.namespace_options.clone()
}
