//! GetContainerEvents: the whole life of a pod, what each event carries, restarts, and readers that do not read.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use cri::ContainerEventType as Kind;
use cri_proto::runtime::v1 as cri;
use tonic::Code;

use crate::client::{Client, refused};
use crate::ledger::Ledger;
use crate::lifecycle::host_node;
use crate::node::Node;
use crate::requests::{BUSYBOX, container, host_pod, resources};
use crate::world::PATIENCE;

crate::per_runtime!(the_life_of_a_pod);
crate::once!(
    a_restart_ends_the_stream_and_the_next_goes_on,
    a_reader_that_does_not_read,
    subscribers_are_bounded,
    events_and_status_agree
);

type Stream = tonic::Streaming<cri::ContainerEventResponse>;

async fn subscribe(client: &Client) -> Result<Stream> {
    Ok(client.runtime.clone().get_container_events(cri::GetEventsRequest {}).await?.into_inner())
}

async fn next(stream: &mut Stream) -> Result<cri::ContainerEventResponse> {
    let event = tokio::time::timeout(PATIENCE, stream.message()).await.context("no event comes")??;
    event.context("the stream has ended")
}

/// The next event must be this one; its pod's status and its containers' states are returned.
async fn expect(stream: &mut Stream, id: &str, kind: Kind) -> Result<BTreeMap<String, cri::ContainerStatus>> {
    let event = next(stream).await?;
    ensure!(
        event.container_id == id && event.container_event_type() == kind,
        "expected {} of {id}, got {} of {}",
        kind.as_str_name(),
        event.container_event_type().as_str_name(),
        event.container_id
    );
    ensure!(event.created_at > 0, "no time");
    let pod = event.pod_sandbox_status.context("an event without its pod")?;
    ensure!(pod.metadata.is_some_and(|data| data.namespace == "lane"), "the pod has no metadata");
    Ok(event.containers_statuses.into_iter().map(|status| (status.id.clone(), status)).collect())
}

async fn the_life_of_a_pod(runtime: &'static str) -> Result<()> {
    let mut node = Node::new(runtime).await?;
    let client = node.client().await?;
    client.pull(BUSYBOX).await?;
    let mut before = None;
    for _ in 0..2 {
        // Its connection goes with it, so the ledger sees no subscriber.
        let own = Client::connect(&node.socket()).await?;
        Box::pin(one_life(&node, &client, &own)).await?;
        drop(own);
        match before {
            None => before = Some(Ledger::take(&node).await?),
            Some(ref before) => before.assert_same(&node).await?,
        }
    }
    Ok(())
}

async fn one_life(node: &Node, client: &Client, own: &Client) -> Result<()> {
    let mut stream = subscribe(own).await?;
    let sandbox = host_pod(node, "pod");
    let pod = client.run_pod(&sandbox).await?;
    ensure!(expect(&mut stream, &pod, Kind::ContainerCreatedEvent).await?.is_empty());
    expect(&mut stream, &pod, Kind::ContainerStartedEvent).await?;

    let id = client.create(&pod, &container(&sandbox, "seven", "exit 7"), &sandbox).await?;
    let seen = expect(&mut stream, &id, Kind::ContainerCreatedEvent).await?;
    ensure!(seen[&id].state() == cri::ContainerState::ContainerCreated, "{:?}", seen[&id]);
    client.start(&id).await?;
    let seen = expect(&mut stream, &id, Kind::ContainerStartedEvent).await?;
    ensure!(seen[&id].state() == cri::ContainerState::ContainerRunning, "{:?}", seen[&id]);
    let seen = expect(&mut stream, &id, Kind::ContainerStoppedEvent).await?;
    ensure!(seen[&id].state() == cri::ContainerState::ContainerExited && seen[&id].exit_code == 7, "{:?}", seen[&id]);
    // Whoever hears of it finds it so.
    ensure!(client.status(&id).await? == seen[&id], "the status says something else than the event");

    let mut config = container(&sandbox, "oom", "dd if=/dev/zero of=/dev/null bs=64M");
    resources(&mut config).memory_limit_in_bytes = 15 << 20;
    let oom = client.run(&pod, &config, &sandbox).await?;
    expect(&mut stream, &oom, Kind::ContainerCreatedEvent).await?;
    expect(&mut stream, &oom, Kind::ContainerStartedEvent).await?;
    let seen = expect(&mut stream, &oom, Kind::ContainerStoppedEvent).await?;
    ensure!(seen[&oom].reason == "OOMKilled" && seen.len() == 2, "{seen:?}");

    let busy = client.run(&pod, &container(&sandbox, "busy", "sleep 1000"), &sandbox).await?;
    expect(&mut stream, &busy, Kind::ContainerCreatedEvent).await?;
    expect(&mut stream, &busy, Kind::ContainerStartedEvent).await?;
    client.remove(&id).await?;
    let seen = expect(&mut stream, &id, Kind::ContainerDeletedEvent).await?;
    ensure!(!seen.contains_key(&id) && seen.len() == 2, "{seen:?}");
    client.stop_pod(&pod).await?;
    expect(&mut stream, &busy, Kind::ContainerStoppedEvent).await?;
    expect(&mut stream, &pod, Kind::ContainerStoppedEvent).await?;
    client.stop_pod(&pod).await?;
    client.remove_pod(&pod).await?;
    let mut gone = [expected_gone(&mut stream).await?, expected_gone(&mut stream).await?];
    gone.sort();
    let mut containers = [busy, oom];
    containers.sort();
    ensure!(gone == containers, "deleted: {gone:?}");
    ensure!(expect(&mut stream, &pod, Kind::ContainerDeletedEvent).await?.is_empty());
    std::fs::remove_dir_all(node.path("logs/pod"))?;
    Ok(())
}

