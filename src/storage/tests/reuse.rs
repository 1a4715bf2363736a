//! Layers unpacked from other layers: the same on each chain, from whatever is whole, and held while they are read.

use std::collections::HashSet;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::builder::{Attributes, Layer, Seeded};
use super::*;
use crate::storage::{KeptLayer, StagedLayer};

/// A layer that names no folder that it has files in, and is more than one read long.
fn shared() -> Vec<u8> {
    let mut random = Seeded(42);
    let large: Vec<u8> = (0..100_000).flat_map(|_| random.next().to_le_bytes()).collect();
    let odd = Attributes { mode: 0o640, mtime: 1_000_000_000, ..Attributes::default() };
    Layer::new()
        .file("tmp/x", "x")
        .raw(b'0', (b"tmp/odd", b""), 3, b"odd", odd)
        .file("etc/deep/large", large)
        .hardlink("etc/same", "etc/deep/large")
        .symlink("tmp/link", "x")
        .file("etc/twice", "first")
        .file("etc/twice", "second")
        .done()
}

/// A base in which `tmp` looks like this.
fn base(mode: u32, mtime: u64) -> Vec<u8> {
    Layer::new().raw(b'5', (b"tmp", b""), 0, b"", Attributes { mode, mtime, ..Attributes::default() }).done()
}

fn on(below: &Digest, layer: &[u8]) -> Digest {
    Digest::chain(Some(below), &Digest::of(layer))
}

impl Fixture {
    fn stage(&self, chain: &Digest, layer: &[u8]) -> anyhow::Result<StagedLayer> {
        Ok(self.storage.stage_layer(chain, &Digest::of(layer), Compression::None, layer, &Limits::default())?)
    }

    fn again(&self, chain: &Digest, layer: &[u8]) -> Option<StagedLayer> {
        self.storage.restage(chain, &Digest::of(layer), &|| true)
    }

    fn in_staging(&self) -> usize {
        std::fs::read_dir(self.temp.path().join("images/staging")).map_or(0, Iterator::count)
    }

    fn layer(&self, chain: &Digest) -> PathBuf {
        self.temp.path().join("images/layers").join(chain.hex())
    }

    fn verified(&self, chain: &Digest, archive: &[u8]) -> anyhow::Result<()> {
        let kept = KeptLayer::open(&self.temp.path().join("images"), chain)?;
        anyhow::ensure!(kept.verify(&Digest::of(archive))?.findings.is_empty(), "{chain} is not what the archive has");
        let mut again = Vec::new();
        std::io::Read::read_to_end(&mut kept.archive()?, &mut again)?;
        anyhow::ensure!(again == archive, "another archive comes back");
        Ok(())
    }
}

fn flip(path: &std::path::Path, at: u64) -> anyhow::Result<()> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    Ok(file.write_all_at(&[byte[0] ^ 1], at)?)
}

/// What is below decides what folders without an entry look like: on each chain as if the layer had been downloaded for it.
#[test]
fn it_looks_on_each_chain_as_if_it_had_been_unpacked_there() -> anyhow::Result<()> {
    let (ours, theirs) = (Fixture::new()?, Fixture::new()?);
    let (layer, bases) = (shared(), [base(0o1777, 77), base(0o751, 88)]);
    let first = ours.add(&[bases[0].clone(), layer.clone()])?;
    let below = ours.add(std::slice::from_ref(&bases[1]))?.remove(0);
    let chain = on(&below, &layer);
    let staged = ours.again(&chain, &layer).expect("it is here");
    ours.storage.commit_layers(vec![staged])?;
    // The other store has each from the bytes.
    let plain = [theirs.add(&[bases[0].clone(), layer.clone()])?, theirs.add(&[bases[1].clone(), layer.clone()])?];
    assert_eq!((&plain[0][1], &plain[1][1]), (&first[1], &chain));
    for (chain, mode, time) in [(&first[1], 0o1777, 77), (&chain, 0o751, 88)] {
        let (mine, plain) = (scan::scan(&ours.diff(chain))?, scan::scan(&theirs.diff(chain))?);
        // The tree's own root and folders that are below nothing have the time of their making.
        let timeless = |mut tree: scan::Tree| {
            for name in ["", "etc", "etc/deep"] {
                tree.get_mut(std::path::Path::new(name)).expect("it is there").mtime = None;
            }
            tree
        };
        assert_eq!(scan::differences(&timeless(mine), &timeless(plain)), Vec::<String>::new());
        let facts = std::fs::metadata(ours.diff(chain).join("tmp"))?;
        assert_eq!((facts.mode() & 0o7777, facts.mtime()), (mode, time));
        ours.verified(chain, &layer)?;
    }
    assert_eq!(ours.storage.layer_size(&chain), ours.storage.layer_size(&first[1]), "it counts as what it is");
    assert_eq!(ours.storage.images_usage(), theirs.storage.images_usage());
    // The next daemon knows it as well.
    let again = ours.reopened()?;
    assert!(again.has_layer(&chain));
    assert!(again.restage(&on(&chain, &layer), &Digest::of(&layer), &|| true).is_some());
    Ok(())
}

