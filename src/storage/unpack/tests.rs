//! Tests of unpacking: each advisory of the field that fits, by its id. All of them unpack next to a canary, with parent
//! caches of several sizes, and look at the canary afterwards.

use std::path::PathBuf;

use super::*;
use crate::storage::tests::builder::{Attributes, Layer, gzip};
use crate::storage::tests::scan::{Tree, differences, scan};

mod attributes;
mod damaged;
mod merged;
mod model;
mod others;
mod parser;

/// A layer's directory, and next to it a tree that no layer may touch.
struct Bench {
    temp: tempfile::TempDir,
    before: Tree,
}

impl Bench {
    fn new() -> anyhow::Result<Self> {
        let temp = tempfile::tempdir()?;
        let outside = temp.path().join("outside");
        std::fs::create_dir_all(outside.join("dir"))?;
        std::fs::write(outside.join("file"), "host")?;
        std::fs::write(outside.join("dir/file"), "host")?;
        std::fs::create_dir_all(temp.path().join("work/diff"))?;
        let before = scan(&outside)?;
        Ok(Self { temp, before })
    }

    fn outside(&self) -> String {
        self.temp.path().join("outside").display().to_string()
    }

    fn diff(&self) -> PathBuf {
        self.temp.path().join("work/diff")
    }

    fn unpack(&self, parents: usize, compression: Compression, layer: &[u8]) -> Result<Unpacked, UnpackError> {
        let diff = Root::open(&self.diff()).expect("it was made");
        let scratch = Root::open(&self.temp.path().join("work")).expect("it was made");
        let done = unpack_caching(parents, &diff, &scratch, (compression, layer), &Limits::default(), None);
        let after = scan(&self.temp.path().join("outside")).expect("the canary can be read");
        assert_eq!(differences(&after, &self.before), Vec::<String>::new(), "the canary was touched");
        done
    }
}

/// Unpacks with several sizes of cache; the canary must stay as it is, and all must agree.
fn attack(layer: impl Fn(&str) -> Vec<u8>) -> (Bench, Result<Unpacked, UnpackError>) {
    let mut last = None;
    let mut worked = Vec::new();
    for parents in [0, 1, OPEN_PARENTS] {
        let bench = Bench::new().expect("a temporary directory");
        let result = bench.unpack(parents, Compression::None, &layer(&bench.outside()));
        worked.push(result.is_ok());
        last = Some((bench, result));
    }
    assert!(worked.iter().all(|one| *one == worked[0]), "the caches disagree: {worked:?}");
    last.expect("three runs")
}

fn refused(layer: impl Fn(&str) -> Vec<u8>) {
    let (bench, result) = attack(layer);
    assert!(result.is_err(), "taken, with {:?}", scan(&bench.diff()).map(|tree| tree.into_keys().collect::<Vec<_>>()));
}

fn taken(layer: impl Fn(&str) -> Vec<u8>) -> Bench {
    let (bench, result) = attack(layer);
    result.expect("the layer is legal");
    bench
}

/// A link out of the layer, then an entry of the same name: what the link leads to keeps mode, owner and time.
#[test]
fn cve_2021_32760_metadata_never_goes_through_a_link() {
    for flag in [b'0', b'5', b'1'] {
        taken(|outside| {
            let wide = Attributes { mode: 0o4777, mtime: 1, ..Attributes::default() };
            let target: &[u8] = if flag == b'1' { b"own" } else { b"" };
            Layer::new()
                .file("own", "x")
                .symlink("x", &format!("{outside}/file"))
                .pax(&[("SCHILY.xattr.user.some", b"evil")])
                .raw(flag, (b"x", target), 0, b"", wide)
                .done()
        });
    }
}

/// The same where an owner can be set, and for each kind of entry. It has what it asks for, and nothing else does.
#[test]
#[ignore = "needs root"]
fn cve_2021_32760_owners_never_go_through_a_link() {
    for flag in *b"0123456" {
        let bench = taken(|outside| {
            let wide = Attributes { mode: 0o4777, uid: 1234, gid: 2345, mtime: 1 };
            let target: &[u8] = if flag == b'1' { b"own" } else { b"elsewhere" };
            Layer::new()
                .file("own", "x")
                .symlink("x", &format!("{outside}/file"))
                .pax(&[("SCHILY.xattr.trusted.some", b"evil")])
                .raw(flag, (b"x", target), 0, b"", wide)
                .done()
        });
        let tree = scan(&bench.diff()).expect("it can be read");
        let (owner, names) = (tree[&PathBuf::from("x")].owner, tree[&PathBuf::from("x")].xattrs.len());
        // A hard link says nothing of what it leads to.
        assert!(flag == b'1' || (owner, names) == ((1234, 2345), 1), "{}: {owner:?}", flag.escape_ascii());
    }
}

