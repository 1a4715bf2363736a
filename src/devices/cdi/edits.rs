//! What a device changes in a container's spec: as its file says it, and with the host's device numbers filled in.

use std::path::PathBuf;

use crate::devices::{DeviceError, DeviceKind, DeviceNode, node_at};

/// Changes of one device, or of all devices of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Edits {
    /// `NAME=value`
    pub env: Vec<String>,
    pub nodes: Vec<Node>,
    pub mounts: Vec<Mount>,
    pub hooks: Vec<Hook>,
    /// Never 0.
    pub additional_gids: Vec<u32>,
    pub rdt: Option<Rdt>,
    /// What the file asks for and cricket cannot give: a device that needs it is refused, not given without it.
    pub unsupported: Vec<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub path: PathBuf,
    pub host_path: PathBuf,
    pub kind: Option<DeviceKind>,
    /// Never 0, which stands for "as on the host".
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub access: String,
}

/// All that the devices of one container change in its spec.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Injection {
    /// `NAME=value`; they replace variables of the same name.
    pub env: Vec<String>,
    pub nodes: Vec<InjectedNode>,
    /// They replace mounts at the same path.
    pub mounts: Vec<Mount>,
    pub hooks: Vec<Hook>,
    /// Never 0.
    pub additional_gids: Vec<u32>,
    pub rdt: Option<Rdt>,
}

/// A device node to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InjectedNode {
    pub path: PathBuf,
    pub kind: DeviceKind,
    pub major: u32,
    pub minor: u32,
    /// Unset: 0666, as every runtime has it.
    pub mode: Option<u32>,
    /// Unset: the container's user and group.
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// A subset of `rwm`; empty for no access.
    pub access: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub source: PathBuf,
    pub target: PathBuf,
    /// Empty for a bind mount.
    pub kind: String,
    pub options: Vec<String>,
}

/// A program that the runtime runs on the host, or in the container's namespaces, as root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    pub point: HookPoint,
    pub path: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<String>,
    /// Seconds.
    pub timeout: Option<i64>,
}

/// When a hook is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookPoint {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl HookPoint {
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "prestart" => Some(Self::Prestart),
            "createRuntime" => Some(Self::CreateRuntime),
            "createContainer" => Some(Self::CreateContainer),
            "startContainer" => Some(Self::StartContainer),
            "poststart" => Some(Self::Poststart),
            "poststop" => Some(Self::Poststop),
            _ => None,
        }
    }
}

/// Settings of resctrl, passed on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rdt {
    pub clos_id: Option<String>,
    pub l3_cache_schema: Option<String>,
    pub mem_bw_schema: Option<String>,
    pub enable_cmt: Option<bool>,
    pub enable_mbm: Option<bool>,
}

impl Injection {
    /// Adds a file's or a device's changes after those that are there.
    ///
    /// # Errors
    /// [`DeviceError`] when a node's numbers are to be the host's and the host has no such node.
    pub(super) fn add(&mut self, edits: &Edits) -> Result<(), DeviceError> {
        self.env.extend_from_slice(&edits.env);
        for node in &edits.nodes {
            let node = node.resolve()?;
            self.nodes.retain(|earlier| earlier.path != node.path);
            self.nodes.push(node);
        }
        for mount in &edits.mounts {
            self.mounts.retain(|earlier| earlier.target != mount.target);
            self.mounts.push(mount.clone());
        }
        self.hooks.extend_from_slice(&edits.hooks);
        for gid in &edits.additional_gids {
            if !self.additional_gids.contains(gid) {
                self.additional_gids.push(*gid);
            }
        }
        if edits.rdt.is_some() {
            self.rdt.clone_from(&edits.rdt);
        }
        Ok(())
    }
}

impl Node {
    /// What the file leaves open is as on the host.
    fn resolve(&self) -> Result<InjectedNode, DeviceError> {
        let (kind, major, minor) = match (self.kind, self.major) {
            (Some(DeviceKind::Fifo), _) => (DeviceKind::Fifo, 0, 0),
            (Some(kind), Some(major)) => (kind, major, self.minor.unwrap_or(0)),
            (kind, _) => {
                let found: DeviceNode = node_at(&self.host_path)?;
                if kind.is_some_and(|kind| kind != found.kind) {
                    return Err(DeviceError::Kind { path: self.host_path.clone() });
                }
                let minor = if self.major.is_some() { self.minor.unwrap_or(found.minor) } else { found.minor };
                (found.kind, self.major.unwrap_or(found.major), minor)
            }
        };
        Ok(InjectedNode {
            path: self.path.clone(),
            kind,
            major,
            minor,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            access: self.access.clone(),
        })
    }
}
