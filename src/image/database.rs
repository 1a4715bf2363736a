//! Image records on disk: one redb table from id to record.
//!
//! Every commit is durable before it returns. A file that cannot be read is set aside under another name and a new one is
//! begun with the records of which a copy is left ([`Copies`]): a node that does not start would be worse. A write that
//! failed, on a full disk say, is the end of no more than that write: the next one opens the file anew. All methods block.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use redb::{ReadableTable, TableDefinition};
use sha2::{Digest as _, Sha256};

use super::copies::Copies;
use super::error::ImageError;
use super::record::StoredRecord;
use crate::storage::Digest;

mod file;

/// The number is the version of the format.
const IMAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("images-1");
/// Facts about the file itself.
const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta-1");

/// Every record there is.
pub(super) type Records = BTreeMap<Digest, StoredRecord>;

/// What the file held.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub records: Records,
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

/// The file, open as long as every write to it went well.
#[derive(Debug)]
pub(super) struct Database {
    path: PathBuf,
    /// `None` after a write that failed: the library takes no more of them then.
    file: Mutex<Option<redb::Database>>,
    copies: Copies,
}

impl Database {
    /// Opens or makes the file and reads it. A disk that is full is no error: what is there can be read, and the next write
    /// finds out whether there is room by then.
    ///
    /// # Errors
    /// [`ImageError::Database`] and [`ImageError::Disk`], also when another daemon has the file open.
    pub(super) fn open(root: &Path) -> Result<(Self, Loaded), ImageError> {
        let path = root.join("db.redb");
        let (file, mut found) = file::open(&path)?;
        let database = Self { path, file: Mutex::new(file), copies: Copies::open(root) };
        database.recall(&mut found)?;
        Ok((database, found))
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
            match self.commit(&back, &[], || found.records.clone()) {
                // The next write finds them missing.
                Err(ImageError::Database { source, .. }) if file::is_full(&source) => {}
                done => done?,
            }
            found.unreadable.retain(|key| back.iter().all(|(id, _)| id.as_str() != key));
            found.recalled = back.len();
            found.records.extend(back);
        }
        self.copies.settle(&copied(&found.records));
        Ok(())
    }

    /// Writes and removes records in one durable step. `known` gives all records as they were before it: after a write that
    /// failed nobody knows what of it is in the file, which is then made to say just this.
    ///
    /// # Errors
    /// [`ImageError::Database`]; whether the step was done is not known then, until the next one that is.
    pub(super) fn commit(
        &self,
        put: &[(Digest, StoredRecord)],
        remove: &[String],
        known: impl FnOnce() -> Records,
    ) -> Result<(), ImageError> {
        let mut held = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(file) = held.take() else {
            let mut wanted = known();
            wanted.extend(put.iter().cloned());
            wanted.retain(|id, _| !remove.iter().any(|gone| gone == id.as_str()));
            let (file, generation) = self.again(&wanted)?;
            *held = Some(file);
            self.copies.settle(&copied(&wanted));
            self.copies.set_generation(generation);
            return Ok(());
        };
        // On an error it is closed.
        let generation = write(&file, put, remove).map_err(|error| failed(&self.path, "cannot be written", error))?;
        *held = Some(file);
        for (id, record) in put {
            self.copies.put(id.hex(), &encode(id.as_str(), record));
        }
        for id in remove.iter().filter_map(|id| id.parse::<Digest>().ok()) {
            self.copies.remove(id.hex());
        }
        self.copies.set_generation(generation);
        Ok(())
    }

    /// Opens the file anew and makes it hold these records and no others.
    fn again(&self, wanted: &Records) -> Result<(redb::Database, u64), ImageError> {
        let (file, found) = file::open(&self.path)?;
        if let Some(note) = found.note {
            tracing::warn!("{note}");
        }
        let file = file.ok_or_else(|| failed(&self.path, "cannot be written", file::full()))?;
        let differs = |(id, record): &(&Digest, &StoredRecord)| found.records.get(*id) != Some(*record);
        let put: Vec<_> = wanted.iter().filter(differs).map(|(id, record)| (id.clone(), record.clone())).collect();
        let stale = found.records.keys().filter(|id| !wanted.contains_key(*id)).map(Digest::to_string);
        let remove: Vec<String> = stale.chain(found.unreadable).collect();
        let generation = write(&file, &put, &remove).map_err(|error| failed(&self.path, "cannot be written", error))?;
        Ok((file, generation))
    }
}

/// One durable transaction; gives its number.
fn write(file: &redb::Database, put: &[(Digest, StoredRecord)], remove: &[String]) -> Result<u64, redb::Error> {
    let mut write = file.begin_write()?;
    // Saves the scan of the whole file after a crash, for some hundred microseconds a commit.
    write.set_quick_repair(true);
    {
        let mut table = write.open_table(IMAGES)?;
        for id in remove {
            table.remove(id.as_str())?;
        }
        for (id, record) in put {
            table.insert(id.as_str(), encode(id.as_str(), record).as_slice())?;
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

fn generation(meta: &impl ReadableTable<&'static str, &'static str>) -> Result<u64, redb::Error> {
    Ok(meta.get("generation")?.and_then(|text| text.value().parse().ok()).unwrap_or(0))
}

/// The copies of some records, by the hex digits of their ids.
fn copied(records: &Records) -> BTreeMap<String, Vec<u8>> {
    records.iter().map(|(id, record)| (id.hex().to_owned(), encode(id.as_str(), record))).collect()
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

#[cfg(test)]
mod tests;
