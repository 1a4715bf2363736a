//! Staging, committing, leasing, sweeping and removing layers.

use std::collections::HashSet;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use super::builder::{Attributes, Layer, gzip};
use super::*;
use crate::storage::{StorageError, UnpackError};

fn small(name: &str) -> Vec<u8> {
    Layer::new().dir("d").file(&format!("d/{name}"), name).done()
}

#[test]
fn a_committed_layer_is_there_also_for_the_next_daemon() -> anyhow::Result<()> {
    let fixture = Fixture::new()?;
    let chains = fixture.add(&[small("one"), small("two")])?;
    assert!(fixture.staging_is_empty());
    let again = fixture.reopened()?;
    for storage in [&fixture.storage, &again] {
        assert!(chains.iter().all(|chain| storage.has_layer(chain)));
        let one = storage.layer_size(&chains[0]).expect("known");
        // A directory, a file, and the skeleton.
        assert_eq!((one.inodes, one.bytes), (3, 12_288));
        assert_eq!(storage.images_usage(), one.plus(storage.layer_size(&chains[1]).expect("known")));
    }
    // CVE-2021-41091: nothing below is open to other users.
    for path in ["images", "images/layers", "images/staging", "containers"] {
        assert_eq!(std::fs::metadata(fixture.temp.path().join(path))?.mode() & 0o7777, 0o700, "{path}");
    }
    Ok(())
}

#[test]
fn a_wrong_diff_id_or_a_bad_stream_leaves_nothing() -> anyhow::Result<()> {
    let fixture = Fixture::new()?;
    let (layer, limits) = (small("one"), Limits::default());
    let (right, wrong) = (Digest::of(&layer), Digest::of(b"other"));
    let zipped = gzip(&layer);
    let staged = fixture.storage.stage_layer(&right, &wrong, Compression::Gzip, &zipped[..], &limits);
    assert!(matches!(staged, Err(StorageError::DiffId { .. })), "{staged:?}");
    let staged = fixture.storage.stage_layer(&right, &right, Compression::Gzip, &zipped[..50], &limits);
    assert!(matches!(staged, Err(StorageError::Unpack { source: UnpackError::Stream { .. }, .. })), "{staged:?}");
    let staged = fixture.storage.stage_layer(&right, &right, Compression::Gzip, &zipped[..], &limits)?;
    assert!(!fixture.staging_is_empty());
    drop(staged);
    assert!(fixture.staging_is_empty());
    assert!(!fixture.storage.has_layer(&right));
    Ok(())
}

#[test]
fn what_a_crash_left_is_swept_at_start() -> anyhow::Result<()> {
    let fixture = Fixture::new()?;
    let chains = fixture.add(&[small("one"), small("two"), small("three"), small("four")])?;
    let staged_layer = small("staged");
    let digest = Digest::of(&staged_layer);
    let staged =
        fixture.storage.stage_layer(&digest, &digest, Compression::None, &staged_layer[..], &Limits::default())?;
    // As if the power had gone: nothing is dropped in order.
    std::mem::forget(staged);
    let layer = |chain: &Digest| fixture.temp.path().join("images/layers").join(chain.hex());
    std::fs::remove_file(layer(&chains[0]).join("layer.json"))?;
    std::fs::write(layer(&chains[1]).join("layer.json"), b"{\"version\":1,")?;
    std::fs::copy(layer(&chains[3]).join("layer.json"), layer(&chains[2]).join("layer.json"))?;
    std::fs::create_dir(fixture.temp.path().join("images/layers/lost+found"))?;
    let again = fixture.reopened()?;
    assert_eq!(chains.iter().map(|chain| again.has_layer(chain)).collect::<Vec<_>>(), [false, false, false, true]);
    assert!(fixture.staging_is_empty());
    assert!(!layer(&chains[0]).exists() && !layer(&chains[1]).exists() && !layer(&chains[2]).exists());
    assert!(fixture.temp.path().join("images/layers/lost+found").exists(), "what is no layer is left alone");
    Ok(())
}

