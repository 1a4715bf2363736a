//! What a runtime can do, from `<runtime> features` (runtime-spec, features.md) and `--version`.

use serde::Deserialize;
use std::collections::BTreeMap;

/// What a runtime says of itself. Everything is false or empty for a runtime that has no `features` command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeFeatures {
    /// The first line of `--version`.
    pub version: String,
    /// The runtime answered `features`.
    pub told: bool,
    /// The range of `ociVersion`s in a bundle; empty when not told.
    pub oci_version_min: String,
    pub oci_version_max: String,
    /// Mounts can be read-only with everything below them.
    pub recursive_read_only: bool,
    pub idmapped_mounts: bool,
    pub cgroup_v1: bool,
    pub cgroup_v2: bool,
    pub systemd_cgroup: bool,
    pub seccomp: bool,
    /// It is known to have been built without seccomp: it says so, or is a youki whose version names no libseccomp.
    pub without_seccomp: bool,
    pub apparmor: bool,
    pub selinux: bool,
    /// Kinds of namespaces: `pid`, `user`, `time`, ….
    pub namespaces: Vec<String>,
    /// Annotations, exact or up to a prefix's last `.`, that make the runtime do what an image must not decide.
    pub potentially_unsafe_annotations: Vec<String>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Raw {
    oci_version_min: String,
    oci_version_max: String,
    mount_options: Vec<String>,
    linux: Linux,
    annotations: Option<BTreeMap<String, String>>,
    potentially_unsafe_config_annotations: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Linux {
    namespaces: Vec<String>,
    cgroup: Cgroup,
    // youki has `null` for what it does not tell.
    seccomp: Option<Enabled>,
    apparmor: Enabled,
    selinux: Enabled,
    mount_extensions: MountExtensions,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Cgroup {
    v1: bool,
    v2: bool,
    systemd: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Enabled {
    enabled: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct MountExtensions {
    idmap: Enabled,
}

/// Runtimes that do not tell, and are known from trying to put containers into a pod's user namespace: the name that
/// `--version` begins with, and the lowest version that was tried.
const KNOWN_WITH_USER_NAMESPACES: [(&str, [u32; 3]); 1] = [("crun", [1, 8, 1])];

/// `crun version 1.8.1` is crun of 1, 8, 1; what is missing is 0.
fn name_and_version(line: &str) -> Option<(&str, [u32; 3])> {
    let (name, rest) = line.split_once(" version ")?;
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    Some((name, [(); 3].map(|()| numbers.next().unwrap_or(0))))
}

impl RuntimeFeatures {
    /// Whether it puts containers into user namespaces. One that answers `features` says so; of the others, see
    /// `KNOWN_WITH_USER_NAMESPACES`. youki says so and fails: it opens the pod's other namespaces by their paths after it has
    /// joined the user namespace, for which the node's folders are closed (0.7.0, libcontainer, `unshare_or_setns`).
    #[must_use]
    pub fn user_namespaces(&self) -> bool {
        if self.version.starts_with("youki") {
            return false;
        }
        if self.told {
            return self.namespaces.iter().any(|kind| kind == "user");
        }
        let Some((name, version)) = name_and_version(&self.version) else { return false };
        KNOWN_WITH_USER_NAMESPACES.iter().any(|(known, lowest)| *known == name && version >= *lowest)
    }

    /// From what the two commands print. An answer to `features` that is not a JSON object counts as none.
    #[must_use]
    pub fn parse(version: &str, features: Option<&[u8]>) -> Self {
        let unfiltered_youki = version.starts_with("youki") && !version.contains("libseccomp:");
        let version = version.lines().next().unwrap_or_default().trim().chars().take(256).collect();
        // An array would pass for an object with its first fields set.
        let object = features.filter(|bytes| bytes.trim_ascii_start().starts_with(b"{"));
        let raw = object.and_then(|bytes| serde_json::from_slice::<Raw>(bytes).ok());
        let told = raw.is_some();
        let raw = raw.unwrap_or_default();
        Self {
            version,
            told,
            oci_version_min: raw.oci_version_min,
            oci_version_max: raw.oci_version_max,
            recursive_read_only: raw.mount_options.iter().any(|option| option == "rro"),
            idmapped_mounts: raw.linux.mount_extensions.idmap.enabled,
            cgroup_v1: raw.linux.cgroup.v1,
            cgroup_v2: raw.linux.cgroup.v2,
            systemd_cgroup: raw.linux.cgroup.systemd,
            seccomp: raw.linux.seccomp.as_ref().is_some_and(|seccomp| seccomp.enabled),
            without_seccomp: unfiltered_youki || raw.linux.seccomp.is_some_and(|seccomp| !seccomp.enabled),
            apparmor: raw.linux.apparmor.enabled,
            selinux: raw.linux.selinux.enabled,
            namespaces: raw.linux.namespaces,
            potentially_unsafe_annotations: raw.potentially_unsafe_config_annotations.unwrap_or_default(),
            annotations: raw.annotations.unwrap_or_default(),
        }
    }
}
