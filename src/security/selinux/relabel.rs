//! Labels of files: of single ones, and of a volume with all that is in it.
//!
//! A volume is walked by descriptors; links are labelled and never followed, so that nothing outside of it changes,
//! whatever a container that has it mounted does meanwhile (CVE-2021-43816 and its kin).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::sys::xattr;

/// The attribute that holds a label (`selinux(8)`).
const ATTRIBUTE: &str = "security.selinux";

/// Deepest folder of a volume: each level holds a descriptor while it is walked.
const MAX_DEPTH: usize = 256;

/// Folders of the system that no volume may be: the machine itself would not get at its own files any more.
const WHOLE: [&str; 20] = [
    "/",
    "/etc",
    "/etc/pki",
    "/etc/ssh",
    "/home",
    "/media",
    "/mnt",
    "/opt",
    "/root",
    "/run",
    "/srv",
    "/tmp",
    "/var",
    "/var/cache",
    "/var/lib",
    "/var/lib/kubelet",
    "/var/lib/cricket",
    "/var/log",
    "/var/run",
    "/var/tmp",
];

/// Files of the system; their backups (`passwd-`) too.
const FILES: [&str; 6] = ["/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow", "/etc/sudoers", "/etc/hosts"];

/// Folders of the system in which nothing may be a volume that is relabelled.
const BELOW: [&str; 11] =
    ["/bin", "/boot", "/dev", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/sbin", "/sys", "/usr"];

/// Why files have not got a label.
#[derive(Debug, thiserror::Error)]
pub enum RelabelError {
    #[error("{}: a part of the system is not given to a container by a label", path.display())]
    System { path: PathBuf },
    #[error("{}: cannot be opened for its label", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{}: its label cannot be set", path.display())]
    Set { path: PathBuf, source: io::Error },
    #[error("{}: more than {MAX_DEPTH} folders deep", path.display())]
    Depth { path: PathBuf },
}

/// Labels one file or folder; a link is not followed. A file system without labels is left as it is.
///
/// # Errors
/// [`RelabelError::Open`], [`RelabelError::Set`].
pub fn label(path: &Path, label: &str) -> Result<(), RelabelError> {
    set(&open(None, path.as_os_str(), path)?, path, label)
}

/// Labels a volume with all that is in it. One whose top has the label already was labelled before: the top comes last. It
/// walks disks: call it from the blocking pool. `path` is free of links.
///
/// # Errors
/// [`RelabelError::System`] for a folder of the system; the others name the file. What was labelled before stays so.
pub fn relabel(path: &Path, label: &str) -> Result<(), RelabelError> {
    if is_system(path) {
        return Err(RelabelError::System { path: path.to_owned() });
    }
    let top = open(None, path.as_os_str(), path)?;
    let mut buffer = [0; 4096];
    let has = xattr::get_by_path_fd(top.as_fd(), OsStr::new(ATTRIBUTE), &mut buffer)
        .map_err(|source| RelabelError::Open { path: path.to_owned(), source })?;
    // The kernel hands labels out with a NUL at their end.
    if has.is_some_and(|has| has.strip_suffix(b"\0").unwrap_or(has) == label.as_bytes()) {
        return Ok(());
    }
    walk(&top, path, label, 0)
}

fn is_system(path: &Path) -> bool {
    let files = FILES.iter().any(|file| path == Path::new(file) || path == Path::new(&format!("{file}-")));
    files || WHOLE.iter().any(|whole| path == Path::new(whole)) || BELOW.iter().any(|below| path.starts_with(below))
}

/// What is below first, so that a walk that was cut short is done again.
fn walk(fd: &OwnedFd, path: &Path, label: &str, depth: usize) -> Result<(), RelabelError> {
    let failed = |errno: Errno| RelabelError::Open { path: path.to_owned(), source: errno.into() };
    if FileType::from_raw_mode(rustix::fs::fstat(fd).map_err(failed)?.st_mode) == FileType::Directory {
        if depth >= MAX_DEPTH {
            return Err(RelabelError::Depth { path: path.to_owned() });
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let listed = rustix::fs::openat(fd, ".", flags, Mode::empty()).map_err(failed)?;
        for entry in rustix::fs::Dir::new(listed).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = std::os::unix::ffi::OsStrExt::from_bytes(entry.file_name().to_bytes());
            if name == OsStr::new(".") || name == OsStr::new("..") {
                continue;
            }
            let below = path.join(name);
            match open(Some(fd), name, &below) {
                Ok(child) => walk(&child, &below, label, depth + 1)?,
                // Gone meanwhile: a volume may be in use.
                Err(RelabelError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    set(fd, path, label)
}

fn open(parent: Option<&OwnedFd>, name: &OsStr, path: &Path) -> Result<OwnedFd, RelabelError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = match parent {
        Some(parent) => rustix::fs::openat(parent, name, flags, Mode::empty()),
        None => rustix::fs::open(name, flags, Mode::empty()),
    };
    opened.map_err(|errno| RelabelError::Open { path: path.to_owned(), source: errno.into() })
}

fn set(fd: &OwnedFd, path: &Path, label: &str) -> Result<(), RelabelError> {
    match xattr::set_by_path_fd(fd.as_fd(), OsStr::new(ATTRIBUTE), label.as_bytes()) {
        Ok(()) => Ok(()),
        // No labels there, or none that can be changed: the container sees what it may see of it.
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::OPNOTSUPP | Errno::ROFS)) => Ok(()),
        Err(source) => Err(RelabelError::Set { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: &str = "system_u:object_r:container_file_t:s0:c1,c2";

    fn seen(path: &Path) -> Option<String> {
        let fd = open(None, path.as_os_str(), path).unwrap();
        let mut buffer = [0; 256];
        let value = xattr::get_by_path_fd(fd.as_fd(), OsStr::new(ATTRIBUTE), &mut buffer).unwrap();
        value.map(|value| String::from_utf8_lossy(value).trim_end_matches('\0').to_owned())
    }

    #[test]
    fn the_system_is_never_relabelled() {
        for path in [
            "/",
            "/etc",
            "/etc/shadow",
            "/etc/passwd-",
            "/usr",
            "/usr/lib/x",
            "/proc/1",
            "/dev/sda",
            "/var/lib",
            "/root",
        ] {
            assert!(matches!(relabel(Path::new(path), LABEL), Err(RelabelError::System { .. })), "{path}");
        }
        for path in ["/var/lib/kubelet/pods/u/volumes/v", "/etc/app", "/data", "/home/user/data"] {
            assert!(!is_system(Path::new(path)), "{path}");
        }
    }

    #[test]
    #[ignore = "needs root: without SELinux in the kernel, root may write the attribute all the same"]
    fn cve_2021_43816_all_that_is_in_a_volume_is_labelled_and_nothing_that_it_links_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(path("volume/a/b")).unwrap();
        std::fs::create_dir(path("outside")).unwrap();
        for file in ["volume/file", "volume/a/b/deep", "outside/file"] {
            std::fs::write(path(file), "x").unwrap();
        }
        std::os::unix::fs::symlink(path("outside/file"), path("volume/link")).unwrap();
        std::os::unix::fs::symlink(path("outside"), path("volume/folder")).unwrap();
        relabel(&path("volume"), LABEL).unwrap();
        for name in ["volume", "volume/file", "volume/a", "volume/a/b", "volume/a/b/deep", "volume/link"] {
            assert_eq!(seen(&path(name)).as_deref(), Some(LABEL), "{name}");
        }
        for name in ["outside", "outside/file"] {
            assert_eq!(seen(&path(name)), None, "{name}");
        }
        // With the label at its top, a volume is not walked again.
        std::fs::write(path("volume/later"), "x").unwrap();
        relabel(&path("volume"), LABEL).unwrap();
        assert_eq!(seen(&path("volume/later")), None);
        relabel(&path("volume"), "system_u:object_r:container_file_t:s0:c3,c4").unwrap();
        assert!(seen(&path("volume/later")).is_some_and(|label| label.ends_with("c3,c4")));
    }
}
