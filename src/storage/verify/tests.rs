//! Nothing is found in a tree that nobody touched, and each single change in one that somebody did.

use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, Timespec, Timestamps};

use super::*;
use crate::storage::KeptLayer;
use crate::storage::tests::Fixture;
use crate::storage::tests::builder::{Attributes, Layer};
use crate::storage::tests::scan;

/// A store with one layer that has one of everything, on a layer that has something for it to hide.
struct Bench {
    fixture: Fixture,
    chain: Digest,
    diff_id: Digest,
}

fn everything() -> Vec<u8> {
    let odd = Attributes { mode: 0o4755, uid: 1234, gid: 2345, mtime: 1_000_000_000 };
    let mut sparse = tar::Header::new_gnu();
    sparse.set_entry_type(tar::EntryType::GNUSparse);
    sparse.set_mode(0o600);
    sparse.set_uid(0);
    sparse.set_gid(0);
    sparse.set_mtime(7);
    sparse.set_size(512);
    let gnu = sparse.as_gnu_mut().expect("a GNU header");
    gnu.name[..6].copy_from_slice(b"sparse");
    gnu.set_real_size(1 << 20);
    gnu.sparse[0].set_offset(1 << 16);
    gnu.sparse[0].set_length(512);
    Layer::new()
        .dir("./")
        .raw(b'5', (b"d", b""), 0, b"", Attributes { mode: 0o2711, ..odd })
        .raw(b'0', (b"d/file", b""), 7, b"content", odd)
        .raw(b'0', (b"d/own", b""), 7, b"content", odd)
        .pax(&[("SCHILY.xattr.user.some", b"value"), ("mtime", b"1500000000.25")])
        .file("attributes", vec![0; 100_000])
        .file("implied/by/this", "x")
        .symlink("link", "d/file")
        .hardlink("same", "d/file")
        .file("replaced", "first")
        .file("replaced", "second")
        .entry(b'6', "fifo", "")
        .device("null", (1, 3))
        .block(sparse, &[b'x'; 512])
        .file("opaque/.wh..wh..opq", "")
        .file(".wh.hidden", "")
        .done()
}

impl Bench {
    fn new() -> anyhow::Result<Self> {
        Self::of(&everything())
    }

    fn of(archive: &[u8]) -> anyhow::Result<Self> {
        let fixture = Fixture::new()?;
        let chain = fixture.add(&[Layer::new().file("hidden", "").done(), archive.to_vec()])?.remove(1);
        Ok(Self { fixture, chain, diff_id: Digest::of(archive) })
    }

    fn layer(&self) -> PathBuf {
        self.fixture.temp.path().join("images/layers").join(self.chain.hex())
    }

    fn verify(&self) -> Result<Report, StorageError> {
        KeptLayer::open(&self.fixture.temp.path().join("images"), &self.chain)?.verify(&self.diff_id)
    }

    fn found(&self) -> Vec<String> {
        let report = self.verify().expect("it can be compared");
        report.findings.iter().map(|found| format!("{}: {}", found.path, found.problem)).collect()
    }
}

