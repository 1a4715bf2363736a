//! What later entries of an archive replace, kept beside the tree: see [`crate::storage::skeleton`].

use rustix::io::Errno;

use super::super::UnpackError;
use super::super::error::shown;
use super::parents::Opened;
use crate::storage::skeleton::REPLACED;
use crate::storage::usage::{BLOCK, Usage};
use crate::sys::root::Root;

/// Bytes of all paths that were replaced: whoever reads the archive again holds them in memory.
const MAX_PATHS: usize = 16 << 20;

pub(super) struct Replaced<'l> {
    /// The layer's own directory.
    beside: &'l Root,
    folder: Option<Root>,
    next: u64,
    paths: usize,
}

impl<'l> Replaced<'l> {
    pub(super) fn new(beside: &'l Root) -> Self {
        Self { beside, folder: None, next: 0, paths: 0 }
    }

    /// Moves something away; gives the number that it has now.
    pub(super) fn take(&mut self, parent: &Opened, base: &[u8], path: &[u8]) -> Result<u64, UnpackError> {
        let failed = |source| UnpackError::Write {
            name: shown(path),
            operation: "what it replaces cannot be moved away",
            source,
        };
        self.paths += path.len();
        if self.paths > MAX_PATHS {
            let limit = u64::try_from(MAX_PATHS).unwrap_or(u64::MAX);
            return Err(UnpackError::Limit { what: "bytes in names of replaced entries", limit });
        }
        let folder = match &self.folder {
            Some(folder) => folder,
            None => self.folder.insert(self.beside.create_dir(REPLACED, 0o700).map_err(failed)?),
        };
        let number = self.next;
        rustix::fs::renameat(parent, base, folder, number.to_string()).map_err(|error: Errno| failed(error.into()))?;
        self.next += 1;
        Ok(number)
    }

    /// What the folder itself takes.
    pub(super) fn usage(&self) -> Usage {
        if self.folder.is_some() { Usage { bytes: BLOCK, inodes: 1 } } else { Usage::default() }
    }
}
