//! Everything that can be seen of a tree, for comparing two of them.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// All that is observable of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub kind: char,
    pub mode: u32,
    pub owner: (u32, u32),
    /// Absent where a comparison does not care.
    pub mtime: Option<(i64, i64)>,
    pub content: Vec<u8>,
    pub device: u64,
    /// The first of the names that this file has.
    pub same_as: PathBuf,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

pub(crate) type Tree = BTreeMap<PathBuf, Facts>;

/// Reads a tree; the root itself is the empty path. Each name that is listed can be looked up.
pub(crate) fn scan(root: &Path) -> anyhow::Result<Tree> {
    let (tree, unopenable) = scan_openable(root)?;
    anyhow::ensure!(unopenable == 0, "{unopenable} names below {} are listed and cannot be looked up", root.display());
    Ok(tree)
}

/// Reads of a tree what can be looked up, and says how many names cannot: an overlay lists whiteouts of a folder that only one
/// layer has.
pub(crate) fn scan_openable(root: &Path) -> anyhow::Result<(Tree, usize)> {
    let mut paths = vec![PathBuf::new()];
    let mut unopenable = 0;
    let mut at = 0;
    while at < paths.len() {
        let path = root.join(&paths[at]);
        if path.symlink_metadata()?.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                let name = entry?.file_name();
                match path.join(&name).symlink_metadata() {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => unopenable += 1,
                    _ => paths.push(paths[at].join(name)),
                }
            }
        }
        at += 1;
    }
    paths.sort();
    let mut first: HashMap<(u64, u64), PathBuf> = HashMap::new();
    let mut tree = Tree::new();
    for relative in paths {
        let path = if relative.as_os_str().is_empty() { root.to_owned() } else { root.join(&relative) };
        let meta = path.symlink_metadata()?;
        let kind = meta.file_type();
        let (kind, content) = if kind.is_file() {
            ('f', std::fs::read(&path)?)
        } else if kind.is_dir() {
            ('d', Vec::new())
        } else if kind.is_symlink() {
            ('l', std::fs::read_link(&path)?.as_os_str().as_bytes().to_vec())
        } else if kind.is_char_device() {
            ('c', Vec::new())
        } else if kind.is_block_device() {
            ('b', Vec::new())
        } else {
            assert!(kind.is_fifo());
            ('p', Vec::new())
        };
        let same_as = first.entry((meta.dev(), meta.ino())).or_insert_with(|| relative.clone()).clone();
        let facts = Facts {
            kind,
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            mtime: Some((meta.mtime(), meta.mtime_nsec())),
            content,
            device: if "cb".contains(kind) { meta.rdev() } else { 0 },
            same_as,
            xattrs: xattrs(&path)?,
        };
        tree.insert(relative, facts);
    }
    Ok((tree, unopenable))
}

fn xattrs(path: &Path) -> anyhow::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut list = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut list[..])?;
    let mut found = BTreeMap::new();
    for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        value.truncate(length);
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}

/// Says what differs, in words, or nothing. A time that one side leaves out is not compared.
pub(crate) fn differences(ours: &Tree, theirs: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for path in ours.keys().chain(theirs.keys()).collect::<std::collections::BTreeSet<_>>() {
        match (ours.get(path), theirs.get(path)) {
            (Some(a), Some(b)) => {
                let mut a = a.clone();
                if a.mtime.is_none() || b.mtime.is_none() {
                    a.mtime = b.mtime;
                }
                if a != *b {
                    found.push(format!("{}: ours {a:?}, theirs {b:?}", path.display()));
                }
            }
            (a, b) => found.push(format!("{}: ours {a:?}, theirs {b:?}", path.display())),
        }
    }
    found
}
