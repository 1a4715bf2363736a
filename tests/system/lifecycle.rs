//! One container from creation to removal: states, codes, reasons, times, and what a status repeats of the request.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cri_proto::runtime::v1 as cri;
use tonic::Code;

use crate::client::{Client, refused};
use crate::ledger::Ledger;
use crate::node::Node;
use crate::requests::{BUSYBOX, bind, container, host_pod, resources};
use crate::world::{PATIENCE, eventually};

crate::per_runtime!(
    a_whole_life,
    exit_codes,
    out_of_memory,
    a_command_that_is_not_there,
    stop_waits_for_the_handler,
    stop_kills_after_the_grace_period,
    removal_kills,
    nothing_is_left
);
crate::once!(an_environment_value_need_not_be_text, stats_of_running_containers);

/// A node with the test image and one pod on the host's network.
pub async fn host_node(runtime: &'static str) -> Result<(Node, Client, cri::PodSandboxConfig, String)> {
    let mut node = Node::new(runtime).await?;
    let client = node.client().await?;
    client.pull(BUSYBOX).await?;
    let sandbox = host_pod(&node, "pod");
    let pod = client.run_pod(&sandbox).await?;
    Ok((node, client, sandbox, pod))
}

async fn a_whole_life(runtime: &'static str) -> Result<()> {
    let (node, client, sandbox, pod) = host_node(runtime).await?;
    let shared = node.path("shared");
    std::fs::create_dir(&shared)?;
    let mut config = container(&sandbox, "whole", "trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done");
    config.mounts = vec![cri::Mount { readonly: true, ..bind(&shared.to_string_lossy(), "/shared") }];

    let id = client.create(&pod, &config, &sandbox).await?;
    ensure!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase()), "id {id}");
    let created = client.status(&id).await?;
    ensure!(created.state() == cri::ContainerState::ContainerCreated, "state {}", created.state().as_str_name());
    ensure!(created.created_at > 0 && created.started_at == 0 && created.finished_at == 0, "times of {created:?}");

    client.start(&id).await?;
    let running = client.status(&id).await?;
    ensure!(running.state() == cri::ContainerState::ContainerRunning, "state {}", running.state().as_str_name());
    ensure!(running.started_at >= running.created_at && running.finished_at == 0, "times of {running:?}");
    check_repeats(&client, &running, &config, &sandbox).await?;

    let log = running.log_path.clone();
    eventually("the container is ready", PATIENCE, async || {
        ensure!(std::fs::read_to_string(&log)?.contains("ready"), "not yet");
        Ok(())
    })
    .await?;
    client.stop(&id, 30).await?;
    let ended = client.status(&id).await?;
    ensure!(ended.state() == cri::ContainerState::ContainerExited, "state {}", ended.state().as_str_name());
    ensure!((ended.exit_code, &*ended.reason) == (0, "Completed"), "{} {}", ended.exit_code, ended.reason);
    ensure!(ended.finished_at >= ended.started_at, "times of {ended:?}");
    client.stop(&id, 30).await?;
    refused(client.start(&id).await, &[], &[])?;

    client.remove(&id).await?;
    client.remove(&id).await?;
    refused(client.status(&id).await, &[Code::NotFound], &[&id[..12]])?;
    ensure!(client.containers().await?.is_empty(), "a removed container is listed");
    Ok(())
}

/// What a status must repeat of the request, and where a list must agree with it.
async fn check_repeats(
    client: &Client,
    status: &cri::ContainerStatus,
    config: &cri::ContainerConfig,
    sandbox: &cri::PodSandboxConfig,
) -> Result<()> {
    ensure!(status.metadata == config.metadata, "metadata {:?}", status.metadata);
    ensure!(status.labels == config.labels && status.annotations == config.annotations, "labels or annotations");
    ensure!(status.image.as_ref().is_some_and(|image| image.image == BUSYBOX), "image {:?}", status.image);
    ensure!(status.image_ref.starts_with("registry.k8s.io/e2e-test-images/busybox@sha256:"), "{}", status.image_ref);
    let image = client.image_status(BUSYBOX).await?.expect("it was pulled");
    ensure!(status.image_id == image.id, "image id {} is not {}", status.image_id, image.id);
    ensure!(status.log_path == format!("{}/{}", sandbox.log_directory, config.log_path), "{}", status.log_path);
    ensure!(status.mounts.len() == 1, "mounts {:?}", status.mounts);
    let (mount, asked) = (&status.mounts[0], &config.mounts[0]);
    ensure!(mount.host_path == asked.host_path && mount.container_path == asked.container_path, "{mount:?}");
    ensure!(mount.readonly == asked.readonly, "{mount:?}");
    let listed = client.containers().await?;
    ensure!(listed.len() == 1, "{} containers are listed", listed.len());
    let item = &listed[0];
    ensure!(item.id == status.id && item.state == status.state && item.metadata == status.metadata, "{item:?}");
    ensure!(item.image_ref == status.image_ref && item.image_id == status.image_id, "{item:?}");
    ensure!(item.labels == status.labels && item.annotations == status.annotations, "{item:?}");
    ensure!(item.created_at == status.created_at, "{item:?}");
    Ok(())
}

