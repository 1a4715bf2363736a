//! What a node does not allow, names that are too long, routes that come later, and bandwidth as the kernel counts it.

use std::net::UdpSocket;
use std::time::Instant;

use rustix::mount::{MountFlags, mount_bind, mount_remount};

use super::super::bandwidth::burst;
use super::*;
use crate::sys::netlink::{Message, find, text};

#[test]
#[ignore = "needs root"]
fn forwarding_that_cannot_be_set_is_said() {
    on_own_host(|host| {
        let pod = host.pod("a", &[8080]);
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        mount_bind("/proc/sys", "/proc/sys").unwrap();
        mount_remount("/proc/sys", MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
        let network = host.network();
        for refused in [network.check().unwrap_err(), network.attach(&pod).unwrap_err()] {
            assert!(refused.left_nothing());
            let said = crate::telemetry::chain(&refused).to_string();
            assert!(said.contains("net.ipv4.ip_forward cannot be set to 1: Read-only file system"), "{said}");
        }
        assert!(Links::open().unwrap().find(BRIDGE).unwrap().is_none());
        assert_eq!(network.standing(), Standing::of(0));
        // The node's owner has set everything: nothing needs to be written.
        rustix::mount::unmount("/proc/sys", rustix::mount::UnmountFlags::DETACH).unwrap();
        network.attach(&host.pod("first", &[8081])).unwrap();
        assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(), "1\n");
    });
}

/// A name of the longest kind that Kubernetes has, and one that is no ASCII, are longer than what the kernel keeps with a link.
#[test]
#[ignore = "needs root"]
fn a_pod_of_any_name_has_a_link() {
    on_own_host(|host| {
        let network = host.network();
        for (id, name) in
            [("a", format!("{}/{}", "n".repeat(63), "p".repeat(253))), ("b", "n/".to_owned() + &"ü".repeat(200))]
        {
            network.attach(&Pod { name, ..host.pod(id, &[]) }).unwrap();
        }
        assert_eq!(own_links().len(), 2);
    });
}

/// As a plugin would: `eth0` has the addresses that it was given, whatever the pod's settings say for other links.
#[test]
#[ignore = "needs root"]
fn a_pod_that_switched_ipv6_off_has_its_addresses() {
    on_own_host(|host| {
        let off = BTreeMap::from([("net.ipv6.conf.all.disable_ipv6".to_owned(), "1".to_owned())]);
        let network = host.network();
        let pod = host.pod_with("a", &[], &off);
        assert_eq!(network.attach(&pod).unwrap().ips.len(), 2);
        let inside = || {
            let mut links = Links::open().unwrap();
            let index = links.find(link::INSIDE).unwrap().unwrap().index;
            links.addresses(index).unwrap()
        };
        let addresses = enter_net(&pod.netns, inside).unwrap();
        assert_eq!(addresses.len(), 2, "{addresses:?}");
    });
}

/// Whoever is there keeps what they have, over a restart too; whoever comes is refused.
#[test]
#[ignore = "needs root"]
fn a_route_that_comes_later_keeps_only_new_pods_away() {
    on_own_host(|host| {
        let network = host.network();
        let pod = host.pod("a", &[8080]);
        let made = network.attach(&pod).unwrap();
        let mut links = Links::open().unwrap();
        uplink(&mut links);
        drop(network);
        let mut other = Socket::open(Family::Netfilter).unwrap();
        let flush = vec![nft::delete_table(nft::INET, rules::TABLE), nft::delete_table(nft::FRAMES, rules::TABLE)];
        other.transaction("flush", nft::transaction(flush)).unwrap();
        links.remove(&lease_of(&made).unwrap().link).unwrap();

        let network = host.network();
        network.adopt(&pod, lease_of(&made)).unwrap();
        let late = host.pod("late", &[8081]);
        for refused in [network.reconcile(), network.check(), network.attach(&late).map(drop)] {
            assert!(matches!(refused, Err(BuiltinError::Overlap { .. })), "{refused:?}");
            assert_eq!(network.standing(), Standing::of(1));
        }
        links.remove("uplink").unwrap();
        network.attach(&late).unwrap();
        assert_eq!(network.standing(), Standing::of(2));
    });
}

