//! Mounts: binds, tmpfs, propagation, detaching, and what is mounted where. Overlay mounts are in [`overlay`], attributes
//! and owner mappings in [`attributes`], mount namespaces for one purpose in [`private`].
//!
//! Paths given here are the daemon's own; a path that a container or an image has a say in must be opened first
//! (see [`super::root`]) and mounted by descriptor. Nothing here adds `nosuid` or `nodev`: callers say what they want.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

pub mod attributes;
pub mod overlay;
pub mod private;

/// The calling thread's mount table: the thread's, since a test or a helper thread may have a namespace of its own.
const MOUNT_TABLE: &str = "/proc/thread-self/mountinfo";

/// Binds one host path onto another; with `recursive`, the mounts below it as well.
///
/// # Errors
/// Those of `mount(2)`.
pub fn bind(source: &Path, target: &Path, recursive: bool) -> io::Result<()> {
    let bound = if recursive {
        rustix::mount::mount_bind_recursive(source, target)
    } else {
        rustix::mount::mount_bind(source, target)
    };
    Ok(bound?)
}

/// Binds what a descriptor names (a file, a directory, a namespace) onto a host path, without resolving its name again.
///
/// # Errors
/// Those of `open_tree(2)` and `move_mount(2)`.
pub fn bind_fd(source: BorrowedFd<'_>, target: &Path, recursive: bool) -> io::Result<()> {
    attach(clone_tree(source, recursive)?.as_fd(), target)
}

/// A detached copy of the mount that a descriptor lies on, seen from that descriptor.
///
/// # Errors
/// Those of `open_tree(2)`.
pub fn clone_tree(source: BorrowedFd<'_>, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rustix::mount::open_tree(source, "", flags)?)
}