async fn exit_codes(runtime: &'static str) -> Result<()> {
    let (_node, client, sandbox, pod) = host_node(runtime).await?;
    let cases =
        [("zero", "exit 0", 0, "Completed"), ("seven", "exit 7", 7, "Error"), ("high", "exit 255", 255, "Error")];
    for (name, script, code, reason) in cases {
        let id = client.run(&pod, &container(&sandbox, name, script), &sandbox).await?;
        let ended = client.ended(&id).await?;
        ensure!((ended.exit_code, &*ended.reason) == (code, reason), "{name}: {} {}", ended.exit_code, ended.reason);
        ensure!(ended.finished_at > 0, "{name}: no end");
    }
    Ok(())
}

async fn out_of_memory(runtime: &'static str) -> Result<()> {
    let (_node, client, sandbox, pod) = host_node(runtime).await?;
    for (name, script) in
        [("first", "dd if=/dev/zero of=/dev/null bs=64M"), ("child", "dd if=/dev/zero of=/dev/null bs=64M; exit 137")]
    {
        let mut config = container(&sandbox, name, script);
        resources(&mut config).memory_limit_in_bytes = 15 << 20;
        resources(&mut config).memory_swap_limit_in_bytes = 15 << 20;
        let id = client.run(&pod, &config, &sandbox).await?;
        // The verdict must be there with the state, not some time after it.
        let ended = client.ended(&id).await?;
        ensure!(
            (ended.exit_code, &*ended.reason) == (137, "OOMKilled"),
            "{name}: {} {}",
            ended.exit_code,
            ended.reason
        );
    }
    Ok(())
}

async fn a_command_that_is_not_there(runtime: &'static str) -> Result<()> {
    let (_node, client, sandbox, pod) = host_node(runtime).await?;
    let mut config = container(&sandbox, "none", "");
    config.command = vec!["/no/such/program".into()];
    // Runtimes look at different times: some when they create, some when they start.
    match client.create(&pod, &config, &sandbox).await {
        Err(status) => {
            ensure!(status.message().contains("/no/such/program"), "{}", status.message());
            ensure!(client.containers().await?.is_empty(), "a container that could not be created is listed");
        }
        Ok(id) => {
            refused(client.start(&id).await, &[], &["/no/such/program"])?;
            let status = client.status(&id).await?;
            ensure!(status.state() == cri::ContainerState::ContainerExited, "{}", status.state().as_str_name());
            ensure!(
                (status.exit_code, &*status.reason) == (128, "StartError"),
                "{} {}",
                status.exit_code,
                status.reason
            );
            ensure!(status.message.contains("/no/such/program"), "{}", status.message);
            ensure!(status.finished_at > 0, "no end: {status:?}");
        }
    }
    Ok(())
}

async fn stop_waits_for_the_handler(runtime: &'static str) -> Result<()> {
    let (_node, client, sandbox, pod) = host_node(runtime).await?;
    let script = "trap 'sleep 2; echo handler ran; exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    let id = client.run(&pod, &container(&sandbox, "term", script), &sandbox).await?;
    let log = client.status(&id).await?.log_path;
    eventually("the handler is set", PATIENCE, async || {
        ensure!(std::fs::read_to_string(&log)?.contains("ready"), "not yet");
        Ok(())
    })
    .await?;
    client.stop(&id, 30).await?;
    let ended = client.status(&id).await?;
    ensure!((ended.exit_code, &*ended.reason) == (5, "Error"), "{} {}", ended.exit_code, ended.reason);
    ensure!(std::fs::read_to_string(&log)?.contains("handler ran"), "the handler's output is not in the log");
    Ok(())
}

async fn stop_kills_after_the_grace_period(runtime: &'static str) -> Result<()> {
    let (_node, client, sandbox, pod) = host_node(runtime).await?;
    let script = "trap '' TERM; setsid sleep 1000 & while :; do sleep 0.05; done";
    for (name, grace) in [("one", 1), ("none", 0)] {
        let id = client.run(&pod, &container(&sandbox, name, script), &sandbox).await?;
        let stopped = tokio::time::timeout(Duration::from_secs(30), client.stop(&id, grace)).await;
        stopped.map_err(|_| anyhow::anyhow!("StopContainer({grace}) hangs"))??;
        let ended = client.status(&id).await?;
        ensure!((ended.exit_code, &*ended.reason) == (137, "Error"), "{name}: {} {}", ended.exit_code, ended.reason);
    }
    Ok(())
}

