//! Leases: which addresses a pod holds, as records on the disk. A lease is written before anything of the pod is made, and
//! goes after everything of it is gone.
//!
//! ```text
//! <dir>/leases/<sandbox id>.json    one pod's addresses, its link and its MAC
//! <dir>/returned                    numbers that came back, a line each, in order
//! <dir>/pod_cidrs                   what the kubelet handed over, a line each
//! ```

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::subnet::Subnet;

/// Largest lease and largest list that is read, in bytes.
const LEASE_MAX: u64 = 64 * 1024;
const LIST_MAX: u64 = 32 * 1024 * 1024;

/// An address, and the subnet that it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    pub address: IpAddr,
    pub subnet: Subnet,
}

/// What a pod holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub sandbox_id: String,
    /// Namespace and name, for messages.
    pub pod: String,
    /// Its number in all of the subnets.
    pub number: u32,
    /// The primary one first.
    pub addresses: Vec<Address>,
    /// The host's end of the pod's link.
    pub link: String,
    /// Of the pod's end.
    pub mac: [u8; 6],
}

/// Why a record of the pod network could not be read, written or removed.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    #[error("{}: the folder of the leases cannot be made", path.display())]
    MakeDir { path: PathBuf, source: io::Error },
    #[error("{}: cannot be written", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{}: cannot be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: cannot be removed", path.display())]
    Remove { path: PathBuf, source: io::Error },
}

/// The folder. All methods block on the disk. Nothing is synced: after a power cut no pod is alive.
#[derive(Debug, Clone)]
pub struct Records {
    dir: PathBuf,
}

impl Records {
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn leases(&self) -> PathBuf {
        self.dir.join("leases")
    }

    /// The file of a lease. Sandbox ids were checked to be identifiers.
    #[must_use]
    pub fn path(&self, sandbox_id: &str) -> PathBuf {
        self.leases().join(format!("{sandbox_id}.json"))
    }

    /// All leases, and the files that are none, which are moved aside (`.bad`).
    ///
    /// # Errors
    /// When the folder cannot be read; a missing one is empty.
    pub fn load(&self) -> Result<(Vec<Lease>, Vec<PathBuf>), LeaseError> {
        let dir = self.leases();
        let read = |source| LeaseError::Read { path: dir.clone(), source };
        let (mut leases, mut bad) = (Vec::new(), Vec::new());
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok((leases, bad)),
            Err(source) => return Err(read(source)),
        };
        for entry in entries {
            let path = entry.map_err(read)?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("json") => {}
                Some("tmp") => {
                    // A write that was cut off; what it was for was not begun.
                    let _ = std::fs::remove_file(&path);
                    continue;
                }
                _ => continue,
            }
            let bytes = read_bounded(&path, LEASE_MAX).map_err(read)?;
            let lease = serde_json::from_slice::<Lease>(&bytes).ok();
            match lease.filter(|lease| self.path(&lease.sandbox_id) == path) {
                Some(lease) => leases.push(lease),
                None => {
                    let _ = std::fs::rename(&path, path.with_extension("bad"));
                    bad.push(path);
                }
            }
        }
        leases.sort_by(|a, b| a.sandbox_id.cmp(&b.sandbox_id));
        Ok((leases, bad))
    }

    /// # Errors
    /// When the disk refuses; no lease is there then.
    pub fn put(&self, lease: &Lease) -> Result<(), LeaseError> {
        let text = serde_json::to_vec(lease).expect("a lease is JSON");
        let dir = self.leases();
        let make = |source| LeaseError::MakeDir { path: dir.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(make)?;
        replace(&self.path(&lease.sandbox_id), &text)
    }

    /// Removes a lease; fine when it is gone.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn remove(&self, sandbox_id: &str) -> Result<(), LeaseError> {
        let path = self.path(sandbox_id);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(LeaseError::Remove { path, source }),
            _ => Ok(()),
        }
    }

    /// Notes that a number came back.
    ///
    /// # Errors
    /// When the disk refuses. The order is then another after the next start, which harms nobody.
    pub fn note_return(&self, number: u32) -> Result<(), LeaseError> {
        let path = self.dir.join("returned");
        let write = |source| LeaseError::Write { path: path.clone(), source };
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path).map_err(write)?;
        file.write_all(format!("{number}\n").as_bytes()).map_err(write)
    }

    /// The numbers that came back, in order; lines that are none are passed by.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn returned(&self) -> Result<Vec<u32>, LeaseError> {
        Ok(self.list("returned")?.iter().filter_map(|line| line.parse().ok()).collect())
    }

    /// Writes the order anew, so that the file does not grow for ever.
    ///
    /// # Errors
    /// When the disk refuses; the former file is untouched then.
    pub fn put_returned(&self, numbers: impl Iterator<Item = u32>) -> Result<(), LeaseError> {
        let lines: String = numbers.map(|number| format!("{number}\n")).collect();
        replace(&self.dir.join("returned"), lines.as_bytes())
    }

    /// What the kubelet handed over; empty when it never did.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn pod_cidrs(&self) -> Result<Vec<String>, LeaseError> {
        self.list("pod_cidrs")
    }

    /// # Errors
    /// When the disk refuses; the former ones stay then.
    pub fn put_pod_cidrs(&self, subnets: &[Subnet]) -> Result<(), LeaseError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(|source| LeaseError::MakeDir { path: self.dir.clone(), source })?;
        let lines: String = subnets.iter().map(|subnet| format!("{subnet}\n")).collect();
        replace(&self.dir.join("pod_cidrs"), lines.as_bytes())
    }

    fn list(&self, name: &str) -> Result<Vec<String>, LeaseError> {
        let path = self.dir.join(name);
        match read_bounded(&path, LIST_MAX) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(LeaseError::Read { path, source }),
        }
    }
}

