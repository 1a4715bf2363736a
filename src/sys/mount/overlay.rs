//! Overlay mounts of any number of layers, on kernels with and without `lowerdir+`.

use std::ffi::CString;
use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags};

use super::{attributes, private};

/// As many lower layers as the kernel takes (`OVL_MAX_STACK`).
pub const MAX_LAYERS: usize = 500;

/// The kernel copies at most this much of a string parameter, its end included (`fsconfig(2)`).
const MAX_PARAMETER: usize = 255;

/// The kernel copies one page of options (`mount(2)`); this leaves room for those it adds.
const MAX_OPTIONS: usize = 4000;

/// Said aloud, since the defaults of these are a matter of kernel configuration. An inode index and metadata-only
/// copies trust attributes that must not be trusted in layers from elsewhere; redirects of such layers are not followed.
const FIXED_OPTIONS: [(&str, &str); 3] = [("index", "off"), ("metacopy", "off"), ("redirect_dir", "nofollow")];

/// For a writable layer that nobody reads after a power cut: without it the unmount writes out all that is dirty on the file
/// system below, whoever wrote it (Linux 5.10, docs/decisions/036).
const VOLATILE: &str = "volatile";

/// What to mount.
#[derive(Debug, Clone)]
pub struct Overlay {
    /// The read-only layers, topmost first: at least one (two without a writable layer), at most [`MAX_LAYERS`].
    pub lower: Vec<PathBuf>,
    /// Without one the overlay is read-only.
    pub writable: Option<Writable>,
}

/// Where changes go.
#[derive(Debug, Clone)]
pub struct Writable {
    pub upper: PathBuf,
    /// An empty directory on the file system of `upper`.
    pub work: PathBuf,
}

/// Why an overlay is not mounted.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    #[error("an overlay of {0} layers: want 1 to {MAX_LAYERS}")]
    Layers(usize),
    #[error("{}: cannot be opened for an overlay", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{}: its file system cannot show its files with mapped owners", path.display())]
    Map { path: PathBuf, source: io::Error },
    #[error("a mount namespace to make the overlay in cannot be had")]
    Namespace { source: io::Error },
    #[error("overlay option {option}{}", because(kernel))]
    Option { option: String, kernel: String, source: io::Error },
    #[error("the kernel refuses the overlay{}", because(kernel))]
    Create { kernel: String, source: io::Error },
    #[error("{}: the overlay cannot be attached", target.display())]
    Attach { target: PathBuf, source: io::Error },
}

fn because(kernel: &str) -> String {
    if kernel.is_empty() { String::new() } else { format!(" ({kernel})") }
}

impl Overlay {
    /// Mounts on a directory, read-write and without any restricting flag.
    ///
    /// # Errors
    /// [`OverlayError`]; nothing is mounted then.
    pub fn mount(&self, target: &Path) -> Result<(), OverlayError> {
        if takes_layers_one_by_one() { self.mount_with_fsopen(target) } else { self.mount_with_options(target) }
    }

    /// Mounts on a directory with the layers' owners mapped to a user namespace: what an id of a layer owns shows as the
    /// property of the same id inside. The writable layer is not mapped: what is written has the ids of the host on disk.
    /// Linux 5.19, and a file system of the layers that can be mapped. It blocks, for longer the more mounts there are.
    ///
    /// # Errors
    /// [`OverlayError`]; nothing is mounted then.
    pub fn mount_mapped(&self, user_namespace: BorrowedFd<'_>, target: &Path) -> Result<(), OverlayError> {
        let mount = private::in_private_namespace(|| {
            let (mapped, _held) = self.map_owners(user_namespace)?;
            mapped.mount(target)?;
            detached_copy(target)
        });
        let mount = mount.map_err(|source| OverlayError::Namespace { source })??;
        super::attach(mount.as_fd(), target)
            .map_err(|source| OverlayError::Attach { target: target.to_owned(), source })
    }

    /// The same overlay over mapped copies of its lower layers, which must live until it is mounted. To be called, and the result mounted, in a private
    /// namespace: before Linux 6.15 an overlay takes only layers that are mounted somewhere in the namespace, so the
    /// copies are put onto the first layer there, one on top of the other.
    ///
    /// # Errors
    /// [`OverlayError::Open`], [`OverlayError::Map`].
    pub fn map_owners(&self, user_namespace: BorrowedFd<'_>) -> Result<(Self, Vec<OwnedFd>), OverlayError> {
        self.check()?;
        let mut held = Vec::with_capacity(self.lower.len());
        for path in &self.lower {
            let refused = |source| OverlayError::Map { path: path.clone(), source };
            let copy = super::clone_tree(open(path, OFlags::empty())?.as_fd(), false).map_err(refused)?;
            attributes::map_owners(copy.as_fd(), user_namespace, false).map_err(refused)?;
            held.push(copy);
        }
        for copy in &held {
            let target = &self.lower[0];
            super::attach(copy.as_fd(), target)
                .map_err(|source| OverlayError::Attach { target: target.clone(), source })?;
        }
        let lower = held.iter().map(|fd| PathBuf::from(crate::sys::root::magic_path(fd.as_fd()))).collect();
        Ok((Self { lower, writable: self.writable.clone() }, held))
    }

