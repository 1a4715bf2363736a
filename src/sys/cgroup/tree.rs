//! Making and removing cgroups, in every hierarchy.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Cgroup, CgroupError, HierarchyDir, read_small};

/// Nested cgroups that one walk takes: a container with a delegated cgroup can make as many as it likes.
const MAX_NESTED: usize = 10_000;

/// Pauses between attempts to remove a cgroup whose last process is still being torn down: 1.3 s in all.
const RETRIES_MS: [u64; 9] = [1, 5, 10, 25, 50, 100, 200, 400, 500];

const SMALL: u64 = 64 << 10;

/// A cgroup's folder and all below it, each before what it contains. Empty when it is not there.
pub(super) fn walk(top: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let mut found = vec![top.to_owned()];
    let mut next = 0;
    while let Some(dir) = found.get(next).cloned() {
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if is_gone(&e) => {
                found.remove(next);
                continue;
            }
            Err(source) => return Err(CgroupError::Read { path: dir, source }),
        };
        for entry in entries {
            match entry.and_then(|entry| Ok((entry.file_type()?.is_dir(), entry.path()))) {
                Ok((true, path)) => found.push(path),
                Ok((false, _)) => {}
                // Removed while it was being listed.
                Err(e) if is_gone(&e) => {}
                Err(source) => return Err(CgroupError::Read { path: dir, source }),
            }
        }
        if found.len() > MAX_NESTED {
            return Err(CgroupError::TooManyNested { path: top.to_owned(), limit: MAX_NESTED });
        }
        next += 1;
    }
    Ok(found)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

impl Cgroup {
    /// Makes the cgroup in every hierarchy, with the folders above it; says whether any was new at the end of the path.
    /// Controllers are handed down on version 2, cpusets filled in from above on version 1.
    ///
    /// # Errors
    /// [`CgroupError::Create`], or [`CgroupError::Write`] when a cpuset cannot be filled in.
    pub fn create(&self) -> Result<bool, CgroupError> {
        let mut made = false;
        for hierarchy in &self.dirs {
            // A hybrid's cgroup2 hierarchy limits nothing that cricket asks for, but some runtimes make the folders above a
            // container's there and leave them: made here, they are also removed here.
            made |= hierarchy.create()?;
        }
        Ok(made)
    }

    /// Moves a process into the cgroup, in every hierarchy that holds it.
    ///
    /// # Errors
    /// [`CgroupError::Write`].
    pub fn attach(&self, pid: u32) -> Result<(), CgroupError> {
        for hierarchy in self.dirs.iter().filter(|h| h.dir.join("cgroup.procs").exists()) {
            write(&hierarchy.dir.join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
    }

    /// Removes the cgroup and all below it from every hierarchy. What is gone already is no error; a cgroup whose last
    /// process is just being torn down is tried again for about a second.
    ///
    /// # Errors
    /// [`CgroupError::Remove`] naming the folder, when processes stay in it.
    pub async fn remove(&self) -> Result<(), CgroupError> {
        for hierarchy in &self.dirs {
            let mut pauses = RETRIES_MS.iter();
            while let Err(error) = remove_tree(&hierarchy.dir) {
                let busy = matches!(&error, CgroupError::Remove { source, .. }
                    if matches!(source.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY)));
                match pauses.next().filter(|_| busy) {
                    Some(ms) => tokio::time::sleep(Duration::from_millis(*ms)).await,
                    None => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Removes the cgroup where it is empty, without what may be below it; says whether it is gone from everywhere.
    ///
    /// # Errors
    /// [`CgroupError::Remove`] for another reason than that it is in use.
    pub fn remove_if_empty(&self) -> Result<bool, CgroupError> {
        let mut gone = true;
        for hierarchy in &self.dirs {
            match std::fs::remove_dir(&hierarchy.dir) {
                Ok(()) => {}
                Err(e) if is_gone(&e) => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY)) => gone = false,
                Err(source) => return Err(CgroupError::Remove { path: hierarchy.dir.clone(), source }),
            }
        }
        Ok(gone)
    }
}

/// Children before parents. The files in a cgroup go with it: only folders are removed by hand.
fn remove_tree(top: &Path) -> Result<(), CgroupError> {
    for dir in walk(top)?.into_iter().rev() {
        match std::fs::remove_dir(&dir) {
            Ok(()) => {}
            Err(e) if is_gone(&e) => {}
            Err(source) => return Err(CgroupError::Remove { path: dir, source }),
        }
    }
    Ok(())
}

impl HierarchyDir {
    fn create(&self) -> Result<bool, CgroupError> {
        let relative = self.dir.strip_prefix(&self.mount).expect("a cgroup's folder is below its mount");
        let mut dir = self.mount.clone();
        let mut made = false;
        for part in relative.components() {
            if self.unified {
                hand_down(&dir);
            }
            let parent = dir.clone();
            dir.push(part);
            made = match std::fs::create_dir(&dir) {
                Ok(()) => true,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
                Err(source) => return Err(CgroupError::Create { path: dir, source }),
            };
            if self.controllers.iter().any(|c| c == "cpuset") {
                fill_cpuset(&parent, &dir)?;
            }
        }
        Ok(made)
    }
}

/// Lets the children of a version 2 cgroup use each controller that it has itself. One at a time and without looking at the
/// answer: a controller that cannot be handed down (a real-time scheduler, processes inside) must not keep back the others,
/// and the runtime reports a limit that it then cannot set.
fn hand_down(dir: &Path) {
    let available = read_small(&dir.join("cgroup.controllers"), SMALL).ok().flatten().unwrap_or_default();
    let enabled = read_small(&dir.join("cgroup.subtree_control"), SMALL).ok().flatten().unwrap_or_default();
    for controller in available.split_ascii_whitespace() {
        if !enabled.split_ascii_whitespace().any(|e| e == controller) {
            let _ = write(&dir.join("cgroup.subtree_control"), &format!("+{controller}"));
        }
    }
}

/// A new version 1 cpuset is empty, and no process may enter it before it has CPUs and memory nodes.
fn fill_cpuset(parent: &Path, dir: &Path) -> Result<(), CgroupError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = read_small(&dir.join(file), SMALL)?.unwrap_or_default();
        let above = read_small(&parent.join(file), SMALL)?.unwrap_or_default();
        if own.trim().is_empty() && !above.trim().is_empty() {
            write(&dir.join(file), above.trim())?;
        }
    }
    Ok(())
}

pub(super) fn write(path: &Path, text: &str) -> Result<(), CgroupError> {
    let opened = std::fs::OpenOptions::new().write(true).open(path);
    opened
        .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()))
        .map_err(|source| CgroupError::Write { path: path.to_owned(), source })
}
