//! The handlers of the configuration, with their runtimes found and probed.

use std::collections::BTreeMap;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config;
use crate::spec::HandlerPolicy;

use super::{OciRuntime, PATH, RuntimeError, features};

/// The runtimes that are looked for, in this order, where the configuration names none.
const KNOWN: [&str; 3] = ["crun", "runc", "youki"];

/// Every handler by its name, and the default one.
#[derive(Debug)]
pub struct Handlers {
    by_name: BTreeMap<String, Arc<OciRuntime>>,
    default: Arc<OciRuntime>,
}

impl Handlers {
    /// Finds and probes the runtimes. Those of [`KNOWN`] that are installed are handlers by their own name, besides what the
    /// configuration says.
    ///
    /// # Errors
    /// A configured runtime that is not there, a default that is no handler, or no runtime at all.
    pub async fn new(config: &config::Runtime, state: &Path, systemd_cgroup: bool) -> Result<Self, RuntimeError> {
        let mut wanted = config.handlers.clone();
        for name in KNOWN {
            if !wanted.contains_key(name) && find(Path::new(name)).is_some() {
                wanted.insert(name.to_owned(), config::Handler::default());
            }
        }
        let mut by_name = BTreeMap::new();
        for (name, handler) in wanted {
            let runtime = open(&name, &handler, state, systemd_cgroup).await?;
            by_name.insert(name, Arc::new(runtime));
        }
        let names = || by_name.keys().cloned().collect();
        let default = if config.default.is_empty() {
            let first = KNOWN.iter().find_map(|name| by_name.get(*name)).or_else(|| by_name.values().next());
            first.ok_or(RuntimeError::None { searched: PATH })?
        } else {
            let named = by_name.get(&config.default);
            named.ok_or_else(|| RuntimeError::UnknownDefault { name: config.default.clone(), known: names() })?
        };
        let default = default.clone();
        Ok(Self { by_name, default })
    }

    /// The handler of a request; empty means the default one.
    ///
    /// # Errors
    /// [`RuntimeError::UnknownHandler`] with the names that there are.
    pub fn lookup(&self, name: &str) -> Result<Arc<OciRuntime>, RuntimeError> {
        if name.is_empty() {
            return Ok(self.default.clone());
        }
        self.by_name.get(name).cloned().ok_or_else(|| RuntimeError::UnknownHandler {
            name: name.chars().take(256).collect(),
            known: self.by_name.keys().cloned().collect(),
        })
    }

    /// The handler of pods that name none.
    #[must_use]
    pub fn default_handler(&self) -> Arc<OciRuntime> {
        self.default.clone()
    }

    /// All of them, by name.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<OciRuntime>> {
        self.by_name.values().cloned().collect()
    }
}

async fn open(
    name: &str,
    handler: &config::Handler,
    state: &Path,
    systemd_cgroup: bool,
) -> Result<OciRuntime, RuntimeError> {
    if handler.kind == config::HandlerKind::Shim {
        return Err(RuntimeError::Shim { handler: name.to_owned() });
    }
    let wanted = if handler.path.as_os_str().is_empty() { Path::new(name) } else { &handler.path };
    let path = find(wanted).ok_or_else(|| RuntimeError::Missing {
        handler: name.to_owned(),
        path: wanted.to_owned(),
        searched: PATH,
    })?;
    let features = features::probe(&path).await?;
    let root = state.join("runtime").join(name);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&root)
        .map_err(|source| RuntimeError::Root { path: root.clone(), source })?;
    let policy = HandlerPolicy {
        allowed_annotations: handler.allowed_annotations.clone(),
        privileged_without_host_devices: handler.privileged_without_host_devices,
        recursive_read_only: features.recursive_read_only,
    };
    Ok(OciRuntime { handler: name.to_owned(), path, root, systemd_cgroup, policy, features })
}

/// An executable: an absolute path as it is, a name looked up in [`PATH`].
fn find(wanted: &Path) -> Option<PathBuf> {
    let executable = |path: &Path| {
        std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    if wanted.is_absolute() {
        return executable(wanted).then(|| wanted.to_owned());
    }
    PATH.split(':').map(|dir| Path::new(dir).join(wanted)).find(|path| executable(path))
}
