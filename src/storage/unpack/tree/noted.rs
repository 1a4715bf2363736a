//! Paths that are written down while a layer is unpacked, each with a few bytes, in an unnamed file: there may be as many as
//! the layer has entries, and memory is bounded.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Seek as _, Write as _};
use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, OFlags};

const BUFFER: usize = 64 << 10;

/// A record for each: `N` bytes, and the path up to a NUL, which no clean name holds.
pub(super) struct Noted<const N: usize>(BufWriter<File>);

/// All of them, to be read.
#[derive(Debug)]
pub(in crate::storage) struct Written<const N: usize>(File);

impl<const N: usize> Noted<N> {
    /// In the file system of a directory.
    pub(super) fn new(beside: BorrowedFd<'_>) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let file = rustix::fs::openat(beside, ".", flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Self(BufWriter::with_capacity(BUFFER, File::from(file))))
    }

    pub(super) fn note(&mut self, bytes: [u8; N], path: &[u8]) -> io::Result<()> {
        self.0.write_all(&bytes)?;
        self.0.write_all(path)?;
        self.0.write_all(&[0])
    }

    pub(super) fn done(self) -> io::Result<Written<N>> {
        self.0.into_inner().map(Written).map_err(io::IntoInnerError::into_error)
    }
}

impl<const N: usize> Written<N> {
    /// Gives the records back in their order.
    ///
    /// # Errors
    /// Those of reading, as `unread` has them, and those of `take`.
    pub(in crate::storage) fn replay<E>(
        mut self,
        unread: impl Fn(io::Error) -> E,
        mut take: impl FnMut([u8; N], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.0.rewind().map_err(&unread)?;
        let mut reader = BufReader::with_capacity(BUFFER, self.0);
        let mut path = Vec::new();
        while !reader.fill_buf().map_err(&unread)?.is_empty() {
            let mut bytes = [0; N];
            reader.read_exact(&mut bytes).map_err(&unread)?;
            path.clear();
            reader.read_until(0, &mut path).map_err(&unread)?;
            path.pop();
            take(bytes, &path)?;
        }
        Ok(())
    }
}
