//! SELinux labels of a container's process and files.

use cri_proto::runtime::v1 as cri;

use super::{Asked, SpecInput};
use crate::security::selinux::State;

/// Labels in the form user:role:type:level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Labels {
    pub process: String,
    pub mount: String,
}

/// A part of a label that SELinux could not have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("selinux_options.{part} {value:?}: not a legal SELinux {part}")]
pub struct SelinuxError {
    pub part: &'static str,
    /// At most 256 characters.
    pub value: String,
}

/// The labels; `None` where SELinux is off. The container's options go before its pod's, and what neither says is
/// `system_u:system_r:container_t` (`spc_t` when privileged) at the level that the pod was given. Without any options, a
/// container that shares the host's processes or IPC is `spc_t` too: confined, it could not reach what it shares.
pub(super) fn labels(input: &SpecInput<'_>, asked: &Asked<'_>) -> Result<Option<Labels>, SelinuxError> {
    let own = asked.security.selinux_options.as_ref();
    let pods = asked.sandbox_security.and_then(|pod| pod.selinux_options.as_ref());
    let pick = |part: fn(&cri::SeLinuxOption) -> &str| {
        own.map(part).filter(|text| !text.is_empty()).or_else(|| pods.map(part)).filter(|text| !text.is_empty())
    };
    let (user, role) = (pick(|o| &o.user), pick(|o| &o.role));
    let (kind, level) = (pick(|o| &o.r#type), pick(|o| &o.level));
    for options in own.into_iter().chain(pods) {
        check_selinux_options(options)?;
    }
    if input.host.kernel.selinux != State::On {
        return Ok(None);
    }
    let node = cri::NamespaceMode::Node as i32;
    let shares = asked.security.namespace_options.as_ref().is_some_and(|ns| ns.pid == node || ns.ipc == node);
    let super_privileged = asked.privileged || (shares && own.is_none() && pods.is_none());
    let kind = kind.unwrap_or(if super_privileged { "spc_t" } else { "container_t" });
    let level = level.or(input.selinux_level).unwrap_or("s0");
    Ok(Some(Labels {
        process: format!("{}:{}:{kind}:{level}", user.unwrap_or("system_u"), role.unwrap_or("system_r")),
        mount: file_label(level),
    }))
}

/// The label of files that a container of this level has of its own.
#[must_use]
pub fn file_label(level: &str) -> String {
    format!("system_u:object_r:container_file_t:{level}")
}

/// Whether SELinux could have a label with these parts; empty ones are not given.
///
/// # Errors
/// [`SelinuxError`] for the first part that it could not.
pub fn check_selinux_options(options: &cri::SeLinuxOption) -> Result<(), SelinuxError> {
    for (part, value, legal) in [
        ("user", &options.user, legal_name as fn(&str) -> bool),
        ("role", &options.role, legal_name),
        ("type", &options.r#type, legal_name),
        ("level", &options.level, legal_level),
    ] {
        if !value.is_empty() && !legal(value) {
            return Err(SelinuxError { part, value: value.chars().take(256).collect() });
        }
    }
    Ok(())
}

fn legal_name(text: &str) -> bool {
    text.len() <= 128 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-' || b == b'.')
}

/// `s0`, `s0:c1,c2`, `s0:c1.c5,c9`, `s0-s15:c0.c1023`
fn legal_level(text: &str) -> bool {
    let numbered = |text: &str, letter: char| {
        text.strip_prefix(letter)
            .is_some_and(|n| !n.is_empty() && n.len() <= 4 && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let one = |text: &str| match text.split_once(':') {
        None => numbered(text, 's'),
        Some((sensitivity, categories)) => {
            numbered(sensitivity, 's') && categories.split([',', '.']).all(|category| numbered(category, 'c'))
        }
    };
    text.len() <= 1024 && text.splitn(2, '-').all(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels() {
        for good in ["s0", "s0:c4,c5", "s0:c0.c1023", "s0-s15:c0.c1023", "s0:c1-s0:c1.c3,c7"] {
            assert!(legal_level(good), "{good}");
        }
        for bad in ["", "s", "s0,c4,c5", "c1", "s0:", "s0:c", "s0:d1", "s0:c1:c2", "s0 ", "s0\n", "s0:c1,,c2"] {
            assert!(!legal_level(bad), "{bad}");
        }
    }
}
