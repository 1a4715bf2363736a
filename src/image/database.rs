//! Image records on disk: one redb table from id to record.
//!
//! Every commit is durable before it returns. A file that cannot be read is set aside under another name and a new one is
//! begun with the records of which a copy is left ([`Copies`]): a node that does not start would be worse. All methods block.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::backends::FileBackend;
use redb::{Builder, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use sha2::{Digest as _, Sha256};

use super::copies::Copies;
use super::error::ImageError;
use super::record::StoredRecord;
use crate::storage::Digest;

/// The number is the version of the format.
const IMAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("images-1");
/// Facts about the file itself.
const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta-1");
/// Starts that may end while reading the file before it is set aside. One may be a kill or a power cut at the wrong time.
const MAX_CRASHES: u32 = 2;
/// Page cache: the table is a few hundred KiB on a full node.
const CACHE: usize = 1024 * 1024;

/// What the file held.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub records: BTreeMap<Digest, StoredRecord>,
    /// Keys of records that cannot be read.
    pub unreadable: Vec<String>,
    /// What was wrong with a file that was set aside.
    pub note: Option<String>,
    /// Records that came back from their copies.
    pub recalled: usize,
    /// The file may say less than was written: it is new, or it was repaired.
    doubtful: bool,
    /// How many times something was committed.
    generation: u64,
}

/// The open file.
#[derive(Debug)]
pub(super) struct Database {
    path: PathBuf,
    file: redb::Database,
    copies: Copies,
}

impl Database {
    /// Opens or makes the file and reads it.
    pub(super) fn open(root: &Path) -> Result<(Self, Loaded), ImageError> {
        let path = root.join("db.redb");
        let make = || Self::make(&path).map_err(|error| failed(&path, "cannot be made", error));
        let (database, mut found) = if path.symlink_metadata().is_err() {
            make()?
        } else {
            match Self::guarded(&path)? {
                Ok(opened) => opened,
                Err(reason) => {
                    let aside = set_aside(&path)?;
                    let note =
                        format!("{}: cannot be read ({reason}); set aside as {}", path.display(), aside.display());
                    let (database, found) = make()?;
                    (database, Loaded { note: Some(note), ..found })
                }
            }
        };
        database.recall(&mut found)?;
        Ok((database, found))
    }

    /// Makes a file that has its name only when it is whole: the library writes what tells a database from another file
    /// last, and a power cut before that would leave one that is damaged.
    fn make(path: &Path) -> Result<(Self, Loaded), redb::Error> {
        let new = path.with_extension("redb.new");
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let (made, found) = Self::read(&new)?;
        std::fs::rename(&new, path)?;
        std::fs::File::open(path.parent().unwrap_or(path))?.sync_all()?;
        Ok((Self { path: path.to_owned(), ..made }, Loaded { doubtful: true, ..found }))
    }

    /// Takes from the copies what the file has lost, and brings them up to date.
    fn recall(&self, found: &mut Loaded) -> Result<(), ImageError> {
        let mut back = Vec::new();
        found.doubtful |= self.copies.generation() > found.generation;
        if found.doubtful || !found.unreadable.is_empty() {
            for (name, value) in self.copies.all() {
                let key = format!("sha256:{name}");
                let (Ok(id), Some(record)) = (key.parse::<Digest>(), decode(&key, &value)) else { continue };
                if !found.records.contains_key(&id) && (found.doubtful || found.unreadable.contains(&key)) {
                    back.push((id, record));
                }
            }
        }
        if back.is_empty() {
            self.copies.set_generation(found.generation);
        } else {
            self.commit(&back, &[])?;
            found.unreadable.retain(|key| back.iter().all(|(id, _)| id.as_str() != key));
            found.recalled = back.len();
            found.records.extend(back);
        }
        let copy = |(id, record): (&Digest, &StoredRecord)| (id.hex().to_owned(), encode(id.as_str(), record));
        self.copies.settle(&found.records.iter().map(copy).collect());
        Ok(())
    }

    /// Reads the file so that no damage in it ends the daemon for good. The library panics on some kinds of damage: that
    /// is caught where panics unwind; where they abort, a count beside the file tells the next start. The inner error is
    /// why the file must be set aside.
    fn guarded(path: &Path) -> Result<Result<(Self, Loaded), String>, ImageError> {
        let count = path.with_extension("opening");
        let crashes =
            std::fs::read_to_string(&count).ok().and_then(|text| text.trim().parse::<u32>().ok()).unwrap_or(0);
        if crashes >= MAX_CRASHES {
            forget(&count)?;
            return Ok(Err(format!("the daemon ended {crashes} times while reading it")));
        }
        match std::fs::write(&count, (crashes + 1).to_string()) {
            Ok(()) => {}
            // A node whose disk is full must come up all the same, to stop and remove what fills it.
            Err(source) if source.kind() == std::io::ErrorKind::StorageFull => {}
            Err(source) => return Err(ImageError::disk(&count, "cannot be written", source)),
        }
        let opened = std::panic::catch_unwind(|| Self::read(path));
        forget(&count)?;
        match opened {
            Ok(Ok(opened)) => Ok(Ok(opened)),
            Ok(Err(error)) if is_broken(&error) => Ok(Err(error.to_string())),
            Ok(Err(error)) => Err(failed(path, "cannot be opened", error)),
            Err(_) => Ok(Err("its content makes no sense".to_owned())),
        }
    }

