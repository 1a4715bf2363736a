//! The builtin network in a real daemon: a node with nothing configured, host ports from everywhere, restarts, others who
//! remove rules, what a pod may send, and what is refused.

use anyhow::{Context as _, Result, ensure};
use cri_proto::runtime::v1 as cri;
use tonic::Code;

use crate::client::{Client, refused};
use crate::hostports::{TCP, freed_by_a_stop, mapping, ports, reached_as_mapped, serve};
use crate::ledger::Ledger;
use crate::node::{Node, Setup};
use crate::outside::{From, NODE, NODE_6, answers, echo_server, neighbour, perl};
use crate::requests::{BUSYBOX, container, pod};
use crate::world::{PATIENCE, World, eventually};

crate::once!(
    builtin_ports_from_everywhere,
    builtin_rules_that_others_remove_come_back,
    builtin_pods_send_only_from_their_own_addresses,
    builtin_pod_cidrs_of_the_kubelet,
    builtin_auto_makes_way_for_cni,
    builtin_obstacles_are_named,
    builtin_bandwidth_of_annotations,
    cve_2020_8558_loopback_stays_closed_to_builtin_pods
);

/// A node without any network configuration, and a neighbour.
async fn node(mode: &str) -> Result<(Node, Client)> {
    let mut setup = Setup::new("crun");
    setup.conflist = None;
    setup.keys.push(("network.mode", mode.into()));
    let mut node = Node::start(World::new().await?, setup).await?;
    let client = node.client().await?;
    client.pull(BUSYBOX).await?;
    neighbour(&node).await?;
    Ok((node, client))
}

/// A container in which commands can be run.
async fn shell(node: &Node, client: &Client, name: &str, privileged: bool) -> Result<(String, String)> {
    let mut sandbox = pod(node, name);
    let mut shell = container(&sandbox, "shell", "sleep 100000");
    if privileged {
        let context = cri::LinuxSandboxSecurityContext { privileged: true, ..Default::default() };
        sandbox.linux.get_or_insert_default().security_context = Some(context);
        let context = cri::LinuxContainerSecurityContext { privileged: true, ..Default::default() };
        shell.linux.get_or_insert_default().security_context = Some(context);
        shell.mounts = perl();
    }
    let id = Box::pin(client.run_pod(&sandbox)).await?;
    let shell = Box::pin(client.run(&id, &shell, &sandbox)).await?;
    Ok((id, shell))
}

async fn ips(client: &Client, id: &str) -> Result<Vec<String>> {
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
    let status = client.runtime.clone().pod_sandbox_status(request).await?.into_inner().status.context("no status")?;
    let network = status.network.context("no network")?;
    Ok([network.ip].into_iter().chain(network.additional_ips.into_iter().map(|ip| ip.ip)).collect())
}

