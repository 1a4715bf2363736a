//! One blob on several chains is downloaded once (docs/decisions/042), on the real layer store.

use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::sync::Mutex;

use tokio::sync::Semaphore;

use super::*;
use crate::image::tests::server::{Reply, gzip};
use crate::storage::tests::builder::{Attributes, Layer, Seeded};
use crate::storage::tests::scan;
use crate::storage::{KeptLayer, Storage, StorageOptions};

/// A layer with a file in `/tmp` and no entry for that.
fn layer(name: &str) -> Vec<u8> {
    let mut random = Seeded(name.bytes().fold(7, |sum, byte| sum * 31 + u64::from(byte)));
    let large: Vec<u8> = (0..80_000).flat_map(|_| random.next().to_le_bytes()).collect();
    Layer::new().file(&format!("tmp/{name}"), name).file(&format!("data/{name}"), large).done()
}

/// A layer with a `/tmp` of some mode.
fn base(mode: u32) -> Vec<u8> {
    Layer::new().raw(b'5', (b"tmp", b""), 0, b"", Attributes { mode, ..Attributes::default() }).done()
}

fn image(layers: &[Vec<u8>]) -> TestImage {
    let diff_ids: Vec<Digest> = layers.iter().map(|bytes| Digest::of(bytes)).collect();
    let config = serde_json::json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).to_string().into_bytes();
    TestImage::assemble(layers.iter().map(|bytes| gzip(bytes)).collect(), diff_ids, config)
}

/// A node, and a registry that has its images under `app:0`, `app:1` and so on.
struct Scene {
    dir: tempfile::TempDir,
    storage: Storage,
    images: Images,
    registry: Registry,
    /// Layers, and nothing else, are served while there are permits.
    gate: Arc<Semaphore>,
    /// How to answer the next request for a blob, once.
    refusal: Arc<Mutex<Option<(Digest, Reply)>>>,
}

impl Scene {
    async fn new(all: Vec<TestImage>, downloads: u32) -> anyhow::Result<Self> {
        let (gate, refusal) = (Arc::new(Semaphore::new(0)), Arc::<Mutex<Option<(Digest, Reply)>>>::default());
        let (gated, refused) = (gate.clone(), refusal.clone());
        let configs: Vec<Digest> = all.iter().map(TestImage::id).collect();
        let registry = Registry::start(move |request| {
            let answers = all.iter().enumerate().map(|(n, image)| image.answer(request, "app", &[&n.to_string()]));
            let reply = answers.into_iter().find(|reply| reply.status != 404).unwrap_or_else(|| Reply::new(404, ""));
            let config = configs.iter().any(|id| request.path.ends_with(id.as_str()));
            if !request.path.contains("/blobs/") || config {
                return reply;
            }
            let refusal = refused.lock().expect("no panic").take_if(|(blob, _)| request.path.ends_with(blob.as_str()));
            let reply = refusal.map_or(reply, |(_, refusal)| refusal);
            Reply { gate: Some(gated.clone()), ..reply }
        })
        .await;
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("registries.conf"), insecure(&[&registry]))?;
        let options = StorageOptions { images: dir.path().join("images"), containers: dir.path().join("containers") };
        let storage = Storage::open(options)?;
        let config = ImageSettings { max_concurrent_downloads: downloads, ..settings(dir.path(), &[]) };
        std::fs::write(&config.signature_policy, ANYTHING)?;
        let options = ImagesOptions { root: dir.path().join("images"), config };
        let images = Images::open(options, Arc::new(storage.clone())).await?;
        Ok(Self { dir, storage, images, registry, gate, refusal })
    }

    fn open(&self) {
        self.gate.add_permits(1000);
    }

    async fn pull(&self, n: usize) -> Result<Arc<ImageRecord>, ImageError> {
        let reference = self.registry.name(&format!("app:{n}"));
        self.images.pull(PullRequest { reference, auth: None, namespace: None }).await
    }

    /// How often the blob of a layer was asked for.
    fn asked(&self, layer: &[u8]) -> usize {
        self.registry.count(&format!("/blobs/{}", Digest::of(&gzip(layer))))
    }

    /// How many want a layer's content now.
    fn turns(&self, layer: &[u8]) -> usize {
        self.images.0.turns.count(&Digest::of(layer))
    }

    fn diff(&self, chain: &Digest) -> PathBuf {
        self.dir.path().join("images/layers").join(chain.hex()).join("diff")
    }

    /// Each layer of an image is whole, and has a `/tmp` of that mode.
    fn good(&self, record: &Arc<ImageRecord>, layers: &[Vec<u8>], tmp: u32) -> anyhow::Result<()> {
        for (chain, layer) in record.chain.iter().zip(layers) {
            let kept = KeptLayer::open(&self.dir.path().join("images"), chain)?;
            anyhow::ensure!(kept.verify(&Digest::of(layer))?.findings.is_empty(), "{chain} is damaged");
            let mode = std::fs::metadata(self.diff(chain).join("tmp"))?.mode() & 0o7777;
            anyhow::ensure!(mode == tmp, "/tmp has the mode {mode:o}, not {tmp:o}");
            anyhow::ensure!(self.storage.layer_size(chain).is_some_and(|size| size.bytes > 0), "{chain} has no size");
        }
        Ok(())
    }

    /// Nothing is left of what was under way; without its images, nothing at all.
    async fn clean(&self) -> anyhow::Result<()> {
        let count =
            |folder: &str| std::fs::read_dir(self.dir.path().join("images").join(folder)).map_or(0, Iterator::count);
        until(|| count("staging") == 0).await;
        for record in self.images.list(None) {
            self.images.remove(record.id.as_str()).await?;
        }
        let emptied = || {
            self.images.0.collect();
            count("layers") == 0
        };
        until(emptied).await;
        assert_eq!((count("staging"), count("blobs/sha256")), (0, 0));
        Ok(())
    }
}

