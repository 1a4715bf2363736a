//! A folder or a tar file as a set of named, seekable files.
//!
//! The tar reader is our own, as it only has to find regular files: nothing is unpacked, long headers are bounded, and
//! what is neither a regular file nor a link is passed over. Names are looked up in the archive, and so are those that links
//! lead to: `docker save` writes a layer that several images have once, and links to it (moby, image/tarexport).

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::super::error::ImageError;

const BLOCK: u64 = 512;
const MAX_ENTRIES: usize = 100_000;
/// Bytes of all names and of what links lead to: they are held in memory while an archive is read.
const MAX_NAMES: usize = 16 << 20;
/// Links that one name may lead through.
const MAX_LINKS: usize = 8;
/// Largest extended header, in bytes.
const MAX_EXTENDED: u64 = 64 * 1024;
/// Most that a gzip archive may unpack to, in bytes.
const MAX_UNPACKED: u64 = 256 * 1024 * 1024 * 1024;
const TEMPORARY: &str = ".import-";

/// What images are imported from.
#[derive(Debug)]
pub(super) enum Source {
    Folder { folder: File, path: String },
    Tar { file: Arc<File>, members: HashMap<String, Member> },
}

/// One name in a tar.
#[derive(Debug)]
pub(super) enum Member {
    /// Where its bytes are: the offset, and how many.
    File(u64, u64),
    /// Another name of the archive.
    Link(String),
}

/// One file of it.
#[derive(Debug)]
pub(super) struct Entry {
    file: Arc<File>,
    at: u64,
    end: u64,
}

/// Removes what a crash during an import left over.
pub(in crate::image) fn sweep(root: &Path) -> Result<(), ImageError> {
    let failed = |source| ImageError::disk(root, "the folder cannot be swept", source);
    for entry in fs::read_dir(root).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            fs::remove_file(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}

impl Source {
    /// Opens a layout folder or a tar. A compressed one is unpacked to a nameless file below `root` first.
    pub(super) fn open(path: &Path, root: &Path) -> Result<Self, ImageError> {
        let failed = |source| ImageError::disk(path, "cannot be read", source);
        let bad = |reason: &str| ImageError::Archive { path: path.to_owned(), reason: reason.to_owned() };
        // Not blocking: a pipe in place of the file must not hold the import for ever.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
        let kind = file.metadata().map_err(failed)?;
        if kind.is_dir() {
            return Ok(Self::Folder { folder: file, path: path.display().to_string() });
        }
        if !kind.is_file() {
            return Err(bad("it is neither a folder nor a file"));
        }
        let mut magic = [0; 4];
        let n = file.read_at(&mut magic, 0).map_err(failed)?;
        let file = match &magic[..n] {
            [0x1f, 0x8b, ..] => {
                unpacked(flate2::read::MultiGzDecoder::new(io::BufReader::new(file)), root).map_err(failed)?
            }
            [0x28, 0xb5, 0x2f, 0xfd] => zstd::Decoder::new(file).and_then(|d| unpacked(d, root)).map_err(failed)?,
            _ => file,
        };
        let members = index(&file).map_err(|error| bad(&error.to_string()))?;
        Ok(Self::Tar { file: Arc::new(file), members })
    }

    /// A file by its name in the archive; `None` when it is not there.
    pub(super) fn find(&self, name: &str) -> Result<Option<Entry>, ImageError> {
        match self {
            Self::Tar { file, members } => {
                let mut found = plain(name, "").and_then(|name| members.get(&name));
                for _ in 0..MAX_LINKS {
                    let Some(Member::Link(target)) = found else { break };
                    found = members.get(target);
                }
                Ok(match found {
                    Some(Member::File(at, size)) => Some(Entry { file: file.clone(), at: *at, end: at + size }),
                    Some(Member::Link(_)) | None => None,
                })
            }
            Self::Folder { folder, path } => {
                let failed = |source: io::Error| ImageError::disk(format!("{path}/{name}"), "cannot be read", source);
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                let file = match rustix::fs::openat2(folder, name, flags, Mode::empty(), resolve) {
                    Ok(file) => File::from(file),
                    Err(rustix::io::Errno::NOENT) => return Ok(None),
                    Err(error) => return Err(failed(error.into())),
                };
                let found = file.metadata().map_err(failed)?;
                if !found.is_file() {
                    return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
                }
                Ok(Some(Entry { file: Arc::new(file), at: 0, end: found.len() }))
            }
        }
    }
}

impl Entry {
    /// Bytes left to read.
    pub(super) fn size(&self) -> u64 {
        self.end - self.at
    }
}

impl Read for Entry {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.size()).unwrap_or(usize::MAX).min(into.len());
        let n = self.file.read_at(&mut into[..room], self.at)?;
        if n == 0 && room > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is cut off"));
        }
        self.at += u64::try_from(n).unwrap_or(0);
        Ok(n)
    }
}

fn unpacked(content: impl Read, root: &Path) -> io::Result<File> {
    static IMPORTS: AtomicU64 = AtomicU64::new(0);
    let number = IMPORTS.fetch_add(1, Ordering::Relaxed);
    let path = root.join(format!("{TEMPORARY}{}-{number}", std::process::id()));
    let mut out = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    let mut content = content.take(MAX_UNPACKED + 1);
    if io::copy(&mut content, &mut out)? > MAX_UNPACKED {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it unpacks to more than 256 GiB"));
    }
    out.flush()?;
    out.seek(SeekFrom::Start(0))?;
    Ok(out)
}