#[test]
fn two_pulls_of_one_layer_both_succeed() -> anyhow::Result<()> {
    let fixture = Fixture::new()?;
    let layer = small("one");
    let digest = Digest::of(&layer);
    let stage =
        || fixture.storage.stage_layer(&digest, &digest, Compression::Gzip, &gzip(&layer)[..], &Limits::default());
    let (first, second) = (stage()?, stage()?);
    std::thread::scope(|scope| {
        let one = scope.spawn(|| fixture.storage.commit_layers(vec![first]));
        let two = scope.spawn(|| fixture.storage.commit_layers(vec![second]));
        assert!(one.join().expect("ends").is_ok() && two.join().expect("ends").is_ok());
    });
    assert!(fixture.storage.has_layer(&digest));
    assert!(fixture.staging_is_empty());
    Ok(())
}

#[test]
fn leased_reserved_and_kept_layers_stay() -> anyhow::Result<()> {
    let fixture = Fixture::new()?;
    let chains = fixture.add(&[small("one"), small("two"), small("three"), small("four")])?;
    let lease = fixture.storage.lease(&chains[..1])?;
    let again = fixture.storage.lease(&chains[..1])?;
    let reserved = fixture.storage.reserve(&[chains[1].clone(), Digest::of(b"to come")]);
    let missing = fixture.storage.lease(&[chains[0].clone(), Digest::of(b"to come")]);
    assert!(matches!(missing, Err(StorageError::Missing { .. })));
    drop(again);
    let removed = fixture.storage.remove_unleased(&HashSet::from([chains[2].clone()]))?;
    assert_eq!((removed.count, removed.bytes), (1, 12_288));
    assert!(chains[..3].iter().all(|chain| fixture.storage.has_layer(chain)));
    assert!(!fixture.storage.has_layer(&chains[3]));
    drop((lease, reserved));
    assert_eq!(fixture.storage.remove_unleased(&HashSet::new())?.count, 3);
    assert_eq!(std::fs::read_dir(fixture.temp.path().join("images/layers"))?.count(), 0);
    assert!(fixture.staging_is_empty());
    assert_eq!(fixture.storage.images_usage(), crate::storage::Usage::default());
    Ok(())
}

/// A layer that has files in `/tmp`, though no entry for it, must not change what `/tmp` is.
#[test]
fn implied_directories_look_like_those_below() -> anyhow::Result<()> {
    let fixture = Fixture::new()?;
    let sticky = Attributes { mode: 0o1777, mtime: 77, ..Attributes::default() };
    let base = Layer::new().raw(b'5', (b"tmp", b""), 0, b"", sticky).dir("etc").done();
    let middle = Layer::new().file("etc/x", "").done();
    let top = Layer::new().file("tmp/new/file", "").file("etc/y", "").done();
    // The base is in the store already when the others come.
    let chains = fixture.add(std::slice::from_ref(&base))?;
    let mut all = chains.clone();
    let mut staged = Vec::new();
    for layer in [&middle, &top] {
        let diff_id = Digest::of(layer);
        let chain = Digest::chain(all.last(), &diff_id);
        staged.push(fixture.storage.stage_layer(
            &chain,
            &diff_id,
            Compression::None,
            &layer[..],
            &Limits::default(),
        )?);
        all.push(chain);
    }
    fixture.storage.commit_layers(staged)?;
    let facts = std::fs::metadata(fixture.diff(&all[2]).join("tmp"))?;
    assert_eq!((facts.mode() & 0o7777, facts.mtime()), (0o1777, 77));
    assert_eq!(std::fs::metadata(fixture.diff(&all[2]).join("tmp/new"))?.mode() & 0o7777, 0o755);
    Ok(())
}

