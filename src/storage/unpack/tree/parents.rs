//! Parent directories of entries: found or made below the layer's root, and kept open while they are in use.

use std::collections::{HashSet, VecDeque};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::super::UnpackError;
use super::super::error::shown;
use super::super::name::os;
use super::{is_whiteout, set_opaque, strip};
use crate::storage::usage::{BLOCK, Usage};
use crate::sys::root::{Root, file_type};

/// Symlinks followed in one path, as the kernel has it (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Bytes of all paths of directories that the layer implies without an entry.
const MAX_IMPLIED: usize = 16 << 20;

/// A directory that is open.
#[derive(Debug)]
pub(super) struct Opened {
    fd: OwnedFd,
    /// From the root, through no symlink.
    pub path: Vec<u8>,
}

impl AsFd for Opened {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

pub(super) struct Parents<'r> {
    root: &'r Root,
    /// The latest first, each under the path that it was asked by, which has been resolved since anything was last removed.
    open: VecDeque<(Vec<u8>, Rc<Opened>)>,
    capacity: usize,
    implied: HashSet<Vec<u8>>,
    implied_bytes: usize,
    /// What making directories added, until it is taken.
    made: Usage,
    /// Some directory has an access list for all that is made in it. No entry asks for that: what is made is to lose it.
    pub pass_on: bool,
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl<'r> Parents<'r> {
    pub(super) fn new(root: &'r Root, capacity: usize) -> Self {
        Self {
            root,
            open: VecDeque::new(),
            capacity,
            implied: HashSet::new(),
            implied_bytes: 0,
            made: Usage::default(),
            pass_on: false,
        }
    }

    /// A directory, made with mode 0755 if it is missing, and so for all above it. Symlinks of this layer are followed
    /// inside the root, also when they lead to what is not there yet; those of layers below are not to be seen here.
    pub(super) fn ensure(&mut self, path: &[u8]) -> Result<Rc<Opened>, UnpackError> {
        if let Some(found) = self.plain(path)? {
            return Ok(found);
        }
        let made = Rc::new(self.walk(path, true)?.expect("what is missing was made"));
        self.keep(path, &made);
        Ok(made)
    }

    /// A directory, if it is there.
    pub(super) fn find(&mut self, path: &[u8]) -> Result<Option<Rc<Opened>>, UnpackError> {
        if let Some(found) = self.plain(path)? {
            return Ok(Some(found));
        }
        let Some(found) = self.walk(path, false)?.map(Rc::new) else { return Ok(None) };
        self.keep(path, &found);
        Ok(Some(found))
    }

    /// A directory that was asked for before, or that no symlink leads to.
    pub(super) fn plain(&mut self, path: &[u8]) -> Result<Option<Rc<Opened>>, UnpackError> {
        if let Some(at) = self.open.iter().position(|(known, _)| known == path) {
            let entry = self.open.remove(at).expect("the position was just found");
            let found = Rc::clone(&entry.1);
            self.open.push_front(entry);
            return Ok(Some(found));
        }
        let name = if path.is_empty() { OsStr::new(".") } else { os(path) };
        match self.root.open_beneath(name, DIRECTORY, 0) {
            Ok(fd) => {
                let opened = Rc::new(Opened { fd, path: path.to_vec() });
                self.keep(path, &opened);
                Ok(Some(opened))
            }
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
                _ => Err(failed(path, "its directory cannot be opened", error)),
            },
        }
    }

    /// Something was removed or replaced: no path is known any more.
    pub(super) fn forget(&mut self) {
        self.open.clear();
    }

    /// A directory got an entry of its own; most likely its files come next. The path leads through no symlink.
    pub(super) fn described(&mut self, path: Vec<u8>, fd: OwnedFd) {
        if self.implied.remove(&path) {
            self.implied_bytes -= path.len();
        }
        self.open.retain(|(known, _)| *known != path);
        let opened = Rc::new(Opened { fd, path });
        self.keep(&opened.path, &opened);
    }

    /// What making directories added since the last call.
    pub(super) fn take_made(&mut self) -> Usage {
        std::mem::take(&mut self.made)
    }

    /// Directories that were made without an entry, parents before their children.
    pub(super) fn implied(self) -> Vec<Vec<u8>> {
        let mut paths: Vec<_> = self.implied.into_iter().collect();
        paths.sort();
        paths
    }

    fn keep(&mut self, path: &[u8], opened: &Rc<Opened>) {
        self.open.push_front((path.to_vec(), Rc::clone(opened)));
        self.open.truncate(self.capacity);
    }

