//! Removing a tree of any depth with few descriptors. A container can nest directories deeper than a path can say and
//! than descriptors last; it must be removable nevertheless.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

/// Directories held open at once. What is deeper is first moved up to the top of the tree.
const OPEN: usize = 48;

/// How often a directory is read anew because something was still in it, before that is an error.
const PASSES: usize = 1 << 20;

struct Level {
    name: CString,
    fd: OwnedFd,
    entries: Dir,
    passes: usize,
}

/// Removes a name and, if it is a directory, all below it; symlinks are removed, not followed. Missing is fine.
///
/// # Errors
/// The first failing `unlinkat(2)`, `openat(2)` or `getdents64(2)`; what was removed stays so.
pub(super) fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let name = CString::new(name.as_bytes())?;
    let mut levels = vec![enter(parent, name)?];
    let mut moved = 0_u64;
    while let Some(level) = levels.last_mut() {
        match level.entries.next() {
            Some(entry) => {
                let entry = entry?;
                let name = entry.file_name();
                if name == c"." || name == c".." {
                    continue;
                }
                let directory = match entry.file_type() {
                    FileType::Directory => true,
                    FileType::Unknown => is_directory(level.fd.as_fd(), name)?,
                    _ => false,
                };
                if !directory {
                    gone(rustix::fs::unlinkat(&level.fd, name, AtFlags::empty()))?;
                    continue;
                }
                match rustix::fs::unlinkat(&level.fd, name, AtFlags::REMOVEDIR) {
                    Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                    done => {
                        gone(done)?;
                        continue;
                    }
                }
                let name = name.to_owned();
                if levels.len() < OPEN {
                    let below = enter(levels[levels.len() - 1].fd.as_fd(), name)?;
                    levels.push(below);
                } else {
                    move_up(&levels, &name, &mut moved)?;
                }
            }
            None => leave(parent, &mut levels)?,
        }
    }
    Ok(())
}

fn enter(parent: BorrowedFd<'_>, name: CString) -> io::Result<Level> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent, &name, flags, Mode::empty())?;
    let entries = Dir::read_from(&fd)?;
    Ok(Level { name, fd, entries, passes: 0 })
}

/// Removes the deepest directory, which was read to its end; reads it again if something is left in it.
fn leave(parent: BorrowedFd<'_>, levels: &mut Vec<Level>) -> io::Result<()> {
    let above = levels.len().checked_sub(2).map_or(parent, |at| levels[at].fd.as_fd());
    let level = &levels[levels.len() - 1];
    match rustix::fs::unlinkat(above, &level.name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) if level.passes < PASSES => {
            let entries = Dir::read_from(&level.fd)?;
            if let Some(level) = levels.last_mut() {
                level.entries = entries;
                level.passes += 1;
            }
        }
        done => {
            gone(done)?;
            levels.pop();
        }
    }
    Ok(())
}

/// Moves a directory of the deepest level to the top of the tree, where a later pass finds it.
fn move_up(levels: &[Level], name: &CString, moved: &mut u64) -> io::Result<()> {
    let (top, from) = (&levels[0].fd, &levels[levels.len() - 1].fd);
    loop {
        *moved += 1;
        let to = format!(".deep-{moved}");
        match rustix::fs::renameat_with(from, name, top, to, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            done => return Ok(gone(done)?),
        }
    }
}

fn is_directory(parent: BorrowedFd<'_>, name: &std::ffi::CStr) -> io::Result<bool> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(crate::sys::root::file_type(&found) == FileType::Directory),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn gone(done: Result<(), Errno>) -> Result<(), Errno> {
    if done == Err(Errno::NOENT) { Ok(()) } else { done }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::root::Root;

    #[test]
    fn a_nest_deeper_than_descriptors_and_paths_goes_and_links_are_not_followed() -> anyhow::Result<()> {
        let temp = tempfile::tempdir()?;
        std::fs::create_dir(temp.path().join("kept"))?;
        std::fs::write(temp.path().join("kept/file"), "")?;
        let top = Root::open(temp.path())?;
        let mut at = top.create_dir("tree", 0o755)?;
        for depth in 0..3000 {
            rustix::fs::symlinkat(temp.path().join("kept"), &at, "link")?;
            drop(at.create_file("file", 0o600)?);
            if depth % 7 == 0 {
                at.create_dir(".deep-1", 0o755)?.create_file("x", 0o600)?;
            }
            at = at.create_dir("nested-directory", 0o755)?;
        }
        drop(at);
        remove_tree(top.as_fd(), OsStr::new("tree"))?;
        assert!(!temp.path().join("tree").exists());
        assert!(temp.path().join("kept/file").exists());
        remove_tree(top.as_fd(), OsStr::new("tree"))?;
        remove_tree(top.as_fd(), OsStr::new("kept"))?;
        assert_eq!(std::fs::read_dir(temp.path())?.count(), 0);
        Ok(())
    }
}
