//! Registries that fail, lie or stall.

use super::*;
use crate::image::document::{DOCKER_MANIFEST, MAX_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};
use crate::image::tests::server::{Reply, Request, Then, descriptor, docker_config};
use serde_json::json;

/// A registry that serves a good image except where `change` says otherwise.
pub(super) async fn changed(
    change: impl Fn(&Request, &TestImage) -> Option<Reply> + Send + Sync + 'static,
) -> (Registry, TestImage) {
    let image = TestImage::new("hostile");
    let served = image.clone();
    let registry = Registry::start(move |request| {
        change(request, &served).unwrap_or_else(|| served.answer(request, "app", &["v1"]))
    })
    .await;
    (registry, image)
}

type Change = fn(&Request, &TestImage) -> Option<Reply>;

pub(super) fn on(request: &Request, part: &str, reply: Reply) -> Option<Reply> {
    request.path.contains(part).then_some(reply)
}

pub(super) fn manifest(request: &Request, body: impl Into<Vec<u8>>, kind: &str) -> Option<Reply> {
    on(request, "/manifests/v1", Reply::new(200, body).with("content-type", kind))
}

fn with_layer_type(image: &TestImage, kind: &str) -> Vec<u8> {
    let layers: Vec<_> = image.layers.iter().map(|blob| descriptor(kind, blob)).collect();
    json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(OCI_CONFIG, &image.config), "layers": layers})
        .to_string()
        .into_bytes()
}

const UNAVAILABLE: &str = "RegistryUnavailable: ";

