//! Asking the kernel to write dirty pages before somebody waits for them.
#![allow(unsafe_code)] // a raw system call

use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Begins to write what of a file is dirty, and does not wait for it (`sync_file_range(2)`, `SYNC_FILE_RANGE_WRITE`). It
/// makes nothing durable: it makes a later `syncfs` short. Errors are left to that call, which tells of them again.
pub fn begin(file: BorrowedFd<'_>) {
    // SAFETY: the call takes a descriptor, which is borrowed for its length, and three numbers.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}
