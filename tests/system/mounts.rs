//! Mounts of the host's files: what holds below them, where they may go, and what they are made of.

use anyhow::{Context as _, Result, ensure};
use cri_proto::runtime::v1 as cri;
use tonic::Code;

use crate::archive::{Entry, Image, tarball};
use crate::bad_registry::hostile_node;
use crate::client::refused;
use crate::ledger::Ledger;
use crate::lifecycle::host_node;
use crate::requests::{bind, container, host_pod, image};

crate::per_runtime!(read_only_with_all_below, options_and_order, propagation_in_both_directions);
crate::once!(links_in_the_image_are_no_way_to_the_system, a_source_is_what_was_looked_at);

async fn read_only_with_all_below(runtime: &'static str) -> Result<()> {
    let (node, client, sandbox, pod) = host_node(runtime).await?;
    let before = Ledger::take(&node).await?;
    let tree = node.path("tree");
    std::fs::create_dir_all(tree.join("below"))?;
    let below = tree.join("below").to_string_lossy().into_owned();
    node.world.must("mount", &["-t", "tmpfs", "-o", "nosuid,nodev", "below", &below]).await?;
    let source = tree.to_string_lossy().into_owned();
    let mut config = container(&sandbox, "tree", "exec sleep 515151");
    config.mounts = vec![
        cri::Mount { readonly: true, recursive_read_only: true, ..bind(&source, "/all") },
        cri::Mount { readonly: true, ..bind(&source, "/top") },
        bind(&source, "/rw"),
    ];
    let id = client.run(&pod, &config, &sandbox).await?;
    ensure!(client.status(&id).await?.mounts == config.mounts, "the status repeats other mounts");
    for (path, writable) in [
        ("/all", false),
        ("/all/below", false),
        ("/top", false),
        ("/top/below", true),
        ("/rw", true),
        ("/rw/below", true),
    ] {
        let answer = client.exec(&id, &format!("touch {path}/x"), 30).await?;
        let said = String::from_utf8_lossy(&answer.stderr).into_owned();
        ensure!((answer.exit_code == 0) == writable, "{path}: {said}");
        ensure!(writable || said.contains("Read-only file system"), "{path}: {said}");
    }
    // The host's own mount is as it was.
    node.world.must("touch", &[&format!("{below}/host")]).await?;
    for (change, words) in [
        ((false, 0), &["recursive_read_only", "needs readonly"]),
        ((true, 1), &["recursive_read_only", "private"]),
        ((true, 2), &["recursive_read_only", "private"]),
    ] {
        let mut config = container(&sandbox, "refused", "true");
        let (readonly, propagation) = change;
        config.mounts = vec![cri::Mount { readonly, propagation, recursive_read_only: true, ..bind(&source, "/all") }];
        refused(client.create(&pod, &config, &sandbox).await, &[Code::InvalidArgument], words)?;
    }
    client.remove(&id).await?;
    node.world.must("umount", &[&below]).await?;
    before.assert_same_but(&node, "namespace").await
}

async fn options_and_order(runtime: &'static str) -> Result<()> {
    let (node, client, sandbox, pod) = host_node(runtime).await?;
    let (one, two) = (node.path("one"), node.path("two"));
    for (folder, name) in [(&one, "one"), (&two, "two")] {
        std::fs::create_dir_all(folder.join("deep"))?;
        std::fs::write(folder.join("name"), name)?;
    }
    let (one, two) = (one.to_string_lossy().into_owned(), two.to_string_lossy().into_owned());
    let mut config = container(&sandbox, "options", "exec sleep 525252");
    config.mounts = vec![
        // Out of order: the parent must not hide the child.
        bind(&two, "/parent/deep"),
        bind(&one, "/parent"),
        cri::Mount { mount_options: vec!["noexec".into(), "nosuid".into(), "nodev".into()], ..bind(&one, "/options") },
    ];
    let id = client.run(&pod, &config, &sandbox).await?;
    ensure!(client.output(&id, "cat /parent/name /parent/deep/name").await? == "onetwo", "the order");
    let line = client.output(&id, "grep ' /options ' /proc/self/mountinfo").await?;
    for option in ["noexec", "nosuid", "nodev", "rw"] {
        ensure!(line.split([' ', ',']).any(|word| word == option), "{option}: {line}");
    }
    for (change, words) in [
        (cri::Mount { mount_options: vec!["exec".into()], ..bind(&one, "/m") }, vec!["mount_options", "exec"]),
        (cri::Mount { mount_options: vec!["ro,suid".into()], ..bind(&one, "/m") }, vec!["mount_options", "ro,suid"]),
        (bind(&one, "/"), vec!["container_path", "root"]),
        (bind(&one, "/x/.."), vec!["container_path", "root"]),
        (bind(&one, "/proc/../proc"), vec!["container_path", "/proc"]),
    ] {
        let mut config = container(&sandbox, "refused", "true");
        config.mounts = vec![change];
        refused(client.create(&pod, &config, &sandbox).await, &[Code::InvalidArgument], &words)?;
    }
    Ok(())
}

