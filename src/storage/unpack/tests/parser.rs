//! What archives mean: sizes, extension headers, sparse files.

use super::*;

fn content(bench: &Bench, name: &str) -> Vec<u8> {
    std::fs::read(bench.diff().join(name)).expect("it is there")
}

/// The inner archive that a reader sees which takes the wrong size.
fn smuggled() -> Vec<u8> {
    Layer::new().file("smuggled", "evil").0
}

#[test]
fn rustsec_2026_0068_pax_size_counts_though_the_header_has_one() {
    let inner = smuggled();
    let size = inner.len().to_string();
    let bench = taken(|_| {
        let mut layer = Layer::new().pax(&[("size", size.as_bytes())]);
        layer = layer.raw(b'0', (b"outer", b""), 512, &inner, Attributes::default());
        layer.file("after", "x").done()
    });
    assert_eq!(content(&bench, "outer"), inner);
    assert!(!bench.diff().join("smuggled").exists());
    assert!(bench.diff().join("after").exists());
}

#[test]
fn rustsec_2025_0111_pax_size_counts_though_the_header_says_zero() {
    let inner = smuggled();
    let size = inner.len().to_string();
    let bench = taken(|_| {
        let layer = Layer::new().pax(&[("size", size.as_bytes())]);
        layer.raw(b'0', (b"outer", b""), 0, &inner, Attributes::default()).file("after", "x").done()
    });
    assert_eq!(content(&bench, "outer"), inner);
    assert!(!bench.diff().join("smuggled").exists());
}

#[test]
fn a_pax_size_is_of_the_entry_not_of_headers_between() {
    let bench = taken(|_| {
        let layer = Layer::new().pax(&[("size", b"3")]);
        let layer = layer.raw(b'L', (b"././@LongLink", b""), 9, b"long-name", Attributes::default());
        layer.raw(b'0', (b"short", b""), 0, b"abc", Attributes::default()).done()
    });
    assert_eq!(content(&bench, "long-name"), b"abc");
}

#[test]
fn links_and_directories_have_no_content_whatever_their_size() {
    for flag in *b"1256" {
        let bench = taken(|_| {
            let layer = Layer::new().file("first", "");
            layer.raw(flag, (b"x", b"first"), 512, b"", Attributes::default()).file("after", "x").done()
        });
        assert_eq!(content(&bench, "after"), b"x");
    }
}

/// RUSTSEC-2026-0066 and its kin: nothing malformed is skipped.
#[test]
fn rustsec_2026_0066_malformed_extensions_are_errors() {
    for data in [&b"not a record"[..], b"8 path=a\n", b"20 path=a\n", b"9 path=a\n\0\0\0", b"12 size=-12\n"] {
        refused(|_| Layer::new().pax_bytes(b'x', data).file("f", "").done());
        refused(|_| Layer::new().pax_bytes(b'g', data).file("f", "").done());
    }
    refused(|_| Layer::new().pax(&[("path", b"a")]).pax(&[("path", b"b")]).file("f", "").done());
    refused(|_| Layer::new().pax(&[("path", b"a")]).done());
    for key in ["path", "linkpath", "size", "GNU.sparse.map"] {
        let data = format!("{} {key}=1\n", key.len() + 5 + usize::from(key.len() > 4));
        refused(|_| Layer::new().pax_bytes(b'g', data.as_bytes()).file("f", "").done());
    }
    refused(|_| Layer::new().pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")]).file("f", "").done());
    refused(|_| Layer::new().pax(&[("uid", b"4294967295")]).file("f", "").done());
    refused(|_| Layer::new().entry(b'V', "label", "").done());
}

#[test]
fn long_names_and_global_comments_are_understood() {
    let long = format!("{}/{}", "a".repeat(200), "b".repeat(250));
    let bench = taken(|_| {
        let layer = Layer::new().pax_bytes(b'g', b"17 comment=hello\n");
        layer.pax(&[("path", long.as_bytes()), ("mtime", b"1234567890.987654321")]).file("short", "x").done()
    });
    let facts = &scan(&bench.diff()).expect("a tree")[&PathBuf::from(&long)];
    assert_eq!(facts.mtime, Some((1_234_567_890, 987_654_321)));
}

fn sparse_header(regions: &[(u64, u64)], full: u64, extended: bool) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    let attributes = Attributes::default();
    header.set_mode(0o600);
    header.set_uid(attributes.uid.into());
    header.set_gid(attributes.gid.into());
    header.set_mtime(1);
    header.set_size(regions.iter().fold(0, |sum: u64, (_, length)| sum.wrapping_add(*length)) & 0o7777_7777_7777);
    header.set_entry_type(tar::EntryType::GNUSparse);
    let gnu = header.as_gnu_mut().expect("a GNU header");
    gnu.name[..6].copy_from_slice(b"sparse");
    gnu.set_real_size(full);
    gnu.set_is_extended(extended);
    for (slot, (offset, length)) in gnu.sparse.iter_mut().zip(regions) {
        slot.set_offset(*offset);
        slot.set_length(*length);
    }
    header
}

#[test]
fn old_gnu_sparse_files_are_written_with_their_holes() {
    let data = [vec![b'a'; 512], vec![b'b'; 100]].concat();
    let bench = taken(|_| {
        Layer::new().block(sparse_header(&[(0, 512), (1 << 20, 100)], 2 << 20, false), &data).file("after", "x").done()
    });
    let whole = content(&bench, "sparse");
    assert_eq!(whole.len(), 2 << 20);
    assert_eq!((&whole[..512], &whole[1 << 20..(1 << 20) + 100]), (&data[..512], &data[512..]));
    assert_eq!(whole.iter().filter(|byte| **byte != 0).count(), 612);
    assert_eq!(content(&bench, "after"), b"x");
}

