//! Whiteouts that hide nothing are not kept: an overlay would list their names in a folder that one layer has alone.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;

use super::builder::Layer;
use super::scan::scan;
use super::*;
use crate::storage::KeptLayer;

/// The whiteouts that a layer has on disk.
fn left(fixture: &Fixture, chain: &Digest) -> anyhow::Result<Vec<String>> {
    let tree = scan(&fixture.diff(chain))?;
    let whiteouts = tree.iter().filter(|(_, facts)| facts.kind == 'c' && facts.device == 0);
    Ok(whiteouts.map(|(path, _)| path.display().to_string()).collect())
}

fn stage(storage: &Storage, chain: &Digest, layer: &[u8]) -> anyhow::Result<crate::storage::StagedLayer> {
    Ok(storage.stage_layer(chain, &Digest::of(layer), Compression::None, layer, &Limits::default())?)
}

/// What was counted, the archive and its comparison with the tree are right.
fn expect_whole(fixture: &Fixture, storage: &Storage, chain: &Digest, layer: &[u8]) -> anyhow::Result<()> {
    let images = fixture.temp.path().join("images");
    let names = scan(&images.join("layers").join(chain.hex()))?;
    let inodes: BTreeSet<_> = names.values().map(|facts| &facts.same_as).collect();
    // Not counted: the folder itself, that of the tree, and the marker.
    assert_eq!(storage.layer_size(chain).expect("known").inodes, inodes.len() as u64 - 3);
    let kept = KeptLayer::open(&images, chain)?;
    let mut archive = Vec::new();
    kept.archive()?.read_to_end(&mut archive)?;
    assert!(archive == layer, "the archive is not what it was");
    assert_eq!(kept.verify(&Digest::of(layer))?.findings, []);
    Ok(())
}

fn base() -> Vec<u8> {
    let layer = Layer::new().dir("d").file("d/kept", "").file("d/hidden", "").dir("d/sub").file("d/sub/x", "");
    let layer = layer.file("f", "").symlink("l", "d").dir("gone").file("gone/x", "");
    let layer = layer.dir("o").file("o/x", "").dir("o/sub").file("o/sub/x", "");
    layer.file("d/.wh.never", "").file(".wh.nothing", "").file("new/.wh.x", "").done()
}

fn middle() -> Vec<u8> {
    Layer::new().file("d/.wh.hidden", "").file(".wh.gone", "").file("d/sub/other", "").done()
}

fn top() -> Vec<u8> {
    // Something is below: this one stays, also in a folder without an entry.
    let layer = Layer::new().file("d/.wh.kept", "").file("d/sub/.wh.x", "").file("d/sub/.wh.other", "");
    // Hidden already, never there, and what is no whiteout in the archive but to the kernel, under two names.
    let layer =
        layer.file("d/.wh.hidden", "").file("d/.wh.nobody", "").device("d/zero", (0, 0)).hardlink("zero", "d/zero");
    // In a folder that was removed below, in the place of a file, and of a symlink to a folder that has the name.
    let layer = layer.dir("gone").file("gone/.wh.x", "").dir("f").file("f/.wh.x", "").dir("l").file("l/.wh.kept", "");
    // In an opaque folder, and below one; in a folder that is new.
    let layer = layer.dir("o").file("o/.wh.x", "").file("o/sub/.wh.x", "").file("o/.wh..wh..opq", "");
    let layer = layer.file("new/deep/.wh.y", "").file("new/.wh.x", "");
    // Replaced by a later entry, also together with its folder.
    let layer =
        layer.file("d/.wh.later", "").file("d/later", "").dir("turn").file("turn/.wh.x", "").symlink("turn", "d");
    layer.done()
}

