//! Everything that happens to images, all at once, and the daemon killed in the middle of it, again and again.
//!
//! After each kill: every image that is listed is whole, and nothing is half done. In the end, with every image removed, the
//! disk is as it was.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use cri_proto::runtime::v1 as cri;
use tonic::Code;

use crate::client::Client;
use crate::ledger::Ledger;
use crate::node::Node;
use crate::requests::{BUSYBOX, container, host_pod, image};
use crate::world::{Finished, PATIENCE, World, eventually};

crate::once!(images_in_a_storm);

const CRICKET: &str = env!("CARGO_BIN_EXE_cricket");
/// Those with a shell, two on one base; and those without.
const SHELLS: [&str; 3] = [BUSYBOX, "public.ecr.aws/docker/library/busybox:1", "registry.k8s.io/cricket/layers:1"];
const OTHERS: [&str; 3] = [
    "registry.k8s.io/pause:3.9",
    "gcr.io/k8s-staging-cri-tools/test-image-tags:1",
    "gcr.io/k8s-staging-cri-tools/test-image-tags:2",
];
/// Kills. `CRICKET_STORM=n` makes it n, and `CRICKET_STORM_SEED` begins elsewhere.
const ROUNDS: u64 = 6;

/// What everyone who takes part needs.
struct Weather {
    socket: String,
    archive: String,
    logs: std::path::PathBuf,
    /// The daemon is being killed: from here on any failure is fine.
    killed: AtomicBool,
    /// Things that were done and went well.
    done: AtomicU64,
    /// Containers that read all of their image.
    read: AtomicU64,
}