/// A hard link that is new has nothing to replace: nothing is kept of it, and a container sees as many links as names.
#[test]
fn a_hard_link_is_one_more_name_and_no_more() {
    use std::os::unix::fs::MetadataExt as _;
    let link = |layer: Layer, name: &[u8]| layer.raw(b'1', (name, b"own"), 0, b"", Attributes::default());
    let bench = taken(|_| link(Layer::new().file("own", "x"), b"other").done());
    assert_eq!(std::fs::metadata(bench.diff().join("own")).expect("it is there").nlink(), 2);
    assert!(!bench.temp.path().join("work").join(crate::storage::skeleton::REPLACED).exists());
}

/// RUSTSEC-2026-0067, and in another library RUSTSEC-2026-0113.
#[test]
fn rustsec_2026_0067_rustsec_2026_0113_a_directory_entry_replaces_a_symlink() {
    let bench = taken(|outside| {
        let wide = Attributes { mode: 0o777, ..Attributes::default() };
        Layer::new()
            .symlink("x", &format!("{outside}/dir"))
            .raw(b'5', (b"x", b""), 0, b"", wide)
            .file("x/new", "")
            .done()
    });
    assert!(bench.diff().join("x").symlink_metadata().expect("it is there").is_dir());
    assert!(bench.diff().join("x/new").exists());
}

#[test]
fn cve_2025_47290_a_replaced_parent_is_not_remembered() {
    type Swap = fn(Layer, &str) -> Layer;
    let swaps: [Swap; 3] = [
        |layer, out| layer.symlink("d", out),
        |layer, out| layer.file("d", "").symlink("d", out),
        |layer, out| layer.symlink("l", out).hardlink("d", "l"),
    ];
    for swap in swaps {
        let bench = taken(|outside| {
            let layer = Layer::new().dir("d").file("d/a", "").file("d/e/f", "");
            swap(layer, outside).file("d/b", "inside").dir("d/dir").file("d/e/g", "").done()
        });
        // The link leads to that path inside the layer.
        let inside = bench.diff().join(bench.outside().trim_start_matches('/'));
        assert!(inside.join("b").exists() && inside.join("e/g").exists());
    }
}

#[test]
#[ignore = "needs root"]
fn cve_2025_47290_by_whiteouts() {
    taken(|outside| {
        let layer = Layer::new().dir("d").file("d/a", "").file(".wh.d", "").symlink("d", outside);
        layer.file("d/b", "").file(".wh.e", "").file("e/b", "").done()
    });
    taken(|outside| Layer::new().file("d/.wh..wh..opq", "").symlink("d", outside).file("d/.wh..wh..opq", "").done());
}

#[test]
fn cve_2021_29136_the_root_stays_a_directory() {
    for name in [".", "./", "/", "", "a/.."] {
        for flag in *b"0123467" {
            refused(|outside| Layer::new().entry(flag, name, outside).file("x", "").done());
        }
    }
    for name in [".wh.", ".wh..", "./.wh...", "a/.wh.."] {
        refused(|_| Layer::new().file("f", "").file(name, "").done());
    }
    taken(|_| Layer::new().dir("./").file("./x", "").done());
}

#[test]
fn cve_2018_15664_parents_resolve_inside_the_layer() {
    for target in ["..", "../..", "../../outside", "/", "dir/../../../outside"] {
        taken(|_| Layer::new().dir("dir").symlink("s", target).file("s/file", "").file("s/dir/file", "").done());
    }
    let bench = taken(|outside| Layer::new().symlink("s", outside).file("s/file", "inner").dir("s/dir").done());
    let inside = bench.diff().join(bench.outside().trim_start_matches('/'));
    assert_eq!(std::fs::read(inside.join("file")).expect("it is there"), b"inner");
    refused(|_| Layer::new().symlink("a", "b").symlink("b", "a").file("a/x", "").done());
    refused(|_| Layer::new().symlink("proc", "/proc/self/root").file("f", "").file("f/x", "").done());
}

#[test]
fn rustsec_2018_0002_existing_files_are_replaced_not_written() {
    refused(|outside| Layer::new().hardlink("x", &format!("{outside}/file")).file("x", "overwritten").done());
    refused(|_| Layer::new().hardlink("x", "../../outside/file").done());
    let bench = taken(|_| Layer::new().file("a", "old").hardlink("b", "a").file("b", "new").done());
    assert_eq!(std::fs::read(bench.diff().join("a")).expect("it is there"), b"old");
    refused(|outside| Layer::new().symlink("s", outside).hardlink("x", "s/file").done());
    refused(|_| Layer::new().dir("d").hardlink("x", "d").done());
    refused(|_| Layer::new().hardlink("x", ".").done());
}

