//! A copy of each image's record in a file of its own, `records/<hex of the id>`, for the day when the database is damaged.
//!
//! The database decides; copies are looked at only when it cannot be read or says less than was written. A copy is written
//! after the database has committed, and not synced: it must outlive damage to the database's file, not the cut of
//! power of that moment. It carries a checksum, so that half a copy is none. One that cannot be written is worth a
//! warning and no more. All methods block.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Largest copy read, in bytes; a record has some hundred bytes a name.
const MAX_COPY: u64 = 1 << 20;
const TEMPORARY: &str = ".new";

/// The folder of copies.
#[derive(Debug)]
pub(super) struct Copies {
    folder: PathBuf,
    /// How many times the database had committed when a copy was last written. A database that says less has gone back in
    /// time: its library takes damage at some places for a crash, and the state before for the last one.
    generation: PathBuf,
}

impl Copies {
    /// Makes the folder when it is missing.
    pub(super) fn open(root: &Path) -> Self {
        let copies = Self { folder: root.join("records"), generation: root.join("db.generation") };
        copies.warn(DirBuilder::new().recursive(true).mode(0o700).create(&copies.folder));
        copies
    }

    /// The number of commits that the copies know of; 0 when there is none that can be read.
    pub(super) fn generation(&self) -> u64 {
        fs::read_to_string(&self.generation).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// Notes that the copies are of this commit. To be called after the database is durable.
    pub(super) fn set_generation(&self, generation: u64) {
        self.warn(self.replace(&self.generation, generation.to_string().as_bytes()));
    }

    /// Every copy there is, by the hex digits of its id; those that cannot be read are left out.
    pub(super) fn all(&self) -> BTreeMap<String, Vec<u8>> {
        let read = |name: &String| -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            File::open(self.folder.join(name))?.take(MAX_COPY).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        self.names().into_iter().filter_map(|name| Some((read(&name).ok()?, name))).map(|(b, n)| (n, b)).collect()
    }

    /// Makes the folder hold these copies and no others.
    pub(super) fn settle(&self, wanted: &BTreeMap<String, Vec<u8>>) {
        let there = self.all();
        for name in self.names().iter().filter(|name| !wanted.contains_key(*name)) {
            self.remove(name);
        }
        for (name, value) in wanted.iter().filter(|(name, value)| there.get(*name) != Some(value)) {
            self.put(name, value);
        }
    }

    /// Writes or replaces a copy. The caller is the one writer of the database.
    pub(super) fn put(&self, name: &str, value: &[u8]) {
        self.warn(self.replace(&self.folder.join(name), value));
    }

    fn replace(&self, path: &Path, value: &[u8]) -> io::Result<()> {
        let temporary = self.folder.join(TEMPORARY);
        let options = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).clone();
        let written = options.open(&temporary).and_then(|mut file| file.write_all(value));
        written.and_then(|()| fs::rename(&temporary, path)).inspect_err(|_| {
            // On a full disk every block counts.
            let _ = fs::remove_file(&temporary);
        })
    }

    /// Removes a copy; one that is gone already is as good.
    pub(super) fn remove(&self, name: &str) {
        match fs::remove_file(self.folder.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => self.warn(done),
        }
    }

    fn names(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    fn warn(&self, done: io::Result<()>) {
        if let Err(error) = done {
            tracing::warn!(folder = %self.folder.display(), %error, "the copy of an image's record is not up to date");
        }
    }
}
