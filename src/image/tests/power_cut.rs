//! The power goes at every moment of a store's life: at each flush that the disk was asked for, and between two flushes,
//! with a random part of what was not flushed yet.
//!
//! After each cut: what is listed is whole, bit for bit; what a pull, an import or a removal had answered holds; nothing
//! else is on the disk; and pulling all images anew works.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use super::disk::{Disk, Operation, cut, must};
use super::*;
use crate::image::tests::server::{Reply, gzip};
use crate::storage::tests::builder::{Attributes, Layer, Seeded};
use crate::storage::tests::scan::{Tree, differences, scan};
use crate::storage::{Storage, StorageOptions};

/// Cuts at flushes, evenly spread, and at random moments. With `CRICKET_POWER_CUTS=n` it is each flush and n random moments.
const FLUSH_CUTS: usize = 40;
const RANDOM_CUTS: u64 = 40;
/// Bytes of the disk.
const DISK: u64 = 48 << 20;

/// What must be true of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Promise {
    Absent,
    /// Something is under way that brings or takes it.
    Open,
    Listed,
}

/// From which operation on what is promised, of which image.
type History = Vec<(usize, usize, Promise)>;

struct Scene {
    dir: tempfile::TempDir,
    registry: Registry,
    images: Vec<TestImage>,
    /// Unpacked elsewhere, on a disk that never fails.
    trees: BTreeMap<String, Tree>,
}

/// A layer with everything that a tree can have, and enough of it that it does not reach the disk in one write.
fn layer(seed: u64) -> Vec<u8> {
    let mut random = Seeded(seed);
    let folder = |mode| Attributes { mode, ..Attributes::default() };
    let mut layer = Layer::new().raw(b'5', (b"./", b""), 0, b"", folder(0o755));
    for number in 0..8 {
        layer = layer.raw(b'5', (format!("d{number}").as_bytes(), b""), 0, b"", folder(0o1777 - number * 8));
    }
    for number in 0..60 {
        let size = *random.pick(&[0, 1, 4096, 5000, 20_000]);
        let content: Vec<u8> = (0..size).map(|_| random.next().to_le_bytes()[0]).collect();
        let name = format!("d{}/{seed}-{number}", random.below(8));
        if random.below(4) == 0 {
            layer =
                layer.pax(&[("SCHILY.xattr.user.some", &content[..content.len().min(900)]), ("mtime", b"12345.678")]);
        }
        let attributes = Attributes { mode: 0o4755, uid: 1000 + number, gid: 7, mtime: u64::from(number) };
        layer = layer.raw(b'0', (name.as_bytes(), b""), content.len() as u64, &content, attributes);
        layer = layer.hardlink(&format!("link-{seed}-{number}"), &name).symlink(&format!("{name}-to"), &name);
    }
    let large: Vec<u8> =
        (0..600_000_u32).map(|at| if at < 300_000 { random.next().to_le_bytes()[0] } else { 0 }).collect();
    layer.file("large", large).file("d1/.wh.gone", "").file("d2/.wh..wh..opq", "").done()
}

fn image(seeds: &[u64]) -> TestImage {
    let plain: Vec<Vec<u8>> = seeds.iter().map(|seed| layer(*seed)).collect();
    let diff_ids: Vec<Digest> = plain.iter().map(|bytes| Digest::of(bytes)).collect();
    let config = serde_json::json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).to_string().into_bytes();
    TestImage::assemble(plain.iter().map(|bytes| gzip(bytes)).collect(), diff_ids, config)
}

/// What `docker save` makes of an image.
pub(super) fn archive(image: &TestImage, at: &Path) -> anyhow::Result<()> {
    let names: Vec<String> = (0..image.layers.len()).map(|number| format!("{number}.tar")).collect();
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": ["images.example/c:v1"], "Layers": names}]);
    let mut builder = tar::Builder::new(std::fs::File::create(at)?);
    let files = [("manifest.json", manifest.to_string().into_bytes()), ("config.json", image.config.clone())];
    let layers = names.iter().map(String::as_str).zip(image.layers.iter().cloned());
    for (name, bytes) in files.into_iter().chain(layers) {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes.as_slice())?;
    }
    Ok(builder.finish()?)
}