fn read_bounded(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes a file as a whole or not at all.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), LeaseError> {
    let unfinished = path.with_extension("tmp");
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.write_all(bytes)?;
        std::fs::rename(&unfinished, path)
    };
    write().map_err(|source| {
        // The write's error is the one that matters.
        let _ = std::fs::remove_file(&unfinished);
        LeaseError::Write { path: path.to_owned(), source }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(id: &str, number: u32) -> Lease {
        let subnet = Subnet::for_pods("10.85.0.0/16").unwrap();
        Lease {
            sandbox_id: id.to_owned(),
            pod: "default/web".to_owned(),
            number,
            addresses: vec![Address { address: subnet.pod(number), subnet }],
            link: "ck0".to_owned(),
            mac: [2, 0, 0, 0, 0, 1],
        }
    }

    #[test]
    fn leases_come_back_and_damaged_ones_are_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(dir.path().join("network"));
        assert!(records.load().unwrap().0.is_empty());
        for (id, number) in [("b", 1), ("a", 0)] {
            records.put(&lease(id, number)).unwrap();
        }
        std::fs::write(records.path("torn"), "{").unwrap();
        std::fs::write(records.path("other"), serde_json::to_vec(&lease("x", 5)).unwrap()).unwrap();
        std::fs::write(records.leases().join("c.tmp"), "").unwrap();
        let (found, mut bad) = records.load().unwrap();
        bad.sort();
        assert_eq!(found, [lease("a", 0), lease("b", 1)]);
        assert_eq!(bad, [records.path("other"), records.path("torn")]);
        assert!(records.load().unwrap().1.is_empty(), "they are set aside once");
        records.remove("a").unwrap();
        records.remove("a").unwrap();
        assert_eq!(records.load().unwrap().0, [lease("b", 1)]);
    }

    #[test]
    fn lists_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(dir.path().to_owned());
        assert!(records.returned().unwrap().is_empty() && records.pod_cidrs().unwrap().is_empty());
        for number in [3, 1, 3] {
            records.note_return(number).unwrap();
        }
        assert_eq!(records.returned().unwrap(), [3, 1, 3]);
        records.put_returned([1, 3].into_iter()).unwrap();
        assert_eq!(records.returned().unwrap(), [1, 3]);
        let subnets = [Subnet::for_pods("10.1.0.0/24").unwrap(), Subnet::for_pods("fd00:1::/64").unwrap()];
        records.put_pod_cidrs(&subnets).unwrap();
        assert_eq!(records.pod_cidrs().unwrap(), ["10.1.0.0/24", "fd00:1::/64"]);
    }
}
