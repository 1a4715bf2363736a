//! What a layer's tree must look like, worked out in memory from the entries of its archive.
//!
//! The rules are those of the OCI image specification ("Applying changesets"), as in [`crate::storage::unpack`], but none of
//! its code: what one of the two gets wrong, the other one shows.

use std::collections::{BTreeMap, VecDeque};

use crate::storage::unpack::{CleanName, Entry, Kind, Limits, Meaning, Timestamp, UnpackError, wanted};
use rustix::fs::FileType;

/// Symlinks followed in one path, as the kernel has it (path_resolution(7)).
const MAX_LINKS: usize = 40;

pub(super) struct Shadow {
    pub nodes: Vec<Node>,
}

/// The number of the root's node.
pub(super) const ROOT: usize = 0;

/// Names of a directory, and the numbers of their nodes. Hard links are one number under several names.
pub(super) type Names = BTreeMap<Box<[u8]>, usize>;

pub(super) struct Node {
    pub what: What,
    /// `None` for what no entry describes: it has the mode and owner that unpacking saw fit.
    pub facts: Option<Facts>,
    /// A directory that hides those of the layers below.
    pub opaque: bool,
}

#[derive(Clone)]
pub(super) enum What {
    Directory(Names),
    File { size: u64 },
    Symlink(Box<[u8]>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

pub(super) struct Facts {
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: Timestamp,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Node {
    fn implied() -> Self {
        Self { what: What::Directory(Names::new()), facts: None, opaque: false }
    }

    /// An overlay's whiteout: a character device 0/0, whoever made it.
    pub(super) fn is_whiteout(&self) -> bool {
        matches!(self.what, What::CharDevice(0, 0))
    }
}

impl Shadow {
    pub(super) fn new() -> Self {
        Self { nodes: vec![Node::implied()] }
    }

    /// Applies an entry.
    pub(super) fn apply(&mut self, entry: &Entry, limits: &Limits) -> Result<(), UnpackError> {
        self.take(entry, limits)
            .map_err(|why| UnpackError::Entry { name: format!("\"{}\"", entry.name.escape_ascii()), why })
    }

    fn take(&mut self, entry: &Entry, limits: &Limits) -> Result<(), String> {
        let name = CleanName::new(&entry.name, limits.path)?;
        if name.is_root() {
            self.describe(ROOT, entry);
            return Ok(());
        }
        let (parent, base) = name.split();
        match name.meaning()? {
            Meaning::Ignored => {}
            Meaning::Opaque => {
                let at = self.ensure(parent)?;
                self.nodes[at].opaque = true;
            }
            Meaning::Whiteout(hidden) => {
                let at = self.ensure(parent)?;
                match self.child(at, hidden) {
                    None => self.put(at, hidden, Node { what: What::CharDevice(0, 0), facts: None, opaque: false }),
                    Some(there) if self.names(there).is_some() => self.nodes[there].opaque = true,
                    Some(_) => {}
                }
            }
            Meaning::Entry => {
                let at = self.ensure(parent)?;
                self.entry(at, base, entry, limits)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, parent: usize, base: &[u8], entry: &Entry, limits: &Limits) -> Result<(), String> {
        let what = match entry.kind {
            Kind::Directory => {
                self.directory(parent, base, entry);
                return Ok(());
            }
            Kind::HardLink => {
                let target = CleanName::new(&entry.link, limits.path)?;
                let (above, name) = target.split();
                let found = self.find(above)?.and_then(|above| self.child(above, name));
                let found = found.ok_or("the target of the hard link is not in this layer")?;
                self.link(parent, base, found);
                return Ok(());
            }
            Kind::File => What::File { size: entry.size },
            Kind::Symlink => What::Symlink(entry.link.clone().into()),
            Kind::CharDevice => What::CharDevice(entry.device.0, entry.device.1),
            Kind::BlockDevice => What::BlockDevice(entry.device.0, entry.device.1),
            Kind::Fifo => What::Fifo,
        };
        self.put(parent, base, Node { what, facts: None, opaque: false });
        let made = self.nodes.len() - 1;
        self.describe(made, entry);
        Ok(())
    }

    /// A directory stays what it is, with a new description; anything else makes way.
    fn directory(&mut self, parent: usize, base: &[u8], entry: &Entry) {
        let there = self.child(parent, base);
        let at = match there.filter(|there| self.names(*there).is_some()) {
            Some(directory) => directory,
            None => {
                let opaque = there.is_some_and(|there| self.nodes[there].is_whiteout());
                self.put(parent, base, Node { opaque, ..Node::implied() });
                self.nodes.len() - 1
            }
        };
        self.describe(at, entry);
    }

    fn describe(&mut self, at: usize, entry: &Entry) {
        let kind = match self.nodes[at].what {
            What::Directory(_) => FileType::Directory,
            What::File { .. } => FileType::RegularFile,
            What::Symlink(_) => FileType::Symlink,
            _ => FileType::Unknown,
        };
        // A directory that is described again has nothing left of what an earlier entry said.
        let xattrs = entry.xattrs.iter().filter(|(name, _)| wanted(name, kind)).cloned().collect();
        let facts = Facts { mode: entry.mode, owner: (entry.uid, entry.gid), mtime: entry.mtime, xattrs };
        self.nodes[at].facts = Some(facts);
    }

    pub(super) fn names(&self, at: usize) -> Option<&Names> {
        match &self.nodes[at].what {
            What::Directory(names) => Some(names),
            _ => None,
        }
    }

    fn child(&self, at: usize, name: &[u8]) -> Option<usize> {
        self.names(at).and_then(|names| names.get(name)).copied()
    }

    fn put(&mut self, parent: usize, base: &[u8], node: Node) {
        self.nodes.push(node);
        self.link(parent, base, self.nodes.len() - 1);
    }

    fn link(&mut self, parent: usize, base: &[u8], to: usize) {
        if let What::Directory(names) = &mut self.nodes[parent].what {
            names.insert(base.into(), to);
        }
    }

    fn ensure(&mut self, path: &[u8]) -> Result<usize, String> {
        self.walk(path, true).map(|found| found.expect("what is missing was made"))
    }

    fn find(&mut self, path: &[u8]) -> Result<Option<usize>, String> {
        self.walk(path, false)
    }

    /// From the root, through symlinks that stay inside. What is missing is made, or the answer is `None`.
    fn walk(&mut self, path: &[u8], make: bool) -> Result<Option<usize>, String> {
        let mut above: Vec<usize> = Vec::new();
        let mut here = ROOT;
        let mut waiting: VecDeque<Box<[u8]>> = components(path).collect();
        let mut links = 0;
        while let Some(name) = waiting.pop_front() {
            if *name == *b".." {
                here = above.pop().unwrap_or(ROOT);
                continue;
            }
            let there = self.child(here, &name);
            match there.map(|there| &self.nodes[there].what) {
                Some(What::Directory(_)) => {
                    above.push(here);
                    here = there.expect("it was just looked at");
                }
                Some(What::Symlink(target)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return if make { Err("it is behind too many symlinks".to_owned()) } else { Ok(None) };
                    }
                    if target.starts_with(b"/") {
                        above.clear();
                        here = ROOT;
                    }
                    for part in components(target).collect::<Vec<_>>().into_iter().rev() {
                        waiting.push_front(part);
                    }
                }
                _ if !make => return Ok(None),
                None | Some(What::CharDevice(0, 0)) => {
                    self.put(here, &name, Node { opaque: there.is_some(), ..Node::implied() });
                    above.push(here);
                    here = self.nodes.len() - 1;
                }
                Some(_) => return Err("what should be its directory is none".to_owned()),
            }
        }
        Ok(Some(here))
    }
}

fn components(path: &[u8]) -> impl Iterator<Item = Box<[u8]>> + '_ {
    path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).map(Into::into)
}
