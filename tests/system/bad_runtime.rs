//! OCI runtimes that fail, hang, print garbage or go missing.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cri_proto::runtime::v1 as cri;
use tonic::Code;

use crate::client::{Client, refused};
use crate::ledger::Ledger;
use crate::node::{Node, Setup};
use crate::requests::{BUSYBOX, container, host_pod};
use crate::world::{PATIENCE, World, eventually};

crate::once!(create_fails, create_hangs, start_fails, exec_fails, the_runtime_is_missing, create_prints_garbage);

/// A node whose handler `odd` is a script that does `what` when its `VERB` is met, and else is crun.
async fn node_with(verb: &str, what: &str) -> Result<(Node, Client, PathBuf)> {
    let world = World::new().await?;
    let file = world.folder().join("odd-runtime");
    // What a runtime has to say of `create` and `exec` it says in its log: its standard error is the container's.
    let script = format!(
        "#!/bin/sh\nlog= before=\nfor word in \"$@\"; do\ncase $before in --log) log=$word ;; esac\n\
         case $word in --log=*) log=${{word#--log=}} ;; esac\nbefore=$word\ndone\n\
         complain() {{\necho \"$1\" >&2\n\
         [ -z \"$log\" ] || printf '{{\"level\":\"error\",\"msg\":\"%s\",\"time\":\"2025-01-01T00:00:00Z\"}}\\n' \"$1\" >>\"$log\"\n\
         exit 1\n}}\nfor word in \"$@\"; do case $word in\n{verb}) {what} ;;\ncreate|start|run|exec|state|kill|delete|features|list|update|pause|resume|ps|events|spec) break ;;\nesac; done\nexec crun \"$@\"\n"
    );
    std::fs::write(&file, script)?;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755))?;
    let mut setup = Setup::new("crun");
    setup.handlers.push(("odd".to_owned(), file.clone()));
    let mut node = Node::start(world, setup).await?;
    let client = node.client().await?;
    client.pull(BUSYBOX).await?;
    // The first container makes the folders that stay.
    let warm = host_pod(&node, "warm");
    let pod = client.run_pod(&warm).await?;
    client.run(&pod, &container(&warm, "warm", "exit 0"), &warm).await?;
    client.stop_pod(&pod).await?;
    client.remove_pod(&pod).await?;
    Ok((node, client, file))
}

async fn odd_pod(node: &Node, client: &Client) -> Result<(cri::PodSandboxConfig, String)> {
    let sandbox = host_pod(node, "odd");
    let pod = client.run_pod_with(&sandbox, "odd").await?;
    ensure!(client.pod_status(&pod).await?.runtime_handler == "odd", "the handler is not repeated");
    Ok((sandbox, pod))
}

async fn create_fails() -> Result<()> {
    let (node, client, _) = Box::pin(node_with("create", "complain 'canary of create'")).await?;
    let (sandbox, pod) = odd_pod(&node, &client).await?;
    let before = Ledger::take(&node).await?;
    refused(
        client.create(&pod, &container(&sandbox, "bad", "true"), &sandbox).await,
        &[],
        &["odd", "create", "canary of create"],
    )?;
    ensure!(client.containers().await?.is_empty(), "the container is listed");
    before.assert_same(&node).await
}

async fn create_prints_garbage() -> Result<()> {
    // Success without a container.
    let (node, client, _) = Box::pin(node_with("create", "echo '{garbage'; exit 0")).await?;
    let (sandbox, pod) = odd_pod(&node, &client).await?;
    let before = Ledger::take(&node).await?;
    refused(client.create(&pod, &container(&sandbox, "bad", "true"), &sandbox).await, &[], &["odd"])?;
    ensure!(client.containers().await?.is_empty(), "the container is listed");
    before.assert_same(&node).await
}

