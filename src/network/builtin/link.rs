//! Links, addresses and routes by rtnetlink(7): the bridge, the pods' links, and what is inside of a pod.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;

use crate::sys::netlink::{Family, Message, NetlinkError, Socket, find, ne32, text};

use super::lease::Address;
use crate::config::subnet::Subnet;

/// The bridge of all pods.
pub const BRIDGE: &str = "cricket0";
/// The pod's end of its link.
pub const INSIDE: &str = "eth0";
/// The link group (`IFLA_GROUP`) of everything that this network makes: it is set within the creation of a link, so there is
/// no moment in which a link of ours looks like somebody else's.
pub const GROUP: u32 = 0x6372_6b74;
/// The group of links that are to go. The kernel waits for a grace period of all processors when a link goes; a group goes as
/// a whole with one such wait.
pub const GOING: u32 = GROUP + 1;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
/// Longest alias, in bytes (`IFALIASZ` with its zero is 256).
const ALIAS_MAX: usize = 255;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_MODE: u16 = 4;
const VETH_INFO_PEER: u16 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
/// No duplicate-address detection: the lease is what makes an address unique, and an address in doubt cannot be used for a
/// second.
const IFA_F_NODAD: u8 = 0x02;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_TABLE: u16 = 15;
const RT_TABLE_MAIN: u8 = 254;
/// As the plugins' routes are, and those of `ip route add`.
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;

const IFF_UP: u32 = 1;

/// A link of this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// `bridge`, `veth`, …; empty for a device.
    pub kind: String,
    pub group: u32,
    pub master: u32,
    pub mtu: u32,
    pub up: bool,
}

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// `None` for a default route.
    pub to: Option<Subnet>,
    pub link: u32,
}

/// Requests to the kernel's tables of one network namespace.
#[derive(Debug)]
pub struct Links {
    socket: Socket,
}