    /// Each layer in a parameter of its own: no page to run out of (Linux 6.7).
    fn mount_with_fsopen(&self, target: &Path) -> Result<(), OverlayError> {
        self.check()?;
        let create = |source: rustix::io::Errno| OverlayError::Create { kernel: String::new(), source: source.into() };
        let config = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(create)?;
        // Paths that do not fit a parameter go by descriptor, which must live until the mount is there.
        let mut held = Vec::new();
        rustix::mount::fsconfig_set_string(&config, "source", "overlay").map_err(create)?;
        for lower in &self.lower {
            set(config.as_fd(), "lowerdir+", lower, &mut held)?;
        }
        if let Some(Writable { upper, work }) = &self.writable {
            set(config.as_fd(), "upperdir", upper, &mut held)?;
            set(config.as_fd(), "workdir", work, &mut held)?;
            rustix::mount::fsconfig_set_flag(&config, VOLATILE).map_err(|source| OverlayError::Option {
                option: VOLATILE.to_owned(),
                kernel: kernel_says(config.as_fd()),
                source: source.into(),
            })?;
        }
        for (key, value) in FIXED_OPTIONS {
            rustix::mount::fsconfig_set_string(&config, key, value).map_err(|source| OverlayError::Option {
                option: format!("{key}={value}"),
                kernel: kernel_says(config.as_fd()),
                source: source.into(),
            })?;
        }
        let created = rustix::mount::fsconfig_create(&config)
            .and_then(|()| rustix::mount::fsmount(&config, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()));
        let mount = created
            .map_err(|source| OverlayError::Create { kernel: kernel_says(config.as_fd()), source: source.into() })?;
        let onto = open(target, OFlags::NOFOLLOW)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(&mount, "", &onto, "", flags)
            .map_err(|source| OverlayError::Attach { target: target.to_owned(), source: source.into() })
    }

    /// All layers in the one page of options that `mount(2)` has: by their paths when these fit, else by the numbers of
    /// their descriptors, from a thread that stands in `/proc/self/fd`.
    fn mount_with_options(&self, target: &Path) -> Result<(), OverlayError> {
        self.check()?;
        let mut fixed: String = FIXED_OPTIONS.iter().fold(String::new(), |mut text, (key, value)| {
            let _ = write!(text, ",{key}={value}");
            text
        });
        let writable = self.writable.as_ref();
        if writable.is_some() && kernel_is_at_least(5, 10) {
            let _ = write!(fixed, ",{VOLATILE}");
        }
        let mut options = by_path(&self.lower, writable.map(|own| (own.upper.as_path(), own.work.as_path())));
        options.extend_from_slice(fixed.as_bytes());
        let special = |path: &Path| path.as_os_str().as_bytes().iter().any(|byte| b":,\\".contains(byte));
        let paths = || self.lower.iter().chain(writable.into_iter().flat_map(|own| [&own.upper, &own.work]));
        if options.len() <= MAX_OPTIONS && !paths().any(|path| special(path)) {
            return classic(target, options);
        }
        let held = paths().map(|path| open(path, OFlags::empty())).collect::<Result<Vec<_>, _>>()?;
        let numbers: Vec<PathBuf> = held.iter().map(|fd| PathBuf::from(fd.as_raw_fd().to_string())).collect();
        let (lower, own) = numbers.split_at(self.lower.len());
        let own = if let [upper, work] = own { Some((upper.as_path(), work.as_path())) } else { None };
        let mut options = by_path(lower, own);
        options.extend_from_slice(fixed.as_bytes());
        let target =
            std::path::absolute(target).map_err(|source| OverlayError::Open { path: target.to_owned(), source })?;
        let mounted = std::thread::scope(|scope| scope.spawn(|| from_descriptors(&target, options)).join());
        drop(held);
        mounted.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn check(&self) -> Result<(), OverlayError> {
        let layers = self.lower.len();
        let least = if self.writable.is_some() { 1 } else { 2 };
        if (least..=MAX_LAYERS).contains(&layers) { Ok(()) } else { Err(OverlayError::Layers(layers)) }
    }
}

/// A detached copy of the mount on a directory, for another namespace than the one it is in.
fn detached_copy(target: &Path) -> Result<OwnedFd, OverlayError> {
    let copied = super::clone_tree(open(target, OFlags::NOFOLLOW)?.as_fd(), false);
    copied.map_err(|source| OverlayError::Attach { target: target.to_owned(), source })
}

fn open(path: &Path, extra: OFlags) -> Result<OwnedFd, OverlayError> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | extra, Mode::empty())
        .map_err(|source| OverlayError::Open { path: path.to_owned(), source: source.into() })
}

