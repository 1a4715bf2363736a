//! The configuration: raw TOML to a validated, immutable [`Config`].
//!
//! `/etc/cricket/config.toml` is read first, then `conf.d/*.toml` beside it in the order of their names. A drop-in changes
//! the keys that it names; an array replaces the one before. What each key means is written once, in `config/keys.rs`,
//! from which the sample file, the check for unknown keys and the rules of reloading come.

mod keys;
mod load;
mod nearest;
mod reload;
mod sample;
pub mod subnet;
mod validate;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use keys::{KEYS, Key};
pub use load::{ConfigError, DEFAULT_PATH, Loaded};
pub use nearest::nearest_word;
pub use reload::{ReloadDiff, reload_diff};
pub use sample::default_toml;

/// Everything that an operator may set. Every key has a default; an unknown key is an error.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub server: Server,
    pub runtime: Runtime,
    pub cgroup: Cgroup,
    pub network: Network,
    pub image: Image,
    pub streaming: Streaming,
    pub log: Log,
}

/// `[server]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// The unix socket of the CRI.
    pub listen: PathBuf,
    /// Images and records: survives a reboot.
    pub root: PathBuf,
    /// Bundles, pinned namespaces, sockets: a tmpfs.
    pub state: PathBuf,
    /// Largest request taken, in bytes (16 MiB at least).
    pub max_request_size: u32,
}

/// `[runtime]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Runtime {
    /// Handler of pods that name none; empty: the first of crun, runc, youki found in PATH.
    pub default: String,
    /// Folders of CDI spec files, from the least to the most important.
    pub cdi_spec_dirs: Vec<PathBuf>,
    pub handlers: BTreeMap<String, Handler>,
}

/// `[runtime.handlers.<name>]`
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Handler {
    /// The runtime's binary, a path or a name looked up in PATH.
    pub path: PathBuf,
    #[serde(rename = "type")]
    pub kind: HandlerKind,
    /// Annotations (exact keys, or a prefix ending in `*`) that pods of this handler may hand to the runtime.
    pub allowed_annotations: Vec<String>,
    /// Privileged containers do not get the host's devices.
    pub privileged_without_host_devices: bool,
}

/// How a handler's runtime is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HandlerKind {
    #[default]
    Oci,
    Shim,
}

/// `[cgroup]`
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cgroup {
    pub driver: CgroupDriver,
    /// Parent of pods that name none, and of the keeper's own cgroup; empty: `/cricket`, or `cricket.slice` with systemd.
    pub parent: String,
}

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// systemd where systemd is pid 1, else cgroupfs.
    #[default]
    Auto,
    Systemd,
    Cgroupfs,
}

/// `[network]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    pub mode: NetworkMode,
    /// Of the builtin network, one of each family at most, until the kubelet hands over pod CIDRs.
    pub builtin_subnets: Vec<String>,
    /// Where the pods of other nodes are: what the builtin network's pods send there keeps their address.
    pub builtin_cluster_cidrs: Vec<String>,
    pub conf_dir: PathBuf,
    pub bin_dirs: Vec<PathBuf>,
    /// libcni's result cache: results are under `results/` in it.
    pub cache_dir: PathBuf,
    /// Clock of one plugin call, in seconds.
    pub plugin_timeout: u32,
}

impl Network {
    /// The builtin network's subnets, and those of the cluster.
    ///
    /// # Errors
    /// The key and the text that is no subnet.
    pub fn subnets(&self) -> Result<BuiltinSubnets, (&'static str, subnet::SubnetError)> {
        let own = subnet::pod_subnets(&self.builtin_subnets).map_err(|error| ("network.builtin_subnets", error))?;
        let cluster: Result<Vec<_>, _> = self.builtin_cluster_cidrs.iter().map(|text| text.parse()).collect();
        let cluster = cluster.map_err(|error| ("network.builtin_cluster_cidrs", error))?;
        Ok(BuiltinSubnets { own, cluster })
    }
}