/// Two images that have one layer on two bases, and the layer.
fn two() -> (Vec<Vec<Vec<u8>>>, Vec<u8>) {
    let shared = layer("shared");
    (vec![vec![base(0o1777), shared.clone()], vec![base(0o755), shared.clone()]], shared)
}

fn images(layers: &[Vec<Vec<u8>>]) -> Vec<TestImage> {
    layers.iter().map(|layers| image(layers)).collect()
}

#[tokio::test]
async fn a_layer_that_is_here_on_another_chain_is_not_asked_for() -> anyhow::Result<()> {
    let (layers, shared) = two();
    let scene = Scene::new(images(&layers), 6).await?;
    scene.open();
    let first = scene.pull(0).await?;
    let before = scan::scan(&scene.diff(&first.chain[1]))?;
    let second = scene.pull(1).await?;
    assert_ne!(first.chain[1], second.chain[1]);
    assert_eq!((scene.asked(&shared), scene.asked(&layers[1][0])), (1, 1));
    scene.good(&first, &layers[0], 0o1777)?;
    scene.good(&second, &layers[1], 0o755)?;
    assert_eq!(scan::differences(&before, &scan::scan(&scene.diff(&first.chain[1]))?), Vec::<String>::new());
    // Each counts what it has on the disk, and the file system counts both.
    let size = |record: &ImageRecord| on_disk(&scene.storage, &record.chain);
    assert_eq!(size(&first), size(&second));
    assert_eq!(scene.storage.images_usage().bytes, size(&first) + size(&second));
    // What is here stays where it was the only one of its kind.
    scene.images.remove(first.id.as_str()).await?;
    until(|| !scene.storage.has_layer(&first.chain[1])).await;
    scene.good(&second, &layers[1], 0o755)?;
    scene.clean().await
}

#[tokio::test]
async fn two_pulls_at_once_share_one_download() -> anyhow::Result<()> {
    let (layers, shared) = two();
    let scene = Scene::new(images(&layers), 6).await?;
    let open = async {
        until(|| scene.turns(&shared) == 2).await;
        scene.open();
    };
    let (first, second, ()) = tokio::join!(scene.pull(0), scene.pull(1), open);
    assert_eq!(scene.asked(&shared), 1);
    scene.good(&first?, &layers[0], 0o1777)?;
    scene.good(&second?, &layers[1], 0o755)?;
    scene.clean().await
}