fn set(config: BorrowedFd<'_>, key: &str, path: &Path, held: &mut Vec<OwnedFd>) -> Result<(), OverlayError> {
    let bytes = path.as_os_str().as_bytes();
    let done = if bytes.len() <= MAX_PARAMETER && !bytes.iter().any(|byte| b":,\\".contains(byte)) {
        rustix::mount::fsconfig_set_string(config, key, path)
    } else {
        let fd = open(path, OFlags::empty())?;
        let done = rustix::mount::fsconfig_set_string(config, key, crate::sys::root::magic_path(fd.as_fd()));
        held.push(fd);
        done
    };
    done.map_err(|source| OverlayError::Option {
        option: format!("{key}={}", path.display()),
        kernel: kernel_says(config),
        source: source.into(),
    })
}

fn by_path(lower: &[PathBuf], writable: Option<(&Path, &Path)>) -> Vec<u8> {
    let mut options = b"lowerdir=".to_vec();
    for (nth, path) in lower.iter().enumerate() {
        if nth > 0 {
            options.push(b':');
        }
        options.extend_from_slice(path.as_os_str().as_bytes());
    }
    if let Some((upper, work)) = writable {
        options.extend_from_slice(b",upperdir=");
        options.extend_from_slice(upper.as_os_str().as_bytes());
        options.extend_from_slice(b",workdir=");
        options.extend_from_slice(work.as_os_str().as_bytes());
    }
    options
}

fn from_descriptors(target: &Path, options: Vec<u8>) -> Result<(), OverlayError> {
    // The thread gets a working directory of its own; nobody else's changes.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)
        .map_err(|source| OverlayError::Create { kernel: "unshare".to_owned(), source: source.into() })?;
    rustix::process::chdir("/proc/self/fd")
        .map_err(|source| OverlayError::Open { path: PathBuf::from("/proc/self/fd"), source: source.into() })?;
    classic(target, options)
}

fn classic(target: &Path, options: Vec<u8>) -> Result<(), OverlayError> {
    let refused = |source| OverlayError::Create { kernel: String::new(), source };
    let options = CString::new(options).map_err(|error| refused(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    rustix::mount::mount("overlay", target, "overlay", MountFlags::empty(), options.as_c_str())
        .map_err(|source| refused(source.into()))
}

/// What the kernel wrote into the log of a file system context, in one line of at most 1 KiB.
fn kernel_says(config: BorrowedFd<'_>) -> String {
    let mut said = String::new();
    let mut message = [0; 512];
    while said.len() < 1024 {
        let Ok(length) = rustix::io::read(config, &mut message) else { break };
        if length == 0 {
            break;
        }
        if !said.is_empty() {
            said.push_str("; ");
        }
        said.push_str(String::from_utf8_lossy(&message[..length]).trim());
    }
    said
}

/// Whether the kernel knows `lowerdir+`: since 6.7.
fn takes_layers_one_by_one() -> bool {
    kernel_is_at_least(6, 7)
}

fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    let name = rustix::system::uname();
    at_least(&name.release().to_string_lossy(), major, minor)
}

fn at_least(release: &str, major: u32, minor: u32) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_compare_by_number() {
        for (release, want) in
            [("6.18.44-fc", true), ("6.7.0", true), ("6.6.99", false), ("6.1.0-13", false), ("10.0", true)]
        {
            assert_eq!(at_least(release, 6, 7), want, "{release}");
        }
    }

    #[test]
    #[ignore = "needs root"]
    fn two_hundred_layers_mount_both_ways() -> anyhow::Result<()> {
        for (way, folder) in [(true, "plain"), (false, "plain"), (true, "co:lon,\\"), (false, "co:lon,\\")] {
            std::thread::spawn(move || two_hundred(way, folder)).join().expect("the thread ends")?;
        }
        Ok(())
    }

    fn two_hundred(new: bool, folder: &str) -> anyhow::Result<()> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
        super::super::make_private(Path::new("/"), true)?;
        let temp = tempfile::tempdir()?;
        let base = temp.path().join(folder);
        let lower: Vec<PathBuf> = (0..200).map(|n| base.join(format!("{n}-{}", "x".repeat(60)))).collect();
        for (n, path) in lower.iter().enumerate() {
            std::fs::create_dir_all(path)?;
            std::fs::write(path.join("top"), n.to_string())?;
            std::fs::write(path.join(format!("own{n}")), "")?;
        }
        let (upper, work) = (base.join("upper"), base.join("work"));
        let target = temp.path().join("target");
        for path in [&upper, &work, &target] {
            std::fs::create_dir(path)?;
        }
        let overlay = Overlay { lower, writable: Some(Writable { upper: upper.clone(), work: work.clone() }) };
        if new {
            overlay.mount_with_fsopen(&target)?
        } else {
            overlay.mount_with_options(&target)?
        }
        assert_eq!(std::fs::read_to_string(target.join("top"))?, "0", "the first layer is the topmost");
        assert_eq!(std::fs::read_dir(&target)?.count(), 201);
        std::fs::write(target.join("written"), "")?;
        assert!(upper.join("written").exists());
        // The mark by which the kernel knows such a layer (its Documentation/filesystems/overlayfs.rst).
        assert!(work.join("work/incompat/volatile").exists(), "the layer is volatile");
        assert!(super::super::detach(&target)?);
        Ok(())
    }
}