/// What the builtin network's keys say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltinSubnets {
    /// Of this node's pods.
    pub own: Vec<subnet::Subnet>,
    /// Of other nodes' pods.
    pub cluster: Vec<subnet::Subnet>,
}

/// Who makes the pods' network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// CNI plugins where there is a configuration, else cricket.
    #[default]
    Auto,
    Cni,
    Builtin,
}

/// `[image]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Image {
    pub registries_conf: PathBuf,
    pub registries_conf_dir: PathBuf,
    pub certs_d: Vec<PathBuf>,
    pub auth_file: PathBuf,
    pub auth_dir: PathBuf,
    pub signature_policy: PathBuf,
    pub signature_policy_dir: PathBuf,
    /// A signature that names no repository may count.
    pub unnamed_signatures: bool,
    pub max_concurrent_downloads: u32,
    /// A download that moved no byte for this long is given up, in seconds.
    pub pull_progress_timeout: u32,
    /// Bytes per second that the download of a layer must reach over that long; 0: any speed will do.
    pub pull_min_rate: u32,
    /// Images (names, or globs with `*`) that the kubelet must not collect.
    pub pinned: Vec<String>,
}

/// `[streaming]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Streaming {
    /// Address and port of the server for exec, attach and port-forward.
    pub listen: String,
    /// Host in its URLs; empty: the address in `listen`.
    pub advertise: String,
    /// PEM files; empty: no TLS.
    pub tls_cert: PathBuf,
    pub tls_key: PathBuf,
    /// Clients must show a certificate of one of these authorities; empty: none is asked for.
    pub tls_client_ca: PathBuf,
    /// A session through which nothing goes for so long is ended, in seconds.
    pub idle_timeout: u32,
    /// How long a client may take to open the streams of a session, in seconds.
    pub creation_timeout: u32,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// error, warn, info, debug, trace, or a filter in tracing's form.
    pub level: String,
    pub format: LogFormat,
    /// Container log lines longer than this are split into partial lines, in bytes.
    pub max_line_size: u32,
}

/// The shape of the daemon's own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: "/run/cricket/cricket.sock".into(),
            root: "/var/lib/cricket".into(),
            state: "/run/cricket".into(),
            max_request_size: 16 * 1024 * 1024,
        }
    }
}

impl Default for Runtime {
    fn default() -> Self {
        Self {
            default: String::new(),
            cdi_spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            handlers: BTreeMap::new(),
        }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self {
            mode: NetworkMode::Auto,
            builtin_subnets: vec!["10.85.0.0/16".into(), "fd00:85::/64".into()],
            builtin_cluster_cidrs: Vec::new(),
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            cache_dir: "/var/lib/cni".into(),
            plugin_timeout: 60,
        }
    }
}

impl Default for Image {
    fn default() -> Self {
        Self {
            registries_conf: "/etc/containers/registries.conf".into(),
            registries_conf_dir: "/etc/containers/registries.conf.d".into(),
            certs_d: ["/etc/containers/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"]
                .map(Into::into)
                .to_vec(),
            auth_file: "/etc/containers/auth.json".into(),
            auth_dir: "/etc/cricket/auth".into(),
            signature_policy: "/etc/containers/policy.json".into(),
            signature_policy_dir: "/etc/cricket/policies".into(),
            unnamed_signatures: false,
            max_concurrent_downloads: 6,
            pull_progress_timeout: 60,
            pull_min_rate: 1024,
            pinned: Vec::new(),
        }
    }
}

impl Default for Streaming {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:0".into(),
            advertise: String::new(),
            tls_cert: PathBuf::new(),
            tls_key: PathBuf::new(),
            tls_client_ca: PathBuf::new(),
            idle_timeout: 14_400,
            creation_timeout: 30,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text, max_line_size: 16 * 1024 }
    }
}

#[cfg(test)]
mod tests;
