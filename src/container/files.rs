//! A container's files on the host: the bundle in the state folder, and their removal.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::runtime::OciRuntime;

use super::{ContainerError, Resources};

/// Makes the bundle's folder, mode 0700; one that is left from a cut-off removal is used again.
pub(super) fn make_bundle(bundle: &Path) -> Result<(), ContainerError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(bundle)
        .map_err(|source| ContainerError::Bundle { path: bundle.to_owned(), source })
}

/// Writes a file of the bundle, mode 0600.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)
}

/// Removes what the runtime, the storage and the bundle hold of a container. Each piece that is gone already is fine, so
/// that a removal which was cut off can be repeated.
pub(super) async fn take_away(
    resources: &Resources,
    id: &str,
    cgroups_path: &str,
    runtime: Option<&OciRuntime>,
) -> Result<(), ContainerError> {
    if let Some(runtime) = runtime {
        runtime.delete(id, true).await?;
    }
    // Runtimes remove what they made of it, most of the time. systemd drops its scopes by itself.
    if !resources.cgroups.is_systemd() && !cgroups_path.is_empty() {
        resources.cgroups.container(cgroups_path)?.remove().await?;
    }
    let (storage, bundle, id) = (resources.storage.clone(), resources.bundle(id), id.to_owned());
    crate::task::blocking(move || {
        storage.unmount_rootfs(&bundle.join("rootfs"))?;
        storage.remove_container(&id)?;
        match fs::remove_dir_all(&bundle) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(ContainerError::Bundle { path: bundle, source })
            }
            _ => Ok(()),
        }
    })
    .await
}
