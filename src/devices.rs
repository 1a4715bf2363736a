//! Devices: nodes of the host that a request names, all of them for privileged containers, and what the Container Device
//! Interface knows by name ([`cdi`]).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use cri_proto::runtime::v1 as cri;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};

pub mod cdi;

/// Deepest directory below a device directory that is looked into.
const MAX_DEPTH: usize = 8;
/// Most nodes that one request, or the host's whole `/dev`, may come to.
const MAX_NODES: usize = 16 * 1024;

/// One device node, as a container is to see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNode {
    /// Where it is in the container.
    pub path: PathBuf,
    pub kind: DeviceKind,
    pub major: u32,
    pub minor: u32,
    /// Permission bits, without the file type.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceKind {
    Char,
    Block,
    /// A named pipe: only a CDI file can ask for one.
    Fifo,
}

/// A node that a request asked for, and what the container may do with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedDevice {
    pub node: DeviceNode,
    /// A non-empty subset of `rwm`, in that order.
    pub access: String,
}

/// Why a device cannot be given to a container.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("device {}: permissions {permissions:?} are not made of r, w and m", host_path.display())]
    Permissions { host_path: PathBuf, permissions: String },
    #[error("device {}: container path {container_path:?} is not absolute, or has `..` in it", host_path.display())]
    ContainerPath { host_path: PathBuf, container_path: String },
    #[error("device {host_path:?}: the host path is not absolute")]
    HostPath { host_path: String },
    #[error("device {}: cannot be opened on the host", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("device {}: its directory cannot be listed", path.display())]
    List { path: PathBuf, source: io::Error },
    #[error("{} is neither a device node nor a directory", path.display())]
    NotADevice { path: PathBuf },
    #[error("{} is a device of another type than was asked for", path.display())]
    Kind { path: PathBuf },
    #[error("{}: more than {MAX_NODES} device nodes", path.display())]
    TooMany { path: PathBuf },
}

/// Looks up what a request names. A symbolic link is followed; a directory stands for every node below it. Where two
/// entries come to the same container path, the later one wins.
///
/// # Errors
/// [`DeviceError`], naming the path: nothing there, not a device, or an entry that is malformed.
pub fn resolve(devices: &[cri::Device]) -> Result<Vec<ResolvedDevice>, DeviceError> {
    let mut found: BTreeMap<PathBuf, ResolvedDevice> = BTreeMap::new();
    for device in devices {
        let host_path = PathBuf::from(&device.host_path);
        if !host_path.is_absolute() {
            return Err(DeviceError::HostPath { host_path: device.host_path.clone() });
        }
        let container_path = container_path(device, &host_path)?;
        let access = access(device, &host_path)?;
        let (fd, stat) = open(&host_path)?;
        let mut nodes = Vec::new();
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => walk(&fd, &host_path, &container_path, 0, &mut nodes)?,
            _ => nodes
                .push(node(container_path, &stat).ok_or_else(|| DeviceError::NotADevice { path: host_path.clone() })?),
        }
        for node in nodes {
            found.insert(node.path.clone(), ResolvedDevice { node, access: access.clone() });
        }
        if found.len() > MAX_NODES {
            return Err(DeviceError::TooMany { path: host_path });
        }
    }
    Ok(found.into_values().collect())
}

/// Every device node below the host's `/dev`, but for what each container has its own of (terminals, shared memory).
///
/// # Errors
/// [`DeviceError`] when `/dev` cannot be listed or holds more nodes than any machine does.
pub fn host_devices() -> Result<Vec<DeviceNode>, DeviceError> {
    let path = Path::new("/dev");
    let (fd, _) = open(path)?;
    let mut nodes = Vec::new();
    walk(&fd, path, path, 0, &mut nodes)?;
    nodes.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(nodes)
}

fn access(device: &cri::Device, host_path: &Path) -> Result<String, DeviceError> {
    let asked = &device.permissions;
    let legal = !asked.is_empty() && asked.chars().all(|c| "rwm".contains(c));
    if !legal {
        return Err(DeviceError::Permissions { host_path: host_path.to_owned(), permissions: asked.clone() });
    }
    Ok("rwm".chars().filter(|c| asked.contains(*c)).collect())
}

/// The request's path in the container, or the host's where it names none.
fn container_path(device: &cri::Device, host_path: &Path) -> Result<PathBuf, DeviceError> {
    let text = if device.container_path.is_empty() { &device.host_path } else { &device.container_path };
    let path = Path::new(text);
    let climbs = path.components().any(|part| matches!(part, std::path::Component::ParentDir));
    if !path.is_absolute() || climbs || text.contains('\0') {
        return Err(DeviceError::ContainerPath { host_path: host_path.to_owned(), container_path: text.clone() });
    }
    Ok(path.components().collect())
}

