//! The pod network that cricket makes by itself: a bridge, a pair of links for each pod, and two tables in nftables, by
//! netlink alone. No plugin and no other program has a part in it.
//!
//! ```text
//! attach ─▶ holdings (lease: number, addresses, MAC) ─▶ link (veth pair, inside) ─▶ bandwidth ─▶ tables (elements) ─▶ flows
//! Status ─▶ node (bridge, forwarding, overlaps)            monitor ─▶ tables (made anew when others change them)
//! ```
//!
//! Every lease is written down before anything of the pod is made, and names it all: links follow from the sandbox id,
//! elements from the addresses and the ports. All methods block.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Map, json};

use super::capability::{HostPort, Transport};
use super::{Attachment, INTERFACE, Interface};
use crate::config::subnet::Subnet;
use crate::sys::netlink::{Family, NetlinkError, Socket};
use crate::sys::netns::{enter_net, is_namespace};

pub use bandwidth::Limits;
pub use error::BuiltinError;
use holdings::{Holdings, link_name};
pub use lease::Lease;
use lease::Records;
use link::{BRIDGE, Inside, Links};
pub use reconcile::{Touched, listen};
use tables::Tables;

mod bandwidth;
mod error;
mod flows;
mod holdings;
mod lease;
mod link;
mod nft;
mod node;
mod obstacles;
mod pool;
mod reconcile;
mod rules;
mod sysctl;
mod tables;

/// The name of this network in a pod's record.
pub const NAME: &str = "builtin";
/// Where a pod's record keeps its lease, below the result.
const RECORD: &str = "cricket";

/// What the network is made with.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Until the kubelet hands over pod CIDRs.
    pub subnets: Vec<Subnet>,
    /// Where the pods of other nodes are: packets to them keep the pod's own address.
    pub cluster: Vec<Subnet>,
    /// The folder of the leases.
    pub dir: PathBuf,
}

/// A pod, as far as its links and elements are concerned.
#[derive(Debug, Clone)]
pub struct Pod {
    pub sandbox_id: String,
    /// Namespace and name.
    pub name: String,
    pub netns: PathBuf,
    pub ports: Vec<HostPort>,
    pub limits: Limits,
}

