//! A hostile layer, written entry by entry: whatever is in it, nothing panics, nothing outside of the store changes, memory is
//! bounded, the same layer cut otherwise has the same outcome, and nothing is left once it is dropped.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use arbitrary::{Arbitrary, Unstructured};
use cricket::fuzzing::image::{Compression, Digest, Limits, Storage, StorageOptions};

use super::{cuts, heap};

/// Plays an input.
pub fn check(input: &[u8]) {
    let Ok(plan) = Plan::arbitrary_take_rest(Unstructured::new(input)) else { return };
    let bench = Bench::new();
    let layer = plan.layer(&bench.outside());
    let digest = Digest::of(&layer);
    let limits = Limits { entries: 200, bytes: 1 << 20, path: 300, xattr: 256, extension: 4096 };
    let outcome = |reader: Pieces<'_>| {
        let staged = bench.store.stage_layer(&digest, &digest, Compression::None, reader, &limits);
        // Which of several faults is told may depend on when they are met.
        let staged = staged.map_err(|_| ())?;
        // What could be unpacked can be committed, which takes whiteouts out again: a layer at the bottom hides nothing.
        bench.store.commit_layers(vec![staged]).expect("a commit");
        let usage = bench.store.layer_size(&digest).expect("it is there");
        let removed = bench.store.remove_unleased(&HashSet::new()).expect("a removal");
        assert_eq!(removed.count, 1);
        Ok::<_, ()>(usage)
    };
    let watch = heap::Watch::begin();
    let whole = outcome(Pieces { rest: Box::new(std::iter::once(&layer[..])), now: &[] });
    watch.expect_below(BOUND);
    let cut = outcome(Pieces { rest: Box::new(cuts(&layer)), now: &[] });
    assert_eq!(whole, cut, "whole and cut");
    bench.expect_untouched();
}

/// The queue and the buffers of one layer (docs/decisions/026), and what the file system's caches of ours hold.
const BOUND: usize = 6 << 20;

/// A store, and next to it what no layer may touch.
struct Bench {
    store: Storage,
    folder: PathBuf,
}

impl Bench {
    fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        // In memory if there is such a place: most of the time goes into files otherwise.
        let top = Path::new("/dev/shm");
        let top = if top.is_dir() { top.to_owned() } else { std::env::temp_dir() };
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = top.join(format!("cricket-fuzz-{}-{count}", std::process::id()));
        fs::create_dir_all(folder.join("outside/folder")).expect("a folder");
        fs::write(folder.join("outside/file"), "host").expect("a file");
        fs::write(folder.join("outside/folder/file"), "host").expect("a file");
        let options = StorageOptions { images: folder.join("images"), containers: folder.join("containers") };
        let store = Storage::open(options).expect("a store");
        Self { store, folder }
    }

    fn outside(&self) -> String {
        self.folder.join("outside/folder").display().to_string()
    }

    fn expect_untouched(&self) {
        let outside = self.folder.join("outside");
        let mut names = Vec::new();
        for folder in [outside.clone(), outside.join("folder")] {
            let entries = fs::read_dir(&folder).expect("the canary").map(|entry| entry.expect("an entry").path());
            names.extend(entries);
        }
        names.sort();
        let want = ["file", "folder", "folder/file"].map(|name| outside.join(name));
        assert_eq!(names, want, "the canary was touched");
        for file in ["file", "folder/file"] {
            let path = outside.join(file);
            let (meta, text) = (fs::symlink_metadata(&path).expect("it is there"), fs::read(&path).expect("a file"));
            assert!(meta.is_file() && text == b"host", "{} was touched", path.display());
        }
        let staging = self.folder.join("images/staging");
        let left = fs::read_dir(&staging).expect("staging").count();
        assert_eq!(left, 0, "left in staging");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A reader that gives what it is told, piece by piece.
struct Pieces<'a> {
    rest: Box<dyn Iterator<Item = &'a [u8]> + Send + 'a>,
    now: &'a [u8],
}

impl Read for Pieces<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.now.is_empty() {
            let Some(next) = self.rest.next() else { return Ok(0) };
            self.now = next;
        }
        let count = self.now.len().min(into.len());
        into[..count].copy_from_slice(&self.now[..count]);
        self.now = &self.now[count..];
        Ok(count)
    }
}

#[derive(Debug, Arbitrary)]
struct Plan<'a> {
    entries: Vec<Item<'a>>,
    /// Bytes of the archive that are changed when it is done, at places in proportion to its length.
    damage: Vec<(u16, u8)>,
    /// It ends before its end.
    cut: Option<u16>,
}

#[derive(Debug, Arbitrary)]
struct Item<'a> {
    name: Vec<Part<'a>>,
    link: Vec<Part<'a>>,
    kind: Flag<'a>,
    mode: u16,
    content: &'a [u8],
    /// What the header says of the size, if not the truth.
    size: Option<u32>,
}

#[derive(Debug, Arbitrary)]
enum Flag<'a> {
    File,
    HardLink,
    Symlink,
    Directory,
    Fifo,
    /// GNU's long name or long link, for the next entry.
    LongName,
    LongLink,
    Pax(Vec<(Key<'a>, &'a [u8])>),
    Global(Vec<(Key<'a>, &'a [u8])>),
    /// GNU's sparse file of old, with its map in the header.
    Sparse([u16; 4]),
    Any(u8),
}

