//! Connections that the kernel tracks: those of a pod that is gone are cut, since they would lead packets to its address for
//! as long as somebody sends them. For UDP that can be for ever.

use std::collections::HashSet;
use std::net::IpAddr;

use crate::network::capability::{HostPort, Transport};
use crate::sys::netlink::{Message, NetlinkError, Socket, attributes, be16, find};

use super::nft::{IPV4, IPV6};
use super::rules::protocol;

const SUBSYSTEM: u16 = 1 << 8;
const IPCTNL_MSG_CT_GET: u16 = SUBSYSTEM | 1;
const IPCTNL_MSG_CT_DELETE: u16 = SUBSYSTEM | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
/// Which parts of a tuple a filter compares.
const CTA_FILTER_F_CTA_PROTO_NUM: u32 = 1 << 3;
const CTA_FILTER_F_CTA_PROTO_DST_PORT: u32 = 1 << 5;

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tuple {
    from: IpAddr,
    protocol: u8,
    port: u16,
}

/// Cuts the connections that end or begin at one of these addresses, and returns how many they were. The whole table is read
/// once, which takes the kernel some milliseconds however little is in it. The socket is the caller's to keep: closing one of
/// netfilter's waits until the kernel has freed what nftables removed before.
///
/// # Errors
/// When the kernel refuses to list them, or to drop one.
pub fn cut_addresses(socket: &mut Socket, addresses: &HashSet<IpAddr>) -> Result<usize, NetlinkError> {
    let gone = |flow: &[u8], kind| read_tuple(flow, kind).is_some_and(|tuple| addresses.contains(&tuple.from));
    // Of no family: both.
    let message = Message::new(IPCTNL_MSG_CT_GET, 0, &[0; 4]);
    drop_flows(socket, &message, |flow| gone(flow, CTA_TUPLE_REPLY) || gone(flow, CTA_TUPLE_ORIG))
}

/// Cuts the connections without handshake (UDP) that came to these ports of the node before they led to the pod: their
/// packets would go on to go where they went. `own` are the pod's addresses.
///
/// # Errors
/// As for [`cut_addresses`].
pub fn cut_ports(socket: &mut Socket, ports: &[HostPort], own: &[IpAddr]) -> Result<usize, NetlinkError> {
    let datagrams: Vec<_> = ports.iter().filter(|port| port.transport == Transport::Udp).collect();
    let mut cut = 0;
    for port in datagrams {
        for address in own {
            let number = protocol(port.transport);
            let flags = CTA_FILTER_F_CTA_PROTO_NUM | CTA_FILTER_F_CTA_PROTO_DST_PORT;
            let message = list(*address, CTA_FILTER_ORIG_FLAGS, flags).nest(CTA_TUPLE_ORIG, |tuple| {
                tuple.nest(CTA_TUPLE_PROTO, |proto| {
                    proto.u8(CTA_PROTO_NUM, number).bytes(CTA_PROTO_DST_PORT, &port.port.to_be_bytes())
                })
            });
            let wanted = |flow: &[u8]| {
                let to_port = read_tuple(flow, CTA_TUPLE_ORIG)
                    .is_some_and(|tuple| (tuple.protocol, tuple.port) == (number, port.port));
                to_port && read_tuple(flow, CTA_TUPLE_REPLY).is_none_or(|reply| !own.contains(&reply.from))
            };
            cut += drop_flows(socket, &message, wanted)?;
        }
    }
    Ok(cut)
}

/// Whether the kernel lacks what this module speaks to.
#[must_use]
pub fn is_unsupported(error: &NetlinkError) -> bool {
    // Without the module, the netfilter socket has nobody for the subsystem, and answers EINVAL.
    matches!(error.errno(), Some(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INVAL))
}

/// Asks for the connections of a family; kernels before 5.8 do not know filters and list all, so each is looked at here too.
fn list(address: IpAddr, flags: u16, parts: u32) -> Message {
    Message::new(IPCTNL_MSG_CT_GET, 0, &header(address)).nest(CTA_FILTER, |filter| filter.ne32(flags, parts))
}

fn drop_flows(socket: &mut Socket, listing: &Message, wanted: impl Fn(&[u8]) -> bool) -> Result<usize, NetlinkError> {
    let found = socket.dump("tracked connections", listing, |found: &mut Vec<Vec<u8>>, _, payload| {
        let flow = payload.get(4..).unwrap_or_default();
        if wanted(flow) {
            // The family comes first in the header.
            found.push(payload.to_vec());
        }
    })?;
    for payload in &found {
        let (family, flow) = (payload[0], &payload[4..]);
        let mut message = Message::new(IPCTNL_MSG_CT_DELETE, 0, &[family, 0, 0, 0]);
        for kind in [CTA_TUPLE_ORIG, CTA_ID, CTA_ZONE] {
            if let Some(value) = find(flow, kind) {
                // Nested attributes are copied as they are, with the flag that says so.
                let flag = if kind == CTA_TUPLE_ORIG { 0x8000 } else { 0 };
                message = message.bytes(kind | flag, value);
            }
        }
        match socket.request("tracked connection", message) {
            Err(error) if !error.is_missing() => return Err(error),
            _ => {}
        }
    }
    Ok(found.len())
}

fn header(address: IpAddr) -> [u8; 4] {
    // AF_INET and AF_INET6 are NFPROTO_IPV4 and NFPROTO_IPV6.
    [if address.is_ipv4() { IPV4 } else { IPV6 }, 0, 0, 0]
}

fn read_tuple(flow: &[u8], kind: u16) -> Option<Tuple> {
    let tuple = find(flow, kind)?;
    let from = attributes(find(tuple, CTA_TUPLE_IP)?).find_map(|(kind, value)| match kind {
        1 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        3 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
        _ => None,
    })?;
    let proto = find(tuple, CTA_TUPLE_PROTO)?;
    let port = find(proto, CTA_PROTO_DST_PORT).and_then(be16).unwrap_or(0);
    Some(Tuple { from, protocol: *find(proto, CTA_PROTO_NUM)?.first()?, port })
}
