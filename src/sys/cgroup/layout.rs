//! Which hierarchies are mounted where, from `/proc/self/mountinfo` and `/proc/self/cgroup`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::{Cgroup, CgroupError, CgroupPath, HierarchyDir, read_small};

/// Whose files hold the limits and the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupVersion {
    /// One hierarchy per controller; a "hybrid" machine, with a cgroup2 mount beside them, counts as this.
    V1,
    /// The unified hierarchy.
    V2,
}

/// The machine's hierarchies, detected once at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupLayout {
    version: CgroupVersion,
    hierarchies: Vec<Hierarchy>,
    /// The plain folder under the mount point of a hybrid's cgroup2 hierarchy that is not mounted: crun makes folders there
    /// as if it were, and never removes them.
    shadow: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    /// Where in the hierarchy the mount begins; `/` unless the daemon itself runs in a container.
    root: PathBuf,
    /// Version 1 controllers, or `name=…`; empty for cgroup2.
    controllers: Vec<String>,
    unified: bool,
}

/// Kernel tables are a few KiB; a machine with thousands of pods has some MiB of mounts.
const PROC_CAP: u64 = 64 << 20;

impl CgroupLayout {
    /// Reads the tables of the calling process below `root` (`/` outside tests).
    ///
    /// A hierarchy that is mounted more than once is taken where its whole tree shows, and there at its first mount: the
    /// later ones are copies inside somebody's container.
    ///
    /// # Errors
    /// [`CgroupError::Read`] when mountinfo cannot be read, [`CgroupError::NotMounted`] when it names no cgroup mount.
    pub fn detect(root: &Path) -> Result<Self, CgroupError> {
        let mountinfo = root.join("proc/self/mountinfo");
        let own = root.join("proc/self/cgroup");
        let text = read_small(&mountinfo, PROC_CAP)?.unwrap_or_default();
        let own = read_small(&own, PROC_CAP)?.unwrap_or_default();
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for found in text.lines().filter_map(parse_mount).filter(|h| h.is_listed_in(&own)) {
            match hierarchies.iter_mut().find(|h| h.unified == found.unified && h.controllers == found.controllers) {
                Some(known) if known.root != Path::new("/") && found.root == Path::new("/") => *known = found,
                Some(_) => {}
                None => hierarchies.push(found),
            }
        }
        for hierarchy in &mut hierarchies {
            hierarchy.mount = below(root, &hierarchy.mount);
        }
        // The table also lists what another mount has covered since.
        hierarchies.retain(|h| h.mount.is_dir());
        if hierarchies.is_empty() {
            return Err(CgroupError::NotMounted { mountinfo });
        }
        // A named hierarchy (systemd's) carries no controller, so it does not make the machine a version 1 machine.
        let has_v1 = hierarchies.iter().any(|h| h.controllers.iter().any(|c| !c.starts_with("name=")));
        let version = if has_v1 { CgroupVersion::V1 } else { CgroupVersion::V2 };
        let has_unified = hierarchies.iter().any(|h| h.unified);
        let beside = hierarchies.first().and_then(|h| h.mount.parent()).map(|parent| parent.join("unified"));
        let shadow = beside.filter(|path| version == CgroupVersion::V1 && !has_unified && path.is_dir());
        Ok(Self { version, hierarchies, shadow })
    }

    /// Version 1 as soon as one controller is bound to a version 1 hierarchy.
    #[must_use]
    pub fn version(&self) -> CgroupVersion {
        self.version
    }

    /// Whether a cgroup2 mount stands beside version 1 hierarchies, which some runtimes refuse.
    #[must_use]
    pub fn is_hybrid(&self) -> bool {
        self.version == CgroupVersion::V1 && self.hierarchies.iter().any(|h| h.unified)
    }

    /// The controllers that containers can be limited by.
    ///
    /// # Errors
    /// [`CgroupError::Read`] when version 2's list cannot be read.
    pub fn controllers(&self) -> Result<Vec<String>, CgroupError> {
        let mut names: Vec<String> =
            self.hierarchies.iter().flat_map(|h| &h.controllers).filter(|c| !c.starts_with("name=")).cloned().collect();
        for unified in self.hierarchies.iter().filter(|h| h.unified) {
            let text = read_small(&unified.mount.join("cgroup.controllers"), PROC_CAP)?.unwrap_or_default();
            names.extend(text.split_ascii_whitespace().map(str::to_owned));
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// A cgroup by its name; nothing is looked up.
    #[must_use]
    pub fn cgroup(&self, path: &CgroupPath) -> Cgroup {
        let dirs = self.hierarchies.iter().map(|h| HierarchyDir {
            dir: below(&h.mount, path.as_path()),
            mount: h.mount.clone(),
            controllers: h.controllers.clone(),
            unified: h.unified,
        });
        let shadow = self.shadow.iter().map(|mount| HierarchyDir {
            dir: below(mount, path.as_path()),
            mount: mount.clone(),
            controllers: Vec::new(),
            unified: true,
        });
        Cgroup { version: self.version, path: path.clone(), dirs: dirs.chain(shadow).collect() }
    }
}

impl Hierarchy {
    /// A mount whose hierarchy the kernel does not list for us is a leftover of another namespace. Without a list (an odd
    /// proc mount) every mount counts.
    fn is_listed_in(&self, own: &str) -> bool {
        own.is_empty()
            || own.lines().filter_map(|line| line.split(':').nth(1)).any(|listed| {
                if self.unified {
                    listed.is_empty()
                } else {
                    listed.split(',').any(|c| self.controllers.iter().any(|m| m == c))
                }
            })
    }
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// One line of mountinfo (proc_pid_mountinfo(5)); `None` for other file systems.
fn parse_mount(line: &str) -> Option<Hierarchy> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(3);
    let (root, mount) = (unescape(front.next()?), unescape(front.next()?));
    let mut back = back.split(' ');
    let (kind, options) = (back.next()?, back.nth(1).unwrap_or_default());
    match kind {
        "cgroup2" => Some(Hierarchy { mount, root, controllers: Vec::new(), unified: true }),
        "cgroup" => {
            let controllers = options.split(',').filter(|o| is_controller(o)).map(str::to_owned).collect();
            Some(Hierarchy { mount, root, controllers, unified: false })
        }
        _ => None,
    }
}

/// Version 1 super block options mix controllers with flags.
fn is_controller(option: &str) -> bool {
    !matches!(
        option,
        "rw" | "ro" | "none" | "noprefix" | "clone_children" | "cpuset_v2_mode" | "xattr" | "seclabel" | "favordynmods"
    ) && !option.starts_with("release_agent=")
}

/// Undoes mountinfo's octal escapes of space, tab, newline and backslash.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|d| first == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        let value = octal.map(|d| d.iter().fold(0_u32, |sum, b| sum * 8 + u32::from(b - b'0')));
        match value.and_then(|v| u8::try_from(v).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}
