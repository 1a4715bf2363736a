//! Looking into an image without mounting it: the merged view of its layers, as an overlay would show it.
//!
//! Names are looked up one component at a time, in every layer that still shows through, so that symlinks lead through the
//! *merged* tree and `..` stops at its root. Each step is an `openat2` below the layer's own directory that refuses
//! symlinks; nothing of the host can be reached (CVE-2024-9676). What is read must be a regular file of bounded size
//! (CVE-2025-4437, CVE-2026-47262).

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::Errno;

use super::unpack::{OPAQUE, is_whiteout};
use super::{Digest, Storage, StorageError};
use crate::sys::root::{Root, file_type, read_regular};
use crate::sys::xattr;

/// Symlinks followed in one path, as the kernel has it (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Components looked up for one path, those that symlinks bring in included.
const MAX_STEPS: usize = 4096;

/// What a path in an image is, its last component not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathKind {
    Missing,
    Directory,
    File,
    Symlink,
    /// A device, FIFO or socket.
    Other,
}

/// Layers seen as one tree: the topmost first, down to the last that shows through.
#[derive(Debug)]
pub(super) struct Merged {
    layers: Vec<Root>,
}

/// A directory of the merged tree: the layers that have a part in it, and its name below its parent.
struct Level {
    name: Vec<u8>,
    layers: Vec<usize>,
}

enum Step {
    Missing,
    Directory(Vec<usize>),
    /// The topmost layer that has it, and a descriptor that only names it.
    Other(usize, OwnedFd, Stat),
}

/// Where a path ends.
enum End {
    Missing,
    /// The layer, the symlink-free path in it, and what is there.
    Found {
        layer: usize,
        path: Vec<u8>,
        stat: Stat,
    },
    TooManyLinks,
}

impl Merged {
    pub(super) fn new(layers: Vec<Root>) -> Self {
        Self { layers }
    }

    /// The directory that a path is, without following its last component.
    pub(super) fn directory(&self, path: &[u8]) -> io::Result<Option<Stat>> {
        match self.walk(path, false)? {
            End::Found { stat, .. } if file_type(&stat) == FileType::Directory => Ok(Some(stat)),
            _ => Ok(None),
        }
    }

    /// A directory in each layer that has a part in it, the topmost first; none when the merged tree has no such directory.
    /// No symlink is followed: layers are merged by names.
    pub(super) fn folders(&self, path: &[u8]) -> io::Result<Vec<Root>> {
        let mut above: Vec<Level> = Vec::new();
        for name in components(path) {
            match self.step(&above, &join(&above, &name))? {
                Step::Directory(layers) => above.push(Level { name, layers }),
                Step::Missing | Step::Other(..) => return Ok(Vec::new()),
            }
        }
        match above.last() {
            None => self.layers.iter().map(Root::try_clone).collect(),
            Some(level) => {
                let name = join(&above, b"");
                level.layers.iter().map(|layer| self.layers[*layer].open_dir(OsStr::from_bytes(&name))).collect()
            }
        }
    }

    fn walk(&self, path: &[u8], follow_last: bool) -> io::Result<End> {
        let mut waiting: VecDeque<Vec<u8>> = components(path).collect();
        let mut above: Vec<Level> = Vec::new();
        let (mut links, mut steps) = (0, 0);
        while let Some(name) = waiting.pop_front() {
            steps += 1;
            if steps > MAX_STEPS {
                return Ok(End::TooManyLinks);
            }
            if name == b".." {
                above.pop();
                continue;
            }
            let whole = join(&above, &name);
            match self.step(&above, &whole)? {
                Step::Missing => return Ok(End::Missing),
                Step::Directory(layers) => above.push(Level { name, layers }),
                Step::Other(_, fd, stat)
                    if file_type(&stat) == FileType::Symlink && (follow_last || !waiting.is_empty()) =>
                {
                    links += 1;
                    if links > MAX_LINKS {
                        return Ok(End::TooManyLinks);
                    }
                    let target = rustix::fs::readlinkat(&fd, "", Vec::new())?;
                    let target = target.to_bytes();
                    if target.starts_with(b"/") {
                        above.clear();
                    }
                    for part in components(target).collect::<Vec<_>>().into_iter().rev() {
                        waiting.push_front(part);
                    }
                }
                Step::Other(layer, _, stat) if waiting.is_empty() => {
                    return Ok(End::Found { layer, path: whole, stat });
                }
                Step::Other(..) => return Ok(End::Missing),
            }
        }
        self.end_in_directory(&above)
    }