/// The commit of the one pull waits for all of its layers, so the second is unpacked from one that is staged.
#[tokio::test]
async fn one_image_may_have_a_layer_several_times() -> anyhow::Result<()> {
    let shared = layer("shared");
    for downloads in [1, 6] {
        let layers = vec![shared.clone(), shared.clone(), layer("other"), shared.clone()];
        let scene = Scene::new(vec![image(&layers)], downloads).await?;
        scene.open();
        let record = scene.pull(0).await?;
        assert_eq!((record.chain.len(), scene.asked(&shared)), (4, 1), "{downloads} at once");
        scene.good(&record, &layers, 0o755)?;
        scene.clean().await?;
    }
    Ok(())
}

/// Two images have the same layers in another order, and a third comes with yet another: whatever waits for whatever, all end.
#[tokio::test]
async fn the_order_of_layers_locks_nobody_out() -> anyhow::Result<()> {
    let [x, y, z] = ["x", "y", "z"].map(layer);
    let layers = vec![
        vec![x.clone(), y.clone(), z.clone()],
        vec![y.clone(), x.clone(), z.clone()],
        vec![z.clone(), z.clone(), y.clone(), x.clone()],
    ];
    for downloads in [1, 2, 6] {
        let scene = Scene::new(images(&layers), downloads).await?;
        let open = async {
            until(|| scene.turns(&x) == 3 && scene.turns(&y) == 3 && scene.turns(&z) == 4).await;
            scene.open();
        };
        let (a, b, c, ()) = tokio::join!(scene.pull(0), scene.pull(1), scene.pull(2), open);
        for (record, layers) in [a?, b?, c?].iter().zip(&layers) {
            scene.good(record, layers, 0o755)?;
        }
        assert_eq!([&x, &y, &z].map(|layer| scene.asked(layer)), [1, 1, 1], "{downloads} at once");
        scene.clean().await?;
    }
    Ok(())
}

/// Who waits for another pull's download holds none of the permits to download.
#[tokio::test]
async fn waiting_for_a_download_does_not_count_as_one() -> anyhow::Result<()> {
    let shared = layer("shared");
    let bases: Vec<Vec<u8>> = [0o700, 0o711, 0o750].into_iter().map(base).collect();
    let mut layers: Vec<Vec<Vec<u8>>> = bases.iter().map(|base| vec![base.clone(), shared.clone()]).collect();
    layers.push(vec![layer("alone")]);
    let scene = Scene::new(images(&layers), 2).await?;
    // The bases come first, so that only the one layer is under way: one downloads it, two wait for that.
    for base in &bases {
        let digest = Digest::of(base);
        let staged = scene.storage.stage_layer(
            &digest,
            &digest,
            crate::storage::Compression::None,
            base.as_slice(),
            &crate::storage::Limits::default(),
        )?;
        scene.storage.commit_layers(vec![staged])?;
    }
    let shared_by = async {
        let (a, b, c) = tokio::join!(scene.pull(0), scene.pull(1), scene.pull(2));
        anyhow::Ok((a?, b?, c?))
    };
    let alone = async {
        until(|| scene.turns(&shared) == 3 && scene.asked(&shared) == 1).await;
        let pull = scene.pull(3);
        let open = async {
            // It is let through to the registry, while the other download goes on.
            until(|| scene.asked(&layers[3][0]) == 1).await;
            scene.open();
        };
        tokio::join!(pull, open).0
    };
    let (shared_by, alone) = tokio::join!(shared_by, alone);
    let (a, b, c) = shared_by?;
    alone?;
    for (record, (layers, mode)) in [a, b, c].iter().zip(layers.iter().zip([0o700, 0o711, 0o750])) {
        scene.good(record, layers, mode)?;
    }
    assert_eq!(scene.asked(&shared), 1);
    scene.clean().await
}