#[test]
fn rustsec_2021_0080_no_directory_is_made_through_a_symlink() {
    let bench = taken(|_| Layer::new().symlink("s", "..").file("s/x/y", "").done());
    assert!(bench.diff().join("x/y").exists());
    assert!(!bench.temp.path().join("work/x").exists());
}

#[test]
fn names_that_climb_or_are_too_long_are_refused() {
    for name in ["../x", "a/../../x", "/../x"] {
        refused(|_| Layer::new().file(name, "").done());
    }
    let (long, deep) = ("x".repeat(256), "xx/".repeat(1500));
    for name in [&long, &deep, &"nul\0nul".to_owned()] {
        refused(|_| Layer::new().pax(&[("path", name.as_bytes())]).file("short", "").done());
    }
    let bench = taken(|_| Layer::new().pax(&[("path", "d/".repeat(2000).as_bytes())]).dir("short").done());
    assert!(bench.diff().join("d/d/d/d").exists());
}

#[test]
fn a_parent_that_is_a_file_is_an_error_and_a_dangling_link_leads_on() {
    refused(|_| Layer::new().file("f", "").file("f/x", "").done());
    let bench = taken(|_| {
        Layer::new().symlink("lib", "usr/lib").file("lib/x", "").symlink("v", "/var").file("v/y/z", "").done()
    });
    assert!(bench.diff().join("usr/lib/x").exists());
    assert!(bench.diff().join("var/y/z").exists());
}

/// The hazard that upstream closed without an id in 2026: metadata set by path after another had swapped the name. Here
/// another thread swaps for as long as the unpack lasts.
#[test]
fn containerd_ba50a5645_metadata_does_not_follow_a_name_that_is_swapped_meanwhile() -> anyhow::Result<()> {
    let bench = Bench::new()?;
    let done = std::sync::atomic::AtomicBool::new(false);
    let (diff, outside) = (bench.diff(), bench.outside());
    let mut layer = Layer::new();
    let wide = Attributes { mode: 0o777, mtime: 7, ..Attributes::default() };
    for _ in 0..3000 {
        layer =
            layer.raw(b'0', (b"x", b""), 4, b"evil", wide).raw(b'5', (b"d", b""), 0, b"", wide).file("d/file", "evil");
        layer = layer.file("d", "");
    }
    let layer = layer.done();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                for name in ["x", "d"] {
                    let swap = diff.join("swap");
                    let _ = std::os::unix::fs::symlink(format!("{outside}/dir"), &swap);
                    let _ = std::fs::rename(&swap, diff.join(name));
                }
            }
        });
        // It may fail, since names vanish under it; it must not reach the canary.
        let _ = bench.unpack(OPEN_PARENTS, Compression::None, &layer);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let after = scan(&bench.temp.path().join("outside"))?;
    assert_eq!(differences(&after, &bench.before), Vec::<String>::new());
    Ok(())
}

#[test]
fn limits_are_errors_that_name_them() {
    let run = |layer: &[u8], limits: &Limits| {
        let bench = Bench::new().expect("a temporary directory");
        let (diff, scratch) = (Root::open(&bench.diff()), Root::open(&bench.temp.path().join("work")));
        let (diff, scratch) = (diff.expect("made"), scratch.expect("made"));
        unpack(&diff, &scratch, Compression::Gzip, &gzip(layer)[..], limits, None).map_err(|error| error.to_string())
    };
    let layer = Layer::new().file("a", "").file("b", "").done();
    let few = Limits { entries: 1, ..Limits::default() };
    assert_eq!(run(&layer, &few).expect_err("too many"), "the layer has more than 1 entries");
    // A bomb: 200 MB of zeros in 200 KB.
    let bomb = Layer::new().file("zeros", vec![0; 200 << 20]).done();
    let small = Limits { bytes: 1 << 20, ..Limits::default() };
    assert_eq!(run(&bomb, &small).expect_err("too large"), "the layer has more than 1048576 bytes in its files");
    let padded = [Layer::new().file("small", "").done(), vec![0; 50 << 20]].concat();
    assert_eq!(run(&padded, &small).expect_err("too large"), "the layer has more than 1048576 bytes");
    let long = Layer::new().pax(&[("SCHILY.xattr.user.x", &[b'x'; 70_000])]).file("a", "").done();
    assert!(run(&long, &Limits::default()).expect_err("too long").contains("exceeds 65536 bytes"));
    let wide = Layer::new().pax(&[("comment", &[b'x'; 2 << 20])]).file("a", "").done();
    assert!(run(&wide, &Limits::default()).expect_err("too long").contains("bytes in one extension header"));
}