/// What a token bucket let through and what it dropped, as the kernel counts it.
#[derive(Debug)]
struct Counted {
    bytes: u64,
    drops: u32,
}

fn bucket(name: &str) -> Option<Counted> {
    const RTM_GETQDISC: u16 = 38;
    let (kind, stats, basic, queue) = (1, 7, 1, 3);
    let index = Links::open().unwrap().find(name).unwrap()?.index;
    let mut socket = Socket::open(Family::Route).unwrap();
    let found =
        socket.dump("queues", &Message::new(RTM_GETQDISC, 0, &[0; 20]), |found: &mut Vec<Counted>, _, payload| {
            let attributes = &payload[20..];
            if payload[4..8] != index.to_ne_bytes() || find(attributes, kind).map(text).as_deref() != Some("tbf") {
                return;
            }
            let stats = find(attributes, stats).unwrap();
            let (basic, queue) = (find(stats, basic).unwrap(), find(stats, queue).unwrap());
            found.push(Counted {
                bytes: u64::from_ne_bytes(basic[..8].try_into().unwrap()),
                drops: u32::from_ne_bytes(queue[8..12].try_into().unwrap()),
            });
        });
    found.unwrap().pop()
}

/// Sends until the queue drops what is too much, or for far more than it may let through.
fn flood(to: &str, dropped: impl Fn() -> bool) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    for _ in 0..100 {
        for _ in 0..100 {
            // The queue's refusal is one of the sender's socket.
            let _ = socket.send_to(&[0; 1000], (to, 9));
        }
        if dropped() {
            return;
        }
    }
}

/// What goes to a pod and what comes from it each have their own queue, which lets the rate through and no more, and goes with
/// the pod. The bound holds however slow this machine is: it grows with the time that has passed.
#[test]
#[ignore = "needs root"]
fn bandwidth_is_what_the_kernel_lets_through() {
    const BITS: u64 = 80_000;
    on_own_host(|host| {
        let network = host.network();
        let start = Instant::now();
        let limits = Limits { ingress: Some(BITS), egress: Some(BITS) };
        let pod = Pod { limits, ..host.pod("a", &[]) };
        network.attach(&pod).unwrap();
        network.attach(&Pod { limits: Limits::default(), ..host.pod("b", &[]) }).unwrap();
        let (link, queue) = (network.lease("a").unwrap().unwrap().link, queue_name("a"));
        let drops = |name: &str| bucket(name).is_some_and(|counted| counted.drops > 0);
        flood("10.85.0.2", || drops(&link));
        // The links of the host are not seen from inside.
        enter_net(&pod.netns, || flood("10.85.0.1", || false)).unwrap();
        for name in [&link, &queue] {
            let counted = bucket(name).unwrap();
            let most = burst(BITS / 8) + BITS / 8 * (start.elapsed().as_secs() + 1);
            assert!(
                counted.drops > 0 && counted.bytes > 0 && counted.bytes <= most,
                "{name}: {counted:?}, most {most}"
            );
        }
        assert!(bucket(&network.lease("b").unwrap().unwrap().link).is_none(), "a pod without limits has a queue");
        for id in ["a", "b"] {
            network.release(id).unwrap();
        }
        network.reap().unwrap();
        assert_eq!(network.standing(), Standing::of(0));
    });
}

/// Rates up to the largest that an annotation may ask for are taken by the kernel.
#[test]
#[ignore = "needs root"]
fn every_rate_is_taken() {
    on_own_host(|host| {
        let network = host.network();
        for bits in [1_000, 40_000_000_000, 1_000_000_000_000_000] {
            let limits = Limits { ingress: Some(bits), egress: Some(bits) };
            network.attach(&Pod { limits, ..host.pod("a", &[]) }).unwrap();
            assert_eq!(own_links().len(), 2);
            network.release("a").unwrap();
            network.reap().unwrap();
            host.remove("a");
        }
    });
}