/// What one pull is refused is no matter of another one's, which asks for itself.
#[tokio::test]
async fn a_failure_is_not_shared() -> anyhow::Result<()> {
    let (mut layers, shared) = two();
    layers.push(vec![base(0o700), shared.clone()]);
    let blob = gzip(&shared);
    let broken = [&blob[..1000], &vec![0; blob.len() - 1000]].concat();
    for reply in [Reply::new(403, ""), Reply::new(404, ""), Reply::new(200, broken)] {
        let scene = Scene::new(images(&layers), 6).await?;
        *scene.refusal.lock().expect("no panic") = Some((Digest::of(&blob), reply.clone()));
        let others = async {
            until(|| scene.asked(&shared) == 1).await;
            tokio::join!(scene.pull(1), scene.pull(2))
        };
        let open = async {
            until(|| scene.turns(&shared) == 3).await;
            scene.open();
        };
        let (first, (second, third), ()) = tokio::join!(scene.pull(0), others, open);
        assert!(first.is_err(), "{}", reply.status);
        scene.good(&second?, &layers[1], 0o755)?;
        scene.good(&third?, &layers[2], 0o700)?;
        assert_eq!(scene.asked(&shared), 2, "{}: once in vain, once for both", reply.status);
        scene.clean().await?;
    }
    Ok(())
}

/// Whoever waits for a download goes on when the pull that it belongs to is given up.
#[tokio::test]
async fn a_pull_that_ends_early_leaves_nobody_waiting() -> anyhow::Result<()> {
    let (layers, shared) = two();
    let scene = Scene::new(images(&layers), 6).await?;
    let second = {
        let mut first = Box::pin(scene.pull(0));
        tokio::select! {
            _ = &mut first => panic!("it waits at the gate"),
            () = until(|| scene.asked(&shared) == 1) => {}
        }
        let mut second = Box::pin(scene.pull(1));
        tokio::select! {
            _ = &mut first => panic!("it waits at the gate"),
            _ = &mut second => panic!("it waits for the first"),
            () = until(|| scene.turns(&shared) == 2) => {}
        }
        assert_eq!(scene.asked(&shared), 1);
        drop(first);
        tokio::select! {
            _ = &mut second => panic!("it waits at the gate"),
            () = until(|| scene.asked(&shared) == 2) => {}
        }
        scene.open();
        second.await?
    };
    scene.good(&second, &layers[1], 0o755)?;
    assert_eq!(scene.images.list(None).len(), 1);
    scene.clean().await
}

#[tokio::test]
async fn a_damaged_layer_is_downloaded_again() -> anyhow::Result<()> {
    let (mut layers, shared) = two();
    layers.push(vec![base(0o700), shared.clone()]);
    let scene = Scene::new(images(&layers), 6).await?;
    scene.open();
    let first = scene.pull(0).await?;
    let victim = scene.diff(&first.chain[1]).join("data/shared");
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&victim)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, 300_000)?;
    file.write_all_at(&[byte[0] ^ 1], 300_000)?;
    let second = scene.pull(1).await?;
    assert_eq!(scene.asked(&shared), 2);
    scene.good(&second, &layers[1], 0o755)?;
    assert!(scene.good(&first, &layers[0], 0o1777).is_err(), "nothing mends the other one");
    // Now there is a good one again.
    let third = scene.pull(2).await?;
    assert_eq!(scene.asked(&shared), 2);
    scene.good(&third, &layers[2], 0o700)?;
    scene.clean().await
}

/// A diff id is what an image says of itself. It gets content that has this digest, or none.
#[tokio::test]
async fn a_diff_id_that_lies_gets_nothing_that_is_here() -> anyhow::Result<()> {
    let (layers, shared) = two();
    let honest = image(&layers[0]);
    // It says that its own blob is the other image's layer.
    let diff_ids = vec![Digest::of(&layers[1][0]), Digest::of(&shared)];
    let config = serde_json::json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).to_string().into_bytes();
    let evil = layer("evil");
    let lying = TestImage::assemble(vec![gzip(&layers[1][0]), gzip(&evil)], diff_ids, config);
    for lying_first in [true, false] {
        let scene = Scene::new(vec![honest.clone(), lying.clone()], 6).await?;
        scene.open();
        if lying_first {
            let error = scene.pull(1).await.expect_err("the digests differ").to_string();
            assert!(error.contains("the image says"), "{error}");
            scene.good(&scene.pull(0).await?, &layers[0], 0o1777)?;
        } else {
            scene.good(&scene.pull(0).await?, &layers[0], 0o1777)?;
            // What it asks for is here, and that is what it gets: its own blob is not even looked at.
            let record = scene.pull(1).await?;
            assert_eq!(scene.asked(&evil), 0);
            scene.good(&record, &layers[1], 0o755)?;
        }
        scene.clean().await?;
    }
    Ok(())
}
