//! Pods with a user namespace of their own: who is whom inside and on the host, and what is refused.

use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use cri_proto::runtime::v1 as cri;
use tonic::Code;

use crate::client::{Client, refused};
use crate::ledger::Ledger;
use crate::node::Node;
use crate::requests::{BUSYBOX, bind, container, namespaces, pod, security, with_namespaces};
use crate::world::{PATIENCE, eventually};

crate::per_runtime!(ids_inside_and_outside, a_shared_pid_namespace, volumes_and_their_owners, nothing_is_left);
crate::once!(bad_requests, the_daemon_may_be_killed);

/// The host's id of the pod's root.
const HOST: u32 = 200_000;

fn mapping(container_id: u32, host_id: u32, length: u32) -> cri::IdMapping {
    cri::IdMapping { host_id, container_id, length }
}

/// Asks for a user namespace.
fn user_pod(node: &Node, name: &str, pid: cri::NamespaceMode) -> cri::PodSandboxConfig {
    let mut options = namespaces(cri::NamespaceMode::Pod, pid);
    let ids = vec![mapping(0, HOST, 65536)];
    options.userns_options = Some(cri::UserNamespace { mode: 0, uids: ids.clone(), gids: ids });
    with_namespaces(pod(node, name), options)
}

fn options(pod: &mut cri::PodSandboxConfig) -> &mut cri::NamespaceOption {
    let security = pod.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default()
}

async fn node(runtime: &'static str) -> Result<(Node, Client)> {
    let mut node = Node::new(runtime).await?;
    let client = node.client().await?;
    client.pull(BUSYBOX).await?;
    let status = client.runtime.clone().status(cri::StatusRequest { verbose: true }).await?.into_inner();
    let able = status.runtime_handlers.iter().find(|handler| handler.name == runtime).context("the handler")?;
    let features = able.features.unwrap_or_default();
    ensure!(features.user_namespaces && features.recursive_read_only_mounts, "{features:?} {:?}", status.info);
    Ok((node, client))
}

/// The process with these words in its command line must belong, as the host sees it, to this user.
async fn belongs(node: &Node, words: &str, uid: u32) -> Result<()> {
    // A start is answered before the program has taken the runtime's place.
    eventually("the program runs", PATIENCE, async || {
        let found = node.world.processes().into_iter().find(|(_, line)| line.join(" ").contains(words));
        let (pid, _) = found.with_context(|| format!("no process {words:?}"))?;
        let status = std::fs::read_to_string(node.world.seen(format!("/proc/{pid}/status")))?;
        let ids = status.lines().find_map(|line| line.strip_prefix("Uid:")).context("Uid")?;
        ensure!(ids.split_whitespace().all(|id| id == uid.to_string()), "{words}: {ids}, not {uid}");
        Ok(())
    })
    .await
}

/// A path in the writable layer of a container.
fn upper(node: &Node, id: &str, path: &str) -> PathBuf {
    node.world.seen(node.path("root/containers").join(id).join("upper").join(path))
}

/// Looks, in every folder of a tree, for what others than its owner may enter or read.
fn open_to_others(folder: &std::path::Path, found: &mut Vec<PathBuf>) {
    let Ok(meta) = std::fs::symlink_metadata(folder) else { return };
    if meta.mode() & 0o007 != 0 {
        found.push(folder.to_owned());
    }
}

