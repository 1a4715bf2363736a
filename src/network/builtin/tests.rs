//! The builtin network in a network namespace of the test's own, which is made for it: needs root.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use nix::sched::CloneFlags;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, Protocol, SocketType};

use super::*;

mod frames;
mod guarding;
mod limits;
mod sctp;

use crate::sys::namespaces::{self, NamespaceRequest};
use crate::sys::netlink::Message;

/// Stops the work after so many steps, as a crash would.
#[derive(Debug)]
pub struct Stop(AtomicI64);

impl Default for Stop {
    fn default() -> Self {
        Self(AtomicI64::new(i64::MAX))
    }
}

impl Stop {
    pub(super) fn step(&self) -> Result<(), BuiltinError> {
        if self.0.fetch_sub(1, Ordering::AcqRel) > 0 { Ok(()) } else { Err(BuiltinError::Stopped) }
    }

    fn after(&self, steps: i64) {
        self.0.store(steps, Ordering::Release);
    }
}

/// Runs a test on a thread that is a host of its own. Everything that it starts, processes and threads, is inside too.
pub(in crate::network) fn on_own_host(work: impl FnOnce(&Host) + Send) {
    std::thread::scope(|scope| {
        let inside = || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
            let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private).unwrap();
            work(&Host { dir: tempfile::tempdir().unwrap() });
        };
        scope.spawn(inside).join().unwrap();
    });
}

pub(in crate::network) struct Host {
    pub(in crate::network) dir: tempfile::TempDir,
}

/// How much stands because of pods.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::network) struct Standing {
    pub leases: usize,
    /// But for the bridge.
    pub links: usize,
    /// Elements of these sets.
    pub elements: BTreeMap<&'static str, usize>,
}

impl Standing {
    /// What so many pods cost that have one host port each, and both families.
    pub(in crate::network) fn of(pods: usize) -> Self {
        let each = [("ports4", 1), ("ports6", 1), ("links", 1), ("macs", 1), ("own4", 1), ("own6", 2)];
        Self { leases: pods, links: pods, elements: each.map(|(set, count)| (set, count * pods)).into() }
    }
}

impl Builtin {
    /// What the kernel has in this network namespace, and what is on the disk.
    pub(in crate::network) fn standing(&self) -> Standing {
        let sets = Standing::of(0).elements.into_keys();
        Standing {
            leases: std::fs::read_dir(self.options.dir.join("leases")).map_or(0, Iterator::count),
            links: own_links().len(),
            elements: sets.map(|set| (set, count(self, set))).collect(),
        }
    }
}

/// The links of ours but the bridge.
fn own_links() -> Vec<String> {
    let links = Links::open().unwrap().all().unwrap();
    let ours = |link: &link::Link| [link::GROUP, link::GOING].contains(&link.group);
    let mut names: Vec<_> =
        links.into_iter().filter(|link| ours(link) && link.name != BRIDGE).map(|link| link.name).collect();
    names.sort();
    names
}

impl Host {
    fn options(&self) -> Options {
        let subnets = ["10.85.0.0/24", "fd00:85::/64"].map(|text| Subnet::for_pods(text).unwrap()).to_vec();
        Options { subnets, cluster: Vec::new(), dir: self.dir.path().join("network") }
    }

    fn network(&self) -> Builtin {
        Builtin::new(self.options())
    }

    fn pod(&self, id: &str, ports: &[u16]) -> Pod {
        self.pod_with(id, ports, &BTreeMap::new())
    }

    fn pod_with(&self, id: &str, ports: &[u16], sysctls: &BTreeMap<String, String>) -> Pod {
        let dir = self.dir.path().join("ns").join(id);
        if !dir.exists() {
            namespaces::create(&NamespaceRequest {
                dir: &dir,
                net: true,
                ipc: false,
                uts: false,
                hostname: "",
                sysctls,
            })
            .unwrap();
        }
        let port = |port: &u16| HostPort { transport: Transport::Tcp, address: None, port: *port, container_port: 80 };
        Pod {
            sandbox_id: id.to_owned(),
            name: format!("default/{id}"),
            netns: dir.join("net"),
            ports: ports.iter().map(port).collect(),
            limits: Limits::default(),
        }
    }

    fn remove(&self, id: &str) {
        namespaces::remove(&self.dir.path().join("ns").join(id)).unwrap();
    }

