//! Pod networks: one that cricket makes by itself, and cricket's own client of the Container Network Interface, versions
//! 0.3.0 to 1.1.0.
//!
//! ```text
//! pod driver ── attach, detach ──▶ Network ─┬─ builtin ──▶ netlink                 (no other program)
//!                                           └─ chain ── plugin ──▶ /opt/cni/bin/*  (own clock, own process group)
//! Status     ◀─ status ── published snapshot ◀── watch ◀── conf_dir                (inotify, and a poll)
//!                                     └── cache: libcni's results, one file for each attachment
//! ```
//!
//! Which of the two a new pod gets is decided in `mode`; a pod is taken down by the one that it was set up by.
//!
//! A network is taken down with the configuration that it was set up with, which is in the cache from before ADD on. ADD
//! that fails is always followed by DEL.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use cri_proto::runtime::v1::PortMapping;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::{Notify, RwLock};

use crate::config;
use crate::task;

pub use args::{ArgumentError, INTERFACE};
pub use builtin::BuiltinError;
pub use cache::CacheError;
pub use chain::AddError;
pub use error::NetworkError;
pub use hostports::HostPortConflict;
pub use plugin::{PluginError, Verb};
pub use result::{Attachment, Interface, ResultError};
pub use status::NetworkStatus;

mod abandoned;
mod args;
mod builtin;
mod cache;
mod capability;
mod chain;
mod check;
mod conf;
mod conf_dir;
mod error;
mod hostports;
mod mode;
mod plugin;
mod quantity;
mod result;
mod status;
mod teardown;
mod watch;

/// A pod, as far as its network is concerned. The same value must be given to [`Network::attach`] and
/// [`Network::detach`], so it belongs in the pod's record.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PodAttachment {
    /// `CNI_CONTAINERID`.
    pub sandbox_id: String,
    pub pod_name: String,
    pub pod_namespace: String,
    pub pod_uid: String,
    /// The pinned network namespace; never a path with a process id.
    pub netns: PathBuf,
    /// Those with host port 0 are passed by.
    pub port_mappings: Vec<PortMapping>,
    pub annotations: BTreeMap<String, String>,
    pub dns: Dns,
    /// For the capability `cgroupPath`; empty when the pod has none.
    pub cgroup_parent: String,
    /// What the pod's record has of an attach that succeeded.
    pub made: Option<Attachment>,
}

/// The pod's resolver settings, for the capability `dns`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

impl PodAttachment {
    fn full_name(&self) -> String {
        format!("{}/{}", self.pod_namespace, self.pod_name)
    }
}

/// The pods' network of this node.
#[derive(Debug)]
pub struct Network {
    config: config::Network,
    builtin: Arc<builtin::Builtin>,
    /// There was a CNI network in the life of this process, or there is a pod on one: the builtin one does not take its place.
    cni_seen: AtomicBool,
    plugins: plugin::Plugins,
    status_plugins: plugin::Plugins,
    cache: cache::Cache,
    ports: hostports::HostPorts,
    current: ArcSwap<status::Current>,
    /// Asks the watcher for a look before its time.
    poke: Arc<Notify>,
    /// One look at the folder at a time, and one round of STATUS: a plugin that hangs in STATUS must not hold up the former.
    loading: tokio::sync::Mutex<()>,
    asking: tokio::sync::Mutex<()>,
    /// Read by ADD and DEL, written by GC: a plugin must not free what is being set up.
    gc_gate: RwLock<()>,
    /// Sandboxes that this process attached and did not detach.
    live: Mutex<HashSet<String>>,
    abandoned: abandoned::Abandoned,
}

/// Longest clock of a STATUS call.
const STATUS_CLOCK: Duration = Duration::from_secs(10);

impl Network {
    /// Does no I/O: the status is "not ready" until [`Self::refresh_status`] or the watcher has looked. `dir` is for the
    /// leases of the builtin network; it must survive a restart.
    ///
    /// # Panics
    /// When the configuration was not checked.
    #[must_use]
    pub fn new(config: config::Network, dir: PathBuf) -> Arc<Self> {
        let subnets = config.subnets().expect("the configuration was checked");
        let options = builtin::Options { subnets: subnets.own, cluster: subnets.cluster, dir };
        let builtin = builtin::Builtin::new(options);
        let clock = Duration::from_secs(u64::from(config.plugin_timeout.max(1)));
        Arc::new(Self {
            builtin: Arc::new(builtin),
            cni_seen: AtomicBool::new(false),
            plugins: plugin::Plugins::new(config.bin_dirs.clone(), clock),
            status_plugins: plugin::Plugins::new(config.bin_dirs.clone(), clock.min(STATUS_CLOCK)),
            cache: cache::Cache::new(&config.cache_dir),
            ports: hostports::HostPorts::default(),
            current: ArcSwap::from_pointee(status::Current::unknown(&config.conf_dir)),
            poke: Arc::new(Notify::new()),
            loading: tokio::sync::Mutex::new(()),
            asking: tokio::sync::Mutex::new(()),
            gc_gate: RwLock::new(()),
            live: Mutex::new(HashSet::new()),
            abandoned: abandoned::Abandoned::default(),
            config,
        })
    }