async fn ids_inside_and_outside(runtime: &'static str) -> Result<()> {
    let (node, client) = node(runtime).await?;
    let mut sandbox = user_pod(&node, "ids", cri::NamespaceMode::Container);
    sandbox.linux.get_or_insert_default().sysctls = [
        ("net.ipv4.ping_group_range".to_owned(), "0 1000".to_owned()),
        ("kernel.shm_rmid_forced".to_owned(), "1".to_owned()),
    ]
    .into();
    let pod = client.run_pod(&sandbox).await?;
    let status = client.pod_status(&pod).await?;
    let echoed = status.linux.and_then(|linux| linux.namespaces?.options).context("namespaces")?;
    ensure!(Some(&echoed) == Some(&*options(&mut sandbox)), "{echoed:?}");
    let id = client.run(&pod, &container(&sandbox, "root", "exec sleep 424242"), &sandbox).await?;

    let map = client.output(&id, "cat /proc/self/uid_map /proc/self/gid_map").await?;
    let words: Vec<_> = map.split_whitespace().collect();
    ensure!(words == ["0", "200000", "65536", "0", "200000", "65536"], "{map}");
    belongs(&node, "sleep 424242", HOST).await?;
    let owners = client.output(&id, "stat -c %u:%g / /etc /bin/sh /dev/shm /etc/resolv.conf /etc/hostname").await?;
    ensure!(owners.lines().all(|line| line == "0:0"), "{owners}");
    client.output(&id, "echo x >/dev/shm/x; cat /etc/resolv.conf >/dev/null; [ $(cat /etc/hostname) = ids ]").await?;
    ensure!(client.output(&id, "hostname").await?.trim() == "ids", "hostname");
    ensure!(client.output(&id, "cat /proc/sys/net/ipv4/ping_group_range").await?.split_whitespace().eq(["0", "1000"]));
    ensure!(client.output(&id, "cat /proc/sys/kernel/shm_rmid_forced").await?.trim() == "1", "an IPC sysctl");
    let addresses = client.output(&id, "ip address 2>/dev/null || ifconfig -a").await?;
    ensure!(addresses.contains("127.0.0.1") && addresses.contains("10.89."), "{addresses}");
    // What only the root of the network namespace may do.
    client.output(&id, "ping -c 1 -W 5 127.0.0.1 >/dev/null || ip link >/dev/null").await?;

    // Files: as inside, so on disk, moved by the map; what is in the layer stays as it is.
    client.output(&id, "touch /made; touch /other; chown 5:7 /other; chown 9:9 /bin/sh").await?;
    for (path, owner) in [("made", (0, 0)), ("other", (5, 7)), ("bin/sh", (9, 9))] {
        let meta = std::fs::symlink_metadata(upper(&node, &id, path)).with_context(|| path.to_owned())?;
        ensure!((meta.uid(), meta.gid()) == (HOST + owner.0, HOST + owner.1), "{path}: {}:{}", meta.uid(), meta.gid());
    }
    let layers =
        node.world.must("find", &[&node.path("root/images/layers").to_string_lossy(), "-uid", "+65535"]).await?;
    ensure!(layers.is_empty(), "a layer was changed: {layers}");

    // Another user of the image, with a file of its own.
    let mut config = container(&sandbox, "user", "touch /tmp/mine; exec sleep 434343");
    security(&mut config).run_as_user = Some(cri::Int64Value { value: 1234 });
    let user = client.run(&pod, &config, &sandbox).await?;
    ensure!(client.output(&user, "id -u").await?.trim() == "1234", "id");
    belongs(&node, "sleep 434343", HOST + 1234).await?;

    // The host's folders stay closed.
    let mut found = Vec::new();
    for folder in ["root", "state", "state/k8s.io", "state/ns", "state/pods", "root/containers", "root/images"] {
        open_to_others(&node.world.seen(node.path(folder)), &mut found);
    }
    ensure!(found.is_empty(), "open to others: {found:?}");
    client.stop(&id, 1).await?;
    ensure!(client.status(&id).await?.exit_code == 137 || client.status(&id).await?.exit_code == 143, "the exit code");
    Ok(())
}

async fn a_shared_pid_namespace(runtime: &'static str) -> Result<()> {
    let (node, client) = node(runtime).await?;
    let sandbox = user_pod(&node, "shared", cri::NamespaceMode::Pod);
    let pod = client.run_pod(&sandbox).await?;
    let first = client.run(&pod, &container(&sandbox, "first", "exec sleep 454545"), &sandbox).await?;
    let second = client.run(&pod, &container(&sandbox, "second", "exec sleep 464646"), &sandbox).await?;
    let seen = client.output(&first, "ps -o pid,user,args 2>/dev/null || ps").await?;
    ensure!(seen.contains("sleep 464646") && seen.contains("cricket-init"), "{seen}");
    belongs(&node, "cricket-init", HOST + 65534).await?;
    client.stop(&second, 0).await?;
    ensure!(!client.output(&first, "ps").await?.contains("464646"), "it is there after its stop");
    Ok(())
}

fn kernel_is_at_least(major: u32, minor: u32) -> Result<bool> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let mut next = || numbers.next().with_context(|| release.clone());
    Ok((next()??, next()??) >= (major, minor))
}