    /// The path without links and `..`; `None` when there are too many links. Below something that is missing, or no
    /// directory, names stand for themselves.
    fn resolve(&self, path: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut waiting: VecDeque<Vec<u8>> = components(path).collect();
        let mut above: Vec<Level> = Vec::new();
        let (mut links, mut steps) = (0, 0);
        while let Some(name) = waiting.pop_front() {
            steps += 1;
            if steps > MAX_STEPS {
                return Ok(None);
            }
            if name == b".." {
                above.pop();
                continue;
            }
            // The root has every layer; another directory that no layer has a part in was not found.
            let lost = above.last().is_some_and(|level| level.layers.is_empty());
            let step = if lost { Step::Missing } else { self.step(&above, &join(&above, &name))? };
            match step {
                Step::Directory(layers) => above.push(Level { name, layers }),
                Step::Other(_, fd, stat) if file_type(&stat) == FileType::Symlink => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Ok(None);
                    }
                    let target = rustix::fs::readlinkat(&fd, "", Vec::new())?;
                    let target = target.to_bytes();
                    if target.starts_with(b"/") {
                        above.clear();
                    }
                    for part in components(target).collect::<Vec<_>>().into_iter().rev() {
                        waiting.push_front(part);
                    }
                }
                Step::Missing | Step::Other(..) => above.push(Level { name, layers: Vec::new() }),
            }
        }
        Ok(Some(join(&above, b"")))
    }

    fn end_in_directory(&self, above: &[Level]) -> io::Result<End> {
        let path = join(above, b"");
        let layer = above.last().map_or(Some(0), |level| level.layers.first().copied());
        let Some((layer, root)) = layer.and_then(|layer| Some((layer, self.layers.get(layer)?))) else {
            return Ok(End::Missing);
        };
        let name = if path.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(&path) };
        Ok(End::Found { layer, stat: root.stat(name)?, path })
    }

    /// Looks a name up in each layer that has a part in its parent directory.
    fn step(&self, above: &[Level], path: &[u8]) -> io::Result<Step> {
        let all: Vec<usize>;
        let candidates = if let Some(level) = above.last() {
            &level.layers
        } else {
            all = (0..self.layers.len()).collect();
            &all
        };
        let mut parts = Vec::new();
        for &layer in candidates {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = match self.layers[layer].open_beneath(OsStr::from_bytes(path), flags, 0) {
                Ok(fd) => fd,
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => continue,
                    _ => return Err(error),
                },
            };
            let stat = rustix::fs::fstat(&fd)?;
            if file_type(&stat) != FileType::Directory {
                if parts.is_empty() && !is_whiteout(&stat) {
                    return Ok(Step::Other(layer, fd, stat));
                }
                break;
            }
            parts.push(layer);
            if self.is_opaque(layer, path)? {
                break;
            }
        }
        Ok(if parts.is_empty() { Step::Missing } else { Step::Directory(parts) })
    }

    fn is_opaque(&self, layer: usize, path: &[u8]) -> io::Result<bool> {
        let directory = self.layers[layer].open_dir(OsStr::from_bytes(path))?;
        let mut value = [0; 4];
        Ok(xattr::get(directory.as_fd(), OPAQUE.as_ref(), &mut value)? == Some(b"y"))
    }
}

fn components(path: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).map(<[u8]>::to_vec)
}

fn join(above: &[Level], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::new();
    for part in above.iter().map(|level| level.name.as_slice()).chain([name]).filter(|part| !part.is_empty()) {
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(part);
    }
    path
}