/// What the error must say, how it must begin, and the registry's answer.
const CASES: &[(&str, &str, Change)] = &[
    ("not found", "", |r, _| on(r, "/manifests/", Reply::new(404, ""))),
    ("HTTP 500", UNAVAILABLE, |r, _| on(r, "/manifests/", Reply::new(500, ""))),
    ("too many requests", UNAVAILABLE, |r, _| on(r, "/manifests/", Reply::new(429, ""))),
    ("it asks to wait 3600 s", UNAVAILABLE, |r, _| {
        on(r, "/manifests/", Reply::new(429, "").with("retry-after", "3600"))
    }),
    ("access denied (HTTP 403, DENIED)", "", |r, _| {
        on(r, "/manifests/", Reply::new(403, r#"{"errors":[{"code":"DENIED"}]}"#))
    }),
    ("HTTP 418", "", |r, _| on(r, "/manifests/", Reply::new(418, ""))),
    ("larger than 4194304 bytes", "", |r, _| manifest(r, vec![b' '; MAX_MANIFEST + 1], OCI_MANIFEST)),
    ("larger than 4194304 bytes", "", |r, _| {
        manifest(r, vec![b' '; MAX_MANIFEST + 1], OCI_MANIFEST).map(|mut reply| {
            // Chunks without a length in advance must be counted too; here the length lies.
            reply.length = Some(MAX_MANIFEST + 2);
            reply
        })
    }),
    ("both as an index and as a manifest", "", |r, i| {
        let text = String::from_utf8_lossy(&i.manifest).replacen('{', "{\"manifests\":[],", 1);
        manifest(r, text, OCI_MANIFEST)
    }),
    ("contradict each other", "", |r, i| manifest(r, i.manifest.clone(), OCI_INDEX)),
    ("contradict each other", "", |r, i| manifest(r, i.manifest.clone(), DOCKER_MANIFEST)),
    ("not that of an image manifest", "", |r, _| manifest(r, r#"{"schemaVersion":2,"mediaType":"text/odd"}"#, "")),
    ("is not valid", "", |r, _| manifest(r, "<html>", "text/html")),
    ("schema 1", "", |r, _| manifest(r, r#"{"schemaVersion":1,"fsLayers":[]}"#, "")),
    ("has the digest", "", |r, i| {
        manifest(r, i.manifest.clone(), OCI_MANIFEST)
            .map(|reply| reply.with("docker-content-digest", Digest::of(b"other").to_string()))
    }),
    ("is not a digest", "", |r, i| {
        let text = String::from_utf8_lossy(&i.manifest).replace(i.id().as_str(), "sha256:../../../etc/passwd");
        manifest(r, text, OCI_MANIFEST)
    }),
    ("is not a digest", "", |r, i| {
        let layer = Digest::of(&i.layers[0]).to_string();
        manifest(r, String::from_utf8_lossy(&i.manifest).replace(&layer, &layer.to_uppercase()), OCI_MANIFEST)
    }),
    ("encrypted layers", "", |r, i| {
        manifest(r, with_layer_type(i, "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), OCI_MANIFEST)
    }),
    ("outside the registry", "", |r, i| {
        manifest(r, with_layer_type(i, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"), OCI_MANIFEST)
    }),
    ("the config names 2 layers, the manifest 0", "", |r, i| {
        let config = descriptor(OCI_CONFIG, &i.config);
        manifest(r, json!({"schemaVersion": 2, "config": config, "layers": []}).to_string(), OCI_MANIFEST)
    }),
    ("the image config has", "", |r, i| {
        on(r, &format!("/blobs/{}", i.id()), Reply::new(200, vec![b'x'; i.config.len()]))
    }),
    ("the image config has 1 bytes", "", |r, i| on(r, &format!("/blobs/{}", i.id()), Reply::new(200, "x"))),
    ("the layer has the digest", "", |r, i| on(r, &i.blob(1), Reply::new(200, flipped(&i.layers[1])))),
    ("not found", "", |r, i| on(r, &i.blob(1), Reply::new(404, ""))),
    ("the layer has", "", |r, i| on(r, &i.blob(1), Reply::new(200, [&i.layers[1][..], b"more"].concat()))),
    ("the body ended after", UNAVAILABLE, |r, i| on(r, &i.blob(1), Reply::new(200, &i.layers[1][..100_000]))),
    ("too many in a row", "", |r, _| on(r, "/v2/", Reply::new(307, "").with("location", &*r.path))),
    ("another protocol", "", |r, _| on(r, "/v2/", Reply::new(307, "").with("location", "file:///etc/passwd"))),
    ("user information", "", |r, _| on(r, "/v2/", Reply::new(307, "").with("location", "http://u:p@127.0.0.1/"))),
    ("no usable location", "", |r, _| on(r, "/v2/", Reply::new(302, ""))),
    ("no answer and no byte for 500 ms", UNAVAILABLE, |r, i| {
        on(r, &i.blob(0), Reply { cut: Some((1000, Then::Hang)), ..Reply::new(200, i.layers[0].clone()) })
    }),
    ("no answer and no byte for 500 ms", UNAVAILABLE, |r, i| {
        on(r, "/manifests/", Reply { cut: Some((1, Then::Hang)), ..Reply::new(200, i.manifest.clone()) })
    }),
    ("the connection broke", UNAVAILABLE, |r, i| {
        on(r, "/manifests/", Reply { cut: Some((1, Then::Close)), ..Reply::new(200, i.manifest.clone()) })
    }),
    ("the connection broke", UNAVAILABLE, |r, i| {
        on(r, "/manifests/", Reply { cut: Some((1, Then::Reset)), ..Reply::new(200, i.manifest.clone()) })
    }),
    // A blob that is reset each time, however far it came.
    ("the connection broke", UNAVAILABLE, |r, i| {
        on(r, &i.blob(1), Reply { cut: Some((0, Then::Reset)), ..Reply::new(200, i.layers[1].clone()) })
    }),
    ("larger than 4194304 bytes", "", |r, _| {
        on(r, "/manifests/", Reply { endless: true, ..Reply::new(200, vec![b' '; 65536]) })
    }),
    ("the image config is larger than", "", |r, i| {
        on(r, &format!("/blobs/{}", i.id()), Reply { endless: true, ..Reply::new(200, vec![b' '; 65536]) })
    }),
    ("the layer has", "", |r, i| on(r, &i.blob(1), Reply { endless: true, ..Reply::new(200, i.layers[1].clone()) })),
    // An error's body is looked into for a code, and not for longer than that takes.
    ("HTTP 418", "", |r, _| on(r, "/manifests/", Reply { endless: true, ..Reply::new(418, vec![b' '; 65536]) })),
    ("message head is too large", UNAVAILABLE, |r, i| {
        manifest(r, i.manifest.clone(), OCI_MANIFEST).map(|reply| reply.with("x-large", "x".repeat(4 << 20)))
    }),
    ("the connection broke", UNAVAILABLE, |r, i| {
        manifest(r, i.manifest.clone(), OCI_MANIFEST)
            .map(|reply| (0..10_000).fold(reply, |reply, n| reply.with(&format!("x-{n}"), "x")))
    }),
    ("nested too deeply", "", |r, _| nested(r, 10)),
    // By digest nothing can name itself: a server that answers so lies.
    ("has the digest", "", |r, _| {
        let own = |digest: &str| {
            let entry = json!({"mediaType": OCI_INDEX, "digest": digest, "size": 300});
            let mut body = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).to_string();
            body.extend(std::iter::repeat_n(' ', 300 - body.len()));
            body
        };
        on(r, "/manifests/", Reply::new(200, own(Digest::of(b"me").as_str())).with("content-type", OCI_INDEX))
    }),
    ("there is: linux/mips, ", "", |r, _| {
        on(r, "/manifests/", Reply::new(200, crowd(None)).with("content-type", OCI_INDEX))
    }),
];

/// An index that holds one that holds one, so many deep, each under its right digest.
fn nested(request: &Request, depth: usize) -> Option<Reply> {
    let mut body = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).to_string();
    let mut all = vec![body.clone()];
    for _ in 0..depth {
        let entry = descriptor(OCI_INDEX, body.as_bytes());
        body = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).to_string();
        all.push(body.clone());
    }
    let by_digest = all.iter().find(|body| request.path.ends_with(Digest::of(body.as_bytes()).as_str()));
    on(request, "/manifests/", Reply::new(200, by_digest.unwrap_or(&body).clone()).with("content-type", OCI_INDEX))
}

/// An index of 10,000 manifests for another machine, and if there is one, one for this machine at its end.
fn crowd(manifest: Option<&[u8]>) -> String {
    let other = |n: usize| {
        let mut entry = descriptor(OCI_MANIFEST, n.to_string().as_bytes());
        entry["platform"] = json!({"os": "linux", "architecture": "mips"});
        entry
    };
    let own = manifest.map(|manifest| descriptor(OCI_MANIFEST, manifest));
    let entries: Vec<_> = (0..10_000).map(other).chain(own).collect();
    json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).to_string()
}

#[tokio::test]
async fn an_index_of_ten_thousand_leads_to_one_manifest() -> anyhow::Result<()> {
    let (registry, image) = changed(|r, i| manifest(r, crowd(Some(&i.manifest)), OCI_INDEX)).await;
    let room = Room::trusting(&[&registry]).await?;
    assert_eq!(room.pull(&registry.name("app:v1")).await?.id, image.id());
    assert_eq!((registry.count("/manifests/"), registry.count("/blobs/")), (2, 3));
    Ok(())
}

#[tokio::test]
async fn wrong_answers_are_named_and_leave_nothing() -> anyhow::Result<()> {
    for (want, begins, change) in CASES {
        let (registry, _) = changed(*change).await;
        let room = Room::trusting(&[&registry]).await?;
        let error = room.refused(&registry.name("app:v1")).await;
        assert!(error.contains(want) && error.starts_with(begins), "{want:?}: {error}");
        assert_eq!(error.starts_with(UNAVAILABLE), !begins.is_empty(), "{error}");
        assert!(error.contains(&registry.host()), "{error}");
        room.assert_clean().await;
    }
    Ok(())
}

/// The same bytes with the gzip header's time changed: unpacks just as well, but is other content.
fn flipped(blob: &[u8]) -> Vec<u8> {
    let mut other = blob.to_vec();
    other[4] ^= 1;
    other
}

#[tokio::test]
async fn an_index_without_this_machine_lists_what_there_is() -> anyhow::Result<()> {
    let (registry, _) = changed(|r, _| {
        let platform = json!({"os": "linux", "architecture": "mips"});
        let entry = json!({"mediaType": OCI_MANIFEST, "digest": Digest::of(b""), "size": 0, "platform": platform});
        manifest(r, json!({"schemaVersion": 2, "manifests": [entry]}).to_string(), OCI_INDEX)
    })
    .await;
    let room = Room::trusting(&[&registry]).await?;
    let error = room.refused(&registry.name("app:v1")).await;
    assert!(error.contains("there is: linux/mips"), "{error}");
    Ok(())
}

#[tokio::test]
async fn passing_failures_are_tried_again() -> anyhow::Result<()> {
    for (status, header) in [(500, "0"), (429, "0"), (503, "0"), (408, "0")] {
        let (registry, _) =
            changed(move |r, _| (r.number % 2 == 0).then(|| Reply::new(status, "").with("retry-after", header))).await;
        let room = Room::trusting(&[&registry]).await?;
        room.pull(&registry.name("app:v1")).await?;
    }
    // Final answers are not.
    let (registry, _) = changed(|r, _| on(r, "/manifests/", Reply::new(404, ""))).await;
    let room = Room::trusting(&[&registry]).await?;
    room.refused(&registry.name("app:v1")).await;
    assert_eq!(registry.seen().len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_broke() -> anyhow::Result<()> {
    for ranges in [true, false] {
        let (registry, image) = changed(move |r, i| {
            if !r.path.ends_with(&i.blob(1)) {
                return None;
            }
            let whole = Reply::new(200, i.layers[1].clone());
            match r.header("range") {
                None => Some(Reply { cut: Some((100_000, Then::Close)), ..whole }),
                Some(_) => (!ranges).then_some(whole),
            }
        })
        .await;
        let room = Room::trusting(&[&registry]).await?;
        room.pull(&registry.name("app:v1")).await?;
        let asked = registry.headers("range");
        assert!(asked.len() == 1 && asked[0].starts_with("bytes=") && asked[0] != "bytes=0-", "{asked:?}");
        assert_eq!((registry.count(&image.blob(1)), room.layers.stages()), (2, 2));
    }
    Ok(())
}

#[tokio::test]
async fn an_unpack_failure_ends_the_download_at_once() -> anyhow::Result<()> {
    // The server would stall after the garbage; the error must be the unpacker's, not the clock's.
    let (registry, _) = changed(|r, i| {
        let mut garbage = i.layers[1].clone();
        garbage[10..200].fill(0xff);
        on(r, &i.blob(1), Reply { cut: Some((150_000, Then::Hang)), ..Reply::new(200, garbage) })
    })
    .await;
    let room = Room::trusting(&[&registry]).await?;
    let error = room.refused(&registry.name("app:v1")).await;
    assert!(error.contains("unpacking failed"), "{error}");
    room.assert_clean().await;
    Ok(())
}

#[tokio::test]
async fn docker_types_plain_layers_and_no_layers_are_images_too() -> anyhow::Result<()> {
    let base = TestImage::new("docker");
    // The type says gzip, the bytes are plain: the first bytes decide.
    let plain = b"plain bytes".to_vec();
    let diff_id = Digest::of(&plain);
    let config = json!({"rootfs": {"type": "layers", "diff_ids": [diff_id]}}).to_string().into_bytes();
    let image = TestImage::assemble(vec![plain], vec![diff_id], config);
    let bare = TestImage::assemble(vec![], vec![], json!({"rootfs": {"diff_ids": []}}).to_string().into_bytes());
    let docker = String::from_utf8_lossy(&base.manifest)
        .replace(OCI_MANIFEST, DOCKER_MANIFEST)
        .replace(OCI_CONFIG, docker_config())
        .replace("application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip");
    let registry = Registry::start(move |request| {
        let docker = Reply::new(200, docker.clone()).with("content-type", DOCKER_MANIFEST);
        on(request, "/manifests/docker", docker).unwrap_or_else(|| {
            let answers = [
                base.answer(request, "app", &[]),
                image.answer(request, "app", &["plain"]),
                bare.answer(request, "app", &["bare"]),
            ];
            answers.into_iter().find(|reply| reply.status != 404).unwrap_or_else(|| Reply::new(404, ""))
        })
    })
    .await;
    let room = Room::trusting(&[&registry]).await?;
    assert_eq!(room.pull(&registry.name("app:docker")).await?.chain.len(), 2);
    assert_eq!(room.pull(&registry.name("app:plain")).await?.chain.len(), 1);
    let bare = room.pull(&registry.name("app:bare")).await?;
    assert!(bare.chain.is_empty() && bare.size > 0);
    Ok(())
}

#[tokio::test]
async fn a_config_larger_than_the_cap_is_not_even_asked_for() -> anyhow::Result<()> {
    let (registry, _) = changed(|r, i| {
        let mut document: serde_json::Value = serde_json::from_slice(&i.manifest).ok()?;
        document["config"]["size"] = json!(9 * 1024 * 1024);
        manifest(r, document.to_string(), OCI_MANIFEST)
    })
    .await;
    let room = Room::trusting(&[&registry]).await?;
    let error = room.refused(&registry.name("app:v1")).await;
    assert!(error.contains("the image config is larger"), "{error}");
    assert_eq!(registry.count("/blobs/"), 0);
    Ok(())
}

#[tokio::test]
async fn a_cheap_question_that_is_answered_otherwise_decides_nothing() -> anyhow::Result<()> {
    for status in [401, 403, 404, 405, 501] {
        let (registry, image) = changed(move |r, _| (r.method == "HEAD").then(|| Reply::new(status, ""))).await;
        let room = Room::trusting(&[&registry]).await?;
        for _ in 0..2 {
            assert_eq!(room.pull(&registry.name("app:v1")).await?.id, image.id(), "{status}");
        }
        // What a server says of itself may pass, and is asked again.
        let asked = if status < 500 { 1 } else { 3 };
        assert_eq!((registry.count("HEAD "), registry.count("GET /v2/app/manifests/")), (asked, 2), "{status}");
        // What is refused by the real one as well, is refused.
        let (registry, _) =
            changed(move |r, _| on(r, "/manifests/", Reply::new(status, "")).filter(|_| r.number > 3)).await;
        let room = Room::trusting(&[&registry]).await?;
        room.pull(&registry.name("app:v1")).await?;
        let error = room.refused(&registry.name("app:v1")).await;
        assert!(error.contains(&format!("HTTP {status}")), "{error}");
    }
    Ok(())
}

/// A server may pack what it sends unless it is told not to, and what is stored packed may be called so.
#[tokio::test]
async fn content_comes_as_it_is_stored() -> anyhow::Result<()> {
    let (registry, image) =
        changed(|r, i| on(r, &i.blob(1), i.answer(r, "app", &[]).with("content-encoding", "gzip"))).await;
    let room = Room::trusting(&[&registry]).await?;
    assert_eq!(room.pull(&registry.name("app:v1")).await?.id, image.id());
    assert_eq!(registry.headers("accept-encoding"), vec!["identity"; registry.seen().len()]);
    Ok(())
}
