//! The uncompressed archive of a layer, put together again from its skeleton and its tree.
//!
//! Files are opened by paths that lead through no symlink, below the layer's own directory: a skeleton that somebody wrote
//! by hand reads nothing else. What is read leaves no trace in the page cache or in access times, where the kernel can do that.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;

use crc32fast::Hasher as Crc;
use rustix::fs::{FileType, OFlags, SeekFrom};
use rustix::io::Errno;

use super::reader::{Record, Records};
use super::{NAME, REPLACED};
use crate::sys::root::{Root, file_type};
use crate::sys::uncached;

/// A file of the tree that does not have the content that the archive had.
#[derive(Debug, thiserror::Error)]
#[error("{}: {wrong}", path.escape_ascii())]
pub(in crate::storage) struct Damage {
    /// Below the layer's directory: `diff/…`, or `replaced/…`.
    pub path: Vec<u8>,
    pub wrong: Wrong,
}

#[derive(Debug, thiserror::Error)]
pub(in crate::storage) enum Wrong {
    #[error("it cannot be read: {0}")]
    Unreadable(io::Error),
    #[error("it is not a regular file")]
    Kind,
    #[error("it is shorter than in the archive")]
    Short,
    #[error("its content is not what the archive had")]
    Content,
}

/// What to do about damage: fail with the error, or go on with zeros for what is not there.
type Verdict<'v> = Box<dyn FnMut(Damage) -> io::Result<()> + Send + 'v>;

/// Reads as the archive did.
pub(in crate::storage) struct Rebuilt<'v> {
    records: Records<File>,
    diff: Root,
    replaced: Option<Root>,
    moves: Moves,
    /// Number of the record at hand, to tell what came before a move.
    at: u64,
    state: State,
    given: u64,
    verdict: Verdict<'v>,
}

enum State {
    Between,
    Raw(u32),
    File(Box<Content>),
    Done,
}

/// The content of one file, being read.
struct Content {
    path: Vec<u8>,
    /// `None` once it failed: zeros stand for the rest.
    file: Option<uncached::Reader>,
    size: u64,
    regions: Vec<(u64, u64)>,
    region: usize,
    /// Bytes of the region that were read.
    into: u64,
    crc: Crc,
    want: u32,
}

/// Bytes of memory for one entry of [`Moves`] beside its path.
const ENTRY: usize = 160;

/// By path: at which record it was moved, and the number that it has since.
#[derive(Default)]
struct Moves(HashMap<Vec<u8>, Vec<(u64, u64)>>);

impl<'v> Rebuilt<'v> {
    /// Opens a layer's directory, which holds the skeleton and the tree.
    ///
    /// # Errors
    /// `ENOENT` when there is no skeleton, `InvalidData` for one that is damaged, and those of `openat2(2)`.
    pub(in crate::storage) fn open(
        layer: &Root,
        verdict: impl FnMut(Damage) -> io::Result<()> + Send + 'v,
    ) -> io::Result<Self> {
        Self::within(usize::MAX, layer, verdict)
    }

    /// The same, in about so many bytes of memory for what was replaced, which is all that grows with the archive.
    ///
    /// # Errors
    /// Those of [`Rebuilt::open`], and `OutOfMemory` when it would take more.
    pub(in crate::storage) fn within(
        room: usize,
        layer: &Root,
        verdict: impl FnMut(Damage) -> io::Result<()> + Send + 'v,
    ) -> io::Result<Self> {
        let replaced = match layer.open_dir(REPLACED) {
            Ok(replaced) => Some(replaced),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let moves = if replaced.is_some() { Moves::read(skeleton(layer)?, room)? } else { Moves::default() };
        Ok(Self {
            records: Records::open(skeleton(layer)?)?,
            diff: layer.open_dir("diff")?,
            replaced,
            moves,
            at: 0,
            state: State::Between,
            given: 0,
            verdict: Box::new(verdict),
        })
    }

    fn next(&mut self) -> io::Result<State> {
        let record = self.records.next()?;
        self.at += 1;
        match record {
            Record::Raw(bytes) => Ok(State::Raw(bytes)),
            Record::File { path, regions, crc } => self.content(&path, regions, crc).map(Box::new).map(State::File),
            Record::Moved { .. } => Ok(State::Between),
            Record::End { archive } if archive == self.given => Ok(State::Done),
            Record::End { .. } => Err(io::Error::new(io::ErrorKind::InvalidData, "it states another length")),
        }
    }

    fn content(&mut self, path: &[u8], regions: Vec<(u64, u64)>, want: u32) -> io::Result<Content> {
        let (root, shown, below) = match (self.moves.find(path, self.at), &self.replaced) {
            (Some((number, rest)), Some(replaced)) => {
                let below = [number.to_string().as_bytes(), rest].concat();
                (replaced, [REPLACED.as_bytes(), b"/", &below].concat(), below)
            }
            _ => (&self.diff, [&b"diff/"[..], path].concat(), path.to_vec()),
        };
        let mut content =
            Content { path: shown, file: None, size: 0, regions, region: 0, into: 0, crc: Crc::new(), want };
        // Neither a FIFO nor a terminal in the file's place may hold us, or become ours.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOATIME;
        let opened = root.open_beneath(OsStr::from_bytes(&below), flags, 0).and_then(|fd| {
            let stat = rustix::fs::fstat(&fd)?;
            Ok((fd, stat))
        });
        let wrong = match opened {
            Ok((fd, stat)) if file_type(&stat) == FileType::RegularFile => {
                content.size = u64::try_from(stat.st_size).unwrap_or(0);
                content.file = Some(uncached::Reader::new(File::from(fd)));
                return Ok(content);
            }
            Ok(_) => Wrong::Kind,
            Err(error) => Wrong::Unreadable(error),
        };
        (self.verdict)(Damage { path: content.path.clone(), wrong })?;
        Ok(content)
    }
}

fn skeleton(layer: &Root) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    layer.open_beneath(NAME, flags, 0).map(File::from)
}

