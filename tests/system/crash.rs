//! Either process may be killed at any time: what the next one knows.

use anyhow::{Context as _, Result, ensure};
use cri_proto::runtime::v1 as cri;

use crate::client::Client;
use crate::ledger::Ledger;
use crate::lifecycle::host_node;
use crate::node::Node;
use crate::requests::{BUSYBOX, container, host_pod, pod};
use crate::world::{PATIENCE, eventually};

crate::per_runtime!(twenty_containers_survive_the_daemon, a_restart_is_invisible);
crate::once!(the_keeper_may_be_killed, a_pod_of_a_killed_daemon_is_removed_wholly, sigterm_leaves_containers_running);

/// The numbers in a log that counts up, one in each line.
fn numbers(path: &str) -> Result<Vec<u64>> {
    let text = std::fs::read_to_string(path).with_context(|| path.to_owned())?;
    text.lines()
        .map(|line| line.rsplit(' ').next().unwrap_or_default().parse().with_context(|| line.to_owned()))
        .collect()
}

async fn twenty_containers_survive_the_daemon(runtime: &'static str) -> Result<()> {
    let (mut node, client, sandbox, pod) = host_node(runtime).await?;
    let gate = node.path("gate");
    let mut ids = Vec::new();
    for n in 0..20 {
        // Every fourth ends while the daemon is down, with a code of its own, and not before its last line.
        let end =
            if n % 4 == 0 { format!("[ -e /gate/open ] && {{ echo $i; exit {}; }}", 40 + n) } else { String::new() };
        let script = format!("i=0; while :; do {end}\n echo $i; i=$((i+1)); usleep 20000; done");
        let mut config = container(&sandbox, &format!("n{n}"), &script);
        std::fs::create_dir_all(&gate)?;
        config.mounts = vec![crate::requests::bind(&gate.to_string_lossy(), "/gate")];
        ids.push(client.run(&pod, &config, &sandbox).await?);
    }
    let keepers = node.keeper_pids();
    ensure!(keepers.len() == 1, "keepers: {keepers:?}");
    node.kill9().await?;
    std::fs::write(gate.join("open"), "")?;
    // The five are gone when their shells are: nobody but the keeper can have seen it.
    eventually("five containers end", PATIENCE, async || {
        let shells =
            node.world.processes().iter().filter(|(_, words)| words.join(" ").contains("usleep 20000; done")).count();
        ensure!(shells == 15, "{shells} shells");
        Ok(())
    })
    .await?;
    let client = node.launch().await?;
    ensure!(node.keeper_pids() == keepers, "the keeper was replaced");
    for (n, id) in ids.iter().enumerate() {
        let status = client.status(id).await.with_context(|| format!("container {n}"))?;
        let listed = client.containers().await?.iter().any(|one| one.id == *id && one.state == status.state);
        ensure!(listed, "container {n}: list and status disagree");
        if n % 4 == 0 {
            ensure!(status.state() == cri::ContainerState::ContainerExited, "{n} is {}", status.state().as_str_name());
            let expected = i32::try_from(40 + n)?;
            ensure!(
                (status.exit_code, &*status.reason) == (expected, "Error"),
                "{n}: {} {}",
                status.exit_code,
                status.reason
            );
            ensure!(status.finished_at >= status.started_at, "times of {n}");
        } else {
            ensure!(status.state() == cri::ContainerState::ContainerRunning, "{n} is {}", status.state().as_str_name());
        }
    }
    logs_are_continuous(&client, &ids).await
}

async fn logs_are_continuous(client: &Client, ids: &[String]) -> Result<()> {
    for (n, id) in ids.iter().enumerate() {
        let path = client.status(id).await?.log_path;
        let had = numbers(&path)?.len();
        if n % 4 != 0 {
            eventually("the log goes on", PATIENCE, async || {
                ensure!(numbers(&path)?.len() > had + 5, "container {n} writes no more");
                Ok(())
            })
            .await?;
        }
        let got = numbers(&path)?;
        let expected: Vec<_> = (0..got.len() as u64).collect();
        let wrong = got.iter().zip(&expected).position(|(own, right)| own != right);
        ensure!(wrong.is_none(), "container {n}: the log breaks at line {wrong:?}");
    }
    Ok(())
}

/// Everything that lists and statuses say, as text.
async fn answers(client: &Client) -> Result<String> {
    let mut pods = client.pods().await?;
    pods.sort_by(|one, other| one.id.cmp(&other.id));
    let mut containers = client.containers().await?;
    containers.sort_by(|one, other| one.id.cmp(&other.id));
    let mut images = client.images().await?;
    images.sort_by(|one, other| one.id.cmp(&other.id));
    let mut lines = Vec::new();
    for one in &pods {
        lines.push(stable(&format!("{one:#?}")));
        lines.push(stable(&format!("{:#?}", client.pod_status(&one.id).await?)));
    }
    for one in &containers {
        lines.push(stable(&format!("{one:#?}")));
        lines.push(stable(&format!("{:#?}", client.status(&one.id).await?)));
    }
    lines.push(format!("{images:#?}"));
    Ok(lines.join("\n"))
}

