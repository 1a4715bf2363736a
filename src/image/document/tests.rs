//! What is taken as an index or manifest, and what is not.

use super::*;

fn entry(platform: Option<&str>) -> Descriptor {
    let platform = platform.map(|text| {
        let mut parts = text.split('/').map(str::to_owned);
        Platform {
            os: parts.next().unwrap_or_default(),
            architecture: parts.next().unwrap_or_default(),
            variant: parts.next(),
        }
    });
    Descriptor {
        media_type: OCI_MANIFEST.into(),
        digest: String::new(),
        size: 1,
        platform,
        artifact_type: None,
        annotations: None,
    }
}

const D: &str = r#"{"mediaType":"x","digest":"sha256:aa","size":3}"#;

#[test]
fn a_document_means_one_thing() {
    let manifest = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{D},"layers":[{D}]}}"#);
    let bare = format!(r#"{{"schemaVersion":2,"config":{D},"layers":[]}}"#);
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{D}]}}"#);
    let both = format!(r#"{{"schemaVersion":2,"config":{D},"layers":[],"manifests":[]}}"#);
    let mixed = format!(r#"{{"schemaVersion":2,"config":{D},"manifests":[]}}"#);
    let twice = format!(r#"{{"schemaVersion":2,"config":{D},"layers":[],"layers":[]}}"#);
    let one = r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned();
    let negative = bare.replace("\"size\":3", "\"size\":-1");
    for (text, stated, good) in [
        (&manifest, OCI_MANIFEST, true),
        (&manifest, "", true),
        (&manifest, "application/json", true),
        (&manifest, &format!("{OCI_MANIFEST}; charset=utf-8"), true),
        (&manifest, OCI_INDEX, false),
        (&manifest, DOCKER_MANIFEST, false),
        (&bare, DOCKER_MANIFEST, true),
        (&bare, "", false),
        (&bare, "text/html", false),
        (&bare, OCI_INDEX, false),
        (&index, OCI_INDEX, true),
        (&index, OCI_MANIFEST, false),
        (&both, OCI_INDEX, false),
        (&both, OCI_MANIFEST, false),
        (&mixed, OCI_INDEX, false),
        (&twice, OCI_MANIFEST, false),
        (&one, "application/vnd.docker.distribution.manifest.v1+json", false),
        (&negative, OCI_MANIFEST, false),
        (&"[]".to_owned(), OCI_MANIFEST, false),
        (&"{}".to_owned(), OCI_MANIFEST, false),
        (&"<html>".to_owned(), OCI_MANIFEST, false),
    ] {
        assert_eq!(parse(text.as_bytes(), stated).is_ok(), good, "{text} as {stated}");
    }
    let huge = vec![b' '; MAX_MANIFEST + 1];
    assert!(matches!(parse(&huge, OCI_MANIFEST), Err(ContentError::TooLarge { .. })));
}

#[test]
fn the_best_entry_of_an_index_is_chosen() {
    let host = Platform { os: "linux".into(), architecture: "amd64".into(), variant: Some("v3".into()) };
    let pick = |entries: &[Descriptor]| {
        select(entries, &host).map(|found| entries.iter().position(|e| std::ptr::eq(e, found))).ok().flatten()
    };
    assert_eq!(pick(&[entry(Some("linux/arm64")), entry(Some("linux/amd64"))]), Some(1));
    assert_eq!(pick(&[entry(Some("linux/amd64")), entry(Some("linux/amd64/v3"))]), Some(1));
    assert_eq!(pick(&[entry(Some("linux/amd64")), entry(Some("linux/amd64"))]), Some(0));
    assert_eq!(pick(&[entry(None), entry(Some("linux/amd64"))]), Some(1));
    assert_eq!(pick(&[entry(Some("unknown/unknown")), entry(None)]), Some(1));
    assert_eq!(pick(&[entry(Some("windows/amd64")), entry(Some("linux/amd64/v4"))]), None);
    assert_eq!(pick(&[]), None);
}

#[test]
fn only_file_system_layers_are_taken() {
    for (kind, good) in [
        ("application/vnd.oci.image.layer.v1.tar+gzip", true),
        ("application/vnd.oci.image.layer.v1.tar+zstd", true),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", true),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", false),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", false),
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", false),
        ("application/vnd.cncf.helm.chart.content.v1.tar+gzip", false),
        ("", false),
    ] {
        assert_eq!(check_layer(kind).is_ok(), good, "{kind}");
    }
}

#[test]
fn a_descriptor_holds_its_bytes() {
    let bytes = b"abc";
    let good = Descriptor { digest: Digest::of(bytes).to_string(), size: 3, ..entry(None) };
    assert!(good.verify("it", bytes).is_ok());
    assert!(matches!(good.verify("it", b"abcd"), Err(ContentError::Size { .. })));
    assert!(matches!(good.verify("it", b"abd"), Err(ContentError::Digest { .. })));
    for bad in ["sha256:../../x", "md5:00", "sha256:AB", ""] {
        let bad = Descriptor { digest: bad.into(), ..good.clone() };
        assert!(matches!(bad.verify("it", bytes), Err(ContentError::Json { .. })));
    }
}
