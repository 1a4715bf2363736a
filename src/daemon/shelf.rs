//! The folder for prepared mounts, and whether this node can give pods user namespaces.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::storage::Storage;
use crate::sys::namespaces::{self, IdRange, NamespaceRequest, Owners};

use super::DaemonError;

/// What the user namespace of the try is called, beside those of pods.
const TRIAL: &str = "trial";

/// The ids of the try: those that a kubelet gives to its first pod.
const TRIAL_IDS: IdRange = IdRange { host: 65536, length: 65536 };

/// Makes the shelf: a folder beside the state folder, named after it, that everyone may enter. All that it holds is an
/// empty `rootfs`, since runc goes to a container's root file system by its name before it runs a process in it.
pub(super) fn make(state: &Path) -> Result<PathBuf, DaemonError> {
    let mut name = state.file_name().unwrap_or_default().to_owned();
    name.push(".shelf");
    let path = state.with_file_name(name);
    let failed = |source| DaemonError::MakeDir { path: path.clone(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path.join("rootfs")).map_err(failed)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).map_err(failed)?;
    Ok(path)
}

/// Tries all that a pod with a user namespace needs of this node: the namespace, layers whose owners are mapped to it, and
/// a way to the shelf for those who are not root.
///
/// # Errors
/// What is lacking, in words for an operator.
pub(super) async fn user_namespaces(storage: &Storage, shelf: &Path, state: &Path) -> Result<(), String> {
    let tried = match way_to(shelf) {
        Ok(()) => try_mapping(storage, state).await,
        Err(lacking) => Err(lacking),
    };
    if let Err(lacking) = &tried {
        tracing::info!(lacking, "no pod of this node can have a user namespace");
    }
    tried
}

/// Whether everyone may walk to a folder.
fn way_to(path: &Path) -> Result<(), String> {
    for folder in path.ancestors() {
        let mode = std::fs::metadata(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        if mode.permissions().mode() & 0o001 == 0 {
            return Err(format!(
                "{} cannot be entered by others than its owner, and leads to {}",
                folder.display(),
                path.display()
            ));
        }
    }
    Ok(())
}

async fn try_mapping(storage: &Storage, state: &Path) -> Result<(), String> {
    let dir = state.join("ns").join(TRIAL);
    let none = BTreeMap::new();
    let request = NamespaceRequest { dir: &dir, net: false, ipc: false, uts: false, hostname: "", sysctls: &none };
    let say = |error: &dyn std::error::Error| crate::telemetry::chain(error);
    // One that a daemon was killed in the middle of.
    namespaces::remove(&dir).map_err(|error| say(&error))?;
    let owners = Owners { uids: TRIAL_IDS, gids: TRIAL_IDS };
    namespaces::create_owned(&request, owners).await.map_err(|error| say(&error))?;
    let storage = storage.clone();
    crate::task::blocking(move || {
        let path = dir.join("user");
        let tried = match std::fs::File::open(&path) {
            Ok(file) => storage.try_mapping(file.as_fd()).map_err(|error| say(&error)),
            Err(error) => Err(format!("{}: {error}", path.display())),
        };
        tried.and(namespaces::remove(&dir).map_err(|error| say(&error)))
    })
    .await
}
