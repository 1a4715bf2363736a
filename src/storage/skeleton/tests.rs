//! What was unpacked gives the archive back, whatever the archive did.

use std::io::Read as _;
use std::os::unix::fs::FileExt as _;

use proptest::prelude::*;

use super::*;
use crate::storage::Digest;
use crate::storage::tests::builder::{Attributes, Layer};
use crate::storage::unpack::{self, Compression, Limits};
use crate::storage::verify::verify;

/// A layer's directory in which an archive was unpacked.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new(archive: &[u8]) -> anyhow::Result<Self> {
        let temp = tempfile::tempdir()?;
        let layer = Root::open(temp.path())?;
        let diff = layer.create_dir("diff", 0o755)?;
        unpack::unpack(&diff, &layer, Compression::None, archive, &Limits::default(), None)?;
        Ok(Self(temp))
    }

    fn archive(&self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        let layer = Root::open(self.0.path())?;
        Rebuilt::open(&layer, |damage| Err(io::Error::other(damage)))?.read_to_end(&mut all)?;
        Ok(all)
    }

    /// The archive with zeros where something is wrong, and what is.
    fn damage(&self) -> io::Result<(Vec<u8>, Vec<String>)> {
        let (mut all, mut found) = (Vec::new(), Vec::new());
        let layer = Root::open(self.0.path())?;
        let note = |damage: Damage| {
            found.push(damage.to_string());
            Ok(())
        };
        Rebuilt::open(&layer, note)?.read_to_end(&mut all)?;
        Ok((all, found))
    }
}

#[track_caller]
fn same(archive: &[u8]) -> Bench {
    let bench = Bench::new(archive).expect("a legal archive");
    assert!(bench.archive().expect("it can be read") == archive);
    bench
}

#[test]
fn what_tools_write_comes_back() {
    let long = "long/".repeat(60);
    let body: Vec<u8> = (0_u32..200_000).flat_map(u32::to_le_bytes).collect();
    let layer = Layer::new()
        .dir("./")
        .dir("d")
        .pax(&[("path", long.as_bytes()), ("mtime", b"1.5")])
        .file("short", "x")
        .raw(b'L', (b"././@LongLink", b""), 4, b"name", Attributes::default())
        .file("cut", &body)
        .pax_bytes(b'g', b"17 comment=hello\n")
        .symlink("s", "d")
        .file("s/through-a-link", vec![0; 100_000])
        .hardlink("d/link", "name")
        .file("d/.wh.hidden", "a whiteout may have content")
        .file(".wh..wh.plnk/1.2", "what nobody wants")
        .file("empty", "");
    // What has no content has a size all the same, sometimes.
    let layer = layer.raw(b'5', (b"sized", b""), 512, b"", Attributes::default());
    let mut archive = layer.clone().done();
    same(&archive);
    // No end, half an end, and much of it.
    same(&layer.0);
    same(&archive[..archive.len() - 512]);
    archive.resize(archive.len() + 300_007, 0);
    same(&archive);
}

/// What is replaced is in no tree any more, and has to be kept.
#[test]
fn what_is_replaced_comes_back() {
    let bench = same(&Layer::new().file("a", "first").file("a", "second").file("a", "third").dir("a").done());
    assert_eq!(std::fs::read_dir(bench.0.path().join(REPLACED)).expect("a folder").count(), 3);
    same(&Layer::new().file("d/a/x", "1").file("d/a", "2").file("d/b", "3").symlink("d", "e").file("e/b", "4").done());
    same(&Layer::new().file("d/a", "1").symlink("d", "e").file("d/a", "2").dir("d").file("d/a", "3").done());
    same(&Layer::new().file("a", "1").hardlink("b", "a").file("a", "2").file("b", "3").hardlink("a", "b").done());
    same(&Layer::new().symlink("lib", "usr/lib").file("lib/x", "1").dir("lib").file("lib/x", "2").done());
    same(&Layer::new().file("usr/lib/x", "0").symlink("lib", "usr/lib").file("lib/x", "1").file("lib", "").done());
    // Nothing to keep: an empty file, and a link.
    let bench = same(&Layer::new().file("a", "").symlink("a", "x").file("a", "y").done());
    assert!(!bench.0.path().join(REPLACED).exists());
}