/// Maps have no order: the lines of a message are compared sorted.
fn stable(text: &str) -> String {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

async fn a_restart_is_invisible(runtime: &'static str) -> Result<()> {
    let mut node = Node::new(runtime).await?;
    let client = node.client().await?;
    client.pull(BUSYBOX).await?;
    client.pull("gcr.io/k8s-staging-cri-tools/test-image-tags:1").await?;
    let (on_network, on_host) = (pod(&node, "network"), host_pod(&node, "host"));
    for sandbox in [&on_network, &on_host] {
        let id = client.run_pod(sandbox).await?;
        client.create(&id, &container(sandbox, "created", "sleep 1000"), sandbox).await?;
        client.run(&id, &container(sandbox, "running", "sleep 1000"), sandbox).await?;
        let ended = client.run(&id, &container(sandbox, "ended", "exit 9"), sandbox).await?;
        client.ended(&ended).await?;
    }
    let stopped = client.run_pod(&host_pod(&node, "stopped")).await?;
    client.stop_pod(&stopped).await?;

    let before = answers(&client).await?;
    let ledger = Ledger::take(&node).await?;
    let client = node.crash_and_restart().await?;
    let after = answers(&client).await?;
    if before != after {
        let changed: Vec<_> = before.lines().zip(after.lines()).filter(|(one, other)| one != other).take(20).collect();
        anyhow::bail!("answers changed ({} and {} bytes): {changed:#?}", before.len(), after.len());
    }
    // Another daemon, so other descriptors.
    ledger.assert_same_but(&node, "fd daemon").await?;
    // And all of it can still be worked with.
    for one in client.containers().await? {
        match one.state() {
            cri::ContainerState::ContainerCreated => client.start(&one.id).await?,
            cri::ContainerState::ContainerRunning => drop(client.output(&one.id, "true").await?),
            _ => {}
        }
    }
    client.clear().await
}

async fn the_keeper_may_be_killed() -> Result<()> {
    let (mut node, client, sandbox, pod) = host_node("crun").await?;
    let script = "i=0; while :; do echo $i; i=$((i+1)); usleep 20000; [ -e /tmp/end ] && exit 6; done";
    let id = client.run(&pod, &container(&sandbox, "ticks", script), &sandbox).await?;
    let keepers = node.keeper_pids();
    ensure!(keepers.len() == 1, "keepers: {keepers:?}");
    node.world.must("kill", &["-9", &keepers[0].to_string()]).await?;
    eventually("there is a new keeper", PATIENCE, async || {
        let now = node.keeper_pids();
        ensure!(now.len() == 1 && now != keepers, "keepers: {now:?}");
        Ok(())
    })
    .await?;
    ensure!(
        client.status(&id).await?.state() == cri::ContainerState::ContainerRunning,
        "the container went with its keeper"
    );
    let other = client.run(&pod, &container(&sandbox, "new", "exit 5"), &sandbox).await?;
    ensure!(client.ended(&other).await?.exit_code == 5, "a container of the new keeper");
    // The new keeper holds the old container's pipes too: its log goes on over a restart of the daemon.
    let client = {
        node.kill9().await?;
        node.launch().await?
    };
    let path = client.status(&id).await?.log_path;
    let had = numbers(&path)?.len();
    eventually("the log goes on", PATIENCE, async || {
        ensure!(numbers(&path)?.len() > had + 5, "no more lines");
        Ok(())
    })
    .await?;
    client.exec(&id, "touch /tmp/end", 10).await?;
    let ended = client.ended(&id).await?;
    // Its parent is gone: where the kernel cannot tell the code, it is unknown, and said to be.
    let told = (ended.exit_code, &*ended.reason);
    ensure!(told == (6, "Error") || told == (255, "Unknown"), "{told:?}");
    let got = numbers(&path)?;
    ensure!(got.iter().copied().eq(0..got.len() as u64), "the log has gaps");
    Ok(())
}

async fn a_pod_of_a_killed_daemon_is_removed_wholly() -> Result<()> {
    let mut node = Node::new("crun").await?;
    let mut client = node.client().await?;
    let mut before = None;
    // The first round makes what is made once for a node; the second must add nothing to it.
    for _ in 0..2 {
        client.pull(BUSYBOX).await?;
        let sandbox = pod(&node, "orphan");
        let id = client.run_pod(&sandbox).await?;
        client.run(&id, &container(&sandbox, "own", "sleep 1000"), &sandbox).await?;
        client = node.crash_and_restart().await?;
        client.clear().await?;
        match before {
            None => before = Some(Ledger::take(&node).await?),
            Some(ref before) => before.assert_same(&node).await?,
        }
    }
    Ok(())
}

async fn sigterm_leaves_containers_running() -> Result<()> {
    let (mut node, client, sandbox, pod) = host_node("crun").await?;
    let id = client.run(&pod, &container(&sandbox, "own", "sleep 54321"), &sandbox).await?;
    node.stop().await?;
    let alive = |node: &Node| node.world.processes().iter().any(|(_, words)| words.iter().any(|word| word == "54321"));
    ensure!(alive(&node), "the container went with the daemon");
    ensure!(node.keeper_pids().len() == 1, "the keeper went with the daemon");
    let client = node.launch().await?;
    ensure!(client.status(&id).await?.state() == cri::ContainerState::ContainerRunning, "not found running again");
    client.output(&id, "true").await?;
    client.stop(&id, 0).await?;
    ensure!(!alive(&node), "not stopped");
    Ok(())
}
