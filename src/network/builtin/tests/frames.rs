//! What a pod may not send, as the pod beside it hears it; and what is left for the node after a reboot.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, ipproto};

use super::*;

const ECHO: u8 = 128;
const ROUTER: u8 = 134;
const NEIGHBOUR: u8 = 136;
const REDIRECT: u8 = 137;
const REPORT: u8 = 143;

fn icmp(pod: &Pod) -> OwnedFd {
    enter_net(&pod.netns, || raw_socket(AddressFamily::INET6, ipproto::ICMPV6)).unwrap()
}

/// Sends messages from one pod to another, and an echo after them; gives what arrives before that. Since it is sent last, all that
/// was sent before it would have arrived.
fn exchange(from: &Pod, to: &Pod, target: Ipv6Addr, messages: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let (from, to) = (icmp(from), icmp(to));
    for message in messages.iter().chain([&about(ECHO, target)]) {
        rustix::net::sendto(&from, message, SendFlags::empty(), &SocketAddrV6::new(target, 0, 0, 0)).unwrap();
    }
    let receive = || {
        let mut buffer = [0; 1500];
        let (read, _) = rustix::net::recv(&to, &mut buffer[..], RecvFlags::empty()).unwrap();
        buffer[..read].to_vec()
    };
    std::iter::repeat_with(receive).take_while(|message| message[0] != ECHO).collect()
}

/// A message of ICMPv6 about an address, with room for what comes first in it.
fn about(kind: u8, address: Ipv6Addr) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0x60, 0, 0, 0][..], &address.octets(), &[0; 16]].concat()
}

/// CVE-2020-10749 and its like: no pod passes itself off as a router, or as the neighbour that another one is.
#[test]
#[ignore = "needs root"]
fn cve_2020_10749_a_pod_is_no_router_and_nobody_else() {
    on_own_host(|host| {
        let network = host.network();
        let (bad, good) = (host.pod("bad", &[]), host.pod("good", &[]));
        network.attach(&bad).unwrap();
        let IpAddr::V6(target) = network.attach(&good).unwrap().ips[1] else { panic!("no IPv6") };
        let own = network.lease("bad").unwrap().unwrap();
        let IpAddr::V6(own_address) = own.addresses[1].address else { panic!("no IPv6") };
        let gateway: Ipv6Addr = "fd00:85::1".parse().unwrap();
        let messages = [
            about(ROUTER, gateway),
            about(REDIRECT, gateway),
            about(NEIGHBOUR, gateway),
            about(NEIGHBOUR, target),
            about(NEIGHBOUR, own_address),
        ];
        let mut neighbours = Vec::new();
        for message in exchange(&bad, &good, target, &messages) {
            match (message[0], message.get(8..24)) {
                (ROUTER | REDIRECT, _) => panic!("a message of type {} came through", message[0]),
                (NEIGHBOUR, Some(address)) => neighbours.push(<[u8; 16]>::try_from(address).unwrap().into()),
                _ => {}
            }
        }
        // The kernel's own answer may be among them; it is about the same address.
        let local = rules::link_local(own.mac);
        let (known, others): (Vec<Ipv6Addr>, Vec<_>) =
            neighbours.into_iter().partition(|address| [own_address, local].contains(address));
        assert!(known.contains(&own_address) && others.is_empty(), "{known:?} {others:?}");
    });
}

/// A multicast listener report (RFC 3810, 5.2) of groups, of which the first names so many sources.
fn report(groups: &[&str], sources: u8) -> Vec<u8> {
    let mut message = vec![REPORT, 0, 0, 0, 0, 0, 0, u8::try_from(groups.len()).unwrap()];
    for (group, sources) in groups.iter().zip([sources, 0]) {
        message.extend([4, 0, 0, sources]);
        message.extend(group.parse::<Ipv6Addr>().unwrap().octets());
        message.extend(std::iter::repeat_n(0x20, 16 * usize::from(sources)));
    }
    message
}

/// Nobody hears of the groups by which a new pod's neighbours look for it, or each pod would cost the more the more there are.
/// Groups that reach beyond the link are heard of.
#[test]
#[ignore = "needs root"]
fn groups_of_the_link_are_nobodys_business() {
    on_own_host(|host| {
        let network = host.network();
        let (one, two) = (host.pod("one", &[]), host.pod("two", &[]));
        network.attach(&one).unwrap();
        let IpAddr::V6(target) = network.attach(&two).unwrap().ips[1] else { panic!("no IPv6") };
        let (near, far) = ("ff02::1:ff00:1", "ff05::1");
        let unheard = [report(&[near], 0), report(&[near, "ff02::6a"], 0)];
        let heard = [report(&[far], 0), report(&[near, far], 0), report(&[far, near], 0), report(&[near, near], 1)];
        let messages = [&unheard[..], &heard].concat();
        // Without the checksum, which the kernel puts in.
        let content = |message: &Vec<u8>| message[4..].to_vec();
        let arrived = exchange(&one, &two, target, &messages);
        let reports: Vec<_> = arrived.iter().filter(|message| message[0] == REPORT).map(content).collect();
        assert_eq!(reports, heard.each_ref().map(content));
        // The bridge's ends have no addresses that the kernel would look through.
        let with_address = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
        let own = own_links();
        assert_eq!(own.len(), 2);
        assert!(own.iter().all(|link| !with_address.contains(link.as_str())), "{with_address}");
        assert!(with_address.contains(BRIDGE), "{with_address}");
    });
}

/// Links and tables are gone after a reboot, leases are not: they go with the DEL that the daemon makes up for, or with
/// the pods that nobody knows any more. Their addresses are not the next ones that are given out.
#[test]
#[ignore = "needs root"]
fn a_reboot_leaves_nothing_for_ever() {
    on_own_host(|host| {
        let network = host.network();
        for (id, port) in [("a", 8080), ("b", 8081)] {
            network.attach(&host.pod(id, &[port])).unwrap();
            host.remove(id);
        }
        drop(network);
        nix::sched::unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let network = host.network();
        assert_eq!((host.leases().len(), own_links().len()), (2, 0));
        network.release("a").unwrap();
        network.reap().unwrap();
        assert_eq!(host.leases(), ["b.json"]);
        network.reconcile().unwrap();
        assert_eq!(network.standing(), Standing::of(0));
        let made = network.attach(&host.pod("a", &[8080])).unwrap();
        assert_eq!(made.ips[0].to_string(), "10.85.0.4");
        assert_eq!(network.standing(), Standing::of(1));
    });
}
