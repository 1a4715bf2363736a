//! Pods' namespaces, pinned without a process: `<dir>/{net,ipc,uts,…}` are bind mounts of the kernel's namespace files.
//!
//! The namespaces are made by a thread that lives only for that. Nothing here ever stores or returns a path with a process
//! id in it: such a path leads to another pod's namespace once the id is used again.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::Pid;

use super::netns;
pub use super::netns::{NetnsError, enter_net, is_namespace};
pub use held::HeldNamespace;
pub use owned::{IdRange, Owners, carry_out, create_owned};
pub use sysctl::{SysctlError, validate_sysctls};

mod held;
mod owned;
mod sysctl;

/// Longest hostname, in bytes (sethostname(2)).
const HOSTNAME_MAX: usize = 64;

/// Which namespaces to make, and what to set inside them.
#[derive(Debug, Clone)]
pub struct NamespaceRequest<'a> {
    /// Made by [`create`], which refuses one that exists. Its parents are made when they are missing.
    pub dir: &'a Path,
    pub net: bool,
    pub ipc: bool,
    pub uts: bool,
    /// Set when `uts` is asked for: 1 to 64 bytes without control characters.
    pub hostname: &'a str,
    /// Checked by [`validate_sysctls`] against the namespaces that are asked for, then written inside them.
    pub sysctls: &'a BTreeMap<String, String>,
}

/// Where the namespaces are pinned; `None` for those that were not asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PinnedNamespaces {
    pub net: Option<PathBuf>,
    pub ipc: Option<PathBuf>,
    pub uts: Option<PathBuf>,
}

/// A kind of namespace, and the name of its file below `/proc/<pid>/ns` and in a pod's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamespaceKind {
    Net,
    Ipc,
    Uts,
    Pid,
    User,
}

impl NamespaceKind {
    #[must_use]
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Pid => "pid",
            Self::User => "user",
        }
    }
}

/// Why namespaces could not be made, pinned or removed.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    #[error("hostname {0:?}: want 1 to {HOSTNAME_MAX} bytes without control characters")]
    Hostname(String),
    #[error("{}: the folder of the namespaces cannot be made", dir.display())]
    MakeDir { dir: PathBuf, source: io::Error },
    #[error("no thread to make the namespaces {} on", dir.display())]
    Thread { dir: PathBuf, source: io::Error },
    #[error("unshare for {}", dir.display())]
    Unshare { dir: PathBuf, source: io::Error },
    #[error("lo cannot be set up for {}", dir.display())]
    Loopback { dir: PathBuf, source: io::Error },
    #[error("hostname {hostname:?} cannot be set")]
    SetHostname { hostname: String, source: io::Error },
    #[error("sysctl {key}={value:?} cannot be written")]
    WriteSysctl { key: String, value: String, source: io::Error },
    #[error("{name}: 0 {host} {length} cannot be written")]
    Map { name: &'static str, host: u32, length: u32, source: io::Error },
    #[error("{step}, for {}", dir.display())]
    Step { dir: PathBuf, step: &'static str, source: io::Error },
    /// What the program that makes a user namespace said.
    #[error("the namespaces {} below a user namespace: {said}", dir.display())]
    Program { dir: PathBuf, said: String },
    #[error("{}: the file to pin a namespace on cannot be made", path.display())]
    MakePin { path: PathBuf, source: io::Error },
    #[error("{}: the namespace cannot be pinned", path.display())]
    Pin { path: PathBuf, source: io::Error },
    #[error("{}: the namespaces cannot be listed", dir.display())]
    List { dir: PathBuf, source: io::Error },
    #[error("{}: the namespace cannot be unmounted", path.display())]
    Unmount { path: PathBuf, source: io::Error },
    #[error("{}: cannot be removed", path.display())]
    Remove { path: PathBuf, source: io::Error },
    #[error("{failed}; what was made could not be undone: {undo}")]
    Undo {
        failed: Box<NamespaceError>,
        #[source]
        undo: Box<NamespaceError>,
    },
}

/// Makes the namespaces of a pod, all or none, and pins them in `request.dir`. It blocks for a few milliseconds.
///
/// # Errors
/// When the request is not legal, when `request.dir` exists, or when the kernel refuses a step; everything that was made is
/// then gone, unless the error is [`NamespaceError::Undo`].
pub fn create(request: &NamespaceRequest<'_>) -> Result<PinnedNamespaces, NamespaceError> {
    prepare(request)?;
    let dir = request.dir;
    let made = netns::on_own_thread("namespaces", || make_and_pin(request))
        .map_err(|source| NamespaceError::Thread { dir: dir.to_owned(), source })
        .and_then(|made| made);
    made.map_err(|failed| undo(dir, failed))
}

/// Checks a request, and makes its folder.
fn prepare(request: &NamespaceRequest<'_>) -> Result<(), NamespaceError> {
    validate_sysctls(request.sysctls, !request.net, !request.ipc)?;
    let hostname = request.hostname;
    if request.uts
        && (hostname.is_empty() || hostname.len() > HOSTNAME_MAX || hostname.contains(|c: char| c.is_control()))
    {
        return Err(NamespaceError::Hostname(hostname.chars().take(128).collect()));
    }
    let dir = request.dir;
    let make_dir = |source| NamespaceError::MakeDir { dir: dir.to_owned(), source };
    if let Some(parent) = dir.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(make_dir)?;
    }
    DirBuilder::new().mode(0o700).create(dir).map_err(make_dir)
}

