//! `ExecSync`: output, exit codes, caps, clocks, and that nothing of it stays behind.

use std::time::Duration;

use anyhow::{Result, ensure};
use cri_proto::runtime::v1 as cri;
use tonic::Code;

use crate::client::{Client, refused};
use crate::ledger::Ledger;
use crate::lifecycle::host_node;
use crate::node::Node;
use crate::requests::{container, security};
use crate::world::{PATIENCE, eventually};

crate::per_runtime!(output_and_code, a_timeout_kills_the_whole_tree, twenty_at_once);
crate::once!(
    output_is_capped,
    a_background_child_does_not_hold_the_call,
    only_running_containers,
    a_cancelled_call_kills,
    who_and_where
);

/// A container whose first process reaps what is orphaned to it, as an init does.
async fn with_container(runtime: &'static str) -> Result<(Node, Client, String)> {
    let (node, client, sandbox, pod) = host_node(runtime).await?;
    let id = client.run(&pod, &container(&sandbox, "idle", "sleep 100000 & while :; do wait; done"), &sandbox).await?;
    Ok((node, client, id))
}

/// The processes of the world that have this word in their command line.
fn with_word(node: &Node, word: &str) -> Vec<(u32, Vec<String>)> {
    let has = |words: &[String]| words.iter().any(|own| own == word) && !words.iter().any(|own| own == "-c");
    node.world.processes().into_iter().filter(|(_, words)| has(words)).collect()
}

async fn output_and_code(runtime: &'static str) -> Result<()> {
    let (_node, client, id) = Box::pin(with_container(runtime)).await?;
    let answer = client.exec(&id, "printf out; printf err >&2; exit 3", 10).await?;
    ensure!(answer.stdout == b"out" && answer.stderr == b"err" && answer.exit_code == 3, "{answer:?}");
    let answer = client.exec(&id, "cat; echo end of input", 10).await?;
    ensure!(answer.stdout == b"end of input\n" && answer.exit_code == 0, "{answer:?}");
    let answer = client.exec(&id, "kill -KILL $$", 10).await?;
    ensure!(answer.exit_code == 137, "{answer:?}");
    let request = cri::ExecSyncRequest { container_id: id.clone(), cmd: vec!["/no/such".into()], timeout: 10 };
    match client.runtime.clone().exec_sync(request).await {
        Ok(answer) => ensure!([126, 127].contains(&answer.get_ref().exit_code), "{answer:?}"),
        Err(status) => ensure!(status.message().contains("/no/such"), "{}", status.message()),
    }
    let request = cri::ExecSyncRequest { container_id: id, cmd: Vec::new(), timeout: 10 };
    refused(client.runtime.clone().exec_sync(request).await, &[Code::InvalidArgument], &["cmd"])?;
    Ok(())
}

async fn a_timeout_kills_the_whole_tree(runtime: &'static str) -> Result<()> {
    let (node, client, id) = Box::pin(with_container(runtime)).await?;
    let before = Ledger::take(&node).await?;
    // Grandchildren with a session of their own, one of them without its parent.
    let script = "setsid sh -c 'sleep 87654 & sleep 87654' & (setsid sleep 87654 &) ; sleep 87654";
    let call = tokio::time::timeout(PATIENCE, client.exec(&id, script, 1)).await;
    let answer = call.map_err(|_| anyhow::anyhow!("ExecSync with a timeout of 1 s hangs"))?;
    refused(answer, &[Code::DeadlineExceeded], &["1"])?;
    let left = with_word(&node, "87654");
    ensure!(left.is_empty(), "left behind: {left:?}");
    ensure!(client.status(&id).await?.state() == cri::ContainerState::ContainerRunning, "the container died too");
    client.output(&id, "echo still here").await?;
    before.assert_same(&node).await
}

async fn twenty_at_once(runtime: &'static str) -> Result<()> {
    let (node, client, id) = Box::pin(with_container(runtime)).await?;
    let before = Ledger::take(&node).await?;
    let calls = (0..20).map(|n| {
        let (client, id) = (client.clone(), id.clone());
        async move { (n, client.exec(&id, &format!("echo {n}; exit {n}"), 60).await) }
    });
    for (n, answer) in futures_util::future::join_all(calls).await {
        let answer = answer?;
        ensure!(answer.exit_code == n && answer.stdout == format!("{n}\n").into_bytes(), "{n}: {answer:?}");
    }
    before.assert_same(&node).await
}

