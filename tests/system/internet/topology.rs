//! The links, addresses and routes between the outside host, the router and the nodes.

use anyhow::{Context as _, Result};

use super::mode::Mode;
use super::probe::{Place, Server};
use crate::node::Node;
use crate::world::{World, command};

/// Addresses, IPv4 and IPv6.
pub const NODE_A: [&str; 2] = ["192.0.2.2", "2001:db8:a::2"];
pub const NODE_B: [&str; 2] = ["198.51.100.2", "2001:db8:b::2"];
pub const OUTSIDE: [&str; 2] = ["203.0.113.2", "2001:db8:c::2"];

/// The network namespace of the outside host, in the router's world.
pub const OUTSIDE_NAMESPACE: &str = "outside";

/// All of it, with a server on the outside host and on each node.
pub struct Internet {
    // Servers before the worlds that they run in.
    _servers: Vec<Server>,
    pub a: Node,
    pub b: Node,
    pub router: World,
}

impl Internet {
    pub async fn new(mode: &Mode) -> Result<Self> {
        let (router, a, b) = (World::new().await?, World::new().await?, World::new().await?);
        router.must("sh", &["-ec", ROUTER]).await?;
        for (node, link) in [(&a, "to-a"), (&b, "to-b")] {
            hand_over(node, &router, link).await?;
        }
        router.must("sh", &["-ec", ROUTES]).await?;
        for (node, addresses, gateway) in
            [(&a, NODE_A, ["192.0.2.1", "2001:db8:a::1"]), (&b, NODE_B, ["198.51.100.1", "2001:db8:b::1"])]
        {
            let script = format!(
                "ip -4 address flush dev uplink0; ip link set uplink0 mtu 1400
                 ip address add {}/24 dev uplink0; ip -6 address add {}/64 dev uplink0 nodad
                 ip route replace default via {}; ip -6 route add default via {}",
                addresses[0], addresses[1], gateway[0], gateway[1]
            );
            node.must("sh", &["-ec", &script]).await?;
        }
        let a = Box::pin(Node::start(a, mode.setup(1))).await?;
        let b = Box::pin(Node::start(b, mode.setup(2))).await?;
        let mut net = Self { _servers: Vec::new(), a, b, router };
        net._servers = vec![
            Place::outside(&net).serve("outside").await?,
            Place::node(&net.a, NODE_A).serve("node-a").await?,
            Place::node(&net.b, NODE_B).serve("node-b").await?,
        ];
        Ok(net)
    }
}

/// Before the nodes' links are there. The outside host knows no way to pods: it answers whom it sees.
const ROUTER: &str = "
    ip link del uplink0
    ip netns add outside
    ip link add out0 type veth peer name out1 netns outside
    ip address add 203.0.113.1/24 dev out0; ip -6 address add 2001:db8:c::1/64 dev out0 nodad
    ip link set out0 up
    ip -n outside link set lo up
    ip -n outside address add 203.0.113.2/24 dev out1; ip -n outside -6 address add 2001:db8:c::2/64 dev out1 nodad
    ip -n outside link set out1 up
    ip -n outside route add default via 203.0.113.1; ip -n outside -6 route add default via 2001:db8:c::1
    sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
";

/// The nodes' links, and the routes to their pods.
const ROUTES: &str = "
    ip address add 192.0.2.1/24 dev to-a; ip -6 address add 2001:db8:a::1/64 dev to-a nodad
    ip address add 198.51.100.1/24 dev to-b; ip -6 address add 2001:db8:b::1/64 dev to-b nodad
    ip link set to-a mtu 1400 up; ip link set to-b mtu 1400 up
    ip route add 10.89.1.0/24 via 192.0.2.2; ip -6 route add fd00:89:1::/64 via 2001:db8:a::2
    ip route add 10.89.2.0/24 via 198.51.100.2; ip -6 route add fd00:89:2::/64 via 2001:db8:b::2
";

/// Gives the far end of a node's uplink to the router.
async fn hand_over(node: &World, router: &World, name: &str) -> Result<()> {
    let (from, to) = (node.network_namespace(), router.network_namespace());
    let done = command("nsenter")
        .arg(format!("--net={}", from.display()))
        .args(["ip", "link", "set", "uplink1", "netns"])
        .arg(&to)
        .args(["name", name])
        .output()
        .await
        .context("nsenter")?;
    anyhow::ensure!(done.status.success(), "uplink1 to the router: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}
