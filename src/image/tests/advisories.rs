//! What registries have done to others before, by the id of the advisory. The effect is asserted: who was asked for what, and
//! what is left. (More are with what they are about: tests/cves.md has the list.)

use super::*;
use crate::image::document::{MAX_CONFIG, MAX_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};
use crate::image::tests::hostile::{changed, manifest, on};
use crate::image::tests::server::{Reply, Request, Then, descriptor};
use serde_json::json;

/// A descriptor's own `urls` lead to another host, which asks for credentials.
#[tokio::test]
async fn cve_2020_15157_foreign_urls_of_a_layer_are_never_asked() -> anyhow::Result<()> {
    for challenge in ["Basic realm=\"x\"", "Bearer realm=\"http://HERE/token\""] {
        let evil = Registry::start(move |request| {
            let here = request.header("host").unwrap_or_default();
            Reply::new(401, "").with("www-authenticate", challenge.replace("HERE", here))
        })
        .await;
        let url = format!("http://{}/x", evil.host());
        let (registry, _) = changed(move |r, i| {
            let mut document: serde_json::Value = serde_json::from_slice(&i.manifest).ok()?;
            document["layers"][1]["urls"] = json!([url]);
            document["config"]["urls"] = json!([url]);
            manifest(r, document.to_string(), OCI_MANIFEST).or_else(|| on(r, &i.blob(1), Reply::new(404, "")))
        })
        .await;
        let room = Room::trusting(&[&registry, &evil]).await?;
        let auth = AuthConfig { username: "canary".into(), password: "canary".into(), ..AuthConfig::default() };
        let error = room.pull_as(&registry.name("app:v1"), Some(auth)).await.expect_err("the layer is not there");
        assert!(error.to_string().contains("not found"), "{error}");
        assert!(evil.seen().is_empty(), "{:?}", evil.seen());
        room.assert_clean().await;
    }
    Ok(())
}

