//! Whether a layer's tree still is what its archive made of it.
//!
//! Two things are compared, each in one pass. The archive is put together again from skeleton and tree, and its digest is to
//! be the one that the image's config states; checksums in the skeleton tell which file is to blame. And the entries of that
//! archive are applied to a tree in memory ([`shadow`]), which knows nothing of how unpacking works; the tree on disk is to
//! look like it, name by name ([`compare`]).
//!
//! Nothing is written. Memory: a few hundred bytes for each entry of the layer, which is why a daemon does not do this.

use std::io;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

use super::merged::Merged;
use super::skeleton::{Damage, Rebuilt, Wrong};
use super::unpack::{self, Entry, Limits};
use super::{Digest, StorageError};
use crate::sys::root::Root;

mod compare;
mod shadow;

#[cfg(test)]
mod tests;

use shadow::Shadow;

/// Most findings of a layer that are listed; more are only counted.
const MAX_FINDINGS: usize = 10_000;

/// What was found in one layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Sorted by path.
    pub findings: Vec<Finding>,
    /// Findings beyond the ten thousand that are listed.
    pub more: u64,
    /// Entries of the archive.
    pub entries: u64,
}

/// One thing that is not as the archive has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Below the layer's root, bytes that are not plain text escaped. Empty: the layer itself.
    pub path: String,
    pub problem: String,
}

#[derive(Default)]
struct Findings {
    list: Vec<Finding>,
    more: u64,
}

impl Findings {
    fn add(&mut self, path: &[u8], problem: impl Into<String>) {
        if self.list.len() < MAX_FINDINGS {
            self.list.push(Finding { path: path.escape_ascii().to_string(), problem: problem.into() });
        } else {
            self.more += 1;
        }
    }

    /// What putting the archive together found. A file of the tree that is not there, or is something else, is found by the
    /// comparison as well, which says more.
    fn note(&mut self, damage: &Damage) {
        let told = match &damage.wrong {
            Wrong::Short | Wrong::Kind => true,
            Wrong::Unreadable(error) => {
                matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO))
            }
            Wrong::Content => false,
        };
        match damage.path.strip_prefix(b"diff/") {
            Some(_) if told => {}
            Some(path) => self.add(path, damage.wrong.to_string()),
            None => {
                self.add(&damage.path, format!("what a later entry replaced, kept for export only: {}", damage.wrong))
            }
        }
    }
}

/// Gives the layers below the one that is verified, if all of them are known.
pub(super) type Below<'b> = &'b dyn Fn() -> io::Result<Option<Merged>>;

/// Verifies the layer in a directory. `below` is only called when a whiteout is missing, which is as it should be when it would
/// hide nothing.
pub(super) fn verify(layer: &Root, chain: &Digest, diff_id: &Digest, below: Below<'_>) -> Result<Report, StorageError> {
    let found = Mutex::new(Findings::default());
    let held = || found.lock().unwrap_or_else(PoisonError::into_inner);
    let note = |damage: Damage| {
        held().note(&damage);
        Ok(())
    };
    let limits = Limits::default();
    let mut shadow = Shadow::new();
    let mut entries = 0;
    let read =
        Rebuilt::open(layer, note).map_err(|source| format!("it cannot be opened: {source}")).and_then(|rebuilt| {
            let take = |entry: &Entry| {
                entries += 1;
                shadow.apply(entry, &limits)
            };
            unpack::entries(rebuilt, &limits, take).map_err(|error| crate::telemetry::chain(&error))
        });
    let mut found = std::mem::take(&mut *held());
    match read {
        // What does not even parse says nothing about the tree.
        Err(why) => found.add(b"", format!("the skeleton of its archive is damaged: {why}")),
        Ok(got) => {
            let failed = |source| StorageError::Verify { chain: chain.clone(), source };
            let diff = layer.open_dir("diff").map_err(failed)?;
            compare::compare((&shadow, &diff), below, &mut found).map_err(failed)?;
            if got != *diff_id && found.list.is_empty() {
                // Nobody is to blame: the checksums were made to fit, or this is the skeleton of something else.
                found.add(b"", format!("its archive has the digest {got}, the image says {diff_id}"));
            }
        }
    }
    found.list.sort();
    found.list.dedup();
    Ok(Report { findings: found.list, more: found.more, entries })
}
