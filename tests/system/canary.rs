//! A tree on the host that no container may read or change: most escapes show as a difference in it.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::archive::digest;
use crate::node::Node;

/// What the canary's file says; a container that prints it has seen the host.
pub const SECRET: &str = "the-canary-sings";

/// The tree, and how it was.
pub struct Canary {
    folder: PathBuf,
    before: BTreeMap<PathBuf, String>,
}

impl Canary {
    /// Makes the tree below the node's folder: files with odd modes, a folder, an empty folder, a FIFO, a link.
    pub fn new(node: &Node) -> Result<Self> {
        let folder = node.path("canary");
        std::fs::create_dir_all(folder.join("etc/deep"))?;
        std::fs::create_dir_all(folder.join("empty"))?;
        for (name, mode) in [("secret", 0o600), ("etc/passwd", 0o644), ("etc/mtab", 0o640), ("null", 0o755)] {
            std::fs::write(folder.join(name), format!("{SECRET}\n"))?;
            std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(mode))?;
        }
        rustix::fs::mkfifoat(rustix::fs::CWD, folder.join("fifo"), rustix::fs::Mode::from_raw_mode(0o620))?;
        std::os::unix::fs::symlink("secret", folder.join("link"))?;
        let before = record(&folder)?;
        Ok(Self { folder, before })
    }

    /// The tree's absolute path, the same on the host and for the daemon.
    pub fn path(&self) -> &str {
        self.folder.to_str().expect("the lane's paths are UTF-8")
    }

    /// Nothing of it has changed: names, kinds, owners, modes, times, contents.
    pub fn assert_untouched(&self) -> Result<()> {
        let now = record(&self.folder)?;
        for (path, line) in &self.before {
            let found = now.get(path).with_context(|| format!("{} is gone", path.display()))?;
            ensure!(found == line, "{} changed: {line} → {found}", path.display());
        }
        let fresh: Vec<_> = now.keys().filter(|path| !self.before.contains_key(*path)).collect();
        ensure!(fresh.is_empty(), "appeared on the host: {fresh:?}");
        Ok(())
    }
}

fn record(folder: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(path) = open.pop() {
        let meta = std::fs::symlink_metadata(&path)?;
        let content = if meta.is_file() {
            digest(&std::fs::read(&path)?)
        } else if meta.is_symlink() {
            std::fs::read_link(&path)?.display().to_string()
        } else {
            String::new()
        };
        let mut attributes = vec![0_u8; 1024];
        let size = rustix::fs::llistxattr(&path, attributes.as_mut_slice()).unwrap_or(0);
        found.insert(
            path.clone(),
            format!(
                "mode {:o} owner {}:{} links {} size {} mtime {}.{} {content} {}",
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.nlink(),
                meta.size(),
                meta.mtime(),
                meta.mtime_nsec(),
                String::from_utf8_lossy(&attributes[..size]).replace('\0', " ")
            ),
        );
        if meta.is_dir() {
            open.extend(std::fs::read_dir(&path)?.flatten().map(|entry| entry.path()));
        }
    }
    Ok(found)
}
