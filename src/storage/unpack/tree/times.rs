//! Directory times to be set at the end, kept in an unnamed file: there may be millions.

use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Seek as _, Write as _};
use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, OFlags};

use super::super::UnpackError;
use super::super::archive::Timestamp;

/// A record per entry: seconds and nanoseconds, and the path up to a NUL, which no clean name holds.
pub(super) struct Times(BufWriter<File>);

impl Times {
    pub(super) fn new(scratch: BorrowedFd<'_>) -> Result<Self, UnpackError> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let file = rustix::fs::openat(scratch, ".", flags, Mode::RUSR | Mode::WUSR)
            .map_err(|source| UnpackError::Scratch { operation: "cannot be made", source: source.into() })?;
        Ok(Self(BufWriter::with_capacity(64 << 10, File::from(file))))
    }

    pub(super) fn note(&mut self, path: &[u8], mtime: Timestamp) -> Result<(), UnpackError> {
        let mut record = Vec::with_capacity(path.len() + 13);
        record.extend_from_slice(&mtime.seconds.to_le_bytes());
        record.extend_from_slice(&mtime.nanoseconds.to_le_bytes());
        record.extend_from_slice(path);
        record.push(0);
        self.0.write_all(&record).map_err(|source| UnpackError::Scratch { operation: "cannot be written", source })
    }

    /// Gives the records back in their order.
    pub(super) fn replay(
        self,
        mut apply: impl FnMut(&[u8], Timestamp) -> Result<(), UnpackError>,
    ) -> Result<(), UnpackError> {
        let unread = |source| UnpackError::Scratch { operation: "cannot be read back", source };
        let mut file = self.0.into_inner().map_err(|error| unread(error.into_error()))?;
        file.rewind().map_err(unread)?;
        let mut reader = BufReader::with_capacity(64 << 10, file);
        let mut path = Vec::new();
        while !reader.fill_buf().map_err(unread)?.is_empty() {
            let (mut seconds, mut nanoseconds) = ([0; 8], [0; 4]);
            std::io::Read::read_exact(&mut reader, &mut seconds).map_err(unread)?;
            std::io::Read::read_exact(&mut reader, &mut nanoseconds).map_err(unread)?;
            path.clear();
            reader.read_until(0, &mut path).map_err(unread)?;
            path.pop();
            let mtime =
                Timestamp { seconds: i64::from_le_bytes(seconds), nanoseconds: u32::from_le_bytes(nanoseconds) };
            apply(&path, mtime)?;
        }
        Ok(())
    }
}
