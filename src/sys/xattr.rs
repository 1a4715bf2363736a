//! Extended attributes of things held open, symlinks and devices among them.

use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::root::magic_path;

/// Sets an attribute of an open file or directory.
///
/// # Errors
/// Those of `fsetxattr(2)`.
pub fn set(fd: BorrowedFd<'_>, name: &OsStr, value: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty())?)
}

/// Sets an attribute of whatever an `O_PATH` descriptor names; a symlink is not followed.
///
/// # Errors
/// Those of `setxattr(2)`, and `ENOENT` without `/proc`.
pub fn set_by_path_fd(fd: BorrowedFd<'_>, name: &OsStr, value: &[u8]) -> io::Result<()> {
    // The magic link leads to the very inode that the descriptor holds, and stops there even when that is a symlink.
    Ok(rustix::fs::setxattr(magic_path(fd), name, value, XattrFlags::empty())?)
}

/// Removes an attribute of whatever a descriptor names, `O_PATH` or not; one that is not there is fine.
///
/// # Errors
/// Those of `removexattr(2)`, and `ENOENT` without `/proc`.
pub fn remove_by_path_fd(fd: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match rustix::fs::removexattr(magic_path(fd), name) {
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The value of an attribute of whatever an `O_PATH` descriptor names; else as [`get`].
///
/// # Errors
/// Those of `getxattr(2)` but for the cases of [`get`], and `ENOENT` without `/proc`.
pub fn get_by_path_fd<'b>(fd: BorrowedFd<'_>, name: &OsStr, buffer: &'b mut [u8]) -> io::Result<Option<&'b [u8]>> {
    match rustix::fs::getxattr(magic_path(fd), name, &mut *buffer) {
        Ok(length) => Ok(buffer.get(..length)),
        Err(Errno::NODATA | Errno::RANGE | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The names of all attributes of whatever an `O_PATH` descriptor names.
///
/// # Errors
/// Those of `listxattr(2)`, and `ENOENT` without `/proc`.
pub fn list_by_path_fd(fd: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
    // Most things have none, which a short buffer shows as well; XATTR_LIST_MAX is the most that there can be (xattr(7)).
    let mut short = [0; 256];
    let mut long = Vec::new();
    let list = match rustix::fs::listxattr(magic_path(fd), &mut short) {
        Ok(length) => &short[..length],
        Err(Errno::RANGE) => {
            long.resize(64 << 10, 0);
            let length = rustix::fs::listxattr(magic_path(fd), &mut long[..])?;
            &long[..length]
        }
        Err(error) => return Err(error.into()),
    };
    Ok(list.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

/// The value of an attribute of an open file or directory; `None` when it has none of that name, or when it is larger
/// than the buffer.
///
/// # Errors
/// Those of `fgetxattr(2)`, but for the two cases above and a file system without attributes.
pub fn get<'b>(fd: BorrowedFd<'_>, name: &OsStr, buffer: &'b mut [u8]) -> io::Result<Option<&'b [u8]>> {
    match rustix::fs::fgetxattr(fd, name, &mut *buffer) {
        Ok(length) => Ok(buffer.get(..length)),
        Err(Errno::NODATA | Errno::RANGE | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
