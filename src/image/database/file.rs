//! The database's file: made, opened, and set aside when it is damaged. The first blocks of it are on the disk before anything
//! is written to them, so that removing an image needs no room.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{BackendError, Builder, ReadableDatabase as _, ReadableTable as _, StorageBackend};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::{IMAGES, Loaded, META, decode, failed, generation};
use crate::image::error::ImageError;
use crate::storage::Digest;

/// Starts that may end while reading the file before it is set aside. One may be a kill or a power cut at the wrong time.
const MAX_CRASHES: u32 = 2;
/// Page cache: the table is a few hundred KiB on a full node.
const CACHE: usize = 1024 * 1024;
/// Bytes from the start of the file whose blocks are on the disk, also beyond its end: the library makes it larger and smaller
/// as it likes, and writes each page to a new place. Enough for a thousand images.
const FLOOR: u64 = 4 << 20;
/// Files that are kept aside; of more the last is replaced.
const MAX_ASIDE: usize = 8;

/// Without the database itself there was no room to write to it.
type Opened = (Option<redb::Database>, Loaded);

/// Opens or makes the file and reads it.
pub(super) fn open(path: &Path) -> Result<Opened, ImageError> {
    if path.symlink_metadata().is_err() {
        return make(path);
    }
    match guarded(path)? {
        Ok(opened) => Ok(opened),
        Err(reason) => {
            let aside = set_aside(path)?;
            let note = format!("{}: cannot be read ({reason}); set aside as {}", path.display(), aside.display());
            let (database, found) = make(path)?;
            Ok((database, Loaded { note: Some(note), ..found }))
        }
    }
}

/// Whether the disk, or a quota on it, is full.
pub(super) fn is_full(error: &redb::Error) -> bool {
    match error {
        redb::Error::Io(error) => is_room(error),
        // Something else is told of the first failure.
        redb::Error::PreviousIo => true,
        _ => false,
    }
}

/// In the kernel's words.
pub(super) fn full() -> redb::Error {
    redb::Error::Io(Errno::NOSPC.into())
}

fn is_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn make(path: &Path) -> Result<Opened, ImageError> {
    match try_make(path) {
        Ok(made) => Ok(made),
        Err(error) if is_full(&error) => Ok((None, Loaded { doubtful: true, ..Loaded::default() })),
        Err(error) => Err(failed(path, "cannot be made", error)),
    }
}

/// Makes a file that has its name only when it is whole: the library writes what tells a database from another file
/// last, and a power cut before that would leave one that is damaged.
fn try_make(path: &Path) -> Result<Opened, redb::Error> {
    let new = path.with_extension("redb.new");
    clear(&new)?;
    let made = read(&new);
    let (database, found) = match made {
        Ok((Some(database), found)) => (database, found),
        unfinished => {
            clear(&new)?;
            unfinished?;
            return Err(full());
        }
    };
    std::fs::rename(&new, path)?;
    File::open(path.parent().unwrap_or(path))?.sync_all()?;
    Ok((Some(database), Loaded { doubtful: true, ..found }))
}

/// Reads the file so that no damage in it ends the daemon for good. The library panics on some kinds of damage: that
/// is caught where panics unwind; where they abort, a count beside the file tells the next start. The inner error is
/// why the file must be set aside.
fn guarded(path: &Path) -> Result<Result<Opened, String>, ImageError> {
    let count = path.with_extension("opening");
    let crashes = std::fs::read_to_string(&count).ok().and_then(|text| text.trim().parse::<u32>().ok()).unwrap_or(0);
    let unwritten = |source| ImageError::disk(&count, "cannot be removed", source);
    if crashes >= MAX_CRASHES {
        clear(&count).map_err(unwritten)?;
        return Ok(Err(format!("the daemon ended {crashes} times while reading it")));
    }
    match std::fs::write(&count, (crashes + 1).to_string()) {
        Ok(()) => {}
        // A node whose disk is full must come up all the same, to stop and remove what fills it.
        Err(source) if is_room(&source) => {}
        Err(source) => return Err(ImageError::disk(&count, "cannot be written", source)),
    }
    let opened = std::panic::catch_unwind(|| read(path));
    clear(&count).map_err(unwritten)?;
    match opened {
        Ok(Ok(opened)) => Ok(Ok(opened)),
        Ok(Err(error)) if is_broken(&error) => Ok(Err(error.to_string())),
        Ok(Err(error)) => Err(failed(path, "cannot be opened", error)),
        Err(_) => Ok(Err("its content makes no sense".to_owned())),
    }
}