async fn network_condition(client: &Client) -> Result<cri::RuntimeCondition> {
    let answer = client.runtime.clone().status(cri::StatusRequest { verbose: false }).await?.into_inner();
    let conditions = answer.status.context("no status")?.conditions;
    conditions.into_iter().find(|own| own.r#type == "NetworkReady").context("no condition NetworkReady")
}

async fn builtin_ports_from_everywhere() -> Result<()> {
    let (mut node, client) = node("auto").await?;
    ensure!(network_condition(&client).await?.status, "a fresh node has no network");
    // What is made once for a node is there before the ledger is opened.
    let first = serve(&node, &client, "first", vec![mapping(TCP, "", 18079, 8080)]).await?;
    client.remove_pod(&first).await?;
    std::fs::remove_dir_all(node.path("logs/first"))?;
    let before = Ledger::take(&node).await?;

    let web = serve(&node, &client, "web", ports()).await?;
    ensure!(ips(&client, &web).await?.len() == 2, "{:?}", ips(&client, &web).await?);
    reached_as_mapped(&node, &[NODE, NODE_6]).await?;
    // From another pod, from the very pod, from pod to pod, and from a pod to the outside.
    let (other, asker) = shell(&node, &client, "client", false).await?;
    let mut again = pod(&node, "web");
    again.port_mappings = ports();
    let own = client.run(&web, &container(&again, "shell", "sleep 100000"), &again).await?;
    let target = ips(&client, &web).await?;
    for from in [&asker, &own] {
        for (host, port) in [(NODE, 18080), (NODE_6, 18080), (&*target[0], 8080), (&*target[1], 8080)] {
            let said = client.output(from, &format!("echo hello | nc -w 5 {host} {port}")).await?;
            ensure!(said == "web tcp hello\n", "{host} {port}: {said}");
        }
    }
    client.output(&asker, "ping -c 1 -W 5 192.0.2.1").await?;
    client.output(&asker, "ping -6 -c 1 -W 5 2001:db8::1").await?;

    // A killed daemon changes nothing, and the next one knows who holds what.
    let addresses = ips(&client, &web).await?;
    let client = node.crash_and_restart().await?;
    ensure!(ips(&client, &web).await? == addresses, "the addresses changed");
    answers(&node, From::Outside, ("tcp", NODE, 18080), "web tcp hello").await?;
    let mut taken = pod(&node, "late");
    taken.port_mappings = vec![mapping(TCP, "192.0.2.9", 18080, 80)];
    refused(client.run_pod(&taken).await, &[], &["lane/late", "lane/web", "18080"])?;

    freed_by_a_stop(&node, &client, (&web, &other), &before).await
}

async fn builtin_rules_that_others_remove_come_back() -> Result<()> {
    let (node, client) = node("builtin").await?;
    serve(&node, &client, "web", ports()).await?;
    answers(&node, From::Outside, ("tcp", NODE, 18080), "web tcp hello").await?;
    for line in [
        "flush ruleset",
        "delete table inet cricket",
        "flush chain inet cricket inbound",
        "flush map inet cricket ports4",
        "delete table bridge cricket",
    ] {
        node.world.must("nft", &line.split(' ').collect::<Vec<_>>()).await?;
        answers(&node, From::Outside, ("tcp", NODE, 18080), "web tcp hello").await?;
        eventually("both tables are there", PATIENCE, async || {
            let tables = node.world.must("nft", &["list", "tables"]).await?;
            ensure!(tables.contains("inet cricket") && tables.contains("bridge cricket"), "{line}: {tables}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// As root of the pod's network, which a privileged pod is.
async fn builtin_pods_send_only_from_their_own_addresses() -> Result<()> {
    let (node, client) = node("builtin").await?;
    let (good, _) = shell(&node, &client, "good", false).await?;
    let (_, bad) = shell(&node, &client, "bad", true).await?;
    let target = ips(&client, &good).await?;
    for host in [&*target[0], "10.85.0.1", "192.0.2.1"] {
        client.output(&bad, &format!("ping -c 1 -W 5 {host}")).await?;
    }
    for (from, hosts) in [
        ("10.85.0.77", [&*target[0], "10.85.0.1", "192.0.2.1"]),
        ("fd00:85::77", [&*target[1], "fd00:85::1", "2001:db8::1"]),
    ] {
        let bits = if from.contains(':') { 64 } else { 16 };
        client.output(&bad, &format!("/bin/busybox ip address add {from}/{bits} dev eth0")).await?;
        for host in hosts {
            let said =
                client.output(&bad, &format!("ping -c 1 -W 1 -I {from} {host} >/dev/null 2>&1; echo $?")).await?;
            ensure!(said == "1\n", "{from} reached {host}: {said}");
        }
    }
    // Another MAC.
    client.output(&bad, "/bin/busybox ip link set eth0 address 0a:58:00:00:00:77").await?;
    let said = client.output(&bad, "ping -c 1 -W 1 10.85.0.1 >/dev/null 2>&1; echo $?").await?;
    ensure!(said == "1\n", "another MAC: {said}");
    Ok(())
}

async fn hand_over(client: &Client, cidr: &str) -> Result<(), tonic::Status> {
    let network_config = Some(cri::NetworkConfig { pod_cidr: cidr.to_owned() });
    let request = cri::UpdateRuntimeConfigRequest { runtime_config: Some(cri::RuntimeConfig { network_config }) };
    client.runtime.clone().update_runtime_config(request).await.map(drop)
}

async fn builtin_pod_cidrs_of_the_kubelet() -> Result<()> {
    let (mut node, client) = node("auto").await?;
    hand_over(&client, "10.99.3.0/24,fd00:99:3::/64").await?;
    hand_over(&client, "").await?;
    let id = client.run_pod(&pod(&node, "a")).await?;
    ensure!(ips(&client, &id).await? == ["10.99.3.2", "fd00:99:3::2"], "{:?}", ips(&client, &id).await?);
    hand_over(&client, "10.99.3.0/24,fd00:99:3::/64").await?;
    let answer = hand_over(&client, "10.99.4.0/24").await;
    refused(answer, &[Code::FailedPrecondition], &["10.99.4.0/24", "10.99.3.0/24", "1 pods"])?;
    for bad in ["10.99.4.0/31", "127.0.0.0/8", "10.99.4.0/24,10.99.5.0/24"] {
        refused(hand_over(&client, bad).await, &[Code::InvalidArgument], &["pod_cidr"])?;
    }
    let client = node.crash_and_restart().await?;
    let second = client.run_pod(&pod(&node, "b")).await?;
    ensure!(ips(&client, &second).await? == ["10.99.3.3", "fd00:99:3::3"], "the range is lost by a restart");
    for id in [id, second] {
        client.remove_pod(&id).await?;
    }
    hand_over(&client, "10.99.4.0/24").await?;
    let id = client.run_pod(&pod(&node, "c")).await?;
    ensure!(ips(&client, &id).await? == ["10.99.4.2"], "{:?}", ips(&client, &id).await?);
    Ok(())
}

async fn builtin_auto_makes_way_for_cni() -> Result<()> {
    let (mut node, client) = node("auto").await?;
    let old = serve(&node, &client, "old", vec![mapping(TCP, "", 18080, 8080)]).await?;
    node.write_conflist(crate::node::BRIDGE)?;
    let new = eventually("a new pod is on the CNI network", PATIENCE, async || {
        let id = client.run_pod(&pod(&node, "new")).await?;
        let own = ips(&client, &id).await?;
        if own[0].starts_with("10.89.") {
            return Ok(id);
        }
        client.remove_pod(&id).await?;
        anyhow::bail!("{own:?}")
    })
    .await?;
    answers(&node, From::Outside, ("tcp", NODE, 18080), "old tcp hello").await?;
    // The configuration goes, and a restart comes: nobody falls back to the builtin network under the other pod.
    std::fs::remove_file(node.path("cni/10-lane.conflist"))?;
    let client = node.crash_and_restart().await?;
    refused(client.run_pod(&pod(&node, "late")).await, &[], &["no CNI configuration"])?;
    answers(&node, From::Outside, ("tcp", NODE, 18080), "old tcp hello").await?;
    for id in [&old, &new] {
        client.remove_pod(id).await?;
    }
    eventually("links of both are gone", PATIENCE, async || {
        let links = node.world.must("ip", &["-br", "link"]).await?;
        ensure!(!links.contains("veth") && !links.lines().any(|line| line.starts_with("ck")), "{links}");
        Ok(())
    })
    .await
}

/// Whatever keeps forwarded packets from pods is named, by each of the filters that a node may have; and no longer so once
/// the pods' bridge is let through, or what was in the way is gone.
async fn builtin_obstacles_are_named() -> Result<()> {
    let (node, client) = node("builtin").await?;
    let id = client.run_pod(&pod(&node, "a")).await?;
    let wall = |rules: &str| {
        format!("add table ip wall; add chain ip wall gate {{ type filter hook forward priority 0; {rules} }}")
    };
    let nft = |text: String| format!("nft '{text}'");
    let gone = "nft delete table ip wall".to_owned();
    // The old filter tells nobody of its changes. It is looked at twice a minute, and with each change in nftables.
    let noticed = "nft add table ip other; nft delete table ip other";
    let is_policy = "chain ip wall gate of nftables has the policy drop";
    for (made, named, mended) in [
        (nft(wall("policy drop;")), is_policy, gone.clone()),
        (nft(wall("policy drop;")), is_policy, "nft add rule ip wall gate iifname cricket0 accept".to_owned()),
        (
            format!(
                "{gone}; {}; {}",
                nft(wall("policy drop;")),
                nft("add chain ip wall pods; add rule ip wall gate jump pods".into())
            ),
            is_policy,
            "nft add rule ip wall pods oifname cricket0 counter accept".to_owned(),
        ),
        (
            format!(
                "{gone}; {}; {}",
                nft(wall("")),
                nft("add rule ip wall gate tcp dport 1 drop; add rule ip wall gate counter reject".into())
            ),
            "chain ip wall gate of nftables drops all that comes to it",
            "nft insert rule ip wall gate accept".to_owned(),
        ),
        (
            "iptables-nft -P FORWARD DROP".into(),
            "chain ip filter FORWARD of nftables",
            "iptables-nft -P FORWARD ACCEPT".into(),
        ),
        (
            "iptables-nft -A FORWARD -j REJECT".into(),
            "chain ip filter FORWARD of nftables drops all",
            "iptables-nft -I FORWARD -i cricket0 -j ACCEPT".into(),
        ),
        (
            format!("iptables-legacy -P FORWARD DROP; {noticed}"),
            "chain FORWARD of iptables-legacy has the policy drop",
            format!("iptables-legacy -I FORWARD -o cricket0 -j ACCEPT; {noticed}"),
        ),
        (
            format!("ip6tables-legacy -A FORWARD -p tcp -j DROP; ip6tables-legacy -A FORWARD -j REJECT; {noticed}"),
            "rule 2 of chain FORWARD of ip6tables-legacy drops all",
            format!("ip6tables-legacy -D FORWARD 2; {noticed}"),
        ),
    ] {
        node.world.must("sh", &["-ec", &made]).await?;
        let message = async || network_condition(&client).await.map(|condition| (condition.status, condition.message));
        eventually(named, PATIENCE, async || {
            let (ready, said) = message().await?;
            ensure!(ready && said.contains(named), "{made}: {said}");
            Ok(())
        })
        .await?;
        node.world.must("sh", &["-ec", &mended]).await?;
        eventually("nothing is in the way", PATIENCE, async || {
            let (_, said) = message().await?;
            ensure!(said.is_empty(), "{mended}: {said}");
            Ok(())
        })
        .await?;
    }
    client.remove_pod(&id).await?;
    Ok(())
}

/// How much the queues let through is measured by the network's own tests; here, that they are the annotations'.
async fn builtin_bandwidth_of_annotations() -> Result<()> {
    let (node, client) = node("builtin").await?;
    let limited = |ingress: &str, egress: &str| {
        let mut sandbox = pod(&node, "limited");
        for (direction, rate) in [("ingress", ingress), ("egress", egress)] {
            sandbox.annotations.insert(format!("kubernetes.io/{direction}-bandwidth"), rate.to_owned());
        }
        sandbox
    };
    let id = client.run_pod(&limited("10M", "2500k")).await?;
    let queues = node.world.must("tc", &["qdisc", "show"]).await?;
    let of = |link: &str, rate: &str| {
        queues.lines().any(|line| line.contains(&format!("dev {link}")) && line.contains("tbf") && line.contains(rate))
    };
    ensure!(of("ck", "rate 10Mbit") && of("cq", "rate 2500Kbit"), "{queues}");
    client.remove_pod(&id).await?;
    refused(client.run_pod(&limited("10M", "fast")).await, &[], &["kubernetes.io/egress-bandwidth", "fast"])?;
    eventually("no link of a pod is left", PATIENCE, async || {
        let links = node.world.must("ip", &["-br", "link"]).await?;
        ensure!(!links.lines().any(|line| line.starts_with("ck") || line.starts_with("cq")), "{links}");
        Ok(())
    })
    .await
}

/// The node's own services on 127.0.0.1 are not reached from pods, although the bridge may carry such packets out.
async fn cve_2020_8558_loopback_stays_closed_to_builtin_pods() -> Result<()> {
    let (node, client) = node("builtin").await?;
    let (_, bad) = shell(&node, &client, "bad", true).await?;
    let server = echo_server("node");
    let _server = node.world.program(&server[0]).args(&server[1..]).spawn()?;
    answers(&node, From::Node, ("tcp", "127.0.0.1", 8080), "node tcp hello").await?;
    client.output(&bad, "/bin/busybox ip route add 127.0.0.5/32 via 10.85.0.1 || true").await?;
    let script = "/bin/busybox ip route del local 127.0.0.0/8 dev lo table local; /bin/busybox ip route add 127.0.0.1/32 via 10.85.0.1; \
        echo hello | nc -w 2 127.0.0.1 8080; echo done";
    let said = client.output(&bad, script).await?;
    ensure!(!said.contains("node"), "{said}");
    Ok(())
}