impl Links {
    /// In the network namespace of the calling thread.
    ///
    /// # Errors
    /// When there is no such socket.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { socket: Socket::open(Family::Route)? })
    }

    /// The link with a name, if there is one.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than that there is none.
    pub fn find(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let message = Message::new(RTM_GETLINK, 0, &link_header(0, 0)).string(IFLA_IFNAME, name);
        match self.socket.answer(&format!("link {name}"), message) {
            Ok(payload) => Ok(read_link(&payload)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The link with an index, if there is one. Other than [`Self::all`] it is not read again while pods come and go.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than that there is none.
    pub fn by_index(&mut self, index: u32) -> Result<Option<Link>, NetlinkError> {
        match self.socket.answer(&format!("link {index}"), Message::new(RTM_GETLINK, 0, &link_header(index, 0))) {
            Ok(payload) => Ok(read_link(&payload)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// # Errors
    /// When the kernel refuses.
    pub fn all(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let message = Message::new(RTM_GETLINK, 0, &link_header(0, 0));
        self.socket.dump("links", &message, |links: &mut Vec<Link>, _, payload| links.extend(read_link(payload)))
    }

    /// Makes the bridge, which must not be there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn make_bridge(&mut self, mac: [u8; 6]) -> Result<(), NetlinkError> {
        let message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link_header(0, IFF_UP))
            .string(IFLA_IFNAME, BRIDGE)
            .bytes(IFLA_ADDRESS, &mac)
            .ne32(IFLA_GROUP, GROUP)
            .nest(IFLA_LINKINFO, |info| info.string(IFLA_INFO_KIND, "bridge"));
        self.socket.request(&format!("bridge {BRIDGE}"), message)
    }

    /// Makes a pod's link: one end on the bridge, the other inside with its MAC, and both still down.
    ///
    /// Each end has one queue, as a pair always has in use: made with one for each processor, the kernel would take the others out of
    /// use again, and wait for a grace period at each end while nobody else can change a link.
    ///
    /// # Errors
    /// When the kernel refuses: one of the names is taken, say.
    pub fn make_pair(&mut self, name: &str, bridge: u32, inside: &Inside<'_>) -> Result<(), NetlinkError> {
        let peer = |peer: Message| {
            peer.string(IFLA_IFNAME, INSIDE)
                .ne32(IFLA_NUM_TX_QUEUES, 1)
                .ne32(IFLA_NUM_RX_QUEUES, 1)
                .bytes(IFLA_ADDRESS, &inside.mac)
                .ne32(IFLA_MTU, inside.mtu)
                .ne32(IFLA_NET_NS_FD, u32::try_from(inside.netns.as_raw_fd()).unwrap_or(u32::MAX))
        };
        let message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link_header(0, 0))
            .string(IFLA_IFNAME, name)
            .ne32(IFLA_NUM_TX_QUEUES, 1)
            .ne32(IFLA_NUM_RX_QUEUES, 1)
            .ne32(IFLA_MTU, inside.mtu)
            .ne32(IFLA_GROUP, GROUP)
            .ne32(IFLA_MASTER, bridge)
            .nest(IFLA_LINKINFO, |info| {
                info.string(IFLA_INFO_KIND, "veth")
                    .nest(IFLA_INFO_DATA, |data| data.nest_with(VETH_INFO_PEER, &link_header(0, 0), peer))
            });
        self.socket.request(&format!("link {name}"), message)
    }

    /// Sets the bridge's end up, lets a pod reach itself through the bridge, and notes whose link it is where `ip link` shows it: `alias`, of which the
    /// kernel takes 255 bytes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn dress_port(&mut self, name: &str, alias: &str) -> Result<(), NetlinkError> {
        let message = Message::new(RTM_NEWLINK, 0, &link_header(0, IFF_UP))
            .string(IFLA_IFNAME, name)
            .bytes(IFLA_IFALIAS, alias_of(alias).as_bytes())
            .nest(IFLA_LINKINFO, |info| {
                info.string(IFLA_INFO_SLAVE_KIND, "bridge")
                    .nest(IFLA_INFO_SLAVE_DATA, |port| port.u8(IFLA_BRPORT_MODE, 1))
            });
        self.socket.request(&format!("bridge port {name}"), message)
    }

    /// Puts a link that lost its bridge back on it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn join(&mut self, name: &str, bridge: u32) -> Result<(), NetlinkError> {
        let message =
            Message::new(RTM_NEWLINK, 0, &link_header(0, IFF_UP)).string(IFLA_IFNAME, name).ne32(IFLA_MASTER, bridge);
        self.socket.request(&format!("bridge port {name}"), message)
    }

    /// An intermediate functional block: where packets queue that come from a pod.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn make_queue(&mut self, name: &str) -> Result<(), NetlinkError> {
        let message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link_header(0, IFF_UP))
            .string(IFLA_IFNAME, name)
            .ne32(IFLA_GROUP, GROUP)
            .nest(IFLA_LINKINFO, |info| info.string(IFLA_INFO_KIND, "ifb"));
        self.socket.request(&format!("link {name}"), message)
    }

    /// Removes a link; fine when it is gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&mut self, name: &str) -> Result<(), NetlinkError> {
        let message = Message::new(RTM_DELLINK, 0, &link_header(0, 0)).string(IFLA_IFNAME, name);
        match self.socket.request(&format!("link {name}"), message) {
            Err(error) if !error.is_missing() => Err(error),
            _ => Ok(()),
        }
    }

    /// Marks a link as one that goes with the next [`Self::remove_going`]; fine when it is gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn let_go(&mut self, name: &str) -> Result<(), NetlinkError> {
        let message =
            Message::new(RTM_NEWLINK, 0, &link_header(0, 0)).string(IFLA_IFNAME, name).ne32(IFLA_GROUP, GOING);
        match self.socket.request(&format!("link {name}"), message) {
            Err(error) if !error.is_missing() => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes all links that are to go.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_going(&mut self) -> Result<(), NetlinkError> {
        let message = Message::new(RTM_DELLINK, 0, &link_header(0, 0)).ne32(IFLA_GROUP, GOING);
        match self.socket.request("links of pods that are gone", message) {
            Err(error) if !error.is_missing() => Err(error),
            _ => Ok(()),
        }
    }

    /// Sets a link up.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_up(&mut self, link: u32) -> Result<(), NetlinkError> {
        let (what, message) = set_up(link);
        self.socket.request(&what, message)
    }

    /// Gives a link an address with its subnet's prefix; fine when it has it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_address(&mut self, link: u32, address: IpAddr, subnet: Subnet) -> Result<(), NetlinkError> {
        let (what, message) = add_address(link, address, subnet);
        self.socket.request(&what, message)
    }

    /// Takes an address away; fine when it is gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_address(&mut self, link: u32, address: IpAddr, prefix: u8) -> Result<(), NetlinkError> {
        let message = Message::new(RTM_DELADDR, 0, &address_header(link, address, prefix));
        match self.socket.request(&format!("address {address}/{prefix}"), with_ip(message, IFA_LOCAL, address)) {
            Err(error) if error.errno() != Some(rustix::io::Errno::ADDRNOTAVAIL) && !error.is_missing() => Err(error),
            _ => Ok(()),
        }
    }

    /// The addresses of a link, with their prefixes; link-local ones excepted.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn addresses(&mut self, link: u32) -> Result<Vec<(IpAddr, u8)>, NetlinkError> {
        let message = Message::new(RTM_GETADDR, 0, &[0; 8]);
        self.socket.dump("addresses", &message, |found: &mut Vec<(IpAddr, u8)>, _, payload| {
            let owner = payload.get(4..8).and_then(ne32);
            let attributes = payload.get(8..).unwrap_or_default();
            let address = find(attributes, IFA_LOCAL).or_else(|| find(attributes, IFA_ADDRESS)).and_then(read_ip);
            let local = |address: &IpAddr| matches!(address, IpAddr::V6(six) if six.is_unicast_link_local());
            if owner == Some(link) {
                found.extend(address.filter(|address| !local(address)).map(|address| (address, payload[1])));
            }
        })
    }

    /// The unicast routes of the main table, of both families.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn routes(&mut self) -> Result<Vec<Route>, NetlinkError> {
        let message = Message::new(RTM_GETROUTE, 0, &[0; 12]);
        self.socket.dump("routes", &message, |found: &mut Vec<Route>, _, payload| found.extend(read_route(payload)))
    }

    /// The MTU of the link that a default route leads through, IPv4's first; `None` without such a route.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn uplink_mtu(&mut self) -> Result<Option<u32>, NetlinkError> {
        let routes = self.routes()?;
        let Some(default) = routes.iter().find(|route| route.to.is_none()) else { return Ok(None) };
        Ok(self.by_index(default.link)?.map(|link| link.mtu))
    }
}

