//! Which seccomp profile a container gets.

use std::path::{Path, PathBuf};

use cri::security_profile::ProfileType;
use cri_proto::runtime::v1 as cri;
use oci_spec::runtime::LinuxSeccomp;

use super::{Asked, SpecInput};
use crate::security::CapSet;
use crate::security::seccomp::{LocalhostError, default_profile, parse_localhost};

/// Why there is no profile. The container is then not made, never run unconfined (CVE-2023-2431).
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    #[error("seccomp.profile_type {value}: unknown")]
    Type { value: i32 },
    #[error("seccomp: Localhost needs the absolute path of a profile, not {path:?}")]
    Path { path: String },
    #[error("seccomp_profile_path {value:?}: want runtime/default, docker/default, unconfined or localhost/<path>")]
    Deprecated { value: String },
    #[error("seccomp profile {}: it was not read", path.display())]
    NotRead { path: PathBuf },
    #[error("seccomp: the kernel cannot filter system calls, so {wanted} cannot be kept")]
    Kernel { wanted: &'static str },
    #[error("seccomp: there is no RuntimeDefault profile for this machine")]
    Machine,
    #[error(transparent)]
    Localhost(#[from] LocalhostError),
}

enum Wanted {
    Unconfined,
    Default,
    Localhost(PathBuf),
}

/// The profile that a request's Localhost names, for the caller to read; `None` where no file is wanted.
///
/// # Errors
/// [`SeccompError`] when the request's seccomp fields do not name a profile.
pub fn seccomp_localhost_path(security: &cri::LinuxContainerSecurityContext) -> Result<Option<PathBuf>, SeccompError> {
    match wanted(security)? {
        Wanted::Localhost(path) => Ok(Some(path)),
        Wanted::Unconfined | Wanted::Default => Ok(None),
    }
}

/// The `seccomp` field, else the deprecated `seccomp_profile_path`, else unconfined. Privileged containers ignore both.
fn wanted(security: &cri::LinuxContainerSecurityContext) -> Result<Wanted, SeccompError> {
    if security.privileged {
        return Ok(Wanted::Unconfined);
    }
    if let Some(profile) = &security.seccomp {
        let kind = ProfileType::try_from(profile.profile_type)
            .map_err(|_| SeccompError::Type { value: profile.profile_type })?;
        return match kind {
            ProfileType::RuntimeDefault => Ok(Wanted::Default),
            ProfileType::Unconfined => Ok(Wanted::Unconfined),
            ProfileType::Localhost => localhost(&profile.localhost_ref),
        };
    }
    #[allow(deprecated)] // the contract's old field, still sent by old clients
    let deprecated = security.seccomp_profile_path.as_str();
    match deprecated {
        "" | "unconfined" => Ok(Wanted::Unconfined),
        "runtime/default" | "docker/default" => Ok(Wanted::Default),
        other => match other.strip_prefix("localhost/") {
            Some(path) => localhost(path),
            None => Err(SeccompError::Deprecated { value: other.chars().take(256).collect() }),
        },
    }
}

fn localhost(path: &str) -> Result<Wanted, SeccompError> {
    let legal = Path::new(path).is_absolute() && path.len() <= 4096 && !path.contains('\0');
    if legal {
        Ok(Wanted::Localhost(path.into()))
    } else {
        Err(SeccompError::Path { path: path.chars().take(256).collect() })
    }
}

pub(super) fn profile(
    input: &SpecInput<'_>,
    asked: &Asked<'_>,
    caps: CapSet,
) -> Result<Option<LinuxSeccomp>, SeccompError> {
    let kernel = &input.host.kernel;
    let possible = |wanted| if kernel.seccomp { Ok(()) } else { Err(SeccompError::Kernel { wanted }) };
    match wanted(asked.security)? {
        Wanted::Unconfined => Ok(None),
        Wanted::Default => {
            possible("RuntimeDefault")?;
            Ok(Some(default_profile(kernel.arch.ok_or(SeccompError::Machine)?, caps)))
        }
        Wanted::Localhost(path) => {
            possible("a Localhost profile")?;
            let json = input.seccomp_localhost.ok_or_else(|| SeccompError::NotRead { path: path.clone() })?;
            let arch = kernel.arch.ok_or(SeccompError::Machine)?;
            Ok(Some(parse_localhost(&path, json, arch, caps, kernel.kernel)?))
        }
    }
}