/// Takes back what was made before something failed.
fn undo(dir: &Path, failed: NamespaceError) -> NamespaceError {
    match remove(dir) {
        Ok(()) => failed,
        Err(undo) => NamespaceError::Undo { failed: Box::new(failed), undo: Box::new(undo) },
    }
}

/// The work of [`create`], on a thread that ends with it.
fn make_and_pin(request: &NamespaceRequest<'_>) -> Result<PinnedNamespaces, NamespaceError> {
    let dir = || request.dir.to_owned();
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWNET, request.net);
    flags.set(CloneFlags::CLONE_NEWIPC, request.ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, request.uts);
    nix::sched::unshare(flags).map_err(|errno| NamespaceError::Unshare { dir: dir(), source: errno.into() })?;
    furnish(request)?;
    let pin = |wanted: bool, kind: NamespaceKind| {
        let source = format!("/proc/thread-self/ns/{}", kind.file_name());
        wanted.then(|| bind(Path::new(&source), request.dir, kind)).transpose()
    };
    Ok(PinnedNamespaces {
        net: pin(request.net, NamespaceKind::Net)?,
        ipc: pin(request.ipc, NamespaceKind::Ipc)?,
        uts: pin(request.uts, NamespaceKind::Uts)?,
    })
}

/// Sets up the namespaces that the calling thread is in.
fn furnish(request: &NamespaceRequest<'_>) -> Result<(), NamespaceError> {
    if request.net {
        netns::set_loopback_up().map_err(|source| NamespaceError::Loopback { dir: request.dir.to_owned(), source })?;
        sysctl::hear_no_routers()?;
    }
    if request.uts {
        let hostname = request.hostname;
        rustix::system::sethostname(hostname.as_bytes())
            .map_err(|errno| NamespaceError::SetHostname { hostname: hostname.to_owned(), source: errno.into() })?;
    }
    sysctl::write_all(request.sysctls)
}

/// Pins a namespace of a running process in `dir`, which is made when it is missing, and returns the path.
///
/// The caller must know that `pid` is still the process it means: a child that was not reaped, or one whose pidfd is held.
///
/// # Errors
/// When the process is gone, something is pinned there already, or the kernel refuses; nothing is left behind then.
pub fn pin(pid: Pid, kind: NamespaceKind, dir: &Path) -> Result<PathBuf, NamespaceError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| NamespaceError::MakeDir { dir: dir.to_owned(), source })?;
    let source = format!("/proc/{}/ns/{}", pid.as_raw_nonzero(), kind.file_name());
    bind(Path::new(&source), dir, kind)
}

/// Bind mounts a namespace file on a new file in `dir`, which is removed again when that fails.
fn bind(source: &Path, dir: &Path, kind: NamespaceKind) -> Result<PathBuf, NamespaceError> {
    let path = dir.join(kind.file_name());
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(&path)
        .map_err(|source| NamespaceError::MakePin { path: path.clone(), source })?;
    match rustix::mount::mount_bind(source, &path) {
        Ok(()) => Ok(path),
        Err(errno) => {
            let failed = NamespaceError::Pin { path: path.clone(), source: errno.into() };
            match remove_file(&path) {
                Ok(()) => Err(failed),
                Err(undo) => Err(NamespaceError::Undo { failed: Box::new(failed), undo: Box::new(undo) }),
            }
        }
    }
}

/// Unmounts and removes everything pinned in `dir`, and `dir`. What is missing is fine, so it may be repeated.
///
/// Processes inside the namespaces keep them; the pins go at once (`MNT_DETACH`).
///
/// # Errors
/// When a mount or a file cannot be removed; the others were still tried, and the first error is returned.
pub fn remove(dir: &Path) -> Result<(), NamespaceError> {
    let list = |source| NamespaceError::List { dir: dir.to_owned(), source };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(list(source)),
    };
    let mut first = None;
    for entry in entries {
        let path = entry.map_err(list)?.path();
        if let Err(error) = unmount(&path).and_then(|()| remove_file(&path)) {
            first.get_or_insert(error);
        }
    }
    if let Some(error) = first {
        return Err(error);
    }
    match std::fs::remove_dir(dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(NamespaceError::Remove { path: dir.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Takes away every mount on `path`: after a crash there may be more than one on top of another.
fn unmount(path: &Path) -> Result<(), NamespaceError> {
    loop {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Not a mount point (any more), or not there at all.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(NamespaceError::Unmount { path: path.to_owned(), source: errno.into() }),
        }
    }
}

fn remove_file(path: &Path) -> Result<(), NamespaceError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(NamespaceError::Remove { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
