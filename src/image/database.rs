//! Image records on disk: one redb table from id to record.
//!
//! Every commit is durable before it returns. A file that cannot be read is set aside under another name and a new one is
//! begun: images are pulled again, which is better than a node that does not start. All methods block.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::backends::FileBackend;
use redb::{Builder, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use sha2::{Digest as _, Sha256};

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
}

/// The open file.
#[derive(Debug)]
pub(super) struct Database {
    path: PathBuf,
    file: redb::Database,
}

impl Database {
    /// Opens or makes the file and reads it.
    pub(super) fn open(root: &Path) -> Result<(Self, Loaded), ImageError> {
        let path = root.join("db.redb");
        let reason = match Self::guarded(&path)? {
            Ok(opened) => return Ok(opened),
            Err(reason) => reason,
        };
        let aside = set_aside(&path)?;
        let note = format!("{}: cannot be read ({reason}); set aside as {}", path.display(), aside.display());
        let (database, found) = Self::read(&path).map_err(|error| failed(&path, "cannot be made", error))?;
        Ok((database, Loaded { note: Some(note), ..found }))
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
        file.check_integrity()?;
        let mut found = Loaded::default();
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
        write.open_table(META)?.insert("opened-by", env!("CARGO_PKG_VERSION"))?;
        write.commit()?;
        Ok((Self { path: path.to_owned(), file }, found))
    }

    /// Writes and removes records in one durable step.
    pub(super) fn commit(&self, put: &[(Digest, StoredRecord)], remove: &[String]) -> Result<(), ImageError> {
        self.try_commit(put, remove).map_err(|error| failed(&self.path, "cannot be written", error))
    }

    fn try_commit(&self, put: &[(Digest, StoredRecord)], remove: &[String]) -> Result<(), redb::Error> {
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
        write.commit()?;
        Ok(())
    }
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
        let mut damaged: Vec<Vec<u8>> = [0, 1, 9, 100, 4096, whole.len() / 2, whole.len() - 1]
            .iter()
            .map(|length| whole[..*length].to_vec())
            .collect();
        for at in (0..whole.len()).step_by(whole.len() / 150).chain(0..400) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x5a;
            damaged.push(bytes);
        }
        for bytes in damaged {
            std::fs::write(&path, &bytes)?;
            let (database, found) = Database::open(dir.path())?;
            // What is found is what was stored, or it is not found.
            for n in 0..40 {
                let (id, stored) = record(n);
                assert!(found.records.get(&id).is_none_or(|found| *found == stored));
            }
            assert!(found.records.len() <= 40);
            database.commit(&[record(50)], &[])?;
        }
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
        assert_eq!((found.records.len(), found.note.is_some()), (0, true));
        assert!(!dir.path().join("db.opening").exists());
        Ok(())
    }
}
