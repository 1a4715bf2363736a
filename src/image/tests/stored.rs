//! On the real layer store.

use super::*;
use crate::image::tests::server::{Reply, Then, gzip};
use crate::storage::tests::builder::Layer;
use crate::storage::{Storage, StorageOptions};
use serde_json::json;
use tokio::sync::Semaphore;

/// An image store on the real layer store, in a folder.
async fn open(dir: &std::path::Path, registries: &[&Registry]) -> anyhow::Result<(Images, Storage)> {
    std::fs::write(dir.join("registries.conf"), insecure(registries))?;
    let root = dir.join("images");
    let storage = Storage::open(StorageOptions { images: root.clone(), containers: dir.join("containers") })?;
    let config = settings(dir, &[]);
    std::fs::write(&config.signature_policy, ANYTHING)?;
    let images = Images::open(ImagesOptions { root, config }, Arc::new(storage.clone())).await?;
    Ok((images, storage))
}

fn asked(name: &str) -> PullRequest {
    PullRequest { reference: name.to_owned(), auth: None, namespace: None }
}

/// An image of one layer, whatever that is.
fn of_one(layer: Vec<u8>, plain: &[u8]) -> TestImage {
    let diff_ids = vec![Digest::of(plain)];
    let config = json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).to_string().into_bytes();
    TestImage::assemble(vec![layer], diff_ids, config)
}

/// A malformed layer that has come in part and is being unpacked keeps nobody waiting: images are listed and found, and others
/// are pulled. All of it runs on one thread, which nothing may block. Once the rest has come it is an error, and
/// nothing of it is left.
#[tokio::test]
async fn cve_2021_20291_a_malformed_layer_keeps_nobody_waiting() -> anyhow::Result<()> {
    let body: Vec<u8> = (0..1_200_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
    let plain = Layer::new().dir("d").file("d/large", &body).done();
    let (zipped, packed) = (gzip(&plain), zstd::encode_all(&plain[..], 1)?);
    let mut flipped = zipped.clone();
    flipped[zipped.len() * 3 / 4] ^= 0x55;
    let malformed = [
        ("gzip that ends early", zipped[..zipped.len() - 100].to_vec()),
        ("zstd that ends early", packed[..packed.len() - 100].to_vec()),
        ("an archive that ends in a file", plain[..1_000_000].to_vec()),
        ("something after gzip", [&zipped[..], b"garbage"].concat()),
        ("something after the archive", [&plain[..], b"garbage"].concat()),
        ("a flipped bit", flipped),
    ];
    for (what, layer) in malformed {
        let (image, gate) = (of_one(layer, &plain), Arc::new(Semaphore::new(0)));
        let (blob, held) = (image.blob(0), gate.clone());
        let bad = Registry::start(move |request| {
            let reply = image.answer(request, "app", &["v1"]);
            if !request.path.ends_with(&blob) || reply.status != 200 {
                return reply;
            }
            Reply { cut: Some((reply.body.len() / 2, Then::Wait)), gate: Some(held.clone()), ..reply }
        })
        .await;
        let other = |name: &str| {
            let plain = Layer::new().file(name, "x").done();
            let image = of_one(gzip(&plain), &plain);
            Registry::start(move |request| image.answer(request, "app", &["v1"]))
        };
        let (before, during) = (other("before").await, other("during").await);
        let dir = tempfile::tempdir()?;
        let (images, storage) = open(dir.path(), &[&bad, &before, &during]).await?;
        let first = images.pull(asked(&before.name("app:v1"))).await?;
        let staging = dir.path().join("images/staging");
        let staged = || std::fs::read_dir(&staging).map_or(0, Iterator::count);
        let meanwhile = async {
            // The archive's first entry is there: what came has gone through the decompressor.
            let begun = || {
                let mut layers = std::fs::read_dir(&staging).into_iter().flatten().flatten();
                layers.any(|layer| layer.path().join("diff/d").is_dir())
            };
            until(begun).await;
            assert_eq!(images.list(None), std::slice::from_ref(&first), "{what}");
            assert_eq!(images.find(&before.name("app:v1"))?.as_ref(), Some(&first), "{what}");
            assert_eq!(images.find(&bad.name("app:v1"))?, None, "{what}");
            let second = images.pull(asked(&during.name("app:v1"))).await?;
            assert_eq!(images.list(None).len(), 2, "{what}");
            images.remove(second.id.as_str()).await?;
            assert_eq!(images.list(None).len(), 1, "{what}");
            // The removed layer passes through staging on its way out; the malformed one is still being unpacked.
            until(|| staged() == 1).await;
            gate.add_permits(1);
            anyhow::Ok(())
        };
        let name = bad.name("app:v1");
        let (refused, done) = tokio::join!(images.pull(asked(&name)), meanwhile);
        done?;
        let error = refused.expect_err(what).to_string();
        assert!(error.contains("unpacking failed"), "{what}: {error}");
        assert_eq!(images.list(None), std::slice::from_ref(&first), "{what}");
        until(|| staged() == 0).await;
        assert!(first.chain.iter().all(|chain| storage.has_layer(chain)), "{what}");
    }
    Ok(())
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_pull_ends_in_layers_on_disk_and_a_removal_frees_them() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let plain: Vec<Vec<u8>> = ["one", "two"]
        .iter()
        .map(|name| {
            let mut builder = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_size(3);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, &b"abc"[..]).expect("memory");
            builder.into_inner().expect("memory")
        })
        .collect();
    let diff_ids: Vec<Digest> = plain.iter().map(|bytes| Digest::of(bytes)).collect();
    let config = json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).to_string().into_bytes();
    let image = TestImage::assemble(plain.iter().map(|bytes| gzip(bytes)).collect(), diff_ids, config);
    let served = image.clone();
    let registry = Registry::start(move |request| served.answer(request, "app", &["v1"])).await;
    let (images, storage) = open(dir.path(), &[&registry]).await?;
    let (root, name) = (dir.path().join("images"), registry.name("app:v1"));
    let record = images.pull(asked(&name)).await?;
    assert_eq!(record.chain.len(), 2);
    for (chain, file) in record.chain.iter().zip(["one", "two"]) {
        assert_eq!(std::fs::read(root.join("layers").join(chain.hex()).join("diff").join(file))?, b"abc");
    }
    images.remove(&name).await?;
    until(|| record.chain.iter().all(|chain| !storage.has_layer(chain))).await;
    until(|| std::fs::read_dir(root.join("layers")).is_ok_and(|mut left| left.next().is_none())).await;
    Ok(())
}
