//! What is exported comes in again as the same image, and nothing is left of an export that fails.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::image::tests::server::gzip;
use crate::image::tests::{ANYTHING, settings};
use crate::image::{Images, ImagesOptions, verify};
use crate::storage::{Storage, StorageOptions};

/// A store on disk.
struct Store {
    dir: tempfile::TempDir,
    images: Images,
}

impl Store {
    async fn new() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("registries.conf"), "")?;
        let config = settings(dir.path(), &[]);
        std::fs::write(&config.signature_policy, ANYTHING)?;
        let root = dir.path().join("images");
        let storage =
            Storage::open(StorageOptions { images: root.clone(), containers: dir.path().join("containers") })?;
        let images = Images::open(ImagesOptions { root, config }, Arc::new(storage)).await?;
        Ok(Self { dir, images })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn root(&self) -> PathBuf {
        self.path("images")
    }

    async fn kept(&self, references: &[&str]) -> anyhow::Result<Vec<KeptImage>> {
        let references: Vec<String> = references.iter().map(|text| (*text).to_owned()).collect();
        let hold = self.images.hold(&references).await?;
        let kept = |image: &crate::image::HeldImage| KeptImage {
            id: image.record.id.clone(),
            manifest: image.record.manifest.clone(),
            documents: image.record.documents.iter().cloned().collect(),
            layers: image.record.chain.clone(),
            tags: image.tags.clone(),
            artifact: image.record.is_artifact(),
        };
        Ok(hold.images.iter().map(kept).collect())
    }

    /// Imports an image of these layers, compressed, under two names.
    async fn fill(&self, name: &str, layers: &[Vec<u8>]) -> anyhow::Result<Digest> {
        let folder = self.path(&format!("layout-{name}"));
        std::fs::create_dir_all(folder.join("blobs/sha256"))?;
        let put = |bytes: &[u8], kind: &str| -> anyhow::Result<serde_json::Value> {
            std::fs::write(folder.join(blob(&Digest::of(bytes))), bytes)?;
            let media_type = format!("application/vnd.oci.image.{kind}");
            Ok(json!({ "mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len() }))
        };
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
        let config =
            json!({ "config": { "Cmd": [name] }, "rootfs": { "type": "layers", "diff_ids": diff_ids } }).to_string();
        let packed =
            layers.iter().map(|layer| put(&gzip(layer), "layer.v1.tar+gzip")).collect::<Result<Vec<_>, _>>()?;
        let manifest = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": put(config.as_bytes(), "config.v1+json")?, "layers": packed });
        let entry = |tag: &str| -> anyhow::Result<serde_json::Value> {
            let mut entry = put(manifest.to_string().as_bytes(), "manifest.v1+json")?;
            entry["annotations"] = json!({ FULL_NAME: format!("images.example/{name}:{tag}") });
            Ok(entry)
        };
        let index = json!({ "schemaVersion": 2, "manifests": [entry("v1")?, entry("v2")?] });
        std::fs::write(folder.join("index.json"), index.to_string())?;
        self.images.import(&folder, None).await?;
        Ok(Digest::of(config.as_bytes()))
    }

    /// What is in its folder, to see that nothing is left.
    fn names(&self) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.dir.path()).expect("its folder");
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

/// A layer with a file that is replaced, so that the tree alone would not do.
fn layer(seed: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for content in ["first", seed] {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(content.len()).expect("short"));
        header.set_mode(0o640);
        header.set_mtime(1_234_567_890);
        builder.append_data(&mut header, "etc/file", content.as_bytes()).expect("memory");
    }
    builder.into_inner().expect("memory")
}

#[tokio::test]
#[ignore = "needs root"]
async fn exports_come_in_again_as_the_same_images() -> anyhow::Result<()> {
    let store = Store::new().await?;
    // One shares a layer with the other, and has one twice.
    let one = store.fill("one", &[layer("base"), layer("top"), layer("top")]).await?;
    let other = store.fill("other", &[layer("base")]).await?;
    let kept = store.kept(&["images.example/one:v2", &other.to_string()]).await?;
    assert_eq!(kept[0].tags, ["images.example/one:v2"]);
    assert_eq!(kept[1].tags, ["images.example/other:v1", "images.example/other:v2"]);
    let mut first = Vec::new();
    for packed in [Packed::None, Packed::Gzip, Packed::Zstd] {
        for target in [Target::Archive(store.path("a.tar")), Target::Folder(store.path("a"))] {
            let manifests = export(&store.root(), &kept, packed, &target)?;
            let again = Store::new().await?;
            let records = again.images.import(target.path(), None).await?;
            let ids: BTreeSet<_> = records.iter().map(|record| &record.id).collect();
            assert_eq!(ids, BTreeSet::from([&one, &other]), "{packed:?} {target:?}");
            let found = again.images.find("images.example/one:v2")?.expect("by its name");
            assert_eq!((&found.id, &found.manifest, &found.repo_tags[..]), (&one, &manifests[0], &kept[0].tags[..]));
            assert_eq!(again.images.find("images.example/other:v1")?.expect("by its name").repo_tags, kept[1].tags);
            for image in again.kept(&[]).await? {
                let (state, problems, _) = verify(&again.root(), &image, &mut Default::default())?;
                assert!(state == crate::image::State::Good && problems.is_empty(), "{problems:?}");
            }
            // Exported from there without compression, it is the same again, to the last byte.
            if packed == Packed::None {
                let back = again.kept(&[one.hex(), other.hex()]).await?;
                assert_eq!(export(&again.root(), &back, packed, &Target::Archive(again.path("a.tar")))?, manifests);
                if let Target::Archive(path) = &target {
                    first = std::fs::read(path)?;
                }
                assert!(std::fs::read(again.path("a.tar"))? == first);
            }
            let before = store.names();
            let twice = export(&store.root(), &kept, packed, &target);
            assert!(matches!(twice, Err(ExportError::Exists { .. })), "{twice:?}");
            assert_eq!(store.names(), before);
            match &target {
                Target::Folder(path) => std::fs::remove_dir_all(path)?,
                _ => std::fs::remove_file(target.path())?,
            }
        }
    }
    Ok(())
}

#[tokio::test]
#[ignore = "needs root"]
async fn nothing_is_left_of_an_export_that_fails() -> anyhow::Result<()> {
    let store = Store::new().await?;
    store.fill("one", &[layer("base")]).await?;
    let kept = store.kept(&["images.example/one:v1"]).await?;
    let damaged = store.root().join("layers").join(kept[0].layers[0].hex()).join("diff/etc/file");
    let whole = std::fs::read(&damaged)?;
    let before = store.names();
    let targets = [Target::Archive(store.path("a.tar")), Target::Folder(store.path("a")), Target::Stdout];
    for content in ["bAse", "bas"] {
        std::fs::write(&damaged, content)?;
        for target in &targets[..2] {
            let failed = export(&store.root(), &kept, Packed::None, target).expect_err("it is damaged");
            assert!(matches!(failed, ExportError::Archive { .. }), "{failed:?}");
            assert!(crate::telemetry::chain(&failed).contains("diff/etc/file"), "{failed:?}");
            assert_eq!(store.names(), before);
        }
    }
    std::fs::write(&damaged, whole)?;
    let unseekable = export(&store.root(), &kept, Packed::Gzip, &targets[2]);
    assert!(matches!(unseekable, Err(ExportError::NotSeekable)));
    let nowhere = export(&store.root(), &kept, Packed::None, &Target::Archive(store.path("missing/a.tar")));
    assert!(matches!(nowhere, Err(ExportError::Write { .. })), "{nowhere:?}");
    let artifact = KeptImage { artifact: true, ..kept[0].clone() };
    let refused = export(&store.root(), &[artifact], Packed::None, &targets[0]);
    assert!(matches!(refused, Err(ExportError::Artifact { .. })));
    assert_eq!(store.names(), before);
    // The config decides what a layer is; another one's is refused.
    let wrong = KeptImage { layers: Vec::new(), ..kept[0].clone() };
    assert!(matches!(export(&store.root(), &[wrong], Packed::None, &targets[0]), Err(ExportError::Kept(_))));
    Ok(())
}

#[tokio::test]
#[ignore = "needs root"]
async fn damage_to_documents_is_found_and_a_missing_image_named() -> anyhow::Result<()> {
    let store = Store::new().await?;
    let id = store.fill("one", &[layer("base")]).await?;
    let kept = store.kept(&[]).await?.remove(0);
    let error = store.images.hold(&["images.example/none:v1".to_owned()]).await.expect_err("not there");
    assert!(error.to_string().contains("no such image"), "{error}");
    std::fs::write(store.root().join(blob(&id)), "{}")?;
    let (state, problems, _) = verify(&store.root(), &kept, &mut Default::default())?;
    assert_eq!(state, crate::image::State::Damaged);
    assert!(
        problems.len() == 1 && problems[0].layer.is_none() && problems[0].problem.contains("the digest"),
        "{problems:?}"
    );
    Ok(())
}

/// 8 GiB and more do not fit the digits of a header. The layer here is a hole, and what comes after it shows whether its length
/// was understood: by GNU tar, and by what imports.
#[tokio::test]
async fn the_header_of_a_layer_of_nine_gigabytes_is_understood() -> anyhow::Result<()> {
    let size = (9_u64 << 30) + 1;
    let store = Store::new().await?;
    let path = store.path("large.tar");
    let layer = blob(&Digest::of(b"large"));
    let saved = json!([{ "Config": "absent.json", "RepoTags": null, "Layers": [layer] }]).to_string().into_bytes();
    let mut rest = output::header("manifest.json", saved.len() as u64, tar::EntryType::Regular)?.as_bytes().to_vec();
    rest.extend(&saved);
    rest.resize(rest.len().next_multiple_of(512) + 1024, 0);
    let file = std::fs::File::create(&path)?;
    let write = |bytes: &[u8], at| std::os::unix::fs::FileExt::write_all_at(&file, bytes, at);
    write(output::header(&layer, size, tar::EntryType::Regular)?.as_bytes(), 0)?;
    write(&rest, 512 + size.next_multiple_of(512))?;
    let exec = crate::sys::exec::Exec {
        program: "tar".into(),
        args: ["--list", "--verbose", "--numeric-owner", "-f"]
            .map(Into::into)
            .into_iter()
            .chain([path.clone().into()])
            .collect(),
        env: vec![("PATH".into(), "/usr/bin:/bin".into()), ("LC_ALL".into(), "C".into())],
        stdin: Vec::new(),
        timeout: std::time::Duration::from_secs(60),
        output_cap: 8192,
    };
    let listed = crate::sys::exec::run(exec).await?;
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert_eq!((lines[0][2], *lines[0].last().expect("a name")), ("9663676417", &*layer));
    assert_eq!(lines[1].last(), Some(&"manifest.json"));
    let error = store.images.import(&path, None).await.expect_err("its config is not there").to_string();
    assert!(error.contains("it has no \"absent.json\""), "{error}");
    Ok(())
}
