//! Manifests, indexes and configs on disk, byte for byte as they came: `blobs/sha256/<hex>`.
//!
//! All methods block.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::document::MAX_CONFIG;
use super::error::ImageError;
use super::layers::Usage;
use crate::storage::Digest;

/// The folder of documents.
#[derive(Debug)]
pub(super) struct Blobs {
    folder: PathBuf,
}

impl Blobs {
    /// Opens or makes the folder; what a crash left half-written is removed.
    pub(super) fn open(root: &Path) -> Result<Self, ImageError> {
        let folder = folder(root);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|source| ImageError::disk(&folder, "the folder cannot be made", source))?;
        let blobs = Self { folder };
        blobs.sweep(|name| name.starts_with(TEMPORARY));
        Ok(blobs)
    }

    /// Writes documents durably: file, content, folder.
    pub(super) fn put<'a>(&self, documents: impl Iterator<Item = (&'a Digest, &'a [u8])>) -> Result<(), ImageError> {
        let mut wrote = false;
        for (digest, bytes) in documents {
            let path = self.path(digest);
            if fs::symlink_metadata(&path).is_ok_and(|found| found.is_file() && usize_of(found.len()) == bytes.len()) {
                continue;
            }
            let temporary = self.folder.join(format!("{TEMPORARY}{}", digest.hex()));
            write_durably(&temporary, bytes)
                .and_then(|()| fs::rename(&temporary, &path))
                .inspect_err(|_| {
                    // On a full disk every block counts.
                    let _ = fs::remove_file(&temporary);
                })
                .map_err(|source| ImageError::disk(&path, "the document cannot be written", source))?;
            wrote = true;
        }
        if wrote {
            File::open(&self.folder)
                .and_then(|folder| folder.sync_all())
                .map_err(|source| ImageError::disk(&self.folder, "the folder cannot be synced", source))?;
        }
        Ok(())
    }

    /// A document, if it is there and still has its digest.
    pub(super) fn get(&self, digest: &Digest) -> io::Result<Vec<u8>> {
        let (bytes, got) = read(&self.path(digest))?;
        if got == *digest {
            Ok(bytes)
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "its content has another digest"))
        }
    }

    /// Removes documents; one that is gone already is no error.
    pub(super) fn remove<'a>(&self, digests: impl Iterator<Item = &'a Digest>) -> Result<(), ImageError> {
        for digest in digests {
            let path = self.path(digest);
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(ImageError::disk(path, "the document cannot be removed", source));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes all but some documents. What cannot be removed is told of and stays.
    pub(super) fn retain(&self, keep: &HashSet<&Digest>) {
        let names: HashSet<&str> = keep.iter().map(|digest| digest.hex()).collect();
        self.sweep(|name| !names.contains(name));
    }

    /// Room taken by all documents.
    pub(super) fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if let Ok(found) = entry.metadata() {
                usage.bytes += found.blocks() * 512;
                usage.inodes += 1;
            }
        }
        usage
    }

    fn sweep(&self, doomed: impl Fn(&str) -> bool) {
        let told = |path: &Path, error: &io::Error| {
            tracing::warn!(path = %path.display(), %error, "what no image needs cannot be removed");
        };
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) => return told(&self.folder, &error),
        };
        for entry in entries {
            match entry {
                Ok(entry) if entry.file_name().to_str().is_none_or(&doomed) => {
                    if let Err(error) = fs::remove_file(entry.path()) {
                        told(&entry.path(), &error);
                    }
                }
                Ok(_) => {}
                // The same again would follow.
                Err(error) => return told(&self.folder, &error),
            }
        }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.hex())
    }
}

/// Where a store keeps its documents.
pub(super) fn folder(root: &Path) -> PathBuf {
    root.join("blobs").join("sha256")
}

/// A document as it is, with the digest that it really has. What is larger than any document may be is not read to its end, and
/// so has another digest.
pub(super) fn read(path: &Path) -> io::Result<(Vec<u8>, Digest)> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_CONFIG as u64 + 1).read_to_end(&mut bytes)?;
    let digest = Digest::of(&bytes);
    Ok((bytes, digest))
}

const TEMPORARY: &str = ".new-";

fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn usize_of(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}