    fn read(path: &Path) -> Result<(Self, Loaded), redb::Error> {
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).clone();
        let backend = FileBackend::new(options.open(path)?)?;
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
        drop(read);
        // A write at once, so that damage to the free list shows here and not under the first pull.
        let mut write = file.begin_write()?;
        write.set_quick_repair(true);
        {
            let mut meta = write.open_table(META)?;
            meta.insert("opened-by", env!("CARGO_PKG_VERSION"))?;
            found.generation = generation(&meta)?;
        }
        write.commit()?;
        let copies = Copies::open(path.parent().unwrap_or(path));
        Ok((Self { path: path.to_owned(), file, copies }, found))
    }

    /// Writes and removes records in one durable step.
    pub(super) fn commit(&self, put: &[(Digest, StoredRecord)], remove: &[String]) -> Result<(), ImageError> {
        let generation =
            self.try_commit(put, remove).map_err(|error| failed(&self.path, "cannot be written", error))?;
        for (id, record) in put {
            self.copies.put(id.hex(), &encode(id.as_str(), record));
        }
        for id in remove.iter().filter_map(|id| id.parse::<Digest>().ok()) {
            self.copies.remove(id.hex());
        }
        self.copies.set_generation(generation);
        Ok(())
    }

    fn try_commit(&self, put: &[(Digest, StoredRecord)], remove: &[String]) -> Result<u64, redb::Error> {
        let mut write = self.file.begin_write()?;
        // Saves the scan of the whole file after a crash, for some hundred microseconds a commit.
        write.set_quick_repair(true);
        {
            let mut table = write.open_table(IMAGES)?;
            for (id, record) in put {
                table.insert(id.as_str(), encode(id.as_str(), record).as_slice())?;
            }
            for id in remove {
                table.remove(id.as_str())?;
            }
        }
        let next = {
            let mut meta = write.open_table(META)?;
            let next = generation(&meta)?.saturating_add(1);
            meta.insert("generation", next.to_string().as_str())?;
            next
        };
        write.commit()?;
        Ok(next)
    }
}

fn generation(meta: &redb::Table<'_, &'static str, &'static str>) -> Result<u64, redb::Error> {
    Ok(meta.get("generation")?.and_then(|text| text.value().parse().ok()).unwrap_or(0))
}

/// A record's value: the SHA-256 of key and JSON, then the JSON. Damage that slips through the library's own
/// checks, or was repaired by going back in time, must not pass for a record.
fn encode(key: &str, record: &StoredRecord) -> Vec<u8> {
    let json = serde_json::to_vec(record).expect("a record of strings and numbers is JSON");
    [checksum(key, &json).as_slice(), &json].concat()
}

fn decode(key: &str, value: &[u8]) -> Option<StoredRecord> {
    let (sum, json) = value.split_at_checked(32)?;
    (sum == checksum(key, json)).then(|| serde_json::from_slice(json).ok()).flatten()
}

fn checksum(key: &str, json: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(key).chain_update(json).finalize().into()
}

fn failed(path: &Path, doing: &'static str, source: redb::Error) -> ImageError {
    ImageError::Database { path: path.to_owned(), doing, source: Arc::new(source) }
}

/// The file's content is at fault, not the disk, the permissions or another daemon that has it open.
fn is_broken(error: &redb::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    match error {
        redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => false,
        redb::Error::Io(error) => matches!(error.kind(), InvalidData | UnexpectedEof | InvalidInput),
        _ => true,
    }
}

fn forget(count: &Path) -> Result<(), ImageError> {
    match std::fs::remove_file(count) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(ImageError::disk(count, "cannot be removed", source))
        }
        _ => Ok(()),
    }
}

