//! Whiteouts that hide nothing.
//!
//! In a folder that several layers have a part in, an overlay shows no whiteout. A folder of one layer alone it lists as it is,
//! whiteouts included: names that cannot be opened. They come from archives that remove what no layer below has, or have a
//! folder of their own in the place of what they remove. So a layer is rid of the whiteouts that hide nothing when it is
//! committed, since the layers below are known then. Those that are left are in folders that are merged.

use std::io;
use std::os::fd::AsFd as _;

use rustix::fs::{AtFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use super::merged::Merged;
use super::unpack::{OPAQUE, Written, is_whiteout, os};
use crate::sys::root::{Root, modified};
use crate::sys::xattr;

/// What the whiteouts of one layer hide of the layers below it. The last folder that was asked for is kept open.
pub(super) struct Hidden<'l> {
    below: Merged,
    diff: &'l Root,
    /// A folder's path, and the folder itself in each layer below that shows through there.
    last: Option<(Vec<u8>, Vec<Root>)>,
}

impl<'l> Hidden<'l> {
    /// Of the layer with this tree; `below` are all layers that it lies on.
    pub(super) fn new(below: Merged, diff: &'l Root) -> Self {
        Self { below, diff, last: None }
    }

    /// Whether a whiteout of this name, in this folder of the layer, hides something.
    ///
    /// # Errors
    /// Those of `openat2(2)`, `fgetxattr(2)` and `fstatat(2)`.
    pub(super) fn is(&mut self, folder: &[u8], name: &[u8]) -> io::Result<bool> {
        let known = self.last.take().filter(|(path, _)| path == folder);
        let last = match known {
            Some(known) => known,
            // An opaque folder hides all that is below by itself.
            None if self.is_cut_off(folder)? => (folder.to_vec(), Vec::new()),
            None => (folder.to_vec(), self.below.folders(folder)?),
        };
        let (_, folders) = self.last.insert(last);
        for below in folders.iter() {
            match rustix::fs::statat(below, os(name), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => return Ok(!is_whiteout(&stat)),
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }

    /// Whether a folder of the layer is opaque, or one above it is.
    fn is_cut_off(&self, folder: &[u8]) -> io::Result<bool> {
        let slashes = folder.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for end in std::iter::once(0).chain(slashes).chain([folder.len()]) {
            let path = if end == 0 { &b"."[..] } else { &folder[..end] };
            let Some(opened) = self.diff.find_dir(os(path))? else { return Ok(false) };
            if xattr::get(opened.as_fd(), OPAQUE.as_ref(), &mut [0; 4])? == Some(b"y") {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Removes the whiteouts among these paths of a layer that hide nothing. Gives the number of inodes that this freed.
///
/// # Errors
/// Those of [`Hidden::is`], and of reading the paths, `unlinkat(2)` and `utimensat(2)`.
pub(super) fn remove_void(mut hidden: Hidden<'_>, noted: Written<0>) -> io::Result<u64> {
    let diff = hidden.diff;
    let mut freed = 0;
    let mut here: Option<Folder> = None;
    noted.replay(std::convert::identity, |_, path| {
        let slash = path.iter().rposition(|byte| *byte == b'/');
        let (parent, base) = slash.map_or((&b""[..], path), |at| (&path[..at], &path[at + 1..]));
        if here.as_ref().is_none_or(|folder| folder.path != parent) {
            let before = here.replace(Folder::open(diff, parent)?);
            before.map_or(Ok(()), Folder::leave)?;
        }
        let Some(folder) = here.as_mut() else { return Ok(()) };
        let Some((root, _)) = &folder.opened else { return Ok(()) };
        // A later entry may have replaced it.
        let stat = match rustix::fs::statat(root, os(base), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if is_whiteout(&stat) => stat,
            Ok(_) | Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if !hidden.is(parent, base)? {
            root.remove_file(os(base))?;
            folder.changed = true;
            freed += u64::from(stat.st_nlink <= 1);
        }
        Ok(())
    })?;
    here.map_or(Ok(()), Folder::leave)?;
    Ok(freed)
}

/// A folder of the layer from which names are removed.
struct Folder {
    path: Vec<u8>,
    /// With what it was before; `None` if a later entry has put something else there.
    opened: Option<(Root, Stat)>,
    changed: bool,
}

impl Folder {
    fn open(diff: &Root, path: &[u8]) -> io::Result<Self> {
        let opened = match diff.find_dir(if path.is_empty() { os(b".") } else { os(path) })? {
            Some(root) => {
                let stat = rustix::fs::fstat(&root)?;
                Some((root, stat))
            }
            None => None,
        };
        Ok(Self { path: path.to_vec(), opened, changed: false })
    }

    /// Gives the folder the time back that it had from its entry.
    fn leave(self) -> io::Result<()> {
        let Some((root, stat)) = self.opened.filter(|_| self.changed) else { return Ok(()) };
        // Removing names leaves the time of the last access alone.
        let last_access = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
        Ok(rustix::fs::futimens(&root, &Timestamps { last_access, last_modification: modified(&stat) })?)
    }
}
