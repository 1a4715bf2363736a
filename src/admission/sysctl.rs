//! A pod's sysctls: only those that a namespace of the pod owns.

use std::path::PathBuf;

use cri_proto::runtime::v1 as cri;

use super::AdmissionError;

/// One setting, ready to be written inside the pod's namespaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// The dotted name.
    pub name: String,
    /// The file, relative to `/proc/sys`; without `..`.
    pub path: PathBuf,
    pub value: String,
}

/// Owned by the IPC namespace.
const IPC: [&str; 9] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
    "kernel.msg_next_id",
];

/// The pod's sysctls in the order of their names. A setting that belongs to a namespace of the host is refused
/// (CVE-2022-0532), and so is a value with anything but what sysctls are made of (CVE-2022-0811).
///
/// # Errors
/// [`AdmissionError`], naming the sysctl.
pub fn sysctls(config: &cri::PodSandboxConfig) -> Result<Vec<Sysctl>, AdmissionError> {
    let Some(linux) = &config.linux else { return Ok(Vec::new()) };
    let options = linux.security_context.as_ref().and_then(|security| security.namespace_options.as_ref());
    let node = cri::NamespaceMode::Node as i32;
    let (host_network, host_ipc) = options.map_or((false, false), |o| (o.network == node, o.ipc == node));
    let mut list = Vec::new();
    for (key, value) in &linux.sysctls {
        let field = format!("config.linux.sysctls[{}]", key.chars().take(128).collect::<String>());
        let path = path(key).ok_or_else(|| AdmissionError::new(&field, key, "not the name of a sysctl"))?;
        let name = dotted(key);
        let ipc = IPC.contains(&name.as_str()) || name.starts_with("fs.mqueue.");
        let net = name.starts_with("net.");
        if !ipc && !net {
            return Err(AdmissionError::new(field, key, "no namespace of the pod owns it"));
        }
        if net && host_network {
            return Err(AdmissionError::new(field, key, "the pod is in the host's network namespace"));
        }
        if ipc && host_ipc {
            return Err(AdmissionError::new(field, key, "the pod is in the host's IPC namespace"));
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || " \t,.:_/-".contains(c);
        if value.is_empty() || value.len() > 4096 || !value.chars().all(legal) {
            return Err(AdmissionError::new(field, value, "not a value that a sysctl takes"));
        }
        list.push(Sysctl { name, path, value: value.clone() });
    }
    list.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(list)
}

/// `sysctl` knows two spellings: dots part the names, or slashes do, and then a dot is a dot (as in `eth0.100`). The first
/// of either decides.
fn path(key: &str) -> Option<PathBuf> {
    let slashes = key.find(['.', '/']).is_some_and(|place| key.as_bytes()[place] == b'/');
    let text = if slashes { key.to_owned() } else { key.chars().map(swap).collect() };
    let legal = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-@".contains(&b))
    };
    let parts: Vec<&str> = text.split('/').collect();
    (parts.len() >= 2 && key.len() <= 253 && parts.iter().all(|part| legal(part))).then(|| PathBuf::from(&text))
}

fn swap(c: char) -> char {
    match c {
        '.' => '/',
        '/' => '.',
        other => other,
    }
}

/// The name with dots, whichever way it was spelt.
fn dotted(key: &str) -> String {
    let slashes = key.find(['.', '/']).is_some_and(|place| key.as_bytes()[place] == b'/');
    if slashes { key.chars().map(swap).collect() } else { key.to_owned() }
}
