//! The CRI log: one line per record, `<RFC 3339 time, nanoseconds> <stdout|stderr> <F|P> <text>`.
//!
//! A record is full (`F`) when it ends its line and partial (`P`) otherwise; readers join partial records of one stream up
//! to the next full one. [`records`] is a pure function of the bytes: it keeps no state between reads.

use std::fs::{DirBuilder, File};
use std::io::{self, Seek as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::sys::root::Root;

/// Which of the container's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    /// The stream of this name in a record.
    pub(super) fn named(name: &[u8]) -> Option<Self> {
        [Self::Stdout, Self::Stderr].into_iter().find(|stream| stream.name().as_bytes() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// A log that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("{}: the folder of the log cannot be made", path.display())]
    MakeDir { path: PathBuf, source: io::Error },
    #[error("{}: the log cannot be opened", path.display())]
    Open { path: PathBuf, source: io::Error },
}

/// Where a log is. The folder is the kubelet's word; what is below it may have been changed by a pod that has the node's
/// logs as a volume, and is never followed through a symbolic link (or such a pod could have the daemon append to any file
/// of the node).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPlace {
    /// Absolute; made (0755) when it is missing.
    pub dir: PathBuf,
    /// Below `dir`; folders in it are made (0755) when they are missing.
    pub relative: PathBuf,
}

/// An open log file.
#[derive(Debug)]
pub struct LogFile {
    place: LogPlace,
    /// Shared with those who read it again.
    file: Arc<File>,
    max_line: usize,
    buffer: Vec<u8>,
    /// A write failed and the operator has been told; said again only after a success.
    failing: bool,
}

impl LogFile {
    /// Opens the log for appending; makes the file (0640) and the folders when they are missing.
    ///
    /// # Errors
    /// When a folder or the file cannot be made or opened, symbolic links in their place included.
    pub fn open(place: LogPlace, max_line: usize) -> Result<Self, LogError> {
        let file = Arc::new(open_file(&place)?);
        Ok(Self { place, file, max_line: max_line.max(1), buffer: Vec::new(), failing: false })
    }

    /// Goes on in a new file at the same path. Everything that was read before is in the old one.
    ///
    /// # Errors
    /// [`LogError::Open`]; the old file then stays in use.
    pub fn reopen(&mut self) -> Result<(), LogError> {
        self.file = Arc::new(open_file(&self.place)?);
        Ok(())
    }

    /// Appends what a stream gave. A disk that refuses loses these bytes (the container must not stand still for its
    /// log), which is said once. Gives the number of bytes that the records took, `None` when they are not all there.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) -> Option<u64> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.buffer.clear();
        records(&mut self.buffer, now, stream, bytes, self.max_line);
        let written = match (&*self.file).write_all(&self.buffer) {
            Ok(()) => Some(self.buffer.len() as u64),
            Err(error) => {
                if !self.failing {
                    tracing::error!(path = %self.place.full().display(), %error, "the container's output cannot be logged and is lost");
                }
                None
            }
        };
        self.failing = written.is_none();
        // One long line must not cost its memory for the rest of the container's life.
        self.buffer.shrink_to(0);
        written
    }

    /// The file, for reading it again.
    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Where the last write ended. Exact also when somebody else appends to the file.
    pub(super) fn position(&self) -> io::Result<u64> {
        (&*self.file).stream_position()
    }

    /// The file's length.
    pub(super) fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

impl LogPlace {
    fn full(&self) -> PathBuf {
        self.dir.join(&self.relative)
    }
}

fn open_file(place: &LogPlace) -> Result<File, LogError> {
    let make_dir = |source| LogError::MakeDir { path: place.full(), source };
    DirBuilder::new().recursive(true).mode(0o755).create(&place.dir).map_err(make_dir)?;
    let mut dir = Root::open(&place.dir).map_err(make_dir)?;
    for folder in place.relative.parent().into_iter().flat_map(Path::components) {
        dir = dir.ensure_dir(folder, 0o755).map_err(make_dir)?;
    }
    let open = |source| LogError::Open { path: place.full(), source };
    let name = place.relative.file_name().ok_or_else(|| open(io::ErrorKind::InvalidFilename.into()))?;
    dir.append_file(name, 0o640).map_err(open)
}

/// Appends the records of `bytes` to `out`: each line one full record, what follows the last newline a partial one, and
/// text longer than `max_line` in partial records of that length.
pub fn records(out: &mut Vec<u8>, now: Duration, stream: Stream, bytes: &[u8], max_line: usize) {
    let head = format!("{} {} ", rfc3339(now), stream.name());
    let mut record = |tag: &str, text: &[u8]| {
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(tag.as_bytes());
        out.push(b' ');
        out.extend_from_slice(text);
        out.push(b'\n');
    };
    for line in bytes.split_inclusive(|&b| b == b'\n') {
        let (mut text, ended) = match line.split_last() {
            Some((b'\n', text)) => (text, true),
            _ => (line, false),
        };
        while text.len() > max_line {
            let (piece, rest) = text.split_at(max_line);
            record("P", piece);
            text = rest;
        }
        record(if ended { "F" } else { "P" }, text);
    }
}

/// A time since the epoch as RFC 3339 in UTC with nanoseconds.
fn rfc3339(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Civil date from a day count, by the 400-year cycle that begins on 1 March 0000.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        rest / 3_600,
        rest / 60 % 60,
        rest % 60,
        since_epoch.subsec_nanos()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(bytes: &[u8], max: usize) -> Vec<(char, Vec<u8>)> {
        let mut out = Vec::new();
        records(&mut out, Duration::ZERO, Stream::Stderr, bytes, max);
        let head = b"1970-01-01T00:00:00.000000000Z stderr ".len();
        out.split_inclusive(|&b| b == b'\n')
            .map(|line| (char::from(line[head]), line[head + 2..line.len() - 1].to_vec()))
            .collect()
    }

    #[test]
    fn lines_are_full_and_the_rest_is_partial() {
        assert_eq!(texts(b"a\nbc\nd", 10), [('F', b"a".to_vec()), ('F', b"bc".to_vec()), ('P', b"d".to_vec())]);
        assert_eq!(texts(b"\n", 10), [('F', Vec::new())]);
        assert_eq!(texts(b"abcdef\n", 3), [('P', b"abc".to_vec()), ('F', b"def".to_vec())]);
        assert_eq!(texts(b"", 3), []);
    }

    #[test]
    fn times_are_rfc3339() {
        for (seconds, nanos, want) in [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399, 1, "2000-02-28T23:59:59.000000001Z"),
            (951_782_400, 0, "2000-02-29T00:00:00.000000000Z"),
            (1_767_225_599, 999_999_999, "2025-12-31T23:59:59.999999999Z"),
            (4_107_542_400, 5, "2100-03-01T00:00:00.000000005Z"),
        ] {
            assert_eq!(rfc3339(Duration::new(seconds, nanos)), want);
        }
    }

    proptest! {
        #[test]
        fn readers_get_every_byte_back(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 0..8), max in 1_usize..16) {
            let mut joined = Vec::new();
            for chunk in &chunks {
                for (tag, text) in texts(chunk, max) {
                    prop_assert!(text.len() <= max && !text.contains(&b'\n'));
                    joined.extend_from_slice(&text);
                    if tag == 'F' { joined.push(b'\n'); }
                }
            }
            prop_assert_eq!(joined, chunks.concat());
        }
    }

    #[test]
    fn a_symbolic_link_in_place_of_the_log_or_its_folder_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let victim = dir.path().join("victim");
        std::fs::create_dir(&victim).expect("makes");
        std::fs::write(victim.join("0.log"), b"precious").expect("writes");
        let logs = dir.path().join("logs");
        let open = |relative: &str| LogFile::open(LogPlace { dir: logs.clone(), relative: relative.into() }, 100);
        open("app/0.log").expect("the folders are made").write(Stream::Stdout, b"x\n");
        std::os::unix::fs::symlink(&victim, logs.join("moved")).expect("links");
        std::os::unix::fs::symlink(victim.join("0.log"), logs.join("app/1.log")).expect("links");
        for relative in ["moved/0.log", "app/1.log", "../victim/0.log", "app/../../victim/0.log", ""] {
            assert!(open(relative).is_err(), "{relative:?} was opened");
        }
        assert_eq!(std::fs::read(victim.join("0.log")).expect("reads"), b"precious");
    }
}
