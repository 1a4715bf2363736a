//! A layer's tree on disk beside the one that its archive describes.
//!
//! What a file system or the kernel may change by itself is no finding: times are compared as far as the file system keeps
//! them, labels of the host's security modules not at all, and access lists only through the mode that they are part of.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::shadow::{Facts, Names, Node, ROOT, Shadow, What};
use super::{Below, Findings};
use crate::storage::unpack::{OPAQUE, is_of_the_host, os};
use crate::storage::whiteouts::Hidden;
use crate::sys::root::{Root, file_type};
use crate::sys::xattr;

struct Comparison<'c> {
    shadow: &'c Shadow,
    diff: &'c Root,
    found: &'c mut Findings,
    below: Below<'c>,
    /// What whiteouts of the layer hide, once that was asked for; `None` inside: the layers below are not known.
    hidden: Option<Option<Hidden<'c>>>,
    /// The names that each node has.
    links: Vec<u32>,
    /// The inode of a node with several names, and the first of them.
    first: HashMap<usize, ((u64, u64), Vec<u8>)>,
    /// The node of an inode with several names, and the first of them.
    nodes: HashMap<(u64, u64), (usize, Vec<u8>)>,
}

/// Compares all of it.
pub(super) fn compare((shadow, diff): (&Shadow, &Root), below: Below<'_>, found: &mut Findings) -> io::Result<()> {
    let links = links(shadow);
    let (first, nodes) = (HashMap::new(), HashMap::new());
    let mut comparison = Comparison { shadow, diff, found, below, hidden: None, links, first, nodes };
    let root = diff.try_clone()?;
    comparison.node(b"", ROOT, &root.into())?;
    let mut waiting = vec![(Vec::new(), ROOT)];
    while let Some((path, at)) = waiting.pop() {
        let below = comparison.directory(&path, at)?;
        waiting.extend(below);
    }
    Ok(())
}

/// How many names each node has, of those that can be reached: what was replaced has none.
fn links(shadow: &Shadow) -> Vec<u32> {
    let mut links = vec![0; shadow.nodes.len()];
    let mut waiting = vec![ROOT];
    while let Some(at) = waiting.pop() {
        for child in shadow.names(at).into_iter().flat_map(Names::values) {
            links[*child] += 1;
            waiting.push(*child);
        }
    }
    links
}

impl Comparison<'_> {
    /// Compares what is in a directory; gives the directories in it that are there on both sides.
    fn directory(&mut self, path: &[u8], at: usize) -> io::Result<Vec<(Vec<u8>, usize)>> {
        let Some(names) = self.shadow.names(at) else { return Ok(Vec::new()) };
        let name = if path.is_empty() { &b"."[..] } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NOATIME | OFlags::CLOEXEC;
        let directory = match self.diff.open_beneath(os(name), flags, 0) {
            Ok(directory) => directory,
            Err(error) => {
                self.found.add(path, format!("it cannot be opened: {error}"));
                return Ok(Vec::new());
            }
        };
        let mut there = HashSet::new();
        for entry in Dir::read_from(&directory)? {
            match entry {
                Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
                Ok(entry) => {
                    there.insert(Box::<[u8]>::from(entry.file_name().to_bytes()));
                }
                Err(error) => {
                    self.found.add(path, format!("it cannot be listed: {error}"));
                    return Ok(Vec::new());
                }
            }
        }
        let whole = |base: &[u8]| if path.is_empty() { base.to_vec() } else { [path, base].join(&b'/') };
        let mut below = Vec::new();
        for (base, child) in names {
            let child_path = whole(base);
            if !there.remove(base) {
                // A commit leaves whiteouts out that hide nothing.
                if !self.shadow.nodes[*child].is_whiteout() || self.would_hide(path, base)? {
                    self.found.add(&child_path, "it is missing");
                }
                continue;
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(&directory, os(base), flags, Mode::empty()) {
                Ok(fd) => {
                    if self.node(&child_path, *child, &fd)? {
                        below.push((child_path, *child));
                    }
                }
                Err(error) => self.found.add(&child_path, format!("it cannot be examined: {error}")),
            }
        }
        for extra in there {
            self.found.add(&whole(&extra), "it is not in the archive");
        }
        Ok(below)
    }

    /// Whether a whiteout would hide something, as far as that is known.
    fn would_hide(&mut self, folder: &[u8], name: &[u8]) -> io::Result<bool> {
        let hidden = match &mut self.hidden {
            Some(hidden) => hidden,
            None => {
                let below = (self.below)()?;
                self.hidden.insert(below.map(|below| Hidden::new(below, self.diff)))
            }
        };
        hidden.as_mut().map_or(Ok(true), |hidden| hidden.is(folder, name))
    }

    /// Compares one thing; says whether it is a directory on both sides.
    fn node(&mut self, path: &[u8], at: usize, fd: &OwnedFd) -> io::Result<bool> {
        let node = &self.shadow.nodes[at];
        let stat = rustix::fs::fstat(fd)?;
        let (want, got) = (kind(node), file_type(&stat));
        if want != got {
            self.found.add(path, format!("it is {}, the archive has {}", shown(got), shown(want)));
            return Ok(false);
        }
        if let Some(problem) = contradictions(node, &stat, fd)? {
            self.found.add(path, problem);
        }
        if let Some(facts) = &node.facts {
            for problem in described(facts, &stat, got) {
                self.found.add(path, problem);
            }
        }
        for problem in attributes(node, fd)? {
            self.found.add(path, problem);
        }
        let inode = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1 && want != FileType::Directory {
            let (other, name) = self.nodes.entry(inode).or_insert_with(|| (at, path.to_vec()));
            if *other != at {
                self.found.add(path, format!("it is a hard link of {}, in the archive it is not", name.escape_ascii()));
            }
        }
        if self.links[at] > 1 {
            let (first, name) = self.first.entry(at).or_insert_with(|| (inode, path.to_vec()));
            if *first != inode {
                let problem = format!("it is no hard link of {} any more", name.escape_ascii());
                self.found.add(path, problem);
            }
        }
        Ok(want == FileType::Directory)
    }
}

