//! Pods with an address of each family: their order, host ports of both, and what the network may not be told by a pod.

use anyhow::{Context as _, Result, ensure};
use cri_proto::runtime::v1 as cri;

use crate::client::Client;
use crate::ledger::Ledger;
use crate::node::{Node, Setup};
use crate::outside::{From, NODE, NODE_6, answers, echo_server, is_silent, neighbour, perl};
use crate::requests::{BUSYBOX, container, pod};
use crate::world::World;

crate::once!(both_families, the_order_is_the_networks, cve_2020_10749_router_advertisements_are_not_heard);

/// As the lane's bridge, with two ranges in this order.
fn conflist(ranges: &str) -> String {
    let routes = r#"[{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]"#;
    format!(
        r#"{{"cniVersion": "1.0.0", "name": "lane", "plugins": [
          {{"type": "bridge", "bridge": "lane0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
            "ipam": {{"type": "host-local", "dataDir": "LEASES", "routes": {routes}, "ranges": {ranges}}}}},
          {{"type": "portmap", "capabilities": {{"portMappings": true}}, "snat": true}}]}}"#
    )
}

const FOUR_FIRST: &str = r#"[[{"subnet": "10.89.0.0/16"}], [{"subnet": "fd00:89::/64"}]]"#;
const SIX_FIRST: &str = r#"[[{"subnet": "fd00:89::/64"}], [{"subnet": "10.89.0.0/16"}]]"#;

async fn node(ranges: &str) -> Result<(Node, Client)> {
    let setup = Setup { conflist: Some(conflist(ranges)), ..Setup::new("crun") };
    let mut node = Node::start(World::new().await?, setup).await?;
    let client = node.client().await?;
    client.pull(BUSYBOX).await?;
    neighbour(&node).await?;
    Ok((node, client))
}

async fn addresses(client: &Client, id: &str) -> Result<Vec<String>> {
    let network = client.pod_status(id).await?.network.context("no network status")?;
    Ok(std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip)).collect())
}

async fn serve(node: &Node, client: &Client, name: &str) -> Result<String> {
    let mut sandbox = pod(node, name);
    let port = |protocol: cri::Protocol, host_port, container_port| cri::PortMapping {
        protocol: protocol.into(),
        host_port,
        container_port,
        host_ip: String::new(),
    };
    sandbox.port_mappings = vec![port(cri::Protocol::Tcp, 18080, 8080), port(cri::Protocol::Udp, 15353, 5353)];
    let id = Box::pin(client.run_pod(&sandbox)).await?;
    let mut server = container(&sandbox, "server", "");
    (server.command, server.mounts) = (echo_server(name), perl());
    Box::pin(client.run(&id, &server, &sandbox)).await?;
    Ok(id)
}

async fn both_families() -> Result<()> {
    let (mut node, client) = node(FOUR_FIRST).await?;
    let first = serve(&node, &client, "first").await?;
    client.remove_pod(&first).await?;
    std::fs::remove_dir_all(node.path("logs/first"))?;
    let before = Ledger::take(&node).await?;

    let web = serve(&node, &client, "web").await?;
    let ips = addresses(&client, &web).await?;
    ensure!(ips.len() == 2 && ips[0].starts_with("10.89.") && ips[1].starts_with("fd00:89::"), "{ips:?}");
    for ip in &ips {
        answers(&node, From::Node, ("tcp", ip, 8080), "web tcp hello").await?;
        answers(&node, From::Node, ("udp", ip, 5353), "web udp hello").await?;
    }
    for from in [From::Outside, From::Node] {
        for address in [NODE, NODE_6] {
            answers(&node, from, ("tcp", address, 18080), "web tcp hello").await?;
            answers(&node, from, ("udp", address, 15353), "web udp hello").await?;
        }
    }
    // Names: the pod's own at both addresses.
    let sandbox = pod(&node, "web");
    let shell = client.run(&web, &container(&sandbox, "shell", "sleep 100000"), &sandbox).await?;
    let hosts = client.output(&shell, "cat /etc/hosts").await?;
    for line in [format!("{}\tweb", ips[0]), format!("{}\tweb", ips[1]), "127.0.0.1\tlocalhost".to_owned()] {
        ensure!(hosts.lines().any(|own| own == line), "{line:?} is not in {hosts}");
    }

    let client = node.crash_and_restart().await?;
    ensure!(addresses(&client, &web).await? == ips, "the addresses changed with a restart");
    answers(&node, From::Outside, ("tcp", NODE_6, 18080), "web tcp hello").await?;
    client.stop_pod(&web).await?;
    for address in [NODE, NODE_6] {
        is_silent(&node, From::Outside, ("tcp", address, 18080)).await?;
    }
    client.remove_pod(&web).await?;
    std::fs::remove_dir_all(node.path("logs/web"))?;
    before.assert_same_but(&node, "daemon").await
}

async fn the_order_is_the_networks() -> Result<()> {
    let (node, client) = node(SIX_FIRST).await?;
    let id = client.run_pod(&pod(&node, "six")).await?;
    let ips = addresses(&client, &id).await?;
    ensure!(ips.len() == 2 && ips[0].starts_with("fd00:89::") && ips[1].starts_with("10.89."), "{ips:?}");
    Ok(())
}

/// The bridge's end of a pod is no place from which routes are learnt, and the pod's interfaces are not opened to it by us.
async fn cve_2020_10749_router_advertisements_are_not_heard() -> Result<()> {
    let (node, client) = node(FOUR_FIRST).await?;
    let id = serve(&node, &client, "web").await?;
    let script = r#"for link in lane0 $(ip -o link show master lane0 | sed 's/^[0-9]*: //; s/[@:].*//'); do
        echo $link $(cat /proc/sys/net/ipv6/conf/$link/accept_ra) $(cat /proc/sys/net/ipv6/conf/$link/forwarding)
        done"#;
    let seen = node.world.must("sh", &["-c", script]).await?;
    ensure!(seen.lines().count() == 2, "the bridge and one pod's end of it: {seen}");
    for line in seen.lines() {
        let words: Vec<_> = line.split(' ').collect();
        // 1 hears them only while it does not forward, 2 always (the kernel's ip-sysctl page).
        let deaf = words[1] == "0" || (words[1] == "1" && words[2] == "1");
        ensure!(deaf, "{line}: a pod's router advertisement would be heard");
    }
    client.remove_pod(&id).await?;
    Ok(())
}
