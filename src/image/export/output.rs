//! Where an export goes. A file has no name until it is whole, where the file system can do that (`O_TMPFILE`, open(2)), and
//! a folder has another one; so nobody ever sees half an export, and nothing that is there is written over.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::ExportError;
use crate::storage::{Digest, Hasher};
use crate::sys::root::magic_path;

/// What an export is written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A tar file.
    Archive(PathBuf),
    /// A folder, to be made.
    Folder(PathBuf),
    /// A tar to standard output.
    Stdout,
}

impl Target {
    /// The path, for messages.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Archive(path) | Self::Folder(path) => path,
            Self::Stdout => Path::new("standard output"),
        }
    }
}

/// An export under way. Dropping it leaves nothing behind.
pub(super) struct Output {
    path: PathBuf,
    form: Form,
}

enum Form {
    Tar { file: File, place: Option<Place> },
    Folder { temporary: PathBuf, place: Place },
}

/// Where the result gets its name.
struct Place {
    parent: OwnedFd,
    name: OsString,
    /// The name until then; `None` for a file without.
    temporary: Option<OsString>,
}

impl Output {
    pub(super) fn begin(target: &Target) -> Result<Self, ExportError> {
        let path = target.path().to_owned();
        let failed = |source| ExportError::Write { path: path.clone(), operation: "cannot be made", source };
        let form = match target {
            Target::Stdout => {
                let file = io::stdout().as_fd().try_clone_to_owned().map(File::from).map_err(failed)?;
                Form::Tar { file, place: None }
            }
            Target::Archive(_) => {
                let mut place = Place::new(&path)?;
                let file = place.file().map_err(failed)?;
                Form::Tar { file, place: Some(place) }
            }
            Target::Folder(_) => {
                let mut place = Place::new(&path)?;
                let name = place.unused();
                let temporary = path.with_file_name(&name);
                place.temporary = Some(name);
                fs::DirBuilder::new().mode(0o700).create(&temporary).map_err(failed)?;
                Form::Folder { temporary, place }
            }
        };
        Ok(Self { path, form })
    }

    /// The folders of blobs.
    pub(super) fn folders(&mut self) -> Result<(), ExportError> {
        let path = self.path.clone();
        let made = match &mut self.form {
            Form::Folder { temporary, .. } => fs::create_dir_all(temporary.join("blobs/sha256")),
            Form::Tar { file, .. } => ["blobs/", "blobs/sha256/"]
                .iter()
                .try_for_each(|name| file.write_all(header(name, 0, tar::EntryType::Directory)?.as_bytes())),
        };
        made.map_err(|source| ExportError::Write { path, operation: "cannot be written", source })
    }

    /// A small file; one that is there already is the same.
    pub(super) fn document(&mut self, name: &str, bytes: &[u8]) -> Result<(), ExportError> {
        let path = self.path.clone();
        let written = match &mut self.form {
            Form::Folder { temporary, .. } => new_file(&temporary.join(name)).and_then(|file| match file {
                Some(mut file) => file.write_all(bytes).and_then(|()| file.sync_all()),
                None => Ok(()),
            }),
            Form::Tar { file, .. } => {
                let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                header(name, size, tar::EntryType::Regular)
                    .and_then(|header| file.write_all(header.as_bytes()))
                    .and_then(|()| file.write_all(bytes))
                    .and_then(|()| file.write_all(padding(size)))
            }
        };
        written.map_err(|source| ExportError::Write { path, operation: "cannot be written", source })
    }