async fn propagation_in_both_directions(runtime: &'static str) -> Result<()> {
    let (node, client, sandbox, pod) = host_node(runtime).await?;
    let source = node.path("shared");
    std::fs::create_dir_all(source.join("in"))?;
    std::fs::create_dir_all(source.join("out"))?;
    let source = source.to_string_lossy().into_owned();
    node.world.must("mount", &["--bind", &source, &source]).await?;
    node.world.must("mount", &["--make-shared", &source]).await?;
    let mut privileged = sandbox.clone();
    let security = privileged.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.privileged = true;
    privileged.metadata.get_or_insert_default().name = "privileged".into();
    let big = client.run_pod(&privileged).await?;
    for (propagation, into, out) in [(0, false, false), (1, true, false), (2, true, true)] {
        let mut config = container(&privileged, &format!("p{propagation}"), "exec sleep 535353");
        crate::requests::security(&mut config).privileged = true;
        config.mounts = vec![cri::Mount { propagation, ..bind(&source, "/shared") }];
        let id = client.run(&big, &config, &privileged).await.with_context(|| format!("propagation {propagation}"))?;
        let inside = format!("{source}/in");
        node.world.must("mount", &["-t", "tmpfs", "from-host", &inside]).await?;
        let seen = client.output(&id, "cat /proc/self/mountinfo").await?.contains(" /shared/in ");
        ensure!(seen == into, "propagation {propagation}: from the host: {seen}");
        node.world.must("umount", &[&inside]).await?;
        client.output(&id, "mount -t tmpfs from-container /shared/out").await?;
        let seen = node.world.must("cat", &["/proc/self/mountinfo"]).await?.contains("/shared/out ");
        ensure!(seen == out, "propagation {propagation}: to the host: {seen}");
        client.output(&id, "umount /shared/out").await?;
        client.remove(&id).await?;
    }
    client.remove_pod(&pod).await?;
    client.clear().await?;
    node.world.must("umount", &[&source]).await?;
    Ok(())
}

async fn links_in_the_image_are_no_way_to_the_system() -> Result<()> {
    let (node, client, hostile, _) = hostile_node().await?;
    let entries = [
        Entry::folder("var/"),
        Entry::symlink("p", "/proc"),
        Entry::symlink("var/s", "../sys/kernel"),
        Entry::symlink("d", "p/../dev"),
        Entry::symlink("root", "/"),
        Entry::symlink("ring", "ring"),
    ];
    hostile.serve("links", &Image::of(&tarball(&entries)));
    let name = "hostile.example/links:latest";
    client.pull(name).await?;
    let sandbox = host_pod(&node, "links");
    let pod = client.run_pod(&sandbox).await?;
    let before = Ledger::take(&node).await?;
    for (target, words) in [
        ("/p", vec!["mounts[0].container_path", "/p", "/proc"]),
        ("/p/self/attr", vec!["/p/self/attr", "/proc/self/attr"]),
        ("/var/s", vec!["/var/s", "/sys/kernel"]),
        ("/d/null", vec!["/d/null", "/dev/null"]),
        ("/root", vec!["/root", "root"]),
        ("/root/p/sys", vec!["/root/p/sys", "/proc/sys"]),
        ("/ring", vec!["/ring", "too many symlinks"]),
    ] {
        let mut config = container(&sandbox, "links", "true");
        config.image = Some(image(name));
        config.mounts = vec![bind("/tmp", target)];
        refused(client.create(&pod, &config, &sandbox).await, &[], &words).context(target)?;
        ensure!(client.containers().await?.is_empty(), "{target}: a container is listed");
    }
    before.assert_same(&node).await
}

async fn a_source_is_what_was_looked_at() -> Result<()> {
    let (node, client, sandbox, pod) = host_node("crun").await?;
    let (good, secret, link) = (node.path("good"), node.path("secret"), node.path("link"));
    for folder in [&good, &secret] {
        std::fs::create_dir(folder)?;
    }
    std::fs::write(good.join("file"), "good")?;
    std::fs::write(secret.join("file"), "secret")?;
    std::os::unix::fs::symlink(&good, &link)?;
    let mut config = container(&sandbox, "link", "exec sleep 545454");
    config.mounts = vec![bind(&link.to_string_lossy(), "/data")];
    let id = client.create(&pod, &config, &sandbox).await?;
    // Nothing looks at the name again.
    std::fs::remove_file(&link)?;
    std::os::unix::fs::symlink(&secret, &link)?;
    client.start(&id).await?;
    ensure!(client.output(&id, "cat /data/file").await? == "good", "the other source");
    // The runtime was led to a mount, not to a name that it would have looked up itself.
    let request = cri::ContainerStatusRequest { container_id: id.clone(), verbose: true };
    let info = client.runtime.clone().container_status(request).await?.into_inner().info;
    let spec: serde_json::Value = serde_json::from_str(info.get("info").context("info")?)?;
    let mounts = spec["runtimeSpec"]["mounts"].as_array().context("mounts")?;
    let source = mounts.iter().find(|mount| mount["destination"] == "/data").context("the mount")?;
    let shelf = node.path("state.shelf");
    ensure!(source["source"].as_str().is_some_and(|path| path.starts_with(&*shelf.to_string_lossy())), "{source}");
    let found = node.world.must("find", &[&*shelf.to_string_lossy(), "-mindepth", "1"]).await?;
    ensure!(found.lines().eq([shelf.join("rootfs").to_string_lossy()]), "others see on the shelf: {found}");
    client.remove_pod(&pod).await?;
    Ok(())
}