/// Where each regular file of a tar is, and where links lead. The first of two with one name counts: what is checked is what
/// is used.
fn index(file: &File) -> io::Result<HashMap<String, Member>> {
    let bad = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
    let length = file.metadata()?.len();
    let mut members = HashMap::new();
    let mut at = 0;
    let mut count = 0;
    let mut names = 0;
    let mut extended = Extended::default();
    while at + BLOCK <= length {
        let mut header = [0; 512];
        file.read_exact_at(&mut header, at)?;
        at += BLOCK;
        if header.iter().all(|byte| *byte == 0) {
            break;
        }
        count += 1;
        if count > MAX_ENTRIES {
            return Err(bad("it has too many entries"));
        }
        if !checksum_fits(&header) {
            return Err(bad("it is not a tar archive, or is damaged"));
        }
        let kind = header[156];
        let own = matches!(kind, b'x' | b'g' | b'L' | b'K');
        let stated = number(&header[124..136]).ok_or_else(|| bad("an entry's size is not a number"))?;
        let size = match kind {
            _ if own => stated,
            // Links have no content, whatever size they state (POSIX.1-2017, pax, "ustar Interchange Format").
            b'1' | b'2' => 0,
            _ => extended.size.unwrap_or(stated),
        };
        let end = at.checked_add(size).filter(|end| *end <= length).ok_or_else(|| bad("it is cut off"))?;
        match kind {
            b'x' | b'L' | b'K' => {
                if size > MAX_EXTENDED {
                    return Err(bad("an extended header is too long"));
                }
                let mut text = vec![0; usize::try_from(size).unwrap_or(0)];
                file.read_exact_at(&mut text, at)?;
                extended.read(kind, &text);
            }
            b'g' => {}
            b'0' | 0 | b'1' | b'2' => {
                let Extended { name, link, .. } = std::mem::take(&mut extended);
                let name = plain(&name.unwrap_or_else(|| short_name(&header)), "");
                let link = || link.unwrap_or_else(|| text(&header[157..257]));
                let member = match kind {
                    b'1' => plain(&link(), "").map(Member::Link),
                    b'2' => name.as_ref().and_then(|name| plain(&link(), parent(name))).map(Member::Link),
                    _ => Some(Member::File(at, size)),
                };
                // A name that leads out of the archive is none that is asked for.
                if let (Some(name), Some(member)) = (name, member) {
                    let target = if let Member::Link(target) = &member { target.len() } else { 0 };
                    names += name.len() + target;
                    if names > MAX_NAMES {
                        return Err(bad("its names take more than 16 MiB"));
                    }
                    members.entry(name).or_insert(member);
                }
            }
            _ => extended = Extended::default(),
        }
        at = end.div_ceil(BLOCK) * BLOCK;
    }
    Ok(members)
}

/// A name in the archive, or what a link in this folder of it leads to, without `.` and `..`; `None` when it leads out.
fn plain(name: &str, folder: &str) -> Option<String> {
    let folder = if name.starts_with('/') { "" } else { folder };
    let mut parts = Vec::new();
    for part in folder.split('/').chain(name.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// What a PAX or GNU header says of the entry that follows.
#[derive(Default)]
struct Extended {
    name: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

impl Extended {
    fn read(&mut self, kind: u8, text: &[u8]) {
        if matches!(kind, b'L' | b'K') {
            let own = if kind == b'L' { &mut self.name } else { &mut self.link };
            *own = Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned());
            return;
        }
        // Records of "<length> <key>=<value>\n".
        let mut rest = text;
        while let Some(space) = rest.iter().position(|b| *b == b' ') {
            let length = std::str::from_utf8(&rest[..space]).ok().and_then(|text| text.parse::<usize>().ok());
            let Some(record) = length.filter(|n| *n > space + 1).and_then(|n| rest.get(space + 1..n)) else { return };
            let record = String::from_utf8_lossy(record);
            match record.trim_end_matches('\n').split_once('=') {
                Some(("path", value)) => self.name = Some(value.to_owned()),
                Some(("linkpath", value)) => self.link = Some(value.to_owned()),
                Some(("size", value)) => self.size = value.parse().ok(),
                _ => {}
            }
            rest = &rest[length.unwrap_or(rest.len())..];
        }
    }
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

fn short_name(header: &[u8; 512]) -> String {
    let name = text(&header[..100]);
    let prefix =
        if &header[257..262] == b"ustar" && header[263] != b' ' { text(&header[345..500]) } else { String::new() };
    if prefix.is_empty() { name } else { format!("{prefix}/{name}") }
}

fn checksum_fits(header: &[u8; 512]) -> bool {
    let sum: u64 =
        header.iter().enumerate().map(|(at, b)| if (148..156).contains(&at) { 32 } else { u64::from(*b) }).sum();
    number(&header[148..156]) == Some(sum)
}

/// Octal text, or GNU's base 256.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let bytes = field[1..].iter().skip_while(|b| **b == 0);
        return bytes.clone().count().le(&8).then(|| bytes.fold(0, |sum, b| sum << 8 | u64::from(*b)));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}
