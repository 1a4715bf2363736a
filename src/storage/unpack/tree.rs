//! Writing entries below the layer's root.
//!
//! Each entry is applied in its parent directory, which is held open; the last component of a name is never followed.
//! Modes, owners, times and attributes are set through the descriptor of the very thing that was made. Parents stay open
//! in a small cache, which is emptied whenever anything is removed or replaced, as any of its paths may have led through
//! that (CVE-2025-47290). Creating something new cannot redirect a path that was resolved before.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::archive::{Archive, Entry, Kind, Timestamp};
use super::error::shown;
use super::name::{CleanName, Meaning, os};
use super::{Limits, UnpackError};
use crate::storage::removal::remove_tree;
use crate::storage::usage::{BLOCK, Usage};
use crate::sys::root::{Root, file_type, magic_path};
use crate::sys::xattr;

mod content;
mod noted;
mod parents;
mod replaced;
mod times;

use content::{copy, copy_regions};
use noted::Noted;
pub(in crate::storage) use noted::Written;
use parents::{Opened, Parents};
use replaced::Replaced;
use times::{Times, scratch_failed};

/// The attribute by which an overlay hides a directory of the layers below (kernel documentation, overlayfs).
pub(in crate::storage) const OPAQUE: &str = "trusted.overlay.opaque";

/// The attribute of a directory that gives access lists to all that is made in it (acl(5)).
const PASSED_ON: &[u8] = b"system.posix_acl_default";

/// Longest path that one system call takes, its NUL left out (PATH_MAX, limits.h).
const LONGEST: usize = 4095;

pub(super) struct Tree<'l> {
    /// The layer's own directory.
    beside: &'l Root,
    parents: Parents<'l>,
    limits: &'l Limits,
    times: Times,
    replaced: Replaced<'l>,
    /// Where a whiteout was made; it may have been replaced since.
    whiteouts: Option<Noted<0>>,
    usage: Usage,
    opaque_root: bool,
}

/// The outcome of a whole layer.
pub(super) struct Done {
    pub usage: Usage,
    pub opaque_root: bool,
    pub implied: Vec<Vec<u8>>,
    pub whiteouts: Option<Written<0>>,
}

/// An entry being applied: names for messages, and where it goes.
struct Place<'e> {
    entry: &'e Entry,
    name: &'e CleanName,
    parent: Rc<Opened>,
    base: &'e [u8],
}

impl Place<'_> {
    fn failed(&self, operation: &'static str) -> impl FnOnce(Errno) -> UnpackError {
        let name = shown(self.name.bytes());
        move |source| UnpackError::Write { name, operation, source: source.into() }
    }

    fn unstripped(&self) -> impl FnOnce(std::io::Error) -> UnpackError {
        let (name, operation) =
            (shown(self.name.bytes()), "an extended attribute that is not its own cannot be removed");
        move |source| UnpackError::Write { name, operation, source }
    }

    fn refused(&self, why: impl Into<String>) -> UnpackError {
        UnpackError::Entry { name: shown(self.name.bytes()), why: why.into() }
    }

    /// The path below the root, through no symlink.
    fn path(&self) -> Vec<u8> {
        if self.parent.path.is_empty() { self.base.to_vec() } else { [&self.parent.path, self.base].join(&b'/') }
    }

    fn stat(&self) -> Result<Stat, UnpackError> {
        rustix::fs::statat(&self.parent, self.base, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(self.failed("what is there cannot be examined"))
    }

    fn open(&self, flags: OFlags) -> Result<OwnedFd, UnpackError> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.parent, self.base, flags, Mode::empty()).map_err(self.failed("cannot be opened"))
    }
}

impl<'l> Tree<'l> {
    pub(super) fn new(
        root: &'l Root,
        beside: &'l Root,
        limits: &'l Limits,
        open_parents: usize,
    ) -> Result<Self, UnpackError> {
        Ok(Self {
            beside,
            parents: Parents::new(root, open_parents),
            limits,
            times: Times::new(beside.as_fd())?,
            replaced: Replaced::new(beside),
            whiteouts: None,
            usage: Usage::default(),
            opaque_root: false,
        })
    }

