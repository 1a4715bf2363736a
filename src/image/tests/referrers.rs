//! Signatures among what refers to an image: by the API of OCI 1.1, by its pages, by the tag that stands for it elsewhere.

use super::*;
use crate::image::document::{OCI_INDEX, OCI_MANIFEST};
use crate::image::policy::bundle::SIGNED;
use crate::image::policy::bundle::tests::{bundle, statement};
use crate::image::policy::tests::{Signer, payload};
use crate::image::tests::server::{Reply, Request, descriptor};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const NAME: &str = "images.example/app:v1";

/// How a registry tells what refers to a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Api,
    /// One entry a page.
    Pages,
    Tag,
    /// The API's address shows a page for people; the tag is what counts.
    Website,
}

/// What refers to one digest.
#[derive(Clone)]
struct Referring {
    way: Way,
    subject: Digest,
    /// What the list says that every artifact is, in place of what it is.
    said: Option<&'static str>,
    entries: Vec<Value>,
    /// By their last part of the path.
    content: Vec<(String, Vec<u8>)>,
}

impl Referring {
    fn new(way: Way, subject: &Digest) -> Self {
        Self { way, subject: subject.clone(), said: None, entries: Vec::new(), content: Vec::new() }
    }

    /// An artifact with one layer.
    fn add(self, artifact: &str, layer_type: &str, layer: Vec<u8>) -> Self {
        let described = descriptor(layer_type, &layer);
        self.add_layer(artifact, described, layer)
    }

    fn add_layer(mut self, artifact: &str, described: Value, layer: Vec<u8>) -> Self {
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": artifact,
            "config": descriptor("application/vnd.oci.empty.v1+json", b"{}"), "layers": [described],
            "subject": {"mediaType": OCI_MANIFEST, "digest": self.subject, "size": 1}})
        .to_string()
        .into_bytes();
        let mut entry = descriptor(OCI_MANIFEST, &manifest);
        entry["artifactType"] = json!(self.said.unwrap_or(artifact));
        self.entries.push(entry);
        self.content.push((Digest::of(&manifest).to_string(), manifest));
        self.content.push((Digest::of(&layer).to_string(), layer));
        self
    }

    fn index(entries: &[Value]) -> Reply {
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
        Reply::new(200, index.to_string()).with("content-type", OCI_INDEX)
    }

    fn answer(&self, request: &Request) -> Option<Reply> {
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        let last = path.rsplit('/').next()?;
        if path == format!("/v2/app/referrers/{}", self.subject) {
            let page = query.split('&').find_map(|part| part.strip_prefix("page=")?.parse::<usize>().ok()).unwrap_or(0);
            let next = format!("<http://evil.invalid/v2/app/referrers/x?page={}>; rel=\"next\"", page + 1);
            return Some(match self.way {
                Way::Api => Self::index(&self.entries),
                Way::Pages if page < self.entries.len() => Self::index(&self.entries[page..=page]).with("link", next),
                Way::Pages => Self::index(&[]),
                Way::Tag => Reply::new(404, "404 page not found"),
                Way::Website => Reply::new(200, "<html>").with("content-type", "text/html"),
            });
        }
        let tagged = matches!(self.way, Way::Tag | Way::Website);
        if tagged && last == format!("sha256-{}", self.subject.hex()) {
            return Some(Self::index(&self.entries));
        }
        let (_, bytes) = self.content.iter().find(|(name, _)| name == last)?;
        let kind = if path.contains("/manifests/") { OCI_MANIFEST } else { "application/octet-stream" };
        Some(Reply::new(200, bytes.clone()).with("content-type", kind))
    }
}

/// A room that takes images signed by this key only, of a registry that has these referrers.
async fn room(image: &TestImage, signer: &Signer, referring: Referring) -> anyhow::Result<(Room, Registry)> {
    let image = image.clone();
    let registry = Registry::start(move |request| {
        referring.answer(request).unwrap_or_else(|| image.answer(request, "app", &["v1"]))
    })
    .await;
    let conf = format!("[[registry]]\nprefix='images.example'\nlocation='{}'\ninsecure=true\n", registry.host());
    let room = Room::new(&conf).await?;
    let signed = json!({"type": "sigstoreSigned", "keyData": STANDARD.encode(signer.pem()),
        "signedIdentity": {"type": "matchRepository"}});
    std::fs::write(room.dir.path().join("policy.json"), json!({"default": [signed]}).to_string())?;
    Ok((room, registry))
}

fn let_unnamed_count(room: &Room) {
    let settings = Settings {
        unnamed_signatures: true,
        patience: room.images.0.settings.load().patience.clone(),
        ..Settings::of(&settings(room.dir.path(), &[]))
    };
    room.images.0.settings.store(Arc::new(settings));
}

