//! Devices in real containers: nodes that a request names, the host's, and what CDI files describe.

use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result, ensure};
use cri_proto::runtime::v1 as cri;
use tonic::Code;

use crate::client::{Client, refused};
use crate::ledger::Ledger;
use crate::node::{Node, Setup};
use crate::requests::{BUSYBOX, container, host_pod, security};
use crate::world::{PATIENCE, World, eventually};

crate::per_runtime!(cdi_devices, nodes_that_a_request_names, a_privileged_container_has_the_hosts_nodes);
crate::once!(cdi_names_and_files_that_are_wrong);

const KIND: &str = "vendor.example/card";

/// A node whose CDI folders are `cdi-etc` and `cdi-run`.
async fn node(runtime: &'static str) -> Result<(Node, Client)> {
    let world = World::new().await?;
    let dirs = ["cdi-etc", "cdi-run"].map(|name| world.folder().join(name).to_string_lossy().into_owned());
    for dir in &dirs {
        std::fs::create_dir(dir)?;
    }
    let mut setup = Setup::new(runtime);
    setup.keys.push(("runtime.cdi_spec_dirs", dirs.to_vec().into()));
    let mut node = Node::start(world, setup).await?;
    let client = node.client().await?;
    client.pull(BUSYBOX).await?;
    Ok((node, client))
}

fn write(node: &Node, name: &str, text: &str) -> Result<()> {
    let path = node.path(name);
    std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    Ok(std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))?)
}

/// A card with everything: a node that may only be read, a mount, groups, and hooks that note their environment.
fn vendor_file(node: &Node) -> String {
    let folder = node.world.folder().display();
    format!(
        r#"
cdiVersion: "0.7.0"
kind: {KIND}
containerEdits:
  env: [ALL_CARDS=yes]
  hooks:
  - hookName: createRuntime
    path: /bin/sh
    args: [sh, -c, "env >> {folder}/hook-outside"]
  - hookName: createContainer
    path: /bin/sh
    args: [sh, -c, "env >> {folder}/hook-inside"]
    env: [VENDOR=1]
devices:
- name: "0"
  containerEdits:
    env: [CARD=0]
    deviceNodes:
    - path: /dev/card0
      hostPath: /dev/loop-control
      permissions: r
    - path: /dev/owned
      hostPath: /dev/null
      fileMode: 0640
      uid: 7
      gid: 8
    mounts:
    - hostPath: {folder}/driver
      containerPath: /opt/driver
      options: [ro, nosuid, nodev, rbind, rprivate]
    additionalGids: [4321]
"#
    )
}

