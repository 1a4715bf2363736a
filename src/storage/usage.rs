//! Disk usage: what a tree occupies.

use std::collections::HashSet;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::sys::root::file_type;

/// Space and inodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes on disk, in whole blocks.
    pub bytes: u64,
    pub inodes: u64,
}

impl Usage {
    /// The sum of two.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { bytes: self.bytes.saturating_add(other.bytes), inodes: self.inodes.saturating_add(other.inodes) }
    }

    /// What is left after taking some away, never below nothing.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self { bytes: self.bytes.saturating_sub(other.bytes), inodes: self.inodes.saturating_sub(other.inodes) }
    }
}

/// Bounds of one walk: a container may be writing while we count, and must not keep us for ever.
const MAX_ENTRIES: u64 = 10_000_000;
const MAX_DEPTH: usize = 256;

/// The block size of the usual file systems.
pub(super) const BLOCK: u64 = 4096;

/// Counts what is in a directory and below it, the directory itself not included; hard links count once. A directory
/// more than 256 levels down counts as one inode, and the walk ends after ten million entries.
///
/// # Errors
/// Those of `openat(2)` and `getdents64(2)`; what vanishes during the walk is left out.
pub(super) fn measure(top: BorrowedFd<'_>) -> io::Result<Usage> {
    let mut usage = Usage::default();
    let mut linked: HashSet<(u64, u64)> = HashSet::new();
    let mut entries_left = MAX_ENTRIES;
    let mut levels = vec![open(top, c".")?];
    while let Some((fd, entries)) = levels.last_mut() {
        let Some(entry) = entries.next() else {
            levels.pop();
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        entries_left -= 1;
        if entries_left == 0 {
            break;
        }
        let found = match rustix::fs::statat(&*fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            found => found?,
        };
        let directory = file_type(&found) == FileType::Directory;
        if directory || found.st_nlink <= 1 || linked.insert((found.st_dev, found.st_ino)) {
            // st_blocks counts units of 512 bytes, whatever the block size (stat(2)).
            let bytes = u64::try_from(found.st_blocks).unwrap_or(0).saturating_mul(512);
            usage = usage.plus(Usage { bytes, inodes: 1 });
        }
        if directory && levels.len() < MAX_DEPTH {
            let (fd, _) = &levels[levels.len() - 1];
            match open(fd, name) {
                Ok(level) => levels.push(level),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(usage)
}

fn open(parent: impl std::os::fd::AsFd, name: &std::ffi::CStr) -> Result<(OwnedFd, Dir), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let entries = Dir::read_from(&fd)?;
    Ok((fd, entries))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::root::Root;
    use std::os::fd::AsFd as _;

    #[test]
    fn hard_links_count_once_and_symlinks_are_not_followed() -> anyhow::Result<()> {
        let temp = tempfile::tempdir()?;
        let tree = temp.path().join("tree");
        std::fs::create_dir_all(tree.join("a/b"))?;
        std::fs::write(tree.join("a/file"), vec![1; 100_000])?;
        std::fs::hard_link(tree.join("a/file"), tree.join("a/b/same"))?;
        std::os::unix::fs::symlink("/", tree.join("everything"))?;
        let usage = measure(Root::open(&tree)?.as_fd())?;
        assert_eq!(usage.inodes, 4, "two directories, a file and a symlink");
        assert!((100_000..200_000).contains(&usage.bytes), "{usage:?}");
        Ok(())
    }
}
