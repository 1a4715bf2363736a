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
