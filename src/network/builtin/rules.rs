//! The rules of the pod network: a constant number of them, over sets and maps. A pod is elements, never a rule, so a packet
//! costs the same with one pod and with a thousand. Pure.
//!
//! ```text
//! inet cricket     guard        what comes through the bridge for 127.0.0.0/8 is dropped
//!                  inbound      host ports, of connections from elsewhere
//!                  local        host ports, of connections that the node makes
//!                  outbound     masquerading
//! bridge cricket   own          a frame of a pod has the pod's own addresses, or is dropped
//! ```
//!
//! The maps are looked at for the first packet of a connection only: chains of the type nat are called for no other.

use std::net::IpAddr;

use crate::network::capability::{HostPort, Transport};
use crate::sys::netlink::Message;

use super::lease::Lease;
use super::link::BRIDGE;
use super::nft::{self, Element, Expression as E, FRAMES, Hook, INET, IPV4, IPV6, Set};
use crate::config::subnet::{Subnet, merged};

/// The name of both tables.
pub const TABLE: &str = "cricket";

/// Room for the name of a link, with its zeroes (`IFNAMSIZ`).
const NAME: usize = 16;
/// Registers that a link's name takes.
const NAME_REGISTERS: u32 = 4;

/// Types of keys as `nft list` knows them; a concatenation has six bits for each part.
const T_IPV4: u32 = 7;
const T_IPV6: u32 = 8;
const T_ETHER: u32 = 9;
const T_PROTOCOL: u32 = 12;
const T_SERVICE: u32 = 13;
const T_IFNAME: u32 = 41;

const fn joined(a: u32, b: u32) -> u32 {
    (a << 6) | b
}

/// The sets of both tables.
const INET_SETS: [Set; 8] = [
    map("ports4", joined(T_PROTOCOL, T_SERVICE), 8, joined(T_IPV4, T_SERVICE), 8),
    map("ports6", joined(T_PROTOCOL, T_SERVICE), 8, joined(T_IPV6, T_SERVICE), 20),
    map("addresses4", joined(joined(T_IPV4, T_PROTOCOL), T_SERVICE), 12, joined(T_IPV4, T_SERVICE), 8),
    map("addresses6", joined(joined(T_IPV6, T_PROTOCOL), T_SERVICE), 24, joined(T_IPV6, T_SERVICE), 20),
    set("pods4", T_IPV4, 4, nft::SET_INTERVAL),
    set("pods6", T_IPV6, 16, nft::SET_INTERVAL),
    set("cluster4", T_IPV4, 4, nft::SET_INTERVAL),
    set("cluster6", T_IPV6, 16, nft::SET_INTERVAL),
];
const FRAME_SETS: [Set; 4] = [
    set("links", T_IFNAME, 16, 0),
    set("macs", joined(T_IFNAME, T_ETHER), 24, 0),
    set("own4", joined(T_IFNAME, T_IPV4), 20, 0),
    set("own6", joined(T_IFNAME, T_IPV6), 32, 0),
];

const fn set(name: &'static str, key_type: u32, key: u32, flags: u32) -> Set {
    Set { name, flags, key_type, key, data_type: 0, data: 0 }
}

const fn map(name: &'static str, key_type: u32, key: u32, data_type: u32, data: u32) -> Set {
    Set { name, flags: nft::SET_MAP, key_type, key, data_type, data }
}