/// The same layer three times in one image: each is staged, none is committed.
#[test]
fn a_staged_layer_is_as_good_as_a_stored_one() -> anyhow::Result<()> {
    let fixture = Fixture::new()?;
    let layer = shared();
    let one = Digest::of(&layer);
    let (two, three) = (on(&one, &layer), on(&on(&one, &layer), &layer));
    let mut staged = vec![fixture.stage(&one, &layer)?];
    staged.extend(fixture.again(&two, &layer));
    staged.extend(fixture.again(&three, &layer));
    assert_eq!(staged.len(), 3);
    fixture.storage.commit_layers(staged)?;
    for chain in [&one, &two, &three] {
        fixture.verified(chain, &layer)?;
    }
    assert!(fixture.staging_is_empty());
    assert!(fixture.again(&two, b"of no layer").is_none());
    Ok(())
}

/// Runs something once while a layer is being read; says how often it was asked whether anybody waits.
fn amid(fixture: &Fixture, chain: &Digest, layer: &[u8], event: impl FnOnce() + Send) -> (Option<StagedLayer>, usize) {
    let (event, asked) = (Mutex::new(Some(event)), AtomicUsize::new(0));
    let wanted = || {
        // The first read gives the beginning of the archive; files are opened later than that.
        if asked.fetch_add(1, Ordering::SeqCst) == 1
            && let Some(event) = event.lock().expect("no panic").take()
        {
            event();
        }
        true
    };
    let staged = fixture.storage.restage(chain, &Digest::of(layer), &wanted);
    (staged, asked.into_inner())
}

#[test]
fn the_collector_takes_no_layer_that_is_being_read() -> anyhow::Result<()> {
    let fixture = Fixture::new()?;
    let layer = shared();
    let source = fixture.add(std::slice::from_ref(&layer))?.remove(0);
    let chain = on(&source, &layer);
    let collect = || assert_eq!(fixture.storage.remove_unleased(&HashSet::new()).expect("it works").count, 0);
    let (staged, asked) = amid(&fixture, &chain, &layer, collect);
    assert!(staged.is_some() && asked > 2, "{asked}");
    // Read, it is held no more.
    assert_eq!(fixture.storage.remove_unleased(&HashSet::new())?.count, 1);
    drop(staged);
    assert!(fixture.staging_is_empty());
    Ok(())
}

#[test]
fn a_staged_layer_may_go_or_be_committed_while_it_is_read() -> anyhow::Result<()> {
    let fixture = Fixture::new()?;
    let layer = shared();
    let (source, chain) = (Digest::of(&layer), on(&Digest::of(&layer), &layer));
    // Its pull ends.
    let dropped = fixture.stage(&source, &layer)?;
    let (staged, _) = amid(&fixture, &chain, &layer, || drop(dropped));
    assert!(staged.is_some());
    assert_eq!(fixture.in_staging(), 1, "the one that was read is gone once it was read");
    drop(staged);
    assert!(fixture.again(&chain, &layer).is_none() && fixture.staging_is_empty());

    // It is committed, and nobody needs it.
    let committed = fixture.stage(&source, &layer)?;
    let commit = || {
        fixture.storage.commit_layers(vec![committed]).expect("it works");
        assert_eq!(fixture.storage.remove_unleased(&HashSet::new()).expect("it works").count, 0);
    };
    let (staged, _) = amid(&fixture, &chain, &layer, commit);
    fixture.storage.commit_layers(vec![staged.expect("it was read to the end")])?;
    fixture.verified(&chain, &layer)?;
    assert_eq!(fixture.storage.remove_unleased(&HashSet::new())?.count, 2);
    assert!(fixture.staging_is_empty());
    Ok(())
}