    /// Applies one entry, with its content.
    pub(super) fn apply(&mut self, archive: &mut Archive<'_>, entry: &Entry) -> Result<(), UnpackError> {
        let refuse = |why: String| UnpackError::Entry { name: shown(&entry.name), why };
        let name = CleanName::new(&entry.name, self.limits.path).map_err(refuse)?;
        if name.is_root() {
            return self.root(&name, entry);
        }
        let (parent, base) = name.split();
        match name.meaning().map_err(refuse)? {
            Meaning::Ignored => Ok(()),
            Meaning::Opaque => {
                let directory = self.parents.ensure(parent)?;
                if parent.is_empty() {
                    self.opaque_root = true;
                }
                let place = Place { entry, name: &name, parent: directory, base };
                let done = set_opaque(place.parent.as_fd());
                done.map_err(place.failed("its directory cannot be made opaque"))
            }
            Meaning::Whiteout(hidden) => {
                let place = Place { entry, name: &name, parent: self.parents.ensure(parent)?, base: hidden };
                self.whiteout(&place)
            }
            Meaning::Entry => {
                let place = Place { entry, name: &name, parent: self.parents.ensure(parent)?, base };
                // Symlinks can make a path longer than the name was; what has no path that fits cannot be had again.
                if place.parent.path.len() + base.len() + 1 > LONGEST {
                    return Err(place.refused(format!("its path is longer than {LONGEST} bytes")));
                }
                match entry.kind {
                    Kind::Directory => self.directory(&place, archive),
                    Kind::File => self.file(&place, archive),
                    Kind::HardLink => self.hard_link(&place, archive),
                    Kind::Symlink => self.symlink(&place, archive),
                    Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => self.special(&place, archive),
                }
            }
        }
    }

    /// The root may be described, and by nothing but a directory (CVE-2021-29136).
    fn root(&mut self, name: &CleanName, entry: &Entry) -> Result<(), UnpackError> {
        if entry.kind != Kind::Directory {
            let why = "the layer's root can only be a directory".to_owned();
            return Err(UnpackError::Entry { name: shown(&entry.name), why });
        }
        let place = Place { entry, name, parent: self.parents.ensure(b"")?, base: b"." };
        let fd = place.open(OFlags::RDONLY | OFlags::DIRECTORY)?;
        self.describe(&place, fd.as_fd(), true)?;
        self.times.note(b"", entry.mtime)
    }

    fn directory(&mut self, place: &Place<'_>, archive: &mut Archive<'_>) -> Result<(), UnpackError> {
        let make = || rustix::fs::mkdirat(&place.parent, place.base, Mode::RWXU);
        let (mut hides, mut again) = (false, false);
        match make() {
            Ok(()) => self.count(BLOCK),
            Err(Errno::EXIST) => {
                let there = place.stat()?;
                if file_type(&there) != FileType::Directory {
                    hides = is_whiteout(&there);
                    self.replace(place, &there, archive)?;
                    make().map_err(place.failed("the directory cannot be made"))?;
                    self.count(BLOCK);
                } else {
                    again = true;
                }
            }
            Err(error) => return Err(place.failed("the directory cannot be made")(error)),
        }
        let fd = place.open(OFlags::RDONLY | OFlags::DIRECTORY)?;
        self.describe(place, fd.as_fd(), again)?;
        if hides {
            // The layer removes what was there, and then has a directory of its own.
            set_opaque(fd.as_fd()).map_err(place.failed("it cannot be made opaque"))?;
        }
        self.times.note(&place.path(), place.entry.mtime)?;
        self.parents.described(place.path(), fd);
        Ok(())
    }

