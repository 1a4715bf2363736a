//! Taking networks down: after an ADD that failed, when a pod stops, and what nobody uses any more.

use std::collections::HashSet;
use std::path::Path;
use std::sync::PoisonError;

use super::plugin::PluginError;
use super::{Call, Claim, INTERFACE, Network, NetworkError, PodAttachment, args, cache, capability, chain, conf};
use crate::config::NetworkMode;
use crate::sys::netns::is_namespace;
use crate::task;

impl Network {
    /// Undoes an ADD. What cannot be undone keeps its cache entry and its ports, for the DEL that the caller tries later.
    pub(super) async fn undo(
        &self,
        list: &conf::NetworkList,
        entry: &cache::Entry,
        call: &Call,
        ran: usize,
        owner: Claim<'_>,
    ) -> Vec<PluginError> {
        let saved = chain::Saved { runtime: &call.runtime, result: entry.result.as_ref() };
        match chain::del(&self.plugins, list, &call.target(), &saved, ran).await {
            Ok(()) => {
                // An entry that stays only costs a second DEL.
                let _ = self.forget(entry).await;
                owner.give_back();
                Vec::new()
            }
            Err(errors) => errors,
        }
    }

    /// Takes the pod's interface away; fine when it never had one, or was detached before.
    ///
    /// With `netns_exists` false, or when nothing is pinned at the pod's path any more, plugins get no namespace and free
    /// what they hold elsewhere.
    ///
    /// # Errors
    /// When a plugin failed. Something is left over then, and the call must be repeated later.
    pub async fn detach(&self, pod: &PodAttachment, netns_exists: bool) -> Result<(), NetworkError> {
        if args::check_container_id(&pod.sandbox_id).is_err() {
            // No plugin was ever called with such an id.
            return Ok(());
        }
        let netns = Some(pod.netns.as_path()).filter(|path| netns_exists && is_pinned(path));
        let _gate = self.gc_gate.read().await;
        if self.detach_builtin(pod).await? {
            self.forget_live(&pod.sandbox_id);
            return Ok(());
        }
        let (cache, id) = (self.cache.clone(), pod.sandbox_id.clone());
        let entries = task::blocking(move || cache.of_container(&id)).await.map_err(NetworkError::Cache)?;
        if entries.is_empty() && self.config.mode != NetworkMode::Builtin {
            self.detach_uncached(pod, netns).await?;
        }
        for entry in entries {
            self.detach_entry(&entry, netns).await?;
        }
        self.forget_live(&pod.sandbox_id);
        Ok(())
    }

    /// DEL with the cached configuration, or with today's of the same name when the cached one is no good.
    async fn detach_entry(&self, entry: &cache::Entry, netns: Option<&Path>) -> Result<(), NetworkError> {
        let current = self.current.load_full();
        let cached = conf::parse_list(&entry.config, &|_| Ok(Vec::new()));
        let cached = cached.or_else(|_| conf::parse_single(&entry.config));
        let list = match (&cached, &current.list) {
            (Ok(cached), _) => Some(cached),
            (Err(_), Some(today)) if today.name == entry.network_name => Some(&**today),
            (Err(_), _) => None,
        };
        if let Some(list) = list {
            let call = Call::of(entry, netns);
            let saved = chain::Saved { runtime: &call.runtime, result: entry.result.as_ref() };
            chain::del(&self.plugins, list, &call.target(), &saved, list.plugins.len()).await.map_err(|errors| {
                NetworkError::Del {
                    network: entry.network_name.clone(),
                    sandbox_id: entry.container_id.clone(),
                    errors,
                }
            })?;
        } else {
            tracing::warn!(
                network = entry.network_name,
                sandbox = entry.container_id,
                "no usable configuration to take the pod's network down with, it is forgotten"
            );
        }
        self.forget(entry).await
    }

    /// DEL for a pod that the cache does not know: it was never attached, or the cache was lost. Today's configuration is
    /// the best guess then.
    async fn detach_uncached(&self, pod: &PodAttachment, netns: Option<&Path>) -> Result<(), NetworkError> {
        let list = match self.list_or_reload().await {
            Ok(list) => list,
            Err(NetworkError::NotReady(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        // A pod with arguments that are not legal never came to ADD.
        let Ok(cni_args) = args::pod_args(pod) else { return Ok(()) };
        let Ok(ports) = capability::host_ports(&pod.port_mappings) else { return Ok(()) };
        let Ok(runtime) = capability::runtime_config(pod, &ports) else { return Ok(()) };
        let mut entry = cache::Entry::new(&pod.sandbox_id, &list.name, list.bytes.clone());
        entry.cni_args = Some(cni_args);
        entry.capability_args = Some(runtime);
        self.detach_entry(&entry, netns).await
    }

    /// Frees attachments of the current network that nobody uses: those of the cache get a DEL, and plugins of version
    /// 1.1.0 are told which ones are in use. `valid` are pairs of sandbox id and interface; pods that this process attached
    /// or adopted count as valid too, and so does what other tools pinned.
    ///
    /// To be called at start, after the sweep of pinned namespaces. ADD and DEL wait for it.
    ///
    /// # Errors
    /// When plugins failed; everything was tried.
    pub async fn gc(&self, valid: &[(String, String)]) -> Result<(), NetworkError> {
        let _gate = self.gc_gate.write().await;
        self.reconcile_builtin().await;
        if self.config.mode == NetworkMode::Builtin {
            return Ok(());
        }
        let list = match self.list_or_reload().await {
            Ok(list) if !list.disable_gc => list,
            Ok(_) | Err(NetworkError::NotReady(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut in_use: HashSet<(String, String)> = valid.iter().cloned().collect();
        {
            let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
            in_use.extend(live.iter().map(|id| (id.clone(), INTERFACE.to_owned())));
        }
        let (cache, name) = (self.cache.clone(), list.name.clone());
        let cached = task::blocking(move || cache.of_network(&name)).await.map_err(NetworkError::Cache)?;
        let mut errors = Vec::new();
        for entry in cached {
            let key = (entry.container_id.clone(), entry.if_name.clone());
            if in_use.contains(&key) {
                continue;
            }
            if is_pinned(Path::new(&entry.netns)) {
                // Its namespace is still pinned: another runtime's pod on the same network.
                in_use.insert(key);
                continue;
            }
            match self.detach_entry(&entry, None).await {
                Ok(()) => {}
                Err(NetworkError::Del { errors: more, .. }) => errors.extend(more),
                Err(error) => return Err(error),
            }
        }
        if list.version.has_status_and_gc() {
            let mut in_use: Vec<_> = in_use.into_iter().collect();
            in_use.sort();
            errors.extend(chain::gc(&self.plugins, &list, &in_use).await.err().into_iter().flatten());
        }
        if errors.is_empty() { Ok(()) } else { Err(NetworkError::Gc { network: list.name.clone(), errors }) }
    }

    async fn forget(&self, entry: &cache::Entry) -> Result<(), NetworkError> {
        let (cache, network, id) = (self.cache.clone(), entry.network_name.clone(), entry.container_id.clone());
        task::blocking(move || cache.remove(&network, &id)).await.map_err(NetworkError::Cache)
    }
}

/// Whether a namespace is pinned at the path. One with a process id in it leads to whoever has that id now.
fn is_pinned(path: &Path) -> bool {
    path.is_absolute() && !path.starts_with("/proc") && is_namespace(path)
}
