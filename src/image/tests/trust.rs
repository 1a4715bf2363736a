//! Policies and signatures, against a registry that serves both.

use super::*;
use crate::image::document::{OCI_CONFIG, OCI_MANIFEST};
use crate::image::policy::tests::{Signer, payload};
use crate::image::tests::server::{Reply, Request, descriptor};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

/// Signatures of one digest, as a registry has them.
#[derive(Clone, Default)]
struct Signatures {
    of: Option<Digest>,
    signed: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Signatures {
    fn add(mut self, of: &Digest, text: Vec<u8>, signature: Vec<u8>) -> Self {
        self.of = Some(of.clone());
        self.signed.push((text, signature));
        self
    }

    fn answer(&self, request: &Request) -> Option<Reply> {
        let of = self.of.as_ref()?;
        if request.path.ends_with(&format!("/manifests/sha256-{}.sig", of.hex())) {
            let layers: Vec<_> = self
                .signed
                .iter()
                .map(|(text, signature)| {
                    let mut layer = descriptor("application/vnd.dev.cosign.simplesigning.v1+json", text);
                    layer["annotations"] = json!({"dev.cosignproject.cosign/signature": STANDARD.encode(signature)});
                    layer
                })
                .collect();
            let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST,
                "config": descriptor(OCI_CONFIG, b"{}"), "layers": layers});
            return Some(Reply::new(200, manifest.to_string()).with("content-type", OCI_MANIFEST));
        }
        let blob = |text: &Vec<u8>| request.path.ends_with(&format!("/blobs/{}", Digest::of(text)));
        self.signed.iter().find(|(text, _)| blob(text)).map(|(text, _)| Reply::new(200, text.clone()))
    }
}

async fn serving(image: &TestImage, signatures: Signatures) -> Registry {
    let image = image.clone();
    Registry::start(move |request| signatures.answer(request).unwrap_or_else(|| image.answer(request, "app", &["v1"])))
        .await
}

fn policy(room: &Room, name: &str, default: &serde_json::Value) -> anyhow::Result<()> {
    let path = room.dir.path().join(name);
    std::fs::create_dir_all(path.parent().expect("a folder"))?;
    Ok(std::fs::write(path, json!({"default": [default]}).to_string())?)
}

fn signed_by(signer: &Signer) -> serde_json::Value {
    json!({"type": "sigstoreSigned", "keyData": STANDARD.encode(signer.pem()),
        "signedIdentity": {"type": "matchRepository"}})
}

#[tokio::test]
async fn a_good_signature_lets_an_image_in_and_no_other_does() -> anyhow::Result<()> {
    let image = TestImage::new("signed");
    let (ours, theirs) = (Signer::new(), Signer::new());
    // The repository is led elsewhere, so that the signed name is known before the port is.
    let name = "images.example/app:v1";
    let digest = image.digest();
    let of = |signer: &Signer, name: &str, digest: &Digest| {
        let text = payload(name, digest);
        let signature = signer.sign(&text);
        (text, signature)
    };
    let other = Digest::of(b"other");
    let index = Digest::of(&image.index);
    let none = Signatures::default();
    let add = |(text, signature): (Vec<u8>, Vec<u8>)| Signatures::default().add(&digest, text, signature);
    let mut forged = of(&ours, "images.example/app", &digest);
    forged.0.push(b' ');
    let both = add(of(&theirs, "images.example/app", &digest));
    let (text, signature) = of(&ours, "images.example/app", &digest);
    let both = both.add(&digest, text, signature);
    for (signatures, want) in [
        (none, Some("there is no signature for")),
        (add(of(&theirs, "images.example/app", &digest)), Some("not made with a key of the policy")),
        (add(forged), Some("not made with a key of the policy")),
        (add(of(&ours, "images.example/app", &other)), Some("it is for sha256:")),
        (add(of(&ours, "images.example/other", &digest)), Some("it is for images.example/other")),
        (add(of(&ours, "images.example/app", &digest)), None),
        (both, None),
    ] {
        let registry = serving(&image, signatures).await;
        let conf = format!("[[registry]]\nprefix='images.example'\nlocation='{}'\ninsecure=true\n", registry.host());
        let room = Room::new(&conf).await?;
        policy(&room, "policy.json", &signed_by(&ours))?;
        match want {
            None => {
                room.pull(name).await?;
                // Again, now that it is here.
                room.pull(name).await?;
            }
            Some(want) => {
                let error = room.refused(name).await;
                assert!(error.starts_with("SignatureValidationFailed: ") && error.contains(want), "{want}: {error}");
                assert!(error.contains("policy.json"), "{error}");
                assert_eq!(registry.count(&image.blob(0)) + registry.count(&image.blob(1)), 0, "a layer was fetched");
                room.assert_clean().await;
            }
        }
    }
    // The signature of the index that was asked for counts too.
    let (text, signature) = of(&ours, "images.example/app", &index);
    let registry = serving(&image, Signatures::default().add(&index, text, signature)).await;
    let conf = format!("[[registry]]\nprefix='images.example'\nlocation='{}'\ninsecure=true\n", registry.host());
    let room = Room::new(&conf).await?;
    policy(&room, "policy.json", &signed_by(&ours))?;
    room.pull("images.example/app:index").await?;
    // By the same registry's tag of the manifest alone nobody vouches for it.
    assert!(room.refused(name).await.starts_with("SignatureValidationFailed: "));
    Ok(())
}

