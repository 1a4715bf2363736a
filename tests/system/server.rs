//! The daemon itself: its lock, its configuration, its socket and the bounds of a request.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use anyhow::{Context as _, Result, ensure};
use cri_proto::runtime::v1 as cri;
use tonic::Code;

use crate::client::refused;
use crate::node::{Node, Setup};
use crate::requests::{host_pod, pod};
use crate::world::{PATIENCE, World, eventually};

crate::once!(
    a_second_daemon_refuses,
    an_unknown_key_is_refused,
    a_drop_in_is_read,
    reload,
    the_socket,
    a_huge_request,
    trace_context,
    what_the_node_says
);

/// Starts a second daemon, which must end by itself without success; returns what it printed.
async fn refuses_to_start(node: &Node, config: &str) -> Result<String> {
    let mut second = node.spawn_daemon(&node.path(config), "second")?;
    let status = tokio::time::timeout(PATIENCE, second.wait()).await.context("the second daemon runs on")??;
    let log = std::fs::read_to_string(node.path("logs/second"))?;
    ensure!(!status.success(), "it ended with success: {log}");
    Ok(log)
}

async fn a_second_daemon_refuses() -> Result<()> {
    let mut node = Node::new("crun").await?;
    let client = node.client().await?;
    // Another socket, the same state folder.
    let config = std::fs::read_to_string(node.path("config.toml"))?;
    std::fs::write(node.path("second.toml"), config.replace("cricket.sock", "second.sock"))?;
    let log = refuses_to_start(&node, "second.toml").await?;
    ensure!(log.contains(&node.daemon_pid()?.to_string()), "the holder's pid is not named: {log}");
    ensure!(log.contains(&*node.path("state").to_string_lossy()), "the folder is not named: {log}");
    client.pods().await?;
    // A lock that a killed daemon held does not bind the next one.
    node.crash_and_restart().await?;
    Ok(())
}

async fn an_unknown_key_is_refused() -> Result<()> {
    let node = Node::prepare(World::new().await?, Setup::new("crun")).await?;
    let config = std::fs::read_to_string(node.path("config.toml"))?;
    let cases = [
        ("key.toml", config.replace("[network]", "[network]\nconf_dirs = \"/x\""), vec!["conf_dirs", "conf_dir"]),
        ("section.toml", format!("{config}\n[imagee]\nx = 1\n"), vec!["imagee", "image"]),
        ("type.toml", config.replace("[network]", "[network]\nplugin_timeout = \"soon\""), vec!["soon"]),
        ("syntax.toml", format!("{config}\n[server\n"), vec![]),
        ("value.toml", config.replace("\"cgroupfs\"", "\"cgroupfss\""), vec!["cgroupfss"]),
    ];
    for (name, text, words) in cases {
        std::fs::write(node.path(name), text)?;
        std::fs::write(node.path("logs/second"), "")?;
        let log = refuses_to_start(&node, name).await.context(name)?;
        ensure!(log.contains(name), "{name}: the file is not named: {log}");
        for word in words {
            ensure!(log.contains(word), "{name}: {word} is not named: {log}");
        }
    }
    ensure!(!node.path("state/cricket.sock").exists(), "a refused start made a socket");
    Ok(())
}

async fn a_drop_in_is_read() -> Result<()> {
    let mut node = Node::prepare(World::new().await?, Setup::new("crun")).await?;
    std::fs::write(node.path("conf.d/10-handler.toml"), "[runtime.handlers.dropped]\npath = \"crun\"\n")?;
    std::fs::write(node.path("conf.d/20-log.toml"), "[log]\nlevel = \"info\"\n")?;
    let client = node.launch().await?;
    let status = client.runtime.clone().status(cri::StatusRequest { verbose: false }).await?.into_inner();
    let names: Vec<_> = status.runtime_handlers.iter().map(|handler| &*handler.name).collect();
    ensure!(names.contains(&"dropped") && names.contains(&"crun") && names.contains(&""), "handlers {names:?}");
    node.stop().await?;
    std::fs::write(node.path("conf.d/30-wrong.toml"), "[log]\nlevell = \"info\"\n")?;
    let log = refuses_to_start(&node, "config.toml").await?;
    ensure!(log.contains("30-wrong.toml") && log.contains("levell"), "{log}");
    Ok(())
}

