//! Host ports in a real network: who reaches them and who does not, restarts, conflicts, and what a stop leaves.

use anyhow::{Result, ensure};
use cri_proto::runtime::v1 as cri;
use tonic::Code;

use crate::client::{Client, refused};
use crate::ledger::Ledger;
use crate::node::Node;
use crate::outside::{From, NODE, answers, ask, echo_server, is_silent, neighbour, perl};
use crate::requests::{BUSYBOX, container, pod};

crate::once!(
    a_host_port_from_everywhere,
    ports_that_are_wrong,
    sctp,
    cve_2020_8558_localhost_is_the_node_s_own,
    cve_2025_67499_only_traffic_to_the_node_is_mapped,
    cve_2019_9946_rules_that_were_there_go_first
);

pub const TCP: i32 = cri::Protocol::Tcp as i32;
pub const UDP: i32 = cri::Protocol::Udp as i32;
const SCTP: i32 = cri::Protocol::Sctp as i32;

pub fn mapping(protocol: i32, host_ip: &str, host_port: i32, container_port: i32) -> cri::PortMapping {
    cri::PortMapping { protocol, container_port, host_port, host_ip: host_ip.to_owned() }
}

async fn node() -> Result<(Node, Client)> {
    let mut node = Node::new("crun").await?;
    let client = node.client().await?;
    client.pull(BUSYBOX).await?;
    neighbour(&node).await?;
    Ok((node, client))
}

/// A pod with these ports, and the echo server in it.
pub async fn serve(node: &Node, client: &Client, name: &str, ports: Vec<cri::PortMapping>) -> Result<String> {
    let mut sandbox = pod(node, name);
    sandbox.port_mappings = ports;
    let id = Box::pin(client.run_pod(&sandbox)).await?;
    let mut server = container(&sandbox, "server", "");
    (server.command, server.mounts) = (echo_server(name), perl());
    Box::pin(client.run(&id, &server, &sandbox)).await?;
    Ok(id)
}

/// The ports of the pod `web`.
pub fn ports() -> Vec<cri::PortMapping> {
    vec![
        mapping(TCP, "", 18080, 8080),
        mapping(UDP, "", 15353, 5353),
        mapping(TCP, NODE, 18081, 8080),
        mapping(TCP, "127.0.0.1", 18082, 8080),
        // The kubelet's way of naming a port that is not mapped.
        mapping(TCP, "", 0, 8080),
    ]
}

/// The pod `web` with [`ports`] is reached by them, and only by them. `addresses` are the node's.
pub async fn reached_as_mapped(node: &Node, addresses: &[&str]) -> Result<()> {
    for from in [From::Outside, From::Node] {
        for address in addresses {
            answers(node, from, ("tcp", address, 18080), "web tcp hello").await?;
            answers(node, from, ("udp", address, 15353), "web udp hello").await?;
        }
        answers(node, from, ("tcp", NODE, 18081), "web tcp hello").await?;
        is_silent(node, from, ("tcp", NODE, 18082)).await?;
        // The transport is a part of the port.
        is_silent(node, from, ("tcp", NODE, 15353)).await?;
    }
    answers(node, From::Node, ("tcp", "127.0.0.1", 18080), "web tcp hello").await?;
    answers(node, From::Node, ("udp", "127.0.0.1", 15353), "web udp hello").await?;
    answers(node, From::Node, ("tcp", "127.0.0.1", 18082), "web tcp hello").await?;
    is_silent(node, From::Node, ("tcp", "127.0.0.1", 18081)).await
}

/// A stop of the pod `web` frees its [`ports`], although it is still there: a successor is reached at once, over UDP by who
/// talks to the port all the time, too. Then all goes, `other` being the pod `client`.
pub async fn freed_by_a_stop(node: &Node, client: &Client, (web, other): (&str, &str), before: &Ledger) -> Result<()> {
    client.stop_pod(web).await?;
    is_silent(node, From::Outside, ("tcp", NODE, 18080)).await?;
    is_silent(node, From::Node, ("udp", "127.0.0.1", 15353)).await?;
    let next = serve(node, client, "next", ports()).await?;
    answers(node, From::Outside, ("tcp", NODE, 18080), "next tcp hello").await?;
    answers(node, From::Outside, ("udp", NODE, 15353), "next udp hello").await?;
    for id in [web, &next, other] {
        client.remove_pod(id).await?;
    }
    for name in ["web", "next", "client"] {
        std::fs::remove_dir_all(node.path(&format!("logs/{name}")))?;
    }
    // A new daemon is another process with other descriptors.
    before.assert_same_but(node, "daemon").await
}