async fn volumes_and_their_owners(runtime: &'static str) -> Result<()> {
    let (node, client) = node(runtime).await?;
    let sandbox = user_pod(&node, "volumes", cri::NamespaceMode::Container);
    let pod = client.run_pod(&sandbox).await?;
    let (mapped, plain, memory) = (node.path("mapped"), node.path("plain"), node.path("memory"));
    for folder in [&mapped, &plain, &memory] {
        std::fs::create_dir(folder)?;
        std::fs::write(folder.join("five"), "5")?;
        chown(folder.join("five"), Some(5), Some(6))?;
    }
    std::fs::write(node.path("one-file"), "content")?;
    // A secret of the kubelet lies on a tmpfs; here with every restriction that a mount can have.
    let text = |path: &PathBuf| path.to_string_lossy().into_owned();
    node.world.must("mount", &["-t", "tmpfs", "-o", "nosuid,nodev,noexec", "secret", &text(&memory)]).await?;
    node.world.must("sh", &["-c", &format!("echo secret >{}/five", text(&memory))]).await?;
    let map = |mount: cri::Mount| cri::Mount {
        uid_mappings: vec![mapping(0, HOST, 65536)],
        gid_mappings: vec![mapping(0, HOST, 65536)],
        ..mount
    };
    let mut config = container(&sandbox, "volumes", "exec sleep 474747");
    config.mounts = vec![
        map(bind(&text(&mapped), "/mapped")),
        bind(&text(&plain), "/plain"),
        map(cri::Mount { readonly: true, ..bind(&text(&memory), "/memory") }),
        cri::Mount { readonly: true, ..bind(&text(&memory), "/memory-plain") },
        map(cri::Mount { readonly: true, recursive_read_only: true, ..bind(&text(&mapped), "/rro") }),
        map(bind(&text(&node.path("one-file")), "/one-file")),
    ];
    // A tmpfs has mapped mounts since Linux 6.3. Before, it is refused by name, and here it goes on without the map.
    let (mapped_tmpfs, root) = if kernel_is_at_least(6, 3)? { (true, "0:0") } else { (false, "65534:65534") };
    if !mapped_tmpfs {
        let words = ["mounts[2]", &text(&memory), "mapped owners"];
        refused(client.create(&pod, &config, &sandbox).await, &[Code::FailedPrecondition], &words)?;
        config.mounts[2].uid_mappings.clear();
        config.mounts[2].gid_mappings.clear();
    }
    let id = client.run(&pod, &config, &sandbox).await?;
    let owners = client.output(&id, "stat -c %u:%g /mapped/five /plain/five /memory/five /one-file").await?;
    ensure!(owners.lines().eq(["5:6", "65534:65534", root, "0:0"]), "{owners}");
    client.output(&id, "echo new >/mapped/new; echo more >>/one-file; chown 8:8 /mapped/five").await?;
    let meta = |path: PathBuf| std::fs::metadata(path).map(|meta| (meta.uid(), meta.gid()));
    ensure!(meta(mapped.join("new"))? == (0, 0) && meta(mapped.join("five"))? == (8, 8), "owners on disk");
    ensure!(std::fs::read_to_string(node.path("one-file"))? == "contentmore\n", "the file");
    for script in
        ["touch /memory/x", "touch /memory-plain/x", "touch /rro/x", "touch /plain/x", "chown 0:0 /plain/five"]
    {
        ensure!(client.exec(&id, script, 30).await?.exit_code != 0, "{script} was done");
    }
    ensure!(client.output(&id, "cat /memory/five /memory-plain/five").await? == "secret\nsecret\n", "the secrets");
    ensure!(!plain.join("x").exists() && meta(plain.join("five"))? == (5, 6), "the plain volume was changed");
    let status = client.status(&id).await?;
    ensure!(status.mounts == config.mounts, "{:?}", status.mounts);

    // A file system that cannot be mapped: the error says which.
    let mut config = container(&sandbox, "unmappable", "sleep 1");
    config.mounts = vec![map(bind("/proc/sys", "/host-sys"))];
    let words = ["mounts[0]", "/proc/sys", "mapped owners"];
    refused(client.create(&pod, &config, &sandbox).await, &[Code::FailedPrecondition], &words)?;
    ensure!(client.containers().await?.len() == 1, "a container that was refused is listed");
    client.clear().await?;
    node.world.must("umount", &[&text(&memory)]).await?;
    Ok(())
}

