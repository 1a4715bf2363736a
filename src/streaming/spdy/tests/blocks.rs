//! Header blocks.

use flate2::{Compress, Compression, FlushCompress};
use proptest::prelude::*;

use super::super::headers::{Deflater, Headers, Inflater};
use super::raw::{compress, compressor, plain};

const MAX: usize = 8 * 1024;

fn inflater() -> Inflater {
    Inflater::new(MAX, 64)
}

fn bytes(hex: &str) -> Vec<u8> {
    hex::decode(hex).unwrap()
}

#[test]
fn blocks_of_go_are_read() {
    // What spdystream 0.5.1 wrote for the headers below, one after the other.
    let mut inflater = inflater();
    for (block, expected) in [
        ("78f9e3c6a7c26260606004a7b392a2d4c45c6851c29a0a0a6800000000ffff", vec![("streamtype", "error")]),
        ("c22e555c92929907000000ffff", vec![("streamtype", "stdin")]),
        ("c22ac5565c92925f5a02000000ffff", vec![("streamtype", "stdout")]),
        (
            "0225630c3950e1940829e78bc059cac2c0c280818181b308922e3241f985c9d01c000000ffff",
            vec![("streamtype", "data"), ("port", "8080"), ("requestid", "17")],
        ),
    ] {
        let headers = inflater.read(&bytes(block)).unwrap();
        for (name, value) in expected {
            assert_eq!(headers.get(name), Some(value));
        }
    }
}

#[test]
fn names_are_found_without_regard_to_case() {
    let headers: Headers = [("streamType", "data"), ("port", "")].into_iter().collect();
    assert_eq!(headers.get("STREAMTYPE"), Some("data"));
    assert_eq!(headers.get("Port"), Some(""));
    assert_eq!(headers.get("request"), None);
}

proptest! {
    #[test]
    fn blocks_come_back_whoever_compressed_them(
        blocks in prop::collection::vec(prop::collection::btree_map("[a-z]{1,20}", ".{0,60}", 0..10), 1..8)
    ) {
        let (mut stored, mut packed) = (inflater(), inflater());
        let (mut deflater, mut zlib) = (Deflater::default(), compressor());
        for block in blocks {
            let headers: Headers = block.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            prop_assert_eq!(&stored.read(&deflater.write(&headers)).unwrap(), &headers);
            let pairs: Vec<_> = block.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
            let plain = plain(u32::try_from(pairs.len()).unwrap(), &pairs);
            prop_assert_eq!(&packed.read(&compress(&mut zlib, &plain)).unwrap(), &headers);
        }
    }

    #[test]
    fn no_block_is_too_strange(block in prop::collection::vec(any::<u8>(), 0..200), plain in prop::collection::vec(any::<u8>(), 0..60)) {
        let _ = inflater().read(&block);
        let _ = inflater().read(&compress(&mut compressor(), &plain));
    }
}

#[test]
fn damaged_blocks_are_errors() {
    let pair = |name: &'static str, value: &'static str| (name.as_bytes(), value.as_bytes());
    let long = "x".repeat(100);
    let cut = |mut plain: Vec<u8>, by: usize| {
        plain.truncate(plain.len() - by);
        plain
    };
    let length = |length: u32| {
        let mut plain = 1_u32.to_be_bytes().to_vec();
        plain.extend_from_slice(&length.to_be_bytes());
        plain
    };
    for (plain, expected) in [
        (plain(u32::MAX, &[]), "too many headers"),
        (plain(1 << 31, &[pair("a", "b")]), "too many headers"),
        (plain(65, &[]), "too many headers"),
        (plain(2, &[pair("a", "b")]), "it ends early"),
        (plain(0, &[pair("a", "b")]), "bytes after the last header"),
        (cut(plain(1, &[pair("a", "bcd")]), 1), "a length beyond its end"),
        (cut(plain(1, &[pair("a", "b")]), 3), "it ends early"),
        (length(u32::MAX), "a length beyond its end"),
        (length(1 << 31), "a length beyond its end"),
        (plain(1, &[pair("", "b")]), "a header without a name"),
        (plain(2, &[pair("a", "b"), pair("A", "c")]), "a name twice"),
        (plain(1, &[(b"a", b"\xff")]), "text that is not UTF-8"),
        (b"abc".to_vec(), "it ends early"),
        (Vec::new(), "it ends early"),
        (plain(1, &[(b"a", long.as_bytes())])[..50].to_vec(), "a length beyond its end"),
    ] {
        let error = inflater().read(&compress(&mut compressor(), &plain)).unwrap_err();
        assert_eq!(error.to_string(), format!("the header block is damaged: {expected}"), "{plain:?}");
    }
}

#[test]
fn damaged_streams_are_errors() {
    let mut other = Compress::new(Compression::best(), true);
    other.set_dictionary(b"another dictionary").unwrap();
    let other = compress(&mut other, &plain(0, &[]));
    let mut ended = Vec::with_capacity(100);
    compressor().compress_vec(&plain(0, &[]), &mut ended, FlushCompress::Finish).unwrap();
    let mut flipped = compress(&mut compressor(), &plain(1, &[(b"a", b"b")]));
    flipped[6] = 0x07;
    for (block, expected) in [
        (Vec::new(), "it ends early"),
        (b"no zlib at all".to_vec(), "it does not inflate"),
        (other, "an unknown dictionary"),
        (ended, "the stream of all blocks ends"),
        (flipped, "it does not inflate"),
    ] {
        let error = inflater().read(&block).unwrap_err();
        assert_eq!(error.to_string(), format!("the header block is damaged: {expected}"), "{block:?}");
    }
}

#[test]
fn a_bomb_stops_at_the_limit() {
    for (size, fits) in [(MAX - 13, true), (MAX - 12, false), (MAX, false), (16 << 20, false)] {
        let block = compress(&mut compressor(), &plain(1, &[(b"a", &vec![b'z'; size])]));
        let read = inflater().read(&block);
        match read {
            Ok(headers) => assert!(fits && headers.get("a").unwrap().len() == size),
            Err(error) => {
                assert!(!fits);
                assert_eq!(error.to_string(), "the header block has more than 8192 bytes");
            }
        }
    }
}