fn kind(node: &Node) -> FileType {
    match node.what {
        What::Directory(_) => FileType::Directory,
        What::File { .. } => FileType::RegularFile,
        What::Symlink(_) => FileType::Symlink,
        What::CharDevice(..) => FileType::CharacterDevice,
        What::BlockDevice(..) => FileType::BlockDevice,
        What::Fifo => FileType::Fifo,
    }
}

fn shown(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symlink",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        FileType::Fifo => "a FIFO",
        _ => "something else",
    }
}

/// Size, target, device number.
fn contradictions(node: &Node, stat: &Stat, fd: &OwnedFd) -> io::Result<Option<String>> {
    Ok(match &node.what {
        What::File { size } => {
            let got = u64::try_from(stat.st_size).unwrap_or(0);
            (got != *size).then(|| format!("it has {got} bytes, in the archive {size}"))
        }
        What::Symlink(target) => {
            let got = rustix::fs::readlinkat(fd, "", Vec::new())?;
            (got.to_bytes() != &**target).then(|| {
                let (got, target) = (got.to_bytes().escape_ascii(), target.escape_ascii());
                format!("it leads to {got}, in the archive to {target}")
            })
        }
        What::CharDevice(major, minor) | What::BlockDevice(major, minor) => {
            let got = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
            (got != (*major, *minor))
                .then(|| format!("it is the device {}:{}, in the archive {major}:{minor}", got.0, got.1))
        }
        What::Directory(_) | What::Fifo => None,
    })
}

/// Mode, owner, time.
fn described(facts: &Facts, stat: &Stat, kind: FileType) -> Vec<String> {
    let mut found = Vec::new();
    let mode = stat.st_mode & 0o7777;
    // A symlink has none; an access list changes what it is.
    let comparable = kind != FileType::Symlink && !facts.xattrs.iter().any(|(name, _)| name.starts_with(b"system."));
    if comparable && mode != facts.mode {
        found.push(format!("its mode is {mode:04o}, in the archive {:04o}", facts.mode));
    }
    let owner = (stat.st_uid, stat.st_gid);
    if owner != facts.owner {
        found.push(format!("its owner is {}:{}, in the archive {}:{}", owner.0, owner.1, facts.owner.0, facts.owner.1));
    }
    let (seconds, nanoseconds) = (stat.st_mtime, stat.st_mtime_nsec);
    let (want, fraction) = (facts.mtime.seconds, facts.mtime.nanoseconds);
    let whole = seconds == want || seconds == limit_of_time(seconds, want);
    // Some file systems keep no fractions.
    let exact = seconds != want || u64::from(fraction) == nanoseconds || nanoseconds == 0;
    if !whole || !exact {
        found.push(format!("its time is {seconds}.{nanoseconds:09}, in the archive {want}.{fraction:09}"));
    }
    found
}

/// The kernel sets a time that a file system cannot hold to the nearest that it can. If `got` is such a limit and `want`
/// lies beyond it, this is `got`; else it is `want`.
pub(super) fn limit_of_time(got: i64, want: i64) -> i64 {
    // 32 bits with and without a sign, ext4's 34 bits, and XFS's nanoseconds in 64 bits.
    let last = [i64::from(i32::MAX), i64::from(u32::MAX), 15_032_385_535, 16_299_260_424];
    let earliest = [i64::from(i32::MIN), 0];
    if (last.contains(&got) && want > got) || (earliest.contains(&got) && want < got) { got } else { want }
}

fn attributes(node: &Node, fd: &OwnedFd) -> io::Result<Vec<String>> {
    let foreign = |name: &[u8]| is_of_the_host(name) || name.starts_with(b"system.");
    let mut there = match xattr::list_by_path_fd(fd.as_fd()) {
        // A file system without attributes: unpacking left them out.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        there => there?,
    };
    there.retain(|name| !foreign(name));
    let own = node.facts.as_ref().map(|facts| facts.xattrs.as_slice()).unwrap_or_default();
    let opaque = node.opaque.then(|| (OPAQUE.as_bytes(), &b"y"[..]));
    let wanted = own.iter().map(|(name, value)| (name.as_slice(), value.as_slice())).chain(opaque);
    let mut found = Vec::new();
    let mut buffer = vec![0; if there.is_empty() { 0 } else { 64 << 10 }];
    for (name, value) in wanted.filter(|(name, _)| !foreign(name)) {
        let Some(at) = there.iter().position(|known| known == name) else {
            found.push(format!("its attribute {} is missing", name.escape_ascii()));
            continue;
        };
        there.swap_remove(at);
        if xattr::get_by_path_fd(fd.as_fd(), os(name), &mut buffer)? != Some(value) {
            found.push(format!("its attribute {} is not what the archive had", name.escape_ascii()));
        }
    }
    found.extend(there.iter().map(|name| format!("its attribute {} is not in the archive", name.escape_ascii())));
    Ok(found)
}