async fn expected_gone(stream: &mut Stream) -> Result<String> {
    let event = next(stream).await?;
    ensure!(event.container_event_type() == Kind::ContainerDeletedEvent, "{event:?}");
    Ok(event.container_id)
}

async fn a_restart_ends_the_stream_and_the_next_goes_on() -> Result<()> {
    let (mut node, client, sandbox, pod) = host_node("crun").await?;
    let script = "trap 'exit 4' TERM; while :; do sleep 0.05; done";
    let id = client.run(&pod, &container(&sandbox, "own", script), &sandbox).await?;
    let mut stream = subscribe(&client).await?;
    node.kill9().await?;
    let ended = tokio::time::timeout(PATIENCE, stream.message()).await.context("the stream outlives the daemon")?;
    ensure!(!matches!(ended, Ok(Some(_))), "an event of a dead daemon");

    let client = node.launch().await?;
    let mut stream = subscribe(&client).await?;
    client.stop(&id, 30).await?;
    // What the earlier daemon made is no news; what happens to it is, and it is told with the whole pod.
    let seen = expect(&mut stream, &id, Kind::ContainerStoppedEvent).await?;
    ensure!(seen[&id].exit_code == 4, "{:?}", seen[&id]);
    client.clear().await
}

async fn a_reader_that_does_not_read() -> Result<()> {
    let (_node, client, sandbox, pod) = host_node("crun").await?;
    let mut idle = subscribe(&client).await?;
    // More than the ring and a stream's window (2 MiB with this client) hold together. Each pod makes four events.
    let rounds = cricket::events::RING / 4 + 200;
    let mut other = sandbox.clone();
    other.annotations.insert("weight".into(), "x".repeat(10 << 10));
    for n in 0..rounds {
        let metadata = other.metadata.as_mut().context("a pod has metadata")?;
        metadata.name = format!("n{n}");
        metadata.uid = format!("uid-n{n}");
        let id = client.run_pod(&other).await?;
        client.remove_pod(&id).await?;
    }
    // Nobody was held up by it. Now it reads: first what was on its way, then that it has missed some.
    let mut heard = 0;
    let ended = loop {
        match tokio::time::timeout(PATIENCE, idle.message()).await.context("the stream hangs")? {
            Ok(Some(_)) => heard += 1,
            Ok(None) => anyhow::bail!("the stream ended without a word after {heard} events"),
            Err(status) => break status,
        }
    };
    ensure!(heard < 4 * rounds, "it has heard everything");
    refused::<()>(Err(ended), &[Code::DataLoss], &["not read in time", "subscribe again"])?;
    let id = client.create(&pod, &container(&sandbox, "last", "exit 0"), &sandbox).await?;
    client.remove(&id).await?;
    Ok(())
}

async fn subscribers_are_bounded() -> Result<()> {
    let mut node = Node::new("crun").await?;
    let client = node.client().await?;
    let mut streams = Vec::new();
    for _ in 0..cricket::events::SUBSCRIBERS {
        streams.push(subscribe(&client).await?);
    }
    let one_more = client.runtime.clone().get_container_events(cri::GetEventsRequest {}).await;
    refused(one_more, &[Code::ResourceExhausted], &["subscribers"])?;
    streams.clear();
    crate::world::eventually("the places are free again", PATIENCE, async || {
        subscribe(&client).await?;
        Ok(())
    })
    .await
}

async fn events_and_status_agree() -> Result<()> {
    let (node, client, sandbox, pod) = host_node("crun").await?;
    let mut stream = subscribe(&client).await?;
    let id = client.run(&pod, &container(&sandbox, "own", "sleep 1000"), &sandbox).await?;
    next(&mut stream).await?;
    let started = next(&mut stream).await?;
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: false };
    let status = client.runtime.clone().pod_sandbox_status(request.clone()).await?.into_inner();
    ensure!(status.timestamp >= started.created_at, "a status from before the event that was heard");
    ensure!(status.containers_statuses == vec![client.status(&id).await?], "{:?}", status.containers_statuses);
    ensure!(status.status == started.pod_sandbox_status, "{:?}", status.status);
    // A pod without containers says so: an empty list with a time is known to be empty.
    let other = client.run_pod(&host_pod(&node, "empty")).await?;
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: other, ..request };
    let status = client.runtime.clone().pod_sandbox_status(request).await?.into_inner();
    ensure!(status.timestamp > 0 && status.containers_statuses.is_empty(), "{status:?}");
    Ok(())
}
