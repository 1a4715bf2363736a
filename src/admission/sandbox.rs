//! RunPodSandbox.

use std::net::IpAddr;

use cri_proto::runtime::v1 as cri;

use super::AdmissionError;
use super::field::{absolute_path, known, metadata, name, selinux_options};
use crate::sys::namespaces::validate_sysctls;

/// Most nameservers, search domains or options of one pod, and their bytes in all.
const MAX_DNS: usize = 128;
const MAX_DNS_SIZE: usize = 16 * 1024;
/// Most port mappings of one pod.
const MAX_PORTS: usize = 4096;

/// Whether a pod may be run as asked. Whether its handler exists is for the caller to say.
///
/// # Errors
/// [`AdmissionError`] for the first field that is not legal.
pub fn run_pod_sandbox(request: &cri::RunPodSandboxRequest) -> Result<(), AdmissionError> {
    let config = request.config.as_ref().ok_or_else(|| AdmissionError::missing("config"))?;
    let id = config.metadata.as_ref().ok_or_else(|| AdmissionError::missing("config.metadata"))?;
    name("config.metadata.name", &id.name)?;
    name("config.metadata.namespace", &id.namespace)?;
    name("config.metadata.uid", &id.uid)?;
    if !request.runtime_handler.is_empty() {
        name("runtime_handler", &request.runtime_handler)?;
    }
    hostname(&config.hostname)?;
    if !config.log_directory.is_empty() {
        absolute_path("config.log_directory", &config.log_directory)?;
    }
    if let Some(dns) = &config.dns_config {
        dns_lines("config.dns_config.servers", &dns.servers)?;
        dns_lines("config.dns_config.searches", &dns.searches)?;
        dns_lines("config.dns_config.options", &dns.options)?;
    }
    metadata("config.labels", &config.labels)?;
    metadata("config.annotations", &config.annotations)?;
    let linux = config.linux.as_ref();
    let security = linux.and_then(|linux| linux.security_context.as_ref());
    let host_network = security
        .and_then(|security| security.namespace_options.as_ref())
        .is_some_and(|options| options.network == cri::NamespaceMode::Node as i32);
    port_mappings(&config.port_mappings, host_network)?;
    if let Some(security) = security {
        security_context(security)?;
    }
    sysctls(config)?;
    cgroup_parent(linux.map_or("", |linux| &linux.cgroup_parent))
}

/// What `sethostname` and resolvers take: 64 bytes of letters, digits, dots, dashes and underscores.
fn hostname(text: &str) -> Result<(), AdmissionError> {
    let field = "config.hostname";
    if text.len() > 64 {
        return Err(AdmissionError::new(field, text, "longer than 64 bytes"));
    }
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    if !text.bytes().all(legal) || text.starts_with(['-', '.']) || text.ends_with(['-', '.']) {
        return Err(AdmissionError::new(field, text, "want letters, digits, `-`, `.` and `_`, not at its ends"));
    }
    Ok(())
}

/// Each entry becomes a word of resolv.conf, so it must be one.
fn dns_lines(field: &str, entries: &[String]) -> Result<(), AdmissionError> {
    let size: usize = entries.iter().map(String::len).sum();
    if entries.len() > MAX_DNS || size > MAX_DNS_SIZE {
        let reason = format!("{} entries of {size} bytes, the limit is {MAX_DNS} of {MAX_DNS_SIZE}", entries.len());
        return Err(AdmissionError::new(field, "", reason));
    }
    for (index, entry) in entries.iter().enumerate() {
        if entry.is_empty() || entry.contains(|c: char| c.is_whitespace() || c.is_control()) {
            let reason = "empty, or has a blank, a line break or a control character";
            return Err(AdmissionError::new(format!("{field}[{index}]"), entry, reason));
        }
    }
    Ok(())
}

/// `host_port = 0` is a port that is not mapped: it is only looked at. In the host's network, none is.
fn port_mappings(mappings: &[cri::PortMapping], host_network: bool) -> Result<(), AdmissionError> {
    if mappings.len() > MAX_PORTS {
        return Err(AdmissionError::new("config.port_mappings", mappings.len(), "more than 4096 mappings"));
    }
    let mut taken: Vec<(usize, i32, i32, Option<IpAddr>)> = Vec::new();
    for (index, mapping) in mappings.iter().enumerate() {
        let field = |part: &str| format!("config.port_mappings[{index}].{part}");
        known::<cri::Protocol>(&field("protocol"), mapping.protocol)?;
        if !(1..=65535).contains(&mapping.container_port) {
            return Err(AdmissionError::new(field("container_port"), mapping.container_port, "want 1 to 65535"));
        }
        if !(0..=65535).contains(&mapping.host_port) {
            return Err(AdmissionError::new(field("host_port"), mapping.host_port, "want 0 to 65535"));
        }
        let ip = match mapping.host_ip.as_str() {
            "" => None,
            text => match text.parse::<IpAddr>() {
                Ok(ip) => Some(ip),
                Err(_) => return Err(AdmissionError::new(field("host_ip"), text, "not an IP address")),
            },
        };
        if mapping.host_port == 0 || host_network {
            continue;
        }
        let clash = taken.iter().find(|(_, port, protocol, other)| {
            *port == mapping.host_port && *protocol == mapping.protocol && same_address(*other, ip)
        });
        if let Some((earlier, ..)) = clash {
            let reason = format!("port_mappings[{earlier}] has the same port, protocol and address");
            return Err(AdmissionError::new(field("host_port"), mapping.host_port, reason));
        }
        taken.push((index, mapping.host_port, mapping.protocol, ip));
    }
    Ok(())
}