async fn nothing_is_left(runtime: &'static str) -> Result<()> {
    let (node, client) = node(runtime).await?;
    for round in 0..2 {
        let before = Ledger::take(&node).await?;
        for pid in [cri::NamespaceMode::Container, cri::NamespaceMode::Pod] {
            let sandbox = user_pod(&node, &format!("left-{round}"), pid);
            let pod = client.run_pod(&sandbox).await?;
            let mut config = container(&sandbox, "left", "exec sleep 484848");
            config.mounts = vec![bind(&node.path("logs").to_string_lossy(), "/logs")];
            let id = client.run(&pod, &config, &sandbox).await?;
            client.output(&id, "touch /x").await?;
            let mut bad = container(&sandbox, "bad", "");
            bad.command = vec!["/no/such/program".into()];
            if let Ok(id) = client.create(&pod, &bad, &sandbox).await {
                refused(client.start(&id).await, &[], &["/no/such/program"])?;
            }
            client.stop_pod(&pod).await?;
            client.remove_pod(&pod).await?;
        }
        // The first round makes what a node has once: the bridge, and chains.
        if round == 1 {
            before.assert_same(&node).await?;
        }
    }
    Ok(())
}

async fn the_daemon_may_be_killed() -> Result<()> {
    let (mut node, client) = node("crun").await?;
    client.run_pod(&user_pod(&node, "first", cri::NamespaceMode::Container)).await?;
    for pod in client.pods().await? {
        client.remove_pod(&pod.id).await?;
    }
    let before = Ledger::take(&node).await?;
    let sandbox = user_pod(&node, "killed", cri::NamespaceMode::Pod);
    let pod = client.run_pod(&sandbox).await?;
    let config = container(&sandbox, "killed", "while :; do echo on; sleep 1; done");
    let id = client.run(&pod, &config, &sandbox).await?;
    let created = client.create(&pod, &container(&sandbox, "later", "exec sleep 494949"), &sandbox).await?;
    let (was, pod_was) = (client.status(&id).await?, client.pod_status(&pod).await?);
    let client = node.crash_and_restart().await?;
    ensure!(client.status(&id).await? == was && client.pod_status(&pod).await? == pod_was, "a status changed");
    ensure!(client.output(&id, "id -u; cat /proc/self/uid_map").await?.contains("200000"), "the map");
    client.start(&created).await?;
    belongs(&node, "sleep 494949", HOST).await?;
    let third = client.run(&pod, &container(&sandbox, "third", "exec sleep 505050"), &sandbox).await?;
    ensure!(client.output(&third, "id -u").await?.trim() == "0", "created after the restart");
    client.stop_pod(&pod).await?;
    client.remove_pod(&pod).await?;
    before.assert_same(&node).await?;

    // Killed in the middle of a creation: whatever had been made is gone after the next start.
    let sandbox = user_pod(&node, "middle", cri::NamespaceMode::Pod);
    let racing = {
        let (client, sandbox) = (client.clone(), sandbox.clone());
        cricket::task::spawn("racing", async move { client.run_pod(&sandbox).await })
    };
    let state = node.world.seen(node.path("state/ns"));
    eventually("the pod's namespaces are begun", PATIENCE, async || {
        ensure!(std::fs::read_dir(&state)?.next().is_some(), "not yet");
        Ok(())
    })
    .await?;
    let client = node.crash_and_restart().await?;
    // It may have come to be just before; then it is there, and goes as any other.
    drop(racing.await);
    client.clear().await?;
    client.pull(BUSYBOX).await?;
    before.assert_same_but(&node, "file /run/").await
}

