//! Advisories about what the daemon leaves open on its node: folders, sockets, ports, descriptors, secrets in logs, and
//! races for mount targets. Each test is named after one and asserts what happened. `tests/cves.md` has the list.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use anyhow::{Context as _, Result, ensure};
use cri_proto::runtime::v1 as cri;
use serde_json::json;

use crate::canary::{Canary, SECRET};
use crate::crafted::Crafted;
use crate::cve_image::{attempt, idle, node};
use crate::hostile::{Answer, Hostile};
use crate::node::{Node, Setup};
use crate::requests::{bind, host_pod, image, security};
use crate::world::{PATIENCE, World, eventually};

crate::per_runtime!(cve_2021_30465_cve_2024_45310_mount_targets_that_flip);
crate::once!(
    cve_2019_11248_no_port_but_the_streaming_server_s,
    cve_2019_11250_containerd_5453_no_secret_in_logs_or_errors,
    cve_2019_14891_nothing_of_ours_in_a_pod_s_cgroup,
    cve_2020_15257_no_socket_for_containers,
    cve_2021_25743_escapes_in_messages,
    cve_2021_41103_cve_2024_25621_cve_2021_41091_nothing_for_other_users,
    cve_2024_5321_logs_are_root_s,
    conmon_rs_c35287ba_no_inherited_descriptors
);

/// The listening TCP sockets of a process: local addresses as in `/proc/net/tcp`.
fn listening(node: &Node, pid: u32) -> Result<Vec<String>> {
    let mut own = BTreeSet::new();
    for entry in std::fs::read_dir(node.world.seen(format!("/proc/{pid}/fd")))?.flatten() {
        let link = std::fs::read_link(entry.path()).unwrap_or_default();
        let inode = link.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned));
        own.extend(inode);
    }
    let mut found = Vec::new();
    for table in ["tcp", "tcp6"] {
        let text = std::fs::read_to_string(node.world.seen(format!("/proc/{pid}/net/{table}")))?;
        for words in text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>()) {
            // Column 3 is the state (0A: listening), column 9 the inode.
            if let (Some(address), Some(&"0A"), Some(inode)) = (words.get(1), words.get(3), words.get(9))
                && own.contains(*inode)
            {
                found.push((*address).to_owned());
            }
        }
    }
    Ok(found)
}

async fn cve_2019_11248_no_port_but_the_streaming_server_s() -> Result<()> {
    let (node, ..) = node("crun").await?;
    let ports = listening(&node, node.daemon_pid()?)?;
    // 127.0.0.1 in the kernel's spelling; the streaming server's URLs carry one-time tokens.
    ensure!(ports.len() <= 1 && ports.iter().all(|address| address.starts_with("0100007F:")), "{ports:?}");
    for keeper in node.keeper_pids() {
        ensure!(listening(&node, keeper)?.is_empty(), "the keeper listens");
    }
    Ok(())
}