/// An element, with the family and the name of its set.
pub type Placed = (u8, &'static str, Element);

/// Everything that stands in the tables because of one pod.
#[must_use]
pub fn pod(lease: &Lease, ports: &[HostPort]) -> Vec<Placed> {
    let link = link_name(&lease.link);
    let mut placed = vec![(FRAMES, "links", plain(link.to_vec())), (FRAMES, "macs", plain(key(&[&link, &lease.mac])))];
    let local = IpAddr::V6(link_local(lease.mac));
    for address in lease.addresses.iter().map(|address| address.address).chain([local]) {
        placed.push(match address {
            IpAddr::V4(four) => (FRAMES, "own4", plain(key(&[&link, &four.octets()]))),
            IpAddr::V6(six) => (FRAMES, "own6", plain(key(&[&link, &six.octets()]))),
        });
    }
    for port in ports {
        let families = lease.addresses.iter().map(|address| address.address);
        // A port on an address is of that address's family, one on every address of all that the pod has.
        placed.extend(
            families
                .filter(|own| port.address.is_none_or(|on| on.is_ipv4() == own.is_ipv4()))
                .map(|own| host_port(*port, own)),
        );
    }
    placed
}

/// Whether an element says that a link is a pod's.
#[must_use]
pub fn is_link(placed: &Placed) -> bool {
    (placed.0, placed.1) == (FRAMES, "links")
}

fn host_port(port: HostPort, pod: IpAddr) -> Placed {
    let transport = [protocol(port.transport)];
    let number = port.port.to_be_bytes();
    let target = port.container_port.to_be_bytes();
    let data = match pod {
        IpAddr::V4(four) => key(&[&four.octets(), &target]),
        IpAddr::V6(six) => key(&[&six.octets(), &target]),
    };
    let (set, key) = match (port.address.filter(|address| !address.is_unspecified()), pod) {
        (None, IpAddr::V4(_)) => ("ports4", key(&[&transport, &number])),
        (None, IpAddr::V6(_)) => ("ports6", key(&[&transport, &number])),
        (Some(IpAddr::V4(on)), _) => ("addresses4", key(&[&on.octets(), &transport, &number])),
        (Some(IpAddr::V6(on)), _) => ("addresses6", key(&[&on.octets(), &transport, &number])),
    };
    (INET, set, Element { key, data, ends: false })
}

/// The number of a transport in an IP header.
#[must_use]
pub fn protocol(transport: Transport) -> u8 {
    match transport {
        Transport::Tcp => 6,
        Transport::Udp => 17,
        Transport::Sctp => 132,
    }
}

/// The messages that make both tables anew, with the node's subnets and all pods in them. Inside of one transaction no packet
/// sees anything in between.
#[must_use]
pub fn whole<'a>(subnets: &[Subnet], cluster: &[Subnet], pods: impl Iterator<Item = &'a Placed>) -> Vec<Message> {
    let mut messages = Vec::new();
    for (family, sets) in [(INET, &INET_SETS[..]), (FRAMES, &FRAME_SETS[..])] {
        // A table can only be deleted where it is.
        messages.push(nft::add_table(family, TABLE));
        messages.push(nft::delete_table(family, TABLE));
        messages.push(nft::add_table(family, TABLE));
        for (set, number) in sets.iter().zip(1..) {
            messages.push(nft::add_set(family, TABLE, set, number));
        }
    }
    messages.extend(inet_rules());
    messages.extend(frame_rules());
    let own = intervals("pods4", "pods6", subnets.iter().copied());
    let near = intervals("cluster4", "cluster6", subnets.iter().chain(cluster).copied());
    let fixed: Vec<Placed> = own.into_iter().chain(near).collect();
    messages.extend(changes(nft::NFT_MSG_NEWSETELEM, fixed.iter()));
    messages.extend(changes(nft::NFT_MSG_NEWSETELEM, pods));
    messages
}

/// Messages that put elements in (`NFT_MSG_NEWSETELEM`) or take them out (`NFT_MSG_DELSETELEM`), set by set.
#[must_use]
pub fn changes<'a>(kind: u16, placed: impl Iterator<Item = &'a Placed>) -> Vec<Message> {
    let mut sorted: Vec<&Placed> = placed.collect();
    sorted.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
    let mut messages = Vec::new();
    for group in sorted.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
        let (family, set, _) = group[0];
        let elements: Vec<&Element> = group.iter().map(|(_, _, element)| element).collect();
        messages.extend(nft::elements(kind, *family, TABLE, set, &elements));
    }
    messages
}

/// Subnets as the kernel has them: where each begins, and where it is over.
fn intervals(v4: &'static str, v6: &'static str, subnets: impl Iterator<Item = Subnet>) -> Vec<Placed> {
    let mut placed = Vec::new();
    for subnet in merged(subnets) {
        let name = if subnet.is_ipv4() { v4 } else { v6 };
        placed.push((INET, name, plain(octets(subnet.network()))));
        let after = match subnet.last() {
            IpAddr::V4(last) => last.to_bits().checked_add(1).map(|next| next.to_be_bytes().to_vec()),
            IpAddr::V6(last) => last.to_bits().checked_add(1).map(|next| next.to_be_bytes().to_vec()),
        };
        placed.extend(after.map(|key| (INET, name, Element { key, data: Vec::new(), ends: true })));
    }
    // Where one subnet begins right behind another, the end of the former says nothing.
    let begins: Vec<_> = placed.iter().filter(|(_, _, e)| !e.ends).map(|(_, n, e)| (*n, e.key.clone())).collect();
    placed.retain(|(_, name, element)| !element.ends || !begins.contains(&(*name, element.key.clone())));
    placed
}

