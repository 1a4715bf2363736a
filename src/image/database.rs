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
use redb::{Builder, DatabaseError, ReadableDatabase as _, ReadableTable as _, StorageError, TableDefinition};

use super::error::ImageError;
use super::record::StoredRecord;
use crate::storage::Digest;

/// The number is the version of the format.
const IMAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("images-1");
/// Page cache: the table is a few hundred KiB on a full node.
const CACHE: usize = 1024 * 1024;

/// The open file.
#[derive(Debug)]
pub(super) struct Database {
    path: PathBuf,
    file: redb::Database,
}

impl Database {
    /// Opens or makes the file. The text says what was wrong with one that was set aside.
    pub(super) fn open(root: &Path) -> Result<(Self, Option<String>), ImageError> {
        let path = root.join("db.redb");
        match open_file(&path) {
            Ok(file) => Ok((Self { path, file }, None)),
            Err(error) if is_broken(&error) => {
                let aside = set_aside(&path)?;
                let note = format!("{}: cannot be read ({error}); set aside as {}", path.display(), aside.display());
                let file = open_file(&path).map_err(|error| failed(&path, "cannot be made", error))?;
                Ok((Self { path, file }, Some(note)))
            }
            Err(error) => Err(failed(&path, "cannot be opened", error)),
        }
    }

    /// Every record; those that cannot be read are named in the second list.
    pub(super) fn load(&self) -> Result<(BTreeMap<Digest, StoredRecord>, Vec<String>), ImageError> {
        let mut records = BTreeMap::new();
        let mut unreadable = Vec::new();
        let fail = |error: redb::Error| self.failed("cannot be read", error);
        let read = self.file.begin_read().map_err(|error| fail(error.into()))?;
        let table = match read.open_table(IMAGES) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok((records, unreadable)),
            Err(error) => return Err(fail(error.into())),
        };
        for row in table.iter().map_err(|error| fail(error.into()))? {
            let (key, value) = row.map_err(|error| fail(error.into()))?;
            match (key.value().parse::<Digest>(), serde_json::from_slice::<StoredRecord>(value.value())) {
                (Ok(id), Ok(record)) => {
                    records.insert(id, record);
                }
                _ => unreadable.push(key.value().chars().take(80).collect()),
            }
        }
        Ok((records, unreadable))
    }

    /// Writes and removes records in one durable step.
    pub(super) fn commit(&self, put: &[(Digest, StoredRecord)], remove: &[String]) -> Result<(), ImageError> {
        self.try_commit(put, remove).map_err(|error| self.failed("cannot be written", error))
    }

    fn try_commit(&self, put: &[(Digest, StoredRecord)], remove: &[String]) -> Result<(), redb::Error> {
        let mut write = self.file.begin_write()?;
        // Saves the scan of the whole file after a crash, for some hundred microseconds a commit.
        write.set_quick_repair(true);
        {
            let mut table = write.open_table(IMAGES)?;
            for (id, record) in put {
                let value = serde_json::to_vec(record).expect("a record of strings and numbers is JSON");
                table.insert(id.as_str(), value.as_slice())?;
            }
            for id in remove {
                table.remove(id.as_str())?;
            }
        }
        write.commit()?;
        Ok(())
    }

    fn failed(&self, doing: &'static str, source: redb::Error) -> ImageError {
        ImageError::Database { path: self.path.clone(), doing, source: Arc::new(source) }
    }
}

fn open_file(path: &Path) -> Result<redb::Database, DatabaseError> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    Builder::new().set_cache_size(CACHE).create_with_backend(FileBackend::new(file)?)
}

fn failed(path: &Path, doing: &'static str, source: DatabaseError) -> ImageError {
    ImageError::Database { path: path.to_owned(), doing, source: Arc::new(source.into()) }
}

/// The file's content is at fault, not the disk, the permissions or another daemon that has it open.
fn is_broken(error: &DatabaseError) -> bool {
    match error {
        DatabaseError::DatabaseAlreadyOpen
        | DatabaseError::LockProtocolMismatch
        | DatabaseError::TransactionInProgress => false,
        DatabaseError::Storage(StorageError::Io(error)) => {
            matches!(
                error.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput
            )
        }
        _ => true,
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
