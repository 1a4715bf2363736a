//! The folders of CDI spec files: which files there are, and reading those that changed.
//!
//! A file here has hooks run as root and host paths mounted, so it must be the administrator's: owned by root (or by the
//! daemon's own user) and writable by nobody else.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::document::{self, Document};

/// Largest file, in bytes. A vendor's file for eight cards cut into parts is some hundred KiB.
const MAX_FILE_SIZE: u64 = 4 * 1024 * 1024;

/// Most files of one folder that are looked at, by name.
const MAX_FILES: usize = 1024;

/// Known files by path.
pub(super) type Files = BTreeMap<PathBuf, Known>;

/// A file as it was last read.
#[derive(Debug, Clone)]
pub(super) struct Known {
    stamp: Stamp,
    pub content: Result<Arc<Document>, String>,
}

/// What changes when a file's content does: device, inode, size, times of modification and of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp([i128; 5]);

impl Stamp {
    fn of(meta: &fs::Metadata) -> Self {
        let time = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        Self([
            meta.dev().into(),
            meta.ino().into(),
            meta.size().into(),
            time(meta.mtime(), meta.mtime_nsec()),
            time(meta.ctime(), meta.ctime_nsec()),
        ])
    }
}

/// Every `.json` and `.yaml` file directly in the folders; those that are as in `known` are not read again. A folder that
/// is missing is empty. The second part is folders that could not be listed, or not to their end.
pub(super) fn read(dirs: &[PathBuf], known: &Files) -> (Files, Vec<(PathBuf, String)>) {
    let mut files = Files::new();
    let mut bad = Vec::new();
    for dir in dirs {
        let listed = match list(dir) {
            Ok(listed) => listed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                bad.push((dir.clone(), error.to_string()));
                continue;
            }
        };
        if listed.len() > MAX_FILES {
            bad.push((dir.clone(), format!("{} files, the first {MAX_FILES} are read", listed.len())));
        }
        for path in listed.into_iter().take(MAX_FILES) {
            if let Some(file) = look(&path, known.get(&path)) {
                files.insert(path, file);
            }
        }
    }
    (files, bad)
}

fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let named = path.extension().is_some_and(|ext| ext == "json" || ext == "yaml");
        if named && !path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// `None` when the file went away meanwhile.
fn look(path: &Path, known: Option<&Known>) -> Option<Known> {
    let bad = |stamp: Stamp, why: String| Some(Known { stamp, content: Err(why) });
    // A FIFO must not hold up whoever opens it.
    let file = match File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => return None,
        Err(error) => return bad(Stamp([0; 5]), error.to_string()),
    };
    let meta = match file.metadata() {
        Ok(meta) => meta,
        Err(error) => return bad(Stamp([0; 5]), error.to_string()),
    };
    let stamp = Stamp::of(&meta);
    if let Some(known) = known.filter(|known| known.stamp == stamp) {
        return Some(known.clone());
    }
    if let Err(why) = trusted(&meta) {
        return bad(stamp, why);
    }
    let mut bytes = Vec::new();
    if let Err(error) = file.take(MAX_FILE_SIZE + 1).read_to_end(&mut bytes) {
        return bad(stamp, error.to_string());
    }
    if bytes.len() as u64 > MAX_FILE_SIZE {
        return bad(stamp, format!("more than {MAX_FILE_SIZE} bytes"));
    }
    let is_yaml = path.extension().is_some_and(|ext| ext == "yaml");
    Some(Known { stamp, content: document::parse(&bytes, is_yaml).map(Arc::new) })
}

fn trusted(meta: &fs::Metadata) -> Result<(), String> {
    let owner = meta.uid();
    if !meta.is_file() {
        return Err("not a regular file".to_owned());
    }
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(format!("owned by user {owner}: a file of root's is wanted, since its hooks run as root"));
    }
    let by_group = meta.mode() & 0o020 != 0 && meta.gid() != 0;
    if by_group || meta.mode() & 0o002 != 0 {
        let mode = meta.mode() & 0o7777;
        return Err(format!("mode {mode:04o}: others than root may write to it, and its hooks run as root"));
    }
    Ok(())
}
