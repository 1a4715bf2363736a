//! SCTP through a host port. The packets are made by hand, since few kernels have the protocol's sockets; translating addresses
//! and tracking associations are other parts of them.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags};

use super::*;

const SCTP: u32 = 132;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const HOST_PORT: u16 = 2905;
const POD_PORT: u16 = 3905;
const CALLER: u16 = 40_000;
/// Of an IPv4 header without options, which raw sockets hand out too.
const IP: usize = 20;

fn raw() -> OwnedFd {
    raw_socket(AddressFamily::INET, Protocol::from_raw(SCTP.try_into().unwrap()))
}

/// The checksum of SCTP (RFC 9260, appendix A), bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

/// A packet with one chunk that opens an association, or answers to that.
fn packet(from: u16, to: u16, tag: u32, chunk: u8) -> Vec<u8> {
    let mut packet = [&from.to_be_bytes()[..], &to.to_be_bytes(), &tag.to_be_bytes(), &[0; 4]].concat();
    // Length 20: the tag to answer with, the window, one stream each way, the first number.
    packet.extend([chunk, 0, 0, 20, 0, 0, 0, 7, 0, 0, 0x10, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let sum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&sum);
    packet
}

/// Source address, source port, destination port and first chunk of the next packet; its checksum must be right.
fn next(socket: &OwnedFd) -> (Ipv4Addr, u16, u16, u8) {
    let mut buffer = [0; 200];
    let (read, _) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty()).unwrap();
    let source: [u8; 4] = buffer[12..16].try_into().unwrap();
    let mut packet = buffer[IP..read].to_vec();
    let sum = u32::from_le_bytes(packet[8..12].try_into().unwrap());
    packet[8..12].fill(0);
    assert_eq!(sum, crc32c(&packet), "the checksum was not made anew");
    let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    (source.into(), port(0), port(2), packet[12])
}

#[test]
#[ignore = "needs root"]
fn an_association_comes_through_a_host_port() {
    on_own_host(|host| {
        let network = host.network();
        let mut pod = host.pod("a", &[]);
        let port = HostPort { transport: Transport::Sctp, address: None, port: HOST_PORT, container_port: POD_PORT };
        // The same number for TCP: each protocol is a key of its own.
        pod.ports = vec![port, HostPort { transport: Transport::Tcp, container_port: 1, ..port }];
        let IpAddr::V4(own) = network.attach(&pod).unwrap().ips[0] else { panic!("no IPv4") };
        let (node, inside) = (raw(), enter_net(&pod.netns, raw).unwrap());
        let gateway = Ipv4Addr::new(10, 85, 0, 1);
        let send = |from: &OwnedFd, to: Ipv4Addr, packet: &[u8]| {
            rustix::net::sendto(from, packet, SendFlags::empty(), &SocketAddrV4::new(to, 0)).unwrap();
        };
        // A port that nobody has, and then the pod's: the second one is the first that arrives.
        send(&node, gateway, &packet(CALLER, HOST_PORT + 1, 0, INIT));
        send(&node, gateway, &packet(CALLER, HOST_PORT, 0, INIT));
        let (source, from, to, chunk) = next(&inside);
        // The caller's port was drawn by lot, as its address is of the pods' subnet.
        assert_eq!((to, chunk), (POD_PORT, INIT));
        send(&inside, source, &packet(POD_PORT, from, 7, INIT_ACK));
        // The node hears its own first packet too, which was for itself.
        let answer = std::iter::repeat_with(|| next(&node)).find(|(.., chunk)| *chunk == INIT_ACK).unwrap();
        assert_eq!(answer, (gateway, HOST_PORT, CALLER, INIT_ACK), "the pod at {own} answers as the node");
        network.release("a").unwrap();
        network.reap().unwrap();
    });
}
