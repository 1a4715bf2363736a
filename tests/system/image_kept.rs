//! `cricket image export` and `cricket image verify` on a node with real images, and what other tools say of the exports.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::client::Client;
use crate::ledger::Ledger;
use crate::node::Node;
use crate::requests::{container, host_pod, image};
use crate::world::{Finished, PATIENCE, eventually};

crate::once!(image_export, image_verify);

const CRICKET: &str = env!("CARGO_BIN_EXE_cricket");
const BUSYBOX: &str = "public.ecr.aws/docker/library/busybox:1";
/// Upon the layers of busybox.
const LAYERED: &str = "registry.k8s.io/cricket/layers:1";
const PAUSE: &str = "registry.k8s.io/pause:3.9";

async fn node() -> Result<(Node, Client)> {
    let mut node = Node::new("crun").await?;
    let client = node.client().await?;
    Ok((node, client))
}

async fn command(node: &Node, args: &[&str]) -> Result<Finished> {
    let socket = node.path("state/cricket.sock").to_string_lossy().into_owned();
    node.world.run(CRICKET, &[&["image", "--socket", &socket], args].concat()).await
}

async fn must(node: &Node, args: &[&str]) -> Result<String> {
    let done = command(node, args).await?;
    ensure!(done.status.success(), "{args:?}: {}: {}{}", done.status, done.stderr, done.stdout);
    Ok(done.stdout)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

async fn image_export() -> Result<()> {
    let (node, client) = node().await?;
    let busybox = client.pull(BUSYBOX).await?;
    let layered = client.pull(LAYERED).await?;
    let before = Ledger::take(&node).await?;
    let (tar, packed, folder) = (node.path("all.tar"), node.path("packed.tar"), node.path("layout"));
    must(&node, &["export", BUSYBOX, LAYERED, "-o", &text(&tar)]).await?;
    must(&node, &["export", BUSYBOX, "-o", &text(&packed), "--compress", "zstd"]).await?;
    must(&node, &["export", LAYERED, "-o", &text(&folder), "--folder", "--compress", "gzip"]).await?;
    let twice = command(&node, &["export", BUSYBOX, "-o", &text(&tar)]).await?;
    ensure!(!twice.status.success() && twice.stderr.contains("there already"), "{}", twice.stderr);
    let nothing = command(&node, &["export", "no.example/such:1", "-o", &text(&node.path("none.tar"))]).await?;
    ensure!(!nothing.status.success() && nothing.stderr.contains("no such image"), "{}", nothing.stderr);
    ensure!(!node.path("none.tar").exists(), "it left something");

    // Others read them as what they are.
    let archive = text(&tar);
    for (transport, id) in [
        (format!("docker-archive:{archive}:{BUSYBOX}"), &busybox),
        (format!("docker-archive:{archive}:{LAYERED}"), &layered),
    ] {
        let config = node.world.must("skopeo", &["inspect", "--raw", "--config", &transport]).await?;
        let digest = crate::archive::digest(config.as_bytes());
        ensure!(digest == *id, "{transport}: the config is of {digest}, the image {id}");
    }
    let copy = node.path("copy");
    for from in [
        format!("oci-archive:{}", text(&packed)),
        format!("oci:{}", text(&folder)),
        format!("docker-archive:{archive}:{BUSYBOX}"),
    ] {
        // It hashes every blob on the way, and what it unpacks of layers by their diff ids.
        node.world.must("skopeo", &["--insecure-policy", "copy", &from, &format!("dir:{}", text(&copy))]).await?;
        std::fs::remove_dir_all(&copy)?;
    }
    let tree = node.path("tree");
    node.world.must("umoci", &["raw", "unpack", "--image", &format!("{}:1", text(&folder)), &text(&tree)]).await?;
    ensure!(std::fs::read_to_string(tree.join("data/kept"))?.trim() == "kept", "umoci unpacked something else");
    std::fs::remove_dir_all(&tree)?;

    // Another node starts from them, the names and ids the same.
    let (other, theirs) = self::node().await?;
    let shared = other.path("all.tar");
    std::fs::copy(&tar, &shared)?;
    must(&other, &["import", &text(&shared)]).await?;
    for (name, id) in [(BUSYBOX, &busybox), (LAYERED, &layered)] {
        let found = theirs.image_status(name).await?.with_context(|| format!("{name} was not imported"))?;
        ensure!(found.id == *id && found.repo_tags == [name], "{found:?}");
    }
    must(&other, &["verify", "--all"]).await?;
    let sandbox = host_pod(&other, "pod");
    let pod = theirs.run_pod(&sandbox).await?;
    let mut config = container(&sandbox, "imported", "echo from an export");
    config.image = Some(image(BUSYBOX));
    let id = theirs.run(&pod, &config, &sandbox).await?;
    let log = theirs.ended(&id).await?.log_path;
    ensure!(std::fs::read_to_string(log)?.contains("from an export"), "it did not run");

    for file in [&tar, &packed] {
        std::fs::remove_file(file)?;
    }
    std::fs::remove_dir_all(&folder)?;
    before.assert_same(&node).await
}

async fn image_verify() -> Result<()> {
    let (node, client) = node().await?;
    for name in [BUSYBOX, LAYERED, PAUSE] {
        client.pull(name).await?;
    }
    let before = Ledger::take(&node).await?;
    let good = must(&node, &["verify", "--all"]).await?;
    ensure!(good.lines().count() == 3 && good.lines().all(|line| line.contains(": good (")), "{good}");

    // One bit of a file of busybox.
    let root = node.path("root/images");
    let victim = find(&root, "busybox").context("a file of the image")?;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&victim)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, 4096)?;
    file.write_all_at(&[byte[0] ^ 1], 4096)?;
    let done = command(&node, &["verify", BUSYBOX]).await?;
    ensure!(done.status.code() == Some(1), "{}: {}", done.status, done.stdout);
    ensure!(done.stdout.contains("busybox: its content is not what the archive had"), "{}", done.stdout);
    ensure!(done.stderr.contains("1 of 1 images is damaged"), "{}", done.stderr);
    let done = command(&node, &["verify", "--all", "--json"]).await?;
    let report: serde_json::Value = serde_json::from_str(&done.stdout)?;
    let states: Vec<_> = report["images"].as_array().into_iter().flatten().map(|image| &image["state"]).collect();
    ensure!(done.status.code() == Some(1) && states.len() == 3, "{report}");
    // The other one lies on the same layer.
    ensure!(states.iter().filter(|state| **state == "damaged").count() == 2, "{report}");
    // Put back, it is good again but for the time that the writing left.
    file.write_all_at(&byte, 4096)?;
    let done = command(&node, &["verify", BUSYBOX]).await?;
    ensure!(!done.stdout.contains("content") && done.stdout.contains("its time is"), "{}", done.stdout);

    // Removed and pulled again, it is good.
    client.remove_image(LAYERED).await?;
    client.remove_image(BUSYBOX).await?;
    let gone = command(&node, &["verify", BUSYBOX]).await?;
    ensure!(gone.status.code() == Some(1) && gone.stderr.contains("no such image"), "{}", gone.stderr);
    let freed = || async {
        ensure!(!victim.exists(), "the layer is there");
        Ok(())
    };
    eventually("the end of a layer", PATIENCE, freed).await?;
    client.pull(BUSYBOX).await?;
    client.pull(LAYERED).await?;
    must(&node, &["verify", "--all"]).await?;
    // The last pull's connection to the registry is kept for the next one.
    before.assert_same_but(&node, "fd daemon socket").await
}

/// A file by its name, wherever it is.
fn find(folder: &Path, name: &str) -> Option<std::path::PathBuf> {
    std::fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => find(&path, name),
            Ok(kind) if kind.is_file() && entry.file_name() == name => Some(path),
            _ => None,
        }
    })
}