#[tokio::test]
async fn an_image_that_is_here_gets_no_name_that_the_policy_refuses() -> anyhow::Result<()> {
    let (registry, _) = good("here").await;
    let room = Room::trusting(&[&registry]).await?;
    room.pull(&registry.name("app:v1")).await?;
    policy(&room, "policy.json", &signed_by(&Signer::new()))?;
    let error = room.refused(&registry.name("app:v1")).await;
    assert!(error.starts_with("SignatureValidationFailed: "), "{error}");
    // What is here stays: the policy is about pulls.
    assert_eq!(room.images.list(None).len(), 1);
    Ok(())
}

#[tokio::test]
async fn what_can_never_be_met_is_refused_before_anybody_is_asked() -> anyhow::Result<()> {
    let (registry, _) = good("never").await;
    let room = Room::trusting(&[&registry]).await?;
    for (requirement, want) in [
        (json!({"type": "reject"}), "rejects it"),
        (json!({"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}), "GPG"),
        (json!({"type": "sigstoreSigned", "fulcio": {}, "rekorPublicKeyPath": "/r"}), "Fulcio"),
    ] {
        policy(&room, "policy.json", &requirement)?;
        let error = room.refused(&registry.name("app:v1")).await;
        assert!(error.starts_with("SignatureValidationFailed: ") && error.contains(want), "{error}");
    }
    assert!(registry.seen().is_empty());
    room.assert_clean().await;
    Ok(())
}

#[tokio::test]
async fn a_namespace_may_have_a_policy_of_its_own() -> anyhow::Result<()> {
    let (registry, _) = good("namespaced").await;
    let room = Room::trusting(&[&registry]).await?;
    policy(&room, "policies/strict.json", &json!({"type": "reject"}))?;
    let pull = |namespace: &str| {
        let namespace = Some(namespace.to_owned());
        room.images.pull(PullRequest { reference: registry.name("app:v1"), auth: None, namespace })
    };
    let error = pull("strict").await.expect_err("rejected").to_string();
    assert!(error.contains("strict.json"), "{error}");
    pull("other").await?;
    // A broken one keeps what it said, a new broken one refuses.
    std::fs::write(room.dir.path().join("policies/strict.json"), "{")?;
    std::fs::write(room.dir.path().join("policies/new.json"), "{")?;
    assert!(pull("strict").await.is_err_and(|error| error.to_string().contains("rejects it")));
    let error = pull("new").await.expect_err("a policy that nobody can read").to_string();
    assert!(error.starts_with("SignatureValidationFailed: ") && error.contains("new.json"), "{error}");
    assert_eq!(room.images.unusable_files().len(), 2);
    pull("other").await?;
    Ok(())
}

#[tokio::test]
async fn a_registry_that_fails_to_give_signatures_is_named() -> anyhow::Result<()> {
    let image = TestImage::new("failing");
    let served = image.clone();
    let registry = Registry::start(move |request| {
        if request.path.contains(".sig") { Reply::new(503, "") } else { served.answer(request, "app", &["v1"]) }
    })
    .await;
    let room = Room::trusting(&[&registry]).await?;
    policy(&room, "policy.json", &signed_by(&Signer::new()))?;
    let error = room.refused(&registry.name("app:v1")).await;
    assert!(error.starts_with("RegistryUnavailable: the signatures of") && error.contains("503"), "{error}");
    room.assert_clean().await;
    Ok(())
}
