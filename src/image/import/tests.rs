//! Archives that are what they say, and archives that are not.

use std::path::PathBuf;

use serde_json::json;

use super::*;
use crate::image::document::{OCI_INDEX, OCI_MANIFEST};
use crate::image::tests::Room;
use crate::image::tests::server::{TestImage, descriptor, gzip};

type Files = Vec<(String, Vec<u8>)>;

fn layout(images: &[(&TestImage, Option<&str>)]) -> Files {
    let mut files: Files = vec![("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    let mut entries = Vec::new();
    for (image, name) in images {
        let mut entry = descriptor(OCI_INDEX, &image.index);
        if let Some(name) = name {
            entry["annotations"] = json!({ REF_NAME: name });
        }
        entries.push(entry);
        for blob in image.layers.iter().chain([&image.config, &image.manifest, &image.index]) {
            files.push((blob_path(&Digest::of(blob)), blob.clone()));
        }
    }
    files.push(("index.json".into(), json!({"schemaVersion": 2, "manifests": entries}).to_string().into_bytes()));
    files
}

fn tar(files: &Files) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(bytes.len()).expect("small"));
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes.as_slice()).expect("memory");
    }
    builder.into_inner().expect("memory")
}

fn write(room: &Room, name: &str, bytes: &[u8]) -> PathBuf {
    let path = room.dir.path().join(name);
    std::fs::write(&path, bytes).expect("written");
    path
}

fn write_folder(room: &Room, files: &Files) -> PathBuf {
    let root = room.dir.path().join("layout");
    for (name, bytes) in files {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, bytes).expect("written");
    }
    root
}

