//! RunPodSandbox: from a request to a READY sandbox, or to nothing at all.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use cri_proto::runtime::v1::{NamespaceMode, PodSandboxConfig};

use crate::admission::SandboxKey;
use crate::events::Kind;
use crate::network::{Dns, NetworkError, PodAttachment};
use crate::runtime::OciRuntime;
use crate::security::selinux::State;
use crate::state::{SandboxPhase, SandboxRecord};
use crate::sys::namespaces::{self, NamespaceKind, NamespaceRequest, Owners};
use crate::sys::pidfd;

use super::{Paths, PodError, Pods, files, init_id, namespace_options, owners};

impl Pods {
    /// Runs a sandbox. A retry of a request in progress joins it; one of a finished request with the same configuration
    /// gets the same id while the sandbox is READY.
    ///
    /// # Errors
    /// Every way in which the request is bad, or a piece cannot be made; nothing is left behind.
    pub async fn run(&self, config: PodSandboxConfig, handler: String) -> Result<String, PodError> {
        let runtime = self.containers().resources().runtime(&handler)?;
        let options = namespace_options(&config);
        if owners(&options).is_some() {
            let able = self.containers().resources().user_namespaces(&runtime);
            let handler = runtime.handler().to_owned();
            able.map_err(|lacking| PodError::UserNamespaces { handler, lacking })?;
        }
        let key = key(&config);
        let hash = crate::admission::config_hash(&(handler.clone(), config.clone()));
        if let Some(id) = self.holder(&config, &hash)? {
            return Ok(id);
        }
        let pods = self.clone();
        let contents = hash.clone();
        let work = async move { pods.build(config, handler, runtime, hash).await };
        self.inner.running.run(&key, &contents, work).await?.map_err(PodError::Shared)
    }

    /// The sandbox that has this identity already: its id when it is READY and the request is the same, an error
    /// otherwise.
    fn holder(&self, config: &PodSandboxConfig, hash: &str) -> Result<Option<String>, PodError> {
        for pod in self.list() {
            let record = pod.record();
            if record.config.metadata != config.metadata {
                continue;
            }
            if record.config_hash == hash && record.phase == SandboxPhase::Ready {
                return Ok(Some(record.id.clone()));
            }
            return Err(PodError::NameTaken { name: key(config), holder: record.id.clone() });
        }
        Ok(None)
    }

    async fn build(
        &self,
        config: PodSandboxConfig,
        handler: String,
        runtime: Arc<OciRuntime>,
        hash: String,
    ) -> Result<String, PodError> {
        if let Some(id) = self.holder(&config, &hash)? {
            return Ok(id);
        }
        let mut record = self.draft(config, handler, &runtime, hash)?;
        let resources = self.containers().resources().clone();
        resources.store.put_sandbox(&record)?;
        match self.make(&mut record).await {
            Ok(()) => Ok(self.adopt(record, &[Kind::Created, Kind::Started]).id().to_owned()),
            Err(error) => {
                if let Err(left) =
                    self.take_away_for_good(&mut record).await.and_then(|()| Ok(resources.store.remove(&record.id)?))
                {
                    // The record stays, so the next start of the daemon tries again.
                    tracing::error!(id = %record.id, error = %crate::telemetry::chain(&left), "a failed sandbox could not be undone whole");
                }
                Err(error)
            }
        }
    }

    fn draft(
        &self,
        config: PodSandboxConfig,
        handler: String,
        runtime: &OciRuntime,
        hash: String,
    ) -> Result<SandboxRecord, PodError> {
        let options = namespace_options(&config);
        let cgroups = &self.containers().resources().cgroups;
        let asked = config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default();
        let parent = cgroups.parent(if asked.is_empty() { self.default_parent() } else { &asked })?;
        let id = crate::state::ids::fresh_id();
        let hostname = match (config.hostname.is_empty(), options.network() == NamespaceMode::Node) {
            (false, _) => config.hostname.clone(),
            (true, true) => crate::sys::host::node_name(),
            (true, false) => id[..12].to_owned(),
        };
        Ok(SandboxRecord {
            phase: SandboxPhase::Creating,
            resolved_handler: runtime.handler().to_owned(),
            created_at: crate::sys::host::now_ns(),
            config_hash: hash,
            made_cgroup_parent: !cgroups.exists(&parent),
            cgroup_parent: parent,
            has_init: options.pid() == NamespaceMode::Pod,
            hostname,
            selinux_level: self.selinux_level(&config),
            config,
            handler,
            id,
            ..SandboxRecord::default()
        })
    }

    /// The level that the pod asked for, else a pair of categories that no other pod has; empty where SELinux is off.
    fn selinux_level(&self, config: &PodSandboxConfig) -> String {
        if self.containers().resources().host.kernel.selinux != State::On {
            return String::new();
        }
        let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let asked = security.and_then(|security| security.selinux_options.as_ref()).map(|options| &options.level);
        match asked.filter(|level| !level.is_empty()) {
            Some(level) => level.clone(),
            None => self.inner.levels.fresh(|level| self.list().iter().any(|pod| pod.record().selinux_level == level)),
        }
    }

