//! What a runtime says of itself: `--version`, and `features` where it has that command.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::{RuntimeError, run};

/// The clock of each of the two questions.
const CLOCK: Duration = Duration::from_secs(10);

/// A runtime's abilities. What it does not say is taken as absent: a pod that asks for it is then refused instead of being
/// run without it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Features {
    /// The first line of `--version`.
    pub version: String,
    /// The runtime has a `features` command.
    pub told: bool,
    /// It knows the mount option `rro`.
    pub recursive_read_only: bool,
    /// It can give a mount user and group mappings of its own.
    pub idmapped_mounts: bool,
    /// Annotations that it says can break the isolation; never forwarded unless the handler's configuration names them.
    pub unsafe_annotations: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Answer {
    mount_options: Vec<String>,
    linux: LinuxAnswer,
    potentially_unsafe_config_annotations: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct LinuxAnswer {
    mount_extensions: MountExtensions,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct MountExtensions {
    idmap: Idmap,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Idmap {
    enabled: Option<bool>,
}

/// Asks a runtime's binary.
///
/// # Errors
/// [`RuntimeError::Probe`] when it cannot be run at all.
pub(super) async fn probe(path: &Path) -> Result<Features, RuntimeError> {
    let failed = |source| RuntimeError::Probe { path: path.to_owned(), source };
    let output = run(path, vec!["--version".into()], CLOCK).await.map_err(failed)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version: String = text.lines().next().unwrap_or("unknown version").chars().take(200).collect();
    // A runtime without the command fails, which is an answer.
    let answer = run(path, vec!["features".into()], CLOCK).await.ok().filter(|output| output.status.success());
    let answer = answer.and_then(|output| serde_json::from_slice(&output.stdout).ok());
    Ok(features(version, answer))
}

fn features(version: String, answer: Option<Answer>) -> Features {
    let Some(answer) = answer else { return Features { version, ..Features::default() } };
    Features {
        version,
        told: true,
        recursive_read_only: answer.mount_options.iter().any(|option| option == "rro"),
        idmapped_mounts: answer.linux.mount_extensions.idmap.enabled == Some(true),
        unsafe_annotations: answer.potentially_unsafe_config_annotations,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_absent() {
        let all = r#"{"ociVersionMin":"1.0.0","mountOptions":["ro","rro"],
            "linux":{"mountExtensions":{"idmap":{"enabled":true}}},
            "potentiallyUnsafeConfigAnnotations":["run.oci."]}"#;
        let found = features("x".into(), serde_json::from_str(all).ok());
        assert!(found.told && found.recursive_read_only && found.idmapped_mounts);
        assert_eq!(found.unsafe_annotations, ["run.oci."]);
        let nothing = features("x".into(), serde_json::from_str("{}").ok());
        assert!(nothing.told && !nothing.recursive_read_only && !nothing.idmapped_mounts);
        assert!(!features("x".into(), None).told);
    }
}