    fn file(&mut self, place: &Place<'_>, archive: &mut Archive<'_>) -> Result<(), UnpackError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&place.parent, place.base, flags, Mode::RUSR | Mode::WUSR);
        let fd = self.make(place, archive, "the file cannot be made", open)?;
        let file = File::from(fd);
        let stored = match &place.entry.regions {
            None => copy(place, archive, &file)?,
            Some(regions) => copy_regions(place, archive, &file, regions)?,
        };
        archive.stored(&place.path(), place.entry);
        self.count(stored.next_multiple_of(BLOCK));
        self.describe(place, file.as_fd(), false)?;
        rustix::fs::futimens(&file, &stamps(place.entry.mtime)).map_err(place.failed("its time cannot be set"))
    }

    fn hard_link(&mut self, place: &Place<'_>, archive: &mut Archive<'_>) -> Result<(), UnpackError> {
        let target = CleanName::new(&place.entry.link, self.limits.path)
            .map_err(|why| place.refused(format!("the target of the hard link: {why}")))?;
        let (parent, base) = target.split();
        let found = if target.is_root() { None } else { self.parents.find(parent)? };
        let found = found.ok_or_else(|| place.refused("the target of the hard link is not in this layer"))?;
        if is_within(&found.path, &place.path()) {
            return Err(place.refused("the target of the hard link is in the directory that it replaces"));
        }
        let stat = rustix::fs::statat(&found, base, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(place.failed("the target of the hard link is not in this layer"))?;
        if file_type(&stat) == FileType::Directory {
            return Err(place.refused("the target of the hard link is a directory"));
        }
        if is_whiteout(&stat) {
            self.note_whiteout(place)?;
        }
        let link = || rustix::fs::linkat(&found, base, &place.parent, place.base, AtFlags::empty());
        match link() {
            Ok(()) => return Ok(()),
            // Also a link to itself: it is what it is to be, and must not be replaced.
            Err(Errno::EXIST) => {
                let there = place.stat()?;
                if (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino) {
                    return Ok(());
                }
            }
            Err(_) => {}
        }
        self.make(place, archive, "the hard link cannot be made", link)
    }

    fn symlink(&mut self, place: &Place<'_>, archive: &mut Archive<'_>) -> Result<(), UnpackError> {
        let target = place.entry.link.as_slice();
        if target.is_empty() || target.contains(&0) {
            return Err(place.refused("the target of the symlink is empty, or holds a NUL byte"));
        }
        let make = || rustix::fs::symlinkat(target, &place.parent, place.base);
        self.make(place, archive, "the symlink cannot be made", make)?;
        self.count(0);
        let (owner, group) = owner(place.entry);
        rustix::fs::chownat(&place.parent, place.base, owner, group, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(place.failed("its owner cannot be set"))?;
        if place.entry.xattrs.iter().any(|(name, _)| wanted(name, FileType::Symlink)) {
            let fd = place.open(OFlags::PATH)?;
            set_attributes(place, fd.as_fd(), FileType::Symlink)?;
        }
        rustix::fs::utimensat(&place.parent, place.base, &stamps(place.entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(place.failed("its time cannot be set"))
    }

    fn special(&mut self, place: &Place<'_>, archive: &mut Archive<'_>) -> Result<(), UnpackError> {
        let kind = match place.entry.kind {
            Kind::CharDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let (major, minor) = place.entry.device;
        let device = rustix::fs::makedev(major, minor);
        let make = || rustix::fs::mknodat(&place.parent, place.base, kind, Mode::RUSR | Mode::WUSR, device);
        self.make(place, archive, "the device or FIFO cannot be made", make)?;
        self.count(0);
        if kind == FileType::CharacterDevice && device == 0 {
            // Whoever makes it, to an overlay it is one.
            self.note_whiteout(place)?;
        }
        // Opening a device or a FIFO acts on it; this descriptor only names it, and chmod goes by its magic link.
        let fd = place.open(OFlags::PATH)?;
        if self.parents.pass_on {
            strip(fd.as_fd(), kind, &place.entry.xattrs).map_err(place.unstripped())?;
        }
        let (owner, group) = owner(place.entry);
        rustix::fs::chownat(&place.parent, place.base, owner, group, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(place.failed("its owner cannot be set"))?;
        let mode = Mode::from_raw_mode(place.entry.mode);
        rustix::fs::chmodat(rustix::fs::CWD, magic_path(fd.as_fd()), mode, AtFlags::empty())
            .map_err(place.failed("its mode cannot be set"))?;
        set_attributes(place, fd.as_fd(), kind)?;
        rustix::fs::utimensat(&place.parent, place.base, &stamps(place.entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(place.failed("its time cannot be set"))
    }

    /// Hides a name of the layers below. What this layer itself has under that name stays (OCI image specification,
    /// "Whiteouts"), but is then not merged with anything.
    fn whiteout(&mut self, place: &Place<'_>) -> Result<(), UnpackError> {
        match rustix::fs::mknodat(&place.parent, place.base, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => {
                self.count(0);
                self.note_whiteout(place)
            }
            Err(Errno::EXIST) if file_type(&place.stat()?) == FileType::Directory => {
                let fd = place.open(OFlags::RDONLY | OFlags::DIRECTORY)?;
                set_opaque(fd.as_fd()).map_err(place.failed("what it hides cannot be made opaque"))
            }
            Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(place.failed("the whiteout cannot be made")(error)),
        }
    }

    fn note_whiteout(&mut self, place: &Place<'_>) -> Result<(), UnpackError> {
        let noted = match &mut self.whiteouts {
            Some(noted) => noted,
            None => {
                let noted = Noted::new(self.beside.as_fd()).map_err(scratch_failed("cannot be made"))?;
                self.whiteouts.insert(noted)
            }
        };
        noted.note([], &place.path()).map_err(scratch_failed("cannot be written"))
    }

    /// Makes something new, in the place of whatever has its name.
    fn make<T>(
        &mut self,
        place: &Place<'_>,
        archive: &mut Archive<'_>,
        operation: &'static str,
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, UnpackError> {
        match make() {
            Err(Errno::EXIST) => {
                let there = place.stat()?;
                self.replace(place, &there, archive)?;
                make().map_err(place.failed(operation))
            }
            made => made.map_err(place.failed(operation)),
        }
    }

    /// Takes away what an entry replaces: never written through, as it may be linked from elsewhere (RUSTSEC-2018-0002).
    /// What may hold content goes beside the tree and still counts: the archive cannot be had again without it.
    fn replace(&mut self, place: &Place<'_>, there: &Stat, archive: &mut Archive<'_>) -> Result<(), UnpackError> {
        self.parents.forget();
        self.usage = self.usage.plus(self.parents.take_made());
        let content = match file_type(there) {
            FileType::Directory => true,
            FileType::RegularFile => there.st_size > 0,
            _ => false,
        };
        if content {
            let path = place.path();
            let number = self.replaced.take(&place.parent, place.base, &path)?;
            archive.moved(&path, number);
            return Ok(());
        }
        let failed = |source| UnpackError::Write {
            name: shown(place.name.bytes()),
            operation: "what it replaces cannot be removed",
            source,
        };
        if there.st_nlink <= 1 {
            self.usage = self.usage.minus(Usage { bytes: 0, inodes: 1 });
        }
        remove_tree(place.parent.as_fd(), os(place.base)).map_err(failed)
    }

    /// What a directory or file is, by its entry alone: attributes that it has from elsewhere go, which is from an earlier
    /// entry if it was described before, or from the access list of its parent. Then owner; then mode, since a change of
    /// owner clears set-uid; then attributes, since it drops file capabilities.
    fn describe(&mut self, place: &Place<'_>, fd: BorrowedFd<'_>, again: bool) -> Result<(), UnpackError> {
        let entry = place.entry;
        let kind = if entry.kind == Kind::Directory { FileType::Directory } else { FileType::RegularFile };
        if again || self.parents.pass_on {
            strip(fd, kind, &entry.xattrs).map_err(place.unstripped())?;
        }
        let (owner, group) = owner(entry);
        rustix::fs::fchown(fd, owner, group).map_err(place.failed("its owner cannot be set"))?;
        rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode)).map_err(place.failed("its mode cannot be set"))?;
        self.parents.pass_on |= entry.xattrs.iter().any(|(name, _)| name == PASSED_ON);
        set_attributes(place, fd, kind)
    }

    fn count(&mut self, bytes: u64) {
        self.usage = self.usage.plus(Usage { bytes, inodes: 1 });
    }

    /// Sets the times of directories, which every entry in them changed.
    pub(super) fn finish(mut self) -> Result<Done, UnpackError> {
        self.times.replay(|path, mtime| {
            let name = CleanName::new(if path.is_empty() { b"." } else { path }, self.limits.path);
            let Ok(name) = name else { return Ok(()) };
            let (parent, base) = if name.is_root() { (&b""[..], &b"."[..]) } else { name.split() };
            let Some(parent) = self.parents.plain(parent)? else { return Ok(()) };
            // A later entry may have replaced the directory; that has its own time.
            let still = rustix::fs::statat(&parent, base, AtFlags::SYMLINK_NOFOLLOW);
            if still.is_ok_and(|stat| file_type(&stat) == FileType::Directory) {
                rustix::fs::utimensat(&parent, base, &stamps(mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(|source| {
                    let operation = "its time cannot be set";
                    UnpackError::Write { name: shown(path), operation, source: source.into() }
                })?;
            }
            Ok(())
        })?;
        let usage = self.usage.plus(self.parents.take_made()).plus(self.replaced.usage());
        let whiteouts = self.whiteouts.map(Noted::done).transpose().map_err(scratch_failed("cannot be written"))?;
        Ok(Done { usage, opaque_root: self.opaque_root, implied: self.parents.implied(), whiteouts })
    }
}

/// Whether a path is another or lies below it.
fn is_within(path: &[u8], above: &[u8]) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// Whether this is an overlay's whiteout.
pub(in crate::storage) fn is_whiteout(stat: &Stat) -> bool {
    file_type(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn set_opaque(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    xattr::set(fd, OPAQUE.as_ref(), b"y").map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
}

/// Removes attributes that an entry could set and that are not among those to keep.
fn strip(fd: BorrowedFd<'_>, kind: FileType, keep: &[(Vec<u8>, Vec<u8>)]) -> std::io::Result<()> {
    let there = match xattr::list_by_path_fd(fd) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::OPNOTSUPP) => return Ok(()),
        there => there?,
    };
    for name in there.iter().filter(|name| wanted(name, kind) && !keep.iter().any(|(kept, _)| kept == *name)) {
        xattr::remove_by_path_fd(fd, os(name))?;
    }
    Ok(())
}

/// Attributes that belong to the host's own policy, SELinux's and Smack's among them, whatever a layer says.
pub(in crate::storage) fn is_of_the_host(name: &[u8]) -> bool {
    let starts: &[&[u8]] = &[b"security.selinux", b"security.SMACK64", b"security.ima", b"security.evm"];
    starts.iter().any(|start| name.starts_with(start))
}

/// Attributes that mean something in a container. An overlay's own would let a layer reach into others; the kernel allows
/// `user.` on files and directories only (xattr(7)).
pub(in crate::storage) fn wanted(name: &[u8], kind: FileType) -> bool {
    let plain = matches!(kind, FileType::RegularFile | FileType::Directory);
    let refused = is_of_the_host(name) || name.starts_with(b"trusted.overlay.") || name.starts_with(b"system.nfs4_acl");
    !name.contains(&0) && !refused && (plain || !name.starts_with(b"user."))
}

fn set_attributes(place: &Place<'_>, fd: BorrowedFd<'_>, kind: FileType) -> Result<(), UnpackError> {
    let plain = matches!(kind, FileType::RegularFile | FileType::Directory);
    for (name, value) in place.entry.xattrs.iter().filter(|(name, _)| wanted(name, kind)) {
        let set = if plain { xattr::set } else { xattr::set_by_path_fd };
        match set(fd, os(name), value) {
            Ok(()) => {}
            // A file system without such attributes is no reason to refuse the image, except when programs in it
            // would then lack their capabilities.
            Err(error)
                if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) && name != b"security.capability" => {}
            Err(source) => {
                let name = shown(place.name.bytes());
                return Err(UnpackError::Write { name, operation: "an extended attribute cannot be set", source });
            }
        }
    }
    Ok(())
}

fn stamps(mtime: Timestamp) -> Timestamps {
    let time = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}