/// An O_PATH descriptor: it opens no driver, so no tape rewinds and no FIFO blocks.
fn open(path: &Path) -> Result<(OwnedFd, Stat), DeviceError> {
    let failed = |errno: rustix::io::Errno| DeviceError::Open { path: path.to_owned(), source: errno.into() };
    let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let stat = rustix::fs::fstat(&fd).map_err(failed)?;
    Ok((fd, stat))
}

/// The device node that a host path leads to.
fn node_at(path: &Path) -> Result<DeviceNode, DeviceError> {
    let (_, stat) = open(path)?;
    node(path.to_owned(), &stat).ok_or_else(|| DeviceError::NotADevice { path: path.to_owned() })
}

fn node(path: PathBuf, stat: &Stat) -> Option<DeviceNode> {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => DeviceKind::Char,
        FileType::BlockDevice => DeviceKind::Block,
        _ => return None,
    };
    Some(DeviceNode {
        path,
        kind,
        major: rustix::fs::major(stat.st_rdev),
        minor: rustix::fs::minor(stat.st_rdev),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
    })
}

/// Collects the nodes below an open directory. Links are not followed: what they lead to is listed where it is, or is
/// not below this directory at all. An entry that vanishes meanwhile is no error, `/dev` changes all the time.
fn walk(
    dir: &OwnedFd,
    host: &Path,
    container: &Path,
    depth: usize,
    into: &mut Vec<DeviceNode>,
) -> Result<(), DeviceError> {
    let failed = |errno: rustix::io::Errno| DeviceError::List { path: host.to_owned(), source: errno.into() };
    // Not a duplicate: an O_PATH descriptor cannot be listed.
    let listed = rustix::fs::openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let entries = rustix::fs::Dir::new(listed.map_err(failed)?).map_err(failed)?;
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let text = OsStr::new(name.to_str().unwrap_or_default());
        if text.is_empty() || text == "." || text == ".." || own_of_each_container(text, depth) {
            continue;
        }
        let Ok(stat) = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let Ok(child) = rustix::fs::openat(dir, name, flags, Mode::empty()) else { continue };
            if depth < MAX_DEPTH {
                walk(&child, &host.join(text), &container.join(text), depth + 1, into)?;
            }
        } else if let Some(node) = node(container.join(text), &stat) {
            into.push(node);
        }
        if into.len() > MAX_NODES {
            return Err(DeviceError::TooMany { path: host.to_owned() });
        }
    }
    Ok(())
}

/// Names directly below `/dev` (or below a directory that stands for it) that a container gets its own of, or that are
/// other container managers' private folders.
fn own_of_each_container(name: &OsStr, depth: usize) -> bool {
    const OWN: [&str; 10] =
        ["pts", "ptmx", "shm", "mqueue", "fd", "console", ".lxc", ".lxd-mounts", ".udev", "termination-log"];
    depth == 0 && OWN.iter().any(|own| *own == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(host: &str, container: &str, permissions: &str) -> cri::Device {
        cri::Device { host_path: host.into(), container_path: container.into(), permissions: permissions.into() }
    }

    #[test]
    fn a_node_and_a_link_to_it_are_the_same_device() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("my-null");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        let found = resolve(&[device(link.to_str().unwrap(), "/dev/x", "mr")]).unwrap();
        assert_eq!((found[0].node.major, found[0].node.minor, found[0].node.kind), (1, 3, DeviceKind::Char));
        assert_eq!((found[0].node.path.as_path(), found[0].access.as_str()), (Path::new("/dev/x"), "rm"));
    }

    #[test]
    fn a_directory_stands_for_its_nodes() {
        let found = resolve(&[device("/dev", "/hostdev", "r")]).unwrap();
        assert!(found.iter().any(|d| d.node.path == Path::new("/hostdev/null")), "{found:?}");
        assert!(!found.iter().any(|d| d.node.path.starts_with("/hostdev/pts")), "{found:?}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            (device("/dev/no-such-node", "/dev/x", "rw"), "/dev/no-such-node"),
            (device("/etc/passwd", "/dev/x", "rw"), "/etc/passwd"),
            (device("/dev/null", "/dev/x", "rwx"), "rwx"),
            (device("/dev/null", "/dev/x", ""), "\"\""),
            (device("/dev/null", "dev/x", "r"), "dev/x"),
            (device("/dev/null", "/dev/../proc/x", "r"), "/dev/../proc/x"),
            (device("null", "/dev/x", "r"), "null"),
        ];
        for (device, named) in cases {
            let error = resolve(std::slice::from_ref(&device)).expect_err("was taken").to_string();
            assert!(error.contains(named), "{device:?}: {error}");
        }
    }

    #[test]
    fn the_hosts_devices_are_listed_without_terminals() {
        let found = host_devices().unwrap();
        assert!(found.iter().any(|d| d.path == Path::new("/dev/null")), "{found:?}");
        assert!(found.iter().all(|d| !d.path.starts_with("/dev/pts") && !d.path.starts_with("/dev/shm")), "{found:?}");
    }
}