impl Scene {
    async fn new() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let images = vec![image(&[1, 2]), image(&[1, 3, 4]), image(&[5, 2])];
        let served = images.clone();
        let registry = Registry::start(move |request| {
            let answers = ["a", "b"].iter().zip(&served).map(|(name, image)| image.answer(request, name, &["v1"]));
            answers.into_iter().find(|reply| reply.status != 404).unwrap_or_else(|| Reply::new(404, ""))
        })
        .await;
        archive(&images[2], &dir.path().join("c.tar"))?;
        let config = settings(dir.path(), &[]);
        std::fs::write(&config.signature_policy, ANYTHING)?;
        std::fs::write(&config.registries_conf, insecure(&[&registry]))?;
        let mut scene = Self { dir, registry, images, trees: BTreeMap::new() };
        let root = scene.dir.path().join("reference");
        let (store, _) = scene.open(&root).await?;
        scene.bring_all(&store).await?;
        for layer in folder(&root.join("images/layers"))? {
            let mut tree = scan(&root.join("images/layers").join(&layer).join("diff"))?;
            // A whiteout is made without a time of its own.
            tree.values_mut()
                .filter(|facts| (facts.kind, facts.device) == ('c', 0))
                .for_each(|facts| facts.mtime = None);
            scene.trees.insert(layer, tree);
        }
        ensure!(scene.trees.len() == 6, "one layer is shared, another only in content");
        Ok(scene)
    }

    async fn open(&self, root: &Path) -> anyhow::Result<(Images, Storage)> {
        let images = root.join("images");
        let storage = Storage::open(StorageOptions { images: images.clone(), containers: root.join("containers") })?;
        let options = ImagesOptions { root: images, config: settings(self.dir.path(), &[]) };
        Ok((Images::open(options, Arc::new(storage.clone())).await?, storage))
    }

    async fn bring(&self, store: &Images, image: usize) -> anyhow::Result<()> {
        let Some(name) = ["a:v1", "b:v1"].get(image) else {
            store.import(&self.dir.path().join("c.tar"), None).await?;
            return Ok(());
        };
        store.pull(PullRequest { reference: self.registry.name(name), auth: None, namespace: None }).await?;
        Ok(())
    }

    async fn bring_all(&self, store: &Images) -> anyhow::Result<()> {
        for image in 0..self.images.len() {
            self.bring(store, image).await?;
        }
        Ok(())
    }

    /// Lives through pulls, an import and removals on a recording disk.
    async fn live(&self, base: &[u8]) -> anyhow::Result<(Vec<Operation>, History)> {
        let disk = Disk::serve(base.to_vec())?;
        let mounted = disk.mount().await?;
        let (store, storage) = self.open(mounted.path()).await?;
        let history = Mutex::new(History::new());
        let note = |image, promise| history.lock().expect("no panic").push((disk.position(), image, promise));
        let bring = async |image| {
            note(image, Promise::Open);
            self.bring(&store, image).await?;
            note(image, Promise::Listed);
            anyhow::Ok(())
        };
        let remove = async |image: usize| {
            note(image, Promise::Open);
            store.remove(self.images[image].id().as_str()).await?;
            note(image, Promise::Absent);
            anyhow::Ok(())
        };
        let layers = mounted.path().join("images/layers");
        let settled = async |count| until(|| folder(&layers).is_ok_and(|found| found.len() == count)).await;
        (0..self.images.len()).for_each(|image| note(image, Promise::Absent));
        bring(0).await?;
        tokio::try_join!(bring(1), bring(2))?;
        remove(1).await?;
        settled(4).await;
        tokio::try_join!(remove(0), bring(1))?;
        settled(5).await;
        tokio::try_join!(bring(0), remove(2))?;
        settled(4).await;
        drop(storage);
        close(store).await;
        mounted.unmount().await?;
        let log = disk.take_log();
        drop(disk);
        Ok((log, history.into_inner().expect("no panic")))
    }

    /// The store as the next start finds it on a disk that lost its power.
    async fn check(&self, bytes: Vec<u8>, promised: &[Promise]) -> anyhow::Result<()> {
        let disk = Disk::serve(bytes)?;
        let mounted = disk.mount().await?;
        let root = mounted.path().join("images");
        let containers = mounted.path().join("containers");
        drop(Storage::open(StorageOptions { images: root.clone(), containers })?);
        self.whole(&root).context("before the images are read")?;
        let (store, storage) = self.open(mounted.path()).await?;
        ensure!(store.notes().is_empty(), "{:?}", store.notes());
        let listed = store.list(None);
        for (image, promise) in self.images.iter().zip(promised) {
            let found = listed.iter().any(|record| record.id == image.id());
            ensure!(*promise == Promise::Open || found == (*promise == Promise::Listed), "{promise:?}, found: {found}");
        }
        self.whole(&root)?;
        let needed = listed.iter().flat_map(|record| record.chain.iter()).map(|chain| chain.hex().to_owned()).collect();
        ensure!(folder(&root.join("layers"))? == needed, "layers that no image needs, or too few");
        let ids = listed.iter().map(|record| record.id.hex().to_owned()).collect();
        ensure!(folder(&root.join("records"))? == ids, "copies of records that no image has, or too few");
        let documents = listed.iter().flat_map(|record| record.documents.iter().chain([&record.id]));
        let documents: BTreeSet<String> = documents.map(|digest| digest.hex().to_owned()).collect();
        ensure!(folder(&root.join("blobs/sha256"))? == documents, "documents that no image has, or too few");
        ensure!(folder(&root.join("staging"))?.is_empty() && !root.join("db.opening").exists(), "leftovers");
        self.bring_all(&store).await.context("pulling again")?;
        ensure!(store.list(None).len() == self.images.len());
        self.whole(&root).context("after pulling again")?;
        ensure!(folder(&root.join("layers"))?.len() == self.trees.len());
        drop(storage);
        close(store).await;
        mounted.unmount().await
    }

    /// Each layer that has its name is what it is elsewhere.
    fn whole(&self, root: &Path) -> anyhow::Result<()> {
        for layer in folder(&root.join("layers"))? {
            let tree = scan(&root.join("layers").join(&layer).join("diff"))?;
            let found = differences(&tree, self.trees.get(&layer).context("a layer of nobody")?);
            ensure!(found.is_empty(), "layer {layer} differs in {} names, first {:.300}", found.len(), found[0]);
        }
        Ok(())
    }
}

