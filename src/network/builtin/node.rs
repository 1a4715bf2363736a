//! What the node has once for all pods: the bridge with its addresses, and the kernel's settings.

use std::net::IpAddr;

use crate::config::subnet::Subnet;

use super::error::BuiltinError;
use super::link::{BRIDGE, GROUP, Link, Links};
use super::{Builtin, Pod, holdings, locked, obstacles, sysctl};

/// Without a default route the MTU of an Ethernet.
const MTU: u32 = 1500;

/// What is known of the node; empty until it was looked at.
#[derive(Debug, Default)]
pub struct Node {
    prepared: Option<Prepared>,
}

impl Node {
    /// The next pod looks at everything anew.
    pub fn forget(&mut self) {
        self.prepared = None;
    }
}

/// What a pod's link is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prepared {
    /// The index of the bridge.
    pub bridge: u32,
    /// The uplink's.
    pub mtu: u32,
}

impl Builtin {
    /// The node as it was prepared, or prepares it.
    pub(super) fn prepared(&self) -> Result<Prepared, BuiltinError> {
        let known = locked(&self.node).prepared;
        known.map_or_else(|| self.prepare(), Ok)
    }

    /// Makes what is missing of the bridge, its addresses, the settings and the tables; what is right is left alone.
    pub(super) fn prepare(&self) -> Result<Prepared, BuiltinError> {
        let (prepared, clear) = self.put_in_order()?;
        clear.map(|()| prepared)
    }

    /// As [`Self::prepare`], and says apart whether a new pod may come: a route of the host that came later keeps new pods away, but
    /// those that are there keep what they have.
    pub(super) fn put_in_order(&self) -> Result<(Prepared, Result<(), BuiltinError>), BuiltinError> {
        // One at a time: two first pods make one bridge.
        let mut node = locked(&self.node);
        node.prepared = None;
        let (wanted, handed_over) = self.subnets()?;
        let mut links = Links::open()?;
        let there = own_bridge(&mut links)?;
        let clear = match check_overlaps(&mut links, there.as_ref(), &wanted, handed_over) {
            Err(error) if self.pods() == 0 => return Err(error),
            clear => clear,
        };
        let prepared = self.make_whole(&mut links, there, &wanted)?;
        node.prepared = clear.is_ok().then_some(prepared);
        Ok((prepared, clear))
    }

    fn make_whole(&self, links: &mut Links, there: Option<Link>, wanted: &[Subnet]) -> Result<Prepared, BuiltinError> {
        let (v4, v6) = families(wanted);
        sysctl::forward(v4, v6)?;
        let is_new = there.is_none();
        let bridge = match there {
            Some(bridge) => bridge,
            None => make_bridge(links, wanted)?,
        };
        sysctl::bridge(v4, v6)?;
        if !bridge.up {
            links.set_up(bridge.index)?;
        }
        address_bridge(links, bridge.index, wanted)?;
        if is_new {
            self.rejoin(links, bridge.index)?;
        }
        let mtu = links.uplink_mtu()?.unwrap_or(MTU);
        {
            let mut tables = locked(&self.tables);
            tables.set_subnets(wanted, &self.options.cluster);
            if !tables.is_installed() {
                tables.install()?;
            }
        }
        Ok(Prepared { bridge: bridge.index, mtu })
    }

    /// Puts the links of pods on a bridge that was made in place of one that somebody removed: they outlive it.
    fn rejoin(&self, links: &mut Links, bridge: u32) -> Result<(), BuiltinError> {
        let live: Vec<Pod> = locked(&self.live).values().cloned().collect();
        for pod in live {
            let Some(lease) = self.lease(&pod.sandbox_id)? else { continue };
            if links.find(&lease.link)?.is_some_and(|link| link.master == 0) {
                tracing::warn!(pod = pod.name, link = lease.link, "a pod's link is put on a new bridge");
                links.join(&lease.link, bridge)?;
                links.dress_port(&lease.link, &pod.name)?;
            }
        }
        Ok(())
    }