    /// A blob that `write` streams. What it will be is known beforehand when it is not compressed; else its header is
    /// written in the end. Gives its digest and size.
    pub(super) fn blob(
        &mut self,
        known: Option<(&Digest, u64)>,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(Digest, u64), ExportError> {
        let path = self.path.clone();
        let written = match &mut self.form {
            Form::Folder { temporary, .. } => in_folder(temporary, write),
            Form::Tar { file, .. } => in_tar(file, known, write),
        };
        written.map_err(|source| ExportError::Write { path, operation: "a layer cannot be written", source })
    }

    /// Ends it, makes it durable, and gives it its name.
    pub(super) fn finish(mut self) -> Result<(), ExportError> {
        let path = self.path.clone();
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AlreadyExists => ExportError::Exists { path: path.clone() },
            _ => ExportError::Write { path: path.clone(), operation: "cannot be finished", source },
        };
        match &mut self.form {
            Form::Tar { file, place } => {
                file.write_all(&[0; 1024]).map_err(failed)?;
                match place {
                    None => file.flush().map_err(failed),
                    Some(place) => file.sync_all().and_then(|()| place.publish(Some(file))).map_err(failed),
                }
            }
            Form::Folder { temporary, place } => {
                for folder in ["blobs/sha256", "blobs", "."] {
                    File::open(temporary.join(folder)).and_then(|folder| folder.sync_all()).map_err(failed)?;
                }
                place.publish(None).map_err(failed)
            }
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let (Form::Tar { place: Some(place), .. } | Form::Folder { place, .. }) = &self.form else { return };
        let Some(temporary) = &place.temporary else { return };
        let path = self.path.with_file_name(temporary);
        let removed =
            if matches!(self.form, Form::Folder { .. }) { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        if let Err(error) = removed {
            tracing::warn!(path = %path.display(), %error, "half an export was not removed");
        }
    }
}

impl Place {
    fn new(path: &Path) -> Result<Self, ExportError> {
        let failed =
            |source| ExportError::Write { path: path.to_owned(), operation: "its folder cannot be opened", source };
        let name = path.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?.to_owned();
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = rustix::fs::openat(CWD, parent, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        match rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(Self { parent, name, temporary: None }),
            Ok(_) => Err(ExportError::Exists { path: path.to_owned() }),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// A name beside the final one that nothing else has.
    fn unused(&self) -> OsString {
        let mut name = OsString::from(".");
        name.push(&self.name);
        name.push(format!(".exporting-{}", std::process::id()));
        name
    }

    fn file(&mut self) -> io::Result<File> {
        let (read_write, mode) = (OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
        match rustix::fs::openat(&self.parent, ".", read_write | OFlags::TMPFILE, mode) {
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
            file => return Ok(file?.into()),
        }
        let name = self.unused();
        let file = rustix::fs::openat(&self.parent, &name, read_write | OFlags::CREATE | OFlags::EXCL, mode)?;
        self.temporary = Some(name);
        Ok(file.into())
    }

    /// Gives the result its name, unless something has it.
    fn publish(&mut self, file: Option<&File>) -> io::Result<()> {
        match (&self.temporary, file) {
            (None, Some(file)) => {
                let nameless = magic_path(file.as_fd());
                rustix::fs::linkat(CWD, nameless, &self.parent, &self.name, AtFlags::SYMLINK_FOLLOW)?;
            }
            (Some(temporary), _) => {
                let temporary: &OsStr = temporary;
                rustix::fs::renameat_with(&self.parent, temporary, &self.parent, &self.name, RenameFlags::NOREPLACE)?;
                self.temporary = None;
            }
            (None, None) => {}
        }
        Ok(rustix::fs::fsync(&self.parent)?)
    }
}

/// Counts and hashes what is written.
struct Counted<'w> {
    out: &'w mut File,
    hasher: Hasher,
    size: u64,
}

impl<'w> Counted<'w> {
    fn new(out: &'w mut File) -> Self {
        Self { out, hasher: Hasher::new(), size: 0 }
    }
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += u64::try_from(written).unwrap_or(0);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn in_folder(folder: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<(Digest, u64)> {
    let blobs = folder.join("blobs/sha256");
    let unfinished = blobs.join(".unfinished");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    let mut counted = Counted::new(&mut file);
    write(&mut counted)?;
    let (digest, size) = (counted.hasher.finish(), counted.size);
    file.sync_all()?;
    fs::rename(&unfinished, blobs.join(digest.hex()))?;
    Ok((digest, size))
}

fn in_tar(
    file: &mut File,
    known: Option<(&Digest, u64)>,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<(Digest, u64)> {
    let regular = |digest: &Digest, size| header(&super::blob(digest), size, tar::EntryType::Regular);
    let at = match known {
        Some((digest, size)) => {
            file.write_all(regular(digest, size)?.as_bytes())?;
            None
        }
        None => {
            let at = file.stream_position()?;
            file.write_all(&[0; 512])?;
            Some(at)
        }
    };
    let mut counted = Counted::new(file);
    write(&mut counted)?;
    let (digest, size) = (counted.hasher.finish(), counted.size);
    file.write_all(padding(size))?;
    match (at, known) {
        (Some(at), _) => {
            let end = file.stream_position()?;
            file.seek(SeekFrom::Start(at))?;
            file.write_all(regular(&digest, size)?.as_bytes())?;
            file.seek(SeekFrom::Start(end))?;
        }
        (None, Some((_, stated))) if stated != size => {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it has another length than when it was unpacked"));
        }
        _ => {}
    }
    Ok((digest, size))
}

/// A new file; `None` when it is there.
fn new_file(path: &Path) -> io::Result<Option<File>> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
        file => file.map(Some),
    }
}

/// The names are short, and sizes of 8 GiB and more go into the header in the way of GNU.
pub(super) fn header(name: &str, size: u64, kind: tar::EntryType) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name)?;
    header.set_entry_type(kind);
    header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    Ok(header)
}

fn padding(size: u64) -> &'static [u8] {
    static ZEROS: [u8; 512] = [0; 512];
    &ZEROS[..usize::try_from(size.wrapping_neg() % 512).expect("less than a block")]
}