async fn a_host_port_from_everywhere() -> Result<()> {
    let (mut node, client) = node().await?;
    // What is made once for a node is there before the ledger is opened.
    let first = serve(&node, &client, "first", vec![mapping(TCP, "", 18079, 8080)]).await?;
    client.remove_pod(&first).await?;
    std::fs::remove_dir_all(node.path("logs/first"))?;
    let before = Ledger::take(&node).await?;

    let web = serve(&node, &client, "web", ports()).await?;
    reached_as_mapped(&node, &[NODE]).await?;
    // From another pod, and from the very pod, by the node's address.
    let sandbox = pod(&node, "client");
    let other = client.run_pod(&sandbox).await?;
    let shell = client.run(&other, &container(&sandbox, "shell", "sleep 100000"), &sandbox).await?;
    let said = client.output(&shell, &format!("echo hello | nc -w 5 {NODE} 18080")).await?;
    ensure!(said == "web tcp hello\n", "{said}");
    let mut again = pod(&node, "web");
    again.port_mappings = ports();
    let own = client.run(&web, &container(&again, "shell", "sleep 100000"), &again).await?;
    let said = client.output(&own, &format!("echo hello | nc -w 5 {NODE} 18080")).await?;
    ensure!(said == "web tcp hello\n", "hairpin: {said}");

    // A killed daemon changes nothing, and the next one knows who holds what.
    let client = node.crash_and_restart().await?;
    answers(&node, From::Outside, ("tcp", NODE, 18080), "web tcp hello").await?;
    for (port, free) in [
        (mapping(TCP, "", 18080, 80), false),
        (mapping(TCP, "192.0.2.9", 18080, 80), false),
        (mapping(UDP, "", 15353, 80), false),
        (mapping(TCP, "127.0.0.1", 18081, 80), true),
        (mapping(UDP, "", 18080, 80), true),
    ] {
        let mut taken = pod(&node, "late");
        let number = port.host_port.to_string();
        taken.port_mappings = vec![port];
        match client.run_pod(&taken).await {
            Ok(id) if free => client.remove_pod(&id).await?,
            answer => drop(refused(answer, &[], &["lane/late", "lane/web", &number])?),
        }
    }
    ensure!(client.pods().await?.len() == 2, "a pod whose port was taken is listed");

    freed_by_a_stop(&node, &client, (&web, &other), &before).await
}

async fn ports_that_are_wrong() -> Result<()> {
    let mut node = Node::new("crun").await?;
    let client = node.client().await?;
    let before = Ledger::take(&node).await?;
    let cases: [(Vec<cri::PortMapping>, &[&str]); 9] = [
        (vec![mapping(TCP, "", 65536, 80)], &["port_mappings[0].host_port", "65536"]),
        (vec![mapping(TCP, "", -1, 80)], &["port_mappings[0].host_port", "-1"]),
        (vec![mapping(TCP, "", 80, 0)], &["port_mappings[0].container_port", "\"0\""]),
        (vec![mapping(TCP, "", 80, 70000)], &["port_mappings[0].container_port", "70000"]),
        (vec![mapping(7, "", 80, 80)], &["port_mappings[0].protocol", "7"]),
        (vec![mapping(TCP, "localhost", 80, 80)], &["port_mappings[0].host_ip", "localhost"]),
        (vec![mapping(TCP, "", 80, 80), mapping(TCP, "", 80, 81)], &["port_mappings[1].host_port", "[0]"]),
        (vec![mapping(TCP, "::1", 80, 80), mapping(TCP, "0:0::1", 80, 81)], &["port_mappings[1].host_port", "[0]"]),
        (vec![mapping(UDP, "", 80, 80), mapping(UDP, "0.0.0.0", 80, 81)], &["port_mappings[1].host_port", "[0]"]),
    ];
    for (ports, words) in cases {
        let mut sandbox = pod(&node, "wrong");
        sandbox.port_mappings = ports;
        refused(client.run_pod(&sandbox).await, &[Code::InvalidArgument], words)?;
    }
    ensure!(client.pods().await?.is_empty(), "a refused pod is listed");
    before.assert_same(&node).await
}

/// The kernel of the test machine need not have SCTP sockets: it is the rule that is looked at.
async fn sctp() -> Result<()> {
    let (node, client) = node().await?;
    let id = serve(&node, &client, "signal", vec![mapping(SCTP, "", 12905, 2905)]).await?;
    let rules = node.world.must("iptables-save", &["-t", "nat"]).await?;
    let mapped = rules.lines().any(|rule| rule.contains("-p sctp") && rule.contains("DNAT") && rule.contains(":2905"));
    ensure!(mapped, "no rule maps the port: {rules}");
    // The same number is free for another transport.
    let other = serve(&node, &client, "other", vec![mapping(TCP, "", 12905, 8080)]).await?;
    answers(&node, From::Outside, ("tcp", NODE, 12905), "other tcp hello").await?;
    for id in [id, other] {
        client.remove_pod(&id).await?;
    }
    let rules = node.world.must("iptables-save", &["-t", "nat"]).await?;
    ensure!(!rules.contains("12905"), "a rule is left: {rules}");
    Ok(())
}