/// What a pod's end is made with.
#[derive(Debug)]
pub struct Inside<'a> {
    pub netns: &'a File,
    pub mac: [u8; 6],
    pub mtu: u32,
}

/// Sets up the pod's end, from within the pod's namespace: `eth0` gets its addresses, comes up and becomes the way out.
///
/// # Errors
/// When the kernel refuses a step.
pub fn furnish_inside(addresses: &[Address]) -> Result<(), NetlinkError> {
    let mut links = Links::open()?;
    let index = links.socket.link_index(INSIDE)?;
    let mut requests: Vec<_> = addresses.iter().map(|own| add_address(index, own.address, own.subnet)).collect();
    requests.push(set_up(index));
    requests.extend(addresses.iter().map(|own| add_default_route(index, own.subnet.gateway())));
    links.socket.requests(requests)
}

/// Whether the pod's end is there, from within the pod's namespace.
///
/// # Errors
/// When the kernel refuses.
pub fn is_inside() -> Result<bool, NetlinkError> {
    Ok(Links::open()?.find(INSIDE)?.is_some())
}

/// A request, and what an error begins with.
type Request = (String, Message);

fn set_up(link: u32) -> Request {
    (format!("link {link}"), Message::new(RTM_NEWLINK, 0, &link_header(link, IFF_UP)))
}

