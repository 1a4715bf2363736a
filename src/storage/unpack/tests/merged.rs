//! Whole images, unpacked by us and shown by the kernel's overlay, and unpacked by umoci onto one tree: the trees are the same,
//! whiteouts, opaque folders and replaced types included.

use super::model::{Features, Generator, below_root, cases, in_memory};
use super::others::{by_umoci, layout};
use super::*;
use crate::storage::tests::Fixture;
use crate::storage::tests::builder::Seeded;
use crate::storage::tests::scan::scan_openable;

/// The layers of an image, two to four.
fn generated(seed: u64, features: Features) -> Vec<Vec<u8>> {
    let mut random = Seeded(seed);
    let seeds: Vec<_> = (0..random.below(3) + 2).map(|_| random.next()).collect();
    seeds.into_iter().map(|seed| Generator::run(seed, features).0).collect()
}

/// What a container sees of them, stored.
fn shown(fixture: &Fixture, layers: &[Vec<u8>]) -> anyhow::Result<Tree> {
    let chains = fixture.add(layers)?;
    let target = fixture.temp.path().join("ours");
    fixture.storage.mount_rootfs("c", &chains, &target, None)?;
    let ours = scan(&target)?;
    fixture.storage.unmount_rootfs(&target)?;
    Ok(ours)
}

#[test]
#[ignore = "needs root"]
fn generated_images_look_as_umoci_unpacks_them() -> anyhow::Result<()> {
    in_memory(|| {
        let began = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
        for seed in 0..cases(400) {
            let features = Features { oci: false, whiteouts: true, root: true, sparse: false, lists: true };
            let layers = generated(30_000 + seed, features);
            let fixture = Fixture::new()?;
            let ours = shown(&fixture, &layers)?;
            let (image, theirs) = (fixture.temp.path().join("image"), fixture.temp.path().join("theirs"));
            layout(&image, &layers)?;
            by_umoci(&image, &theirs).map_err(|error| anyhow::anyhow!("seed {seed}: {error:#}"))?;
            let (mut ours, mut theirs) = (below_root(ours), below_root(scan(&theirs)?));
            forgive(&mut ours, &mut theirs, began);
            let found = differences(&ours, &theirs);
            anyhow::ensure!(found.is_empty(), "seed {seed}, {} layers: {found:#?}", layers.len());
        }
        Ok(())
    })
}

/// Where umoci does not do what the specification of layers says, or the specification says nothing. It removes for a whiteout
/// without giving the folder its time back. A whiteout that comes after a folder's own entry takes that folder along when it
/// has nothing in it yet, though whiteouts apply to layers below only; later entries then make it anew, with mode, owner and time
/// of nobody. And a folder that no layer describes is as mkdir(2) makes it, which gives it the group and the set-group-id bit of a
/// parent with that bit, and its access list; with us it is root's, 0755, whatever it is in.
fn forgive(ours: &mut Tree, theirs: &mut Tree, began: i64) {
    for (path, their) in theirs.iter_mut().filter(|(_, facts)| facts.kind == 'd') {
        let Some(our) = ours.get_mut(path).filter(|our| our.kind == 'd') else { continue };
        if their.mtime.is_some_and(|(seconds, _)| (began..began + 600).contains(&seconds)) {
            their.mtime = None;
            // The parent may have another group by now. From its access list the folder has one, which ours has not.
            let listed = their.xattrs.contains_key(&b"system.posix_acl_default"[..]);
            let bits = if listed { 0o750 } else { 0o755 };
            let made = (their.mode, their.owner) == (bits, (0, 0)) || (their.mode, their.owner.0) == (0o2000 | bits, 0);
            if made {
                *our = their.clone();
            }
        }
    }
}

/// Leaving whiteouts out that hide nothing changes no more than what an overlay lists: beside the same layers as they were
/// unpacked, the tree is the same, and there are names that cannot be opened in that one only.
#[test]
#[ignore = "needs root"]
fn generated_images_look_as_with_all_whiteouts() -> anyhow::Result<()> {
    in_memory(|| {
        let all = Features { oci: true, whiteouts: true, root: true, sparse: true, lists: true };
        let (mut unopenable, began) = (0, 40_000);
        for seed in began..began + cases(300) {
            let layers = generated(seed, all);
            let fixture = Fixture::new()?;
            let ours = shown(&fixture, &layers)?;
            let benches = layers.iter().map(|layer| {
                let bench = Bench::new()?;
                bench.unpack(OPEN_PARENTS, Compression::None, layer)?;
                anyhow::Ok(bench)
            });
            let benches = benches.collect::<anyhow::Result<Vec<_>>>()?;
            let lower = benches.iter().rev().map(Bench::diff).collect();
            let target = fixture.temp.path().join("ours");
            crate::sys::mount::overlay::Overlay { lower, writable: None }.mount(&target)?;
            let (raw, lost) = scan_openable(&target)?;
            crate::sys::mount::detach(&target)?;
            unopenable += lost;
            let (mut ours, mut raw) = (below_root(ours), below_root(raw));
            // Folders without an entry have mode, owner and time of those below in the store only.
            for facts in ours.values_mut().chain(raw.values_mut()).filter(|facts| facts.kind == 'd') {
                (facts.mode, facts.owner, facts.mtime) = (0, (0, 0), None);
            }
            let found = differences(&ours, &raw);
            anyhow::ensure!(found.is_empty(), "seed {seed}, {} layers: {found:#?}", layers.len());
        }
        assert!(unopenable > 0, "no whiteout was there that hides nothing");
        Ok(())
    })
}

/// A link needs what it leads to: an archive that has it only later is refused by all.
#[test]
#[ignore = "needs root"]
fn a_hard_link_to_a_later_entry_is_refused_by_all() -> anyhow::Result<()> {
    in_memory(|| {
        let layer = Layer::new().hardlink("early", "late").file("late", "x").done();
        let bench = Bench::new()?;
        assert!(bench.unpack(OPEN_PARENTS, Compression::None, &layer).is_err());
        let (image, theirs) = (bench.temp.path().join("image"), bench.temp.path().join("theirs"));
        layout(&image, &[layer])?;
        assert!(by_umoci(&image, &theirs).is_err());
        Ok(())
    })
}
