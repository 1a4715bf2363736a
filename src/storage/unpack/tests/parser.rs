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
    // Regions without end: each block of map says that another follows.
    refused(|_| {
        let mut layer = Layer::new().block(sparse_header(&[], 1 << 40, true), b"").0;
        let mut offset = 0;
        for _ in 0..4000 {
            let mut more = tar::GnuExtSparseHeader::new();
            more.set_is_extended(true);
            for slot in more.sparse_mut() {
                offset += 2;
                slot.set_offset(offset);
                slot.set_length(1);
            }
            layer.extend_from_slice(more.as_bytes());
        }
        layer
    });
}