#[derive(Debug, Arbitrary)]
enum Key<'a> {
    Path,
    LinkPath,
    Size,
    Mtime,
    Xattr,
    Opaque,
    SparseMap,
    SparseMajor,
    SparseMinor,
    SparseName,
    SparseSize,
    Any(&'a str),
}

/// One component of a name.
#[derive(Debug, Arbitrary)]
enum Part<'a> {
    A,
    B,
    C,
    Dot,
    Up,
    Nothing,
    Opaque,
    Hidden,
    Outside,
    Long,
    Any(&'a [u8]),
}

impl Part<'_> {
    fn bytes(&self, outside: &str) -> Vec<u8> {
        match self {
            Self::A => b"a".to_vec(),
            Self::B => b"b".to_vec(),
            Self::C => b"c".to_vec(),
            Self::Dot => b".".to_vec(),
            Self::Up => b"..".to_vec(),
            Self::Nothing => Vec::new(),
            Self::Opaque => b".wh..wh..opq".to_vec(),
            Self::Hidden => b".wh.a".to_vec(),
            Self::Outside => outside.as_bytes().to_vec(),
            Self::Long => vec![b'l'; 120],
            Self::Any(bytes) => bytes.to_vec(),
        }
    }
}

fn joined(parts: &[Part<'_>], outside: &str) -> Vec<u8> {
    parts.iter().take(6).map(|part| part.bytes(outside)).collect::<Vec<_>>().join(&b'/')
}

impl Plan<'_> {
    fn layer(&self, outside: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        for item in self.entries.iter().take(64) {
            item.append(&mut bytes, outside);
        }
        bytes.resize(bytes.len() + 1024, 0);
        for (at, byte) in self.damage.iter().take(8) {
            let at = bytes.len() * usize::from(*at) / 65_536;
            bytes[at] = *byte;
        }
        if let Some(cut) = self.cut {
            bytes.truncate(bytes.len() * usize::from(cut) / 65_536);
        }
        bytes
    }
}

impl Item<'_> {
    fn append(&self, bytes: &mut Vec<u8>, outside: &str) {
        let name = joined(&self.name, outside);
        let (flag, content) = match &self.kind {
            Flag::File => (b'0', self.content.to_vec()),
            Flag::HardLink => (b'1', Vec::new()),
            Flag::Symlink => (b'2', Vec::new()),
            Flag::Directory => (b'5', Vec::new()),
            Flag::Fifo => (b'6', Vec::new()),
            Flag::LongName => (b'L', [&name[..], &[0]].concat()),
            Flag::LongLink => (b'K', [&joined(&self.link, outside)[..], &[0]].concat()),
            Flag::Pax(records) => (b'x', pax(records)),
            Flag::Global(records) => (b'g', pax(records)),
            Flag::Sparse(_) => (b'S', self.content.to_vec()),
            Flag::Any(flag) => (*flag, self.content.to_vec()),
        };
        let mut header = [0; 512];
        put(&mut header[..100], &name);
        put(&mut header[100..108], format!("{:07o}", self.mode & 0o7777).as_bytes());
        put(&mut header[108..116], b"0000000");
        put(&mut header[116..124], b"0000000");
        let size = self.size.map_or(content.len(), |size| size as usize);
        put(&mut header[124..136], format!("{size:011o}").as_bytes());
        put(&mut header[136..148], b"00000000001");
        header[156] = flag;
        put(&mut header[157..257], &joined(&self.link, outside));
        put(&mut header[257..265], b"ustar  \0");
        if let Flag::Sparse(map) = &self.kind {
            for (at, pair) in map.chunks(2).enumerate() {
                let field = 386 + 24 * at;
                put(&mut header[field..field + 12], format!("{:011o}", pair[0]).as_bytes());
                put(&mut header[field + 12..field + 24], format!("{:011o}", pair[1]).as_bytes());
            }
            put(&mut header[483..495], format!("{:011o}", u32::from(map[2]) + u32::from(map[3])).as_bytes());
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        put(&mut header[148..156], format!("{sum:06o}\0 ").as_bytes());
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(&content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
}

fn put(field: &mut [u8], value: &[u8]) {
    let count = value.len().min(field.len());
    field[..count].copy_from_slice(&value[..count]);
}

fn pax(records: &[(Key<'_>, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in records.iter().take(8) {
        let key = match key {
            Key::Path => "path",
            Key::LinkPath => "linkpath",
            Key::Size => "size",
            Key::Mtime => "mtime",
            Key::Xattr => "SCHILY.xattr.user.some",
            Key::Opaque => "SCHILY.xattr.trusted.overlay.opaque",
            Key::SparseMap => "GNU.sparse.map",
            Key::SparseMajor => "GNU.sparse.major",
            Key::SparseMinor => "GNU.sparse.minor",
            Key::SparseName => "GNU.sparse.name",
            Key::SparseSize => "GNU.sparse.realsize",
            Key::Any(text) => text,
        };
        let rest = key.len() + value.len() + 3;
        let mut length = rest + rest.to_string().len();
        if length.to_string().len() > rest.to_string().len() {
            length = rest + length.to_string().len();
        }
        bytes.extend_from_slice(format!("{length} {key}=").as_bytes());
        bytes.extend_from_slice(value);
        bytes.push(b'\n');
    }
    bytes
}