fn read(path: &Path) -> Result<Opened, redb::Error> {
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).clone();
    let backend = Reserved::new(options.open(path)?)?;
    let mut file = Builder::new().set_cache_size(CACHE).create_with_backend(backend)?;
    // Compares every page with its checksum, which a plain open does not. The file is small.
    let whole = file.check_integrity()?;
    let mut found = Loaded { doubtful: !whole, ..Loaded::default() };
    let read = file.begin_read()?;
    match read.open_table(IMAGES) {
        Ok(table) => {
            for row in table.iter()? {
                let (key, value) = row?;
                match (key.value().parse::<Digest>(), decode(key.value(), value.value())) {
                    (Ok(id), Some(record)) => {
                        found.records.insert(id, record);
                    }
                    _ => found.unreadable.push(key.value().to_owned()),
                }
            }
        }
        Err(redb::TableError::TableDoesNotExist(_)) => {}
        Err(error) => return Err(error.into()),
    }
    match read.open_table(META) {
        Ok(table) => found.generation = generation(&table)?,
        Err(redb::TableError::TableDoesNotExist(_)) => {}
        Err(error) => return Err(error.into()),
    }
    drop(read);
    match first_write(&file) {
        Ok(()) => Ok((Some(file), found)),
        Err(error) if is_full(&error) => Ok((None, found)),
        Err(error) => Err(error),
    }
}

/// A write at once, so that damage to the free list shows here and not under the first pull.
fn first_write(file: &redb::Database) -> Result<(), redb::Error> {
    let mut write = file.begin_write()?;
    write.set_quick_repair(true);
    write.open_table(META)?.insert("opened-by", env!("CARGO_PKG_VERSION"))?;
    write.commit()?;
    Ok(())
}

/// The file's content is at fault, or the places on the disk where it is, or it is no file; not the room on the disk, the
/// permissions or another daemon that has it open.
pub(super) fn is_broken(error: &redb::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, IsADirectory, UnexpectedEof};
    // What a disk, ext4, XFS and btrfs say of a place that cannot be read.
    let unreadable = [Errno::IO, Errno::UCLEAN, Errno::BADMSG];
    match error {
        redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => false,
        redb::Error::Io(error) => {
            matches!(error.kind(), InvalidData | UnexpectedEof | InvalidInput | IsADirectory)
                || Errno::from_io_error(error).is_some_and(|errno| unreadable.contains(&errno))
        }
        _ => true,
    }
}

/// Removes a file that nobody misses, or whatever has its name.
fn clear(path: &Path) -> io::Result<()> {
    let removed = match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => std::fs::remove_dir_all(path),
        removed => removed,
    };
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn set_aside(path: &Path) -> Result<PathBuf, ImageError> {
    let failed = |source| ImageError::disk(path, "cannot be set aside", source);
    let name = |n: usize| path.with_extension(format!("redb.broken-{n}"));
    let free = (0..MAX_ASIDE).map(name).find(|aside| aside.symlink_metadata().is_err());
    let aside = free.unwrap_or_else(|| name(MAX_ASIDE - 1));
    clear(&aside).map_err(failed)?;
    std::fs::rename(path, &aside).map_err(failed)?;
    Ok(aside)
}

/// A file whose blocks are there, and whose first ones are there whatever its length is.
#[derive(Debug)]
struct Reserved {
    inner: FileBackend,
    /// The same open file.
    file: File,
}

impl Reserved {
    fn new(file: File) -> Result<Self, redb::Error> {
        let reserved = Self { inner: FileBackend::new(file.try_clone()?)?, file };
        reserved.reserve()?;
        Ok(reserved)
    }

    fn reserve(&self) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, 0, FLOOR) {
            // No room, which is no error before something is written; and file systems that cannot do it.
            Err(Errno::NOSPC | Errno::DQUOT | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            done => Ok(done?),
        }
    }
}

impl StorageBackend for Reserved {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    /// Longer it gets with all of its blocks, or not at all: the library may write to any of them next.
    fn set_len(&self, length: u64) -> io::Result<()> {
        let before = self.inner.len()?;
        if let Some(more) = length.checked_sub(before).filter(|more| *more > 0) {
            match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), before, more) {
                Err(error @ (Errno::NOSPC | Errno::DQUOT)) => {
                    self.inner.set_len(before)?;
                    self.reserve()?;
                    return Err(error.into());
                }
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.inner.set_len(length)?;
        // What is beyond the new end was given back.
        if length < FLOOR { self.reserve() } else { Ok(()) }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.inner.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, from: Bound<u64>, to: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(from, to)
    }

    fn try_lock_shared_range(&self, from: Bound<u64>, to: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(from, to)
    }

    fn lock_range(&self, from: Bound<u64>, to: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(from, to)
    }

    fn lock_shared_range(&self, from: Bound<u64>, to: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(from, to)
    }

    fn unlock_range(&self, from: Bound<u64>, to: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(from, to)
    }

    fn query_lock_range(&self, from: Bound<u64>, to: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(from, to)
    }
}
