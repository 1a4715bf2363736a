//! Paths below a directory descriptor, resolved by the kernel with `openat2`, so that no symlink leads outside.
//!
//! Two rules of resolution are offered. *Beneath* refuses every symlink: for folders whose content the daemon made itself.
//! *In root* follows symlinks as a process chrooted there would: for trees that an image or a container made.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec};
use rustix::io::Errno;

/// How often an `openat2` that lost a race against a rename elsewhere is tried again.
const RACE_RETRIES: usize = 128;

/// A directory, below which paths are resolved.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl Root {
    /// Opens a directory by its host path, which the caller trusts; a symlink as its last component is refused.
    ///
    /// # Errors
    /// Those of `open(2)`; `ENOTDIR` for anything but a directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty())?))
    }

    /// Makes a directory with exactly this mode if there is none, and its missing parents with mode 0755; then opens it.
    /// An existing directory gets the mode, too.
    ///
    /// # Errors
    /// Those of `mkdir(2)`, `open(2)` and `fchmod(2)`.
    pub fn make(path: &Path, mode: u32) -> io::Result<Self> {
        if let Err(error) = rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(mode)) {
            match (error, path.parent()) {
                (Errno::EXIST, _) => {}
                (Errno::NOENT, Some(parent)) => {
                    std::fs::create_dir_all(parent)?;
                    rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(mode))?;
                }
                (error, _) => return Err(error.into()),
            }
        }
        let root = Self::open(path)?;
        rustix::fs::fchmod(&root.0, Mode::from_raw_mode(mode))?;
        Ok(root)
    }

    /// Takes over a descriptor of a directory.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// A second descriptor of the same directory.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// A path that leads to this directory for as long as the descriptor lives, in every mount namespace that shares
    /// this `/proc`. For calls that take no descriptor.
    #[must_use]
    pub fn magic_path(&self) -> String {
        magic_path(self.0.as_fd())
    }

    /// Opens a path below this directory; any symlink in it is refused with `ELOOP`, `..` out of it with `EXDEV`.
    ///
    /// # Errors
    /// Those of `openat2(2)`.
    pub fn open_beneath(&self, path: impl AsRef<OsStr>, flags: OFlags, mode: u32) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        Ok(openat2(&self.0, path.as_ref(), flags, mode, resolve)?)
    }

    /// Opens a path as a process chrooted into this directory would: absolute symlinks start here, `..` stops here.
    ///
    /// # Errors
    /// Those of `openat2(2)`.
    pub fn open_in_root(&self, path: impl AsRef<OsStr>, flags: OFlags, mode: u32) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        Ok(openat2(&self.0, path.as_ref(), flags, mode, resolve)?)
    }

    /// A directory below this one, reached without symlinks.
    ///
    /// # Errors
    /// Those of `openat2(2)`.
    pub fn open_dir(&self, path: impl AsRef<OsStr>) -> io::Result<Self> {
        Ok(Self(self.open_beneath(path, DIRECTORY, 0)?))
    }

    /// The same where something else may be by now: `None` if there is nothing, or no directory; a symlink is none.
    ///
    /// # Errors
    /// The others of `openat2(2)`.
    pub fn find_dir(&self, path: impl AsRef<OsStr>) -> io::Result<Option<Self>> {
        match self.open_dir(path) {
            Ok(found) => Ok(Some(found)),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Makes a directory right below this one, with exactly this mode whatever the umask, and opens it.
    ///
    /// # Errors
    /// `EEXIST` when the name is taken; those of `mkdirat(2)` and `fchmod(2)`.
    pub fn create_dir(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<Self> {
        rustix::fs::mkdirat(&self.0, name.as_ref(), Mode::from_raw_mode(mode))?;
        let made = self.open_dir(name)?;
        rustix::fs::fchmod(&made.0, Mode::from_raw_mode(mode))?;
        Ok(made)
    }

    /// Like [`Root::create_dir`], but a directory that is there already is opened as it is.
    ///
    /// # Errors
    /// Those of `mkdirat(2)` and `openat2(2)`.
    pub fn ensure_dir(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<Self> {
        match self.create_dir(name.as_ref(), mode) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.open_dir(name),
            made => made,
        }
    }

    /// Makes a new file for writing.
    ///
    /// # Errors
    /// `EEXIST` when the name is taken, by a symlink too; those of `openat2(2)`.
    pub fn create_file(&self, path: impl AsRef<OsStr>, mode: u32) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.open_beneath(path, flags, mode).map(File::from)
    }

    /// Opens a file for appending and reading, and makes it when it is missing.
    ///
    /// # Errors
    /// `ELOOP` for a symlink, `EINVAL` for anything else that is not a regular file; those of `openat2(2)`.
    pub fn append_file(&self, path: impl AsRef<OsStr>, mode: u32) -> io::Result<File> {
        // Non-blocking, so that a FIFO of that name cannot hold the caller; it makes no difference to a file.
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = self.open_beneath(path, flags | OFlags::CLOEXEC, mode)?;
        if file_type(&rustix::fs::fstat(&file)?) == FileType::RegularFile {
            Ok(File::from(file))
        } else {
            Err(Errno::INVAL.into())
        }
    }

    /// The whole of a regular file, if it has at most `cap` bytes.
    ///
    /// # Errors
    /// `EFBIG` when it is larger, `EINVAL` when it is no regular file; those of `openat2(2)` and `read(2)`.
    pub fn read_file(&self, path: impl AsRef<OsStr>, cap: u64) -> io::Result<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        read_regular(self.open_beneath(path, flags, 0)?, cap)
    }

    /// What a path below this directory is, without following symlinks.
    ///
    /// # Errors
    /// Those of `openat2(2)`.
    pub fn stat(&self, path: impl AsRef<OsStr>) -> io::Result<Stat> {
        let found = self.open_beneath(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, 0);
        match found {
            Ok(fd) => Ok(rustix::fs::fstat(&fd)?),
            Err(error) => Err(error),
        }
    }

    /// Removes a name right below this directory that is not a directory.
    ///
    /// # Errors
    /// Those of `unlinkat(2)`.
    pub fn remove_file(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name.as_ref(), AtFlags::empty())?)
    }

    /// Makes the names in this directory durable.
    ///
    /// # Errors
    /// Those of `fsync(2)`.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.0)?)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Root> for OwnedFd {
    fn from(root: Root) -> Self {
        root.0
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The path of a descriptor under `/proc`, for the calls that take only paths.
#[must_use]
pub fn magic_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// `openat2`, tried again when it was interrupted or raced with a rename.
///
/// # Errors
/// Those of `openat2(2)`.
pub fn openat2(
    dir: impl AsFd,
    path: &OsStr,
    flags: OFlags,
    mode: u32,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC;
    for _ in 0..RACE_RETRIES {
        match rustix::fs::openat2(&dir, path, flags, Mode::from_raw_mode(mode), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            answer => return answer,
        }
    }
    Err(Errno::AGAIN)
}

/// The type of what was examined.
#[must_use]
pub fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// When the content of what was examined changed last.
#[must_use]
pub fn modified(stat: &Stat) -> Timespec {
    Timespec { tv_sec: stat.st_mtime, tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0) }
}