async fn removal_kills(runtime: &'static str) -> Result<()> {
    let (node, client, sandbox, pod) = host_node(runtime).await?;
    let id = client.run(&pod, &container(&sandbox, "busy", "sleep 98765"), &sandbox).await?;
    client.remove(&id).await?;
    let left: Vec<_> =
        node.world.processes().into_iter().filter(|(_, words)| words.iter().any(|w| w == "98765")).collect();
    ensure!(left.is_empty(), "still there: {left:?}");
    Ok(())
}

async fn nothing_is_left(runtime: &'static str) -> Result<()> {
    let (node, client, sandbox, pod) = host_node(runtime).await?;
    let mut before = None;
    for name in ["first", "second", "third"] {
        let id = client.run(&pod, &container(&sandbox, name, "sleep 1000"), &sandbox).await?;
        client.output(&id, "echo from exec").await?;
        client.stop(&id, 0).await?;
        client.remove(&id).await?;
        // The first round may make a folder or a connection that stays for the next one.
        match before {
            None => before = Some(Ledger::take(&node).await?),
            Some(ref before) => before.assert_same(&node).await?,
        }
    }
    Ok(())
}

async fn an_environment_value_need_not_be_text() -> Result<()> {
    let (_node, client, sandbox, pod) = host_node("crun").await?;
    let mut config = container(&sandbox, "bytes", "printf %s \"$BYTES\" | od -An -tx1");
    config.envs = vec![cri::KeyValue { key: "BYTES".into(), value: vec![b'a', 0xff, 0xfe, b'z'] }];
    // An OCI configuration is JSON, which has no such strings: either the value arrives byte for byte, or it is refused by name.
    match client.run(&pod, &config, &sandbox).await {
        Ok(id) => {
            let ended = client.ended(&id).await?;
            let log = std::fs::read_to_string(ended.log_path)?;
            ensure!(log.contains("61 ff fe 7a"), "the value arrived as {log}");
        }
        Err(status) => {
            refused::<()>(Err(status), &[Code::InvalidArgument], &["env", "BYTES"])?;
        }
    }
    Ok(())
}

async fn stats_of_running_containers() -> Result<()> {
    let (_node, client, sandbox, pod) = host_node("crun").await?;
    let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 1000";
    let first = client.run(&pod, &container(&sandbox, "first", script), &sandbox).await?;
    let second = client.run(&pod, &container(&sandbox, "second", "sleep 1000"), &sandbox).await?;
    let ended = client.run(&pod, &container(&sandbox, "ended", "exit 0"), &sandbox).await?;
    client.ended(&ended).await?;

    // The first sample of a node whose processors are all taken may come too late for its question.
    let (one, cpu, memory) = eventually("the container is measured", PATIENCE, async || {
        let request = cri::ContainerStatsRequest { container_id: first.clone() };
        let one = client.runtime.clone().container_stats(request).await?.into_inner().stats.context("no stats")?;
        let (cpu, memory) = (one.cpu.context("no cpu")?, one.memory.context("no memory")?);
        Ok((one, cpu, memory))
    })
    .await?;
    ensure!(cpu.timestamp > 0 && cpu.usage_core_nano_seconds.is_some_and(|used| used.value > 0), "{cpu:?}");
    ensure!(memory.timestamp > 0 && memory.working_set_bytes.is_some_and(|used| used.value > 0), "{memory:?}");
    let attributes = one.attributes.expect("attributes");
    ensure!(
        attributes.id == first && attributes.metadata.is_some_and(|data| data.name == "first" && data.attempt == 2)
    );

    let all = client.runtime.clone().list_container_stats(cri::ListContainerStatsRequest { filter: None }).await?;
    let mut ids: Vec<_> = all.into_inner().stats.into_iter().filter_map(|stats| Some(stats.attributes?.id)).collect();
    ids.sort();
    let mut expected = vec![first, second.clone()];
    expected.sort();
    ensure!(ids == expected, "the stats are of {ids:?}");

    let filter =
        cri::ContainerStatsFilter { label_selector: [("label".into(), "second".into())].into(), ..Default::default() };
    let request = cri::ListContainerStatsRequest { filter: Some(filter) };
    let some = client.runtime.clone().list_container_stats(request).await?.into_inner().stats;
    ensure!(some.len() == 1 && some[0].attributes.as_ref().is_some_and(|own| own.id == second), "{some:?}");
    let request = cri::ContainerStatsRequest { container_id: "0".repeat(64) };
    refused(client.runtime.clone().container_stats(request).await, &[Code::NotFound], &[])?;
    Ok(())
}
