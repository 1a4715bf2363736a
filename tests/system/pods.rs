//! Pods: network, names, namespaces, sysctls, and that the whole of one goes.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cri_proto::runtime::v1 as cri;
use tonic::Code;

use crate::client::{Client, refused};
use crate::ledger::Ledger;
use crate::node::{Node, Setup};
use crate::requests::{BUSYBOX, container, host_pod, namespaces, pod, with_namespaces};
use crate::world::{PATIENCE, World, eventually};

crate::per_runtime!(every_kind_of_pod_leaves_nothing, a_shared_pid_namespace, containers_share_what_a_pod_has);
crate::once!(
    network_and_host_port,
    names_and_sysctls,
    stop_and_remove_are_idempotent,
    a_retry_joins_the_running_request,
    a_prefix_of_an_id
);

async fn node_with_image(runtime: &'static str) -> Result<(Node, Client)> {
    let mut node = Node::new(runtime).await?;
    let client = node.client().await?;
    client.pull(BUSYBOX).await?;
    Ok((node, client))
}

async fn every_kind_of_pod_leaves_nothing(runtime: &'static str) -> Result<()> {
    let mut node = Node::new(runtime).await?;
    let client = node.client().await?;
    // The first round makes what is made once for a node (bridge, chains, folders); the second must add nothing to it.
    Box::pin(one_round(&node, &client)).await?;
    let before = Ledger::take(&node).await?;
    Box::pin(one_round(&node, &client)).await?;
    before.assert_same(&node).await
}

async fn one_round(node: &Node, client: &Client) -> Result<()> {
    client.pull(BUSYBOX).await?;
    let kinds = [
        ("network", pod(node, "network")),
        ("host", host_pod(node, "host")),
        ("shared", with_namespaces(pod(node, "shared"), namespaces(cri::NamespaceMode::Pod, cri::NamespaceMode::Pod))),
        ("node", with_namespaces(pod(node, "node"), namespaces(cri::NamespaceMode::Node, cri::NamespaceMode::Node))),
    ];
    for (kind, mut sandbox) in kinds {
        if kind == "network" {
            sandbox.port_mappings =
                vec![cri::PortMapping { container_port: 80, host_port: 18080, ..Default::default() }];
        }
        let id = client.run_pod(&sandbox).await.with_context(|| format!("a pod of kind {kind}"))?;
        for name in ["first", "second"] {
            let own = client.run(&id, &container(&sandbox, name, "sleep 100000"), &sandbox).await;
            own.with_context(|| format!("a container in a pod of kind {kind}"))?;
        }
    }
    client.clear().await?;
    ensure!(
        client.containers().await?.is_empty() && client.pods().await?.is_empty() && client.images().await?.is_empty()
    );
    for kind in ["network", "host", "shared", "node"] {
        // A pod's logs are the kubelet's to remove.
        std::fs::remove_dir_all(node.path(&format!("logs/{kind}"))).ok();
    }
    Ok(())
}

async fn a_shared_pid_namespace(runtime: &'static str) -> Result<()> {
    let (node, client) = node_with_image(runtime).await?;
    let options = namespaces(cri::NamespaceMode::Node, cri::NamespaceMode::Pod);
    let sandbox = with_namespaces(host_pod(&node, "shared"), options);
    let id = client.run_pod(&sandbox).await?;
    client.run(&id, &container(&sandbox, "first", "exec sleep 11111"), &sandbox).await?;
    let second = client.run(&id, &container(&sandbox, "second", "exec sleep 22222"), &sandbox).await?;
    let seen = client.output(&second, "ps -o pid,args").await?;
    ensure!(seen.contains("sleep 11111") && seen.contains("sleep 22222"), "{seen}");
    let first_process = client.output(&second, "tr '\\0' ' ' < /proc/1/cmdline").await?;
    ensure!(!first_process.contains("sleep"), "pid 1 is a container: {first_process}");
    // The pod's init reaps what is orphaned: a zombie would be shown in state Z.
    client.output(&second, "sh -c 'sleep 0.1 & exit 0'").await?;
    eventually("orphans are reaped", PATIENCE, async || {
        let states = client.output(&second, "ps -o stat").await?;
        ensure!(!states.contains('Z'), "{states}");
        Ok(())
    })
    .await?;
    // The end of one container is not the end of the other.
    client.stop(&second, 0).await?;
    let left =
        client.containers().await?.iter().filter(|one| one.state() == cri::ContainerState::ContainerRunning).count();
    ensure!(left == 1, "{left} containers run");
    Ok(())
}

