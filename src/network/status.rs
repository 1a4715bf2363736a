//! Whether pods can have a network: what the folder of configurations and the plugins say, published for reading without
//! waiting.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::conf::NetworkList;
use super::conf_dir::{self, Loaded};
use super::error::with_cause;
use super::plugin::PluginError;
use super::{Network, NetworkError, chain};
use crate::task;

/// The reason of a NetworkReady condition that is false.
const NOT_READY: &str = "NetworkPluginNotReady";

/// The NetworkReady condition of the CRI's Status.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkStatus {
    pub ready: bool,
    /// Empty when ready.
    pub reason: String,
    /// Which folder was looked at and what is wrong. When ready it is empty, or names what stands in the way of pods' packets.
    pub message: String,
    /// Configuration files that were skipped, with the reason. There may be some while the network is ready.
    pub invalid_files: Vec<(PathBuf, String)>,
    /// Rules of others that stand in the way of pods' packets; the network can be ready all the same.
    pub obstacles: Vec<String>,
}

/// What was found at the last look.
#[derive(Debug, Clone)]
pub(super) struct Current {
    /// The network of new pods. It is there although the status is "not ready" when plugins say that they are not.
    pub(super) list: Option<Arc<NetworkList>>,
    /// The file of the list.
    file: Option<PathBuf>,
    /// There is no configuration at all, not even a bad one.
    pub(super) absent: bool,
    pub(super) status: NetworkStatus,
}

impl Current {
    /// Before the first look.
    pub(super) fn unknown(dir: &Path) -> Self {
        let message = format!("the CNI configuration in {} has not been read yet", dir.display());
        Self { list: None, file: None, absent: false, status: not_ready(message, Vec::new()) }
    }

    fn of(dir: &Path, loaded: Loaded) -> Self {
        let Loaded { list, invalid, unreadable } = loaded;
        if let Some((file, list)) = list {
            // Whether it is ready is for its plugins to say.
            let status = NetworkStatus { invalid_files: invalid, ..NetworkStatus::default() };
            return Self { list: Some(Arc::new(list)), file: Some(file), absent: false, status };
        }
        let dir = dir.display();
        let missing = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
        let absent = invalid.is_empty() && unreadable.as_ref().is_none_or(missing);
        let message = match unreadable {
            Some(error) => format!("no CNI configuration: {dir} cannot be read: {error}"),
            None if invalid.is_empty() => format!("no CNI configuration: no .conflist, .conf or .json file in {dir}"),
            None => {
                let reasons: Vec<String> =
                    invalid.iter().map(|(path, reason)| format!("{}: {reason}", path.display())).collect();
                format!("no usable CNI configuration in {dir}: {}", reasons.join("; "))
            }
        };
        Self { list: None, file: None, absent, status: not_ready(message, invalid) }
    }
}

pub(super) fn not_ready(message: String, invalid_files: Vec<(PathBuf, String)>) -> NetworkStatus {
    NetworkStatus { ready: false, reason: NOT_READY.to_owned(), message, invalid_files, obstacles: Vec::new() }
}

impl Network {
    /// The published status: no I/O and no waiting. While it is "not ready" each call makes the watcher look again.
    #[must_use]
    pub fn status(&self) -> NetworkStatus {
        let status = self.current.load().status.clone();
        if !status.ready {
            self.poke.notify_one();
        }
        status
    }

    /// Reads the folder again, asks the plugins, and publishes what they say.
    pub async fn refresh_status(&self) {
        let _asking = self.asking.lock().await;
        let before = self.current.load().status.ready;
        let read = self.reload().await;
        if self.builtin_serves(&read) {
            let status = self.check_builtin().await;
            self.current.rcu(|now| Arc::new(Current { status: status.clone(), ..Current::clone(now) }));
        } else if let Some(list) = &read.list {
            let invalid_files = read.status.invalid_files.clone();
            let status = match chain::status(&self.status_plugins, list).await {
                Ok(()) => NetworkStatus { ready: true, invalid_files, ..NetworkStatus::default() },
                Err(error) => {
                    let file = read.file.as_deref().unwrap_or(&self.config.conf_dir);
                    let message = format!("network {:?} of {}: {}", list.name, file.display(), with_cause(&error));
                    not_ready(message, invalid_files)
                }
            };
            // A pod that was attached meanwhile may have found another list: the next look asks that one's plugins.
            self.current.rcu(|now| match &now.list {
                Some(current) if Arc::ptr_eq(current, list) => {
                    Arc::new(Current { status: status.clone(), ..Current::clone(now) })
                }
                _ => Arc::clone(now),
            });
        }
        self.announce(before);
    }

    fn announce(&self, before: bool) {
        let status = &self.current.load().status;
        match (before, status.ready) {
            (false, true) => tracing::info!("pod network is ready"),
            (true, false) => tracing::warn!(message = status.message, "pod network is not ready"),
            _ => {}
        }
    }

    /// The network of new pods; the folder is read again when there is none.
    pub(super) async fn list_or_reload(&self) -> Result<Arc<NetworkList>, NetworkError> {
        if let Some(list) = &self.current.load().list {
            return Ok(Arc::clone(list));
        }
        let read = self.reload().await;
        read.list.clone().ok_or_else(|| NetworkError::NotReady(read.status.message.clone()))
    }

    /// Reads the folder and publishes its network. What plugins said stays published until they are asked again.
    pub(super) async fn reload(&self) -> Arc<Current> {
        let _loading = self.loading.lock().await;
        let dir = self.config.conf_dir.clone();
        let mut loaded = task::blocking(move || conf_dir::load(&dir)).await;
        self.settle(&mut loaded).await;
        let mut read = Current::of(&self.config.conf_dir, loaded);
        if let Some(list) = &read.list {
            self.note_cni(list);
        }
        if read.list.is_some() || self.builtin_serves(&read) {
            let now = self.current.load();
            if read.list.is_some() && read.list == now.list {
                // The same one: whoever holds it must see that it did not change.
                read.list.clone_from(&now.list);
            }
            let invalid_files = std::mem::take(&mut read.status.invalid_files);
            read.status = NetworkStatus { invalid_files, ..now.status.clone() };
        }
        let read = Arc::new(read);
        self.current.store(Arc::clone(&read));
        read
    }

    /// What the folder says, with regard to what is in use and to what plugins speak.
    async fn settle(&self, loaded: &mut Loaded) {
        let now = self.current.load_full();
        loaded.keep(now.file.as_deref(), now.list.as_deref());
        for (file, reason) in &loaded.invalid {
            if !now.status.invalid_files.iter().any(|(known, why)| known == file && why == reason) {
                tracing::warn!(file = %file.display(), reason, "a CNI configuration is not used");
            }
        }
        let Some((file, list)) = loaded.list.take() else { return };
        if list.offered.len() == 1 {
            loaded.list = Some((file, list));
            return;
        }
        match chain::version(&self.status_plugins, &list).await {
            Ok(version) => loaded.list = Some((file, list.at(version))),
            Err(error @ PluginError::Versions { .. }) => loaded.invalid.push((file, error.to_string())),
            // One that hangs is for STATUS to say.
            Err(_) => loaded.list = Some((file, list)),
        }
    }
}