/// A generator of its own for each, so that a run can be had again.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn pick<'t>(&mut self, from: &[&'t str]) -> &'t str {
        from[usize::try_from(self.below(from.len() as u64)).expect("an index")]
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// One who works until the daemon is gone. The number is what he does.
async fn work(weather: &Weather, node: &Node, client: &Client, worker: u64, seed: u64) -> Result<()> {
    let mut random = Random(seed);
    let all = [&SHELLS[..], &OTHERS[..]].concat();
    for turn in 0..u64::MAX {
        let name = random.pick(&all);
        let done = match worker {
            0 | 1 => client.pull(name).await.map(drop).with_context(|| format!("pull {name}")),
            2 => remove(client, &mut random, name).await,
            3 | 4 => {
                let name = format!("w{worker}-{seed}-{turn}");
                Box::pin(contain(weather, client, node, &name, random.pick(&SHELLS))).await
            }
            _ => command(weather, &node.world, &mut random, name).await,
        };
        if weather.killed.load(Ordering::SeqCst) {
            return Ok(());
        }
        done.with_context(|| format!("worker {worker}, seed {seed}, turn {turn}"))?;
        weather.done.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}

/// By name, by id, or by digest.
async fn remove(client: &Client, random: &mut Random, name: &str) -> Result<()> {
    let found = client.image_status(name).await?;
    let by = match (found, random.below(3)) {
        (Some(image), 0) => image.id,
        (Some(image), 1) => image.repo_digests.first().cloned().unwrap_or(image.id),
        _ => name.to_owned(),
    };
    client.remove_image(&by).await.with_context(|| format!("remove {by}"))
}

/// A container of an image that may be removed at any moment reads all of it, if it came to be at all.
async fn contain(weather: &Weather, client: &Client, node: &Node, name: &str, of: &str) -> Result<()> {
    let sandbox = host_pod(node, name);
    let pod = client.run_pod(&sandbox).await.context("a pod")?;
    // The shell has some hundred names; what is smaller is read whole.
    let script = "find / -xdev -type f -size -600 -exec cat {} + | wc -c; sleep 0.1; cat /bin/busybox | wc -c";
    let mut config = container(&sandbox, name, script);
    config.image = Some(image(of));
    match client.create(&pod, &config, &sandbox).await {
        Ok(id) => {
            client.start(&id).await.with_context(|| format!("start of {of}"))?;
            let ended = || async {
                if weather.killed.load(Ordering::SeqCst) {
                    return Ok(None);
                }
                let status = client.status(&id).await?;
                ensure!(status.state() == cri::ContainerState::ContainerExited, "{status:?}");
                Ok(Some(status))
            };
            let Some(status) = eventually("the container ends", PATIENCE, ended).await? else { return Ok(()) };
            let log = std::fs::read_to_string(&status.log_path)?;
            let read: Vec<u64> = log.lines().filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
            let whole = matches!(read[..], [small, shell] if small > 0 && shell > 500_000);
            ensure!(whole && status.exit_code == 0, "{of}: {} {log}", status.exit_code);
            weather.read.fetch_add(1, Ordering::SeqCst);
        }
        // The image was not there, or not any more.
        Err(status) if status.code() == Code::NotFound => {}
        Err(status) => bail!("create of {of}: {status}"),
    }
    client.stop_pod(&pod).await?;
    client.remove_pod(&pod).await?;
    Ok(())
}

async fn cricket(weather: &Weather, world: &World, args: &[&str]) -> Result<Finished> {
    world.run(CRICKET, &[&["image", "--socket", &weather.socket], args].concat()).await
}

/// What an operator does beside the kubelet.
async fn command(weather: &Weather, world: &World, random: &mut Random, name: &str) -> Result<()> {
    let out = weather.logs.join(format!("export-{}", random.below(1 << 30))).to_string_lossy().into_owned();
    let (args, may_be_unknown): (Vec<&str>, bool) = match random.below(4) {
        0 => (vec!["import", &weather.archive], false),
        1 => (vec!["verify", "--all"], false),
        2 => (vec!["export", name, "-o", &out], true),
        _ => (vec!["verify", name], true),
    };
    let finished = cricket(weather, world, &args).await?;
    let _ = std::fs::remove_file(&out);
    // An export of an image that is removed meanwhile comes to its end.
    let gone = finished.stderr.contains("no such image") || finished.stderr.contains("cannot be read");
    let unknown = may_be_unknown && gone;
    ensure!(finished.status.success() || unknown, "{args:?}: {}{}", finished.stderr, finished.stdout);
    Ok(())
}

/// What must be true of a store at rest, whatever happened before.
async fn look(weather: &Weather, node: &Node, client: &Client) -> Result<()> {
    let images = client.images().await?;
    let verified = cricket(weather, &node.world, &["verify", "--all"]).await?;
    ensure!(verified.status.success(), "{}{}", verified.stdout, verified.stderr);
    let root = node.world.seen(node.path("root/images"));
    let names = |folder: &str| -> Result<Vec<String>> {
        let entries = std::fs::read_dir(root.join(folder)).with_context(|| folder.to_owned())?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    eventually("staging is empty", PATIENCE, || async {
        ensure!(names("staging")?.is_empty(), "{:?}", names("staging")?);
        Ok(())
    })
    .await?;
    for layer in names("layers")? {
        ensure!(root.join("layers").join(&layer).join("layer.json").exists(), "layer {layer} is not committed");
    }
    let records = names("records")?;
    ensure!(records.len() == images.len(), "{} records of {} images", records.len(), images.len());
    let odd: Vec<_> =
        names(".")?.into_iter().filter(|name| name.starts_with(".import") || name.contains("new")).collect();
    ensure!(odd.is_empty(), "{odd:?}");
    let info = client.image.clone().image_fs_info(cri::ImageFsInfoRequest {}).await?.into_inner();
    let used = info.image_filesystems.first().and_then(|one| one.used_bytes).map_or(0, |used| used.value);
    ensure!(images.is_empty() || used > 0, "{} images, no byte used", images.len());
    Ok(())
}

async fn images_in_a_storm() -> Result<()> {
    let mut node = Node::new("crun").await?;
    let client = node.client().await?;
    let weather = Weather {
        socket: node.path("state/cricket.sock").to_string_lossy().into_owned(),
        archive: node.path("saved.tar").to_string_lossy().into_owned(),
        logs: node.path("logs"),
        killed: AtomicBool::new(false),
        done: AtomicU64::new(0),
        read: AtomicU64::new(0),
    };
    client.pull(SHELLS[2]).await?;
    let saved = cricket(&weather, &node.world, &["export", SHELLS[2], "-o", &weather.archive]).await?;
    ensure!(saved.status.success(), "{}", saved.stderr);
    client.clear().await?;
    let mut client = node.crash_and_restart().await?;
    let before = Ledger::take(&node).await?;
    let first = number("CRICKET_STORM_SEED", 1);
    for seed in first..first + number("CRICKET_STORM", ROUNDS) {
        weather.killed.store(false, Ordering::SeqCst);
        let workers = (0..6).map(|worker| work(&weather, &node, &client, worker, seed * 31 + worker));
        let end = async {
            // No wait for anything: the moment of the kill is what differs from round to round.
            tokio::time::sleep(Duration::from_millis(300 + Random(seed).below(2500))).await;
            weather.killed.store(true, Ordering::SeqCst);
            node.kill().await
        };
        let (worked, killed) = tokio::join!(futures_util::future::join_all(workers), end);
        killed?;
        worked.into_iter().collect::<Result<()>>().with_context(|| format!("seed {seed}"))?;
        node.buried().await?;
        client = node.launch().await.with_context(|| format!("after the kill of seed {seed}"))?;
        look(&weather, &node, &client).await.with_context(|| format!("after the kill of seed {seed}"))?;
        for pod in client.pods().await? {
            client.stop_pod(&pod.id).await?;
            client.remove_pod(&pod.id).await?;
        }
    }
    let (done, read) = (weather.done.load(Ordering::SeqCst), weather.read.load(Ordering::SeqCst));
    println!("{done} operations went well, {read} containers read their image");
    ensure!(done > 20 && read > 0, "{done} operations, {read} containers: there was no storm");
    client.clear().await?;
    before.assert_same_but(&node, "fd daemon").await
}