/// Reads an open regular file, never more than `cap` bytes whatever its size says.
///
/// # Errors
/// `EFBIG` when it is larger, `EINVAL` when it is no regular file; those of `read(2)`.
pub fn read_regular(fd: OwnedFd, cap: u64) -> io::Result<Vec<u8>> {
    let stat = rustix::fs::fstat(&fd)?;
    if file_type(&stat) != FileType::RegularFile {
        return Err(Errno::INVAL.into());
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if size > cap {
        return Err(Errno::FBIG.into());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0).min(1 << 20));
    let read = File::from(fd).take(cap.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(read).is_ok_and(|read| read <= cap) { Ok(bytes) } else { Err(Errno::FBIG.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beneath_refuses_symlinks_and_in_root_clamps_them() -> anyhow::Result<()> {
        let temp = tempfile::tempdir()?;
        std::fs::write(temp.path().join("secret"), "host")?;
        let inner = temp.path().join("inner");
        std::fs::create_dir(&inner)?;
        std::os::unix::fs::symlink("../secret", inner.join("up"))?;
        std::os::unix::fs::symlink("/plain", inner.join("abs"))?;
        std::fs::write(inner.join("plain"), "inside")?;
        let root = Root::open(&inner)?;
        for name in ["up", "abs", "../secret"] {
            assert!(root.read_file(name, 100).is_err(), "{name} was read");
        }
        assert!(root.open_in_root("up", OFlags::RDONLY, 0).is_err());
        let fd = root.open_in_root("abs", OFlags::RDONLY, 0)?;
        assert_eq!(read_regular(fd, 100)?, b"inside");
        assert_eq!(root.read_file("plain", 5).map_err(|e| e.raw_os_error()), Err(Some(libc::EFBIG)));
        Ok(())
    }

    #[test]
    fn a_log_is_never_written_through_a_symlink_or_into_a_fifo() -> anyhow::Result<()> {
        let temp = tempfile::tempdir()?;
        std::fs::write(temp.path().join("victim"), "")?;
        std::os::unix::fs::symlink("victim", temp.path().join("log"))?;
        rustix::fs::mknodat(CWD, temp.path().join("fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        let root = Root::open(temp.path())?;
        assert!(root.append_file("log", 0o640).is_err());
        assert!(root.append_file("fifo", 0o640).is_err());
        assert!(root.create_file("log", 0o640).is_err());
        assert!(root.append_file("victim", 0o640).is_ok());
        Ok(())
    }

    /// A place in a small tree, and a target of a link: often one that climbs.
    fn place() -> impl proptest::strategy::Strategy<Value = (String, String)> {
        use proptest::prelude::*;
        let name = || prop_oneof![Just("a"), Just("b"), Just("c")];
        let at = prop::collection::vec(name(), 1..4).prop_map(|parts| parts.join("/"));
        let part = prop_oneof![4 => Just(".."), 1 => Just("."), 1 => Just(""), 6 => name()];
        (at, prop::collection::vec(part, 1..7).prop_map(|parts| parts.join("/")))
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]
        /// Whatever links there are, what is opened lies inside, or nothing is.
        #[test]
        fn a_forest_of_links_leads_nowhere_else(
            links in proptest::collection::vec(place(), 0..12), (_, asked) in place(),
        ) {
            let temp = tempfile::tempdir().unwrap();
            let inner = temp.path().join("inner");
            std::fs::create_dir_all(inner.join("a/b/c")).unwrap();
            for name in ["a", "b", "c"] {
                std::fs::write(temp.path().join(name), "outside").unwrap();
            }
            for (at, target) in &links {
                // Some have no folder to be in, or are there already.
                let _ = std::os::unix::fs::symlink(target, inner.join(at));
            }
            let root = Root::open(&inner).unwrap();
            for opened in [root.open_in_root(&asked, OFlags::PATH, 0), root.open_beneath(&asked, OFlags::PATH, 0)] {
                let Ok(fd) = opened else { continue };
                let real = std::fs::read_link(magic_path(fd.as_fd())).unwrap();
                proptest::prop_assert!(real.starts_with(&inner), "{asked:?} led to {}", real.display());
            }
        }
    }
}
