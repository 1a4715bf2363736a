//! Images from an honest registry: every compression and media type, names and identity, and what an unpacked layer holds.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use cri_proto::runtime::v1 as cri;

use crate::client::Client;
use crate::ledger::Ledger;
use crate::node::Node;
use crate::requests::{container, host_pod, image};

crate::once!(
    every_kind_is_pulled_and_removed,
    names_and_identity,
    what_a_layer_holds,
    what_an_image_says_is_done,
    users_of_images,
    five_pulls_at_once,
    import_of_a_layout
);

const STAGING: &str = "gcr.io/k8s-staging-cri-tools";

async fn node() -> Result<(Node, Client)> {
    let mut node = Node::new("crun").await?;
    let client = node.client().await?;
    Ok((node, client))
}

async fn every_kind_is_pulled_and_removed() -> Result<()> {
    let (mut node, client) = node().await?;
    let names = [
        format!("{STAGING}/test-image-1"),        // gzip, OCI
        format!("{STAGING}/test-image-2:latest"), // zstd, OCI
        format!("{STAGING}/test-image-3"),        // uncompressed, Docker, behind a manifest list
        format!("{STAGING}/test-image-tag:test"), // gzip, Docker
        format!("{STAGING}/test-image-tag:all"),  // uncompressed, OCI, behind an index
        "public.ecr.aws/docker/library/busybox:1".to_owned(),
    ];
    client.pull(&names[0]).await?;
    client.remove_image(&names[0]).await?;
    let before = Ledger::take(&node).await?;
    for name in &names {
        let id = client.pull(name).await.with_context(|| name.clone())?;
        let found = client.image_status(name).await?.with_context(|| format!("{name} is not there after its pull"))?;
        let tagged = if name.rsplit('/').next().is_some_and(|last| last.contains(':')) {
            name.clone()
        } else {
            format!("{name}:latest")
        };
        ensure!(found.id == id && found.repo_tags == [tagged], "{name}: {id} {found:?}");
        ensure!(found.repo_digests.len() == 1 && found.size > 0, "{name}: {found:?}");
        ensure!(client.pull(name).await? == id, "{name}: a second pull has another id");
    }
    let info = client.image.clone().image_fs_info(cri::ImageFsInfoRequest {}).await?.into_inner();
    let usage = info.image_filesystems.first().context("no image file system")?;
    ensure!(usage.used_bytes.is_some_and(|used| used.value > 1 << 20) && usage.timestamp > 0, "{usage:?}");
    let all = client.images().await?;
    ensure!(all.len() == names.len(), "{} images are listed", all.len());
    // A restart finds them all again.
    let client = node.crash_and_restart().await?;
    let mut again = client.images().await?;
    again.sort_by(|one, other| one.id.cmp(&other.id));
    let mut all = all;
    all.sort_by(|one, other| one.id.cmp(&other.id));
    ensure!(again == all, "the list changed with the restart");
    for one in &all {
        client.remove_image(&one.id).await?;
        ensure!(client.image_status(&one.id).await?.is_none(), "{} is there after its removal", one.id);
        client.remove_image(&one.id).await?;
    }
    before.assert_same(&node).await
}

async fn names_and_identity() -> Result<()> {
    let (_node, client) = node().await?;
    // One manifest, three tags: one image.
    let tags: Vec<_> = (1..=3).map(|n| format!("{STAGING}/test-image-tags:{n}")).collect();
    for tag in &tags {
        client.pull(tag).await?;
    }
    let found = client.image_status(&tags[1]).await?.context("pulled")?;
    let mut own = found.repo_tags.clone();
    own.sort();
    ensure!(own == tags && found.repo_digests.len() == 1, "{found:?}");
    for name in [&found.id, found.id.trim_start_matches("sha256:"), &found.repo_digests[0], &tags[0], &tags[2]] {
        let same = client.image_status(name).await?.with_context(|| format!("not found by {name}"))?;
        ensure!(same.id == found.id && same.repo_tags.len() == 3 && same.size == found.size, "{name}: {same:?}");
    }
    client.remove_image(&found.id).await?;
    for tag in &tags {
        ensure!(client.image_status(tag).await?.is_none(), "{tag} outlived its image");
    }
    // By digest: no tag.
    let digest = found.repo_digests[0].clone();
    client.pull(&digest).await?;
    let found = client.image_status(&digest).await?.context("pulled by digest")?;
    ensure!(found.repo_tags.is_empty() && found.repo_digests == [digest], "{found:?}");
    // Two registries, one image.
    let pauses = ["registry.k8s.io/pause:3.9", "k8s.gcr.io/pause:3.9"];
    let ids = [client.pull(pauses[0]).await?, client.pull(pauses[1]).await?];
    ensure!(ids[0] == ids[1], "two ids of one image: {ids:?}");
    let found = client.image_status(pauses[0]).await?.context("pulled")?;
    ensure!(found.repo_tags.len() == 2 && found.repo_digests.len() == 2, "{found:?}");
    ensure!(client.image_status("registry.k8s.io/pause:3.8").await?.is_none(), "a tag that was never pulled");
    Ok(())
}