async fn cve_2019_11250_containerd_5453_no_secret_in_logs_or_errors() -> Result<()> {
    const SECRETS: [&str; 6] = [
        "hunter2-password",
        "aHVudGVyMjpzZWNyZXQ",
        "identity-secret",
        "signed-secret",
        "token-secret",
        "userinfo-secret",
    ];
    let world = Box::pin(World::new()).await?;
    let hostile = Hostile::start(&world).await?;
    let mut setup = Setup::new("crun");
    setup.registry = false;
    setup.registries = hostile.conf();
    setup.keys = vec![("log.level", "trace".into())];
    let mut node = Node::start(world, setup).await?;
    let client = node.client().await?;
    let body = "see https://s3.example/blob?X-Amz-Signature=signed-secret&token=token-secret \
                https://user:userinfo-secret@example/ Authorization: Bearer token-secret";
    let challenge = vec![("WWW-Authenticate".to_owned(), "Basic realm=\"token-secret\"".to_owned())];
    let moved = vec![(
        "Location".to_owned(),
        "http://127.0.0.1:1/blob?X-Amz-Signature=signed-secret&sig=token-secret".to_owned(),
    )];
    for (index, answer) in [
        Answer::Error(500, Vec::new(), body.into()),
        Answer::Error(401, challenge, body.into()),
        Answer::Error(403, Vec::new(), format!("{{\"errors\":[{{\"code\":\"DENIED\",\"message\":\"{body}\"}}]}}")),
        Answer::Error(307, moved, String::new()),
    ]
    .into_iter()
    .enumerate()
    {
        hostile.set("/v2/", answer.clone());
        hostile.set(format!("/v2/secret{index}/manifests/latest"), answer);
        for auth in [
            cri::AuthConfig { username: "user".into(), password: "hunter2-password".into(), ..Default::default() },
            cri::AuthConfig { auth: "aHVudGVyMjpzZWNyZXQ=".into(), ..Default::default() },
            cri::AuthConfig { identity_token: "identity-secret".into(), ..Default::default() },
            cri::AuthConfig { registry_token: "token-secret".into(), ..Default::default() },
        ] {
            let request = cri::PullImageRequest {
                image: Some(image(&format!("hostile.example/secret{index}:latest"))),
                auth: Some(auth),
                sandbox_config: None,
            };
            let refusal = client.image.clone().pull_image(request).await.err().context("a pull of nothing succeeds")?;
            for secret in SECRETS {
                ensure!(!refusal.message().contains(secret), "{secret} in the answer: {}", refusal.message());
            }
        }
    }
    let log = node.log();
    ensure!(log.contains("secret0"), "the log knows nothing of the pulls");
    let told: Vec<_> = log.lines().filter(|line| SECRETS.iter().any(|secret| line.contains(secret))).collect();
    ensure!(told.is_empty(), "{} lines of the log have secrets in them, the first: {}", told.len(), told[0]);
    Ok(())
}

async fn cve_2019_14891_nothing_of_ours_in_a_pod_s_cgroup() -> Result<()> {
    let (node, client, sandbox, pod) = node("crun").await?;
    let reference = Crafted::configured(json!({})).import(&node, "cgroup").await?;
    let mut config = idle(&sandbox, "bomb", &reference);
    config.command = ["sh", "-c", "echo begun; tail /dev/zero"].map(str::to_owned).to_vec();
    crate::requests::resources(&mut config).memory_limit_in_bytes = 15 << 20;
    crate::requests::resources(&mut config).memory_swap_limit_in_bytes = 15 << 20;
    let ours: Vec<u32> = node.keeper_pids().into_iter().chain([node.daemon_pid()?]).collect();
    for attempt in 0..10 {
        config.metadata.get_or_insert_default().attempt = attempt;
        let id = client.run(&pod, &config, &sandbox).await?;
        let status = client.ended(&id).await?;
        ensure!((status.exit_code, &*status.reason) == (137, "OOMKilled"), "{} {}", status.exit_code, status.reason);
        ensure!(std::fs::read_to_string(&status.log_path)?.contains("begun"), "its log is not whole");
        client.remove(&id).await?;
    }
    let now: Vec<u32> = node.keeper_pids().into_iter().chain([node.daemon_pid()?]).collect();
    ensure!(now == ours, "the daemon or the keeper died: {ours:?} → {now:?}");
    let id = client.run(&pod, &idle(&sandbox, "idle", &reference), &sandbox).await?;
    let own = client.exec(&id, "cat /proc/1/cgroup", 20).await?;
    let own = String::from_utf8_lossy(&own.stdout).into_owned();
    for pid in ours {
        let groups = std::fs::read_to_string(node.world.seen(format!("/proc/{pid}/cgroup")))?;
        let shared = groups.lines().find(|line| line.contains(&id) || (line.len() > 30 && own.contains(*line)));
        ensure!(shared.is_none(), "process {pid} is in the container's cgroup: {shared:?}");
    }
    Ok(())
}