async fn containers_share_what_a_pod_has(runtime: &'static str) -> Result<()> {
    let (node, client) = node_with_image(runtime).await?;
    let sandbox = pod(&node, "namespaces");
    let id = client.run_pod(&sandbox).await?;
    let mut seen = Vec::new();
    for name in ["first", "second"] {
        let own = client.run(&id, &container(&sandbox, name, "sleep 100000"), &sandbox).await?;
        let text = client.output(&own, "for n in net ipc uts pid mnt; do readlink /proc/self/ns/$n; done").await?;
        seen.push(text.lines().map(str::to_owned).collect::<Vec<_>>());
        client.output(&own, "echo shared > /dev/shm/file; cat /dev/shm/file").await?;
    }
    ensure!(seen[0][..3] == seen[1][..3], "net, ipc or uts differ: {seen:?}");
    ensure!(seen[0][3] != seen[1][3] && seen[0][4] != seen[1][4], "pid or mnt are shared: {seen:?}");
    let own = std::fs::read_link(node.world.network_namespace())?;
    ensure!(seen[0][0] != own.to_string_lossy(), "the pod is on the host's network");
    Ok(())
}

async fn network_and_host_port() -> Result<()> {
    let (node, client) = node_with_image("crun").await?;
    let mut sandbox = pod(&node, "web");
    // The kubelet sends every declared port; without a host port there is nothing to do.
    sandbox.port_mappings = vec![
        cri::PortMapping { container_port: 8080, host_port: 18080, ..Default::default() },
        cri::PortMapping { container_port: 9090, host_port: 0, ..Default::default() },
    ];
    let id = client.run_pod(&sandbox).await?;
    let script = "mkdir /www; echo page > /www/index.html; exec httpd -f -p 8080 -h /www";
    client.run(&id, &container(&sandbox, "web", script), &sandbox).await?;
    let address = client.pod_status(&id).await?.network.context("no network status")?.ip;
    ensure!(address.starts_with("10.89."), "address {address}");
    for (host, port) in [(&*address, "8080"), ("192.0.2.2", "18080")] {
        eventually("the web server answers", Duration::from_secs(20), async || {
            let get = "exec 3<>/dev/tcp/$0/$1; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; tail -n 1 <&3";
            let page = node.world.must("timeout", &["5", "bash", "-c", get, host, port]).await?;
            ensure!(page == "page\n", "{host}:{port}: {page}");
            Ok(())
        })
        .await?;
    }
    let taken = cri::PodSandboxConfig { metadata: pod(&node, "other").metadata, ..sandbox.clone() };
    refused(client.run_pod(&taken).await, &[], &["18080"])?;
    ensure!(client.pods().await?.len() == 1, "the pod whose host port was taken is listed");
    client.stop_pod(&id).await?;
    let again = client.run_pod(&taken).await?;
    ensure!(client.pod_status(&again).await?.network.is_some_and(|network| !network.ip.is_empty()));
    Ok(())
}

async fn names_and_sysctls() -> Result<()> {
    let (node, client) = node_with_image("crun").await?;
    let before = node.world.must("sysctl", &["-n", "kernel.shm_rmid_forced"]).await?;
    let mut sandbox = pod(&node, "named");
    sandbox.hostname = "given-name".into();
    sandbox.dns_config = Some(cri::DnsConfig {
        servers: vec!["10.10.10.10".into(), "fd00::10".into()],
        searches: vec!["a.example".into(), "b.example".into()],
        options: vec!["ndots:8".into()],
    });
    let linux = sandbox.linux.get_or_insert_default();
    linux.sysctls =
        [("kernel.shm_rmid_forced".into(), "1".into()), ("net.ipv4.ip_unprivileged_port_start".into(), "1024".into())]
            .into();
    let id = client.run_pod(&sandbox).await?;
    let status = client.pod_status(&id).await?;
    ensure!(status.metadata == sandbox.metadata && status.labels == sandbox.labels, "{status:?}");
    ensure!(status.annotations == sandbox.annotations && status.created_at > 0, "{status:?}");
    let own = client.run(&id, &container(&sandbox, "own", "sleep 100000"), &sandbox).await?;
    let script =
        "hostname; cat /etc/hostname /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start";
    let text = client.output(&own, script).await?;
    ensure!(text.lines().eq(["given-name", "given-name", "1", "1024"]), "{text}");
    let text = client.output(&own, "cat /etc/resolv.conf").await?;
    for line in ["nameserver 10.10.10.10", "nameserver fd00::10", "search a.example b.example", "options ndots:8"] {
        ensure!(text.lines().any(|own| own == line), "{line} is not in {text}");
    }
    let after = node.world.must("sysctl", &["-n", "kernel.shm_rmid_forced"]).await?;
    ensure!(before == after, "the node's own value was {before} and is {after}");
    Ok(())
}