/// Changes something below `diff`, without a trace in its time, unless that is what changed, or in that of its directory.
fn quietly(path: &Path, change: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let time = |path: &Path| -> anyhow::Result<Timestamps> {
        let found = path.symlink_metadata()?;
        let time = Timespec { tv_sec: found.mtime(), tv_nsec: found.mtime_nsec() };
        Ok(Timestamps { last_access: time, last_modification: time })
    };
    let parent = path.parent().expect("below the layer");
    let (of_parent, own) = (time(parent)?, time(path));
    change(path)?;
    let written_now = |found: std::fs::Metadata| found.mtime() > 1_600_000_000;
    if let (Ok(own), true) = (own, path.symlink_metadata().is_ok_and(written_now)) {
        rustix::fs::utimensat(CWD, path, &own, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    rustix::fs::utimensat(CWD, parent, &of_parent, AtFlags::empty())?;
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_tree_that_nobody_touched_is_good() -> anyhow::Result<()> {
    let bench = Bench::new()?;
    assert_eq!(bench.found(), Vec::<String>::new());
    assert_eq!(bench.verify()?.entries, 15);
    // Reading it leaves no trace.
    let before = std::fs::metadata(bench.layer().join("diff/d/file"))?;
    std::fs::File::open(bench.layer().join("diff/d/file"))?
        .set_times(std::fs::FileTimes::new().set_accessed(std::time::UNIX_EPOCH).set_modified(before.modified()?))?;
    assert_eq!(bench.found(), Vec::<String>::new());
    assert_eq!(std::fs::metadata(bench.layer().join("diff/d/file"))?.atime(), 0);
    Ok(())
}

/// Of everything that a layer can have, nothing is lost on the way from one chain to another.
#[test]
#[ignore = "needs root"]
fn a_layer_unpacked_from_another_is_as_good() -> anyhow::Result<()> {
    let mut bench = Bench::new()?;
    let diff_id = bench.diff_id.clone();
    let look = |bench: &Bench| -> anyhow::Result<scan::Tree> {
        let mut tree = scan::scan(&bench.layer().join("diff"))?;
        // No archive says when a whiteout was made, or a directory without an entry.
        for path in ["hidden", "implied", "implied/by", "opaque"] {
            tree.get_mut(Path::new(path)).expect("it is there").mtime = None;
        }
        Ok(tree)
    };
    let before = look(&bench)?;
    let other = bench.fixture.add(&[Layer::new().file("hidden", "another").done()])?.remove(0);
    bench.chain = Digest::chain(Some(&other), &diff_id);
    let staged = bench.fixture.storage.restage(&bench.chain, &diff_id, &|| true).expect("it is here and whole");
    bench.fixture.storage.commit_layers(vec![staged])?;
    let kept = KeptLayer::open(&bench.fixture.temp.path().join("images"), &bench.chain)?;
    assert_eq!(kept.verify(&diff_id)?.findings, []);
    assert_eq!(scan::differences(&before, &look(&bench)?), Vec::<String>::new());
    Ok(())
}

type Change = fn(&Path) -> anyhow::Result<()>;

#[test]
#[ignore = "needs root"]
fn each_single_change_is_found() -> anyhow::Result<()> {
    let changes: &[(&str, Change, &[&str])] = &[
        ("d/own", |p| flip(p, 3), &["d/own: its content is not what the archive had"]),
        ("attributes", |p| flip(p, 50_000), &["attributes: its content is not what the archive had"]),
        ("sparse", |p| flip(p, 1 << 19), &["sparse: its content is not what the archive had"]),
        ("sparse", |p| flip(p, 1 << 16), &["sparse: its content is not what the archive had"]),
        (
            "d/own",
            |p| Ok(append(p)?),
            &["d/own: it has 8 bytes, in the archive 7", "d/own: its content is not what the archive had"],
        ),
        ("attributes", |p| Ok(truncate(p, 5)?), &["attributes: it has 5 bytes, in the archive 100000"]),
        ("replaced", |p| Ok(std::fs::remove_file(p)?), &["replaced: it is missing"]),
        ("implied", |p| Ok(std::fs::remove_dir_all(p)?), &["implied: it is missing"]),
        ("d/new", |p| Ok(std::fs::write(p, "")?), &["d/new: it is not in the archive"]),
        ("implied/new", |p| Ok(std::fs::create_dir(p)?), &["implied/new: it is not in the archive"]),
        ("d/own", |p| mode(p, 0o755), &["d/own: its mode is 0755, in the archive 4755"]),
        ("d", |p| mode(p, 0o711), &["d: its mode is 0711, in the archive 2711"]),
        ("fifo", |p| mode(p, 0o600), &["fifo: its mode is 0600, in the archive 0644"]),
        ("link", |p| Ok(std::os::unix::fs::lchown(p, Some(5), None)?), &["link: its owner is 5:0, in the archive 0:0"]),
        (
            "attributes",
            |p| time(p, 1_500_000_000, 250_000_001),
            &["attributes: its time is 1500000000.250000001, in the archive 1500000000.250000000"],
        ),
        ("d", |p| time(p, 2, 0), &["d: its time is 2.000000000, in the archive 1000000000.000000000"]),
        ("link", |p| replace_link(p, "d/file2"), &["link: it leads to d/file2, in the archive to d/file"]),
        ("null", |p| device(p, rustix::fs::makedev(1, 5), 0o666), &["null: it is the device 1:5, in the archive 1:3"]),
        (".wh.hidden", |p| Ok(std::fs::remove_file(p.with_file_name("hidden"))?), &["hidden: it is missing"]),
        (
            "attributes",
            |p| Ok(rustix::fs::setxattr(p, "user.some", b"other", rustix::fs::XattrFlags::empty())?),
            &["attributes: its attribute user.some is not what the archive had"],
        ),
        (
            "attributes",
            |p| Ok(rustix::fs::removexattr(p, "user.some")?),
            &["attributes: its attribute user.some is missing"],
        ),
        (
            "d",
            |p| Ok(rustix::fs::setxattr(p, "user.more", b"", rustix::fs::XattrFlags::empty())?),
            &["d: its attribute user.more is not in the archive"],
        ),
        (
            "opaque",
            |p| Ok(rustix::fs::removexattr(p, "trusted.overlay.opaque")?),
            &["opaque: its attribute trusted.overlay.opaque is missing"],
        ),
        ("same", unlink_copy, &["d/file: it is no hard link of same any more"]),
        ("d/own", link_instead, &["d/own: it is a hard link of same, in the archive it is not"]),
        (
            "replaced",
            |p| Ok(std::os::unix::fs::chown(p, Some(7), Some(8))?),
            &["replaced: its owner is 7:8, in the archive 0:0"],
        ),
        ("null", |p| device(p, 0, 0o666), &["null: it is the device 0:0, in the archive 1:3"]),
        (
            ".wh.hidden",
            |p| device(&p.with_file_name("hidden"), rustix::fs::makedev(1, 3), 0),
            &["hidden: it is the device 1:3, in the archive 0:0"],
        ),
        (
            "implied",
            |p| Ok(std::fs::remove_dir_all(p).and_then(|()| std::fs::write(p, ""))?),
            &["implied: it is a file, the archive has a directory"],
        ),
        (
            "link",
            |p| Ok(std::fs::remove_file(p).and_then(|()| std::fs::create_dir(p))?),
            &["link: it is a directory, the archive has a symlink"],
        ),
    ];
    for (name, change, want) in changes {
        let bench = Bench::new()?;
        quietly(&bench.layer().join("diff").join(name), change)?;
        assert_eq!(bench.found(), *want, "{name}");
    }
    Ok(())
}

fn flip(path: &Path, at: u64) -> anyhow::Result<()> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    Ok(file.write_all_at(&[byte[0] ^ 1], at)?)
}

fn append(path: &Path) -> std::io::Result<()> {
    std::io::Write::write_all(&mut std::fs::OpenOptions::new().append(true).open(path)?, b"x")
}

fn truncate(path: &Path, length: u64) -> std::io::Result<()> {
    std::fs::OpenOptions::new().write(true).open(path)?.set_len(length)
}

fn mode(path: &Path, mode: u32) -> anyhow::Result<()> {
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?)
}

fn time(path: &Path, seconds: i64, nanoseconds: i64) -> anyhow::Result<()> {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

fn replace_link(path: &Path, target: &str) -> anyhow::Result<()> {
    std::fs::remove_file(path)?;
    Ok(std::os::unix::fs::symlink(target, path)?)
}

fn device(path: &Path, number: u64, bits: u32) -> anyhow::Result<()> {
    std::fs::remove_file(path)?;
    rustix::fs::mknodat(CWD, path, rustix::fs::FileType::CharacterDevice, Mode::empty(), number)?;
    mode(path, bits)
}

/// One more name of the file beside it, which looks the same.
fn link_instead(path: &Path) -> anyhow::Result<()> {
    std::fs::remove_file(path)?;
    Ok(std::fs::hard_link(path.with_file_name("file"), path)?)
}

/// The same file again, in an inode of its own.
fn unlink_copy(path: &Path) -> anyhow::Result<()> {
    let (found, content) = (path.metadata()?, std::fs::read(path)?);
    std::fs::remove_file(path)?;
    std::fs::write(path, content)?;
    std::os::unix::fs::chown(path, Some(found.uid()), Some(found.gid()))?;
    mode(path, found.mode() & 0o7777)
}

#[test]
fn what_was_replaced_and_the_skeleton_are_looked_at_too() -> anyhow::Result<()> {
    let archive = Layer::new().file("a", "first").file("a", "second").done();
    let bench = Bench::of(&archive)?;
    flip(&bench.layer().join("replaced/0"), 1)?;
    let found = bench.found();
    assert!(found.len() == 1 && found[0].starts_with("replaced/0: what a later entry replaced"), "{found:?}");

    let bench = Bench::of(&archive)?;
    flip(&bench.layer().join("skeleton.zst"), 30)?;
    assert!(bench.found()[0].starts_with(": the skeleton of its archive is damaged"), "{:?}", bench.found());
    std::fs::remove_file(bench.layer().join("skeleton.zst"))?;
    assert!(bench.found()[0].contains("cannot be opened"), "{:?}", bench.found());

    // A whole layer in the place of another one: all fits but the digest.
    let (bench, other) = (Bench::of(&archive)?, Bench::of(&Layer::new().file("b", "").done())?);
    for name in ["diff", "replaced"] {
        std::fs::remove_dir_all(bench.layer().join(name))?;
    }
    std::fs::rename(other.layer().join("diff"), bench.layer().join("diff"))?;
    std::fs::rename(other.layer().join("skeleton.zst"), bench.layer().join("skeleton.zst"))?;
    let found = bench.found();
    assert!(found.len() == 1 && found[0].starts_with(": its archive has the digest"), "{found:?}");
    Ok(())
}

/// As versions before 0.2 left them: no skeleton, and a marker that does not speak of one.
#[test]
fn a_layer_without_a_skeleton_is_not_damaged() -> anyhow::Result<()> {
    let bench = Bench::of(&Layer::new().file("a", "x").done())?;
    std::fs::remove_file(bench.layer().join("skeleton.zst"))?;
    let path = bench.layer().join("layer.json");
    let mut marker: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    marker.as_object_mut().expect("an object").remove("archive").expect("it was there");
    std::fs::write(&path, marker.to_string())?;
    assert!(bench.fixture.reopened()?.has_layer(&bench.chain), "it is used as ever");
    assert!(matches!(bench.verify(), Err(StorageError::NoSkeleton { .. })));
    let layer = KeptLayer::open(&bench.fixture.temp.path().join("images"), &bench.chain)?;
    assert!(matches!(layer.archive().map(drop), Err(StorageError::NoSkeleton { .. })));
    let gone = KeptLayer::open(&bench.fixture.temp.path().join("images"), &Digest::of(b"gone"));
    assert!(matches!(gone, Err(StorageError::Missing { .. })));
    Ok(())
}

/// What a directory without an entry looks like comes from the layers below, and is nobody's damage.
#[test]
fn directories_that_an_upper_layer_implies_are_not_compared() -> anyhow::Result<()> {
    let sticky = Attributes { mode: 0o1777, mtime: 77, ..Attributes::default() };
    let base = Layer::new().raw(b'5', (b"tmp", b""), 0, b"", sticky).done();
    let top = Layer::new().file("tmp/file", "").done();
    let fixture = Fixture::new()?;
    let chains = fixture.add(&[base.clone(), top.clone()])?;
    for (chain, archive) in chains.iter().zip([&base, &top]) {
        let report = KeptLayer::open(&fixture.temp.path().join("images"), chain)?.verify(&Digest::of(archive))?;
        assert_eq!(report.findings, []);
    }
    Ok(())
}

#[test]
fn times_are_compared_as_far_as_file_systems_keep_them() {
    for (got, want, same) in [
        (5, 5, true),
        (5, 6, false),
        (i64::from(i32::MAX), 4_000_000_000, true),
        (i64::from(i32::MAX), 5, false),
        (i64::from(i32::MIN), -62_135_596_800, true),
        (0, -1, true),
        (0, 1, false),
        (15_032_385_535, 1 << 40, true),
    ] {
        assert_eq!(compare::limit_of_time(got, want) == got, same, "{got} {want}");
    }
}
