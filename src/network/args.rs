//! Identifiers and `CNI_ARGS`: what a pod is called in front of a plugin, checked so that no name can become another
//! argument, a path, or a line of its own.

use super::PodAttachment;

/// The one interface that cricket asks plugins for.
pub const INTERFACE: &str = "eth0";

/// `CNI_ARGS` as pairs, in the order in which they are passed.
pub type Args = Vec<(String, String)>;

/// Something about the pod that cannot be handed to a plugin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?}: {reason}")]
pub struct ArgumentError {
    pub what: &'static str,
    pub value: String,
    pub reason: &'static str,
}

impl ArgumentError {
    pub(super) fn new(what: &'static str, value: &str, reason: &'static str) -> Self {
        Self { what, value: value.chars().take(256).collect(), reason }
    }
}

/// The arguments that Kubernetes plugins read to learn whose interface it is. `IgnoreUnknown` lets the others pass them by.
///
/// # Errors
/// When a value could be taken for more than one argument.
pub fn pod_args(pod: &PodAttachment) -> Result<Args, ArgumentError> {
    let named = [
        ("K8S_POD_NAMESPACE", "pod namespace", pod.pod_namespace.as_str()),
        ("K8S_POD_NAME", "pod name", pod.pod_name.as_str()),
        ("K8S_POD_INFRA_CONTAINER_ID", "sandbox id", pod.sandbox_id.as_str()),
        ("K8S_POD_UID", "pod uid", pod.pod_uid.as_str()),
    ];
    let mut args = vec![("IgnoreUnknown".to_owned(), "1".to_owned())];
    for (key, what, value) in named {
        if value.contains(|c: char| matches!(c, ';' | '=') || c.is_control()) {
            return Err(ArgumentError::new(what, value, "must not have ;, = or control characters"));
        }
        args.push((key.to_owned(), value.to_owned()));
    }
    Ok(args)
}

/// The pairs in the form of the environment variable.
#[must_use]
pub fn join(args: &[(String, String)]) -> String {
    let pairs: Vec<String> = args.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(";")
}

/// Network names and container ids: a letter or digit, then letters, digits, `_`, `.`, `-` (CNI specification). They become
/// parts of file names.
#[must_use]
pub fn is_identifier(text: &str) -> bool {
    text.len() <= 200
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// # Errors
/// When it is no identifier.
pub fn check_container_id(id: &str) -> Result<(), ArgumentError> {
    if is_identifier(id) {
        Ok(())
    } else {
        Err(ArgumentError::new(
            "sandbox id",
            id,
            "must be letters, digits, _ . and -, and start with one of the first two",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> PodAttachment {
        PodAttachment {
            sandbox_id: "abc".into(),
            pod_name: name.into(),
            pod_namespace: "default".into(),
            pod_uid: "u-1".into(),
            ..PodAttachment::default()
        }
    }

    #[test]
    fn args_name_the_pod() {
        assert_eq!(
            join(&pod_args(&pod("web")).unwrap()),
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u-1"
        );
    }

    #[test]
    fn no_name_becomes_a_second_argument() {
        for name in ["a;IP=10.0.0.1", "a=b", "a\nb", "a\0b", "\u{85}"] {
            assert!(pod_args(&pod(name)).is_err(), "{name:?} was taken");
        }
    }

    #[test]
    fn identifiers_are_safe_as_file_names() {
        for good in ["a", "0", "cbr0", "k8s.pod_network-1", &"a".repeat(200)] {
            assert!(is_identifier(good), "{good:?} was refused");
        }
        for bad in ["", ".", "..", ".a", "-a", "_a", "a/b", "../a", "a b", "a\n", "å", &"a".repeat(201)] {
            assert!(!is_identifier(bad), "{bad:?} was taken");
        }
    }
}