async fn cve_2020_15257_no_socket_for_containers() -> Result<()> {
    let (node, ..) = node("crun").await?;
    let ours: Vec<u32> = node.keeper_pids().into_iter().chain([node.daemon_pid()?]).collect();
    let text = std::fs::read_to_string(node.world.seen(format!("/proc/{}/net/unix", node.daemon_pid()?)))?;
    let named: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().nth(7)).collect();
    let open: Vec<_> = named.iter().filter(|name| name.starts_with('@')).collect();
    // A container on the host's network could connect to one, whatever folder the rest of the daemon is in.
    ensure!(open.is_empty(), "sockets without a file: {open:?}");
    let sockets = ["state/cricket.sock", "state/keeper.sock"];
    for name in sockets {
        let path = node.world.seen(node.path(name));
        let meta = std::fs::metadata(&path).with_context(|| name.to_owned())?;
        ensure!(meta.mode() & 0o007 == 0, "{name} has mode {:o}", meta.mode());
    }
    ensure!(std::fs::metadata(node.world.seen(node.path("state")))?.mode() & 0o077 == 0, "the state folder is open");
    ensure!(!ours.is_empty() && named.iter().any(|name| name.ends_with("cricket.sock")), "nothing was looked at");
    Ok(())
}

async fn cve_2021_25743_escapes_in_messages() -> Result<()> {
    let (node, client, sandbox, pod) = node("crun").await?;
    let reference = Crafted::configured(json!({})).import(&node, "escapes").await?;
    let mut config = idle(&sandbox, "escapes", &reference);
    config.command = vec!["/no\u{1b}[2Jsuch\u{7}".into()];
    let refusal = match client.create(&pod, &config, &sandbox).await {
        Err(refusal) => refusal.message().to_owned(),
        Ok(id) => {
            let refusal = client.start(&id).await.err().context("a program that is not there starts")?;
            let status = client.status(&id).await?;
            ensure!(!status.message.chars().any(|c| c.is_control() && c != '\n'), "{:?}", status.message);
            refusal.message().to_owned()
        }
    };
    ensure!(!refusal.contains('\u{1b}') && !refusal.contains('\u{7}'), "{refusal:?}");
    Ok(())
}

async fn cve_2021_41103_cve_2024_25621_cve_2021_41091_nothing_for_other_users() -> Result<()> {
    let (node, client, sandbox, pod) = node("crun").await?;
    let layer = vec![crate::archive::Entry::file("bin/suid", b"#!/bin/sh\nid -u\n").owned(0o4755, 0, 0)];
    let reference = Crafted::with(layer).import(&node, "suid").await?;
    let id = client.run(&pod, &idle(&sandbox, "suid", &reference), &sandbox).await?;
    // The node's own folder is as open as /run and /var/lib are.
    std::fs::set_permissions(node.world.folder(), std::fs::Permissions::from_mode(0o755))?;
    for name in ["root", "state"] {
        let path = node.path(name).to_string_lossy().into_owned();
        let script =
            format!("cd / && find {path} -mindepth 1 2>/dev/null; cat {path}/pods/{pod}.json 2>/dev/null; echo end");
        let args = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "sh", "-c", &script];
        let seen = node.world.must("setpriv", &args).await?;
        ensure!(seen == "end\n", "{name}: nobody sees {seen}");
    }
    let suid = node.path(&format!("state/k8s.io/{id}/rootfs/bin/suid")).to_string_lossy().into_owned();
    let args = ["--reuid", "65534", "--regid", "65534", "--clear-groups", &suid];
    let ran = node.world.run("setpriv", &args).await?;
    ensure!(!ran.status.success() && ran.stdout.is_empty(), "a set-uid program of a container runs on the host");
    // The control: root sees it.
    node.world.must("stat", &[&suid]).await?;
    Ok(())
}

async fn cve_2024_5321_logs_are_root_s() -> Result<()> {
    let (node, client, sandbox, pod) = node("crun").await?;
    let reference = Crafted::configured(json!({})).import(&node, "log").await?;
    let mut config = idle(&sandbox, "log", &reference);
    config.log_path = "deep/er/own.log".into();
    let id = client.run(&pod, &config, &sandbox).await?;
    let log = std::path::PathBuf::from(client.status(&id).await?.log_path);
    let meta = std::fs::metadata(&log)?;
    ensure!(meta.uid() == 0 && meta.mode() & 0o137 == 0, "{} has mode {:o}", log.display(), meta.mode());
    for folder in log.ancestors().skip(1).take_while(|folder| folder.starts_with(node.path("logs"))) {
        let mode = std::fs::metadata(folder)?.mode();
        ensure!(mode & 0o022 == 0, "{} has mode {mode:o}", folder.display());
    }
    Ok(())
}

