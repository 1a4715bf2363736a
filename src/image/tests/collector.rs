//! The collector against everything that uses layers at the same time, on the real layer store.

use std::path::PathBuf;

use super::*;
use crate::storage::{Storage, StorageOptions};
use crate::task;

/// Images of three layers: one that all share, one that two share, one of its own.
const IMAGES: usize = 4;
/// Rounds of each worker.
const ROUNDS: usize = 60;

fn layer(name: &str) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for n in 0..8 {
        let content = format!("{name} {n}");
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(rustix::process::geteuid().as_raw().into());
        header.set_gid(rustix::process::getegid().as_raw().into());
        archive.append_data(&mut header, format!("{n}"), content.as_bytes()).expect("memory");
    }
    archive.into_inner().expect("memory")
}

fn image(n: usize) -> TestImage {
    let names = [String::from("all"), format!("pair {}", n / 2), format!("own {n}")];
    let plain: Vec<Vec<u8>> = names.iter().map(|name| layer(name)).collect();
    let diff_ids: Vec<Digest> = plain.iter().map(|bytes| Digest::of(bytes)).collect();
    let config = serde_json::json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}, "config": {"Labels": {"n": n.to_string()}}});
    let packed = plain.iter().map(|bytes| server::gzip(bytes)).collect();
    TestImage::assemble(packed, diff_ids, config.to_string().into_bytes())
}

struct Scene {
    dir: tempfile::TempDir,
    storage: Storage,
    images: Images,
    registry: Registry,
}

impl Scene {
    async fn new() -> anyhow::Result<Self> {
        let all: Vec<TestImage> = (0..IMAGES).map(image).collect();
        let tags: Vec<String> = (0..IMAGES).map(|n| format!("v{n}")).collect();
        let registry = Registry::start(move |request| {
            let answers = all.iter().zip(&tags).map(|(image, tag)| image.answer(request, "app", &[tag]));
            answers.into_iter().find(|reply| reply.status != 404).unwrap_or_else(|| server::Reply::new(404, ""))
        })
        .await;
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("registries.conf"), insecure(&[&registry]))?;
        let options = StorageOptions { images: dir.path().join("images"), containers: dir.path().join("containers") };
        let storage = Storage::open(options)?;
        let config = settings(dir.path(), &[]);
        std::fs::write(&config.signature_policy, ANYTHING)?;
        let options = ImagesOptions { root: dir.path().join("images"), config };
        let images = Images::open(options, Arc::new(storage.clone())).await?;
        Ok(Self { dir, storage, images, registry })
    }

    fn name(&self, n: usize) -> String {
        self.registry.name(&format!("app:v{n}"))
    }

    fn diff(&self, chain: &Digest) -> PathBuf {
        self.dir.path().join("images/layers").join(chain.hex()).join("diff")
    }

    fn count(&self, folder: &str) -> usize {
        std::fs::read_dir(self.dir.path().join("images").join(folder)).map_or(0, Iterator::count)
    }

    /// Every file of every layer is there.
    fn look(&self, record: &ImageRecord) -> anyhow::Result<()> {
        for chain in &record.chain {
            for n in 0..8 {
                let file = self.diff(chain).join(n.to_string());
                let text =
                    std::fs::read_to_string(&file).map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))?;
                anyhow::ensure!(text.ends_with(&format!(" {n}")), "{}: {text:?}", file.display());
            }
        }
        Ok(())
    }

    /// What a container or an image volume does: find, lease, use, let go. True when it got its layers.
    async fn use_layers(&self, n: usize) -> anyhow::Result<bool> {
        let Some(record) = self.images.find(&self.name(n))? else { return Ok(false) };
        let Ok(lease) = self.storage.lease(&record.chain) else {
            // Only because it was removed between the two steps.
            return Ok(false);
        };
        self.look(&record)?;
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        self.look(&record)?;
        drop(lease);
        Ok(true)
    }
}

/// A small generator, so that the workers differ and a run can be told from another.
fn next(state: &mut usize) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

