//! On the real layer store.

use super::*;
use crate::storage::{Storage, StorageOptions};

#[tokio::test]
#[ignore = "needs root"]
async fn a_pull_ends_in_layers_on_disk_and_a_removal_frees_them() -> anyhow::Result<()> {
    use crate::image::tests::server::gzip;
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
    let config = serde_json::json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).to_string().into_bytes();
    let image = TestImage::assemble(plain.iter().map(|bytes| gzip(bytes)).collect(), diff_ids, config);
    let served = image.clone();
    let registry = Registry::start(move |request| served.answer(request, "app", &["v1"])).await;
    std::fs::write(dir.path().join("registries.conf"), insecure(&[&registry]))?;
    let root = dir.path().join("images");
    let storage = Storage::open(StorageOptions { images: root.clone(), containers: dir.path().join("containers") })?;
    let config = settings(dir.path(), &[]);
    std::fs::write(&config.signature_policy, ANYTHING)?;
    let options = ImagesOptions { root: root.clone(), config };
    let images = Images::open(options, Arc::new(storage.clone())).await?;
    let name = registry.name("app:v1");
    let request = PullRequest { reference: name.clone(), auth: None, namespace: None };
    let record = images.pull(request).await?;
    assert_eq!(record.chain.len(), 2);
    for (chain, file) in record.chain.iter().zip(["one", "two"]) {
        assert_eq!(std::fs::read(root.join("layers").join(chain.hex()).join("diff").join(file))?, b"abc");
    }
    images.remove(&name).await?;
    until(|| record.chain.iter().all(|chain| !storage.has_layer(chain))).await;
    until(|| std::fs::read_dir(root.join("layers")).is_ok_and(|mut left| left.next().is_none())).await;
    Ok(())
}