/// The order that a power cut tests: content, marker, name.
#[test]
fn the_marker_is_written_last_and_the_name_after_it() -> anyhow::Result<()> {
    let fixture = Fixture::new()?;
    let layer = small("one");
    let digest = Digest::of(&layer);
    let staged = fixture.storage.stage_layer(&digest, &digest, Compression::None, &layer[..], &Limits::default())?;
    let staging = std::fs::read_dir(fixture.temp.path().join("images/staging"))?.next().expect("one")?.path();
    assert!(staging.join("diff/d/one").exists());
    assert!(!staging.join("layer.json").exists(), "no marker before the commit");
    fixture.storage.commit_layers(vec![staged])?;
    let marker = fixture.temp.path().join("images/layers").join(digest.hex()).join("layer.json");
    assert!(marker.exists());
    // Its content was on disk before: the marker's birth is not older than that of any file.
    let born = |path: &Path| std::fs::metadata(path).and_then(|meta| meta.created());
    if let (Ok(file), Ok(marker)) = (born(&fixture.diff(&digest).join("d/one")), born(&marker)) {
        assert!(marker >= file);
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_full_disk_is_named_and_leaves_nothing() -> anyhow::Result<()> {
    std::thread::spawn(|| -> anyhow::Result<()> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
        crate::sys::mount::make_private(Path::new("/"), true)?;
        let temp = tempfile::tempdir()?;
        crate::sys::mount::tmpfs(temp.path(), 1 << 20, 0o700, (0, 0))?;
        let storage = Storage::open(Fixture::options(temp.path()))?;
        let layer = Layer::new().dir("d").file("d/large", vec![b'x'; 4 << 20]).done();
        let digest = Digest::of(&layer);
        let error = storage
            .stage_layer(&digest, &digest, Compression::Gzip, &gzip(&layer)[..], &Limits::default())
            .expect_err("4 MiB do not fit");
        assert!(error.is_no_space(), "{error:?}");
        let chain = format!("{:#}", anyhow::Error::from(error));
        assert!(chain.contains("No space left on device") && chain.contains("d/large"), "{chain}");
        assert_eq!(std::fs::read_dir(temp.path().join("images/staging"))?.count(), 0);
        let fits = small("fits");
        let digest = Digest::of(&fits);
        let staged = storage.stage_layer(&digest, &digest, Compression::None, &fits[..], &Limits::default())?;
        storage.commit_layers(vec![staged])?;
        assert!(storage.has_layer(&digest));
        crate::sys::mount::detach(temp.path())?;
        Ok(())
    })
    .join()
    .expect("the thread ends")
}

#[test]
fn ids_and_permissions_of_the_store_are_its_own() -> anyhow::Result<()> {
    let fixture = Fixture::new()?;
    let chains = fixture.add(&[Layer::new().entry(b'5', "./", "").done()])?;
    let layer = fixture.temp.path().join("images/layers").join(chains[0].hex());
    assert_eq!(std::fs::metadata(&layer)?.permissions().mode() & 0o7777, 0o700);
    assert_eq!(std::fs::metadata(layer.join("layer.json"))?.permissions().mode() & 0o7777, 0o600);
    Ok(())
}

/// Pulls and imports that bring the same layer at once: whoever comes second takes nothing away that somebody was told of.
#[test]
fn a_layer_that_several_commits_bring_is_there_for_each_of_them() -> anyhow::Result<()> {
    let many = |mut layer: Layer| {
        for number in 0..300 {
            layer = layer.file(&format!("many/{number}"), "x");
        }
        layer.done()
    };
    let (base, limits) = (many(Layer::new()), Limits::default());
    for round in 0..15 {
        let fixture = Fixture::new()?;
        let below = Digest::of(&base);
        let start = std::sync::Barrier::new(4);
        let work = |worker: u32| -> anyhow::Result<()> {
            let stage = |chain: &Digest, layer: &[u8]| {
                fixture.storage.stage_layer(chain, &Digest::of(layer), Compression::None, layer, &limits)
            };
            let staged = stage(&below, &base)?;
            start.wait();
            fixture.storage.commit_layers(vec![staged])?;
            for turn in 0..4 {
                // Its folder is one of the base's, which is therefore looked into.
                let upper = Layer::new().file(&format!("many/{worker}-{turn}"), "y").done();
                let chain = Digest::chain(Some(&below), &Digest::of(&upper));
                fixture.storage.commit_layers(vec![stage(&chain, &upper)?])?;
                anyhow::ensure!(std::fs::read(fixture.diff(&below).join("many/299"))? == b"x");
            }
            Ok(())
        };
        let failed = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|worker| {
                    scope.spawn({
                        let work = &work;
                        move || work(worker)
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().expect("it ends")).find_map(Result::err)
        });
        assert!(failed.is_none(), "round {round}: {:#}", failed.expect("just seen"));
        assert!(fixture.staging_is_empty(), "round {round}");
    }
    Ok(())
}

/// What is in the way of the second layer's name fails the commit, and the first one's name goes with it.
#[test]
#[ignore = "needs root"]
fn a_commit_that_fails_half_way_leaves_none_of_its_layers() -> anyhow::Result<()> {
    super::private(|| {
        let fixture = Fixture::new()?;
        let (one, two) = (small("one"), small("two"));
        let chains = Digest::chains(&[Digest::of(&one), Digest::of(&two)]);
        let stage = |at: usize, layer: &[u8]| {
            let diff_id = Digest::of(layer);
            fixture.storage.stage_layer(&chains[at], &diff_id, Compression::None, layer, &Limits::default())
        };
        let layers = fixture.temp.path().join("images/layers");
        // A mount can be neither renamed nor replaced.
        let in_the_way = layers.join(chains[1].hex());
        std::fs::create_dir(&in_the_way)?;
        crate::sys::mount::tmpfs(&in_the_way, 1 << 16, 0o700, (0, 0))?;
        let error =
            fixture.storage.commit_layers(vec![stage(0, &one)?, stage(1, &two)?]).expect_err("it is in the way");
        let text = format!("{:#}", anyhow::Error::from(error));
        assert!(text.contains("cannot be put into the store") && text.contains(chains[1].hex()), "{text}");
        assert!(!layers.join(chains[0].hex()).exists(), "the first layer is still there");
        assert!(fixture.staging_is_empty() && !fixture.storage.has_layer(&chains[0]));
        crate::sys::mount::detach(&in_the_way)?;
        fixture.storage.commit_layers(vec![stage(0, &one)?, stage(1, &two)?])?;
        assert!(chains.iter().all(|chain| fixture.storage.has_layer(chain)));
        Ok(())
    })
}

/// Files that nobody may remove, a disk with damage: a start says so and goes on, as a node must.
#[test]
#[ignore = "needs root"]
fn a_start_does_without_what_it_cannot_remove() -> anyhow::Result<()> {
    super::private(|| {
        let fixture = Fixture::new()?;
        let chains = fixture.add(&[small("one"), small("two")])?;
        let layers = fixture.temp.path().join("images/layers");
        let staging = fixture.temp.path().join("images/staging");
        std::fs::remove_file(layers.join(chains[0].hex()).join("layer.json"))?;
        std::fs::create_dir_all(staging.join("3/diff"))?;
        std::fs::create_dir_all(staging.join("other/diff"))?;
        let mut held = Vec::new();
        for stuck in [layers.join(chains[0].hex()).join("diff/d"), staging.join("3/diff"), staging.join("other/diff")] {
            crate::sys::mount::tmpfs(&stuck, 1 << 16, 0o700, (0, 0))?;
            held.push(stuck);
        }
        let again = fixture.reopened()?;
        assert_eq!(chains.iter().map(|chain| again.has_layer(chain)).collect::<Vec<_>>(), [false, true]);
        assert!(staging.join("3/diff").exists());
        // Nothing of it is in the way of what comes.
        for at in 0..6 {
            let layer = small(&format!("new {at}"));
            let digest = Digest::of(&layer);
            let staged = again.stage_layer(&digest, &digest, Compression::None, &layer[..], &Limits::default())?;
            again.commit_layers(vec![staged])?;
            assert!(again.has_layer(&digest));
        }
        for stuck in held {
            crate::sys::mount::detach(&stuck)?;
        }
        fixture.reopened()?;
        assert!(fixture.staging_is_empty() && !layers.join(chains[0].hex()).exists());
        Ok(())
    })
}
