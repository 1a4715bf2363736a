//! What a container's mounts are made of, prepared before the runtime runs and out of everybody's sight.
//!
//! The sources of the request's mounts were opened once (`create`); here each becomes a detached mount with the owners and
//! restrictions that the request wants, whatever the runtime knows of such things. They are put on a *shelf*: a tiny file
//! system in a mount namespace that the runtime alone is run in. So
//!
//! * the runtime mounts what was looked at, not what a name leads to by then (CVE-2021-25741);
//! * owner mappings, recursive read-only mounts and contents of images work with every runtime;
//! * the root of a pod's user namespace, which the runtime is by the time it mounts, reaches what it needs, though every
//!   folder of the daemon is closed to it and stays so (CVE-2021-41103, CVE-2024-25621);
//! * nothing of it is left anywhere: the namespace goes with the runtime, the mounts with the container.

use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use cri_proto::runtime::v1::Mount;
use oci_spec::runtime::{Mount as OciMount, Spec};
use rustix::fs::{CWD, Mode, OFlags};

use crate::image::Images;
use crate::spec::mounts::{clean, is_image};
use crate::state::ImageVolume;
use crate::storage::Storage;
use crate::sys::mount;
use crate::sys::mount::attributes::{self, Restrictions};
use crate::sys::mount::private::{Shelved, shelve};
use crate::sys::root::magic_path;

use super::ContainerError;

/// A mount's source on the host, opened.
#[derive(Debug)]
pub(super) struct Source {
    /// Links resolved; for an image, where its content will be.
    pub path: PathBuf,
    /// `None` for an image.
    pub fd: Option<OwnedFd>,
    pub directory: bool,
    /// The target, as it resolves in the image.
    pub place: PathBuf,
}

impl Source {
    /// Opens the source of a mount, symbolic links followed; a missing one is made as a folder, as the field does.
    ///
    /// # Errors
    /// [`ContainerError::MountSource`].
    pub fn open(mount: &Mount, place: PathBuf, shelf: &Path) -> Result<Self, ContainerError> {
        if is_image(mount) {
            return Ok(Self { path: shelf.join("image"), fd: None, directory: true, place });
        }
        let path = PathBuf::from(&mount.host_path);
        let failed =
            |source| ContainerError::MountSource { path: path.clone(), target: mount.container_path.clone(), source };
        if let Err(error) = fs::symlink_metadata(&path) {
            if error.kind() != std::io::ErrorKind::NotFound {
                return Err(failed(error));
            }
            fs::DirBuilder::new().recursive(true).mode(0o755).create(&path).map_err(failed)?;
        }
        let (fd, directory) = open_source(&path).map_err(failed)?;
        // Of what is open, whatever the name leads to by now.
        let path = fs::read_link(magic_path(fd.as_fd())).map_err(failed)?;
        Ok(Self { path, fd: Some(fd), directory, place })
    }
}

/// Names a file or folder without opening what it is: a device or a FIFO is not touched.
fn open_source(path: &Path) -> std::io::Result<(OwnedFd, bool)> {
    let open = |extra| rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC | extra, rustix::fs::Mode::empty());
    // As a folder first: that is what makes an automounter mount.
    match open(OFlags::DIRECTORY) {
        Ok(fd) => Ok((fd, true)),
        Err(rustix::io::Errno::NOTDIR) => Ok((open(OFlags::empty())?, false)),
        Err(error) => Err(error.into()),
    }
}

/// The image of each mount that has one.
///
/// # Errors
/// [`ContainerError::ImageVolume`] for an image that is not present.
pub(super) fn image_volumes(images: &Images, mounts: &[Mount]) -> Result<Vec<ImageVolume>, ContainerError> {
    let mut volumes = Vec::new();
    for (index, mount) in mounts.iter().enumerate().filter(|(_, mount)| is_image(mount)) {
        let reference = mount.image.clone().unwrap_or_default().image;
        let failed = |why: String| ContainerError::ImageVolume {
            index,
            image: reference.clone(),
            target: mount.container_path.clone(),
            why,
        };
        let found = images.find(&reference).map_err(|error| failed(crate::telemetry::chain(&error)))?;
        let image = found.ok_or_else(|| failed("it is not present; pull it first".to_owned()))?;
        let image_ref = image.repo_digests.first().cloned().unwrap_or_else(|| image.id.to_string());
        volumes.push(ImageVolume { image_ref, chain: image.chain.clone() });
    }
    Ok(volumes)
}

/// Everything that a shelf is made from.
pub(super) struct Stage<'a> {
    /// The folder that it is mounted on; see [`super::Resources::shelf`].
    pub shelf: &'a Path,
    pub storage: &'a Storage,
    /// The request's mounts, and the source of each.
    pub mounts: &'a [Mount],
    pub sources: &'a [Source],
    /// The image behind each of the request's mounts that has one, in their order.
    pub volumes: &'a [ImageVolume],
    /// The pod's user namespace. With one, everything goes onto the shelf, the root file system too.
    pub user: Option<BorrowedFd<'a>>,
}

/// Whether the request's mounts cannot be left to a runtime.
pub(super) fn is_needed(mounts: &[Mount]) -> bool {
    mounts.iter().any(|mount| is_image(mount) || mount.recursive_read_only)
}

