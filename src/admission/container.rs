//! CreateContainer.

use std::collections::HashMap;
use std::path::PathBuf;

use cri_proto::runtime::v1 as cri;

use crate::devices::cdi;
use crate::spec::mounts;

use super::field::{known, metadata, name, printable, relative_path, selinux_options};
use super::{AdmissionError, MAX_MOUNTS, MAX_PATH};

/// Whether a container may be made as asked, as far as the request alone tells.
///
/// # Errors
/// [`AdmissionError`] for the first field that is not legal.
pub fn create_container(request: &cri::CreateContainerRequest) -> Result<(), AdmissionError> {
    printable("pod_sandbox_id", &request.pod_sandbox_id)?;
    let config = request.config.as_ref().ok_or_else(|| AdmissionError::missing("config"))?;
    let id = config.metadata.as_ref().ok_or_else(|| AdmissionError::missing("config.metadata"))?;
    name("config.metadata.name", &id.name)?;
    let image = config.image.as_ref().ok_or_else(|| AdmissionError::missing("config.image"))?;
    printable("config.image.image", &image.image)?;
    if !config.log_path.is_empty() {
        relative_path("config.log_path", &config.log_path)?;
    }
    metadata("config.labels", &config.labels)?;
    metadata("config.annotations", &config.annotations)?;
    mounts(&config.mounts)?;
    if config.devices.len() > MAX_MOUNTS {
        return Err(AdmissionError::new("config.devices", config.devices.len(), "more than 4096 devices"));
    }
    cdi::requested(config.cdi_devices.iter().map(|device| device.name.as_str()), &config.annotations)
        .map_err(|error| AdmissionError::new(error.field, error.value, error.reason))?;
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let labels = security.and_then(|security| security.selinux_options.as_ref());
    selinux_options("config.linux.security_context.selinux_options", labels)?;
    match security.and_then(|security| security.namespace_options.as_ref()) {
        Some(options) => namespace_options(options),
        None => Ok(()),
    }
}

fn mounts(mounts: &[cri::Mount]) -> Result<(), AdmissionError> {
    if mounts.len() > MAX_MOUNTS {
        return Err(AdmissionError::new("config.mounts", mounts.len(), "more than 4096 mounts"));
    }
    let mut places: HashMap<PathBuf, usize> = HashMap::new();
    for (index, mount) in mounts.iter().enumerate() {
        let field = |part: &str| format!("config.mounts[{index}].{part}");
        host_or_container_path(&field("container_path"), &mount.container_path)?;
        let image = mount.image.as_ref().is_some_and(|image| !image.image.is_empty());
        match (image, mount.host_path.is_empty()) {
            (true, false) => {
                let reason = "must be empty for the mount of an image";
                return Err(AdmissionError::new(field("host_path"), &mount.host_path, reason));
            }
            (false, _) => host_or_container_path(&field("host_path"), &mount.host_path)?,
            (true, true) => {}
        }
        known::<cri::MountPropagation>(&field("propagation"), mount.propagation)?;
        if let Some(earlier) = places.insert(mounts::clean(&mount.container_path), index) {
            let reason = format!("mounts[{earlier}] has the same path");
            return Err(AdmissionError::new(field("container_path"), &mount.container_path, reason));
        }
    }
    Ok(())
}

fn host_or_container_path(field: &str, text: &str) -> Result<(), AdmissionError> {
    if text.is_empty() {
        return Err(AdmissionError::missing(field));
    }
    if !text.starts_with('/') || text.len() > MAX_PATH || text.contains('\0') {
        return Err(AdmissionError::new(field, text, "not an absolute path of at most 4096 bytes without NUL"));
    }
    Ok(())
}

fn namespace_options(options: &cri::NamespaceOption) -> Result<(), AdmissionError> {
    let field = "config.linux.security_context.namespace_options";
    for (part, value) in [("network", options.network), ("ipc", options.ipc)] {
        let mode: cri::NamespaceMode = known(&format!("{field}.{part}"), value)?;
        if !matches!(mode, cri::NamespaceMode::Pod | cri::NamespaceMode::Node) {
            let reason = "a container has its pod's, or the host's";
            return Err(AdmissionError::new(format!("{field}.{part}"), mode.as_str_name(), reason));
        }
    }
    let pid: cri::NamespaceMode = known(&format!("{field}.pid"), options.pid)?;
    if pid == cri::NamespaceMode::Target && options.target_id.is_empty() {
        return Err(AdmissionError::missing(format!("{field}.target_id")));
    }
    Ok(())
}
