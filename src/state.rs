//! Records of sandboxes and containers: what was asked, what was made, how it ended.
//!
//! One file each, `<root>/pods/<id>.json`: a header line (format version, kind, boot id, checksum of the rest) and the
//! record as JSON. A record is written *before* the side effects that it names (invariant 2), by rename and without fsync:
//! after a power cut its processes are gone, and the sweep at start cleans up what the record names. A file that does
//! not parse, or whose checksum is off, is moved to `<root>/pods/bad/` and reported, never fatal.

pub mod ids;
mod record;

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::storage::Digest;

pub use record::{ContainerPhase, ContainerRecord, Ending, ImageVolume, SandboxPhase, SandboxRecord};

/// The version of the record format that this build writes, and the newest that it reads.
const FORMAT: u32 = 1;

/// Largest record that is read back, in bytes: a request is 16 MiB at most, and JSON may double it.
const MAX_RECORD: u64 = 64 * 1024 * 1024;

/// The folder of the records.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    boot_id: String,
}

/// What went wrong with a record, and with which file.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("{}: the folder of the records cannot be made", path.display())]
    MakeDir { path: PathBuf, source: io::Error },
    #[error("{}: the folder of the records cannot be read", path.display())]
    ReadDir { path: PathBuf, source: io::Error },
    #[error("{}: the record cannot be written", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{}: the record cannot be removed", path.display())]
    Remove { path: PathBuf, source: io::Error },
    #[error("the record of {id} cannot be encoded")]
    Encode { id: String, source: serde_json::Error },
    #[error("/proc/sys/kernel/random/boot_id cannot be read")]
    BootId { source: io::Error },
}

/// A record read back at start.
#[derive(Debug)]
pub struct Found<T> {
    pub record: T,
    /// It was written before the machine last booted: nothing that it names in memory exists any more.
    pub other_boot: bool,
}

/// Everything that was read at start.
#[derive(Debug, Default)]
pub struct Records {
    pub sandboxes: Vec<Found<SandboxRecord>>,
    pub containers: Vec<Found<ContainerRecord>>,
    /// Files that were set aside, each with the reason.
    pub bad: Vec<(PathBuf, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Sandbox,
    Container,
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    version: u32,
    kind: Kind,
    boot_id: String,
    sum: Digest,
}

impl Store {
    /// Opens (and makes, mode 0700) the folder of the records below `root`.
    ///
    /// # Errors
    /// When the folder cannot be made or the kernel's boot id cannot be read.
    pub fn open(root: &Path) -> Result<Self, StateError> {
        let dir = root.join("pods");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(|source| StateError::MakeDir { path: dir.clone(), source })?;
        let boot_id =
            fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(|source| StateError::BootId { source })?;
        Ok(Self { dir, boot_id: boot_id.trim().to_owned() })
    }

    /// Writes (or replaces) the record of a sandbox.
    ///
    /// # Errors
    /// [`StateError::Write`] when the disk refuses, a full one included; the old record then stands.
    pub fn put_sandbox(&self, record: &SandboxRecord) -> Result<(), StateError> {
        self.put(Kind::Sandbox, &record.id, record)
    }

    /// Writes (or replaces) the record of a container.
    ///
    /// # Errors
    /// As [`Self::put_sandbox`].
    pub fn put_container(&self, record: &ContainerRecord) -> Result<(), StateError> {
        self.put(Kind::Container, &record.id, record)
    }

