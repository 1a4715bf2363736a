//! Files of 4 GiB and more: no size, offset or position is cut to 32 bits on its way through unpacking, verifying and the archive
//! that is put together again. The files are holes but for a few bytes, so they cost no disk; archives are made as they are read.

use std::io::{self, Read};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use super::builder::{Attributes, Layer};
use super::*;
use crate::storage::KeptLayer;

const SIZE: u64 = 5 << 30;
/// Where the data is: past what 32 bits can say.
const AT: u64 = (4 << 30) + 7;
const DATA: &[u8] = b"beyond";

/// A piece of an archive.
#[derive(Clone)]
enum Part {
    Bytes(Vec<u8>),
    Zeros(u64),
}

/// An archive that is made as it is read.
struct Stream<'a> {
    parts: std::iter::Cloned<std::slice::Iter<'a, Part>>,
    now: Part,
}

impl<'a> Stream<'a> {
    fn new(parts: &'a [Part]) -> Self {
        Self { parts: parts.iter().cloned(), now: Part::Zeros(0) }
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = match &mut self.now {
                Part::Bytes(bytes) => {
                    let count = bytes.len().min(into.len());
                    into[..count].copy_from_slice(&bytes[..count]);
                    bytes.drain(..count);
                    count
                }
                Part::Zeros(left) => {
                    let count = into.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    into[..count].fill(0);
                    *left -= count as u64;
                    count
                }
            };
            if read > 0 || into.is_empty() {
                return Ok(read);
            }
            match self.parts.next() {
                Some(part) => self.now = part,
                None => return Ok(0),
            }
        }
    }
}

/// What follows a header: the content as the tree has it, padding, one more small file, the end.
fn whole(header: Vec<u8>) -> Vec<Part> {
    let rest = Layer::new().file("after", "x").done();
    let after = SIZE - AT - DATA.len() as u64;
    vec![Part::Bytes(header), Part::Zeros(AT), Part::Bytes(DATA.to_vec()), Part::Zeros(after), Part::Bytes(rest)]
}

/// A header with this size field.
fn sized(layer: &mut Layer, field: [u8; 12]) -> Vec<u8> {
    let bytes = std::mem::take(layer).raw(b'0', (b"large", b""), 0, b"", Attributes::default()).0;
    let at = bytes.len() - 512;
    let mut header = tar::Header::from_byte_slice(&bytes[at..]).clone();
    header.as_old_mut().size = field;
    header.set_cksum();
    [&bytes[..at], header.as_bytes()].concat()
}

/// A size record of pax; what the field of the header says does not count then.
fn by_pax() -> Vec<Part> {
    let mut layer = Layer::new().pax(&[("size", SIZE.to_string().as_bytes())]);
    whole(sized(&mut layer, *b"00000000000\0"))
}

/// The binary form of the size field.
fn by_base_256() -> Vec<Part> {
    let mut field = [0; 12];
    field[0] = 0x80;
    field[4..].copy_from_slice(&SIZE.to_be_bytes());
    whole(sized(&mut Layer::new(), field))
}

/// GNU's sparse file of old: a map of offsets, and just the data.
fn by_sparse_map() -> Vec<Part> {
    let bytes = Layer::new().raw(b'S', (b"large", b""), DATA.len() as u64, DATA, Attributes::default()).0;
    let mut header = tar::Header::from_byte_slice(&bytes[..512]).clone();
    let gnu = header.as_gnu_mut().expect("a GNU header");
    gnu.set_real_size(SIZE);
    gnu.sparse[0].set_offset(AT);
    gnu.sparse[0].set_length(DATA.len() as u64);
    gnu.sparse[1].set_offset(SIZE);
    gnu.sparse[1].set_length(0);
    header.set_cksum();
    let rest = Layer::new().file("after", "x").done();
    vec![Part::Bytes([header.as_bytes(), &bytes[512..], &rest].concat())]
}

fn expect_same(mut ours: impl Read, mut theirs: impl Read) -> anyhow::Result<()> {
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0_u64;
    loop {
        let read = ours.read(&mut a)?;
        theirs.read_exact(&mut b[..read])?;
        anyhow::ensure!(a[..read] == b[..read], "they differ after byte {at}");
        at += read as u64;
        if read == 0 {
            anyhow::ensure!(theirs.read(&mut b)? == 0, "it ends early, at byte {at}");
            return Ok(());
        }
    }
}

/// Unpacks, and verifies, which puts the archive together again and takes its digest.
fn passes(parts: &[Part]) -> anyhow::Result<(Fixture, KeptLayer)> {
    let fixture = Fixture::new()?;
    let chain = Digest::of(b"large");
    let staged =
        fixture.storage.stage_layer(&chain, None, Compression::None, Stream::new(parts), &Limits::default())?;
    fixture.storage.commit_layers(vec![staged])?;
    let path = fixture.diff(&chain).join("large");
    let file = std::fs::File::open(&path)?;
    let mut found = [0; DATA.len()];
    file.read_exact_at(&mut found, AT)?;
    assert_eq!((file.metadata()?.len(), &found[..]), (SIZE, DATA));
    assert!(file.metadata()?.blocks() * 512 < 1 << 20, "{} blocks for holes", file.metadata()?.blocks());
    assert_eq!(std::fs::read(fixture.diff(&chain).join("after"))?, b"x");
    assert!(fixture.storage.layer_size(&chain).expect("known").bytes < 1 << 20);
    let kept = KeptLayer::open(&fixture.temp.path().join("images"), &chain)?;
    let length = |part: &Part| match part {
        Part::Bytes(bytes) => bytes.len() as u64,
        Part::Zeros(count) => *count,
    };
    assert_eq!(kept.archive_size(), Some(parts.iter().map(length).sum()));
    assert_eq!(kept.verify(kept.diff_id())?.findings, []);
    Ok((fixture, kept))
}

#[test]
fn a_sparse_map_past_four_gigabytes() -> anyhow::Result<()> {
    let parts = by_sparse_map();
    let (fixture, kept) = passes(&parts)?;
    expect_same(kept.archive()?, Stream::new(&parts))?;
    // A byte in a hole past 4 GiB is seen.
    let path = fixture.diff(&Digest::of(b"large")).join("large");
    let file = std::fs::OpenOptions::new().write(true).open(path)?;
    let before = file.metadata()?.modified()?;
    file.write_all_at(b"x", AT + 100_000)?;
    file.set_modified(before)?;
    let found = kept.verify(kept.diff_id())?.findings;
    assert!(found.len() == 1 && found[0].path == "large" && found[0].problem.contains("content"), "{found:?}");
    Ok(())
}

#[test]
#[ignore = "needs root: reads ten gigabytes of zeros"]
fn a_pax_size_past_four_gigabytes() -> anyhow::Result<()> {
    passes(&by_pax()).map(drop)
}

#[test]
#[ignore = "needs root: reads ten gigabytes of zeros"]
fn a_binary_size_past_four_gigabytes() -> anyhow::Result<()> {
    passes(&by_base_256()).map(drop)
}
