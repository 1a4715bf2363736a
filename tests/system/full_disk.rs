//! A disk without room, for images and for bundles: the error says so, and with room again all is well.

use anyhow::{Context as _, Result, ensure};

use crate::client::{Client, refused};
use crate::ledger::Ledger;
use crate::node::{Node, Setup};
use crate::requests::{BUSYBOX, container, host_pod};
use crate::world::{PATIENCE, World, eventually};

crate::once!(root_is_full, state_is_full, an_image_goes_from_a_full_disk);

/// What the kernel calls it.
const FULL: &str = "No space left on device";

/// Fills a folder's file system to the last block.
async fn fill(node: &Node, folder: &str) -> Result<()> {
    let file = node.path(folder).join("filler");
    let script = "dd if=/dev/zero of=\"$1\" bs=4k 2>/dev/null; exit 0";
    node.world.must("sh", &["-c", script, "fill", &file.to_string_lossy()]).await?;
    Ok(())
}

async fn empty(node: &Node, folder: &str) -> Result<()> {
    let file = node.path(folder).join("filler");
    node.world.must("rm", &["-f", &file.to_string_lossy()]).await?;
    Ok(())
}

async fn node() -> Result<(Node, Client)> {
    let mut setup = Setup::new("crun");
    setup.root_size = Some("64m");
    setup.state_size = "16m";
    let mut node = Node::start(World::new().await?, setup).await?;
    let client = node.client().await?;
    Ok((node, client))
}

async fn root_is_full() -> Result<()> {
    let (mut node, client) = node().await?;
    client.pull(BUSYBOX).await?;
    client.clear().await?;
    let before = Ledger::take(&node).await?;
    fill(&node, "root").await?;
    let folder = format!("this node, {}", node.path("root/images").display());
    refused(client.pull(BUSYBOX).await, &[], &[BUSYBOX, FULL, &folder])?;
    ensure!(client.images().await?.is_empty(), "half an image is listed");
    refused(client.run_pod(&host_pod(&node, "full")).await, &[], &[FULL])?;
    ensure!(client.pods().await?.is_empty(), "a pod without a record is listed");
    empty(&node, "root").await?;
    before.assert_same(&node).await?;
    client.pull(BUSYBOX).await?;
    // A restart on a full disk still knows and stops what runs.
    let sandbox = host_pod(&node, "pod");
    let pod = client.run_pod(&sandbox).await?;
    let id = client.run(&pod, &container(&sandbox, "own", "sleep 1000"), &sandbox).await?;
    fill(&node, "root").await?;
    let client = node.crash_and_restart().await?;
    client.stop(&id, 0).await.context("stop on a full disk")?;
    ensure!(client.status(&id).await?.exit_code == 137);
    empty(&node, "root").await?;
    client.clear().await
}

/// What the kubelet does about a full disk is to remove images. That needs no room, also after writes that failed.
async fn an_image_goes_from_a_full_disk() -> Result<()> {
    let (mut node, client) = node().await?;
    client.pull(BUSYBOX).await?;
    client.clear().await?;
    let before = Ledger::take(&node).await?;
    for restart in [false, true] {
        let id = client_of(&mut node).await?.pull(BUSYBOX).await?;
        fill(&node, "root").await?;
        let client = if restart { node.crash_and_restart().await? } else { client_of(&mut node).await? };
        ensure!(client.images().await?.len() == 1, "the image is there, restarted: {restart}");
        refused(client.pull("registry.k8s.io/cricket/layers:1").await, &[], &[FULL])?;
        client.remove_image(&id).await.with_context(|| format!("on a full disk, restarted: {restart}"))?;
        ensure!(client.images().await?.is_empty(), "it is still listed");
        // There is room again, though the filler is there.
        eventually("the image's room", PATIENCE, || async {
            ensure!(client.pull("registry.k8s.io/pause:3.9").await.is_ok(), "there is no room");
            Ok(())
        })
        .await?;
        empty(&node, "root").await?;
        client.clear().await?;
    }
    before.assert_same_but(&node, "fd daemon").await
}

async fn client_of(node: &mut Node) -> Result<Client> {
    node.client().await
}

async fn state_is_full() -> Result<()> {
    let (node, client) = node().await?;
    client.pull(BUSYBOX).await?;
    let sandbox = host_pod(&node, "pod");
    let pod = client.run_pod(&sandbox).await?;
    let running = client.run(&pod, &container(&sandbox, "running", "sleep 1000"), &sandbox).await?;
    let before = Ledger::take(&node).await?;
    fill(&node, "state").await?;
    refused(client.create(&pod, &container(&sandbox, "late", "true"), &sandbox).await, &[], &[FULL])?;
    ensure!(client.containers().await?.len() == 1, "half a container is listed");
    client.status(&running).await?;
    empty(&node, "state").await?;
    before.assert_same(&node).await?;
    let id = client.run(&pod, &container(&sandbox, "again", "exit 2"), &sandbox).await?;
    ensure!(client.ended(&id).await?.exit_code == 2, "with room again");
    Ok(())
}