    async fn make(&self, record: &mut SandboxRecord) -> Result<(), PodError> {
        let resources = self.containers().resources().clone();
        let options = namespace_options(&record.config);
        let host_network = options.network() == NamespaceMode::Node;
        let own_ipc = options.ipc() != NamespaceMode::Node;
        let paths = Paths::new(&resources.state_dir, &record.id);
        let netns = paths.namespaces.join("net");
        if record.made_cgroup_parent {
            resources.cgroups.make_parent(&record.cgroup_parent)?;
        }
        let owners = owners(&options);
        self.make_namespaces(record, paths, own_ipc, owners).await?;
        if record.has_init {
            self.fork_init(record, host_network, own_ipc).await?;
        }
        if !host_network {
            record.network_attached = true;
            resources.store.put_sandbox(record)?;
            let attached = self.inner.network.attach(&attachment_of(record, &netns)).await;
            let attachment = attached.inspect_err(|error| record.network_attached = !error.left_nothing())?;
            record.ips = attachment.ips.iter().map(ToString::to_string).collect();
            record.network = serde_json::to_value(&attachment).map_err(|source| PodError::NetworkRecord { source })?;
        }
        // Only now are the addresses known.
        let paths = Paths::new(&resources.state_dir, &record.id);
        let root = owners.map_or((0, 0), |owners| owners.root());
        files::make_hosts(&paths, &record.hostname, &record.ips, host_network, root)?;
        if !record.selinux_level.is_empty() {
            files::label(&paths, &record.selinux_level, own_ipc)?;
        }
        record.phase = SandboxPhase::Ready;
        resources.store.put_sandbox(record)?;
        Ok(())
    }

    async fn make_namespaces(
        &self,
        record: &SandboxRecord,
        paths: Paths,
        own_ipc: bool,
        owners: Option<Owners>,
    ) -> Result<(), PodError> {
        let own_network = namespace_options(&record.config).network() != NamespaceMode::Node;
        let (config, hostname) = (record.config.clone(), record.hostname.clone());
        let sysctls: BTreeMap<String, String> = sysctls(&config);
        let dir = paths.namespaces.clone();
        let (name, values) = (hostname.clone(), sysctls.clone());
        let wanted = move || -> Result<Option<Owners>, PodError> {
            let root = owners.map_or((0, 0), |owners| owners.root());
            files::make(&paths, &name, config.dns_config.as_ref(), own_ipc, root)?;
            if owners.is_none() {
                namespaces::create(&request(&paths.namespaces, &name, &values, own_network, own_ipc))?;
            }
            Ok(owners)
        };
        if let Some(owners) = crate::task::blocking(wanted).await? {
            let request = request(&dir, &hostname, &sysctls, own_network, own_ipc);
            namespaces::create_owned(&request, owners).await?;
        }
        Ok(())
    }

    /// A pod that shares its pid namespace gets a pid 1 that reaps; the namespace is pinned like the others.
    async fn fork_init(&self, record: &SandboxRecord, host_network: bool, own_ipc: bool) -> Result<(), PodError> {
        let resources = self.containers().resources().clone();
        let dir = Paths::new(&resources.state_dir, &record.id).namespaces;
        let own_user = owners(&namespace_options(&record.config)).is_some();
        let mut join = Vec::new();
        for (name, own) in [("user", own_user), ("net", !host_network), ("ipc", own_ipc), ("uts", !host_network)] {
            if own {
                let path = dir.join(name);
                let file = File::open(&path).map_err(|source| PodError::File { path, source })?;
                join.push((name.to_owned(), Arc::new(file.into())));
            }
        }
        let init = resources.keeper.fork_init(&init_id(&record.id), join).await?;
        self.note_init(&record.id, init.clone());
        let pid =
            rustix::process::Pid::from_raw(init.pid).ok_or_else(|| PodError::NotReady { id: record.id.clone() })?;
        crate::task::blocking(move || namespaces::pin(pid, NamespaceKind::Pid, &dir)).await?;
        Ok(())
    }

    /// Takes down everything that the record names, containers excepted. Each piece that is gone already is fine.
    pub(super) async fn take_away(&self, record: &mut SandboxRecord) -> Result<(), PodError> {
        let resources = self.containers().resources().clone();
        self.detach(record).await?;
        self.kill_init(record).await?;
        let paths = Paths::new(&resources.state_dir, &record.id);
        crate::task::blocking(move || {
            namespaces::remove(&paths.namespaces)?;
            files::remove(&paths)
        })
        .await?;
        if record.made_cgroup_parent {
            // Another pod may have come to use the same parent; it then goes with nobody, which does no harm.
            resources.cgroups.remove_empty(&record.cgroup_parent)?;
        }
        Ok(())
    }

