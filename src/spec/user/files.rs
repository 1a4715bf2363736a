//! An image's `/etc/passwd` and `/etc/group`: bytes from a stranger. Lines that are not as they should be are passed over,
//! nothing is copied but the one entry that is asked for, and an id that could not be run as is as good as no line.

use super::MAX_ID;

/// The most that is read of either file, in bytes (CVE-2025-4437, CVE-2026-47262).
pub const MAX_FILE_SIZE: usize = 10 * 1024 * 1024;

pub(super) struct Entry {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

pub(super) fn passwd_by_name(file: &[u8], name: &str) -> Option<Entry> {
    lines(file).filter_map(passwd_entry).find(|entry| entry.name == name)
}

pub(super) fn passwd_by_uid(file: &[u8], uid: u32) -> Option<Entry> {
    lines(file).filter_map(passwd_entry).find(|entry| entry.uid == uid)
}

/// `name:password:uid:gid:…`; what follows the gid is of no interest, and need not be there.
fn passwd_entry(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|b| *b == b':');
    let name = std::str::from_utf8(fields.next()?).ok().filter(|name| !name.is_empty())?;
    let (uid, gid) = (number(fields.nth(1)?)?, number(fields.next()?)?);
    Some(Entry { name: name.to_owned(), uid, gid })
}

pub(super) fn group_named(file: &[u8], name: &str) -> Option<u32> {
    lines(file).filter_map(group_entry).find(|(entry, _, _)| *entry == name.as_bytes()).map(|(_, gid, _)| gid)
}

/// The groups whose member lists have this name, in the file's order.
pub(super) fn groups_of<'a>(file: &'a [u8], name: &'a str) -> impl Iterator<Item = u32> + 'a {
    lines(file)
        .filter_map(group_entry)
        .filter(|(_, _, members)| members.split(|b| *b == b',').any(|m| m.trim_ascii() == name.as_bytes()))
        .map(|(_, gid, _)| gid)
}

/// `name:password:gid:member,member`
fn group_entry(line: &[u8]) -> Option<(&[u8], u32, &[u8])> {
    let mut fields = line.split(|b| *b == b':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let gid = number(fields.nth(1)?)?;
    Some((name, gid, fields.next().unwrap_or_default()))
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty() && !line.starts_with(b"#"))
}

fn number(field: &[u8]) -> Option<u32> {
    let digits = !field.is_empty() && field.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(field).ok().filter(|_| digits)?;
    text.parse().ok().filter(|id| *id <= MAX_ID)
}
