//! One daemon per state folder: a lock that dies with its holder.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};

/// The file in the state folder; it stays when the daemon ends, so that the next one locks the same file.
const NAME: &str = "cricket.pid";

/// Holds the state folder until it is dropped, or its process ends in whatever way.
#[derive(Debug)]
pub struct Instance {
    _locked: File,
}

/// Why the state folder is not ours.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    #[error("another cricket (pid {pid}) holds {}", path.display())]
    Held { pid: String, path: PathBuf },
    #[error("{}: cannot be opened", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{}: cannot be locked", path.display())]
    Lock { path: PathBuf, source: io::Error },
    #[error("{}: the process id cannot be written", path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl Instance {
    /// Locks the folder for this process and leaves its id in `cricket.pid`. A file that a dead daemon left is taken over.
    /// The descriptor is not inherited by programs that are started, so none of them can keep the lock.
    ///
    /// # Errors
    /// [`InstanceError::Held`] names the living holder; the others name the file and the failing step.
    pub fn lock(state: &Path) -> Result<Self, InstanceError> {
        let path = state.join(NAME);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| InstanceError::Open { path: path.clone(), source: e.into() })?;
        let mut file = File::from(fd);
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(InstanceError::Held { pid: holder(&file), path }),
            Err(e) => return Err(InstanceError::Lock { path, source: e.into() }),
        }
        let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(|source| InstanceError::Write { path, source })?;
        Ok(Self { _locked: file })
    }
}

/// The process id in the file, or "unknown" while its holder is just writing it.
fn holder(file: &File) -> String {
    let mut text = String::new();
    let read = file.take(16).read_to_string(&mut text);
    match (read, text.trim().parse::<u32>()) {
        (Ok(_), Ok(pid)) => pid.to_string(),
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a lock that is free, or will be: a test in another thread may just be starting a program, and its fork holds
    /// every descriptor until the program begins.
    fn lock_soon(state: &Path) -> Instance {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        loop {
            match Instance::lock(state) {
                Err(InstanceError::Held { .. }) if std::time::Instant::now() < deadline => std::thread::yield_now(),
                other => return other.unwrap(),
            }
        }
    }

    #[test]
    fn a_second_daemon_is_refused_and_the_next_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let first = Instance::lock(dir.path()).unwrap();
        let path = dir.path().join(NAME);
        let refused = Instance::lock(dir.path()).unwrap_err().to_string();
        assert_eq!(refused, format!("another cricket (pid {}) holds {}", std::process::id(), path.display()));
        drop(first);
        std::fs::write(&path, "99999999 left by a crash\n").unwrap();
        let _second = lock_soon(dir.path());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
    }

    #[test]
    fn a_child_does_not_inherit_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let first = Instance::lock(dir.path()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        drop(first);
        let again = std::panic::catch_unwind(|| lock_soon(dir.path()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(again.is_ok(), "the child holds the lock");
    }

    #[test]
    fn a_symlink_is_not_followed_and_a_missing_folder_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), dir.path().join(NAME)).unwrap();
        assert!(matches!(Instance::lock(dir.path()), Err(InstanceError::Open { .. })));
        assert!(!dir.path().join("elsewhere").exists());
        let missing = Instance::lock(Path::new("/nonexistent/state")).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/state/cricket.pid"), "{missing}");
    }
}