impl Storage {
    /// The content of a regular file of an image, base layer first in `chains`; `None` when there is no such path.
    /// Symlinks are followed inside the image. The caller holds a lease on the layers.
    ///
    /// # Errors
    /// [`StorageError::TooLarge`] above `cap` bytes, [`StorageError::NotAFile`] for a directory, device or FIFO,
    /// [`StorageError::Links`], [`StorageError::Missing`] for an unknown layer, [`StorageError::Read`].
    pub fn read_file(&self, chains: &[Digest], path: &str, cap: u64) -> Result<Option<Vec<u8>>, StorageError> {
        let merged = self.merged(chains)?;
        let unread = |source| StorageError::Read { path: path.to_owned(), source };
        let (layer, found, stat) = match merged.walk(path.as_bytes(), true).map_err(unread)? {
            End::Missing => return Ok(None),
            End::TooManyLinks => return Err(StorageError::Links { path: path.to_owned() }),
            End::Found { layer, path, stat } => (layer, path, stat),
        };
        if file_type(&stat) != FileType::RegularFile {
            return Err(StorageError::NotAFile { path: path.to_owned() });
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = merged.layers[layer].open_beneath(OsStr::from_bytes(&found), flags, 0).map_err(unread)?;
        match read_regular(fd, cap) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::FBIG) => {
                Err(StorageError::TooLarge { path: path.to_owned(), cap })
            }
            Err(error) => Err(unread(error)),
        }
    }

    /// Where a path leads in an image, every symlink followed as a process inside would: an absolute path without links.
    /// What does not exist is taken as it is named.
    ///
    /// # Errors
    /// [`StorageError::Links`], [`StorageError::Missing`] for an unknown layer, [`StorageError::Read`].
    pub fn resolve(&self, chains: &[Digest], path: &str) -> Result<PathBuf, StorageError> {
        let merged = self.merged(chains)?;
        let resolved = merged.resolve(path.as_bytes());
        match resolved.map_err(|source| StorageError::Read { path: path.to_owned(), source })? {
            Some(resolved) => Ok(Path::new("/").join(OsStr::from_bytes(&resolved))),
            None => Err(StorageError::Links { path: path.to_owned() }),
        }
    }

    /// What a path of an image is, its last component not followed: for refusing a root file system whose `/dev`,
    /// `/proc`, `/sys` or `/etc` is a symlink.
    ///
    /// # Errors
    /// [`StorageError::Links`], [`StorageError::Missing`] for an unknown layer, [`StorageError::Read`].
    pub fn path_kind(&self, chains: &[Digest], path: &str) -> Result<PathKind, StorageError> {
        let merged = self.merged(chains)?;
        let end = merged.walk(path.as_bytes(), false);
        match end.map_err(|source| StorageError::Read { path: path.to_owned(), source })? {
            End::Missing => Ok(PathKind::Missing),
            End::TooManyLinks => Err(StorageError::Links { path: path.to_owned() }),
            End::Found { stat, .. } => Ok(match file_type(&stat) {
                FileType::Directory => PathKind::Directory,
                FileType::RegularFile => PathKind::File,
                FileType::Symlink => PathKind::Symlink,
                _ => PathKind::Other,
            }),
        }
    }

    fn merged(&self, chains: &[Digest]) -> Result<Merged, StorageError> {
        let visible = self.visible(chains)?;
        let open = |chain: &Digest| {
            self.0.diff(chain).map_err(|source| StorageError::Layer {
                chain: chain.clone(),
                operation: "it cannot be opened",
                source,
            })
        };
        Ok(Merged::new(visible.iter().map(open).collect::<Result<_, _>>()?))
    }

    /// The layers that show through, topmost first: those below an opaque root do not.
    pub(super) fn visible(&self, chains: &[Digest]) -> Result<Vec<Digest>, StorageError> {
        let state = self.0.state();
        let mut visible = Vec::with_capacity(chains.len());
        let mut hidden = false;
        for (at, chain) in chains.iter().enumerate().rev() {
            let known = state.layers.get(chain).ok_or_else(|| StorageError::Missing { chain: chain.clone() })?;
            let below = at.checked_sub(1).map(|at| &chains[at]);
            if let Some(parent) = known.parent.as_ref().filter(|parent| Some(*parent) != below) {
                return Err(StorageError::Order { chain: chain.clone(), parent: parent.clone() });
            }
            if !hidden {
                visible.push(chain.clone());
            }
            hidden |= known.opaque_root;
        }
        Ok(visible)
    }
}