#[test]
fn cve_2025_58183_sparse_maps_are_bounded_and_checked() {
    refused(|_| Layer::new().block(sparse_header(&[(512, 512), (0, 512)], 2048, false), &[0; 1024]).done());
    refused(|_| Layer::new().block(sparse_header(&[(0, 512)], 100, false), &[0; 512]).done());
    refused(|_| Layer::new().block(sparse_header(&[(u64::MAX >> 2, u64::MAX >> 2)], 1, false), b"").done());
    refused(|_| Layer::new().block(sparse_header(&[(0, 1)], 1 << 50, false), b"x").done());
    // Regions without end: each block of map says that another follows. With data, which has to be in order; without, which
    // always is; and blank.
    let first = Layer::new().block(sparse_header(&[], 1 << 40, true), b"").0;
    for length in [Some(1), Some(0), None] {
        let (mut blocks, mut offset) = (Vec::new(), 0);
        for _ in 0..4000 {
            let mut more = tar::GnuExtSparseHeader::new();
            more.set_is_extended(true);
            for (slot, length) in more.sparse_mut().iter_mut().zip(std::iter::repeat(length)) {
                let Some(length) = length else { break };
                offset += 2 * length;
                slot.set_offset(offset);
                slot.set_length(length);
            }
            blocks.extend_from_slice(more.as_bytes());
        }
        let (error, read, left) = endless(first.clone(), blocks, &Limits::default());
        assert!(error.contains("too many regions"), "{error}");
        // A block of 512 bytes has 21 of the 65536.
        assert!(read <= (2 << 20) + UNDER_WAY, "{read} bytes were read");
        assert_eq!(left, [""; 0]);
    }
}

/// What the two threads may have taken from a source before the second of them stops the first: the queue, a buffer in each
/// hand, and the buffer before the decompressor.
const UNDER_WAY: usize = 8 * (256 << 10);

/// Unpacks a stream that never ends: gives the error, how many bytes were read until then, and the names that are there.
fn endless(first: Vec<u8>, again: Vec<u8>, limits: &Limits) -> (String, usize, Vec<String>) {
    struct Endless<'e> {
        first: Vec<u8>,
        again: Vec<u8>,
        read: &'e std::sync::atomic::AtomicUsize,
    }
    impl std::io::Read for Endless<'_> {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            use std::sync::atomic::Ordering::Relaxed;
            let at = self.read.load(Relaxed);
            if at > 256 << 20 {
                return Err(std::io::Error::other("it is read without end"));
            }
            let from = match at.checked_sub(self.first.len()) {
                None => &self.first[at..],
                Some(past) => &self.again[past % self.again.len()..],
            };
            let count = from.len().min(into.len());
            into[..count].copy_from_slice(&from[..count]);
            self.read.store(at + count, Relaxed);
            Ok(count)
        }
    }
    let (bench, read) = (Bench::new().expect("a temporary directory"), std::sync::atomic::AtomicUsize::new(0));
    let (diff, work) = (Root::open(&bench.diff()), Root::open(&bench.temp.path().join("work")));
    let (diff, work) = (diff.expect("made"), work.expect("made"));
    let source = Endless { first, again, read: &read };
    let error = unpack(&diff, &work, Compression::None, source, limits, None).expect_err("it has no end").to_string();
    let tree = scan(&bench.diff()).expect("it can be read");
    let names = tree.into_keys().map(|path| path.display().to_string()).filter(|path| !path.is_empty());
    (error, read.into_inner(), names.collect())
}

/// A limit is where work ends, not only what the error speaks of.
#[test]
fn nothing_is_read_on_past_a_limit() {
    let limits = Limits { entries: 100, bytes: 4 << 20, ..Limits::default() };
    let (small, megabytes) = (16 << 10, 4 << 20);
    let header = |size: u64, flag: u8| Layer::new().raw(flag, (b"f", b""), size, b"", Attributes::default()).0;
    let cases = [
        // Entries; the archive is two blocks for each.
        ("more than 100 entries", vec![], Layer::new().file("f", "x").0, 100 * 1024),
        // One file, said to be larger than allowed: nothing of it is read.
        ("more than 4194304 bytes in its files", header(8 << 30, b'0'), vec![b'x'; small], 512),
        // Files of a megabyte each.
        ("more than 4194304 bytes", vec![], Layer::new().file("f", vec![b'x'; 1 << 20]).0, megabytes),
        // Zeros after the end of the archive.
        ("more than 4194304 bytes", Layer::new().done(), vec![0; small], megabytes),
        // An extension header, said to be as large as memory.
        ("bytes in one extension header", header(8 << 30, b'x'), vec![b'x'; small], 512),
        ("bytes in one extension header", header(8 << 30, b'L'), vec![b'x'; small], 512),
    ];
    for (want, first, again, most) in cases {
        let (error, read, names) = endless(first, again, &limits);
        assert!(error.contains(want), "{error}");
        assert!(read <= most + UNDER_WAY, "{want}: {read} bytes were read");
        assert!(names.is_empty() || names == ["f"], "{names:?}");
    }
}
