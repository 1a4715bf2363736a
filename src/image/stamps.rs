//! Which files a configuration was read from, and whether they are still the same.
//!
//! The files of other tools (`registries.conf`, `hosts.toml`, `policy.json`, certificates) are looked at by every pull, as
//! one `stat` each; a change is in force from the next pull on, without a signal. A pull is far slower than that, and
//! nothing has to be watched while nobody pulls.

use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Largest configuration file read, in bytes.
pub(super) const MAX_FILE: u64 = 1024 * 1024;
/// Most files looked at; what is beyond is still read when something else changes or at SIGHUP.
const MAX_STAMPS: usize = 16 * 1024;

/// What tells one state of a file from another: inode, size, and the time of its last change in nanoseconds.
type Stamp = Option<(u64, u64, i64, i64)>;

/// Files and folders as they were before they were read.
#[derive(Debug, Default)]
pub struct Stamps(Vec<(PathBuf, Stamp)>);

impl Stamps {
    /// Remembers how a file or folder is now, there or not. To be called before it is read.
    pub(super) fn note(&mut self, path: &Path) {
        if self.0.len() < MAX_STAMPS {
            self.0.push((path.to_owned(), stamp(path)));
        }
    }

    /// Whether any of them is different now. Blocks for one `stat` each.
    pub(super) fn changed(&self) -> bool {
        self.0.iter().any(|(path, was)| stamp(path) != *was)
    }

    /// Reads a file whole. `None`: it is not there.
    pub(super) fn read(&mut self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        self.note(path);
        match std::fs::File::open(path) {
            Ok(file) => {
                if !file.metadata()?.is_file() {
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
                }
                let mut bytes = Vec::new();
                file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
                if bytes.len() as u64 > MAX_FILE {
                    return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB"));
                }
                Ok(Some(bytes))
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The entries of a folder, sorted; at most `most`. A folder that is not there is empty.
    pub(super) fn list(&mut self, folder: &Path, most: usize) -> io::Result<Vec<PathBuf>> {
        self.note(folder);
        let entries = match std::fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        };
        let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        if paths.len() > most {
            let text = format!("it has {} entries, more than {most}", paths.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(paths)
    }
}

fn stamp(path: &Path) -> Stamp {
    let found = std::fs::metadata(path).ok()?;
    Some((found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_change_is_seen() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let (file, folder) = (dir.path().join("file"), dir.path().join("folder"));
        let look = || -> anyhow::Result<(Stamps, Option<Vec<u8>>, usize)> {
            let mut stamps = Stamps::default();
            let (bytes, list) = (stamps.read(&file)?, stamps.list(&folder, 4)?.len());
            Ok((stamps, bytes, list))
        };
        let (stamps, bytes, list) = look()?;
        assert!(!stamps.changed() && bytes.is_none() && list == 0);
        std::fs::write(&file, "a")?;
        assert!(stamps.changed());
        let (stamps, bytes, _) = look()?;
        assert!(!stamps.changed() && bytes.as_deref() == Some(b"a"));
        std::fs::write(&file, "longer")?;
        assert!(stamps.changed());
        let (stamps, ..) = look()?;
        // Another file under the name, as editors and ConfigMaps do.
        std::fs::write(dir.path().join("new"), "longer")?;
        std::fs::rename(dir.path().join("new"), &file)?;
        assert!(stamps.changed());
        std::fs::create_dir(&folder)?;
        let (stamps, ..) = look()?;
        std::fs::write(folder.join("x"), "")?;
        assert!(stamps.changed());
        let (stamps, _, list) = look()?;
        assert!(!stamps.changed() && list == 1);
        std::fs::remove_file(&file)?;
        assert!(stamps.changed());
        std::fs::write(&file, vec![b' '; usize::try_from(MAX_FILE)? + 1])?;
        assert!(look().is_err_and(|error| error.to_string().contains("1 MiB")));
        Ok(())
    }
}
