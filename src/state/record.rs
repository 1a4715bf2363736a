//! The records themselves. Fields are only ever added, each with a default, so that a newer daemon reads older records.

use std::path::PathBuf;

use cri_proto::runtime::v1::{ContainerConfig, LinuxContainerResources, LinuxContainerUser, PodSandboxConfig};
use serde::{Deserialize, Serialize};

use crate::storage::Digest;

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SandboxPhase {
    /// Its side effects are being made; a daemon that finds this at start undoes them.
    #[default]
    Creating,
    Ready,
    /// Stopped, or lost with a reboot.
    NotReady,
    /// Being removed; a daemon that finds this at start goes on removing.
    Removing,
}

/// A pod sandbox. Paths that follow from the id (bundle, namespaces, files) are not stored.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SandboxRecord {
    pub id: String,
    pub phase: SandboxPhase,
    /// The request's configuration, as sent.
    pub config: PodSandboxConfig,
    /// The handler as the request named it (empty: the default).
    pub handler: String,
    /// The handler that runs the pod's containers.
    pub resolved_handler: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Digest of configuration and handler: tells a retry from another request of the same name.
    pub config_hash: String,
    /// A CNI ADD was begun and no DEL has succeeded since.
    pub network_attached: bool,
    /// What CNI ADD answered, as the network room stores it.
    pub network: serde_json::Value,
    /// Addresses, the primary one first; empty after the stop.
    pub ips: Vec<String>,
    /// Parent of the containers' cgroups, as the runtime wants it.
    pub cgroup_parent: String,
    /// The parent did not exist before, so it goes with the pod.
    pub made_cgroup_parent: bool,
    /// The pod shares one pid namespace, whose pid 1 the keeper forked.
    pub has_init: bool,
    /// Hostname in effect.
    pub hostname: String,
    /// SELinux level of the pod's containers and files; empty where SELinux is off.
    pub selinux_level: String,
    /// What the sandbox itself costs and the sum of its containers, once they were changed (UpdatePodSandboxResources);
    /// until then the request's own.
    pub overhead: Option<LinuxContainerResources>,
    pub resources: Option<LinuxContainerResources>,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerPhase {
    /// Its side effects are being made; a daemon that finds this at start undoes them.
    #[default]
    Creating,
    Created,
    Running,
    Exited,
    /// Being removed; a daemon that finds this at start goes on removing.
    Removing,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Ending {
    pub exit_code: i32,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
    /// `Completed`, `Error`, `OOMKilled`, `StartError` or `Unknown`.
    pub reason: String,
    pub message: String,
}

/// An image whose content is mounted in a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageVolume {
    /// A digested reference of the image.
    pub image_ref: String,
    /// Chain ids of its layers, base first.
    pub chain: Vec<Digest>,
}

/// A container. Paths that follow from the id (bundle, rootfs) are not stored.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerRecord {
    pub id: String,
    pub sandbox_id: String,
    pub phase: ContainerPhase,
    /// The request's configuration, as sent.
    pub config: ContainerConfig,
    /// Digest of the configuration: tells a retry from another request of the same name.
    pub config_hash: String,
    /// The handler whose runtime has the container.
    pub handler: String,
    /// Config digest of the image.
    pub image_id: String,
    /// A digested reference of the image, `repo@sha256:…`.
    pub image_ref: String,
    /// Chain ids of the image's layers, base first.
    pub chain: Vec<Digest>,
    /// The image of each of the request's mounts that has one, in their order.
    pub volumes: Vec<ImageVolume>,
    /// Nanoseconds since the epoch; 0 while it has not happened.
    pub created_at: i64,
    pub started_at: i64,
    pub ending: Option<Ending>,
    /// The pod's folder of logs; `None` when the container has no log.
    pub log_dir: Option<PathBuf>,
    /// Uid, gid and groups of the first process.
    pub user: LinuxContainerUser,
    /// Number of the signal that stops it.
    pub stop_signal: i32,
    /// The container's cgroup, as the runtime was told.
    pub cgroups_path: String,
    /// It has no pid namespace of its own, so its processes must be killed through the cgroup.
    pub shares_pids: bool,
    /// Its limits, once they were changed (UpdateContainerResources); until then the request's own.
    pub resources: Option<LinuxContainerResources>,
}

impl SandboxRecord {
    /// What the sandbox itself costs (RuntimeClass overhead), as last told.
    #[must_use]
    pub fn overhead(&self) -> Option<&LinuxContainerResources> {
        self.overhead.as_ref().or_else(|| self.config.linux.as_ref()?.overhead.as_ref())
    }

    /// The sum of its containers, as last told.
    #[must_use]
    pub fn resources(&self) -> Option<&LinuxContainerResources> {
        self.resources.as_ref().or_else(|| self.config.linux.as_ref()?.resources.as_ref())
    }
}

impl ContainerRecord {
    /// The limits in force, in the words in which they were asked for: a value that the kernel rounds or the runtime
    /// converts is never read back.
    #[must_use]
    pub fn resources(&self) -> Option<&LinuxContainerResources> {
        self.resources.as_ref().or_else(|| self.config.linux.as_ref()?.resources.as_ref())
    }

    /// The layers that the container needs for as long as it exists: those of its image and of its volumes.
    #[must_use]
    pub fn layers(&self) -> Vec<Digest> {
        self.chain.iter().chain(self.volumes.iter().flat_map(|volume| &volume.chain)).cloned().collect()
    }

    /// Where the log is, for those who ask: the pod's folder and the request's relative path.
    #[must_use]
    pub fn log_path(&self) -> Option<PathBuf> {
        self.log_dir.as_ref().map(|dir| dir.join(&self.config.log_path))
    }
}