    /// As [`Self::take_away`], for a sandbox that nobody will ask for again: when its network cannot be taken down now, the
    /// rest goes without it, and the network room tries again by itself.
    pub(super) async fn take_away_for_good(&self, record: &mut SandboxRecord) -> Result<(), PodError> {
        match self.take_away(record).await {
            Err(PodError::Network(error)) => {
                self.abandon_network(record, &error);
                self.take_away(record).await
            }
            done => done,
        }
    }

    /// Leaves the sandbox's network to the network room.
    pub(super) fn abandon_network(&self, record: &mut SandboxRecord, error: &NetworkError) {
        tracing::error!(id = %record.id, error = %crate::telemetry::chain(error), "the pod goes although its network could not be taken down; that is tried again");
        let netns = Paths::new(&self.containers().resources().state_dir, &record.id).namespaces.join("net");
        self.inner.network.abandon(attachment_of(record, &netns));
        record.network_attached = false;
        record.ips.clear();
    }

    /// Asks, in the background and one after the other, whether the networks of the pods that were taken over are as they
    /// were made, and logs what is not. Nothing else comes of it.
    pub fn check_networks(&self) {
        let pods: Vec<PodAttachment> = self
            .list()
            .iter()
            .map(|pod| pod.record())
            .filter(|record| record.network_attached && record.phase == SandboxPhase::Ready)
            .map(|record| {
                let dir = Paths::new(&self.containers().resources().state_dir, &record.id).namespaces;
                attachment_of(&record, &dir.join("net"))
            })
            .collect();
        let network = self.inner.network.clone();
        // The handle is not needed: nothing waits for what it says.
        drop(crate::task::spawn("network-check", async move {
            for pod in pods {
                if let Err(error) = network.check(&pod).await {
                    let error = crate::telemetry::chain(&error);
                    tracing::warn!(sandbox = pod.sandbox_id, error = %error, "the network of a pod that was taken over is not as it was made");
                }
            }
        }));
    }

    /// CNI DEL, if an ADD was ever begun.
    pub(super) async fn detach(&self, record: &mut SandboxRecord) -> Result<(), PodError> {
        if !record.network_attached {
            return Ok(());
        }
        let resources = self.containers().resources();
        let netns = Paths::new(&resources.state_dir, &record.id).namespaces.join("net");
        let exists = crate::sys::netns::is_namespace(&netns);
        self.inner.network.detach(&attachment_of(record, &netns), exists).await?;
        record.network_attached = false;
        record.ips.clear();
        Ok(())
    }

    async fn kill_init(&self, record: &SandboxRecord) -> Result<(), PodError> {
        if record.has_init {
            let keeper = &self.containers().resources().keeper;
            let id = init_id(&record.id);
            let init = self.inner.inits.lock().unwrap_or_else(PoisonError::into_inner).remove(&record.id);
            if let Some(init) = init {
                // One that has ended already is what we want.
                let _ = pidfd::signal(init.pidfd.as_fd(), rustix::process::Signal::KILL);
                keeper.wait_exit(&id, &init.pidfd).await;
            }
            keeper.forget(&id).await?;
        }
        Ok(())
    }

    /// Tells the network of an attachment that an earlier daemon made.
    pub(super) fn restore_attachment(&self, record: &SandboxRecord) {
        let netns = Paths::new(&self.containers().resources().state_dir, &record.id).namespaces.join("net");
        if record.network_attached {
            self.inner.network.adopt(&attachment_of(record, &netns));
        }
    }
}

fn key(config: &PodSandboxConfig) -> String {
    SandboxKey::of(&config.metadata.clone().unwrap_or_default()).to_string()
}

fn sysctls(config: &PodSandboxConfig) -> BTreeMap<String, String> {
    let map = config.linux.as_ref().map(|linux| linux.sysctls.clone()).unwrap_or_default();
    map.into_iter().collect()
}

fn request<'a>(
    dir: &'a Path,
    hostname: &'a str,
    sysctls: &'a BTreeMap<String, String>,
    own_network: bool,
    own_ipc: bool,
) -> NamespaceRequest<'a> {
    NamespaceRequest { dir, net: own_network, ipc: own_ipc, uts: own_network, hostname, sysctls }
}

fn attachment_of(record: &SandboxRecord, netns: &Path) -> PodAttachment {
    let config = &record.config;
    let metadata = config.metadata.clone().unwrap_or_default();
    let dns = config.dns_config.clone().unwrap_or_default();
    PodAttachment {
        sandbox_id: record.id.clone(),
        pod_name: metadata.name,
        pod_namespace: metadata.namespace,
        pod_uid: metadata.uid,
        netns: netns.to_owned(),
        port_mappings: config.port_mappings.clone(),
        annotations: config.annotations.clone().into_iter().collect(),
        dns: Dns { servers: dns.servers, searches: dns.searches, options: dns.options },
        cgroup_parent: record.cgroup_parent.clone(),
        // Null before the network has answered.
        made: serde_json::from_value(record.network.clone()).ok(),
    }
}