async fn output_is_capped() -> Result<()> {
    let (_node, client, id) = Box::pin(with_container("crun")).await?;
    // The client takes 16 MiB for an answer; the command must come to its own end all the same.
    let script = "head -c 20000000 /dev/zero; head -c 20000000 /dev/zero >&2; exit 4";
    let answer = client.exec(&id, script, 60).await?;
    ensure!(answer.exit_code == 4, "exit code {}", answer.exit_code);
    let (out, err) = (answer.stdout.len(), answer.stderr.len());
    ensure!(out + err <= 16 << 20 && out >= 1 << 20, "{out} bytes of stdout, {err} of stderr");
    Ok(())
}

async fn a_background_child_does_not_hold_the_call() -> Result<()> {
    let (_node, client, id) = Box::pin(with_container("crun")).await?;
    let call = tokio::time::timeout(PATIENCE, client.exec(&id, "echo first; sleep 76543 & exit 0", 0)).await;
    let answer = call.map_err(|_| anyhow::anyhow!("the call waits for a background child"))??;
    ensure!(answer.exit_code == 0 && answer.stdout == b"first\n", "{answer:?}");
    Ok(())
}

async fn only_running_containers() -> Result<()> {
    let (_node, client, sandbox, pod) = host_node("crun").await?;
    let unknown = "0123456789abcdef".repeat(4);
    refused(client.exec(&unknown, "true", 1).await, &[Code::NotFound], &[&unknown[..12]])?;
    let created = client.create(&pod, &container(&sandbox, "created", "true"), &sandbox).await?;
    refused(client.exec(&created, "true", 1).await, &[], &[&created[..12]])?;
    let ended = client.run(&pod, &container(&sandbox, "ended", "true"), &sandbox).await?;
    client.ended(&ended).await?;
    refused(client.exec(&ended, "true", 1).await, &[], &[&ended[..12]])?;
    Ok(())
}

async fn a_cancelled_call_kills() -> Result<()> {
    let (node, client, id) = Box::pin(with_container("crun")).await?;
    let cmd = ["sh", "-c", "sleep 65432"].map(str::to_owned).to_vec();
    let mut runtime = client.runtime.clone();
    let request = cri::ExecSyncRequest { container_id: id.clone(), cmd, timeout: 0 };
    let running = cricket::task::spawn("cancelled call", async move { runtime.exec_sync(request).await });
    eventually("the command runs", PATIENCE, async || {
        ensure!(!with_word(&node, "65432").is_empty(), "not yet");
        Ok(())
    })
    .await?;
    running.abort();
    eventually("the command is killed", Duration::from_secs(20), async || {
        let left = with_word(&node, "65432");
        ensure!(left.is_empty(), "left behind: {left:?}");
        Ok(())
    })
    .await?;
    client.output(&id, "echo still here").await?;
    Ok(())
}

async fn who_and_where() -> Result<()> {
    let (_node, client, sandbox, pod) = host_node("crun").await?;
    let mut config = container(&sandbox, "user", "sleep 100000");
    config.working_dir = "/tmp".into();
    config.envs = vec![cri::KeyValue { key: "GIVEN".into(), value: b"by the container".to_vec() }];
    security(&mut config).run_as_user = Some(cri::Int64Value { value: 1001 });
    security(&mut config).run_as_group = Some(cri::Int64Value { value: 1002 });
    security(&mut config).supplemental_groups = vec![1234];
    let id = client.run(&pod, &config, &sandbox).await?;
    let text = client.output(&id, "id -u; id -g; id -G; pwd; echo $GIVEN; grep -c . /proc/self/cgroup").await?;
    let lines: Vec<_> = text.lines().collect();
    ensure!(lines[..2] == ["1001", "1002"] && lines[3..5] == ["/tmp", "by the container"], "{text}");
    ensure!(lines[2].split(' ').any(|group| group == "1234"), "{text}");
    // Exec's process counts towards the container: same cgroup as its first process.
    client.output(&id, "[ \"$(cat /proc/self/cgroup)\" = \"$(cat /proc/1/cgroup)\" ]").await?;
    Ok(())
}