fn inet_rules() -> Vec<Message> {
    let bridge = link_name(BRIDGE);
    let (v4, v6) = ([IPV4], [IPV6]);
    let chain = |name, kind, number, priority| nft::add_chain(INET, TABLE, name, Hook { kind, number, priority });
    let rule = |chain, steps: &[E<'_>]| nft::add_rule(INET, TABLE, chain, steps);
    let family = |value| [E::Meta { key: nft::NFPROTO, to: 0 }, E::Equal { from: 0, value }];
    let source = |length, offset| E::Payload { base: nft::NETWORK, offset, length, to: 0 };
    let from_pod = |set| E::InSet { set, from: 0, not: false };
    let to_bridge = [E::Meta { key: nft::OIFNAME, to: 0 }, E::Equal { from: 0, value: &bridge }];

    // Before connection tracking; NAT comes after filtering of the administrator's raw tables, and at its usual place.
    let mut messages = vec![
        chain("guard", "filter", 0, -300),
        chain("inbound", "nat", 0, -100),
        chain("local", "nat", 3, -100),
        chain("outbound", "nat", 4, 100),
    ];
    let [a, b] = family(&v4);
    messages.push(rule(
        "guard",
        &[
            E::Meta { key: nft::IIFNAME, to: 0 },
            E::Equal { from: 0, value: &bridge },
            a,
            b,
            E::Payload { base: nft::NETWORK, offset: 16, length: 1, to: 0 },
            E::Equal { from: 0, value: &[127] },
            E::Drop,
        ],
    ));
    for chain in ["inbound", "local"] {
        messages.extend(host_port_rules(chain));
    }
    for (value, length, offset, pods, cluster, to_offset) in
        [(&v4, 4, 12, "pods4", "cluster4", 16), (&v6, 16, 8, "pods6", "cluster6", 24)]
    {
        let [a, b] = family(value);
        // A pod's connection to another pod through a host port: the answer must come back the same way, and not over
        // the bridge alone.
        let [c, d] = to_bridge.clone();
        let steps = [a, b, source(length, offset), from_pod(pods), c, d, E::Redirected, E::Masquerade];
        messages.push(rule("outbound", &steps));
        let [a, b] = family(value);
        let to = E::Payload { base: nft::NETWORK, offset: to_offset, length, to: 0 };
        let elsewhere = E::InSet { set: cluster, from: 0, not: true };
        messages.push(rule("outbound", &[a, b, source(length, offset), from_pod(pods), to, elsewhere, E::Masquerade]));
    }
    // The node's connection to a host port of 127.0.0.1.
    let [a, b] = family(&v4);
    let [c, d] = to_bridge;
    let loopback = E::Equal { from: 0, value: &[127] };
    let steps = [a, b, source(1, 12), loopback, c, d, E::Redirected, E::Masquerade];
    messages.push(rule("outbound", &steps));
    messages
}

/// Connections to an address of this host are led on to the pod that holds the port: on that address, else on all.
fn host_port_rules(chain: &str) -> Vec<Message> {
    let port = |to| E::Payload { base: nft::TRANSPORT, offset: 2, length: 2, to };
    let protocol = |to| E::Meta { key: nft::L4PROTO, to };
    let mut messages = Vec::new();
    for (family, length, offset, on_one, on_all) in
        [(IPV4, 4, 16, "addresses4", "ports4"), (IPV6, 16, 24, "addresses6", "ports6")]
    {
        let words = length / 4;
        let value = [family];
        let begin = [E::Meta { key: nft::NFPROTO, to: 0 }, E::Equal { from: 0, value: &value }, E::ToThisHost];
        let redirect = E::Redirect { family, address: 0, port: words };
        let to = E::Payload { base: nft::NETWORK, offset, length, to: 0 };
        let one = [to, protocol(words), port(words + 1), E::Map { map: on_one, from: 0, to: 0 }, redirect.clone()];
        let all = [protocol(0), port(1), E::Map { map: on_all, from: 0, to: 0 }, redirect];
        messages.push(nft::add_rule(INET, TABLE, chain, &[&begin[..], &one[..]].concat()));
        messages.push(nft::add_rule(INET, TABLE, chain, &[&begin[..], &all[..]].concat()));
    }
    messages
}

/// EtherTypes.
const ETH_IP: [u8; 2] = [0x08, 0x00];
const ETH_ARP: [u8; 2] = [0x08, 0x06];
const ETH_IPV6: [u8; 2] = [0x86, 0xdd];
const ICMPV6: [u8; 1] = [58];
const ROUTER_ADVERTISEMENT: [u8; 1] = [134];
const NEIGHBOUR_ADVERTISEMENT: [u8; 1] = [136];
const REDIRECT: [u8; 1] = [137];
/// Version 2 of multicast listener reports.
const MULTICAST_REPORT: [u8; 1] = [143];
/// How groups of one link begin, without the flags: ff02::/16.
const LINK_SCOPE: [u8; 2] = [0xff, 0x02];

/// What a pod may send: frames from its MAC, packets from its addresses, ARP and neighbour advertisements for its addresses,
/// and no router advertisements.
fn frame_rules() -> Vec<Message> {
    let hook = Hook { kind: "filter", number: 0, priority: -300 };
    let mut messages = vec![nft::add_chain(FRAMES, TABLE, "own", hook)];
    let link = E::Meta { key: nft::IIFNAME, to: 0 };
    let after = NAME_REGISTERS;
    let load = |base, offset, length, to| E::Payload { base, offset, length, to };
    let protocol = |value| [E::Meta { key: nft::PROTOCOL, to: 0 }, E::Equal { from: 0, value }];
    let in_set = |set, not| E::InSet { set, from: 0, not };
    let icmp = |kind| {
        let [a, b] = protocol(&ETH_IPV6);
        let of_type = [load(nft::TRANSPORT, 0, 1, 0), E::Equal { from: 0, value: kind }];
        let [c, d] = of_type;
        [a, b, E::Meta { key: nft::L4PROTO, to: 0 }, E::Equal { from: 0, value: &ICMPV6 }, c, d]
    };
    let mut rule = |steps: &[E<'_>]| messages.push(nft::add_rule(FRAMES, TABLE, "own", steps));
    rule(&[link.clone(), in_set("links", true), E::Accept]);
    rule(&[link.clone(), load(nft::LINK_LAYER, 6, 6, after), in_set("macs", true), E::Drop]);
    for (value, offset) in [(&ETH_IP, 12), (&ETH_ARP, 14)] {
        let [a, b] = protocol(value);
        rule(&[a, b, link.clone(), load(nft::NETWORK, offset, 4, after), in_set("own4", false), E::Accept]);
    }
    for kind in [&ROUTER_ADVERTISEMENT, &REDIRECT] {
        rule(&[&icmp(kind)[..], &[E::Drop]].concat());
    }
    // Every pod that comes reports the groups by which neighbours look for it (RFC 3810), and the bridge would carry that to
    // all others, for whom it means nothing: with 500 pods, most of what a new one costs. Reports of wider groups pass.
    let report = icmp(&MULTICAST_REPORT);
    let equal = |value| E::Equal { from: 0, value };
    for records in [&[0, 1], &[0, 2]] {
        let (one, link_scope) = (load(nft::TRANSPORT, 6, 2, 0), load(nft::TRANSPORT, 12, 2, 0));
        let mut steps = report.to_vec();
        steps.extend([one, equal(records), link_scope, equal(&LINK_SCOPE)]);
        if records[1] == 2 {
            // The second record begins behind 20 bytes of the first, which names no sources and has nothing else in it.
            let (sizes, second) = (load(nft::TRANSPORT, 9, 3, 0), load(nft::TRANSPORT, 32, 2, 0));
            steps.extend([sizes, equal(&[0; 3]), second, equal(&LINK_SCOPE)]);
        }
        steps.push(E::Drop);
        rule(&steps);
    }
    let target = [link.clone(), load(nft::TRANSPORT, 8, 16, after), in_set("own6", true), E::Drop];
    rule(&[&icmp(&NEIGHBOUR_ADVERTISEMENT)[..], &target].concat());
    let [a, b] = protocol(&ETH_IPV6);
    rule(&[a, b, link, load(nft::NETWORK, 8, 16, after), in_set("own6", false), E::Accept]);
    // Multicast group reports and the search for duplicates come from the unspecified address.
    let [a, b] = protocol(&ETH_IPV6);
    let nobody = [load(nft::NETWORK, 8, 16, 0), E::Equal { from: 0, value: &[0; 16] }];
    let [c, d] = nobody;
    let over_icmp = [E::Meta { key: nft::L4PROTO, to: 0 }, E::Equal { from: 0, value: &ICMPV6 }];
    let [e, f] = over_icmp;
    rule(&[a, b, c, d, e, f, E::Accept]);
    rule(&[E::Drop]);
    messages
}

/// The address that the kernel gives a link by itself: fe80:: and the EUI-64 of the MAC (RFC 4291, appendix A).
#[must_use]
pub fn link_local(mac: [u8; 6]) -> std::net::Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let mut octets = [0; 16];
    octets[..2].copy_from_slice(&[0xfe, 0x80]);
    octets[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    octets.into()
}

fn link_name(name: &str) -> [u8; NAME] {
    let mut bytes = [0; NAME];
    for (to, from) in bytes.iter_mut().zip(name.bytes().take(NAME - 1)) {
        *to = from;
    }
    bytes
}

fn plain(key: Vec<u8>) -> Element {
    Element { key, data: Vec::new(), ends: false }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(four) => four.octets().to_vec(),
        IpAddr::V6(six) => six.octets().to_vec(),
    }
}

/// Parts of a key, each filled up to whole registers.
fn key(parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::new();
    for part in parts {
        key.extend_from_slice(part);
        key.resize(key.len().next_multiple_of(4), 0);
    }
    key
}

#[cfg(test)]
mod tests {
    use super::super::lease::Address;
    use super::*;

    fn lease() -> Lease {
        let (four, six) = (Subnet::for_pods("10.85.0.0/16").unwrap(), Subnet::for_pods("fd00:85::/64").unwrap());
        let addresses = [four, six].map(|subnet| Address { address: subnet.pod(0), subnet }).to_vec();
        Lease {
            sandbox_id: "a".into(),
            pod: "x/y".into(),
            number: 0,
            addresses,
            link: "cka".into(),
            mac: [2, 0, 0, 0, 0, 9],
        }
    }

    fn port(address: &str) -> HostPort {
        HostPort { transport: Transport::Tcp, address: address.parse().ok(), port: 8080, container_port: 80 }
    }

    #[test]
    fn a_port_lands_in_the_maps_of_its_addresses() {
        for (address, wanted) in [
            ("", vec!["ports4", "ports6"]),
            ("0.0.0.0", vec!["ports4"]),
            ("::", vec!["ports6"]),
            ("127.0.0.1", vec!["addresses4"]),
            ("2001:db8::1", vec!["addresses6"]),
        ] {
            let placed = pod(&lease(), &[port(address)]);
            let sets: Vec<_> = placed.iter().filter(|(family, ..)| *family == INET).map(|(_, set, _)| *set).collect();
            assert_eq!(sets, wanted, "{address}");
        }
        let (_, _, element) = host_port(port(""), "10.85.0.2".parse().unwrap());
        assert_eq!((element.key, element.data), (vec![6, 0, 0, 0, 0x1f, 0x90, 0, 0], vec![10, 85, 0, 2, 0, 80, 0, 0]));
    }

    #[test]
    fn keys_have_the_lengths_of_their_sets() {
        let all = pod(&lease(), &["", "127.0.0.1", "::1"].map(port));
        for (family, name, element) in &all {
            let sets = if *family == INET { &INET_SETS[..] } else { &FRAME_SETS[..] };
            let set = sets.iter().find(|set| set.name == *name).unwrap();
            assert_eq!((element.key.len(), element.data.len()), (set.key as usize, set.data as usize), "{name}");
        }
    }

    #[test]
    fn intervals_have_begins_and_ends() {
        let subnets = ["10.0.0.0/9", "10.128.0.0/9", "255.0.0.0/8", "fd00::/8"].map(|text| text.parse().unwrap());
        let placed = intervals("a", "b", subnets.into_iter());
        let shown: Vec<_> = placed.iter().map(|(_, set, e)| (*set, e.key[0], e.key[1], e.ends)).collect();
        let wanted = [
            ("a", 10, 0, false),
            ("a", 10, 128, false),
            ("a", 11, 0, true),
            ("a", 255, 0, false),
            ("b", 0xfd, 0, false),
            ("b", 0xfe, 0, true),
        ];
        assert_eq!(shown, wanted);
    }

    #[test]
    fn the_number_of_rules_does_not_depend_on_pods() {
        assert_eq!(link_local([2, 0, 0, 0, 0, 9]).to_string(), "fe80::ff:fe00:9");
        let one = whole(&[], &[], pod(&lease(), &[port("")]).iter()).len();
        let twice: Vec<_> = pod(&lease(), &[port("")]).into_iter().chain(pod(&lease(), &[port("127.0.0.1")])).collect();
        // One more set has elements.
        assert_eq!(whole(&[], &[], twice.iter()).len(), one + 1);
    }
}
