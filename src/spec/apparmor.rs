//! Which AppArmor profile a container gets.

use cri::security_profile::ProfileType;
use cri_proto::runtime::v1 as cri;

use super::{Asked, SpecInput};
use crate::security::apparmor::DEFAULT_PROFILE;

/// Why a profile cannot be enforced.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppArmorError {
    #[error("apparmor.profile_type {value}: unknown")]
    Type { value: i32 },
    #[error("apparmor: Localhost needs the name of a profile, not {name:?}")]
    Name { name: String },
    #[error("apparmor_profile {value:?}: want runtime/default, unconfined or localhost/<name>")]
    Deprecated { value: String },
    #[error("apparmor profile {name:?}: AppArmor is not enabled on this node")]
    Disabled { name: String },
    #[error("apparmor profile {name:?}: not loaded on this node")]
    NotLoaded { name: String },
}

/// What a request says of AppArmor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppArmorRequest {
    /// Nothing: the default profile where there is one.
    Unset,
    RuntimeDefault,
    Unconfined,
    Localhost(String),
}

/// The `apparmor` field, else the deprecated `apparmor_profile`. A Localhost name may carry the old `localhost/` prefix.
///
/// # Errors
/// [`AppArmorError`] when the fields do not name a profile.
pub fn apparmor_request(security: &cri::LinuxContainerSecurityContext) -> Result<AppArmorRequest, AppArmorError> {
    if let Some(profile) = &security.apparmor {
        let kind = ProfileType::try_from(profile.profile_type)
            .map_err(|_| AppArmorError::Type { value: profile.profile_type })?;
        return match kind {
            ProfileType::RuntimeDefault => Ok(AppArmorRequest::RuntimeDefault),
            ProfileType::Unconfined => Ok(AppArmorRequest::Unconfined),
            ProfileType::Localhost => localhost(&profile.localhost_ref),
        };
    }
    #[allow(deprecated)] // the contract's old field, still sent by old clients
    let deprecated = security.apparmor_profile.as_str();
    match deprecated {
        "" => Ok(AppArmorRequest::Unset),
        "runtime/default" => Ok(AppArmorRequest::RuntimeDefault),
        "unconfined" => Ok(AppArmorRequest::Unconfined),
        other if other.starts_with("localhost/") => localhost(other),
        other => Err(AppArmorError::Deprecated { value: other.chars().take(256).collect() }),
    }
}

fn localhost(name: &str) -> Result<AppArmorRequest, AppArmorError> {
    let bare = name.strip_prefix("localhost/").unwrap_or(name);
    if bare.is_empty() || bare.len() > 4096 || bare.contains(|c: char| c.is_control()) {
        return Err(AppArmorError::Name { name: name.chars().take(256).collect() });
    }
    Ok(AppArmorRequest::Localhost(bare.to_owned()))
}

pub(super) fn profile(input: &SpecInput<'_>, asked: &Asked<'_>) -> Result<Option<String>, AppArmorError> {
    if asked.privileged {
        return Ok(None);
    }
    let request = apparmor_request(asked.security)?;
    let Some(state) = input.apparmor else {
        return match request {
            AppArmorRequest::Localhost(name) => Err(AppArmorError::Disabled { name }),
            _ => Ok(None),
        };
    };
    let (name, must) = match request {
        AppArmorRequest::Unset => (DEFAULT_PROFILE.to_owned(), false),
        AppArmorRequest::RuntimeDefault => (DEFAULT_PROFILE.to_owned(), true),
        // Said outright: left unset, the runtime's own confinement would be passed on.
        AppArmorRequest::Unconfined => return Ok(Some("unconfined".to_owned())),
        AppArmorRequest::Localhost(name) => (name, true),
    };
    match (state.loaded.contains(&name), must) {
        (true, _) => Ok(Some(name)),
        (false, false) => Ok(None),
        (false, true) => Err(AppArmorError::NotLoaded { name }),
    }
}
