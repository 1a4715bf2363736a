//! Plugins that fail, hang, print garbage or are missing: the error says which, and nothing is left of the pod.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::client::{Client, refused};
use crate::ledger::Ledger;
use crate::node::{BRIDGE, Node, Setup};
use crate::requests::{host_pod, pod};
use crate::world::{World, eventually};

crate::once!(
    a_plugin_fails,
    a_later_plugin_fails,
    a_plugin_hangs,
    a_plugin_prints_garbage,
    a_plugin_is_missing,
    a_failing_del
);

/// A folder with one plugin that is a shell script.
pub fn plugin_folder(world: &World, name: &str, script: &str) -> Result<PathBuf> {
    let folder = world.folder().join("plugins");
    std::fs::create_dir_all(&folder)?;
    let file = folder.join(name);
    std::fs::write(&file, script)?;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755))?;
    Ok(folder)
}

/// The bridge's list with one more plugin, a script, in front of all others or behind them.
async fn node_with(script: &str, first: bool) -> Result<(Node, Client, Ledger)> {
    let world = World::new().await?;
    let mut setup = Setup::new("crun");
    setup.registry = false;
    setup.plugins = Some(plugin_folder(&world, "odd", script)?);
    setup.keys.push(("network.plugin_timeout", 3.into()));
    let mut node = Node::start(world, setup).await?;
    let client = node.client().await?;
    // With the honest list first: the bridge and its chains are made once.
    client.run_pod(&pod(&node, "honest")).await?;
    client.clear().await?;
    let odd = r#"{"type": "odd"}"#;
    let text = if first {
        BRIDGE.replace("\"plugins\": [", &format!("\"plugins\": [{odd},"))
    } else {
        BRIDGE.replace("\"snat\": true}]", &format!("\"snat\": true}}, {odd}]"))
    };
    ensure!(text != BRIDGE, "the list was not changed");
    let before = Ledger::take(&node).await?;
    node.write_conflist(&text)?;
    Ok((node, client, before))
}

/// A pod must be refused with these words, leave nothing, and work once the list is honest again.
async fn refuses_cleanly(node: &Node, client: &Client, before: &Ledger, words: &[&str]) -> Result<()> {
    // The daemon may take a moment to see the new list.
    eventually("the changed list is used", Duration::from_secs(20), async || {
        let answer = client.run_pod(&pod(node, "bad")).await;
        if answer.is_ok() {
            client.clear().await?;
        }
        refused(answer, &[], words)
    })
    .await?;
    ensure!(client.pods().await?.is_empty(), "the pod is listed");
    before.assert_same(node).await?;
    node.write_conflist(BRIDGE)?;
    eventually("the honest list is used", Duration::from_secs(20), async || {
        Ok(client.run_pod(&pod(node, "good")).await?)
    })
    .await?;
    client.clear().await
}

async fn a_plugin_fails() -> Result<()> {
    let script = "#!/bin/sh\ncase $CNI_COMMAND in ADD) echo '{\"cniVersion\":\"1.0.0\",\"code\":123,\"msg\":\"canary \
                  message\",\"details\":\"canary details\"}'; exit 1;; esac\n";
    let (node, client, before) = node_with(script, true).await?;
    refuses_cleanly(&node, &client, &before, &["odd", "canary message", "canary details"]).await
}

async fn a_later_plugin_fails() -> Result<()> {
    // What the plugins before it did (a link, a lease, rules) must be undone.
    let script = "#!/bin/sh\ncat >/dev/null\ncase $CNI_COMMAND in ADD) echo not json on stderr >&2; exit 1;; esac\n";
    let (node, client, before) = node_with(script, false).await?;
    refuses_cleanly(&node, &client, &before, &["odd", "not json on stderr"]).await
}

async fn a_plugin_hangs() -> Result<()> {
    let script = "#!/bin/sh\n[ $CNI_COMMAND = ADD ] || exit 0\nsleep 34567 & wait\n";
    let (node, client, before) = node_with(script, true).await?;
    // Another pod does not wait for the one that hangs.
    let (slow, sandbox) = (client.clone(), pod(&node, "slow"));
    let hanging = cricket::task::spawn("hanging pod", async move { slow.run_pod(&sandbox).await });
    let quick = tokio::time::timeout(Duration::from_secs(20), client.run_pod(&host_pod(&node, "quick"))).await;
    let id = quick.context("a pod waits for another pod's plugin")??;
    let _ = hanging.await?;
    client.stop_pod(&id).await?;
    client.remove_pod(&id).await?;
    client.clear().await?;
    refuses_cleanly(&node, &client, &before, &["odd", "3"]).await?;
    let left: Vec<_> =
        node.world.processes().into_iter().filter(|(_, words)| words.iter().any(|word| word == "34567")).collect();
    ensure!(left.is_empty(), "the plugin's child lives: {left:?}");
    Ok(())
}

async fn a_plugin_prints_garbage() -> Result<()> {
    let script = "#!/bin/sh\n[ $CNI_COMMAND = ADD ] || exit 0\necho '{garbage: canary'\n";
    let (node, client, before) = node_with(script, true).await?;
    refuses_cleanly(&node, &client, &before, &["odd"]).await
}

async fn a_plugin_is_missing() -> Result<()> {
    let (node, client, before) = node_with("#!/bin/sh\n", false).await?;
    std::fs::remove_file(node.path("plugins/odd"))?;
    refuses_cleanly(&node, &client, &before, &["odd", "/usr/lib/cni"]).await
}

async fn a_failing_del() -> Result<()> {
    let world = World::new().await?;
    let broken = world.folder().join("broken");
    let script = format!(
        "#!/bin/sh\nif [ $CNI_COMMAND = DEL ] && [ -e {} ]; then echo '{{\"code\":11,\"msg\":\"canary del\"}}'; exit 1; fi\n\
         exec /usr/lib/cni/bridge\n",
        broken.display()
    );
    let mut setup = Setup::new("crun");
    setup.registry = false;
    setup.plugins = Some(plugin_folder(&world, "odd", &script)?);
    setup.conflist = setup.conflist.map(|text| text.replace("{\"type\": \"bridge\"", "{\"type\": \"odd\""));
    let mut node = Node::start(world, setup).await?;
    let client = node.client().await?;
    client.run_pod(&pod(&node, "first")).await?;
    client.clear().await?;
    let before = Ledger::take(&node).await?;
    let id = client.run_pod(&pod(&node, "second")).await?;
    std::fs::write(&broken, "")?;
    // A lease would be lost if the error were swallowed; the kubelet tries again, and then it must work.
    refused(client.stop_pod(&id).await, &[], &["odd", "canary del"])?;
    std::fs::remove_file(&broken)?;
    client.stop_pod(&id).await?;
    client.remove_pod(&id).await?;
    before.assert_same(&node).await
}
