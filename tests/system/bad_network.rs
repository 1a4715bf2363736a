//! Plugins that fail, hang, print garbage or are missing: the error says which, and nothing is left of the pod.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cri_proto::runtime::v1 as cri;

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
    a_plugin_with_any_other_fault,
    a_configuration_with_any_fault,
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

/// One node, one pod that lives through all of it, and plugins that are wrong in the ways that the tests above leave.
async fn a_plugin_with_any_other_fault() -> Result<()> {
    let honest = "#!/bin/sh\nexec /usr/lib/cni/tuning\n";
    let (node, client, _) = node_with(honest, false).await?;
    let neighbour = eventually("the honest plugin is used", Duration::from_secs(20), async || {
        Ok(client.run_pod(&pod(&node, "neighbour")).await?)
    })
    .await?;
    let file = node.path("plugins/odd");
    let add = |body: &str| format!("#!/bin/sh\n[ $CNI_COMMAND = ADD ] || exit 0\n{body}\n");
    let before = Ledger::take(&node).await?;
    for (script, mode, words) in [
        (add("exit 0"), 0o755, &["odd", "printed no result for ADD"][..]),
        (add("head -c 100000000 /dev/zero | tr '\\0' x"), 0o755, &["odd", "printed more than 1048576 bytes for ADD"]),
        (add("echo '{\"code\": 77, \"msg\": \"canary\"}'"), 0o755, &["odd", "failed ADD: canary", "code 77"]),
        (add("sleep 34567 >/dev/null 2>&1 & exit 1"), 0o755, &["odd", "without an error object"]),
        (add("umount -l $CNI_NETNS; echo '{}'"), 0o755, &["odd", "took away the pod's network namespace"]),
        (
            add("umount -l $CNI_NETNS; mount --bind /proc/1/ns/net $CNI_NETNS; echo '{}'"),
            0o755,
            &["odd", "took away the pod's network namespace"],
        ),
        (honest.to_owned(), 0o644, &["odd", "is not executable"]),
    ] {
        std::fs::write(&file, script)?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode))?;
        refused(client.run_pod(&pod(&node, "bad")).await, &[], words)?;
        ensure!(client.pods().await?.len() == 1, "{words:?}: the pod is listed");
        before.assert_same(&node).await.with_context(|| format!("{words:?}"))?;
    }
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755))?;
    let network = client.pod_status(&neighbour).await?.network.context("no network status")?;
    let pin = node.path(&format!("state/ns/{neighbour}/net"));
    let pin = format!("--net={}", pin.display());
    let inside = node.world.must("nsenter", &[&pin, "ip", "-o", "address", "show", "eth0"]).await?;
    ensure!(inside.contains(&format!("{}/", network.ip)), "the other pod has lost its address: {inside}");
    client.run_pod(&pod(&node, "good")).await?;
    client.clear().await
}

async fn network_condition(client: &Client) -> Result<(bool, String)> {
    let answer = client.runtime.clone().status(cri::StatusRequest { verbose: false }).await?.into_inner();
    let conditions = answer.status.context("no status")?.conditions;
    let one = conditions.into_iter().find(|one| one.r#type == "NetworkReady").context("no NetworkReady")?;
    Ok((one.status, one.message))
}

/// The file is named with the reason, in Status and to whoever wants a pod, until it is mended; and a good one that is
/// spoilt stays in force.
async fn a_configuration_with_any_fault() -> Result<()> {
    // Without a configuration the builtin network would serve where the mode is left open.
    let setup = Setup { registry: false, conflist: Some("{".to_owned()), ..Setup::new("crun") };
    let mut node = Node::start(World::new().await?, setup).await?;
    let client = node.client().await?;
    let before = Ledger::take(&node).await?;
    let file = node.path("cni/10-lane.conflist");
    let with = |from: &str, to: &str| BRIDGE.replace(from, to);
    for (text, words) in [
        ("{".to_owned(), "not JSON"),
        (with("1.0.0", "9.9"), "cniVersion 9.9: cricket speaks 0.3.0 to 1.1.0"),
        (with("\"type\": \"bridge\"", "\"type\": \"../bridge\""), "want the name of a program, without a path"),
        (with("\"host-local\"", "\"bridge\""), "is its own ipam"),
        (with("\"lane\"", "\"a/b\""), "name \"a/b\""),
        ("LOOP".to_owned(), "Too many levels of symbolic links"),
        (with("\"bridge\", \"bridge\"", "\"no-such-plugin\", \"bridge\""), "\"no-such-plugin\" is in none of"),
    ] {
        let _ = std::fs::remove_file(&file);
        if text == "LOOP" {
            std::os::unix::fs::symlink(&file, &file)?;
        } else {
            node.write_conflist(&text)?;
        }
        eventually(words, Duration::from_secs(20), async || {
            let (ready, message) = network_condition(&client).await?;
            ensure!(!ready && message.contains(words) && message.contains("10-lane.conflist"), "{ready} {message}");
            Ok(())
        })
        .await?;
        refused(client.run_pod(&pod(&node, "bad")).await, &[], &[words.trim_start_matches("name ")])?;
        ensure!(client.pods().await?.is_empty(), "{words}: the pod is listed");
    }
    // The cache's folder is made once.
    let folder = format!("folder {}", node.path("cni-cache/results").display());
    before.assert_same_but(&node, &folder).await?;
    let _ = std::fs::remove_file(&file);
    node.write_conflist(BRIDGE)?;
    eventually("the network is ready", Duration::from_secs(20), async || {
        ensure!(network_condition(&client).await?.0, "not ready");
        Ok(())
    })
    .await?;
    client.run_pod(&pod(&node, "first")).await?;
    // Spoilt under a node that works, with another network beside it.
    node.write_conflist("{")?;
    std::fs::write(node.path("cni/20-other.conflist"), with("\"lane\"", "\"other\""))?;
    eventually("the bad file is named", Duration::from_secs(20), async || {
        ensure!(node.log().contains("a CNI configuration is not used"), "not in the log");
        Ok(())
    })
    .await?;
    ensure!(network_condition(&client).await?.0, "a bad edit made the network not ready");
    let second = client.run_pod(&pod(&node, "second")).await?;
    let cached = std::fs::read_dir(node.path("cni-cache/results"))?.flatten().map(|entry| entry.file_name());
    let of_second: Vec<_> = cached.filter(|name| name.to_string_lossy().contains(&second)).collect();
    ensure!(of_second.len() == 1 && of_second[0].to_string_lossy().starts_with("lane-"), "{of_second:?}");
    client.clear().await
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