/// The network.
#[derive(Debug)]
pub struct Builtin {
    options: Options,
    /// `None` until the disk was read.
    holdings: Mutex<Option<Holdings>>,
    node: Mutex<node::Node>,
    tables: Mutex<Tables>,
    /// Pods that this process attached or took over.
    live: Mutex<HashMap<String, Pod>>,
    /// Pods that were released and whose links are not gone yet.
    going: Mutex<HashSet<String>>,
    reaping: Mutex<()>,
    /// Sockets for tracked connections that nobody uses now; as many as ever were used at the same time.
    sockets: Mutex<Vec<Socket>>,
    /// It was said that the kernel does not show its tracked connections.
    no_flows: AtomicBool,
    /// Chains of others that stand in the way, as found at the last look.
    obstacles: Mutex<Vec<String>>,
    #[cfg(test)]
    stop: tests::Stop,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Builtin {
    /// Does no I/O.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self {
            options,
            holdings: Mutex::default(),
            node: Mutex::default(),
            tables: Mutex::default(),
            live: Mutex::default(),
            going: Mutex::default(),
            reaping: Mutex::default(),
            sockets: Mutex::default(),
            no_flows: AtomicBool::new(false),
            obstacles: Mutex::default(),
            #[cfg(test)]
            stop: tests::Stop::default(),
        }
    }

    fn holdings<T>(&self, with: impl FnOnce(&mut Holdings) -> Result<T, BuiltinError>) -> Result<T, BuiltinError> {
        let mut guard = locked(&self.holdings);
        if guard.is_none() {
            let dir = self.options.dir.clone();
            *guard = Some(Holdings::load(Records::new(dir), &self.options.subnets)?);
        }
        with(guard.as_mut().expect("it was just read"))
    }

    /// The lease of a sandbox; that it has one says that its network is of this mode.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn lease(&self, sandbox_id: &str) -> Result<Option<Lease>, BuiltinError> {
        self.holdings(|holdings| Ok(holdings.lease(sandbox_id).cloned()))
    }

    /// Whether no pod holds anything; an unreadable disk counts as "one may".
    #[must_use]
    pub fn is_unused(&self) -> bool {
        self.holdings(|holdings| Ok(holdings.leases().next().is_none())).unwrap_or(false)
    }

    /// How many pods are on this network.
    #[must_use]
    pub fn pods(&self) -> usize {
        locked(&self.live).len()
    }

    /// Gives a pod its link, its addresses and its ports.
    ///
    /// # Errors
    /// When a step fails; everything is then taken back, unless the error is [`BuiltinError::Undo`].
    pub fn attach(&self, pod: &Pod) -> Result<Attachment, BuiltinError> {
        let node = self.prepared()?;
        let lease = self.take_lease(pod)?;
        locked(&self.live).insert(pod.sandbox_id.clone(), pod.clone());
        let wired = self.stopped().and_then(|()| self.wire(node, &lease, pod)).or_else(|failed| match failed {
            // Somebody removed the bridge since the last look, perhaps.
            BuiltinError::Netlink(_) if self.bridge_is_gone() => {
                let node = self.prepare()?;
                self.wire(node, &lease, pod)
            }
            failed => Err(failed),
        });
        match wired {
            Ok(()) => Ok(attachment(&lease, pod)),
            #[cfg(test)]
            Err(BuiltinError::Stopped) => Err(BuiltinError::Stopped),
            Err(failed) => match self.release(&pod.sandbox_id).and_then(|()| self.reap()) {
                Ok(()) => Err(failed),
                Err(undo) => {
                    let undo = crate::telemetry::chain(&undo).to_string();
                    Err(BuiltinError::Undo { failed: Box::new(failed), undo })
                }
            },
        }
    }

    /// Everything of a pod but its lease. Its elements come first: from the first frame on they say what the pod may send.
    fn wire(&self, node: node::Prepared, lease: &Lease, pod: &Pod) -> Result<(), BuiltinError> {
        locked(&self.tables).add(&pod.sandbox_id, rules::pod(lease, &pod.ports))?;
        self.stopped()?;
        self.plug(node, lease, pod)?;
        self.stopped()?;
        // Whoever sent to the port while nobody had it would go on to reach nobody.
        if pod.ports.iter().any(|port| port.transport == Transport::Udp) {
            self.flows(|socket| flows::cut_ports(socket, &pod.ports, &addresses(lease)))?;
        }
        Ok(())
    }

    /// Makes the pod's pair of links, and sets up both ends.
    fn plug(&self, node: node::Prepared, lease: &Lease, pod: &Pod) -> Result<(), BuiltinError> {
        let open = |source| BuiltinError::OpenNetns { path: pod.netns.display().to_string(), source };
        let netns = File::open(&pod.netns).map_err(open)?;
        let mut links = Links::open()?;
        let inside = Inside { netns: &netns, mac: lease.mac, mtu: node.mtu };
        if let Err(error) = links.make_pair(&lease.link, node.bridge, &inside) {
            if error.errno() != Some(rustix::io::Errno::EXIST) {
                return Err(error.into());
            }
            // What is left of an attempt that was cut off.
            links.remove(&lease.link)?;
            links.make_pair(&lease.link, node.bridge, &inside)?;
        }
        self.stopped()?;
        sysctl::port(&lease.link);
        // Before the inside: a link that comes up when its other end is has its link-local address at once.
        links.dress_port(&lease.link, &pod.name)?;
        self.stopped()?;
        enter_net(&pod.netns, || -> Result<(), BuiltinError> {
            sysctl::inside(lease.addresses.iter().any(|own| own.address.is_ipv6()))?;
            Ok(link::furnish_inside(&lease.addresses)?)
        })??;
        if pod.limits != Limits::default() {
            bandwidth::limit(&mut links, &lease.link, &queue_name(&lease.sandbox_id), pod.limits)?;
        }
        Ok(())
    }

    /// Takes a pod off the network: its ports close, and no frame of it goes anywhere. Its link, its tracked connections and its
    /// lease go with the next [`Self::reap`]. Fine when it has none.
    ///
    /// # Errors
    /// When a step fails; the lease is kept, and the call can be repeated.
    pub fn release(&self, sandbox_id: &str) -> Result<(), BuiltinError> {
        let Some(lease) = self.lease(sandbox_id)? else { return Ok(()) };
        if locked(&self.going).contains(sandbox_id) {
            return Ok(());
        }
        locked(&self.tables).close(sandbox_id)?;
        self.stopped()?;
        let mut links = Links::open()?;
        links.let_go(&lease.link)?;
        if locked(&self.live).get(sandbox_id).is_none_or(|pod| pod.limits.egress.is_some()) {
            links.let_go(&queue_name(sandbox_id))?;
        }
        self.stopped()?;
        locked(&self.live).remove(sandbox_id);
        locked(&self.going).insert(sandbox_id.to_owned());
        Ok(())
    }

    /// Removes the links of all pods that were released, cuts their connections, and gives their addresses back.
    ///
    /// # Errors
    /// When a step fails; the call can be repeated.
    pub fn reap(&self) -> Result<(), BuiltinError> {
        // One at a time: who comes second finds less to do.
        let _reaping = locked(&self.reaping);
        let going: Vec<String> = locked(&self.going).iter().cloned().collect();
        if going.is_empty() {
            return Ok(());
        }
        Links::open()?.remove_going()?;
        self.stopped()?;
        let held = self.holdings(|holdings| {
            let leases = going.iter().filter_map(|id| holdings.lease(id));
            Ok(leases.flat_map(addresses).collect())
        })?;
        self.flows(|socket| flows::cut_addresses(socket, &held))?;
        self.stopped()?;
        locked(&self.tables).forget(going.iter().map(String::as_str))?;
        for sandbox_id in going {
            self.stopped()?;
            self.holdings(|holdings| holdings.give_back(&sandbox_id))?;
            locked(&self.going).remove(&sandbox_id);
        }
        Ok(())
    }

    /// With a socket for tracked connections: one that is free, or a new one. Both calls at once and pods at once have their own.
    ///
    /// A kernel that does not show its tracked connections (`nf_conntrack_netlink` is a module of its own) is said so once; pods
    /// come and go there all the same, and only a connection without handshake may lead to nobody for its half minute.
    fn flows(&self, with: impl FnOnce(&mut Socket) -> Result<usize, NetlinkError>) -> Result<(), BuiltinError> {
        let free = locked(&self.sockets).pop();
        let mut socket = free.map_or_else(|| Socket::open(Family::Netfilter), Ok)?;
        match with(&mut socket) {
            Ok(_) => locked(&self.sockets).push(socket),
            // One that failed may have answers left in it, and is closed.
            Err(error) if flows::is_unsupported(&error) => {
                if !self.no_flows.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "the kernel does not show tracked connections: those of removed pods are not cut");
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// A lease for a new pod. Addresses of pods that are just going count as free.
    fn take_lease(&self, pod: &Pod) -> Result<Lease, BuiltinError> {
        let take = || self.holdings(|holdings| holdings.take(&pod.sandbox_id, &pod.name));
        match take() {
            Err(BuiltinError::UsedUp { .. }) if !locked(&self.going).is_empty() => {
                self.reap()?;
                take()
            }
            taken => taken,
        }
    }

    /// Takes the subnets that the kubelet hands over; true when they are others than before.
    ///
    /// # Errors
    /// When they are no good, or pods have addresses of the present ones; nothing is changed then.
    pub fn hand_over(&self, cidrs: &[String]) -> Result<bool, BuiltinError> {
        let mut subnets = crate::config::subnet::pod_subnets(cidrs).map_err(|wrong| BuiltinError::Subnet {
            what: "pod_cidr",
            text: wrong.text,
            why: wrong.why,
        })?;
        if subnets.iter().any(|subnet| subnet.is_ipv4()) && !sysctl::has_ipv6() {
            subnets.retain(|subnet| subnet.is_ipv4());
        }
        // Pods that are just going hold nothing for long.
        self.reap()?;
        let changed = self.holdings(|holdings| holdings.hand_over(subnets))?;
        if changed {
            locked(&self.node).forget();
        }
        Ok(changed)
    }

    #[cfg(test)]
    fn stopped(&self) -> Result<(), BuiltinError> {
        self.stop.step()
    }

    /// Where tests stop, as a crash would.
    #[cfg(not(test))]
    #[allow(clippy::unused_self, clippy::unnecessary_wraps)] // as the test's
    fn stopped(&self) -> Result<(), BuiltinError> {
        Ok(())
    }
}

fn addresses(lease: &Lease) -> Vec<IpAddr> {
    lease.addresses.iter().map(|address| address.address).collect()
}

fn queue_name(sandbox_id: &str) -> String {
    link_name("cq", sandbox_id)
}

/// What the pod's record keeps, in the form of a CNI result, and with the lease in it.
fn attachment(lease: &Lease, pod: &Pod) -> Attachment {
    let mac = lease.mac.map(|byte| format!("{byte:02x}")).join(":");
    let sandbox = pod.netns.display().to_string();
    let interface = |name: &str, mac: &str, sandbox: &str| Interface {
        name: name.to_owned(),
        mac: mac.to_owned(),
        sandbox: sandbox.to_owned(),
    };
    let interfaces =
        vec![interface(BRIDGE, "", ""), interface(&lease.link, "", ""), interface(INTERFACE, &mac, &sandbox)];
    let ips: Vec<_> = lease
        .addresses
        .iter()
        .map(|own| {
            let address = format!("{}/{}", own.address, own.subnet.prefix());
            json!({"address": address, "gateway": own.subnet.gateway(), "interface": 2})
        })
        .collect();
    let mut result = Map::new();
    result.insert("cniVersion".into(), json!("1.1.0"));
    result.insert("interfaces".into(), json!(interfaces));
    result.insert("ips".into(), json!(ips));
    result.insert(RECORD.into(), json!({ "lease": lease }));
    Attachment { network: NAME.to_owned(), ips: addresses(lease), interfaces, result: result.into() }
}

/// The lease that a pod's record holds; `None` when a CNI network made it.
#[must_use]
pub fn lease_of(attachment: &Attachment) -> Option<Lease> {
    let lease = attachment.result.get(RECORD)?.get("lease")?;
    serde_json::from_value(lease.clone()).ok()
}

/// Whether the namespace of a pod is still pinned.
fn is_pinned(netns: &Path) -> bool {
    is_namespace(netns)
}

#[cfg(test)]
pub(in crate::network) mod tests;