async fn stop_and_remove_are_idempotent() -> Result<()> {
    let (node, client) = node_with_image("crun").await?;
    let sandbox = pod(&node, "twice");
    let id = client.run_pod(&sandbox).await?;
    let own = client.run(&id, &container(&sandbox, "own", "sleep 100000"), &sandbox).await?;
    for _ in 0..2 {
        client.stop_pod(&id).await?;
        ensure!(client.pod_status(&id).await?.state() == cri::PodSandboxState::SandboxNotready, "still ready");
        ensure!(client.status(&own).await?.state() == cri::ContainerState::ContainerExited, "still running");
    }
    refused(client.create(&id, &container(&sandbox, "late", "true"), &sandbox).await, &[], &[&id[..12]])?;
    for _ in 0..2 {
        client.remove_pod(&id).await?;
        refused(client.pod_status(&id).await, &[Code::NotFound], &[&id[..12]])?;
        refused(client.status(&own).await, &[Code::NotFound], &[&own[..12]])?;
    }
    for unknown in ["0".repeat(64), "11111111-2222-3333-4444-555555555555".to_owned()] {
        client.stop_pod(&unknown).await?;
        client.remove_pod(&unknown).await?;
        client.stop(&unknown, 0).await?;
        client.remove(&unknown).await?;
    }
    // The identity is free again at once.
    let again = client.run_pod(&sandbox).await?;
    ensure!(again != id, "an id was used twice");
    Ok(())
}

async fn a_retry_joins_the_running_request() -> Result<()> {
    let world = World::new().await?;
    let (gate, calls) = (world.folder().join("gate"), world.folder().join("calls"));
    let script = format!(
        "#!/bin/sh\n[ $CNI_COMMAND = ADD ] && {{ echo add >> {}; while [ ! -e {} ]; do sleep 0.05; done; }}\nexec /usr/lib/cni/bridge\n",
        calls.display(),
        gate.display()
    );
    let plugins = crate::bad_network::plugin_folder(&world, "slow", &script)?;
    let mut setup = Setup::new("crun");
    setup.plugins = Some(plugins);
    setup.conflist = setup.conflist.map(|text| text.replace("\"bridge\", \"bridge\"", "\"slow\", \"bridge\""));
    let mut node = Node::start(world, setup).await?;
    let client = node.client().await?;
    let sandbox = pod(&node, "joined");

    let mut hasty =
        tonic::Request::new(cri::RunPodSandboxRequest { config: Some(sandbox.clone()), ..Default::default() });
    hasty.set_timeout(Duration::from_secs(1));
    let answer = client.runtime.clone().run_pod_sandbox(hasty).await;
    refused(answer, &[Code::DeadlineExceeded, Code::Cancelled], &[])?;
    // The work goes on without its client; two more clients ask for the same.
    let (one, other) = (client.clone(), client.clone());
    let (first, second) = (sandbox.clone(), sandbox.clone());
    let one = cricket::task::spawn("first retry", async move { one.run_pod(&first).await });
    let other = cricket::task::spawn("second retry", async move { other.run_pod(&second).await });
    eventually("the plugin runs", PATIENCE, async || {
        ensure!(calls.exists(), "not yet");
        Ok(())
    })
    .await?;
    std::fs::write(&gate, "")?;
    let (one, other) = (one.await??, other.await??);
    ensure!(one == other, "two pods for one identity: {one} and {other}");
    ensure!(client.pods().await?.len() == 1, "more than one pod is listed");
    let added = std::fs::read_to_string(&calls)?.lines().count();
    ensure!(added == 1, "the plugin was called {added} times");
    Ok(())
}

async fn a_prefix_of_an_id() -> Result<()> {
    let mut node = Node::new("crun").await?;
    let client = node.client().await?;
    // Seventeen ids have sixteen first digits: two of them share theirs.
    let mut ids = Vec::new();
    for n in 0..17 {
        ids.push(client.run_pod(&host_pod(&node, &format!("pod-{n}"))).await?);
    }
    let shared = (0..16)
        .map(|digit| format!("{digit:x}"))
        .find(|digit| ids.iter().filter(|id| id.starts_with(digit)).count() > 1);
    let shared = shared.expect("seventeen ids, sixteen digits");
    refused(client.pod_status(&shared).await, &[Code::InvalidArgument], &["ambiguous"])?;
    refused(client.stop_pod(&shared).await, &[Code::InvalidArgument], &["ambiguous"])?;
    refused(client.remove_pod(&shared).await, &[Code::InvalidArgument], &["ambiguous"])?;
    for id in &ids {
        let status = client.pod_status(&id[..16]).await?;
        ensure!(status.id == *id && status.state() == cri::PodSandboxState::SandboxReady, "{}", status.id);
    }
    Ok(())
}
