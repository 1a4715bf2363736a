//! Checks of single fields.

use std::collections::HashMap;
use std::path::{Component, Path};

use super::{AdmissionError, MAX_METADATA, MAX_PATH};

/// A part of an identity: it becomes a part of keys, log lines and perhaps file names, so it is one path component.
pub(super) fn name(field: &str, text: &str) -> Result<(), AdmissionError> {
    if text.is_empty() {
        return Err(AdmissionError::missing(field));
    }
    if text.len() > 253 {
        return Err(AdmissionError::new(field, text, "longer than 253 bytes"));
    }
    if text == "." || text == ".." || text.contains('/') || text.contains(char::is_control) {
        return Err(AdmissionError::new(field, text, "`.`, `..`, slashes and control characters are not allowed"));
    }
    Ok(())
}

/// An id or a reference: bounded, and printable.
pub(super) fn printable(field: &str, text: &str) -> Result<(), AdmissionError> {
    if text.is_empty() {
        return Err(AdmissionError::missing(field));
    }
    if text.len() > MAX_PATH || text.contains(char::is_control) {
        return Err(AdmissionError::new(field, text, "longer than 4096 bytes, or has a control character"));
    }
    Ok(())
}

/// An absolute path that says where it leads: without `..`.
pub(super) fn absolute_path(field: &str, text: &str) -> Result<(), AdmissionError> {
    if !text.starts_with('/') {
        return Err(AdmissionError::new(field, text, "not an absolute path"));
    }
    any_path(field, text)
}

/// A path below some directory: relative, without `..`.
pub(super) fn relative_path(field: &str, text: &str) -> Result<(), AdmissionError> {
    if text.starts_with('/') {
        return Err(AdmissionError::new(field, text, "must be relative"));
    }
    any_path(field, text)?;
    if Path::new(text).file_name().is_none() || text.ends_with('/') {
        return Err(AdmissionError::new(field, text, "does not name a file"));
    }
    Ok(())
}

fn any_path(field: &str, text: &str) -> Result<(), AdmissionError> {
    if text.len() > MAX_PATH {
        return Err(AdmissionError::new(field, text, "longer than 4096 bytes"));
    }
    if text.contains(char::is_control) {
        return Err(AdmissionError::new(field, text, "has a control character"));
    }
    if Path::new(text).components().any(|part| part == Component::ParentDir) {
        return Err(AdmissionError::new(field, text, "`..` is not allowed"));
    }
    if text.split('/').any(|part| part.len() > 255) {
        return Err(AdmissionError::new(field, text, "a part of it is longer than 255 bytes"));
    }
    Ok(())
}

/// Labels or annotations: kept byte for byte, so only their size matters.
pub(super) fn metadata(field: &str, map: &HashMap<String, String>) -> Result<(), AdmissionError> {
    if map.contains_key("") {
        return Err(AdmissionError::new(field, "", "a key is empty"));
    }
    let size: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > MAX_METADATA {
        let reason = format!("{size} bytes in all, the limit is {MAX_METADATA}");
        return Err(AdmissionError::new(field, "", reason));
    }
    Ok(())
}

/// Parts of an SELinux label: refused also where SELinux is off, so that a pod does not come to depend on the node.
pub(super) fn selinux_options(
    field: &str,
    options: Option<&cri_proto::runtime::v1::SeLinuxOption>,
) -> Result<(), AdmissionError> {
    let Some(options) = options else { return Ok(()) };
    crate::spec::check_selinux_options(options).map_err(|error| {
        AdmissionError::new(format!("{field}.{}", error.part), error.value, "SELinux has no such label")
    })
}

/// An enum of the contract.
pub(super) fn known<T: TryFrom<i32>>(field: &str, value: i32) -> Result<T, AdmissionError> {
    T::try_from(value).map_err(|_| AdmissionError::new(field, value, "unknown value"))
}
