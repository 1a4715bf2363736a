//! Which pod holds which port of the node, so that a conflict is said before any plugin runs.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use super::capability::{HostPort, Transport};

/// The host ports of live pods. A lookup walks the holders of one port number, which are few.
#[derive(Debug, Default)]
pub struct HostPorts {
    held: Mutex<HashMap<(Transport, u16), Vec<Holder>>>,
}

#[derive(Debug, Clone)]
struct Holder {
    address: Option<IpAddr>,
    sandbox_id: String,
    pod: String,
}

/// Two pods, or one pod twice, want the same port of the node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pod {pod}: host port {port}/{transport} on {address} is held by pod {owner}", transport = transport.as_str(), address = shown(*address))]
pub struct HostPortConflict {
    pub pod: String,
    pub transport: Transport,
    pub address: Option<IpAddr>,
    pub port: u16,
    pub owner: String,
}

fn shown(address: Option<IpAddr>) -> String {
    address.map_or_else(|| "every address".to_owned(), |address| address.to_string())
}

impl HostPorts {
    /// Takes all of a pod's ports or none. `pod` is the name that conflicts are told with.
    ///
    /// # Errors
    /// When another pod holds one of them, or the pod asks for one twice.
    pub fn claim(&self, sandbox_id: &str, pod: &str, ports: &[HostPort]) -> Result<(), HostPortConflict> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, port) in ports.iter().enumerate() {
            let conflict = |owner: &str| HostPortConflict {
                pod: pod.to_owned(),
                transport: port.transport,
                address: port.address,
                port: port.port,
                owner: owner.to_owned(),
            };
            let others = held.get(&(port.transport, port.port)).into_iter().flatten();
            if let Some(other) = others.into_iter().find(|other| overlap(other.address, port.address)) {
                return Err(conflict(&other.pod));
            }
            let same = |earlier: &&HostPort| {
                (earlier.transport, earlier.port) == (port.transport, port.port)
                    && overlap(earlier.address, port.address)
            };
            if ports[..index].iter().any(|earlier| same(&earlier)) {
                return Err(conflict(pod));
            }
        }
        for port in ports {
            let holder = Holder { address: port.address, sandbox_id: sandbox_id.to_owned(), pod: pod.to_owned() };
            held.entry((port.transport, port.port)).or_default().push(holder);
        }
        Ok(())
    }

    /// Notes what a pod of an earlier life of the daemon holds; it is a fact, so conflicts are not looked for.
    pub fn adopt(&self, sandbox_id: &str, pod: &str, ports: &[HostPort]) {
        self.release(sandbox_id);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        for port in ports {
            let holder = Holder { address: port.address, sandbox_id: sandbox_id.to_owned(), pod: pod.to_owned() };
            held.entry((port.transport, port.port)).or_default().push(holder);
        }
    }

    /// Gives a pod's ports back; fine when it holds none.
    pub fn release(&self, sandbox_id: &str) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|_, holders| {
            holders.retain(|holder| holder.sandbox_id != sandbox_id);
            !holders.is_empty()
        });
    }
}

/// Whether two listeners would meet. No address covers both families, `0.0.0.0` and `::` their own.
fn overlap(a: Option<IpAddr>, b: Option<IpAddr>) -> bool {
    match (a, b) {
        (None, _) | (_, None) => true,
        (Some(a), Some(b)) => a.is_ipv4() == b.is_ipv4() && (a == b || a.is_unspecified() || b.is_unspecified()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(transport: Transport, address: &str, port: u16) -> HostPort {
        HostPort { transport, address: address.parse().ok(), port, container_port: 1 }
    }

    #[test]
    fn conflicts() {
        use Transport::{Tcp, Udp};
        for (first, second, clash) in [
            ((Tcp, "", 80), (Tcp, "", 80), true),
            ((Tcp, "", 80), (Udp, "", 80), false),
            ((Tcp, "", 80), (Tcp, "", 81), false),
            ((Tcp, "", 80), (Tcp, "::1", 80), true),
            ((Tcp, "127.0.0.1", 80), (Tcp, "", 80), true),
            ((Tcp, "127.0.0.1", 80), (Tcp, "127.0.0.1", 80), true),
            ((Tcp, "127.0.0.1", 80), (Tcp, "127.0.0.2", 80), false),
            ((Tcp, "0.0.0.0", 80), (Tcp, "127.0.0.1", 80), true),
            ((Tcp, "0.0.0.0", 80), (Tcp, "::1", 80), false),
            ((Tcp, "0.0.0.0", 80), (Tcp, "::", 80), false),
            ((Tcp, "::", 80), (Tcp, "fd00::1", 80), true),
        ] {
            let ports = HostPorts::default();
            ports.claim("1", "a/one", &[port(first.0, first.1, first.2)]).unwrap();
            let second = [port(second.0, second.1, second.2)];
            assert_eq!(ports.claim("2", "a/two", &second).is_err(), clash, "{first:?} and {second:?}");
            ports.release("1");
            ports.release("2");
            ports.claim("3", "a/three", &second).unwrap();
        }
    }

    #[test]
    fn all_or_nothing_and_both_pods_are_named() {
        let ports = HostPorts::default();
        ports.claim("1", "a/one", &[port(Transport::Tcp, "", 80)]).unwrap();
        let wanted = [port(Transport::Tcp, "", 81), port(Transport::Tcp, "10.0.0.1", 80)];
        assert_eq!(
            ports.claim("2", "b/two", &wanted).unwrap_err().to_string(),
            "pod b/two: host port 80/tcp on 10.0.0.1 is held by pod a/one"
        );
        ports.claim("3", "c/three", &wanted[..1]).unwrap();
        let twice = [port(Transport::Udp, "", 5), port(Transport::Udp, "::1", 5)];
        assert_eq!(ports.claim("4", "d/four", &twice).unwrap_err().owner, "d/four");
    }

    #[test]
    fn what_a_restart_finds_is_taken_as_it_is() {
        let ports = HostPorts::default();
        ports.adopt("1", "a/one", &[port(Transport::Tcp, "", 80)]);
        ports.adopt("1", "a/one", &[port(Transport::Tcp, "", 80)]);
        assert!(ports.claim("2", "b/two", &[port(Transport::Tcp, "", 80)]).is_err());
        ports.release("1");
        ports.claim("2", "b/two", &[port(Transport::Tcp, "", 80)]).unwrap();
    }
}