async fn cdi_devices(runtime: &'static str) -> Result<()> {
    let (node, client) = node(runtime).await?;
    std::fs::create_dir(node.path("driver"))?;
    write(&node, "driver/version", "550\n")?;
    write(&node, "cdi-run/vendor.yaml", &vendor_file(&node))?;
    let mut sandbox = host_pod(&node, "cards");
    // The user's annotation names a device, and gets none.
    sandbox.annotations.insert("cdi.k8s.io/user_wish".into(), format!("{KIND}=0"));
    let id = client.run_pod(&sandbox).await?;
    let plain = client.run(&id, &container(&sandbox, "plain", "sleep 100000"), &sandbox).await?;
    let before = Ledger::take(&node).await?;
    let text = client.output(&plain, "ls /dev; env").await?;
    ensure!(!text.contains("card0") && !text.contains("ALL_CARDS"), "the pod's annotation gave a device: {text}");
    ensure!(!node.path("hook-outside").exists(), "a hook ran for a container without a device");

    let mut own = container(&sandbox, "own", "sleep 100000");
    own.cdi_devices = vec![cri::CdiDevice { name: format!("{KIND}=0") }];
    // The same by annotation: it is one device.
    own.annotations.insert("cdi.k8s.io/plugin_a".into(), format!("{KIND}=0"));
    own.envs = vec![cri::KeyValue { key: "LD_PRELOAD".into(), value: b"/opt/evil.so".to_vec() }];
    security(&mut own).run_as_user = Some(cri::Int64Value { value: 1000 });
    let own = client.run(&id, &own, &sandbox).await?;
    let text = client.output(&own, "env -u LD_PRELOAD; id -G; cat /opt/driver/version").await?;
    for part in ["ALL_CARDS=yes", "CARD=0", "4321", "550"] {
        ensure!(text.contains(part), "{part} is not in {text}");
    }
    let nodes = client.output(&own, "stat -c '%F %t:%T %a %u:%g' /dev/card0 /dev/owned").await?;
    let lines: Vec<_> = nodes.lines().collect();
    ensure!(lines == ["character special file a:ed 666 1000:0", "character special file 1:3 640 7:8"], "{nodes}");
    // Not /dev/net/tun, which runc lets every container have.
    client.output(&own, "exec 3</dev/card0").await?;
    let denied = client.exec(&own, "exec 3>/dev/card0", 0).await?;
    let text = String::from_utf8_lossy(&denied.stderr).into_owned();
    ensure!(denied.exit_code != 0 && text.contains("not permitted"), "{}: {text}", denied.exit_code);
    let denied = client.exec(&own, "touch /opt/driver/x", 0).await?;
    ensure!(denied.exit_code != 0 && !node.path("driver/x").exists(), "the mount can be written to");

    for (file, vendor) in [("hook-outside", false), ("hook-inside", true)] {
        let env = std::fs::read_to_string(node.path(file)).with_context(|| file.to_owned())?;
        ensure!(env.matches("PATH=").count() == 1, "{file}: the hook of one file ran more than once, or not: {env}");
        ensure!(!env.contains("LD_PRELOAD") && !env.contains("CARD"), "CVE-2025-23266: {file}: {env}");
        ensure!(env.contains("VENDOR=1") == vendor, "{file}: {env}");
    }
    client.stop(&own, 0).await?;
    client.remove(&own).await?;
    before.assert_same(&node).await
}

async fn cdi_names_and_files_that_are_wrong() -> Result<()> {
    let (mut node, client) = node("crun").await?;
    write(&node, "cdi-etc/bad.json", "{ not json")?;
    let one = r#"{"cdiVersion":"0.5.0","kind":"v/c","devices":[{"name":"d","containerEdits":{"env":["A=etc"]}}]}"#;
    write(&node, "cdi-etc/good.json", one)?;
    let sandbox = host_pod(&node, "wrong");
    let id = client.run_pod(&sandbox).await?;
    let before = Ledger::take(&node).await?;
    let naming = |name: &str| {
        let mut config = container(&sandbox, "own", "sleep 100000");
        config.cdi_devices = vec![cri::CdiDevice { name: name.to_owned() }];
        config
    };
    let etc = node.path("cdi-etc").display().to_string();
    let invalid = [Code::InvalidArgument];
    refused(client.create(&id, &naming("v/c=gone"), &sandbox).await, &invalid, &["v/c=gone", &etc, "bad.json"])?;
    for name in ["", "v/c", "v/c=", "../x=d", "v/c=d,v/c=e"] {
        refused(client.create(&id, &naming(name), &sandbox).await, &invalid, &["CDI_devices[0]", name])?;
    }
    let mut annotated = container(&sandbox, "own", "sleep 100000");
    annotated.annotations.insert("cdi.k8s.io/x".into(), "v/c=d, v/c=e".into());
    refused(client.create(&id, &annotated, &sandbox).await, &invalid, &["cdi.k8s.io/x", " v/c=e"])?;
    ensure!(client.containers().await?.is_empty(), "a refused container is listed");
    before.assert_same(&node).await?;

    // The bad file is named, and took nothing down; the later folder wins; a reload looks elsewhere.
    let info = async || {
        let status = client.runtime.clone().status(cri::StatusRequest { verbose: true }).await?.into_inner();
        let config: serde_json::Value = serde_json::from_str(&status.info["config"])?;
        anyhow::Ok(config["cdi"].clone())
    };
    let seen = info().await?;
    ensure!(seen["devices"] == 1 && seen["unusable"][0]["path"] == format!("{etc}/bad.json"), "{seen}");
    let shown = async |config: &cri::ContainerConfig| {
        let own = client.run(&id, config, &sandbox).await?;
        let text = client.output(&own, "echo $A").await?;
        client.remove(&own).await?;
        anyhow::Ok(text)
    };
    ensure!(shown(&naming("v/c=d")).await? == "etc\n");
    write(&node, "cdi-run/later.json", &one.replace("A=etc", "A=run"))?;
    ensure!(shown(&naming("v/c=d")).await? == "run\n", "the later folder does not win");
    let file = std::fs::read_to_string(node.path("config.toml"))?;
    std::fs::write(node.path("config.toml"), file.replace("cdi-run", "cdi-other"))?;
    node.reload().await?;
    eventually("the reload is done", PATIENCE, async || {
        let seen = info().await?;
        ensure!(seen["dirs"][1].as_str().is_some_and(|dir| dir.ends_with("cdi-other")), "{seen}");
        Ok(())
    })
    .await?;
    ensure!(shown(&naming("v/c=d")).await? == "etc\n", "a folder that was taken away still counts");
    // A container with devices outlives the daemon, and its files.
    let own = client.run(&id, &naming("v/c=d"), &sandbox).await?;
    std::fs::remove_file(node.path("cdi-etc/good.json"))?;
    let client = node.crash_and_restart().await?;
    ensure!(client.status(&own).await?.state() == cri::ContainerState::ContainerRunning, "it does not run any more");
    Ok(())
}