#[test]
fn it_ends_when_nobody_waits() -> anyhow::Result<()> {
    let fixture = Fixture::new()?;
    let layer = shared();
    let source = fixture.add(std::slice::from_ref(&layer))?.remove(0);
    let asked = AtomicUsize::new(0);
    let wanted = || asked.fetch_add(1, Ordering::SeqCst) < 2;
    assert!(fixture.storage.restage(&on(&source, &layer), &Digest::of(&layer), &wanted).is_none());
    assert!(fixture.staging_is_empty());
    assert!(fixture.again(&on(&source, &layer), &layer).is_some(), "it was no fault of the layer's");
    Ok(())
}

type Damage = fn(PathBuf) -> anyhow::Result<()>;

#[test]
fn what_is_damaged_is_not_taken_and_leaves_nothing() -> anyhow::Result<()> {
    let damages: &[(&str, Damage)] = &[
        ("a file", |layer| flip(&layer.join("diff/etc/deep/large"), 500_000)),
        ("what was replaced", |layer| flip(&layer.join("replaced/0"), 1)),
        ("a file that is gone", |layer| Ok(std::fs::remove_file(layer.join("diff/tmp/x"))?)),
        ("a link in the place of a file", |layer| {
            std::fs::remove_file(layer.join("diff/tmp/x"))?;
            Ok(std::os::unix::fs::symlink("/etc/hostname", layer.join("diff/tmp/x"))?)
        }),
        ("the skeleton", |layer| flip(&layer.join("skeleton.zst"), 30)),
        ("no skeleton", |layer| Ok(std::fs::remove_file(layer.join("skeleton.zst"))?)),
        ("no tree", |layer| Ok(std::fs::remove_dir_all(layer.join("diff"))?)),
    ];
    let layer = shared();
    for (what, damage) in damages {
        let fixture = Fixture::new()?;
        let source = fixture.add(std::slice::from_ref(&layer))?.remove(0);
        damage(fixture.layer(&source))?;
        // On nothing that is here, so that its folders are asked of nobody.
        let chain = on(&Digest::of(b"elsewhere"), &layer);
        assert!(fixture.again(&chain, &layer).is_none(), "{what}");
        assert!(fixture.staging_is_empty(), "{what}");
        // Beside it there is a good one: that is taken.
        fixture.storage.commit_layers(vec![fixture.stage(&chain, &layer)?])?;
        let third = on(&chain, &layer);
        let staged = fixture.again(&third, &layer);
        fixture.storage.commit_layers(vec![staged.expect(what)])?;
        fixture.verified(&third, &layer)?;
    }
    Ok(())
}

/// The skeleton of something else fits its tree, and has another digest.
#[test]
fn only_content_with_the_right_digest_is_taken() -> anyhow::Result<()> {
    let fixture = Fixture::new()?;
    let layer = shared();
    let chains = [layer.clone(), base(0o755, 5)].map(|layer| fixture.add(&[layer]).expect("it works").remove(0));
    std::fs::remove_dir_all(fixture.layer(&chains[0]))?;
    std::fs::rename(fixture.layer(&chains[1]), fixture.layer(&chains[0]))?;
    assert!(fixture.again(&on(&chains[0], &layer), &layer).is_none());
    assert!(fixture.staging_is_empty());
    Ok(())
}

/// What an archive replaces in itself is remembered while it is read: a layer may have millions of such entries.
#[test]
fn layers_that_replace_too_much_of_themselves_are_not_read() -> anyhow::Result<()> {
    for (times, taken) in [(1000, true), (8000, false)] {
        let fixture = Fixture::new()?;
        let layer = (0..=times).fold(Layer::new(), |layer, n| layer.file("same", n.to_string())).done();
        let source = fixture.add(std::slice::from_ref(&layer))?.remove(0);
        fixture.verified(&source, &layer)?;
        assert_eq!(fixture.again(&on(&source, &layer), &layer).is_some(), taken, "{times}");
    }
    Ok(())
}

/// Unpacked by a version that kept no skeleton.
#[test]
fn a_layer_without_a_skeleton_is_no_source() -> anyhow::Result<()> {
    let fixture = Fixture::new()?;
    let layer = shared();
    let source = fixture.add(std::slice::from_ref(&layer))?.remove(0);
    let path = fixture.layer(&source).join("layer.json");
    let mut marker: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    marker.as_object_mut().expect("an object").remove("archive").expect("it was there");
    std::fs::write(&path, marker.to_string())?;
    let again = fixture.reopened()?;
    assert!(again.has_layer(&source));
    assert!(again.restage(&on(&source, &layer), &Digest::of(&layer), &|| true).is_none());
    Ok(())
}