impl Stage<'_> {
    /// Makes the shelf, and leads the spec to what is on it. Returns the mount namespace.
    ///
    /// # Errors
    /// [`ContainerError::Mount`], [`ContainerError::ImageVolume`], [`ContainerError::Shelf`]; nothing is left behind.
    pub fn build(&self, spec: &mut Spec) -> Result<OwnedFd, ContainerError> {
        let mut shelved = Vec::new();
        for (place, mount) in spec.mounts_mut().iter_mut().flatten().enumerate() {
            if mount.typ().as_deref() != Some("bind") {
                continue;
            }
            let index = self.index_of(mount);
            let (fd, directory) = match (index, self.user) {
                (Some(index), _) => self.requested(index)?,
                (None, Some(_)) => own(mount.source().as_deref().unwrap_or(Path::new("")))?,
                (None, None) => continue,
            };
            let target = mount.destination().clone();
            let options = mount.options_mut().get_or_insert_default();
            if self.user.is_some() {
                restrict_here(fd.as_fd(), options).map_err(|source| ContainerError::Restrict { target, source })?;
            }
            // It is so already, and not every runtime knows the word.
            for option in options.iter_mut().filter(|option| *option == "rro") {
                "ro".clone_into(option);
            }
            let name = place.to_string();
            mount.set_source(Some(self.shelf.join(&name)));
            shelved.push(Shelved { name, mount: fd, directory });
        }
        if let (Some(_), Some(root)) = (self.user, spec.root_mut()) {
            let (mount, directory) = own(root.path())?;
            root.set_path(self.shelf.join("rootfs"));
            shelved.push(Shelved { name: "rootfs".to_owned(), mount, directory });
        }
        Ok(shelve(self.shelf, shelved)?)
    }

    /// Which of the request's mounts this is; `None` for the daemon's own, and for a device's that took the place of one.
    fn index_of(&self, mount: &OciMount) -> Option<usize> {
        let at = |asked: &Mount| clean(&asked.container_path) == *mount.destination();
        let index = self.mounts.iter().position(at)?;
        (mount.source().as_deref() == Some(&*self.sources[index].path)).then_some(index)
    }

    /// The mount that the request asks for at this place.
    fn requested(&self, index: usize) -> Result<(OwnedFd, bool), ContainerError> {
        let asked = &self.mounts[index];
        if is_image(asked) {
            return self.image(index);
        }
        let failed = |what: &'static str| {
            let (path, target) = (PathBuf::from(&asked.host_path), asked.container_path.clone());
            move |source| ContainerError::Mount { index, path, target, what, source }
        };
        let source = &self.sources[index];
        let fd = source.fd.as_ref().ok_or(std::io::ErrorKind::NotFound.into()).map_err(failed("it was not opened"))?;
        let copy = mount::clone_tree(fd.as_fd(), true).map_err(failed("it cannot be mounted"))?;
        let mapped = !asked.uid_mappings.is_empty() || !asked.gid_mappings.is_empty();
        if let (true, Some(user)) = (mapped, self.user) {
            let what = "its file system, or one that is mounted below it, cannot show its files with mapped owners";
            attributes::map_owners(copy.as_fd(), user, true).map_err(failed(what))?;
        }
        if asked.recursive_read_only {
            let what = Restrictions { read_only: true, ..Restrictions::default() };
            let refused = failed("it cannot be made read-only with all that is mounted below it");
            attributes::restrict(copy.as_fd(), what, true).map_err(refused)?;
        }
        Ok((copy, source.directory))
    }

    fn image(&self, index: usize) -> Result<(OwnedFd, bool), ContainerError> {
        let asked = &self.mounts[index];
        let failed = |why: &dyn std::error::Error| ContainerError::ImageVolume {
            index,
            image: asked.image.clone().unwrap_or_default().image,
            target: asked.container_path.clone(),
            why: crate::telemetry::chain(why),
        };
        let before = self.mounts[..index].iter().filter(|mount| is_image(mount)).count();
        let chain = self.volumes.get(before).map(|volume| volume.chain.as_slice()).unwrap_or_default();
        let volume = self.storage.volume(chain, &asked.image_sub_path, self.user).map_err(|error| failed(&error))?;
        let all = Restrictions { read_only: true, no_suid: true, no_dev: true, no_exec: true };
        attributes::restrict(volume.mount.as_fd(), all, false).map_err(|error| failed(&error))?;
        Ok((volume.mount, volume.directory))
    }
}

/// Makes a mount what its options say, and strikes these. In a user namespace a runtime must not change a mount to what lacks
/// a restriction of its source, and runc 1.1 tries to: it names those that the request wants, and no others.
fn restrict_here(mount: BorrowedFd<'_>, options: &mut Vec<String>) -> std::io::Result<()> {
    let mut what = Restrictions::default();
    options.retain(|option| {
        match option.as_str() {
            "ro" | "rro" => what.read_only = true,
            "nosuid" => what.no_suid = true,
            "nodev" => what.no_dev = true,
            "noexec" => what.no_exec = true,
            "rw" => {}
            _ => return true,
        }
        false
    });
    if what == Restrictions::default() { Ok(()) } else { attributes::restrict(mount, what, false) }
}

/// A copy of something that the daemon, or the administrator, has made or mounted.
fn own(path: &Path) -> Result<(OwnedFd, bool), ContainerError> {
    let failed = |source| ContainerError::Bundle { path: path.to_owned(), source };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
    let stat = rustix::fs::fstat(&fd).map_err(|errno| failed(errno.into()))?;
    let directory = crate::sys::root::file_type(&stat) == rustix::fs::FileType::Directory;
    Ok((mount::clone_tree(fd.as_fd(), true).map_err(failed)?, directory))
}
