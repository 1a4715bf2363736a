//! Capability arguments: what a plugin that declares a capability is told about the pod in `runtimeConfig`
//! (the "CNI conventions" page names the keys).

use std::net::IpAddr;

use cri_proto::runtime::v1::{PortMapping, Protocol};
use serde_json::{Map, Value, json};

use super::args::ArgumentError;
use super::{PodAttachment, quantity};

/// Limits of a bandwidth annotation in bits per second, as the kubelet checks them.
const BANDWIDTH: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;
/// The bucket that goes with a rate, in bits. Kubernetes has no annotation for it; this is its "no limit".
const BURST: i32 = i32::MAX;

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";

/// A transport that a host port can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    Tcp,
    Udp,
    Sctp,
}

impl Transport {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// A host port that leads to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPort {
    pub transport: Transport,
    /// `None`: every address of the node, of both families.
    pub address: Option<IpAddr>,
    pub port: u16,
    pub container_port: u16,
}

/// The mappings that have a host port: the kubelet also sends those with 0, which only document a container's port.
///
/// # Errors
/// When a port, protocol or address is not legal.
pub fn host_ports(mappings: &[PortMapping]) -> Result<Vec<HostPort>, ArgumentError> {
    let mut ports = Vec::new();
    for mapping in mappings.iter().filter(|mapping| mapping.host_port != 0) {
        let transport = match Protocol::try_from(mapping.protocol) {
            Ok(Protocol::Tcp) => Transport::Tcp,
            Ok(Protocol::Udp) => Transport::Udp,
            Ok(Protocol::Sctp) => Transport::Sctp,
            Err(_) => {
                let value = mapping.protocol.to_string();
                return Err(ArgumentError::new("protocol of a port mapping", &value, "unknown"));
            }
        };
        let address = match mapping.host_ip.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| ArgumentError::new("host IP", text, "not an IP address"))?),
        };
        let port = port("host port", mapping.host_port)?;
        let container_port = self::port("container port", mapping.container_port)?;
        ports.push(HostPort { transport, address, port, container_port });
    }
    Ok(ports)
}

fn port(what: &'static str, number: i32) -> Result<u16, ArgumentError> {
    u16::try_from(number)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| ArgumentError::new(what, &number.to_string(), "want 1 to 65535"))
}

/// Everything that a plugin can be told about the pod, by capability; what is empty is left out.
///
/// # Errors
/// When a bandwidth annotation is no quantity from 1k to 1P.
pub fn runtime_config(pod: &PodAttachment, ports: &[HostPort]) -> Result<Map<String, Value>, ArgumentError> {
    let mut config = Map::new();
    if !ports.is_empty() {
        config.insert("portMappings".into(), ports.iter().map(port_mapping).collect());
    }
    if let Some(bandwidth) = bandwidth(pod)? {
        config.insert("bandwidth".into(), bandwidth);
    }
    let dns = &pod.dns;
    if !(dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty()) {
        config.insert("dns".into(), json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options}));
    }
    if !pod.annotations.is_empty() {
        config.insert("io.kubernetes.cri.pod-annotations".into(), json!(pod.annotations));
    }
    if !pod.cgroup_parent.is_empty() {
        config.insert("cgroupPath".into(), json!(pod.cgroup_parent));
    }
    Ok(config)
}

fn port_mapping(port: &HostPort) -> Value {
    json!({
        "hostPort": port.port,
        "containerPort": port.container_port,
        "protocol": port.transport.as_str(),
        "hostIP": port.address.map(|address| address.to_string()).unwrap_or_default(),
    })
}

fn bandwidth(pod: &PodAttachment) -> Result<Option<Value>, ArgumentError> {
    let mut limits = Map::new();
    let directions = [(INGRESS, "ingressRate", "ingressBurst"), (EGRESS, "egressRate", "egressBurst")];
    for (annotation, rate, burst) in directions {
        let Some(text) = pod.annotations.get(annotation) else { continue };
        let bits = quantity::parse(text)
            .filter(|bits| BANDWIDTH.contains(bits))
            .ok_or_else(|| ArgumentError::new(annotation, text, "want a quantity from 1k to 1P bits per second"))?;
        limits.insert(rate.into(), json!(bits));
        limits.insert(burst.into(), json!(BURST));
    }
    Ok((!limits.is_empty()).then_some(Value::Object(limits)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(protocol: i32, container_port: i32, host_port: i32, host_ip: &str) -> PortMapping {
        PortMapping { protocol, container_port, host_port, host_ip: host_ip.into() }
    }

    #[test]
    fn only_mappings_with_a_host_port_count() {
        let ports = host_ports(&[
            mapping(0, 80, 0, ""),
            mapping(0, 80, 8080, ""),
            mapping(1, 53, 53, "127.0.0.1"),
            mapping(2, 1, 65535, "::1"),
        ])
        .unwrap();
        let config = runtime_config(&PodAttachment::default(), &ports).unwrap();
        assert_eq!(
            Value::Object(config),
            json!({"portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""},
                {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"},
                {"hostPort": 65535, "containerPort": 1, "protocol": "sctp", "hostIP": "::1"},
            ]})
        );
    }

    #[test]
    fn mappings_that_are_not_legal() {
        for bad in [
            mapping(3, 80, 80, ""),
            mapping(0, 0, 80, ""),
            mapping(0, 80, -1, ""),
            mapping(0, 80, 65536, ""),
            mapping(0, 80, 80, "localhost"),
            mapping(0, 80, 80, "10.0.0.1/8"),
        ] {
            assert!(host_ports(std::slice::from_ref(&bad)).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn bandwidth_comes_from_annotations() {
        let with = |pairs: &[(&str, &str)]| PodAttachment {
            annotations: pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..PodAttachment::default()
        };
        let both = runtime_config(&with(&[(INGRESS, "1M"), (EGRESS, "2Ki")]), &[]).unwrap();
        assert_eq!(
            both["bandwidth"],
            json!({"ingressRate": 1_000_000, "ingressBurst": BURST, "egressRate": 2048, "egressBurst": BURST})
        );
        assert_eq!(both["io.kubernetes.cri.pod-annotations"][INGRESS], "1M");
        let one = runtime_config(&with(&[(EGRESS, "1k")]), &[]).unwrap();
        assert_eq!(one["bandwidth"], json!({"egressRate": 1000, "egressBurst": BURST}));
        assert!(runtime_config(&with(&[("other", "x")]), &[]).unwrap().get("bandwidth").is_none());
        for bad in ["", "fast", "999", "2P", "-1M"] {
            assert!(runtime_config(&with(&[(INGRESS, bad)]), &[]).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn an_empty_pod_has_nothing_to_say() {
        assert!(runtime_config(&PodAttachment::default(), &[]).unwrap().is_empty());
    }
}
