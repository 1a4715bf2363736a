//! Reading files once without a claim on memory: what was not in the page cache before is not in it afterwards, and what was
//! there stays (`RWF_DONTCACHE` of preadv2(2), since Linux 6.14). Where the kernel or the file system cannot do that, it is
//! plain reading; `posix_fadvise` would also throw away what others have in the cache.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{Errno, ReadWriteFlags};

/// `RWF_DONTCACHE`, which the library does not name yet.
const DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// A file that is read once.
#[derive(Debug)]
pub struct Reader {
    file: File,
    plain: AtomicBool,
}

impl Reader {
    /// Reads from this file.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self { file, plain: AtomicBool::new(false) }
    }

    /// The file itself.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Reads at an offset; 0 at the end of the file.
    ///
    /// # Errors
    /// Those of `pread(2)`.
    pub fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        if !self.plain.load(Ordering::Relaxed) {
            match rustix::io::preadv2(&self.file, &mut [IoSliceMut::new(into)], offset, DONTCACHE) {
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => self.plain.store(true, Ordering::Relaxed),
                Err(Errno::INTR) => return self.read_at(into, offset),
                read => return Ok(read?),
            }
        }
        match self.file.read_at(into, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.read_at(into, offset),
            read => read,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_what_is_there_and_then_nothing() -> anyhow::Result<()> {
        let temp = tempfile::tempdir()?;
        let path = temp.path().join("file");
        std::fs::write(&path, "content")?;
        let reader = Reader::new(File::open(path)?);
        let mut buffer = [0; 16];
        assert_eq!(reader.read_at(&mut buffer, 3)?, 4);
        assert_eq!(&buffer[..4], b"tent");
        assert_eq!(reader.read_at(&mut buffer, 7)?, 0);
        Ok(())
    }
}