fn add_address(link: u32, address: IpAddr, subnet: Subnet) -> Request {
    let header = address_header(link, address, subnet.prefix());
    let mut message = with_ip(Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &header), IFA_LOCAL, address);
    message = with_ip(message, IFA_ADDRESS, address);
    if subnet.is_ipv4() {
        message = with_ip(message, IFA_BROADCAST, subnet.last());
    }
    (format!("address {address}/{}", subnet.prefix()), message)
}

fn add_default_route(link: u32, gateway: IpAddr) -> Request {
    let family = if gateway.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let header = [family_byte(family), 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST, 0, 0, 0, 0];
    let message = Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &header).ne32(RTA_OIF, link);
    (format!("default route via {gateway}"), with_ip(message, RTA_GATEWAY, gateway))
}

fn alias_of(pod: &str) -> &str {
    let end = (0..=ALIAS_MAX.min(pod.len())).rev().find(|end| pod.is_char_boundary(*end));
    &pod[..end.unwrap_or(0)]
}

/// ifinfomsg: a link by its index, or 0, with flags to set.
fn link_header(index: u32, flags: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&flags.to_ne_bytes());
    header
}

/// ifaddrmsg.
fn address_header(link: u32, address: IpAddr, prefix: u8) -> [u8; 8] {
    let (family, flags) = if address.is_ipv4() { (libc::AF_INET, 0) } else { (libc::AF_INET6, IFA_F_NODAD) };
    let mut header = [family_byte(family), prefix, flags, 0, 0, 0, 0, 0];
    header[4..].copy_from_slice(&link.to_ne_bytes());
    header
}

fn family_byte(family: libc::c_int) -> u8 {
    u8::try_from(family).expect("address families are small")
}

fn with_ip(message: Message, kind: u16, address: IpAddr) -> Message {
    match address {
        IpAddr::V4(address) => message.bytes(kind, &address.octets()),
        IpAddr::V6(address) => message.bytes(kind, &address.octets()),
    }
}

fn read_ip(value: &[u8]) -> Option<IpAddr> {
    let four = || <[u8; 4]>::try_from(value).ok().map(IpAddr::from);
    four().or_else(|| <[u8; 16]>::try_from(value).ok().map(IpAddr::from))
}

fn read_link(payload: &[u8]) -> Option<Link> {
    let attributes = payload.get(16..)?;
    let number = |kind| find(attributes, kind).and_then(ne32).unwrap_or(0);
    let info = find(attributes, IFLA_LINKINFO).unwrap_or_default();
    Some(Link {
        index: ne32(payload.get(4..8)?)?,
        name: text(find(attributes, IFLA_IFNAME)?),
        kind: find(info, IFLA_INFO_KIND).map(text).unwrap_or_default(),
        group: number(IFLA_GROUP),
        master: number(IFLA_MASTER),
        mtu: number(IFLA_MTU),
        up: ne32(payload.get(8..12)?)? & IFF_UP != 0,
    })
}

fn read_route(payload: &[u8]) -> Option<Route> {
    let (family, bits, kind) = (*payload.first()?, *payload.get(1)?, *payload.get(7)?);
    let attributes = payload.get(12..)?;
    let table = find(attributes, RTA_TABLE).and_then(ne32).or_else(|| payload.get(4).map(|table| u32::from(*table)))?;
    if table != u32::from(RT_TABLE_MAIN) || kind != RTN_UNICAST {
        return None;
    }
    if i32::from(family) != libc::AF_INET && i32::from(family) != libc::AF_INET6 {
        return None;
    }
    let to = find(attributes, RTA_DST).and_then(read_ip).map(|address| Subnet::around(address, bits));
    Some(Route { to, link: find(attributes, RTA_OIF).and_then(ne32).unwrap_or(0) })
}