/// A packet that only passes through the node has nothing to do with the node's ports.
async fn cve_2025_67499_only_traffic_to_the_node_is_mapped() -> Result<()> {
    let (node, client) = node().await?;
    serve(&node, &client, "web", vec![mapping(TCP, "", 18080, 8080), mapping(UDP, "", 15353, 5353)]).await?;
    answers(&node, From::Outside, ("tcp", NODE, 18080), "web tcp hello").await?;
    // A third machine, which the neighbour reaches by way of the node.
    let script = "
        ip netns add far
        ip link add far0 type veth peer name far1 netns far
        ip address add 198.51.100.1/24 dev far0
        ip link set far0 up
        ip -n far link set lo up
        ip -n far address add 198.51.100.2/24 dev far1
        ip -n far link set far1 up
        ip -n far route add default via 198.51.100.1
        ip -n outside route add 198.51.100.0/24 via 192.0.2.2
        sysctl -qw net.ipv4.ip_forward=1
        iptables -P FORWARD ACCEPT
    ";
    node.world.must("sh", &["-ec", script]).await?;
    let server = echo_server("far");
    // On other ports it listens where the pod does; a redirect within its own namespace puts it at the mapped numbers.
    let redirect = "
        iptables -t nat -A PREROUTING -p tcp --dport 18080 -j REDIRECT --to-ports 8080
        iptables -t nat -A PREROUTING -p udp --dport 15353 -j REDIRECT --to-ports 5353
    ";
    node.world.must("ip", &["netns", "exec", "far", "sh", "-ec", redirect]).await?;
    let _far = node.world.program("ip").args(["netns", "exec", "far"]).args(&server).spawn()?;
    answers(&node, From::Outside, ("tcp", "198.51.100.2", 18080), "far tcp hello").await?;
    answers(&node, From::Outside, ("udp", "198.51.100.2", 15353), "far udp hello").await?;
    answers(&node, From::Outside, ("tcp", NODE, 18080), "web tcp hello").await?;
    Ok(())
}

/// A rule of the administrator that exempts a port is looked at before those of host ports.
async fn cve_2019_9946_rules_that_were_there_go_first() -> Result<()> {
    let (node, client) = node().await?;
    let exempt = ["-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "18080", "-j", "ACCEPT"];
    node.world.must("iptables", &exempt).await?;
    serve(&node, &client, "web", vec![mapping(TCP, "", 18080, 8080), mapping(TCP, "", 18081, 8080)]).await?;
    answers(&node, From::Outside, ("tcp", NODE, 18081), "web tcp hello").await?;
    let said = ask(&node, From::Outside, "tcp", NODE, 18080).await?;
    ensure!(said.stdout.is_empty() && said.stderr.contains("refused"), "the rule was passed over: {said:?}");
    Ok(())
}

/// A neighbour that routes 127.0.0.1 to the node reaches neither what listens there nor a host port.
async fn cve_2020_8558_localhost_is_the_node_s_own() -> Result<()> {
    let (node, client) = node().await?;
    serve(&node, &client, "web", vec![mapping(TCP, "", 18080, 8080), mapping(UDP, "127.0.0.1", 15353, 5353)]).await?;
    answers(&node, From::Node, ("tcp", "127.0.0.1", 18080), "web tcp hello").await?;
    let server = echo_server("own");
    let _own = node.world.program(&server[0]).args(&server[1..]).spawn()?;
    answers(&node, From::Node, ("tcp", "127.0.0.1", 8080), "own tcp hello").await?;
    // The neighbour's own localhost is given up, and its kernel lets such packets out and in.
    let script = "
        sysctl -qw net.ipv4.conf.all.route_localnet=1 net.ipv4.conf.uplink1.route_localnet=1
        sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.uplink1.rp_filter=0
        ip route del table local 127.0.0.0/8 dev lo
        ip route del table local 127.0.0.1 dev lo
        ip route add 127.0.0.1 via 192.0.2.2 dev uplink1
    ";
    node.world.must("ip", &["netns", "exec", "outside", "sh", "-ec", script]).await?;
    // They do leave: a counter before the node's own decisions sees them.
    let count = ["-t", "raw", "-A", "PREROUTING", "-i", "uplink0", "-d", "127.0.0.1"];
    node.world.must("iptables", &count).await?;
    for (transport, port) in [("tcp", 8080), ("tcp", 18080), ("udp", 5353), ("udp", 15353)] {
        is_silent(&node, From::Outside, (transport, "127.0.0.1", port)).await?;
    }
    let counted = node.world.must("iptables", &["-t", "raw", "-vnxL", "PREROUTING"]).await?;
    let packets = counted.lines().last().and_then(|rule| rule.split_whitespace().next()?.parse::<u64>().ok());
    ensure!(packets.is_some_and(|packets| packets >= 4), "the packets did not come to the node: {counted}");
    answers(&node, From::Outside, ("tcp", NODE, 18080), "web tcp hello").await?;
    Ok(())
}