    fn leases(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path().join("network/leases")).into_iter().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// A link of somebody else, which leads to 10.0.0.0/8.
fn uplink(links: &mut Links) {
    let (ifname, linkinfo, kind, create) = (3, 18, 1, 0x400);
    let message =
        Message::new(16, create, &[0; 16]).string(ifname, "uplink").nest(linkinfo, |info| info.string(kind, "ifb"));
    Socket::open(Family::Route).unwrap().request("uplink", message).unwrap();
    let uplink = links.find("uplink").unwrap().unwrap().index;
    links.add_address(uplink, "10.0.0.9".parse().unwrap(), Subnet::for_pods("10.0.0.0/8").unwrap()).unwrap();
    links.set_up(uplink).unwrap();
}

impl Drop for Host {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(self.dir.path().join("ns")).into_iter().flatten().flatten() {
            let _ = namespaces::remove(&entry.path());
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_pod_comes_and_goes() {
    on_own_host(|host| {
        let network = host.network();
        network.check().unwrap();
        assert!(Links::open().unwrap().find(BRIDGE).unwrap().is_none(), "nothing is made before the first pod");
        let pod = host.pod("a", &[8080]);
        let attachment = network.attach(&pod).unwrap();
        assert_eq!(attachment.ips, ["10.85.0.2", "fd00:85::2"].map(|ip| ip.parse::<IpAddr>().unwrap()));
        assert_eq!(lease_of(&attachment), network.lease("a").unwrap());
        assert_eq!((host.leases(), own_links().len()), (vec!["a.json".to_owned()], 1));
        network.check().unwrap();
        network.release("a").unwrap();
        network.release("a").unwrap();
        network.reap().unwrap();
        assert_eq!((host.leases(), own_links()), (vec![], vec![]));
    });
}

/// A socket for whole packets of a protocol, in the network namespace of the calling thread.
fn raw_socket(family: AddressFamily, protocol: Protocol) -> OwnedFd {
    let socket = rustix::net::socket(family, SocketType::RAW, Some(protocol)).unwrap();
    // Not a bound that anything is measured by: what is waited for is on its way.
    set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_secs(60))).unwrap();
    socket
}

/// Elements of a set, counted by what `nft` would list.
fn count(network: &Builtin, set: &str) -> usize {
    locked(&network.tables).listed(set).unwrap()
}

#[test]
#[ignore = "needs root"]
fn what_others_remove_comes_back() {
    on_own_host(|host| {
        let network = host.network();
        network.attach(&host.pod("a", &[8080, 8081])).unwrap();
        network.attach(&host.pod("b", &[8082])).unwrap();
        assert_eq!(["ports4", "ports6", "links", "own4", "own6"].map(|set| count(&network, set)), [3, 3, 2, 2, 4]);
        // As "nft flush ruleset" does.
        let mut other = crate::sys::netlink::Socket::open(crate::sys::netlink::Family::Netfilter).unwrap();
        let flush = vec![nft::delete_table(nft::INET, rules::TABLE), nft::delete_table(nft::FRAMES, rules::TABLE)];
        other.transaction("flush", nft::transaction(flush)).unwrap();
        // A pod that comes before the repair puts all back too.
        network.attach(&host.pod("c", &[8083])).unwrap();
        assert_eq!(["ports4", "links"].map(|set| count(&network, set)), [4, 3]);
        let flush = vec![nft::delete_table(nft::INET, rules::TABLE), nft::delete_table(nft::FRAMES, rules::TABLE)];
        other.transaction("flush", nft::transaction(flush)).unwrap();
        network.repair().unwrap();
        assert_eq!(["ports4", "links"].map(|set| count(&network, set)), [4, 3]);
        // The bridge, and a pod's link.
        Links::open().unwrap().remove(BRIDGE).unwrap();
        network.attach(&host.pod("d", &[])).unwrap();
        Links::open().unwrap().remove(&network.lease("b").unwrap().unwrap().link).unwrap();
        network.reconcile().unwrap();
        assert_eq!(own_links().len(), 4);
        // The look at the node that a Status is made from puts pods on a new bridge.
        Links::open().unwrap().remove(BRIDGE).unwrap();
        network.check().unwrap();
        let bridge = Links::open().unwrap().find(BRIDGE).unwrap().unwrap();
        let ports = Links::open().unwrap().all().unwrap().into_iter().filter(|link| link.master == bridge.index);
        assert_eq!(ports.count(), 4, "each link is on the bridge again");
    });
}

#[test]
#[ignore = "needs root"]
fn a_restart_finds_its_pods() {
    on_own_host(|host| {
        let network = host.network();
        let (a, b) = (host.pod("a", &[8080]), host.pod("b", &[8081]));
        let made = network.attach(&a).unwrap();
        network.attach(&b).unwrap();
        drop(network);
        // The next life knows of one pod, whose lease is lost; the other one's is somebody's who is gone.
        std::fs::remove_file(host.dir.path().join("network/leases/a.json")).unwrap();
        let network = host.network();
        network.adopt(&a, lease_of(&made)).unwrap();
        network.reconcile().unwrap();
        assert_eq!((host.leases(), own_links().len()), (vec!["a.json".to_owned()], 1));
        assert_eq!(["ports4", "links"].map(|set| count(&network, set)), [1, 1]);
        network.release("a").unwrap();
        network.reap().unwrap();
        assert_eq!(["ports4", "links", "macs"].map(|set| count(&network, set)), [0, 0, 0]);
    });
}

#[test]
#[ignore = "needs root"]
fn what_stands_in_the_way_is_said() {
    on_own_host(|host| {
        let mut links = Links::open().unwrap();
        let pod = host.pod("a", &[]);
        let refused = |network: &Builtin, words: &[&str]| {
            for said in [network.check().unwrap_err(), network.attach(&pod).unwrap_err()] {
                assert!(said.left_nothing());
                assert!(words.iter().all(|word| said.to_string().contains(word)), "{said}");
            }
            assert_eq!((host.leases(), own_links()), (vec![], vec![]));
        };
        // A route of the host.
        uplink(&mut links);
        refused(&host.network(), &["10.85.0.0/24", "10.0.0.0/8", "uplink"]);
        // The kubelet's own part of the cluster's range may lie within a route.
        let network = host.network();
        network.hand_over(&["10.1.0.0/24".to_owned()]).unwrap();
        network.attach(&pod).unwrap();
        let error = network.hand_over(&["10.2.0.0/24".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("10.2.0.0/24") && error.contains("1 pods"), "{error}");
        assert!(network.hand_over(&["10.2.0.0".to_owned()]).is_err());
        network.release("a").unwrap();
        network.reap().unwrap();
        // A bridge of somebody else.
        links.remove("uplink").unwrap();
        links.remove(BRIDGE).unwrap();
        links.make_queue(BRIDGE).unwrap();
        refused(&host.network(), &[BRIDGE]);
        assert!(links.find(BRIDGE).unwrap().is_some(), "it is still there");
        // No more addresses.
        links.remove(BRIDGE).unwrap();
        let subnets = vec![Subnet::for_pods("10.85.0.0/30").unwrap()];
        let network = Builtin::new(Options { subnets, dir: host.dir.path().join("small"), ..host.options() });
        network.attach(&host.pod("b", &[])).unwrap();
        let error = network.attach(&pod).unwrap_err();
        assert!(error.left_nothing() && error.to_string().contains("1 are held by 1 pods"), "{error}");
        // One that is just going makes room.
        network.release("b").unwrap();
        network.attach(&pod).unwrap();
    });
}

/// What a crash at each step leaves is gone after the next start, and nothing else is.
#[test]
#[ignore = "needs root"]
fn a_crash_at_any_step_leaves_nothing() {
    on_own_host(|host| {
        let stays = host.pod("stays", &[9000]);
        let mut network = host.network();
        let made = network.attach(&stays).unwrap();
        for step in 1.. {
            let pod = host.pod("a", &[8080]);
            network.stop.after(step);
            let up = network.attach(&pod);
            let down = up.is_ok().then(|| network.release("a").and_then(|()| network.reap()));
            drop(network);
            network = host.network();
            network.adopt(&stays, lease_of(&made)).unwrap();
            network.reconcile().unwrap();
            assert_eq!((host.leases(), own_links().len()), (vec!["stays.json".to_owned()], 1), "step {step}");
            assert_eq!(["ports4", "links", "own6"].map(|set| count(&network, set)), [1, 1, 2], "step {step}");
            host.remove("a");
            if matches!(down, Some(Ok(()))) {
                assert!(step > 8, "the test stopped nothing");
                break;
            }
        }
    });
}

#[test]
#[ignore = "needs root: prints how long the steps take"]
fn how_long_it_takes() {
    on_own_host(|host| {
        let network = host.network();
        network.attach(&host.pod("first", &[])).unwrap();
        let pods: Vec<Pod> = (0..50).map(|n| host.pod(&format!("p{n}"), &[10_000 + n])).collect();
        let mut times = Vec::new();
        for pod in &pods {
            let start = std::time::Instant::now();
            network.attach(pod).unwrap();
            let up = start.elapsed();
            times.push((up, std::time::Duration::ZERO));
        }
        for (pod, time) in pods.iter().zip(&mut times) {
            let start = std::time::Instant::now();
            network.release(&pod.sandbox_id).unwrap();
            time.1 = start.elapsed();
        }
        let start = std::time::Instant::now();
        network.reap().unwrap();
        println!("reap {:?}", start.elapsed());
        let (mut up, mut down): (Vec<_>, Vec<_>) = times.into_iter().unzip();
        up.sort();
        down.sort();
        println!("up {:?} {:?} down {:?} {:?}", up[25], up[49], down[25], down[49]);
    });
}
