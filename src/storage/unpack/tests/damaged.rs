//! Damaged streams: an error, soon, and never a hang (CVE-2021-20291).

use super::*;

fn layer() -> Vec<u8> {
    let noise: Vec<u8> = (0..300_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
    Layer::new().dir("d").file("d/large", &noise).pax(&[("path", b"d/long")]).file("short", "x").done()
}

fn unpacks(compression: Compression, bytes: &[u8]) -> Result<Unpacked, UnpackError> {
    Bench::new().expect("a temporary directory").unpack(OPEN_PARENTS, compression, bytes)
}

#[test]
fn cve_2021_20291_truncated_streams_are_errors() {
    let plain = layer();
    let zipped = gzip(&plain);
    for cut in [1, 5, 9, 10, 11, 100, zipped.len() / 2, zipped.len() - 9, zipped.len() - 8, zipped.len() - 1] {
        assert!(unpacks(Compression::Gzip, &zipped[..cut]).is_err(), "gzip cut to {cut}");
    }
    for cut in [1, 511, 513, 1000, 1025, 200_000, plain.len() - 1024 - 513] {
        assert!(unpacks(Compression::None, &plain[..cut]).is_err(), "tar cut to {cut}");
    }
    assert!(matches!(unpacks(Compression::Gzip, b""), Err(UnpackError::Empty)));
    assert!(matches!(unpacks(Compression::None, b""), Err(UnpackError::Empty)));
    assert!(unpacks(Compression::None, &plain[..plain.len() - 1024]).is_ok(), "the end mark may be missing");
    assert!(unpacks(Compression::None, &plain[..plain.len() - 512]).is_ok(), "or half of it");
}

#[test]
fn cve_2021_20291_garbage_is_an_error() {
    let plain = layer();
    let zipped = gzip(&plain);
    for trailer in [&b"garbage"[..], &[0], &[0x1f, 0x8b]] {
        assert!(unpacks(Compression::Gzip, &[&zipped, trailer].concat()).is_err(), "after gzip: {trailer:?}");
    }
    assert!(unpacks(Compression::None, &[&plain, &b"garbage"[..]].concat()).is_err(), "after tar");
    assert!(unpacks(Compression::None, &[&plain, &plain[..]].concat()).is_err(), "a second archive");
    assert!(unpacks(Compression::Gzip, &plain).is_err(), "tar as gzip");
    assert!(unpacks(Compression::None, &zipped).is_err(), "gzip as tar");
    let mut flipped = zipped;
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x55;
    assert!(unpacks(Compression::Gzip, &flipped).is_err(), "a flipped bit");
}

#[test]
fn members_of_gzip_are_one_stream_and_padding_counts() -> anyhow::Result<()> {
    let mut plain = layer();
    plain.resize(plain.len() + 10_240, 0);
    let halves = [gzip(&plain[..70_000]), gzip(&plain[70_000..]), gzip(b"")].concat();
    for (compression, bytes) in [(Compression::Gzip, &halves), (Compression::None, &plain)] {
        assert_eq!(unpacks(compression, bytes)?.diff_id, Digest::of(&plain));
    }
    Ok(())
}

/// A source that fails while the writer waits for it, and one that is never read to its end.
#[test]
fn a_failing_source_and_a_failing_writer_both_end_the_other() {
    struct Endless(Vec<u8>, usize);
    impl std::io::Read for Endless {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            if self.1 > 64 << 20 {
                return Err(std::io::Error::other("the writer did not stop the reader"));
            }
            let (at, step) = (self.1 % self.0.len(), into.len().min(4096));
            let step = step.min(self.0.len() - at);
            into[..step].copy_from_slice(&self.0[at..at + step]);
            self.1 += step;
            Ok(step)
        }
    }
    let fails = |source: Endless| {
        let bench = Bench::new().expect("a temporary directory");
        let (diff, work) = (bench.diff(), bench.temp.path().join("work"));
        let (diff, work) = (Root::open(&diff).expect("made"), Root::open(&work).expect("made"));
        unpack(&diff, &work, Compression::None, source, &Limits::default(), None).expect_err("it cannot succeed")
    };
    let error = fails(Endless(Layer::new().file("../climbs", vec![b'x'; 8192]).done(), 0));
    assert!(matches!(error, UnpackError::Entry { .. }), "{error}");
    let error = fails(Endless(Layer::new().file("file", vec![b'x'; 128 << 20]).0, 0));
    assert!(matches!(error, UnpackError::Stream { .. }), "{error}");
}

/// Whatever bytes come, unpacking ends without touching the canary.
#[test]
fn mutated_layers_never_leave_the_layer() {
    let mut random = crate::storage::tests::builder::Seeded(7);
    for _ in 0..400 {
        let bench = Bench::new().expect("a temporary directory");
        let mut bytes = Layer::new()
            .dir("d")
            .symlink("s", &bench.outside())
            .pax(&[("path", b"s/file"), ("size", b"4")])
            .file("x", "evil")
            .hardlink("h", "s/file")
            .file("s/x", "evil")
            .done();
        for _ in 0..=random.below(6) {
            let at = usize::try_from(random.below(bytes.len() as u64)).expect("an index");
            bytes[at] = random.next().to_le_bytes()[0];
        }
        // Repair the sums of what still looks like a header, so that mutations get past the first check.
        for block in bytes.chunks_exact_mut(512) {
            if block[257..262] == *b"ustar" {
                let mut header = tar::Header::new_gnu();
                header.as_mut_bytes().copy_from_slice(block);
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
        }
        let _ = bench.unpack(OPEN_PARENTS, Compression::None, &bytes);
    }
}
