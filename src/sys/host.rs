//! Small facts and things of the host: randomness, `/dev/null`, the node's name.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::rand::{GetRandomFlags, getrandom};

/// `N` random bytes as `2 N` lower-case hexadecimal digits.
///
/// # Panics
/// When the kernel has no random bytes to give, which it has from early boot on.
#[must_use]
pub fn random_hex<const N: usize>() -> String {
    let mut bytes = [0_u8; N];
    let mut filled = 0;
    while filled < N {
        // A signal may cut a long read short.
        match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("getrandom(2) failed: {error}"),
        }
    }
    hex::encode(bytes)
}

/// A random number.
///
/// # Panics
/// As [`random_hex`].
#[must_use]
pub fn random_u32() -> u32 {
    u32::from_str_radix(&random_hex::<4>(), 16).expect("eight hexadecimal digits are a number of 32 bits")
}

/// `/dev/null`, for reading and writing.
///
/// # Errors
/// When it cannot be opened.
pub fn dev_null() -> io::Result<OwnedFd> {
    File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from)
}

/// The node's hostname.
#[must_use]
pub fn node_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The name of a block device, `/dev/sda`; `major:minor` where the kernel has no name for it (overlay, tmpfs).
#[must_use]
pub fn device_name((major, minor): (u32, u32)) -> String {
    let about = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).unwrap_or_default();
    let name = about.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map_or_else(|| format!("{major}:{minor}"), |name| format!("/dev/{name}"))
}

/// The name of the block device on which a file or folder lies; empty when it is not there.
#[must_use]
pub fn device_name_of(path: &Path) -> String {
    let device = |found: rustix::fs::Stat| (rustix::fs::major(found.st_dev), rustix::fs::minor(found.st_dev));
    rustix::fs::stat(path).map(device).map(device_name).unwrap_or_default()
}

/// Reads a regular file of the host, at most `cap` bytes. A FIFO or a device does not block or answer.
///
/// # Errors
/// `EFBIG` when it is larger, `EINVAL` when it is no regular file; those of `open(2)` and `read(2)`.
pub fn read_regular(path: &Path, cap: u64) -> io::Result<Vec<u8>> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    super::root::read_regular(file.into(), cap)
}

/// Nanoseconds since 1970. Never 0, which stands for "not yet" in the CRI.
#[must_use]
pub fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX).max(1)
}
