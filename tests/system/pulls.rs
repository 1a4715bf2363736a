//! What a pull costs the node: memory for images of any size, and room on its disk.

use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use sha2::Digest as _;

use crate::archive::{Entry, digest, gzip, tarball};
use crate::client::Client;
use crate::hostile::{Answer, Hostile, blob};
use crate::ledger::Ledger;
use crate::node::{Node, Setup};
use crate::world::World;

crate::once!(a_large_image, one_blob_on_many_chains);

/// What the daemon may take over what it had before, in KiB.
const MEMORY: u64 = 64 << 10;

const CRICKET: &str = env!("CARGO_BIN_EXE_cricket");

/// A layer that is sent piece by piece and never held as a whole: packed parts, of which the middle one comes again and again.
struct Layer {
    head: Vec<u8>,
    part: Vec<u8>,
    times: usize,
    tail: Vec<u8>,
    diff_id: String,
    digest: String,
}

impl Layer {
    /// Each part is a gzip stream of its own, and a gzip file may be several of them (RFC 1952, 2.2).
    fn new(head: &[u8], part: &[u8], times: usize, tail: &[u8]) -> Self {
        let packed = (gzip(head), gzip(part), gzip(tail));
        let sum = |head: &[u8], part: &[u8], tail: &[u8]| {
            let mut sum = sha2::Sha256::new();
            sum.update(head);
            (0..times).for_each(|_| sum.update(part));
            sum.update(tail);
            format!("sha256:{}", hex::encode(sum.finalize()))
        };
        let (diff_id, digest) = (sum(head, part, tail), sum(&packed.0, &packed.1, &packed.2));
        Self { head: packed.0, part: packed.1, times, tail: packed.2, diff_id, digest }
    }

    fn size(&self) -> usize {
        self.head.len() + self.part.len() * self.times + self.tail.len()
    }

    fn answer(&self) -> Answer {
        Answer::Repeated {
            head: self.head.clone(),
            part: self.part.clone(),
            times: self.times,
            tail: self.tail.clone(),
        }
    }
}

/// One file of `part`, `times` over.
fn one_file(name: &str, part: &[u8], times: usize) -> Layer {
    let mut header = tar::Header::new_gnu();
    header.set_path(name).expect("a short name");
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size((part.len() * times) as u64);
    header.set_cksum();
    Layer::new(header.as_bytes(), part, times, &[0; 1024])
}

/// A file that is all hole but for a block in its middle.
fn sparse(name: &str, size: u64) -> Layer {
    let mut header = tar::Header::new_gnu();
    header.set_path(name).expect("a short name");
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(512);
    let gnu = header.as_gnu_mut().expect("made so");
    gnu.sparse[0].offset[..12].copy_from_slice(format!("{:011o}\0", size / 2).as_bytes());
    gnu.sparse[0].numbytes[..12].copy_from_slice(format!("{:011o}\0", 512).as_bytes());
    gnu.sparse[1].offset[..12].copy_from_slice(format!("{size:011o}\0").as_bytes());
    gnu.sparse[1].numbytes[..12].copy_from_slice(format!("{:011o}\0", 0).as_bytes());
    gnu.realsize.copy_from_slice(format!("{size:011o}\0").as_bytes());
    header.set_cksum();
    Layer::new(&[header.as_bytes(), &[7; 512][..]].concat(), &[], 0, &[0; 1024])
}

/// Small files, in folders of a hundred; gives the bytes that they occupy in blocks of 4 KiB, too.
fn small_files(count: usize) -> (Layer, u64) {
    let names: Vec<String> = (0..count).map(|n| format!("d{}/f{n}", n / 100)).collect();
    let bodies: Vec<Vec<u8>> = (0..count).map(|n| noise(n, 100 + (n * 7919) % 9000)).collect();
    let folders: Vec<String> = (0..count.div_ceil(100)).map(|n| format!("d{n}")).collect();
    let mut entries: Vec<Entry<'_>> = folders.iter().map(|name| Entry::folder(name)).collect();
    entries.extend(names.iter().zip(&bodies).map(|(name, body)| Entry::file(name, body)));
    let blocks = bodies.iter().map(|body| body.len().next_multiple_of(4096) as u64).sum::<u64>();
    (Layer::new(&tarball(&entries), &[], 0, &[]), blocks + 4096 * folders.len() as u64)
}