fn set_aside(path: &Path) -> Result<PathBuf, ImageError> {
    for n in 0..1000 {
        let aside = path.with_extension(format!("redb.broken-{n}"));
        if aside.symlink_metadata().is_ok() {
            continue;
        }
        std::fs::rename(path, &aside).map_err(|source| ImageError::disk(path, "cannot be set aside", source))?;
        return Ok(aside);
    }
    Err(ImageError::disk(path, "cannot be set aside", io::Error::from(io::ErrorKind::AlreadyExists)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::tests::builder::Seeded;
    use std::collections::BTreeSet;

    fn record(n: u8) -> (Digest, StoredRecord) {
        let record = StoredRecord {
            manifest: Digest::of(&[n]),
            documents: BTreeSet::from([Digest::of(&[n, 1])]),
            chain: vec![Digest::of(&[n, 2])],
            repo_tags: BTreeSet::from([format!("registry.example/app:v{n}")]),
            repo_digests: BTreeSet::new(),
            size: u64::from(n),
        };
        (Digest::of(&[n, 3]), record)
    }

    #[test]
    fn no_damage_to_the_file_stops_the_daemon() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("db.redb");
        let (database, _) = Database::open(dir.path())?;
        for n in 0..40 {
            database.commit(&[record(n)], &[])?;
        }
        drop(database);
        let (database, found) = Database::open(dir.path())?;
        assert_eq!((found.records.len(), found.unreadable.len(), found.note), (40, 0, None));
        drop(database);
        let whole = std::fs::read(&path)?;
        for bytes in damaged(&whole) {
            std::fs::write(&path, &bytes)?;
            let (database, found) = Database::open(dir.path())?;
            // Whatever the file has lost, the copies have.
            for n in 0..40 {
                let (id, stored) = record(n);
                assert_eq!(found.records.get(&id), Some(&stored), "{:?}", found.note);
            }
            assert!(found.records.len() <= 41 && found.unreadable.is_empty());
            database.commit(&[record(50)], &[])?;
        }
        Ok(())
    }

    /// The file cut off, with single bits turned, with whole pages of noise, and with random bytes at random places.
    fn damaged(whole: &[u8]) -> Vec<Vec<u8>> {
        let mut random = Seeded(40);
        let mut damaged: Vec<Vec<u8>> = vec![Vec::new(), whole[..whole.len() - 1].to_vec()];
        for page in (0..whole.len()).step_by(4096) {
            damaged.push(whole[..page].to_vec());
            let mut noise = whole.to_vec();
            let end = (page + 4096).min(whole.len());
            noise[page..end].fill_with(|| random.next().to_le_bytes()[0]);
            damaged.push(noise);
        }
        for at in (0..whole.len()).step_by(whole.len() / 100).chain(0..300) {
            let mut bytes = whole.to_vec();
            bytes[at] ^= 0x5a;
            damaged.push(bytes);
        }
        for _ in 0..200 {
            let mut bytes = whole.to_vec();
            for _ in 0..=random.below(40) {
                let at = usize::try_from(random.below(whole.len() as u64)).expect("an index");
                bytes[at] = random.next().to_le_bytes()[0];
            }
            damaged.push(bytes);
        }
        damaged
    }

    #[test]
    fn copies_are_asked_only_when_the_file_is_at_fault() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let (database, _) = Database::open(dir.path())?;
        database.commit(&[record(1), record(2)], &[])?;
        let folder = dir.path().join("records");
        let kept = std::fs::read(folder.join(record(2).0.hex()))?;
        database.commit(&[], &[record(2).0.to_string()])?;
        assert_eq!(std::fs::read_dir(&folder)?.count(), 1);
        drop(database);
        // A copy that a power cut brought back, one that is half written, and one that is missing.
        std::fs::write(folder.join(record(2).0.hex()), &kept)?;
        std::fs::write(folder.join(record(3).0.hex()), &kept[..kept.len() / 2])?;
        std::fs::remove_file(folder.join(record(1).0.hex()))?;
        let (database, found) = Database::open(dir.path())?;
        assert_eq!((found.records.into_keys().collect::<Vec<_>>(), found.recalled), (vec![record(1).0], 0));
        assert_eq!(std::fs::read_dir(&folder)?.count(), 1);
        drop(database);
        // Half a copy, and one under the name of another, are none.
        std::fs::write(folder.join(record(3).0.hex()), &kept[..kept.len() / 2])?;
        std::fs::write(folder.join(record(4).0.hex()), &kept)?;
        std::fs::write(dir.path().join("db.redb"), "no database")?;
        let (_database, found) = Database::open(dir.path())?;
        assert_eq!((found.records.into_keys().collect::<Vec<_>>(), found.recalled), (vec![record(1).0], 1));
        assert!(found.note.is_some());
        Ok(())
    }

    #[test]
    fn a_file_that_ends_the_daemon_is_set_aside() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let (database, _) = Database::open(dir.path())?;
        database.commit(&[record(1)], &[])?;
        drop(database);
        std::fs::write(dir.path().join("db.opening"), "1")?;
        let (database, found) = Database::open(dir.path())?;
        assert_eq!((found.records.len(), found.note), (1, None));
        drop(database);
        std::fs::write(dir.path().join("db.opening"), "2")?;
        let (_database, found) = Database::open(dir.path())?;
        assert_eq!((found.records.len(), found.recalled, found.note.is_some()), (1, 1, true));
        assert!(!dir.path().join("db.opening").exists());
        Ok(())
    }
}
