//! Paths that the container may not see, or not write to.

use super::Asked;

/// RAPL's energy counters let a container listen to what others compute (GHSA-7ww5-4wqc-m92c). Older kubelets leave them
/// out of the list they send.
const POWERCAP: &str = "/sys/devices/virtual/powercap";

const MAX_PATHS: usize = 1024;

/// An entry that is no path.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("{field}[{index}] {path:?}: not an absolute path of at most 4096 bytes")]
    Illegal { field: &'static str, index: usize, path: String },
    #[error("{field}: {count} paths, the limit is {MAX_PATHS}")]
    TooMany { field: &'static str, count: usize },
}

type Paths = Option<Vec<String>>;

/// The request's two lists, applied as sent: an empty list masks nothing (this is how `procMount: Unmasked` arrives). To a
/// list that masks something, the energy counters are added. Privileged containers see everything.
pub(super) fn masked_and_readonly(asked: &Asked<'_>) -> Result<(Paths, Paths), PathError> {
    let mut masked = checked("masked_paths", &asked.security.masked_paths)?;
    let readonly = checked("readonly_paths", &asked.security.readonly_paths)?;
    if asked.privileged {
        return Ok((None, None));
    }
    if !masked.is_empty() && !masked.iter().any(|path| path == POWERCAP) {
        masked.push(POWERCAP.to_owned());
    }
    Ok((Some(masked).filter(|list| !list.is_empty()), Some(readonly).filter(|list| !list.is_empty())))
}

fn checked(field: &'static str, paths: &[String]) -> Result<Vec<String>, PathError> {
    if paths.len() > MAX_PATHS {
        return Err(PathError::TooMany { field, count: paths.len() });
    }
    for (index, path) in paths.iter().enumerate() {
        if !path.starts_with('/') || path.len() > 4096 || path.contains('\0') {
            return Err(PathError::Illegal { field, index, path: path.chars().take(256).collect() });
        }
    }
    Ok(paths.to_vec())
}