/// Bytes that do not compress.
fn noise(seed: usize, length: usize) -> Vec<u8> {
    let mut state = seed as u64 + 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn serve(hostile: &Hostile, repository: &str, layers: &[Layer]) {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let diff_ids: Vec<&str> = layers.iter().map(|layer| &*layer.diff_id).collect();
    let config = serde_json::json!({"architecture": architecture, "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = config.to_string().into_bytes();
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let described = layers.iter().map(|layer| {
        serde_json::json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer.digest,
            "size": layer.size()})
    });
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": kind, "layers": described.collect::<Vec<_>>(),
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": config.len()}});
    hostile.set("/v2/", Answer::Body("application/json".into(), b"{}".to_vec()));
    hostile.set(blob(repository, &digest(&config)), Answer::Body("application/octet-stream".into(), config));
    for layer in layers {
        hostile.set(blob(repository, &layer.digest), layer.answer());
    }
    let path = format!("/v2/{repository}/manifests/latest");
    hostile.set(path, Answer::Body(kind.into(), manifest.to_string().into_bytes()));
}

/// A line of the daemon's `/proc/<pid>/status`, in KiB.
fn memory(node: &Node, what: &str) -> Result<u64> {
    let path = node.world.seen(format!("/proc/{}/status", node.daemon_pid()?));
    let text = std::fs::read_to_string(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
    let figure = line.and_then(|line| line.split_whitespace().next()).with_context(|| format!("no {what}"))?;
    Ok(figure.parse()?)
}

/// Bytes that a folder's files and folders occupy; a hard link counts each time, which can only be too much.
fn occupied(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let found = entry.metadata()?;
        bytes += found.blocks() * 512;
        if found.is_dir() {
            bytes += occupied(&entry.path())?;
        }
    }
    Ok(bytes)
}

async fn pull(client: &Client, repository: &str) -> Result<()> {
    client.pull(&format!("hostile.example/{repository}:latest")).await.with_context(|| repository.to_owned())?;
    Ok(())
}

/// A node with a registry that serves what it is told to, and nothing else.
async fn start() -> Result<(Hostile, Node, Client)> {
    let world = World::new().await?;
    let hostile = Hostile::start(&world).await?;
    let mut setup = Setup::new("crun");
    setup.registry = false;
    setup.registries = hostile.conf();
    let mut node = Node::start(world, setup).await?;
    let client = node.client().await?;
    Ok((hostile, node, client))
}

/// What the daemon has in memory, in KiB. From here on VmHWM is the most since now (proc_pid_clear_refs(5)).
fn memory_before(node: &Node) -> Result<u64> {
    let before = memory(node, "VmRSS")?;
    std::fs::write(node.world.seen(format!("/proc/{}/clear_refs", node.daemon_pid()?)), "5")?;
    Ok(before)
}

/// It never took more than [`MEMORY`] over what it had.
fn in_bounds(node: &Node, before: u64) -> Result<()> {
    let most = memory(node, "VmHWM")?;
    println!("{before} KiB before, {most} KiB at most");
    ensure!(most < before + MEMORY, "{before} KiB before, {most} KiB at most");
    Ok(())
}

/// An image of 15 GiB, by what its files say of their size: 14 GiB of hole, 1 GiB of zeros in one file, a quarter of a GiB that
/// does not compress, and many small files, in seven layers. It takes no more memory than a small one, and no more room
/// than its content.
async fn a_large_image() -> Result<()> {
    let (hostile, node, client) = start().await?;
    let (files, blocks) = small_files(6000);
    let layers = [
        one_file("zeros", &vec![0; 16 << 20], 64),
        one_file("noise", &noise(1, 1 << 20), 128),
        one_file("more", &noise(2, 1 << 20), 64),
        one_file("again", &noise(3, 1 << 20), 64),
        sparse("hole", 7 << 30),
        sparse("second", (7 << 30) + 512),
        files,
    ];
    // What the code itself and the first pull take for good is not the image's.
    serve(&hostile, "small", &[one_file("small", b"x", 512)]);
    pull(&client, "small").await?;
    let before = memory_before(&node)?;
    serve(&hostile, "large", &layers);
    pull(&client, "large").await?;
    in_bounds(&node, before)?;

    // The kernel allots blocks when it writes; the pull is durable, so it has.
    let images = node.world.seen(node.path("root/images"));
    let (took, content) = (occupied(&images)?, blocks + (256 << 20));
    ensure!(took * 100 < content * 105, "{took} bytes on disk for {content} of content");
    ensure!(took * 100 > content * 95, "{took} bytes on disk for {content} of content: what was measured?");
    let documents = std::fs::read_dir(images.join("blobs/sha256"))?.count();
    ensure!(documents == 4, "{documents} blobs are kept: two manifests and two configs are wanted");
    client.clear().await?;
    Ok(())
}

/// `cricket image verify`, of one image or of all.
async fn verify(node: &Node, what: &str) -> Result<String> {
    let socket = node.path("state/cricket.sock").to_string_lossy().into_owned();
    let done = node.world.run(CRICKET, &["image", "--socket", &socket, "verify", what]).await?;
    Ok(done.stdout)
}

/// A layer that images have on different bases comes once, also while it is on its way, and takes no more memory than a
/// download. Damaged, it is named in the log, and comes again.
async fn one_blob_on_many_chains() -> Result<()> {
    let (hostile, node, client) = start().await?;
    let names = ["one", "two", "three"];
    let image = |name: &str| [one_file(name, b"x", 512), one_file("shared", &noise(9, 1 << 20), 64)];
    names.iter().for_each(|name| serve(&hostile, name, &image(name)));
    let path = |name: &str| blob(name, &image(name)[1].digest);
    let asked = || names.iter().map(|name| hostile.asked(&path(name))).sum::<usize>();
    serve(&hostile, "small", &[one_file("small", b"x", 512)]);
    pull(&client, "small").await?;
    client.clear().await?;
    let ledger = Ledger::take(&node).await?;

    let before = memory_before(&node)?;
    tokio::try_join!(pull(&client, "one"), pull(&client, "two"))?;
    in_bounds(&node, before)?;
    ensure!(asked() == 1, "the blob was asked for {} times", asked());
    ensure!(node.log().contains("a layer is unpacked from another that is here"), "it is not told");
    let good = verify(&node, "--all").await?;
    ensure!(good.lines().count() == 2 && good.lines().all(|line| line.contains(": good (")), "{good}");

    let layers = node.world.seen(node.path("root/images/layers"));
    let shared = || -> Result<Vec<PathBuf>> {
        let files = std::fs::read_dir(&layers)?.map(|entry| Ok(entry?.path().join("diff/shared")));
        Ok(files.collect::<Result<Vec<_>>>()?.into_iter().filter(|file| file.exists()).collect())
    };
    let victims = shared()?;
    ensure!(victims.len() == 2, "{victims:?}");
    for victim in &victims {
        std::fs::File::options().write(true).open(victim)?.write_all_at(b"damage", 32 << 20)?;
    }
    pull(&client, "three").await?;
    ensure!(asked() == 2, "the blob was asked for {} times", asked());
    let log = node.log();
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("cannot be unpacked again")).collect();
    for victim in &victims {
        let layer = victim.strip_prefix(&layers)?.iter().next().context("a layer")?.to_string_lossy();
        let named = |line: &&str| line.contains(&*layer) && line.contains("WARN") && line.contains("diff/shared");
        ensure!(warnings.iter().any(named), "{layer} is not named: {warnings:?}");
    }
    let good = verify(&node, "hostile.example/three:latest").await?;
    ensure!(good.contains(": good ("), "{good}");
    client.clear().await?;
    // The last pull's connection to the registry is kept for the next one.
    ledger.assert_same_but(&node, "fd daemon socket").await
}
