//! The records of a pax extended header (POSIX.1-2017, pax, "pax Extended Header").
//!
//! Strict: what does not parse is an error and never skipped, since a parser that skips sees other entries than one that
//! does not. Values are bytes: an attribute may hold newlines and zeros.

use super::archive::Timestamp;

/// What the records say, of all that we honour. A record with an empty value takes an earlier one back.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    pub path: Option<Vec<u8>>,
    pub linkpath: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<Timestamp>,
    /// In the order of the header; of two with one name the last counts.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The name of a sparse-file record, which is not supported.
    pub sparse: bool,
}

const XATTR: &[u8] = b"SCHILY.xattr.";

/// Parses the content of an extended header.
///
/// # Errors
/// In words, what is malformed.
pub(super) fn parse(mut rest: &[u8], longest_xattr: usize) -> Result<Records, String> {
    let mut records = Records::default();
    while !rest.is_empty() {
        let (key, value, after) = record(rest).ok_or("a pax record is malformed")?;
        take(&mut records, key, value, longest_xattr)?;
        rest = after;
    }
    Ok(records)
}

/// Splits `<length> <key>=<value>\n` off; the length counts the whole record in decimal.
fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&data[..space])?).ok()?;
    let body = data.get(space + 1..length)?;
    let body = body.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    let key = &body[..equals];
    if key.is_empty() || key.contains(&0) {
        return None;
    }
    Some((key, &body[equals + 1..], &data[length..]))
}

fn take(records: &mut Records, key: &[u8], value: &[u8], longest_xattr: usize) -> Result<(), String> {
    let bad = || format!("pax record {} has the value \"{}\"", key.escape_ascii(), value.escape_ascii());
    match key {
        b"path" => records.path = text(value).ok_or_else(bad)?,
        b"linkpath" => records.linkpath = text(value).ok_or_else(bad)?,
        b"size" => records.size = number(value).ok_or_else(bad)?,
        b"uid" => records.uid = number(value).ok_or_else(bad)?,
        b"gid" => records.gid = number(value).ok_or_else(bad)?,
        b"mtime" => records.mtime = time(value).ok_or_else(bad)?,
        key if key.starts_with(b"GNU.sparse.") => records.sparse = true,
        key if key.starts_with(XATTR) => {
            let name = &key[XATTR.len()..];
            // 255 is XATTR_NAME_MAX of Linux.
            if name.is_empty() || name.len() > 255 {
                return Err("an extended attribute has no name, or one of more than 255 bytes".to_owned());
            }
            if value.len() > longest_xattr {
                return Err(format!("extended attribute {} exceeds {longest_xattr} bytes", name.escape_ascii()));
            }
            records.xattrs.retain(|(known, _)| known != name);
            records.xattrs.push((name.to_vec(), value.to_vec()));
        }
        _ => {}
    }
    Ok(())
}

fn text(value: &[u8]) -> Option<Option<Vec<u8>>> {
    if value.contains(&0) {
        return None;
    }
    Some((!value.is_empty()).then(|| value.to_vec()))
}

fn number(value: &[u8]) -> Option<Option<u64>> {
    if value.is_empty() { Some(None) } else { decimal(value).map(Some) }
}

/// Only digits, and at most what a signed 64-bit number holds.
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: i64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    u64::try_from(number).ok()
}

/// Seconds with an optional sign and fraction; what is finer than a nanosecond is cut.
fn time(value: &[u8]) -> Option<Option<Timestamp>> {
    if value.is_empty() {
        return Some(None);
    }
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanoseconds = 0;
    if let Some(fraction) = parts.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        for place in 0..9 {
            let digit = fraction.get(place).map_or(0, |digit| u32::from(digit - b'0'));
            nanoseconds = nanoseconds * 10 + digit;
        }
    }
    Some(Some(match (negative, nanoseconds) {
        (false, _) => Timestamp { seconds, nanoseconds },
        (true, 0) => Timestamp { seconds: -seconds, nanoseconds: 0 },
        (true, _) => Timestamp { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(key: &str, value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut length = body + body.to_string().len();
        if length.to_string().len() > body.to_string().len() {
            length += 1;
        }
        let mut record = format!("{length} {key}=").into_bytes();
        record.extend_from_slice(value);
        record.push(b'\n');
        assert_eq!(record.len(), length);
        record
    }

    #[test]
    fn values_may_hold_newlines_and_zeros() {
        let mut data = line("SCHILY.xattr.security.capability", b"\x01\0\0\n\x02=\n\0");
        data.extend(line("path", b"a/b"));
        data.extend(line("size", b"17"));
        data.extend(line("mtime", b"-1.5"));
        data.extend(line("comment", b"ignored"));
        let records = parse(&data, 100).expect("legal");
        assert_eq!(records.xattrs, [(b"security.capability".to_vec(), b"\x01\0\0\n\x02=\n\0".to_vec())]);
        assert_eq!(records.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(records.size, Some(17));
        assert_eq!(records.mtime, Some(Timestamp { seconds: -2, nanoseconds: 500_000_000 }));
    }

    /// RUSTSEC-2026-0066, GHSA-3cv2-h65g-fgmm: malformed records are an error, never skipped.
    #[test]
    fn malformed_records_are_errors() {
        let long = line("SCHILY.xattr.user.x", &[b'x'; 101]);
        let cases: &[&[u8]] = &[
            b"x path=a\n",
            b"9 path=a",
            b"99 path=a\n",
            b"8 path=a\n",
            b"11 path=a\n",
            b"+9 path=a\n",
            b"7 =abc\n",
            b"8 pathx\n",
            b"3\n",
            b"18446744073709551617 path=a\n",
            b"12 size=-12\n",
            b"11 size=1x\n",
            b"30 size=99999999999999999999\n",
            b"13 mtime=1.x\n",
            b"13 path=a\0bc\n",
            b"9 path=a\n\0\0\0",
            &long,
        ];
        for data in cases {
            assert!(parse(data, 100).is_err(), "{} was taken", data.escape_ascii());
        }
    }
}