/// A name that a directory had stands for another now: the link is refused as it was before things were kept.
#[test]
fn no_link_leads_into_what_it_replaces() {
    assert!(Bench::new(&Layer::new().file("d/x", "1").hardlink("d", "d/x").done()).is_err());
}

#[test]
fn damage_is_told_and_the_rest_stays_in_place() -> anyhow::Result<()> {
    let archive =
        Layer::new().file("one", "1").file("two", vec![b'2'; 70_000]).file("one", "3").file("four", "4").done();
    let bench = same(&archive);
    let at = |path: &str| bench.0.path().join(path);
    std::fs::OpenOptions::new().write(true).open(at("diff/two"))?.write_all_at(b"x", 69_999)?;
    std::fs::remove_file(at("diff/four"))?;
    std::fs::write(at("replaced/0"), "")?;
    let (rest, found) = bench.damage()?;
    assert_eq!(
        found,
        [
            "replaced/0: it is shorter than in the archive",
            "diff/two: its content is not what the archive had",
            "diff/four: it cannot be read: No such file or directory (os error 2)",
        ]
    );
    assert_eq!(rest.len(), archive.len());
    assert_eq!(rest.iter().zip(&archive).filter(|(ours, theirs)| ours != theirs).count(), 3);
    assert!(bench.archive().is_err());
    // Nothing else in its place is read, and a pipe holds nobody up.
    std::os::unix::fs::symlink("/etc/passwd", at("diff/four"))?;
    std::fs::remove_file(at("diff/two"))?;
    rustix::fs::mknodat(rustix::fs::CWD, at("diff/two"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)?;
    let (_, found) = bench.damage()?;
    assert!(found[1].contains("not a regular file") && found[2].contains("cannot be read"), "{found:?}");
    Ok(())
}

#[test]
fn a_damaged_skeleton_is_an_error_and_never_another_archive() -> anyhow::Result<()> {
    let archive = Layer::new().dir("d").file("d/a", "content").file("d/a", "other").done();
    let bench = same(&archive);
    let path = bench.0.path().join(NAME);
    let whole = std::fs::read(&path)?;
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x21;
        std::fs::write(&path, &bytes)?;
        assert!(bench.archive().map_or(true, |got| got == archive), "byte {at}");
        std::fs::write(&path, &whole[..at])?;
        assert!(bench.archive().is_err(), "cut at {at}");
    }
    // One that somebody wrote: paths lead nowhere else, and no length is believed.
    for record in [&b"F\x09\0\0\0../secret\x01\0\0\0"[..], b"F\xff\xff\xff\xff", b"R\xff\xff\xff\xff", b"x", b""] {
        std::fs::write(&path, zstd::encode_all(&[MAGIC, record].concat()[..], 1)?)?;
        assert!(bench.archive().is_err(), "{}", record.escape_ascii());
    }
    std::fs::write(&path, zstd::encode_all(&b"cricket skeleton 2\nE\0\0\0\0\0\0\0\0"[..], 1)?)?;
    assert!(bench.archive().is_err_and(|error| error.to_string().contains("another version")));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    /// Entries over each other, through links, in any order.
    #[test]
    fn any_archive_comes_back(
        entries in prop::collection::vec((0_usize..6, 0_usize..8, 0_usize..8, 0_usize..3000), 1..25),
    ) {
        let names = ["a", "b", "a/b", "b/a", "a/b/c", "s", "s/x", "a/s/b"];
        let mut layer = Layer::new();
        for (kind, name, other, size) in entries {
            let (name, other) = (names[name], names[other]);
            let next = layer.clone();
            let next = match kind {
                0 | 1 => next.file(name, vec![u8::try_from(size % 251)?; size]),
                2 => next.dir(name),
                3 => next.symlink(name, other),
                4 => next.hardlink(name, other),
                _ => next.file(&format!("{name}/deeper"), "x"),
            };
            // What is refused is left out.
            if Bench::new(&next.clone().done()).is_ok() {
                layer = next;
            }
        }
        let archive = layer.done();
        let bench = Bench::new(&archive).map_err(|error| TestCaseError::fail(format!("{error:#}")))?;
        let got = bench.archive().map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert!(got == archive);
        // And the tree is what a model of the rules says.
        let (layer, digest) = (Root::open(bench.0.path())?, Digest::of(&archive));
        let report = verify(&layer, &digest, &digest, &|| Ok(None)).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(report.findings, []);
    }
}