async fn create_hangs() -> Result<()> {
    // It lets go, without a container, when the test says so: how long the daemon waits is its own affair.
    let (node, client, _) = Box::pin(node_with(
        "create",
        "while [ ! -e \"$(dirname \"$0\")/go\" ]; do sleep 0.05; done; complain 'gave up'",
    ))
    .await?;
    let (sandbox, pod) = odd_pod(&node, &client).await?;
    let before = Ledger::take(&node).await?;
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: pod.clone(),
        config: Some(container(&sandbox, "hangs", "true")),
        sandbox_config: Some(sandbox.clone()),
    };
    let mut request = tonic::Request::new(request);
    request.set_timeout(Duration::from_secs(2));
    let answer = client.runtime.clone().create_container(request).await;
    refused(answer, &[Code::DeadlineExceeded, Code::Cancelled], &[])?;
    // Reads and other pods do not wait for it.
    let others = async {
        client.containers().await?;
        client.pod_status(&pod).await?;
        let fine = host_pod(&node, "fine");
        let id = client.run_pod(&fine).await?;
        let own = client.run(&id, &container(&fine, "own", "exit 4"), &fine).await?;
        ensure!(client.ended(&own).await?.exit_code == 4);
        client.stop_pod(&id).await?;
        client.remove_pod(&id).await?;
        Ok(())
    };
    tokio::time::timeout(PATIENCE, Box::pin(others)).await.context("another pod waits for a runtime that hangs")??;
    std::fs::write(node.path("go"), "")?;
    eventually("the failed container is gone", PATIENCE, async || {
        ensure!(client.containers().await?.is_empty(), "it is listed");
        Ok(())
    })
    .await?;
    before.assert_same(&node).await
}

async fn start_fails() -> Result<()> {
    let (node, client, _) = Box::pin(node_with("start", "complain 'canary of start'")).await?;
    let (sandbox, pod) = odd_pod(&node, &client).await?;
    let before = Ledger::take(&node).await?;
    let id = client.create(&pod, &container(&sandbox, "bad", "true"), &sandbox).await?;
    refused(client.start(&id).await, &[], &["odd", "start", "canary of start"])?;
    let status = client.status(&id).await?;
    ensure!(status.state() == cri::ContainerState::ContainerExited, "{}", status.state().as_str_name());
    ensure!((status.exit_code, &*status.reason) == (128, "StartError"), "{} {}", status.exit_code, status.reason);
    ensure!(status.message.contains("canary of start"), "{}", status.message);
    client.remove(&id).await?;
    before.assert_same(&node).await
}

async fn exec_fails() -> Result<()> {
    let (node, client, _) = Box::pin(node_with("exec", "complain 'canary of exec'")).await?;
    let (sandbox, pod) = odd_pod(&node, &client).await?;
    let id = client.run(&pod, &container(&sandbox, "own", "sleep 1000"), &sandbox).await?;
    let before = Ledger::take(&node).await?;
    match client.exec(&id, "true", 10).await {
        Ok(answer) => ensure!(answer.exit_code != 0, "{answer:?}"),
        Err(status) => ensure!(status.message().contains("canary of exec"), "{}", status.message()),
    }
    before.assert_same(&node).await?;
    client.stop(&id, 0).await?;
    Ok(())
}

async fn the_runtime_is_missing() -> Result<()> {
    let (node, client, file) = Box::pin(node_with("nothing", "true")).await?;
    let (sandbox, pod) = odd_pod(&node, &client).await?;
    let running = client.run(&pod, &container(&sandbox, "running", "sleep 1000"), &sandbox).await?;
    let before = Ledger::take(&node).await?;
    std::fs::remove_file(&file)?;
    let shown = file.to_string_lossy().into_owned();
    refused(client.create(&pod, &container(&sandbox, "bad", "true"), &sandbox).await, &[], &["odd", &shown])?;
    ensure!(client.containers().await?.len() == 1, "the container is listed");
    before.assert_same(&node).await?;
    // A container is stopped without its runtime if need be: the kernel can do it.
    client.stop(&running, 0).await?;
    ensure!(client.status(&running).await?.exit_code == 137);
    client.stop_pod(&pod).await?;
    client.remove_pod(&pod).await?;
    Ok(())
}