async fn reload() -> Result<()> {
    let mut node = Node::new("crun").await?;
    let client = node.client().await?;
    let file = node.path("config.toml");
    let config = std::fs::read_to_string(&file)?;
    let said = async |node: &Node, words: &[&str]| {
        eventually("the log tells of it", PATIENCE, async || {
            let log = node.log();
            ensure!(log.lines().any(|line| words.iter().all(|word| line.contains(word))), "no line has {words:?}");
            Ok(())
        })
        .await
    };
    // A handler can be added while the daemon runs.
    std::fs::write(&file, format!("{config}\n[runtime.handlers.added]\npath = \"crun\"\n"))?;
    node.reload().await?;
    eventually("the new handler is known", PATIENCE, async || {
        let status = client.runtime.clone().status(cri::StatusRequest { verbose: false }).await?.into_inner();
        ensure!(status.runtime_handlers.iter().any(|handler| handler.name == "added"), "not yet");
        Ok(())
    })
    .await?;
    // What cannot be changed is named, and what is wrong changes nothing.
    let elsewhere = config.replace("/root\"", "/elsewhere\"");
    ensure!(elsewhere != config);
    std::fs::write(&file, elsewhere)?;
    node.reload().await?;
    said(&node, &["server.root"]).await?;
    std::fs::write(&file, config.replace("[log]", "[log]\nlevelled = 1"))?;
    node.reload().await?;
    said(&node, &["levelled"]).await?;
    client.pods().await?;
    Ok(())
}

async fn the_socket() -> Result<()> {
    let mut node = Node::new("crun").await?;
    node.client().await?;
    let socket = std::fs::metadata(node.socket())?;
    ensure!(socket.permissions().mode() & 0o777 == 0o660, "mode {:o}", socket.permissions().mode());
    ensure!(socket.uid() == 0 && socket.gid() == 0, "owner {}:{}", socket.uid(), socket.gid());
    for folder in ["root", "state"] {
        let mode = std::fs::metadata(node.world.seen(node.path(folder)))?.permissions().mode();
        ensure!(mode & 0o777 == 0o700, "{folder} has mode {mode:o}");
    }
    // A socket that a killed daemon left is no hindrance.
    node.crash_and_restart().await?;
    Ok(())
}

async fn a_huge_request() -> Result<()> {
    let mut node = Node::new("crun").await?;
    let client = node.client().await?;
    let mut sandbox = host_pod(&node, "huge");
    sandbox.annotations.insert("big".into(), "x".repeat(20 << 20));
    refused(client.run_pod(&sandbox).await, &[Code::OutOfRange, Code::ResourceExhausted], &[])?;
    ensure!(client.pods().await?.is_empty(), "a pod of a refused request");
    // And what is large but legal is taken: the API server's own bound is far below this.
    sandbox.annotations.insert("big".into(), "x".repeat(200 << 10));
    let id = client.run_pod(&sandbox).await?;
    ensure!(client.pod_status(&id).await?.annotations == sandbox.annotations, "annotations changed");
    Ok(())
}

async fn trace_context() -> Result<()> {
    let mut node = Node::new("crun").await?;
    let client = node.client().await?;
    for parent in ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00-nonsense", ""] {
        let mut request = tonic::Request::new(cri::VersionRequest::default());
        request.metadata_mut().insert("traceparent", parent.parse()?);
        request.metadata_mut().insert("tracestate", "vendor=value".parse()?);
        let answer =
            client.runtime.clone().version(request).await.with_context(|| format!("traceparent {parent:?}"))?;
        let answer = answer.into_inner();
        ensure!(answer.version == "0.1.0" && answer.runtime_api_version == "v1", "{answer:?}");
        ensure!(!answer.runtime_version.is_empty(), "{answer:?}");
    }
    Ok(())
}

async fn what_the_node_says() -> Result<()> {
    let mut setup = Setup::new("crun");
    setup.conflist = None;
    let mut node = Node::start(World::new().await?, setup).await?;
    let client = node.client().await?;
    let condition = async |name: &str| -> Result<cri::RuntimeCondition> {
        let answer = client.runtime.clone().status(cri::StatusRequest { verbose: false }).await?.into_inner();
        let conditions = answer.status.context("no status")?.conditions;
        conditions.into_iter().find(|own| own.r#type == name).with_context(|| format!("no condition {name}"))
    };
    ensure!(condition("RuntimeReady").await?.status, "the runtime is not ready");
    let network = condition("NetworkReady").await?;
    ensure!(!network.status && network.message.contains(&*node.path("cni").to_string_lossy()), "{network:?}");
    refused(client.run_pod(&pod(&node, "early")).await, &[], &["cni"])?;
    client.run_pod(&host_pod(&node, "host")).await?;
    node.write_conflist(crate::node::BRIDGE)?;
    eventually("the network is ready", PATIENCE, async || {
        let network = condition("NetworkReady").await?;
        ensure!(network.status, "{network:?}");
        Ok(())
    })
    .await?;
    client.run_pod(&pod(&node, "late")).await?;
    let driver = client.runtime.clone().runtime_config(cri::RuntimeConfigRequest {}).await?.into_inner();
    ensure!(driver.linux.is_some_and(|linux| linux.cgroup_driver() == cri::CgroupDriver::Cgroupfs), "cgroup driver");
    let request = cri::UpdateRuntimeConfigRequest {
        runtime_config: Some(cri::RuntimeConfig {
            network_config: Some(cri::NetworkConfig { pod_cidr: "10.1.0.0/24".into() }),
        }),
    };
    client.runtime.clone().update_runtime_config(request).await?;
    Ok(())
}