async fn bad_requests() -> Result<()> {
    let (node, client) = node("crun").await?;
    client.run_pod(&user_pod(&node, "first", cri::NamespaceMode::Container)).await?;
    for pod in client.pods().await? {
        client.remove_pod(&pod.id).await?;
    }
    let before = Ledger::take(&node).await?;
    type Change = fn(&mut cri::NamespaceOption);
    fn user(options: &mut cri::NamespaceOption) -> &mut cri::UserNamespace {
        options.userns_options.get_or_insert_default()
    }
    let cases: [(&str, Change, &[&str]); 14] = [
        ("no uids", |o| user(o).uids.clear(), &["userns_options.uids", "0"]),
        ("no gids", |o| user(o).gids.clear(), &["userns_options.gids", "0"]),
        ("two lines", |o| user(o).uids.push(mapping(65536, 900_000, 10)), &["userns_options.uids", "2", "exactly one"]),
        ("root not mapped", |o| user(o).uids[0] = mapping(1, HOST, 65536), &["uids[0]", "1:200000:65536"]),
        ("empty", |o| user(o).gids[0] = mapping(0, HOST, 0), &["gids[0]", "0:200000:0"]),
        ("short", |o| user(o).gids[0] = mapping(0, HOST, 1000), &["gids[0]", "0:200000:1000", "65536"]),
        ("the host's root", |o| user(o).uids[0] = mapping(0, 0, 65536), &["uids[0]", "0:0:65536"]),
        ("beyond 32 bits", |o| user(o).uids[0] = mapping(0, 4_294_900_000, 70_000), &["uids[0]", "0:4294900000:70000"]),
        ("mode CONTAINER", |o| user(o).mode = 1, &["userns_options.mode", "CONTAINER"]),
        ("mode TARGET", |o| user(o).mode = 3, &["userns_options.mode", "TARGET"]),
        ("unknown mode", |o| user(o).mode = 7, &["userns_options.mode", "7"]),
        ("the host's network", |o| o.network = 2, &["namespace_options.network", "NODE"]),
        ("the host's IPC", |o| o.ipc = 2, &["namespace_options.ipc", "NODE"]),
        ("the host's processes", |o| o.pid = 2, &["namespace_options.pid", "NODE"]),
    ];
    for (name, change, words) in cases {
        let mut sandbox = user_pod(&node, "bad", cri::NamespaceMode::Container);
        change(options(&mut sandbox));
        refused(client.run_pod(&sandbox).await, &[Code::InvalidArgument], words).context(name)?;
    }
    before.assert_same(&node).await?;

    let sandbox = user_pod(&node, "good", cri::NamespaceMode::Container);
    let pod_id = client.run_pod(&sandbox).await?;
    let mut other = container(&sandbox, "other", "true");
    let asked = security(&mut other).namespace_options.get_or_insert_default().userns_options.get_or_insert_default();
    asked.uids[0].host_id = 300_000;
    let words = ["userns_options", "0:300000:65536", "0:200000:65536"];
    refused(client.create(&pod_id, &other, &sandbox).await, &[Code::InvalidArgument], &words)?;
    let asked = security(&mut other).namespace_options.get_or_insert_default().userns_options.get_or_insert_default();
    asked.mode = 2;
    refused(client.create(&pod_id, &other, &sandbox).await, &[Code::InvalidArgument], &["userns_options", "NODE"])?;
    let logs = node.path("logs").to_string_lossy().into_owned();
    let mut mount = container(&sandbox, "mount", "true");
    mount.mounts = vec![cri::Mount { uid_mappings: vec![mapping(0, 7, 65536)], ..bind(&logs, "/m") }];
    let words = ["mounts[0].uid_mappings", "0:7:65536", "0:200000:65536"];
    refused(client.create(&pod_id, &mount, &sandbox).await, &[Code::InvalidArgument], &words)?;
    mount.mounts = vec![cri::Mount { propagation: 2, ..bind(&logs, "/m") }];
    let words = ["mounts[0].propagation", "BIDIRECTIONAL"];
    refused(client.create(&pod_id, &mount, &sandbox).await, &[Code::InvalidArgument], &words)?;
    ensure!(client.containers().await?.is_empty(), "a container that was refused is listed");

    // In a pod of the host's users nothing can be mapped.
    let plain = pod(&node, "plain");
    let plain_id = client.run_pod(&plain).await?;
    let mut mount = container(&plain, "mount", "true");
    mount.mounts = vec![cri::Mount { uid_mappings: vec![mapping(0, HOST, 65536)], ..bind(&logs, "/m") }];
    let words = ["mounts[0].uid_mappings", "no user namespace"];
    refused(client.create(&plain_id, &mount, &plain).await, &[Code::InvalidArgument], &words)?;
    for pod in client.pods().await? {
        client.stop_pod(&pod.id).await?;
        client.remove_pod(&pod.id).await?;
    }
    before.assert_same(&node).await
}
