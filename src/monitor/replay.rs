//! Reading the container's own log again: the bytes that a stream gave, out of its records.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::log::Stream;

/// Longest head of a record, in bytes: a time, a stream and a tag take 45.
const MAX_HEAD: usize = 64;

/// Something that is no record of ours.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// A parser of records that takes them in pieces of any size, and keeps no more of them than a head.
#[derive(Debug, Default)]
pub(super) struct Records {
    head: Vec<u8>,
    /// Inside the text of a record: whose it is, and whether it ends a line.
    text: Option<(Stream, bool)>,
}

impl Records {
    /// Between two records.
    pub(super) fn at_rest(&self) -> bool {
        self.head.is_empty() && self.text.is_none()
    }

    /// Takes the next bytes of a log, and gives those of the streams, in their order.
    pub(super) fn read(&mut self, mut bytes: &[u8], mut give: impl FnMut(Stream, &[u8])) -> Result<(), Malformed> {
        while !bytes.is_empty() {
            let Some((stream, full)) = self.text else {
                bytes = self.read_head(bytes)?;
                continue;
            };
            let end = bytes.iter().position(|&byte| byte == b'\n');
            let text = &bytes[..end.unwrap_or(bytes.len())];
            if !text.is_empty() {
                give(stream, text);
            }
            let Some(end) = end else { return Ok(()) };
            if full {
                give(stream, b"\n");
            }
            self.text = None;
            bytes = &bytes[end + 1..];
        }
        Ok(())
    }

    /// Takes as much as belongs to the head of a record; gives the rest.
    fn read_head<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Malformed> {
        let mut spaces = self.head.iter().filter(|&&byte| byte == b' ').count();
        for (at, &byte) in bytes.iter().enumerate() {
            self.head.push(byte);
            if byte == b'\n' || self.head.len() > MAX_HEAD {
                return Err(Malformed);
            }
            spaces += usize::from(byte == b' ');
            if spaces == 3 {
                self.text = Some(parse_head(&self.head).ok_or(Malformed)?);
                self.head.clear();
                return Ok(&bytes[at + 1..]);
            }
        }
        Ok(&[])
    }
}

fn parse_head(head: &[u8]) -> Option<(Stream, bool)> {
    let mut words = head.split(|&byte| byte == b' ');
    let (_time, stream, tag) = (words.next()?, words.next()?, words.next()?);
    let full = match tag {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    Some((Stream::named(stream)?, full))
}

/// Reads at a place of a file, at most `most` bytes; nothing at the file's end. It may wait for the disk.
pub(super) fn read_at(file: &File, at: u64, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; most];
    loop {
        match file.read_at(&mut bytes, at) {
            Ok(n) => {
                bytes.truncate(n);
                return Ok(bytes);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::monitor::log::records;

    fn streams(log: &[u8], cuts: usize) -> Result<[Vec<u8>; 2], Malformed> {
        let (mut parser, mut out) = (Records::default(), [Vec::new(), Vec::new()]);
        for piece in log.chunks(cuts.max(1)) {
            parser.read(piece, |stream, text| out[usize::from(stream == Stream::Stderr)].extend_from_slice(text))?;
        }
        if parser.at_rest() { Ok(out) } else { Err(Malformed) }
    }

    proptest! {
        #[test]
        fn what_was_logged_is_read_back_however_it_is_cut(
            chunks in proptest::collection::vec((any::<bool>(), proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b' '), any::<u8>()], 0..40)), 0..12),
            max in 1_usize..20,
            cuts in 1_usize..70,
        ) {
            let (mut log, mut expected) = (Vec::new(), [Vec::new(), Vec::new()]);
            for (err, bytes) in &chunks {
                let stream = if *err { Stream::Stderr } else { Stream::Stdout };
                records(&mut log, Duration::from_nanos(77), stream, bytes, max);
                expected[usize::from(*err)].extend_from_slice(bytes);
            }
            prop_assert_eq!(streams(&log, cuts), Ok(expected));
        }

        #[test]
        fn anything_else_is_refused_or_read_and_never_kept(bytes in proptest::collection::vec(any::<u8>(), 0..300), cuts in 1_usize..70) {
            let mut parser = Records::default();
            for piece in bytes.chunks(cuts) {
                if parser.read(piece, |_, _| ()).is_err() { break; }
                prop_assert!(parser.head.len() <= MAX_HEAD);
            }
        }
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let head = "1970-01-01T00:00:00.000000077Z";
        for text in ["\n", "a b c d\n", "x stdin F a\n", "x stdout Q a\n", "x stdout\n", &"y".repeat(200)] {
            assert_eq!(streams(text.as_bytes(), 7), Err(Malformed), "{text:?}");
        }
        assert_eq!(streams(format!("{head} stdout F").as_bytes(), 7), Err(Malformed), "cut in the head");
        assert_eq!(streams(format!("{head} stdout F \n").as_bytes(), 7), Ok([b"\n".to_vec(), Vec::new()]));
    }
}