#[tokio::test]
async fn a_layout_comes_in_as_folder_tar_gzip_and_zstd() -> anyhow::Result<()> {
    let (a, b) = (TestImage::new("a"), TestImage::new("b"));
    let files = layout(&[(&a, Some("images.example/a:v1")), (&b, Some("latest"))]);
    for form in ["folder", "tar", "gzip", "zstd"] {
        let room = Room::new("").await?;
        let path = match form {
            "folder" => write_folder(&room, &files),
            "tar" => write(&room, "a.tar", &tar(&files)),
            "gzip" => write(&room, "a.tar.gz", &gzip(&tar(&files))),
            _ => write(&room, "a.tar.zst", &zstd::encode_all(&*tar(&files), 3)?),
        };
        let records = room.images.import(&path, None).await?;
        assert_eq!(records.iter().map(|record| record.id.clone()).collect::<Vec<_>>(), [a.id(), b.id()]);
        assert_eq!(records[0].repo_tags, ["images.example/a:v1"]);
        // A bare tag names nothing; the image is there by its id.
        assert!(records[1].repo_tags.is_empty() && records[1].repo_digests.is_empty());
        assert_eq!((room.layers.count(), room.layers.stages()), (3, 3));
        let room = room.reopen().await?;
        assert_eq!(room.images.list(None).len(), 2);
        assert!(
            std::fs::read_dir(room.dir.path().join("images"))?
                .all(|entry| { entry.is_ok_and(|entry| !entry.file_name().to_string_lossy().starts_with(".import")) })
        );
        let error = room.images.import(&path, Some("x:1")).await.expect_err("two images, one name");
        assert!(error.to_string().contains("2 images"), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn a_name_can_be_given() -> anyhow::Result<()> {
    let image = TestImage::new("named");
    let room = Room::new("").await?;
    let path = write(&room, "a.tar", &tar(&layout(&[(&image, None)])));
    let records = room.images.import(&path, Some("busybox")).await?;
    assert_eq!(records[0].repo_tags, ["docker.io/library/busybox:latest"]);
    assert!(room.images.import(&path, Some("Not A Name")).await.is_err());
    Ok(())
}

#[tokio::test]
async fn a_docker_archive_comes_in() -> anyhow::Result<()> {
    let image = TestImage::new("saved");
    let mut files: Files = vec![("config.json".into(), image.config.clone())];
    let mut places = Vec::new();
    for (n, layer) in image.layers.iter().enumerate() {
        let place = format!("{}{n}/layer.tar", "long/".repeat(40));
        files.push((place.clone(), layer.clone()));
        places.push(place);
    }
    let entry = json!([{"Config": "config.json", "RepoTags": ["app:v1", "quay.io/app:v2"], "Layers": places}]);
    files.push(("manifest.json".into(), entry.to_string().into_bytes()));
    let room = Room::new("").await?;
    let path = write(&room, "a.tar", &tar(&files));
    let records = room.images.import(&path, None).await?;
    assert_eq!(records[0].id, image.id());
    assert_eq!(records[0].repo_tags, ["docker.io/library/app:v1", "quay.io/app:v2"]);
    assert_eq!(room.images.import(&path, None).await?, records);
    assert_eq!(room.reopen().await?.images.list(None), records);
    Ok(())
}

/// What docker before version 25 writes of two images whose topmost layer is the same: that layer once, and a link to it
/// (moby, image/tarexport/save.go). Hard links are what GNU tar makes of a folder that has a file twice.
#[tokio::test]
async fn a_layer_may_be_a_link_to_another() -> anyhow::Result<()> {
    let image = TestImage::new("linked");
    for (kind, target) in [(tar::EntryType::Symlink, "../first/layer.tar"), (tar::EntryType::Link, "first/layer.tar")] {
        let entry = |config: &str, tag: &str, top: &str| json!({"Config": config, "RepoTags": [tag], "Layers": ["base/layer.tar", top]});
        let mut config: serde_json::Value = serde_json::from_slice(&image.config)?;
        config["author"] = json!("another");
        let other = config.to_string().into_bytes();
        let manifest =
            json!([entry("one.json", "one:1", "first/layer.tar"), entry("other.json", "other:1", "second/layer.tar"),]);
        let files: Files = vec![
            ("manifest.json".into(), manifest.to_string().into_bytes()),
            ("one.json".into(), image.config.clone()),
            ("other.json".into(), other.clone()),
            ("base/layer.tar".into(), image.layers[0].clone()),
            ("first/layer.tar".into(), image.layers[1].clone()),
        ];
        let mut bytes = tar(&files);
        bytes.truncate(bytes.len() - 1024);
        let mut link = |name: &str, target: &str| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_path(name).and_then(|()| header.set_link_name(target)).expect("short names");
            // Some writers state the size of what it leads to.
            header.set_size(77);
            header.set_cksum();
            bytes.extend(header.as_bytes());
        };
        link("second/layer.tar", target);
        // Nobody asks for these: a circle, and one that leads out.
        link("circle", "circle");
        link("out", "../../etc/passwd");
        bytes.extend([0; 1024]);
        let room = Room::new("").await?;
        let records = room.images.import(&write(&room, "a.tar", &bytes), None).await?;
        let ids: Vec<_> = records.iter().map(|record| record.id.clone()).collect();
        assert_eq!(ids, [image.id(), Digest::of(&other)], "{kind:?}");
        assert_eq!(records[0].chain, records[1].chain, "{kind:?}");
    }
    Ok(())
}

/// Names that links lead to are looked up as often as they may be, and nothing else is.
#[tokio::test]
async fn links_that_lead_nowhere_are_no_files() -> anyhow::Result<()> {
    for target in ["manifest.json", "../manifest.json", "/etc/passwd", "absent", ""] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_path("manifest.json")?;
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_size(0);
        header.set_cksum();
        let bytes = [&header.as_bytes()[..], &[0; 1024]].concat();
        let room = Room::new("").await?;
        let error = room.images.import(&write(&room, "a.tar", &bytes), None).await.expect_err(target).to_string();
        assert!(error.contains("neither index.json nor manifest.json"), "{target:?}: {error}");
    }
    Ok(())
}

/// A little that unpacks to names without end (CVE-2023-25153): they are held in memory, and so they have a bound.
#[tokio::test]
async fn names_of_an_archive_have_an_end() -> anyhow::Result<()> {
    let long = vec![b'n'; 60_000];
    let mut bytes = Vec::new();
    for number in 0..400_u32 {
        let name = [number.to_string().as_bytes(), b"/", &long].concat();
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_path("././@LongLink")?;
        header.set_size(name.len() as u64);
        header.set_cksum();
        bytes.extend(header.as_bytes());
        bytes.extend(&name);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        let mut header = tar::Header::new_gnu();
        header.set_path("short")?;
        header.set_size(0);
        header.set_cksum();
        bytes.extend(header.as_bytes());
    }
    bytes.extend([0; 1024]);
    let packed = gzip(&bytes);
    assert!(packed.len() < 1 << 20, "{}", packed.len());
    let room = Room::new("").await?;
    let error = room.images.import(&write(&room, "a.tar.gz", &packed), None).await.expect_err("24 MB").to_string();
    assert!(error.contains("names take more than 16 MiB"), "{error}");
    room.assert_clean().await;
    Ok(())
}

/// Compressed archives are unpacked to files without a name, each to its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn archives_come_in_beside_each_other() -> anyhow::Result<()> {
    let room = Room::new("").await?;
    let images: Vec<TestImage> = (0..12).map(|n| TestImage::new(&format!("beside {n}"))).collect();
    let imports = images.iter().enumerate().map(|(n, image)| {
        let name = format!("images.example/app:v{n}");
        let path = write(&room, &format!("{n}.tar.gz"), &gzip(&tar(&layout(&[(image, Some(&name))]))));
        let images = room.images.clone();
        async move { images.import(&path, None).await }
    });
    for (image, records) in images.iter().zip(futures_util::future::join_all(imports).await) {
        assert_eq!(records?[0].id, image.id());
    }
    assert_eq!(room.images.list(None).len(), images.len());
    Ok(())
}