async fn conmon_rs_c35287ba_no_inherited_descriptors() -> Result<()> {
    let mut setup = Setup::new("crun");
    setup.registry = false;
    let mut node = Box::pin(Node::prepare(Box::pin(World::new()).await?, setup)).await?;
    let secret = node.path("inherited");
    std::fs::write(&secret, SECRET)?;
    let client = node.launch_with_descriptors(&secret, 50).await?;
    let sandbox = host_pod(&node, "pod");
    let pod = client.run_pod(&sandbox).await?;
    let reference = Crafted::configured(json!({})).import(&node, "plain").await?;
    let id = client.run(&pod, &idle(&sandbox, "plain", &reference), &sandbox).await?;
    let seen = client.output(&id, "ls -l /proc/1/fd /proc/self/fd").await?;
    ensure!(!seen.contains("inherited"), "a container was given it: {seen}");
    for pid in node.keeper_pids() {
        let folder = node.world.seen(format!("/proc/{pid}/fd"));
        let open = std::fs::read_dir(folder)?.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
        let kept: Vec<_> = open.filter(|target| target.ends_with("inherited")).collect();
        ensure!(kept.is_empty(), "the keeper, which outlives every daemon, keeps {} of them", kept.len());
    }
    Ok(())
}

async fn cve_2021_30465_cve_2024_45310_mount_targets_that_flip(runtime: &'static str) -> Result<()> {
    let (node, client, sandbox, pod) = node(runtime).await?;
    let canary = Canary::new(&node)?;
    let reference = Crafted::configured(json!({})).import(&node, "flip").await?;
    let (shared, inner) = (node.path("shared"), node.path("inner"));
    std::fs::create_dir(&shared)?;
    std::fs::create_dir(&inner)?;
    std::fs::write(inner.join("inner"), "")?;
    let (shared, inner) = (shared.to_string_lossy().into_owned(), inner.to_string_lossy().into_owned());
    // A neighbour with the same volume turns the mount target from a folder into a link and back, as fast as it can.
    let mut flipper = idle(&sandbox, "flipper", &reference);
    flipper.mounts = vec![bind(&shared, "/shared")];
    let script = format!(
        "cd /shared; mkdir -p dir; ln -s {0} link; ln -s / root; while :; do mv -T dir x; mv -T link dir; mv -T dir link; \
         mv -T root dir; mv -T dir root; mv -T x dir; done 2>/dev/null",
        canary.path()
    );
    flipper.command = ["sh", "-c", &script].map(str::to_owned).to_vec();
    client.run(&pod, &flipper, &sandbox).await?;
    eventually("the flipper is at work", PATIENCE, async || {
        ensure!(std::path::Path::new(&shared).join("root").symlink_metadata().is_ok(), "not yet");
        Ok(())
    })
    .await?;
    let before = mounts(&node)?;
    for round in 0..25 {
        let mut config = idle(&sandbox, &format!("victim-{round}"), &reference);
        config.mounts = vec![bind(&shared, "/shared"), bind(&inner, "/shared/dir/made")];
        security(&mut config).privileged = false;
        let outcome =
            attempt(&client, &pod, &sandbox, &config, "cat /proc/1/mountinfo; cat /shared/link/secret").await?;
        if let Ok(seen) = outcome {
            ensure!(!seen.contains(SECRET), "round {round}: the host's file is readable: {seen}");
            let targets =
                seen.lines().filter(|line| line.contains("/inner ")).filter_map(|line| line.split(' ').nth(4));
            // Inside the container a link to `/` leads to its own root: what must never be is a mount outside of it.
            for target in targets {
                ensure!(target.starts_with('/'), "round {round}: mounted at {target}");
            }
        }
        let after = mounts(&node)?;
        ensure!(after == before, "round {round}: mounts on the host: {:?}", after.difference(&before));
        canary.assert_untouched().with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

/// The mounts that the host sees outside of the containers' root file systems.
fn mounts(node: &Node) -> Result<BTreeSet<String>> {
    let text = std::fs::read_to_string(node.world.seen("/proc/1/mountinfo"))?;
    let targets = text.lines().filter_map(|line| line.split(' ').nth(4)).filter(|path| !path.contains("/k8s.io/"));
    Ok(targets.map(str::to_owned).collect())
}