/// Attaches a detached mount at a host path.
///
/// # Errors
/// Those of `move_mount(2)`.
pub fn attach(mount: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    Ok(rustix::mount::move_mount(mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Mounts a tmpfs of at most `size` bytes, whose root has the mode and the owner; without set-uid, devices and programs.
///
/// # Errors
/// Those of `mount(2)`.
pub fn tmpfs(target: &Path, size: u64, mode: u32, (uid, gid): (u32, u32)) -> io::Result<()> {
    let options = format!("size={size},mode={mode:o},uid={uid},gid={gid}");
    let options = CString::new(options).expect("digits hold no NUL");
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(rustix::mount::mount("tmpfs", target, "tmpfs", flags, options.as_c_str())?)
}

/// Stops mount events between this mount and its peers.
///
/// # Errors
/// Those of `mount(2)`; `EINVAL` when the path is no mount point. The same holds for the two below.
pub fn make_private(target: &Path, recursive: bool) -> io::Result<()> {
    change(target, MountPropagationFlags::PRIVATE, recursive)
}

/// Receives mount events from its peers, and sends none.
///
/// # Errors
/// As [`make_private`].
pub fn make_slave(target: &Path, recursive: bool) -> io::Result<()> {
    change(target, MountPropagationFlags::DOWNSTREAM, recursive)
}

/// Shares mount events with its peers.
///
/// # Errors
/// As [`make_private`].
pub fn make_shared(target: &Path, recursive: bool) -> io::Result<()> {
    change(target, MountPropagationFlags::SHARED, recursive)
}

fn change(target: &Path, to: MountPropagationFlags, recursive: bool) -> io::Result<()> {
    let flags = if recursive { to | MountPropagationFlags::REC } else { to };
    Ok(rustix::mount::mount_change(target, flags)?)
}

/// Takes the topmost mount away from a path, at once for everyone who looks and for good when its last user ends.
/// Says whether there was one: a path that is missing or not a mount point is no error.
///
/// # Errors
/// Those of `umount2(2)`, but for `ENOENT` and `EINVAL`. A symlink as the last component counts as not mounted.
pub fn detach(target: &Path) -> io::Result<bool> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether a path is the root of a mount. A missing path is not.
///
/// # Errors
/// Those of `statx(2)`, and `ENOTSUP` on a kernel before 5.8.
pub fn is_mount_point(path: &Path) -> io::Result<bool> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    match rustix::fs::statx(CWD, path, flags, StatxFlags::empty()) {
        Ok(found) if found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) => {
            Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
        }
        Ok(_) => Err(Errno::OPNOTSUPP.into()),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// One line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    pub mount_point: PathBuf,
    pub file_system: OsString,
    /// The options of the file system itself, with the kernel's own escapes left in.
    pub super_options: OsString,
}

/// Every mount of the calling thread's namespace, in the order of the kernel's table: a mount stacked onto another
/// comes after it.
///
/// # Errors
/// When the table cannot be read. A line that does not parse is left out.
pub fn mount_table() -> io::Result<Vec<MountEntry>> {
    Ok(parse_table(&std::fs::read(MOUNT_TABLE)?))
}

/// The mount points at and below a path, deepest first, so that they can be detached in this order. A path that carries
/// two mounts is named twice.
///
/// # Errors
/// When the table cannot be read.
pub fn mount_points_below(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> =
        mount_table()?.into_iter().map(|entry| entry.mount_point).filter(|point| point.starts_with(path)).collect();
    found.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    Ok(found)
}

fn parse_table(table: &[u8]) -> Vec<MountEntry> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    // id parent major:minor root mount-point options optional-fields* - type source super-options (proc_pid_mountinfo(5))
    let mut words = line.split(|byte| *byte == b' ');
    let mount_point = unescape(words.nth(4)?);
    words.find(|word| *word == b"-")?;
    let file_system = unescape(words.next()?);
    let super_options = words.nth(1)?;
    Some(MountEntry {
        mount_point: PathBuf::from(mount_point),
        file_system,
        super_options: std::ffi::OsStr::from_bytes(super_options).to_owned(),
    })
}

/// Undoes the kernel's `\040` for space, tab, newline, backslash and hash.
fn unescape(word: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            plain.push(byte);
            rest = &tail[3..];
        } else {
            plain.push(first);
            rest = tail;
        }
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_is_parsed_with_and_without_optional_fields() {
        let table =
            b"36 35 98:0 /mnt1 /mnt\\0402/a\\134b rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n\
            37 36 0:30 / /run/x rw - overlay overlay rw,lowerdir=/a:/b,upperdir=/u\n\
            garbage\n";
        let parsed = parse_table(table);
        assert_eq!(parsed.len(), 2);
        assert_eq!(parsed[0].mount_point, Path::new("/mnt 2/a\\b"));
        assert_eq!(parsed[0].file_system, "ext3");
        assert_eq!(parsed[1].super_options, "rw,lowerdir=/a:/b,upperdir=/u");
    }

    #[test]
    fn what_is_not_mounted_is_no_error_to_detach() -> anyhow::Result<()> {
        let temp = tempfile::tempdir()?;
        assert!(!is_mount_point(temp.path())?);
        assert!(is_mount_point(Path::new("/proc"))?);
        assert!(!is_mount_point(&temp.path().join("missing"))?);
        Ok(())
    }

    #[test]
    #[ignore = "needs root"]
    fn binds_and_tmpfs_come_and_go_in_a_private_namespace() -> anyhow::Result<()> {
        std::thread::spawn(|| -> anyhow::Result<()> {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
            make_private(Path::new("/"), true)?;
            let temp = tempfile::tempdir()?;
            let (one, two) = (temp.path().join("o ne"), temp.path().join("two"));
            std::fs::create_dir(&one)?;
            std::fs::create_dir(&two)?;
            tmpfs(&one, 1 << 20, 0o750, (0, 0))?;
            std::fs::write(one.join("file"), "x")?;
            let fd = std::fs::File::open(&one)?;
            bind_fd(fd.as_fd(), &two, false)?;
            assert_eq!(std::fs::read(two.join("file"))?, b"x");
            std::fs::create_dir(one.join("deep"))?;
            bind(&two, &one.join("deep"), true)?;
            let below = mount_points_below(temp.path())?;
            assert_eq!(below.len(), 3, "{below:?}");
            assert_eq!(below[0], one.join("deep"));
            for point in &below {
                assert!(is_mount_point(point)?);
                assert!(detach(point)?);
            }
            assert!(!detach(&one)?);
            assert!(!detach(&temp.path().join("missing"))?);
            Ok(())
        })
        .join()
        .expect("the thread ends")
    }
}