/// The unpacked file of that name, wherever its layer is.
fn unpacked(root: &Path, name: &str) -> Option<PathBuf> {
    for entry in std::fs::read_dir(root).ok()?.flatten() {
        let path = entry.path();
        if path.file_name().is_some_and(|own| own == name) {
            return Some(path);
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Some(found) = unpacked(&path, name)
        {
            return Some(found);
        }
    }
    None
}

async fn what_a_layer_holds() -> Result<()> {
    let (node, client) = node().await?;
    client.pull("registry.k8s.io/cricket/layers:1").await?;
    let sandbox = host_pod(&node, "pod");
    let pod = client.run_pod(&sandbox).await?;
    let mut config = container(&sandbox, "layers", "sleep 100000");
    config.image = Some(image("registry.k8s.io/cricket/layers:1"));
    let id = client.run(&pod, &config, &sandbox).await?;
    let checks = [
        ("a whiteout hides a file", "[ ! -e gone ] && [ ! -e .wh.gone ]"),
        ("a whiteout hides a folder", "[ ! -e gone-dir ]"),
        ("an opaque folder shows only what is new", "[ \"$(ls -A opaque)\" = new ]"),
        ("a file in place of a folder", "[ \"$(cat was-dir)\" = 'a file now' ]"),
        ("a folder in place of a file", "[ \"$(cat was-file/file)\" = 'a folder now' ]"),
        ("what is not mentioned stays", "[ \"$(cat kept)\" = kept ]"),
        (
            "hard links are one file",
            "[ $(stat -c %i linked) = $(stat -c %i other-name) ] && [ $(stat -c %h linked) = 2 ]",
        ),
        ("an absolute link", "[ \"$(readlink absolute)\" = /data/kept ] && [ \"$(cat absolute)\" = kept ]"),
        ("a dangling link", "[ \"$(readlink dangling)\" = /nowhere/at/all ]"),
        ("sticky", "[ $(stat -c %a sticky) = 1777 ]"),
        ("set-uid", "[ $(stat -c %a setuid) = 4755 ]"),
        ("set-gid", "[ $(stat -c %a setgid) = 2755 ]"),
        ("mode 0", "[ $(stat -c %a unreadable) = 0 ]"),
        ("owner", "[ $(stat -c %u:%g:%a owned) = 1234:2345:640 ]"),
        ("time", "[ $(stat -c %Y old) = 1000000000 ]"),
        ("device", "[ -c null ] && [ $(stat -c %t:%T null) = 1:3 ]"),
        ("fifo", "[ -p fifo ]"),
        ("a name that is not ASCII", "[ \"$(cat größe)\" = 'not ASCII' ]"),
        ("the same set-uid bit in use", "[ -u setuid ]"),
    ];
    for (what, script) in checks {
        let answer = client.exec(&id, &format!("cd /data && {script}"), 30).await?;
        let text = String::from_utf8_lossy(&answer.stderr);
        ensure!(answer.exit_code == 0, "{what}: {script}: {text}{}", client.output(&id, "ls -la /data").await?);
    }
    // busybox shows no extended attributes, so they are looked at on the disk.
    let mut value = [0; 64];
    let file = unpacked(&node.path("root"), "xattr").context("the file with an attribute")?;
    let length = rustix::fs::getxattr(&file, "user.cricket", &mut value)?;
    ensure!(&value[..length] == b"value", "{:?}", &value[..length]);
    let file = unpacked(&node.path("root"), "capable").context("the file with capabilities")?;
    let length = rustix::fs::getxattr(&file, "security.capability", &mut value)?;
    ensure!(length == 20 && value[5] == 0x20, "{:?}", &value[..length]);
    Ok(())
}

async fn what_an_image_says_is_done() -> Result<()> {
    let (node, client) = node().await?;
    let name = "registry.k8s.io/cricket/config:1";
    client.pull(name).await?;
    let sandbox = host_pod(&node, "pod");
    let pod = client.run_pod(&sandbox).await?;
    let base = cri::ContainerConfig { image: Some(image(name)), command: Vec::new(), ..container(&sandbox, "", "") };
    let variable = |key: &str, value: &str| cri::KeyValue { key: key.into(), value: value.into() };
    let cases = [
        ("defaults", base.clone(), "33\n/made/by/runtime\nyes image\n"),
        (
            "args",
            cri::ContainerConfig { args: vec!["echo only args; id -u".into()], ..base.clone() },
            "only args\n33\n",
        ),
        ("command", cri::ContainerConfig { command: vec!["pwd".into()], ..base.clone() }, "/made/by/runtime\n"),
        (
            "both",
            cri::ContainerConfig {
                command: vec!["echo".into()],
                args: vec!["one".into(), "two".into()],
                ..base.clone()
            },
            "one two\n",
        ),
        (
            "env",
            cri::ContainerConfig {
                envs: vec![variable("BOTH", "request")],
                working_dir: "/tmp".into(),
                ..base.clone()
            },
            "33\n/tmp\nyes request\n",
        ),
    ];
    for (case, mut config, expected) in cases {
        config.metadata = Some(cri::ContainerMetadata { name: case.into(), attempt: 0 });
        config.log_path = format!("{case}.log");
        let id = client.run(&pod, &config, &sandbox).await.with_context(|| case.to_owned())?;
        let status = client.ended(&id).await?;
        ensure!(status.stop_signal() == cri::Signal::Sigusr1, "{case}: stop signal {}", status.stop_signal);
        let log = std::fs::read_to_string(&status.log_path)?;
        let text: String = log.lines().filter_map(|line| Some(format!("{}\n", line.splitn(4, ' ').nth(3)?))).collect();
        ensure!(text == expected, "{case}: {text}");
    }
    Ok(())
}

async fn users_of_images() -> Result<()> {
    let (_node, client) = node().await?;
    for (name, uid, username) in [
        ("uid", Some(1002), ""),
        ("username", None, "www-data"),
        ("uid-group", Some(1003), ""),
        ("username-group", None, "www-data"),
    ] {
        let name = format!("{STAGING}/test-image-user-{name}");
        client.pull(&name).await?;
        let found = client.image_status(&name).await?.context("pulled")?;
        ensure!(found.uid.as_ref().map(|uid| uid.value) == uid && found.username == username, "{name}: {found:?}");
    }
    Ok(())
}

async fn five_pulls_at_once() -> Result<()> {
    let (_node, client) = node().await?;
    let names = ["test-image-1", "test-image-1", "test-image-2", "test-image-3", "test-image-1"];
    let pulls = names.map(|name| {
        let client = client.clone();
        async move { client.pull(&format!("{STAGING}/{name}")).await }
    });
    let ids: Vec<_> = futures_util::future::join_all(pulls).await.into_iter().collect::<Result<_, _>>()?;
    ensure!(ids[0] == ids[1] && ids[0] == ids[4] && ids[0] != ids[2], "{ids:?}");
    ensure!(client.images().await?.len() == 3, "three images");
    let removals = (0..5).map(|_| {
        let (client, id) = (client.clone(), ids[0].clone());
        async move {
            client.remove_image(&id).await?;
            Ok::<_, tonic::Status>(client.image_status(&id).await?.is_none())
        }
    });
    for gone in futures_util::future::join_all(removals).await {
        ensure!(gone?, "there right after its removal");
    }
    Ok(())
}

async fn import_of_a_layout() -> Result<()> {
    let (node, client) = node().await?;
    let (program, layout) = (env!("CARGO_BIN_EXE_cricket"), crate::world::top().join("critest/images/out/quickstart"));
    let (socket, layout) = (node.path("state/cricket.sock"), layout.to_string_lossy().into_owned());
    node.world.must(program, &["image", "--socket", &socket.to_string_lossy(), "import", &layout]).await?;
    let found = client.image_status("localhost/quickstart:latest").await?.context("imported")?;
    ensure!(found.repo_tags == ["localhost/quickstart:latest"], "{found:?}");
    let sandbox = host_pod(&node, "pod");
    let pod = client.run_pod(&sandbox).await?;
    let mut config = container(&sandbox, "imported", "echo from a layout");
    config.image = Some(image("localhost/quickstart:latest"));
    let id = client.run(&pod, &config, &sandbox).await?;
    let log = client.ended(&id).await?.log_path;
    ensure!(std::fs::read_to_string(log)?.contains("from a layout"), "it did not run");
    Ok(())
}
