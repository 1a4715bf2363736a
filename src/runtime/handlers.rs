//! Which runtime a pod's handler is.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cli::{OciRuntime, RuntimeSetup};
use super::{PATH, advisories};
use crate::config::{HandlerKind, Runtime};

/// The runtimes that need no configuration, best first.
const KNOWN: [&str; 3] = ["crun", "runc", "youki"];

/// What every handler's runtime is run with.
#[derive(Debug, Clone)]
pub struct HandlersOptions {
    /// `[server] state`: runtimes keep their own state in `runtime/<handler>` below it.
    pub state: PathBuf,
    /// Cgroup paths are systemd's (`slice:prefix:name`).
    pub systemd_cgroup: bool,
}

/// Every handler.
#[derive(Debug, Clone)]
pub struct Handlers {
    default: String,
    by_name: BTreeMap<String, Arc<OciRuntime>>,
}

/// Why there is no such handler. `key` is the configuration's.
#[derive(Debug, thiserror::Error)]
pub enum HandlersError {
    #[error("{key}: {} is not an executable file{}", path.display(), searched(path))]
    Missing { key: String, path: PathBuf },
    #[error("{key}: runtimes of type \"shim\" are not supported")]
    Shim { key: String },
    #[error("{key}: {name:?} cannot be the name of a handler")]
    Name { key: String, name: String },
    #[error("runtime.default: {name:?} is neither a configured handler nor a runtime in {PATH}")]
    Default { name: String },
    #[error("no OCI runtime: none of crun, runc and youki is in {PATH}, and no handler is configured")]
    None,
    #[error("{}: cannot be made", path.display())]
    State { path: PathBuf, source: std::io::Error },
    #[error("unknown runtime handler {name:?}; there are {known}")]
    Unknown { name: String, known: String },
}

fn searched(path: &Path) -> String {
    if path.components().count() == 1 { format!(" in {PATH}") } else { String::new() }
}

/// The executable that a path, or a name in [`PATH`], leads to.
fn find(path: &Path) -> Option<PathBuf> {
    let runs = |path: &PathBuf| {
        std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if path.is_absolute() {
        return Some(path.to_owned()).filter(runs);
    }
    if path.components().count() != 1 {
        // Relative to nothing that an operator could mean.
        return None;
    }
    PATH.split(':').map(|dir| Path::new(dir).join(path)).find(runs)
}

/// A name that is safe as a directory's.
fn is_handler_name(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.len() <= 128 && name.chars().all(legal) && !name.starts_with('.')
}

impl Handlers {
    /// Resolves every configured handler, and crun, runc and youki under their own names where they are installed, and
    /// asks each for its features.
    ///
    /// # Errors
    /// Names the key of a configured handler that cannot be had; [`HandlersError::None`] when there is no runtime at all.
    pub async fn load(config: &Runtime, options: &HandlersOptions) -> Result<Self, HandlersError> {
        let mut binaries: BTreeMap<String, PathBuf> = BTreeMap::new();
        for (name, handler) in &config.handlers {
            let key = format!("runtime.handlers.{name}");
            if !is_handler_name(name) {
                return Err(HandlersError::Name { key, name: name.clone() });
            }
            if handler.kind == HandlerKind::Shim {
                return Err(HandlersError::Shim { key });
            }
            let path = if handler.path.as_os_str().is_empty() { Path::new(name) } else { &handler.path };
            let found =
                find(path).ok_or_else(|| HandlersError::Missing { key: key + ".path", path: path.to_owned() })?;
            binaries.insert(name.clone(), found);
        }
        for name in KNOWN {
            if let (false, Some(found)) = (binaries.contains_key(name), find(Path::new(name))) {
                binaries.insert(name.to_owned(), found);
            }
        }
        let default = default_of(&config.default, &binaries)?;
        let mut by_name = BTreeMap::new();
        for (name, program) in binaries {
            let root = options.state.join("runtime").join(&name);
            make_private(&root).map_err(|source| HandlersError::State { path: root.clone(), source })?;
            let setup = RuntimeSetup { handler: name.clone(), program, root, systemd_cgroup: options.systemd_cgroup };
            let runtime = OciRuntime::load(setup).await;
            warn_of_advisories(&runtime);
            by_name.insert(name, Arc::new(runtime));
        }
        Ok(Self { default, by_name })
    }

    /// The runtime of a handler; the default one for an empty name.
    ///
    /// # Errors
    /// [`HandlersError::Unknown`], with the names that there are.
    pub fn lookup(&self, name: &str) -> Result<Arc<OciRuntime>, HandlersError> {
        let name = if name.is_empty() { self.default.as_str() } else { name };
        self.by_name.get(name).map(Arc::clone).ok_or_else(|| HandlersError::Unknown {
            name: name.chars().take(128).collect(),
            known: self.by_name.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }

    /// The handler of pods that name none.
    #[must_use]
    pub fn default_name(&self) -> &str {
        &self.default
    }

    /// Every handler, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<OciRuntime>)> {
        self.by_name.iter().map(|(name, runtime)| (name.as_str(), runtime))
    }
}

fn warn_of_advisories(runtime: &OciRuntime) {
    let found = advisories::of(&runtime.features.version);
    if !found.is_empty() {
        let (path, version) = (runtime.program().display(), &runtime.features.version);
        let advisories = found.join(" ");
        tracing::warn!(%path, version, advisories, "a runtime is open to known advisories, {}", advisories::NOTE);
    }
}

fn default_of(configured: &str, binaries: &BTreeMap<String, PathBuf>) -> Result<String, HandlersError> {
    if !configured.is_empty() {
        let known = binaries.contains_key(configured);
        return if known { Ok(configured.into()) } else { Err(HandlersError::Default { name: configured.into() }) };
    }
    let known = KNOWN.iter().map(|name| (*name).to_owned()).find(|name| binaries.contains_key(name));
    known.or_else(|| binaries.keys().next().cloned()).ok_or(HandlersError::None)
}

fn make_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
