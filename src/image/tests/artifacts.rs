//! Artifacts: pulled like images, kept as files, never taken for images.

use super::*;
use crate::image::document::OCI_MANIFEST;
use crate::image::tests::server::{Reply, descriptor};
use serde_json::json;

/// An artifact of some files, and the blobs that a registry has of it.
#[derive(Clone)]
struct Artifact {
    manifest: Vec<u8>,
    blobs: Vec<Vec<u8>>,
}

impl Artifact {
    /// With these titles and contents; the config is the empty one that most artifacts share.
    fn new(files: &[(&str, &[u8])]) -> Self {
        let layer = |(title, content): &(&str, &[u8])| {
            let mut layer = descriptor("application/vnd.example.model", content);
            layer["annotations"] = json!({"org.opencontainers.image.title": title});
            layer
        };
        let layers: Vec<_> = files.iter().map(layer).collect();
        let config = descriptor("application/vnd.oci.empty.v1+json", b"{}");
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers,
            "artifactType": "application/vnd.example.model"});
        let blobs = files.iter().map(|(_, content)| content.to_vec()).collect();
        Self { manifest: manifest.to_string().into_bytes(), blobs }
    }

    async fn served(&self) -> Registry {
        let artifact = self.clone();
        Registry::start(move |request| {
            let digest = Digest::of(&artifact.manifest);
            if request.path.ends_with("/manifests/v1") || request.path.ends_with(&format!("/manifests/{digest}")) {
                return Reply::new(200, artifact.manifest.clone()).with("content-type", OCI_MANIFEST);
            }
            let found = artifact.blobs.iter().find(|blob| request.path.ends_with(Digest::of(blob).as_str()));
            found.map_or_else(|| Reply::new(404, ""), |blob| Reply::new(200, blob.clone()))
        })
        .await
    }
}

#[tokio::test]
async fn an_artifact_is_pulled_listed_kept_and_removed() -> anyhow::Result<()> {
    let artifact = Artifact::new(&[("model/weights", b"weights"), ("model/config.json", b"{\"a\":1}"), ("empty", b"")]);
    let registry = artifact.served().await;
    let room = Room::trusting(&[&registry]).await?;
    let name = registry.name("model:v1");
    let record = room.pull(&name).await?;
    let id = Digest::of(&artifact.manifest);
    assert!(record.is_artifact() && record.id == id && record.chain.len() == 3, "{record:?}");
    assert_eq!(record.repo_tags.join(" "), name);
    assert_eq!(record.repo_digests, [registry.name(&format!("model@{id}"))]);
    // Its config means nothing, and is not asked for.
    assert_eq!((registry.count("/blobs/"), room.images.list(None).len()), (3, 1));
    // Again it is known; by its digest, too.
    assert_eq!(room.pull(&registry.name(&format!("model@{id}"))).await?, record);
    assert_eq!(registry.count("/blobs/"), 3);
    until(|| room.layers.leases() == 0).await;
    let room = room.reopen().await?;
    assert!(room.images.notes().is_empty(), "{:?}", room.images.notes());
    assert_eq!(room.images.find(&name)?, Some(record.clone()));
    room.images.remove(&name).await?;
    until(|| room.layers.count() == 0).await;
    room.assert_clean().await;
    Ok(())
}

#[tokio::test]
async fn artifacts_with_one_config_are_two_and_share_their_files() -> anyhow::Result<()> {
    let one = Artifact::new(&[("shared", b"shared"), ("own", b"one")]).served().await;
    let two = Artifact::new(&[("shared", b"shared"), ("own", b"two")]).served().await;
    let room = Room::trusting(&[&one, &two]).await?;
    let (first, second) = (room.pull(&one.name("a:v1")).await?, room.pull(&two.name("b:v1")).await?);
    assert_ne!(first.id, second.id);
    assert_eq!((first.chain[0].clone(), room.layers.count()), (second.chain[0].clone(), 3));
    assert_eq!(two.count("/blobs/"), 1);
    // The same content under another name is another file.
    let other = Artifact::new(&[("named", b"shared")]).served().await;
    let room = Room::trusting(&[&one, &other]).await?;
    let (first, second) = (room.pull(&one.name("a:v1")).await?, room.pull(&other.name("b:v1")).await?);
    assert_ne!(first.chain[0], second.chain[0]);
    Ok(())
}

#[tokio::test]
async fn wrong_artifacts_are_refused_and_leave_nothing() -> anyhow::Result<()> {
    for title in ["../x", "/x", "a/../x", ".wh.x", "a\nb"] {
        let registry = Artifact::new(&[("good", b"good"), (title, b"bad")]).served().await;
        let room = Room::trusting(&[&registry]).await?;
        let error = room.refused(&registry.name("model:v1")).await;
        assert!(error.contains("the file name") && error.contains(&registry.host()), "{title}: {error}");
        assert_eq!(registry.count("/blobs/"), 0);
        room.assert_clean().await;
    }
    // Content of another digest, and of another length.
    for (blob, want) in [(&b"other"[..], "has the digest"), (b"longer than it is said", "the layer has")] {
        let mut artifact = Artifact::new(&[("file", b"right")]);
        let right = Digest::of(b"right");
        artifact.blobs.clear();
        let (manifest, blob) = (artifact.manifest.clone(), blob.to_vec());
        let registry = Registry::start(move |request| match request.path.ends_with(right.as_str()) {
            true => Reply::new(200, blob.clone()),
            false => Reply::new(200, manifest.clone()).with("content-type", OCI_MANIFEST),
        })
        .await;
        let room = Room::trusting(&[&registry]).await?;
        let error = room.refused(&registry.name("model:v1")).await;
        assert!(error.contains(want), "{want}: {error}");
        room.assert_clean().await;
    }
    Ok(())
}