/// No address is every address of both families.
fn same_address(a: Option<IpAddr>, b: Option<IpAddr>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => a == b,
        (None, Some(ip)) | (Some(ip), None) => ip.is_unspecified(),
    }
}

fn security_context(security: &cri::LinuxSandboxSecurityContext) -> Result<(), AdmissionError> {
    let field = "config.linux.security_context";
    if let Some(group) = &security.run_as_group
        && security.run_as_user.is_none()
    {
        let reason = "given without run_as_user";
        return Err(AdmissionError::new(format!("{field}.run_as_group"), group.value, reason));
    }
    selinux_options(&format!("{field}.selinux_options"), security.selinux_options.as_ref())?;
    match &security.namespace_options {
        Some(options) => namespace_options(&format!("{field}.namespace_options"), options),
        None => Ok(()),
    }
}

fn namespace_options(field: &str, options: &cri::NamespaceOption) -> Result<(), AdmissionError> {
    use cri::NamespaceMode::{Container, Node, Pod, Target};
    for (part, value, legal) in [
        ("network", options.network, &[Pod, Node][..]),
        ("ipc", options.ipc, &[Pod, Node][..]),
        ("pid", options.pid, &[Pod, Container, Node][..]),
    ] {
        let mode: cri::NamespaceMode = known(&format!("{field}.{part}"), value)?;
        if !legal.contains(&mode) {
            let reason = "a pod cannot have this mode";
            return Err(AdmissionError::new(format!("{field}.{part}"), mode.as_str_name(), reason));
        }
    }
    let Some(userns) = &options.userns_options else { return Ok(()) };
    let parent = field;
    let field = format!("{field}.userns_options");
    let mode: cri::NamespaceMode = known(&format!("{field}.mode"), userns.mode)?;
    match mode {
        Node => Ok(()),
        Container | Target => {
            Err(AdmissionError::new(format!("{field}.mode"), mode.as_str_name(), "a pod cannot have this mode"))
        }
        Pod => {
            id_mapping(&format!("{field}.uids"), &userns.uids)?;
            id_mapping(&format!("{field}.gids"), &userns.gids)?;
            own_namespaces(parent, options)
        }
    }
}

/// Of the host's namespaces a pod with a user namespace can use none: it has no power over them, and so gets no `/proc`,
/// `/sys` or message queues of them either.
fn own_namespaces(field: &str, options: &cri::NamespaceOption) -> Result<(), AdmissionError> {
    for (part, value) in [("network", options.network), ("ipc", options.ipc), ("pid", options.pid)] {
        if value == cri::NamespaceMode::Node as i32 {
            let reason = "a pod with a user namespace cannot have the host's";
            return Err(AdmissionError::new(format!("{field}.{part}"), "NODE", reason));
        }
    }
    Ok(())
}

/// Fewest ids of a pod's user namespace: an image may use all of a 16 bit number, with `nobody` near its end, and this is
/// what the kubelet gives.
const MIN_IDS: u32 = 65536;

/// Exactly one range, which begins with container id 0 and holds every id that images use; not the host's root.
fn id_mapping(field: &str, mappings: &[cri::IdMapping]) -> Result<(), AdmissionError> {
    let [mapping] = mappings else {
        return Err(AdmissionError::new(field, mappings.len(), "want exactly one mapping"));
    };
    let top = u64::from(mapping.host_id) + u64::from(mapping.length);
    let reason = if mapping.container_id != 0 {
        "must begin with container id 0"
    } else if mapping.length < MIN_IDS {
        "must have at least 65536 ids"
    } else if mapping.host_id == 0 {
        "must not give the pod the host's root"
    } else if top > u64::from(u32::MAX) {
        "must fit 32 bits"
    } else {
        return Ok(());
    };
    let value = format!("{}:{}:{}", mapping.container_id, mapping.host_id, mapping.length);
    Err(AdmissionError::new(format!("{field}[0]"), value, reason))
}

/// A cgroup parent: empty, an absolute path, or a bare slice name as systemd writes it. Which of the two the node's cgroup
/// driver takes is the business of `sys::cgroup`'s `Placement`, which checks it before anything is made.
///
/// # Errors
/// [`AdmissionError`] when it is none of them.
pub fn cgroup_parent(text: &str) -> Result<(), AdmissionError> {
    let is_slice = text.ends_with(".slice") && !text.contains('/');
    let rooted = if is_slice { format!("/{text}") } else { text.to_owned() };
    if text.is_empty() { Ok(()) } else { absolute_path("config.linux.cgroup_parent", &rooted) }
}

/// Only sysctls that a namespace of the pod owns (CVE-2022-0532, CVE-2022-0811); the rule is that of the room that writes
/// them.
fn sysctls(config: &cri::PodSandboxConfig) -> Result<(), AdmissionError> {
    let Some(linux) = &config.linux else { return Ok(()) };
    let options = linux.security_context.as_ref().and_then(|security| security.namespace_options.as_ref());
    let node = cri::NamespaceMode::Node as i32;
    let (host_network, host_ipc) = options.map_or((false, false), |o| (o.network == node, o.ipc == node));
    let sorted = linux.sysctls.clone().into_iter().collect();
    validate_sysctls(&sorted, host_network, host_ipc)
        .map_err(|error| AdmissionError::new(format!("config.linux.sysctls[{}]", error.key), error.value, error.reason))
}