impl Read for Rebuilt<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            let read = match &mut self.state {
                State::Done => return Ok(0),
                State::Raw(left) if *left > 0 => {
                    let room = into.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    let read = self.records.raw(&mut into[..room])?;
                    *left -= u32::try_from(read).expect("at most what was left");
                    read
                }
                State::File(content) => {
                    let read = content.read(into).or_else(|damage| {
                        (self.verdict)(damage)?;
                        // From here on it has no file, and does not fail.
                        content.read(into).map_err(io::Error::other)
                    })?;
                    if read == 0 {
                        content.check().or_else(&mut self.verdict)?;
                    }
                    read
                }
                _ => 0,
            };
            if read > 0 {
                self.given += u64::try_from(read).expect("a slice is smaller than 2^64");
                return Ok(read);
            }
            self.state = self.next()?;
        }
    }
}

impl Content {
    /// Reads on; 0 at the end of the last region.
    fn read(&mut self, into: &mut [u8]) -> Result<usize, Damage> {
        let Some(&(offset, length)) = self.regions.get(self.region) else { return Ok(0) };
        let room = usize::try_from(length - self.into).unwrap_or(usize::MAX).min(into.len());
        let read = match &mut self.file {
            None => {
                into[..room].fill(0);
                room
            }
            Some(file) => match file.read_at(&mut into[..room], offset + self.into) {
                Ok(0) => return Err(self.fail(Wrong::Short)),
                Ok(read) => read,
                Err(error) => return Err(self.fail(Wrong::Unreadable(error))),
            },
        };
        self.crc.update(&into[..read]);
        self.into += u64::try_from(read).expect("a slice is smaller than 2^64");
        if self.into == length {
            (self.region, self.into) = (self.region + 1, 0);
        }
        Ok(read)
    }

    fn fail(&mut self, wrong: Wrong) -> Damage {
        self.file = None;
        Damage { path: self.path.clone(), wrong }
    }

    /// All was read: is it what the archive had? Between the regions of a sparse file there must be nothing.
    fn check(&mut self) -> Result<(), Damage> {
        let Some(file) = &self.file else { return Ok(()) };
        if self.crc.clone().finalize() != self.want {
            return Err(self.fail(Wrong::Content));
        }
        let mut from = 0;
        for &(offset, length) in self.regions.iter().chain(&[(self.size, 0)]) {
            if offset > from && offset <= self.size {
                match is_zero(file, from, offset) {
                    Ok(true) => {}
                    Ok(false) => return Err(self.fail(Wrong::Content)),
                    Err(error) => return Err(self.fail(Wrong::Unreadable(error))),
                }
            }
            from = offset + length;
        }
        Ok(())
    }
}

/// Whether nothing but zeros is in a part of a file. Holes are passed over: a file may be a great deal larger than a disk.
fn is_zero(file: &uncached::Reader, mut from: u64, to: u64) -> io::Result<bool> {
    let mut buffer = vec![0; 64 << 10];
    while from < to {
        from = match rustix::fs::seek(file.file(), SeekFrom::Data(from)) {
            Ok(data) => data,
            // No data until the end.
            Err(Errno::NXIO) => return Ok(true),
            // A file system that cannot tell.
            Err(Errno::INVAL) => from,
            Err(error) => return Err(error.into()),
        };
        let room = usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX).min(buffer.len());
        let read = file.read_at(&mut buffer[..room], from)?;
        if read == 0 {
            return Ok(true);
        }
        if buffer[..read].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        from += u64::try_from(read).expect("a slice is smaller than 2^64");
    }
    Ok(true)
}

impl Moves {
    fn read(skeleton: File, room: usize) -> io::Result<Self> {
        let mut records = Records::open(skeleton)?;
        let (mut moves, mut at) = (Self::default(), 0);
        let mut taken = 0;
        loop {
            at += 1;
            match records.next()? {
                Record::Raw(bytes) => records.skip(bytes)?,
                Record::File { .. } => {}
                Record::Moved { path, number } => {
                    taken += path.len() + ENTRY;
                    if taken > room {
                        return Err(io::Error::new(io::ErrorKind::OutOfMemory, "too much was replaced in it"));
                    }
                    moves.0.entry(path).or_default().push((at, number));
                }
                Record::End { .. } => return Ok(moves),
            }
        }
    }

    /// Where something went that had a path at a record: the number, and the rest of the path with its slash. Of all moves
    /// of the path and of those above it the first counts, since what lies in `replaced` is never moved again.
    fn find<'p>(&self, path: &'p [u8], at: u64) -> Option<(u64, &'p [u8])> {
        if self.0.is_empty() {
            return None;
        }
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        slashes
            .chain([path.len()])
            .filter_map(|end| {
                let moves = self.0.get(&path[..end])?;
                let (when, number) = moves.get(moves.partition_point(|(when, _)| *when <= at))?;
                Some((*when, *number, &path[end..]))
            })
            .min_by_key(|(when, ..)| *when)
            .map(|(_, number, rest)| (number, rest))
    }
}