    /// All subnets that pods have addresses of, and whether they were handed over. IPv6 is left out where the kernel has none.
    fn subnets(&self) -> Result<(Vec<Subnet>, bool), BuiltinError> {
        let v6 = sysctl::has_ipv6();
        self.holdings(|holdings: &mut holdings::Holdings| {
            if !v6 {
                holdings.leave_out_ipv6();
            }
            Ok((holdings.all_subnets(), holdings.handed_over()))
        })
    }

    pub(super) fn bridge_is_gone(&self) -> bool {
        Links::open().and_then(|mut links| links.find(BRIDGE)).is_ok_and(|bridge| {
            let known = locked(&self.node).prepared;
            known.map(|known| known.bridge) != bridge.map(|bridge| bridge.index)
        })
    }

    /// Whether pods can be attached. Before the first pod nothing is made; afterwards what is missing is put back.
    ///
    /// # Errors
    /// What stands in the way.
    pub fn check(&self) -> Result<(), BuiltinError> {
        let mut links = Links::open()?;
        let there = own_bridge(&mut links)?;
        if there.is_some() || self.pods() > 0 {
            self.prepare()?;
        } else {
            let (wanted, handed_over) = self.subnets()?;
            check_overlaps(&mut links, None, &wanted, handed_over)?;
            let (v4, v6) = families(&wanted);
            sysctl::can_forward(v4, v6)?;
        }
        *locked(&self.obstacles) = obstacles::look()?;
        Ok(())
    }

    /// Rules of others that keep forwarded packets from pods, as found at the last look.
    #[must_use]
    pub fn obstacles(&self) -> Vec<String> {
        locked(&self.obstacles).clone()
    }
}

fn families(subnets: &[Subnet]) -> (bool, bool) {
    let v4 = subnets.iter().any(|subnet| subnet.is_ipv4());
    (v4, subnets.iter().any(|subnet| !subnet.is_ipv4()))
}

/// Our bridge; an error when somebody else has a link of that name.
fn own_bridge(links: &mut Links) -> Result<Option<Link>, BuiltinError> {
    match links.find(BRIDGE)? {
        Some(link) if link.kind != "bridge" || link.group != GROUP => Err(BuiltinError::ForeignBridge { name: BRIDGE }),
        found => Ok(found),
    }
}

fn make_bridge(links: &mut Links, subnets: &[Subnet]) -> Result<Link, BuiltinError> {
    // With a MAC of its own, which does not change with every pod that comes and goes.
    links.make_bridge(holdings::mac(subnets.iter().map(|subnet| subnet.gateway())))?;
    own_bridge(links)?.ok_or(BuiltinError::ForeignBridge { name: BRIDGE })
}

/// Pods' subnets must not be somebody else's. A wider route is no conflict for subnets that the kubelet handed over: it leads
/// to the whole cluster's pods, of which these are a part.
fn check_overlaps(
    links: &mut Links,
    bridge: Option<&Link>,
    subnets: &[Subnet],
    handed_over: bool,
) -> Result<(), BuiltinError> {
    let own = bridge.map(|bridge| bridge.index);
    for route in links.routes()? {
        let Some(to) = route.to.filter(|to| to.prefix() > 0 && Some(route.link) != own) else { continue };
        let clash = |subnet: &&Subnet| subnet.overlaps(to) && !(handed_over && to.prefix() < subnet.prefix());
        if let Some(subnet) = subnets.iter().find(clash) {
            let link = links.by_index(route.link)?;
            let link = link.map_or_else(|| format!("link {}", route.link), |link| link.name);
            return Err(BuiltinError::Overlap { subnet: *subnet, route: to, link });
        }
    }
    Ok(())
}

/// The gateways, and no address of former subnets.
fn address_bridge(links: &mut Links, bridge: u32, subnets: &[Subnet]) -> Result<(), BuiltinError> {
    let wanted: Vec<(IpAddr, u8)> = subnets.iter().map(|subnet| (subnet.gateway(), subnet.prefix())).collect();
    let there = links.addresses(bridge)?;
    for (address, prefix) in there.iter().filter(|own| !wanted.contains(own)) {
        links.remove_address(bridge, *address, *prefix)?;
    }
    for subnet in subnets.iter().filter(|subnet| !there.contains(&(subnet.gateway(), subnet.prefix()))) {
        links.add_address(bridge, subnet.gateway(), *subnet)?;
    }
    Ok(())
}