    /// Walks component by component. `resolved` holds no symlink and no `..`, so that its last part can be dropped for
    /// a `..` that a symlink brings in. `None` when something is missing that is not to be made.
    fn walk(&mut self, path: &[u8], make: bool) -> Result<Option<Opened>, UnpackError> {
        let mut resolved: Vec<Vec<u8>> = Vec::new();
        let mut waiting: VecDeque<Vec<u8>> = components(path).collect();
        let mut links = 0;
        let mut here = self.reopen(path, &resolved)?;
        while let Some(component) = waiting.pop_front() {
            if component == b".." {
                resolved.pop();
                here = self.reopen(path, &resolved)?;
                continue;
            }
            let made = if make { rustix::fs::mkdirat(&here, &component, Mode::RWXU) } else { Err(Errno::EXIST) };
            match made {
                Ok(()) => {
                    resolved.push(component);
                    here = self.adopt(path, &resolved, &here, false)?;
                    continue;
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(failed(path, "its directory cannot be made", error)),
            }
            let there = match rustix::fs::statat(&here, &component, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) if !make => return Ok(None),
                there => there.map_err(|error| failed(path, "its directory cannot be examined", error))?,
            };
            match file_type(&there) {
                FileType::Directory => {
                    let fd = rustix::fs::openat(&here, &component, DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
                    here = fd.map_err(|error| failed(path, "its directory cannot be opened", error))?;
                    resolved.push(component);
                }
                FileType::Symlink => {
                    links += 1;
                    if links > MAX_LINKS {
                        // Whoever needs the directory says that there is a loop.
                        let error = failed(path, "its directory is behind too many symlinks", Errno::LOOP);
                        return if make { Err(error) } else { Ok(None) };
                    }
                    let target = rustix::fs::readlinkat(&here, &component, Vec::new())
                        .map_err(|error| failed(path, "a symlink cannot be read", error))?;
                    let target = target.to_bytes();
                    for part in components(target).collect::<Vec<_>>().into_iter().rev() {
                        waiting.push_front(part);
                    }
                    if target.starts_with(b"/") {
                        resolved.clear();
                        here = self.reopen(path, &resolved)?;
                    }
                }
                _ if !make => return Ok(None),
                // The layer hides what was there, and then has a directory of its own.
                FileType::CharacterDevice if is_whiteout(&there) => {
                    self.forget();
                    rustix::fs::unlinkat(&here, &component, AtFlags::empty())
                        .and_then(|()| rustix::fs::mkdirat(&here, &component, Mode::RWXU))
                        .map_err(|error| failed(path, "its directory cannot be made", error))?;
                    resolved.push(component);
                    here = self.adopt(path, &resolved, &here, true)?;
                }
                _ => return Err(failed(path, "what should be its directory is none", Errno::NOTDIR)),
            }
        }
        Ok(Some(Opened { fd: here, path: resolved.join(&b'/') }))
    }

    /// Opens and describes a directory that was just made.
    fn adopt(
        &mut self,
        path: &[u8],
        resolved: &[Vec<u8>],
        parent: &OwnedFd,
        opaque: bool,
    ) -> Result<OwnedFd, UnpackError> {
        let name = resolved.last().expect("a component was just added");
        let fd = rustix::fs::openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
            .map_err(|error| failed(path, "its directory cannot be opened", error))?;
        if self.pass_on {
            strip(fd.as_fd(), FileType::Directory, &[])
                .map_err(|error| failed(path, "an access list that its directory inherits cannot be removed", error))?;
        }
        // Whatever the umask, and whatever group a set-gid parent passes on.
        rustix::fs::fchown(&fd, Some(rustix::process::geteuid()), Some(rustix::process::getegid()))
            .and_then(|()| rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o755)))
            .and_then(|()| if opaque { set_opaque(std::os::fd::AsFd::as_fd(&fd)) } else { Ok(()) })
            .map_err(|error| failed(path, "its directory cannot be described", error))?;
        // An opaque one took the place of a whiteout, which was counted.
        self.made = self.made.plus(Usage { bytes: BLOCK, inodes: u64::from(!opaque) });
        let whole = resolved.join(&b'/');
        self.implied_bytes += whole.len();
        if self.implied_bytes > MAX_IMPLIED {
            let limit = u64::try_from(MAX_IMPLIED).unwrap_or(u64::MAX);
            return Err(UnpackError::Limit { what: "bytes in names of directories without an entry", limit });
        }
        self.implied.insert(whole);
        Ok(fd)
    }

    fn reopen(&self, path: &[u8], resolved: &[Vec<u8>]) -> Result<OwnedFd, UnpackError> {
        let whole = resolved.join(&b'/');
        let name = if whole.is_empty() { OsStr::new(".") } else { os(&whole) };
        self.root
            .open_beneath(name, DIRECTORY, 0)
            .map_err(|error| failed(path, "its directory cannot be opened", error))
    }
}

fn components(path: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).map(<[u8]>::to_vec)
}

fn failed(path: &[u8], operation: &'static str, source: impl Into<std::io::Error>) -> UnpackError {
    UnpackError::Write { name: shown(path), operation, source: source.into() }
}