#[tokio::test]
async fn a_bundle_that_refers_to_the_image_lets_it_in() -> anyhow::Result<()> {
    let image = TestImage::new("bundled");
    let signer = Signer::new();
    let digest = image.digest();
    for way in [Way::Api, Way::Pages, Way::Tag, Way::Website] {
        // Others refer to the image too, before and after: what is in it, what is broken, and a signature of someone else.
        let referring = Referring::new(way, &digest)
            .add("application/spdx+json", "application/spdx+json", b"{}".to_vec())
            .add(BUNDLE, BUNDLE, b"no bundle".to_vec())
            .add(BUNDLE, BUNDLE, bundle(&Signer::new(), &statement(Some("images.example/app"), &digest)))
            .add(BUNDLE, BUNDLE, bundle(&signer, &statement(Some("images.example/app"), &digest)))
            .add(BUNDLE, BUNDLE, b"no bundle either".to_vec());
        let (room, registry) = room(&image, &signer, referring).await?;
        assert_eq!(room.pull(NAME).await?.id, image.id(), "{way:?}");
        assert_eq!(registry.count("spdx"), 0);
        assert_eq!(registry.count("/referrers/"), if way == Way::Pages { 6 } else { 1 }, "{way:?}");
        // What is here is asked for again by name, and judged again.
        room.pull(NAME).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_list_that_tells_the_config_for_the_artifact_is_understood() -> anyhow::Result<()> {
    let image = TestImage::new("config");
    let signer = Signer::new();
    // As one widely used implementation of the API does.
    let said = Some("application/vnd.oci.empty.v1+json");
    let referring = Referring { said, ..Referring::new(Way::Api, &image.digest()) }
        .add("application/spdx+json", "application/spdx+json", b"{}".to_vec())
        .add(BUNDLE, BUNDLE, bundle(&signer, &statement(Some("images.example/app"), &image.digest())));
    let (room, _registry) = room(&image, &signer, referring).await?;
    assert_eq!(room.pull(NAME).await?.id, image.id());
    Ok(())
}

#[tokio::test]
async fn each_page_is_asked_for_in_the_name_of_the_registry_that_a_mirror_stands_for() -> anyhow::Result<()> {
    let image = TestImage::new("mirrored");
    let signer = Signer::new();
    let referring = Referring::new(Way::Pages, &image.digest())
        .add("application/spdx+json", "application/spdx+json", b"{}".to_vec())
        .add(BUNDLE, BUNDLE, bundle(&signer, &statement(Some("images.example/app"), &image.digest())));
    let (room, registry) = room(&image, &signer, referring).await?;
    std::fs::write(room.dir.path().join("registries.conf"), "")?;
    let folder = room.dir.path().join("certs.d/images.example");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("hosts.toml"), format!("server = 'http://{}'\n", registry.host()))?;
    assert_eq!(room.pull(NAME).await?.id, image.id());
    assert_eq!(registry.count("/referrers/"), 3);
    assert_eq!(registry.count("?ns=images.example&page="), 2);
    assert!(registry.seen().iter().all(|request| request.path.contains("?ns=images.example")), "{:?}", registry.seen());
    Ok(())
}

#[tokio::test]
async fn the_bundle_of_an_index_counts_for_what_it_names() -> anyhow::Result<()> {
    let image = TestImage::new("index");
    let signer = Signer::new();
    let index = Digest::of(&image.index);
    let signed = bundle(&signer, &statement(Some("images.example/app"), &index));
    let (room, _registry) = room(&image, &signer, Referring::new(Way::Api, &index).add(BUNDLE, BUNDLE, signed)).await?;
    assert_eq!(room.pull("images.example/app:index").await?.id, image.id());
    assert!(room.refused(NAME).await.contains("there is no signature for"));
    Ok(())
}

#[tokio::test]
async fn a_simple_signing_text_may_refer_too() -> anyhow::Result<()> {
    let image = TestImage::new("simple");
    let signer = Signer::new();
    let text = payload("images.example/app", &image.digest());
    let mut layer = descriptor("application/vnd.dev.cosign.simplesigning.v1+json", &text);
    layer["annotations"] = json!({"dev.cosignproject.cosign/signature": STANDARD.encode(signer.sign(&text))});
    let referring = Referring::new(Way::Api, &image.digest());
    let referring = referring.add_layer("application/vnd.dev.cosign.artifact.sig.v1+json", layer, text);
    let (room, _registry) = room(&image, &signer, referring).await?;
    assert_eq!(room.pull(NAME).await?.id, image.id());
    Ok(())
}

#[tokio::test]
async fn what_refers_and_does_not_sign_this_image_lets_nothing_in() -> anyhow::Result<()> {
    let image = TestImage::new("refused");
    let (signer, digest) = (Signer::new(), image.digest());
    let named = |name: &str, digest: &Digest| statement(Some(name), digest);
    let good = named("images.example/app", &digest);
    let other_kind = String::from_utf8(good.clone())?.replacen(SIGNED, "https://slsa.dev/provenance/v1", 1);
    let new = || Referring::new(Way::Api, &digest);
    for (want, referring) in [
        ("there is no signature for", new()),
        ("not made with a key of the policy", new().add(BUNDLE, BUNDLE, bundle(&Signer::new(), &good))),
        (
            "it is for sha256:",
            new().add(BUNDLE, BUNDLE, bundle(&signer, &named("images.example/app", &Digest::of(b"x")))),
        ),
        (
            "it is for images.example/other",
            new().add(BUNDLE, BUNDLE, bundle(&signer, &named("images.example/other", &digest))),
        ),
        ("a statement of another kind", new().add(BUNDLE, BUNDLE, bundle(&signer, other_kind.as_bytes()))),
        ("names no repository", new().add(BUNDLE, BUNDLE, bundle(&signer, &statement(None, &digest)))),
        ("a referrer cannot be read: a signed text is larger", new().add(BUNDLE, BUNDLE, vec![b' '; 300 * 1024])),
        // What an artifact says of itself decides whether it is looked at.
        ("there is no signature for", new().add("text/plain", BUNDLE, bundle(&signer, &good))),
    ] {
        let (room, registry) = room(&image, &signer, referring).await?;
        let error = room.refused(NAME).await;
        assert!(error.starts_with("SignatureValidationFailed: ") && error.contains(want), "{want}: {error}");
        assert_eq!(registry.count(&image.blob(0)) + registry.count(&image.blob(1)), 0, "a layer was fetched");
        room.assert_clean().await;
    }
    Ok(())
}

#[tokio::test]
async fn a_signature_without_a_name_counts_when_the_operator_says_so() -> anyhow::Result<()> {
    let image = TestImage::new("unnamed");
    let (signer, digest) = (Signer::new(), image.digest());
    let unnamed = |digest: &Digest| {
        Referring::new(Way::Api, &image.digest()).add(BUNDLE, BUNDLE, bundle(&signer, &statement(None, digest)))
    };
    let (good, _registry) = room(&image, &signer, unnamed(&digest)).await?;
    let error = good.refused(NAME).await;
    assert!(error.contains("image.unnamed_signatures"), "{error}");
    let_unnamed_count(&good);
    assert_eq!(good.pull(NAME).await?.id, image.id());
    // Still for its digest only, and a name that is there still counts.
    let (other, _registry) = room(&image, &signer, unnamed(&Digest::of(b"x"))).await?;
    let_unnamed_count(&other);
    assert!(other.refused(NAME).await.contains("it is for sha256:"));
    let named = statement(Some("images.example/other"), &digest);
    let named = Referring::new(Way::Api, &digest).add(BUNDLE, BUNDLE, bundle(&signer, &named));
    let (named, _registry) = room(&image, &signer, named).await?;
    let_unnamed_count(&named);
    assert!(named.refused(NAME).await.contains("it is for images.example/other"));
    Ok(())
}

#[tokio::test]
async fn a_list_of_referrers_without_end_or_sense_ends() -> anyhow::Result<()> {
    let image = TestImage::new("endless");
    let signer = Signer::new();
    type Answer = fn(usize) -> Reply;
    let many = |page: usize| {
        let entries: Vec<Value> =
            (0..100).map(|n| descriptor(OCI_MANIFEST, format!("{page} {n}").as_bytes())).collect();
        Referring::index(&entries).with("link", format!("</x?page={}>; rel=next", page + 1))
    };
    let cases: [(&str, usize, Answer); 5] = [
        // Each entry is asked for, up to the cap, and none is there.
        ("a referrer cannot be read: not found", 16, many),
        ("larger than 4194304 bytes", 1, |_| Reply {
            endless: true,
            ..Reply::new(200, vec![b' '; 65536]).with("content-type", OCI_INDEX)
        }),
        ("is not valid", 1, |_| Reply::new(200, "{").with("content-type", OCI_INDEX)),
        ("access denied", 1, |_| Reply::new(403, "")),
        ("HTTP 500", 3, |_| Reply::new(500, "")),
    ];
    for (want, requests, answer) in cases {
        let served = image.clone();
        let registry = Registry::start(move |request| {
            if !request.path.contains("/referrers/") {
                return served.answer(request, "app", &["v1"]);
            }
            let page = request.path.split_once("page=").and_then(|(_, page)| page.parse().ok()).unwrap_or(0);
            answer(page)
        })
        .await;
        let room = Room::trusting(&[&registry]).await?;
        let signed = json!({"type": "sigstoreSigned", "keyData": STANDARD.encode(signer.pem())});
        std::fs::write(room.dir.path().join("policy.json"), json!({"default": [signed]}).to_string())?;
        let error = room.refused(&registry.name("app:v1")).await;
        assert!(error.contains(want), "{want}: {error}");
        assert_eq!(registry.count("/referrers/"), requests, "{want}");
        assert!(registry.seen().len() < 100, "{want}: {} requests", registry.seen().len());
        room.assert_clean().await;
    }
    Ok(())
}