async fn nodes_that_a_request_names(runtime: &'static str) -> Result<()> {
    let (node, client) = node(runtime).await?;
    std::os::unix::fs::symlink("/dev/loop-control", node.path("link"))?;
    let sandbox = host_pod(&node, "nodes");
    let id = client.run_pod(&sandbox).await?;
    let device = |host: &str, inside: &str, permissions: &str| cri::Device {
        host_path: host.into(),
        container_path: inside.into(),
        permissions: permissions.into(),
    };
    let link = node.path("link").to_string_lossy().into_owned();
    let mut own = container(&sandbox, "own", "sleep 100000");
    own.devices = vec![device(&link, "/dev/own", "r"), device("/dev/net", "/dev/net", "rwm")];
    let own = client.run(&id, &own, &sandbox).await?;
    let text = client.output(&own, "stat -c '%t:%T' /dev/own /dev/net/tun").await?;
    ensure!(text == "a:ed\na:c8\n", "{text}");
    client.output(&own, "exec 3</dev/own; exec 4<>/dev/net/tun").await?;
    let denied = client.exec(&own, "exec 3>/dev/own", 0).await?;
    ensure!(denied.exit_code != 0, "a node that may only be read was opened for writing");
    // A node of the same numbers that the container makes itself is as closed as before.
    let denied = client.exec(&own, "mknod /k c 1 11 && exec 3</k", 0).await?;
    ensure!(denied.exit_code != 0, "an unlisted device was opened");
    let mut other = container(&sandbox, "other", "sleep 100000");
    other.devices = vec![device("/dev/no-such-node", "/dev/x", "rw")];
    refused(client.create(&id, &other, &sandbox).await, &[Code::InvalidArgument], &["/dev/no-such-node"])?;
    Ok(())
}

async fn a_privileged_container_has_the_hosts_nodes(runtime: &'static str) -> Result<()> {
    let (node, client) = node(runtime).await?;
    let mut sandbox = host_pod(&node, "privileged");
    sandbox.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    let id = client.run_pod(&sandbox).await?;
    let mut own = container(&sandbox, "own", "sleep 100000");
    security(&mut own).privileged = true;
    let own = client.run(&id, &own, &sandbox).await?;
    client.output(&own, "exec 3</dev/loop-control; test -c /dev/net/tun; mknod /k c 10 237; exec 4</k").await?;
    let plain = client.run(&id, &container(&sandbox, "plain", "sleep 100000"), &sandbox).await?;
    let denied = client.exec(&plain, "test -e /dev/loop-control", 0).await?;
    ensure!(denied.exit_code != 0, "an unprivileged neighbour has the host's nodes");
    Ok(())
}