#[tokio::test]
async fn broken_archives_are_refused_and_leave_nothing() -> anyhow::Result<()> {
    let image = TestImage::new("broken");
    let good = layout(&[(&image, Some("images.example/a:v1"))]);
    let swap = |name: &str, bytes: Vec<u8>| {
        let mut files = good.clone();
        files.iter_mut().filter(|(n, _)| n == name).for_each(|(_, b)| *b = bytes.clone());
        tar(&files)
    };
    let without = |name: &str| tar(&good.iter().filter(|(n, _)| n != name).cloned().collect());
    let layer = blob_path(&Digest::of(&image.layers[1]));
    let mut flipped = image.layers[1].clone();
    flipped[4] ^= 1;
    let whole = tar(&good);
    let hostile =
        json!({"schemaVersion": 2, "manifests": [{"mediaType": OCI_MANIFEST, "digest": "sha256:../../x", "size": 1}]});
    let artifact =
        json!({"schemaVersion": 2, "config": {"mediaType": "x/y", "digest": "", "size": 1}, "layers": []}).to_string();
    let artifact_index = json!({"schemaVersion": 2, "manifests": [descriptor(OCI_MANIFEST, artifact.as_bytes())]});
    let mut artifact_files = good.clone();
    artifact_files.push((blob_path(&Digest::of(artifact.as_bytes())), artifact.clone().into_bytes()));
    artifact_files.retain(|(name, _)| name != "index.json");
    artifact_files.push(("index.json".into(), artifact_index.to_string().into_bytes()));
    let docker = |config: &str| {
        let entry = json!([{"Config": config, "Layers": []}]);
        tar(&vec![("manifest.json".into(), entry.to_string().into_bytes())])
    };
    for (want, bytes) in [
        ("neither index.json", b"".to_vec()),
        ("not a tar archive", b"x".repeat(2000)),
        ("cut off", whole[..whole.len() / 2].to_vec()),
        ("cannot be read", [&[0x28, 0xb5, 0x2f, 0xfd][..], b"rest"].concat()),
        ("cannot be read", [&[0x1f, 0x8b][..], b"rest"].concat()),
        ("larger than 4194304", swap("index.json", vec![b' '; MAX_MANIFEST + 1])),
        ("index.json is not valid", swap("index.json", b"{".to_vec())),
        ("is not a digest", swap("index.json", hostile.to_string().into_bytes())),
        ("has no \"blobs/sha256", without(&layer)),
        ("the layer has the digest", swap(&layer, flipped)),
        ("the layer has 1 bytes", swap(&layer, b"x".to_vec())),
        ("the manifest has the digest", swap(&blob_path(&Digest::of(&image.index)), vec![b' '; image.index.len()])),
        ("an artifact", tar(&artifact_files)),
        ("has no \"../../etc/passwd\"", docker("../../etc/passwd")),
    ] {
        let room = Room::new("").await?;
        let path = write(&room, "a.tar", &bytes);
        let error = room.images.import(&path, None).await.expect_err(want).to_string();
        assert!(error.contains(want), "{want:?}: {error}");
        room.assert_clean().await;
    }
    Ok(())
}