    /// Forgets a sandbox or container; one that has no record is fine.
    ///
    /// # Errors
    /// [`StateError::Remove`] when the disk refuses.
    pub fn remove(&self, id: &str) -> Result<(), StateError> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StateError::Remove { path, source }),
            _ => Ok(()),
        }
    }

    /// Reads every record; a bad one is moved aside.
    ///
    /// # Errors
    /// [`StateError::ReadDir`] when the folder itself cannot be read.
    pub fn load(&self) -> Result<Records, StateError> {
        let read_dir = |source| StateError::ReadDir { path: self.dir.clone(), source };
        let mut records = Records::default();
        for entry in fs::read_dir(&self.dir).map_err(read_dir)? {
            let path = entry.map_err(read_dir)?.path();
            match path.extension().and_then(|e| e.to_str()) {
                Some("json") => {}
                Some("tmp") => {
                    // A write that was cut off: the record before it, if there was one, still stands.
                    let _ = fs::remove_file(&path);
                    continue;
                }
                _ => continue,
            }
            if let Err(reason) = self.load_one(&path, &mut records) {
                self.set_aside(&path);
                records.bad.push((path, reason));
            }
        }
        Ok(records)
    }

    fn load_one(&self, path: &Path, records: &mut Records) -> Result<(), String> {
        let size = fs::metadata(path).map_err(|e| e.to_string())?.len();
        if size > MAX_RECORD {
            return Err(format!("{size} bytes are more than a record can have"));
        }
        let bytes = fs::read(path).map_err(|e| e.to_string())?;
        let cut = bytes.iter().position(|&b| b == b'\n').ok_or("it has no header line")?;
        let (header, body) = (&bytes[..cut], &bytes[cut + 1..]);
        let header: Header = serde_json::from_slice(header).map_err(|e| format!("its header: {e}"))?;
        if header.version > FORMAT {
            return Err(format!("format {} is newer than {FORMAT}", header.version));
        }
        if Digest::of(body) != header.sum {
            return Err("its checksum is off".to_owned());
        }
        let other_boot = header.boot_id != self.boot_id;
        match header.kind {
            Kind::Sandbox => records.sandboxes.push(Found { record: parse(body)?, other_boot }),
            Kind::Container => records.containers.push(Found { record: parse(body)?, other_boot }),
        }
        Ok(())
    }

    fn set_aside(&self, path: &Path) {
        let bad = self.dir.join("bad");
        let _ = fs::DirBuilder::new().recursive(true).mode(0o700).create(&bad);
        if let Some(name) = path.file_name() {
            // Where even this fails the file stays, and the next start reports it again.
            let _ = fs::rename(path, bad.join(name));
        }
    }

    fn put<T: Serialize>(&self, kind: Kind, id: &str, record: &T) -> Result<(), StateError> {
        let encode = |source| StateError::Encode { id: id.to_owned(), source };
        let body = serde_json::to_vec(record).map_err(encode)?;
        let header = Header { version: FORMAT, kind, boot_id: self.boot_id.clone(), sum: Digest::of(&body) };
        let mut bytes = serde_json::to_vec(&header).map_err(encode)?;
        bytes.push(b'\n');
        bytes.extend_from_slice(&body);
        let path = self.path(id);
        let fresh = self.dir.join(format!("{id}.tmp"));
        let written = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)
            .and_then(|mut file| file.write_all(&bytes))
            .and_then(|()| fs::rename(&fresh, &path));
        written.map_err(|source| {
            let _ = fs::remove_file(&fresh);
            StateError::Write { path, source }
        })
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(id: &str) -> SandboxRecord {
        SandboxRecord { id: id.to_owned(), created_at: 7, ..Default::default() }
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let store = Store::open(dir.path()).expect("opens");
        store.put_sandbox(&sandbox("a")).expect("writes");
        store.put_container(&ContainerRecord { id: "c".into(), ..Default::default() }).expect("writes");
        let records = store.load().expect("reads");
        assert_eq!(records.sandboxes.len(), 1);
        assert_eq!(records.sandboxes[0].record, sandbox("a"));
        assert!(!records.sandboxes[0].other_boot);
        assert_eq!(records.containers[0].record.id, "c");
        store.remove("a").expect("removes");
        store.remove("a").expect("a second time is fine");
        assert!(store.load().expect("reads").sandboxes.is_empty());
    }

    #[test]
    fn any_changed_byte_sets_the_record_aside_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let store = Store::open(dir.path()).expect("opens");
        store.put_sandbox(&sandbox("victim")).expect("writes");
        let path = dir.path().join("pods/victim.json");
        let good = fs::read(&path).expect("is there");
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 0x20;
            fs::write(&path, &bytes).expect("writes");
            store.put_sandbox(&sandbox("bystander")).expect("writes");
            let records = store.load().expect("a damaged record is not fatal");
            let ids: Vec<_> = records.sandboxes.iter().map(|f| f.record.id.as_str()).collect();
            assert!(ids.contains(&"bystander"), "byte {at}");
            // A flipped bit in the boot id or the format's JSON spacing may leave a legal record; never a different one.
            for found in &records.sandboxes {
                assert!(found.record == sandbox("victim") || found.record == sandbox("bystander"), "byte {at}");
            }
            let _ = fs::remove_file(&path);
        }
    }

    #[test]
    fn a_cut_off_write_leaves_the_old_record() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let store = Store::open(dir.path()).expect("opens");
        store.put_sandbox(&sandbox("a")).expect("writes");
        fs::write(dir.path().join("pods/a.tmp"), b"{\"ver").expect("writes");
        let records = store.load().expect("reads");
        assert_eq!(records.sandboxes.len(), 1);
        assert!(records.bad.is_empty());
        assert!(!dir.path().join("pods/a.tmp").exists());
    }
}
