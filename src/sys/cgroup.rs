//! Control groups, version 1 (with the "hybrid" of both), and version 2: where they are mounted, and what cricket does to
//! a container's: list, kill, watch for OOM kills, remove. Limits are the OCI runtime's work; here they are only noted before
//! a change and put back after one that failed.
//!
//! Every path starts at a root folder that the caller gives, so that tests can lay out a tree of their own. A name that
//! came from a client is a [`CgroupPath`] only after [`Placement`] has checked it; the root cgroup is never one, so nothing
//! here can be turned against the whole machine.

mod kill;
mod layout;
mod limits;
mod node;
mod oom;
mod placement;
mod tree;

use std::io;
use std::path::{Path, PathBuf};

pub use layout::{CgroupLayout, CgroupVersion};
pub use limits::Limits;
pub use node::Cgroups;
pub use oom::OomWatch;
pub use placement::{CgroupPath, Driver, Placement, PlacementError};

/// One cgroup in every hierarchy that the machine has mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    version: CgroupVersion,
    path: CgroupPath,
    dirs: Vec<HierarchyDir>,
}

/// The cgroup's folder in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HierarchyDir {
    dir: PathBuf,
    /// The hierarchy's mount point, where creating a path begins.
    mount: PathBuf,
    /// Version 1: the controllers bound to this hierarchy. Empty for cgroup2.
    controllers: Vec<String>,
    unified: bool,
}

/// What could not be done to which file.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("{}: cannot be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: cannot be written", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{}: the cgroup cannot be made", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("{}: the cgroup cannot be removed", path.display())]
    Remove { path: PathBuf, source: io::Error },
    #[error("{}: holds more than {limit} nested cgroups", path.display())]
    TooManyNested { path: PathBuf, limit: usize },
    #[error("cgroup {cgroup}: {alive} processes are alive {after_ms} ms after SIGKILL, the first is {first}")]
    StillAlive { cgroup: String, alive: usize, first: i32, after_ms: u128 },
    #[error("cgroup {cgroup}: process {pid} cannot be signalled")]
    Signal { cgroup: String, pid: i32, source: io::Error },
    #[error(transparent)]
    Name(PlacementError),
    #[error("no cgroup file system is mounted (looked in {})", mountinfo.display())]
    NotMounted { mountinfo: PathBuf },
    #[error("{}: OOM kills cannot be watched", path.display())]
    Watch { path: PathBuf, source: io::Error },
}

impl Cgroup {
    /// The hierarchies' version; a hybrid is version 1.
    #[must_use]
    pub fn version(&self) -> CgroupVersion {
        self.version
    }

    /// The name below the hierarchies' mount points.
    #[must_use]
    pub fn path(&self) -> &CgroupPath {
        &self.path
    }

    /// The folder with a controller's files: on version 2 the one folder there is, on version 1 that of the hierarchy to
    /// which the controller is bound; `None` where the kernel or the mounts lack it. The folder need not exist.
    #[must_use]
    pub fn dir(&self, controller: &str) -> Option<&Path> {
        let found = match self.version {
            CgroupVersion::V2 => self.dirs.iter().find(|h| h.unified),
            CgroupVersion::V1 => self.dirs.iter().find(|h| h.controllers.iter().any(|c| c == controller)),
        };
        found.map(|h| h.dir.as_path())
    }

    /// The folders of the cgroup, one of each hierarchy. They need not exist.
    #[must_use]
    pub fn dirs(&self) -> Vec<PathBuf> {
        let limits = |h: &&HierarchyDir| self.version == CgroupVersion::V2 || !h.unified;
        self.dirs.iter().filter(limits).map(|h| h.dir.clone()).collect()
    }

    /// Whether any hierarchy holds the cgroup.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.dirs.iter().any(|h| h.dir.is_dir())
    }
}

/// Reads a small kernel file, no more than `cap` bytes of it. `None`: it, or its cgroup, is not there (any more).
fn read_small(path: &Path, cap: u64) -> Result<Option<String>, CgroupError> {
    use io::Read as _;
    let gone = |e: &io::Error| matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV));
    let failed = |source| CgroupError::Read { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if gone(&e) => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut text = String::new();
    match file.take(cap).read_to_string(&mut text) {
        Ok(_) => Ok(Some(text)),
        Err(e) if gone(&e) => Ok(None),
        Err(e) => Err(failed(e)),
    }
}

#[cfg(test)]
mod tests;
