//! A container's limit files: noted before a change of limits, and put back when it fails half-way.

use std::path::{Path, PathBuf};

use super::{Cgroup, CgroupError, CgroupVersion, read_small, tree};

/// A limit file has one line; a list of CPUs may be some KiB.
const FILE_CAP: u64 = 64 << 10;

/// Rounds of putting back. A limit may stand in the way of another (memory cannot go above memory and swap together),
/// whichever comes first; in the round after the other has gone back it goes too.
const ROUNDS: usize = 3;

/// By version 1 controller; what is missing in a hierarchy is passed over.
const V1: [(&str, &[&str]); 3] = [
    ("cpu", &["cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us"]),
    ("cpuset", &["cpuset.cpus", "cpuset.mems"]),
    ("memory", &["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]),
];

const V2: [&str; 6] = ["cpu.weight", "cpu.max", "cpuset.cpus", "cpuset.mems", "memory.max", "memory.swap.max"];

/// The text of a cgroup's limit files at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    files: Vec<(PathBuf, String)>,
}

impl Cgroup {
    /// Notes the files of the limits that the CRI knows, and of `more`: page sizes (`2MB`) and names of version 2 files. The
    /// names must be checked before: they become parts of paths.
    ///
    /// # Errors
    /// [`CgroupError::Read`] when a file that is there cannot be read.
    pub fn limits(&self, page_sizes: &[&str], more: &[&str]) -> Result<Limits, CgroupError> {
        let mut files = Vec::new();
        let mut note = |dir: Option<&Path>, name: &str| {
            let Some(dir) = dir else { return Ok(()) };
            let path = dir.join(name);
            if let Some(text) = read_small(&path, FILE_CAP)? {
                files.push((path, text));
            }
            Ok::<(), CgroupError>(())
        };
        if self.version() == CgroupVersion::V2 {
            for name in V2.iter().chain(more) {
                note(self.dir(""), name)?;
            }
        } else {
            for (controller, names) in V1 {
                for name in names {
                    note(self.dir(controller), name)?;
                }
            }
        }
        for size in page_sizes {
            note(self.dir("hugetlb"), &self.hugepage_file(size))?;
        }
        Ok(Limits { files })
    }

    /// The name of the limit file for pages of a size.
    #[must_use]
    pub fn hugepage_file(&self, page_size: &str) -> String {
        match self.version() {
            CgroupVersion::V1 => format!("hugetlb.{page_size}.limit_in_bytes"),
            CgroupVersion::V2 => format!("hugetlb.{page_size}.max"),
        }
    }
}

impl Limits {
    /// Writes back what differs now.
    ///
    /// # Errors
    /// [`CgroupError::Write`] for the first file that cannot be put back; the others are.
    pub fn restore(&self) -> Result<(), CgroupError> {
        let mut failed = None;
        for _ in 0..ROUNDS {
            failed = None;
            let mut changed = false;
            for (path, text) in &self.files {
                // A file that is gone went with the container.
                let Some(now) = read_small(path, FILE_CAP)? else { continue };
                if now == *text {
                    continue;
                }
                changed = true;
                // An empty cpuset is written as an empty line: a write of nothing is no write.
                if let Err(error) = tree::write(path, &format!("{}\n", text.trim_end())) {
                    failed = Some(error);
                }
            }
            if !changed {
                return Ok(());
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Sets a limit, where there is a file of that name.
    ///
    /// # Errors
    /// [`CgroupError::Write`] when the kernel refuses the value.
    pub fn set(&self, name: &str, value: &str) -> Result<(), CgroupError> {
        self.files.iter().filter(|(path, _)| path.ends_with(name)).try_for_each(|(path, _)| tree::write(path, value))
    }

    /// Sets a limit that still reads as it was noted and not as it ought to: a runtime's update may pass over kinds of
    /// limits without a word. A file of that name that is not there was never noted, and is left.
    ///
    /// # Errors
    /// [`CgroupError::Write`] when the kernel refuses the value.
    pub fn set_if_passed_over(&self, name: &str, value: &str) -> Result<(), CgroupError> {
        for (path, before) in self.files.iter().filter(|(path, _)| path.ends_with(name)) {
            let now = read_small(path, FILE_CAP)?;
            if now.as_ref() == Some(before) && before.trim() != value.trim() {
                tree::write(path, value)?;
            }
        }
        Ok(())
    }
}