    /// Gives the pod its interface.
    ///
    /// # Errors
    /// When nothing could be set up. All that was done is then undone, unless the error says otherwise; a
    /// [`Self::detach`] after it is always right.
    pub async fn attach(&self, pod: &PodAttachment) -> Result<Attachment, NetworkError> {
        let wrong = |source| NetworkError::Argument { pod: pod.full_name(), source };
        args::check_container_id(&pod.sandbox_id).map_err(wrong)?;
        let cni_args = args::pod_args(pod).map_err(wrong)?;
        let ports = capability::host_ports(&pod.port_mappings).map_err(wrong)?;
        let runtime = capability::runtime_config(pod, &ports).map_err(wrong)?;
        // A path with a process id leads to another pod once the id is used again, so none may come into the cache.
        let netns = pod.netns.to_str().filter(|path| path.starts_with('/') && !path.starts_with("/proc/"));
        let netns = netns.ok_or_else(|| {
            let path = pod.netns.to_string_lossy();
            wrong(ArgumentError::new("network namespace", &path, "want an absolute path, not below /proc"))
        })?;

        let _gate = self.gc_gate.read().await;
        let Some(list) = self.list_for_new_pod().await? else {
            return self.attach_builtin(pod, ports, &runtime).await;
        };
        let owner = self.claim(pod, &ports)?;
        let mut entry = cache::Entry::new(&pod.sandbox_id, &list.name, list.bytes.clone());
        netns.clone_into(&mut entry.netns);
        entry.cni_args = Some(cni_args);
        entry.capability_args = (!runtime.is_empty()).then_some(runtime);
        if let Err(error) = self.save(entry.clone()).await {
            owner.give_back();
            return Err(error);
        }
        self.add(pod, &list, entry, owner).await
    }

    /// Runs the chain, and undoes it when it or its result is no good.
    async fn add(
        &self,
        pod: &PodAttachment,
        list: &conf::NetworkList,
        mut entry: cache::Entry,
        owner: Claim<'_>,
    ) -> Result<Attachment, NetworkError> {
        let mut call = Call::of(&entry, Some(&pod.netns));
        let added = chain::add(&self.plugins, list, &call.target(), &call.runtime).await;
        let (network, name) = (list.name.clone(), pod.full_name());
        let result = match added {
            Ok(result) => result,
            Err(failure) => {
                call.netns = call.netns.filter(|_| !failure.no_namespace);
                let undo = self.undo(list, &entry, &call, failure.ran, owner).await;
                return Err(NetworkError::Add { network, pod: name, failed: Box::new(failure.error), undo });
            }
        };
        entry.result = Some(result.clone());
        let attachment = match result::read(&list.name, INTERFACE, result) {
            Ok(attachment) => attachment,
            Err(reason) => {
                let undo = self.undo(list, &entry, &call, list.plugins.len(), owner).await;
                return Err(NetworkError::Result { network, pod: name, reason, undo });
            }
        };
        if let Err(error) = self.save(entry.clone()).await {
            self.undo(list, &entry, &call, list.plugins.len(), owner).await;
            return Err(error);
        }
        Ok(attachment)
    }

    /// Notes a pod that an earlier life of the daemon attached and that still runs: its host ports are taken, and GC
    /// leaves it alone. To be called for each such pod before the first [`Self::attach`].
    pub fn adopt(&self, pod: &PodAttachment) {
        // What was attached had legal ports; a record that says otherwise holds none.
        let ports = capability::host_ports(&pod.port_mappings).unwrap_or_default();
        self.ports.adopt(&pod.sandbox_id, &pod.full_name(), &ports);
        self.live.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.sandbox_id.clone());
        self.adopt_mode(pod, ports);
    }

    /// Takes the pod's ports, and its place among the live ones.
    fn claim(&self, pod: &PodAttachment, ports: &[capability::HostPort]) -> Result<Claim<'_>, NetworkError> {
        let id = &pod.sandbox_id;
        if !self.live.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone()) {
            return Err(NetworkError::AlreadyAttached(id.clone()));
        }
        if let Err(conflict) = self.ports.claim(id, &pod.full_name(), ports) {
            self.live.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
            return Err(NetworkError::HostPort(conflict));
        }
        Ok(Claim { network: self, sandbox_id: id.clone() })
    }

    fn forget_live(&self, sandbox_id: &str) {
        self.ports.release(sandbox_id);
        self.live.lock().unwrap_or_else(PoisonError::into_inner).remove(sandbox_id);
    }

    async fn save(&self, entry: cache::Entry) -> Result<(), NetworkError> {
        let cache = self.cache.clone();
        task::blocking(move || cache.write(&entry)).await.map_err(NetworkError::Cache)
    }
}

/// A pod's ports and its place among the live ones, while it is being attached. Dropping it keeps them.
#[derive(Debug)]
struct Claim<'a> {
    network: &'a Network,
    sandbox_id: String,
}

impl Claim<'_> {
    fn give_back(self) {
        self.network.forget_live(&self.sandbox_id);
    }
}

/// The arguments of a chain's calls, as a cache entry has them.
#[derive(Debug)]
struct Call {
    container_id: String,
    netns: Option<PathBuf>,
    interface: String,
    args: String,
    runtime: Map<String, Value>,
}

impl Call {
    fn of(entry: &cache::Entry, netns: Option<&Path>) -> Self {
        Self {
            container_id: entry.container_id.clone(),
            netns: netns.map(Path::to_owned),
            interface: entry.if_name.clone(),
            args: args::join(entry.cni_args.as_deref().unwrap_or_default()),
            runtime: entry.capability_args.clone().unwrap_or_default(),
        }
    }

    fn target(&self) -> plugin::Target<'_> {
        plugin::Target {
            container_id: &self.container_id,
            netns: self.netns.as_deref(),
            interface: &self.interface,
            args: &self.args,
        }
    }
}

#[cfg(test)]
mod tests;
