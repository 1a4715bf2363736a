//! Attributes of a detached mount: read-only and its like, and the mapping of file owners (`mount_setattr(2)`).
#![allow(unsafe_code)] // the system call has no wrapper in the crates that we use

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// `MOUNT_ATTR_*` of linux/mount.h.
const RDONLY: u64 = 0x1;
const NOSUID: u64 = 0x2;
const NODEV: u64 = 0x4;
const NOEXEC: u64 = 0x8;
const IDMAP: u64 = 0x0010_0000;

/// What a mount forbids, in addition to what it forbids already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Restrictions {
    pub read_only: bool,
    pub no_suid: bool,
    pub no_dev: bool,
    pub no_exec: bool,
}

/// `struct mount_attr` of linux/mount.h in its first form.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Restricts a mount, and with `recursive` every mount below it as well. Linux 5.12.
///
/// # Errors
/// Those of `mount_setattr(2)`; with `recursive`, none of the mounts has then changed.
pub fn restrict(mount: BorrowedFd<'_>, what: Restrictions, recursive: bool) -> io::Result<()> {
    let bits = [(what.read_only, RDONLY), (what.no_suid, NOSUID), (what.no_dev, NODEV), (what.no_exec, NOEXEC)];
    let set = bits.iter().filter(|(wanted, _)| *wanted).fold(0, |all, (_, bit)| all | bit);
    set_attributes(mount, &MountAttr { set, ..MountAttr::default() }, recursive)
}

/// Makes every id of the user namespace show, through this mount, as the owner of the files that its number on disk says:
/// an id 0 on disk is the namespace's root. The mount must be detached and never attached before. Linux 5.12, and a file
/// system that can be mapped.
///
/// # Errors
/// Those of `mount_setattr(2)`: `EINVAL` for a file system that cannot be mapped, `EPERM` for a mount that is mapped
/// already; with `recursive`, none of the mounts has then changed.
pub fn map_owners(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    let user_namespace = u64::try_from(user_namespace.as_raw_fd()).expect("an open descriptor is not negative");
    set_attributes(mount, &MountAttr { set: IDMAP, user_namespace, ..MountAttr::default() }, recursive)
}

fn set_attributes(mount: BorrowedFd<'_>, attributes: &MountAttr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty text, the structure has the size that is said, and both live through the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<MountAttr>(),
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
