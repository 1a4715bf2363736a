//! Directory times to be set at the end, kept in a file: there may be millions.

use std::os::fd::BorrowedFd;

use super::super::UnpackError;
use super::super::archive::Timestamp;
use super::noted::Noted;

/// For each entry of a directory: seconds and nanoseconds.
pub(super) struct Times(Noted<12>);

impl Times {
    pub(super) fn new(scratch: BorrowedFd<'_>) -> Result<Self, UnpackError> {
        Noted::new(scratch).map(Self).map_err(scratch_failed("cannot be made"))
    }

    pub(super) fn note(&mut self, path: &[u8], mtime: Timestamp) -> Result<(), UnpackError> {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&mtime.seconds.to_le_bytes());
        bytes[8..].copy_from_slice(&mtime.nanoseconds.to_le_bytes());
        self.0.note(bytes, path).map_err(scratch_failed("cannot be written"))
    }

    /// Gives the records back in their order.
    pub(super) fn replay(
        self,
        mut apply: impl FnMut(&[u8], Timestamp) -> Result<(), UnpackError>,
    ) -> Result<(), UnpackError> {
        let written = self.0.done().map_err(scratch_failed("cannot be written"))?;
        written.replay(scratch_failed("cannot be read back"), |bytes, path| {
            let (seconds, nanoseconds) = bytes.split_at(8);
            let seconds = i64::from_le_bytes(seconds.try_into().expect("eight bytes"));
            let nanoseconds = u32::from_le_bytes(nanoseconds.try_into().expect("four bytes"));
            apply(path, Timestamp { seconds, nanoseconds })
        })
    }
}

/// What could not be done with the file.
pub(super) fn scratch_failed(operation: &'static str) -> impl Fn(std::io::Error) -> UnpackError {
    move |source| UnpackError::Scratch { operation, source }
}