/// Members without end: of a sparse file, and of an archive that packs well. The documents of an archive are read up to their
/// caps, so neither costs memory; what an archive packs goes to disk.
#[tokio::test]
async fn cve_2023_25153_members_of_an_archive_have_an_end() -> anyhow::Result<()> {
    let image = TestImage::new("large");
    let files = layout(&[(&image, None)]);
    let large = 1 << 30;
    for (member, want) in [
        ("index.json".to_owned(), "larger than 4194304 bytes"),
        (blob_path(&Digest::of(&image.index)), "the manifest"),
        (blob_path(&image.id()), "the image config"),
    ] {
        let room = Room::new("").await?;
        let folder = write_folder(&room, &files);
        std::fs::File::options().write(true).open(folder.join(&member))?.set_len(large)?;
        let error = room.images.import(&folder, None).await.expect_err(&member).to_string();
        assert!(error.contains(want), "{member}: {error}");
        room.assert_clean().await;
        // The same as a tar, whose last member is as long as its header says, with a hole for content.
        let rest: Files = files.iter().filter(|(name, _)| *name != member).cloned().collect();
        let mut bytes = tar(&rest);
        bytes.truncate(bytes.len() - 1024);
        let mut header = tar::Header::new_gnu();
        header.set_path(&member)?;
        header.set_size(large);
        header.set_mode(0o644);
        header.set_cksum();
        bytes.extend(header.as_bytes());
        let path = write(&room, "large.tar", &bytes);
        let length = u64::try_from(bytes.len())?;
        std::fs::File::options().write(true).open(&path)?.set_len(length + large + 1024)?;
        let error = room.images.import(&path, None).await.expect_err(&member).to_string();
        assert!(error.contains(want), "{member}: {error}");
        room.assert_clean().await;
    }
    // A little that unpacks to 16 MiB of spaces where an index should be.
    let packed = gzip(&tar(&vec![("index.json".into(), vec![b' '; 16 << 20])]));
    assert!(packed.len() < 1 << 20, "{}", packed.len());
    let room = Room::new("").await?;
    let error = room.images.import(&write(&room, "a.tar.gz", &packed), None).await.expect_err("no index").to_string();
    assert!(error.contains("larger than 4194304 bytes"), "{error}");
    room.assert_clean().await;
    Ok(())
}

#[tokio::test]
async fn a_folder_leads_nowhere_else() -> anyhow::Result<()> {
    let image = TestImage::new("links");
    let room = Room::new("").await?;
    let outside = write(&room, "outside", &image.layers[1]);
    let files = layout(&[(&image, None)]);
    let folder = write_folder(&room, &files);
    let layer = folder.join(blob_path(&Digest::of(&image.layers[1])));
    std::fs::remove_file(&layer)?;
    std::os::unix::fs::symlink(&outside, &layer)?;
    assert!(room.images.import(&folder, None).await.is_err());
    std::fs::remove_file(&layer)?;
    rustix::fs::mknodat(rustix::fs::CWD, &layer, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)?;
    let error = room.images.import(&folder, None).await.expect_err("a pipe").to_string();
    assert!(error.contains("not a regular file"), "{error}");
    assert!(room.images.import(&room.dir.path().join("absent"), None).await.is_err());
    room.assert_clean().await;
    Ok(())
}