/// One body that is an image to one reader and an index to another: no reading of it is taken, and nothing that it names
/// is asked for.
#[tokio::test]
async fn cve_2021_41190_a_document_has_one_meaning() -> anyhow::Result<()> {
    type Make = fn(&TestImage) -> (String, &'static str);
    let cases: [Make; 7] = [
        // Both shapes in one.
        |i| (shaped(&i.manifest, |d| d["manifests"] = json!([])), OCI_MANIFEST),
        |i| (shaped(&i.manifest, |d| d["manifests"] = json!([descriptor(OCI_MANIFEST, b"")])), OCI_INDEX),
        |i| (shaped(&i.index, |d| d["layers"] = json!([])), OCI_INDEX),
        |i| (shaped(&i.index, |d| d["config"] = json!(descriptor(OCI_CONFIG, b"{}"))), OCI_INDEX),
        // One type inside, another outside.
        |i| (String::from_utf8_lossy(&i.manifest).into_owned(), OCI_INDEX),
        |i| (String::from_utf8_lossy(&i.index).into_owned(), OCI_MANIFEST),
        // No type inside, and the shape of the other.
        |i| (shaped(&i.index, |d| d["mediaType"] = json!(null)), OCI_MANIFEST),
    ];
    for (n, make) in cases.into_iter().enumerate() {
        let (registry, _) = changed(move |r, i| {
            let (body, kind) = make(i);
            manifest(r, body, kind)
        })
        .await;
        let room = Room::trusting(&[&registry]).await?;
        let error = room.refused(&registry.name("app:v1")).await;
        assert!(error.contains(&registry.host()), "{n}: {error}");
        assert_eq!((registry.count("/manifests/"), registry.count("/blobs/")), (1, 0), "{n}: {error}");
        room.assert_clean().await;
    }
    // An index that promises a manifest and leads to an index, and the other way round.
    for wrong in [OCI_INDEX, "application/vnd.docker.distribution.manifest.list.v2+json"] {
        let (registry, _) = changed(move |r, i| {
            let index = String::from_utf8_lossy(&i.index).replacen(OCI_MANIFEST, wrong, 3);
            manifest(r, index, OCI_INDEX)
        })
        .await;
        let room = Room::trusting(&[&registry]).await?;
        let error = room.refused(&registry.name("app:v1")).await;
        assert!(error.contains("media types contradict each other"), "{error}");
        assert_eq!(registry.count("/blobs/"), 0);
        room.assert_clean().await;
    }
    Ok(())
}

fn shaped(document: &[u8], change: fn(&mut serde_json::Value)) -> String {
    let mut document = serde_json::from_slice(document).expect("our own");
    change(&mut document);
    document.to_string()
}

/// Documents without end, by a length that is told, by one that is not, and by bytes that drip. None is read for longer than
/// its cap or its clock.
#[tokio::test]
async fn cve_2020_1702_documents_have_an_end() -> anyhow::Result<()> {
    type Change = fn(&Request, &TestImage) -> Option<Reply>;
    let cases: [(&str, Change); 6] = [
        ("larger than 4194304 bytes", |r, _| manifest(r, vec![b' '; MAX_MANIFEST + 1], OCI_MANIFEST)),
        ("larger than 4194304 bytes", |r, _| {
            on(r, "/manifests/", Reply { endless: true, ..Reply::new(200, vec![b' '; 65536]) })
        }),
        ("the image config is larger than 8388608 bytes", |r, i| {
            let grown = shaped(&i.manifest, |d| d["config"]["size"] = json!(MAX_CONFIG + 1));
            manifest(r, grown, OCI_MANIFEST)
        }),
        ("the image config is larger than", |r, i| {
            on(r, i.id().as_str(), Reply { endless: true, ..Reply::new(200, vec![b' '; 65536]) })
        }),
        ("too slow: ", |r, i| {
            on(r, "/manifests/", Reply { cut: Some((1, Then::Drip)), ..Reply::new(200, i.manifest.clone()) })
        }),
        ("too slow: ", |r, i| {
            on(r, i.id().as_str(), Reply { cut: Some((1, Then::Drip)), ..Reply::new(200, i.config.clone()) })
        }),
    ];
    for (want, change) in cases {
        let (registry, image) = changed(change).await;
        let room = Room::trusting(&[&registry]).await?;
        let error = room.refused(&registry.name("app:v1")).await;
        assert!(error.contains(want) && error.contains(&registry.host()), "{want}: {error}");
        assert_eq!(registry.count(&image.blob(0)) + registry.count(&image.blob(1)), 0, "a layer was fetched");
        room.assert_clean().await;
    }
    Ok(())
}

/// A digest is a part of URLs and of paths, so nothing else may be taken for one.
#[tokio::test]
async fn cve_2024_3727_what_is_no_digest_leads_nowhere() -> anyhow::Result<()> {
    let hex = "0123456789abcdef".repeat(4);
    for bad in [
        "sha256:../../../../../../tmp/x".to_owned(),
        format!("sha256:{}", hex.to_uppercase()),
        format!("sha256:{}", &hex[..63]),
        format!("sha256:{hex}0"),
        format!("sha256:{hex}/../x"),
        format!("md5:{}", &hex[..32]),
        format!("sha512:{hex}{hex}"),
        format!("../sha256:{hex}"),
        "sha256:".to_owned(),
        String::new(),
    ] {
        // In the places that a registry fills: a layer, the config, an entry of an index, a diff id.
        for place in ["layer", "config", "entry", "diff id"] {
            let written = bad.clone();
            let (registry, _) = changed(move |r, i| {
                let change = |document: &[u8], at: &str| -> String {
                    let mut document: serde_json::Value = serde_json::from_slice(document).expect("our own");
                    *document.pointer_mut(at).expect("it is there") = json!(written);
                    document.to_string()
                };
                match place {
                    "layer" => manifest(r, change(&i.manifest, "/layers/1/digest"), OCI_MANIFEST),
                    "config" => manifest(r, change(&i.manifest, "/config/digest"), OCI_MANIFEST),
                    "entry" => manifest(r, change(&i.index, "/manifests/1/digest"), OCI_INDEX),
                    _ => {
                        let config = change(&i.config, "/rootfs/diff_ids/1").into_bytes();
                        let mut document: serde_json::Value = serde_json::from_slice(&i.manifest).expect("our own");
                        document["config"] = descriptor(OCI_CONFIG, &config);
                        let digest = Digest::of(&config);
                        manifest(r, document.to_string(), OCI_MANIFEST)
                            .or_else(|| on(r, digest.as_str(), Reply::new(200, config)))
                    }
                }
            })
            .await;
            let room = Room::trusting(&[&registry]).await?;
            let error = room.refused(&registry.name("app:v1")).await;
            assert!(error.contains("not a digest") || error.contains("diff_ids"), "{place} {bad:?}: {error}");
            let odd = |request: &Request| request.path.contains("..") || request.path.ends_with(&format!("/{bad}"));
            assert!(!registry.seen().iter().any(odd), "{place} {bad:?}: {:?}", registry.seen());
            room.assert_clean().await;
        }
        // And from a client.
        let room = Room::new("").await?;
        let error = room.pull(&format!("images.example/app@{bad}")).await.expect_err("no digest");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(matches!(room.images.find(&format!("images.example/app@{bad}")), Err(_) | Ok(None)));
        room.assert_clean().await;
    }
    Ok(())
}