/// The names in a folder.
fn folder(path: &Path) -> anyhow::Result<BTreeSet<String>> {
    let entries = std::fs::read_dir(path).with_context(|| path.display().to_string())?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

async fn close(store: Images) {
    let weak = Arc::downgrade(&store.0);
    drop(store);
    until(|| weak.strong_count() == 0).await;
}

pub(super) async fn empty_disk(at: PathBuf) -> anyhow::Result<Vec<u8>> {
    std::fs::File::create(&at)?.set_len(DISK)?;
    let options = ["-q", "-F", "-b", "4096", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"];
    must("mkfs.ext4", &[&options[..], &[&*at.to_string_lossy()]].concat()).await?;
    Ok(std::fs::read(&at)?)
}

async fn every_cut() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let base = empty_disk(scene.dir.path().join("disk")).await?;
    let (log, history) = scene.live(&base).await?;
    let promised = |at: usize| -> Vec<Promise> {
        let last = |image| history.iter().rev().find(|(from, of, _)| *of == image && *from <= at);
        (0..scene.images.len()).map(|image| last(image).map_or(Promise::Absent, |(.., promise)| *promise)).collect()
    };
    let flushes: Vec<usize> = (1..log.len())
        .filter(|at| matches!((&log[at - 1], &log[*at]), (Operation::Write { .. }, Operation::Flush)))
        .collect();
    ensure!(flushes.len() > 20, "flushes do not come through: {} of {} operations", flushes.len(), log.len());
    let more: Option<u64> = std::env::var("CRICKET_POWER_CUTS").ok().and_then(|text| text.parse().ok());
    let step = if more.is_some() { 1 } else { flushes.len().div_ceil(FLUSH_CUTS) };
    for at in flushes.iter().step_by(step) {
        let bytes = cut(&base, &log, *at, None);
        scene.check(bytes, &promised(*at)).await.with_context(|| format!("at the flush {at} of {}", log.len()))?;
    }
    for seed in 0..more.unwrap_or(RANDOM_CUTS) {
        let mut random = Seeded(seed);
        let at = usize::try_from(random.below(log.len() as u64))?;
        let bytes = cut(&base, &log, at, Some(&mut random));
        let what = || format!("seed {seed}, after {at} of {} operations", log.len());
        scene.check(bytes, &promised(at)).await.with_context(what)?;
    }
    println!("{} operations, {} moments before a flush, every {step}. of them tried", log.len(), flushes.len());
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn after_a_power_cut_what_is_listed_is_whole_and_what_was_answered_holds() -> anyhow::Result<()> {
    crate::storage::tests::private(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(every_cut())
    })
}