async fn work(scene: Arc<Scene>, worker: usize) -> anyhow::Result<usize> {
    let mut state = worker + 1;
    let mut used = 0;
    for _ in 0..ROUNDS {
        let n = next(&mut state) % IMAGES;
        match worker {
            0..=2 => {
                let record =
                    scene.images.pull(PullRequest { reference: scene.name(n), auth: None, namespace: None }).await?;
                let leased = scene.storage.reserve(&record.chain);
                // While an image is listed its layers are there, and from now on they stay.
                if scene.images.find(record.id.as_str())?.is_some() {
                    scene.look(&record)?;
                }
                drop(leased);
            }
            3 => scene.images.remove(&scene.name(n)).await?,
            4 => {
                let scene = scene.clone();
                task::blocking(move || scene.images.0.collect()).await;
            }
            _ => used += usize::from(scene.use_layers(n).await?),
        }
        tokio::task::yield_now().await;
    }
    Ok(used)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_in_use_is_ever_collected() -> anyhow::Result<()> {
    let scene = Arc::new(Scene::new().await?);
    for n in 0..IMAGES {
        scene.images.pull(PullRequest { reference: scene.name(n), auth: None, namespace: None }).await?;
    }
    let mut used = scene.use_layers(0).await.map(usize::from)?;
    let workers = (0..8).map(|worker| task::spawn("test-worker", work(scene.clone(), worker)));
    for worker in futures_util::future::join_all(workers).await {
        used += worker??;
    }
    assert!(used > 0, "nothing was ever used");
    for n in 0..IMAGES {
        scene.images.remove(&scene.name(n)).await?;
    }
    // Leases of the last pulls are given back by tasks of their own.
    until(|| ["layers", "staging", "blobs/sha256"].iter().all(|folder| scene.count(folder) == 0)).await;
    assert_eq!(scene.images.list(None).len(), 0);
    Ok(())
}

#[tokio::test]
async fn what_a_lease_kept_from_a_removal_goes_with_the_lease() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let record = scene.images.pull(PullRequest { reference: scene.name(0), auth: None, namespace: None }).await?;
    let container = scene.storage.lease(&record.chain)?;
    let other = scene.storage.lease(&record.chain[..1])?;
    scene.images.remove(&scene.name(0)).await?;
    scene.images.0.collect();
    scene.look(&record)?;
    drop(container);
    until(|| scene.count("layers") == 1).await;
    drop(other);
    until(|| scene.count("layers") == 0 && scene.images.fs_usage().inodes == 0).await;
    Ok(())
}

/// The caller may be gone before the answer: a kubelet that is restarted, a `crictl` with its two seconds.
#[tokio::test]
async fn a_removal_is_done_to_its_end_though_nobody_waits() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    scene.images.pull(PullRequest { reference: scene.name(0), auth: None, namespace: None }).await?;
    {
        let name = scene.name(0);
        let mut removal = Box::pin(scene.images.remove(&name));
        // As far as it comes by itself.
        let _ = futures_util::poll!(removal.as_mut());
    }
    until(|| scene.images.list(None).is_empty() && scene.count("layers") == 0).await;
    Ok(())
}

/// Layers are durable before the record is written. Without the record nobody needs them, and nobody knows of them.
#[tokio::test]
async fn layers_of_an_image_that_cannot_be_recorded_are_freed() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let archive = scene.dir.path().join("saved.tar");
    power_cut::archive(&image(1), &archive)?;
    // What is in the way of the documents.
    let documents = scene.dir.path().join("images/blobs/sha256");
    std::fs::remove_dir(&documents)?;
    std::fs::write(&documents, "")?;
    let pull = || scene.images.pull(PullRequest { reference: scene.name(0), auth: None, namespace: None });
    for refused in [pull().await.map(drop), scene.images.import(&archive, None).await.map(drop)] {
        let error = refused.expect_err("it cannot be recorded").to_string();
        assert!(error.contains("the document cannot be written"), "{error}");
        until(|| scene.count("layers") == 0 && scene.count("staging") == 0).await;
        assert_eq!((scene.images.list(None).len(), scene.images.fs_usage().inodes), (0, 0));
    }
    std::fs::remove_file(&documents)?;
    std::fs::create_dir(&documents)?;
    let record = pull().await?;
    scene.look(&record)
}