#[test]
#[ignore = "needs root"]
fn whiteouts_stay_where_they_hide_something_and_nowhere_else() -> anyhow::Result<()> {
    private(|| {
        let fixture = Fixture::new()?;
        let lower = [base(), middle()];
        let mut chains = fixture.add(&lower)?;
        // The last one comes to a store that only knows of the others from disk.
        let storage = fixture.reopened()?;
        let top = top();
        chains.push(Digest::chain(chains.last(), &Digest::of(&top)));
        storage.commit_layers(vec![stage(&storage, &chains[2], &top)?])?;
        assert_eq!(left(&fixture, &chains[0])?, [""; 0]);
        assert_eq!(left(&fixture, &chains[1])?, ["d/hidden", "gone"]);
        assert_eq!(left(&fixture, &chains[2])?, ["d/kept", "d/sub/other", "d/sub/x"]);
        for (chain, layer) in chains.iter().zip([&lower[0], &lower[1], &top]) {
            expect_whole(&fixture, &storage, chain, layer)?;
        }
        // A folder has the time of its entry, whatever was taken out of it.
        for folder in ["gone", "f", "l", "o"] {
            assert_eq!(std::fs::metadata(fixture.diff(&chains[2]).join(folder))?.mtime(), 1_500_000_000, "{folder}");
        }
        let target = fixture.temp.path().join("mounted");
        storage.mount_rootfs("c", &chains, &target, None)?;
        let names: Vec<_> = scan(&target)?.into_keys().map(|path| path.display().to_string()).collect();
        storage.unmount_rootfs(&target)?;
        let want = ["", "d", "d/later", "d/sub", "f", "gone", "l", "new", "new/deep", "o", "o/sub", "turn"];
        assert_eq!(names, want);
        Ok(())
    })
}

/// All of an image at once: a staged layer is judged by others that are only staged.
#[test]
#[ignore = "needs root"]
fn layers_that_come_together_are_judged_by_each_other() -> anyhow::Result<()> {
    private(|| {
        let fixture = Fixture::new()?;
        let layers = [base(), middle(), top()];
        let chains = fixture.add(&layers)?;
        assert_eq!(left(&fixture, &chains[2])?, ["d/kept", "d/sub/other", "d/sub/x"]);
        for (chain, layer) in chains.iter().zip(&layers) {
            expect_whole(&fixture, &fixture.storage, chain, layer)?;
        }
        // Below an opaque root is nothing.
        let opaque = Layer::new().file(".wh..wh..opq", "").dir("d").file("d/.wh.sub", "").file(".wh.f", "").done();
        let above = Layer::new().file(".wh.f", "").file(".wh.d", "").done();
        let all = fixture.add(&[base(), opaque.clone(), above.clone()])?;
        assert_eq!((left(&fixture, &all[1])?, left(&fixture, &all[2])?), (vec![], vec!["d".to_owned()]));
        for (chain, layer) in all[1..].iter().zip([&opaque, &above]) {
            expect_whole(&fixture, &fixture.storage, chain, layer)?;
        }
        Ok(())
    })
}

/// What hides something must not get lost: neither where the layers below are unknown, nor unseen by a comparison.
#[test]
#[ignore = "needs root"]
fn a_whiteout_is_not_given_up_lightly() -> anyhow::Result<()> {
    private(|| {
        let fixture = Fixture::new()?;
        let layer = Layer::new().file("d/.wh.x", "").done();
        let unknown = Digest::chain(Some(&Digest::of(b"not here")), &Digest::of(&layer));
        fixture.storage.commit_layers(vec![stage(&fixture.storage, &unknown, &layer)?])?;
        // Nor is one that lies on such a layer.
        let above = Digest::chain(Some(&unknown), &Digest::of(&middle()));
        fixture.storage.commit_layers(vec![stage(&fixture.storage, &above, &middle())?])?;
        assert_eq!((left(&fixture, &unknown)?, left(&fixture, &above)?.len()), (vec!["d/x".to_owned()], 2));
        expect_whole(&fixture, &fixture.storage, &unknown, &layer)?;

        let chains = fixture.add(&[base(), middle(), top()])?;
        let images = fixture.temp.path().join("images");
        let removed = [(&unknown, "d/x", layer), (&chains[1], "gone", middle()), (&chains[2], "d/kept", top())];
        for (chain, path, archive) in removed {
            std::fs::remove_file(fixture.diff(chain).join(path))?;
            let found = KeptLayer::open(&images, chain)?.verify(&Digest::of(&archive))?.findings;
            let found: Vec<_> = found.iter().map(|found| (found.path.as_str(), found.problem.as_str())).collect();
            // The folder's time says that something was done to it.
            assert!(found.contains(&(path, "it is missing")) && found.len() <= 2, "{found:?}");
        }
        Ok(())
    })
}
