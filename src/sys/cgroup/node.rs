//! The node's cgroups by the names that an OCI runtime is given: what the rooms above ask for.

use std::path::Path;
use std::time::Duration;

use super::{Cgroup, CgroupError, CgroupLayout, CgroupPath, CgroupVersion, Driver, Placement};

/// How long the processes of a cgroup may take to die.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// The hierarchies of this machine, and who makes cgroups in them.
#[derive(Debug, Clone)]
pub struct Cgroups {
    layout: CgroupLayout,
    driver: Driver,
}

impl Cgroups {
    /// Looks at the machine below `root` (`/` outside tests). Without a driver it is systemd's where systemd is process 1
    /// (sd_booted(3)), else cgroupfs.
    ///
    /// # Errors
    /// As [`CgroupLayout::detect`].
    pub fn detect(root: &Path, driver: Option<Driver>) -> Result<Self, CgroupError> {
        let booted = || if root.join("run/systemd/system").is_dir() { Driver::Systemd } else { Driver::Cgroupfs };
        Ok(Self { layout: CgroupLayout::detect(root)?, driver: driver.unwrap_or_else(booted) })
    }

    /// Whether systemd makes the cgroups.
    #[must_use]
    pub fn is_systemd(&self) -> bool {
        self.driver == Driver::Systemd
    }

    /// The version of the hierarchies; a hybrid is version 1.
    #[must_use]
    pub fn version(&self) -> CgroupVersion {
        self.layout.version()
    }

    /// What is mounted where.
    #[must_use]
    pub fn layout(&self) -> &CgroupLayout {
        &self.layout
    }

    /// Parent of pods that name none, when the configuration names none either.
    #[must_use]
    pub fn default_parent(&self) -> &'static str {
        match self.driver {
            Driver::Cgroupfs => "/cricket",
            Driver::Systemd => "cricket.slice",
        }
    }

    /// Checks a parent that a client gave and writes it as the driver wants it: a clean path, or a slice's bare name.
    ///
    /// # Errors
    /// [`CgroupError::Name`] naming the value.
    pub fn parent(&self, asked: &str) -> Result<String, CgroupError> {
        Ok(Placement::new(self.driver, asked, self.default_parent()).map_err(CgroupError::Name)?.into_parent())
    }

    /// The `linux.cgroupsPath` of a container, from a parent that [`Self::parent`] has written and an id of ours.
    #[must_use]
    pub fn container_path(&self, parent: &str, id: &str) -> String {
        Placement::container_name(self.driver, parent, id)
    }

    /// A container's cgroup.
    ///
    /// # Errors
    /// [`CgroupError::Name`] when the text is no `cgroupsPath`.
    pub fn container(&self, cgroups_path: &str) -> Result<Cgroup, CgroupError> {
        CgroupPath::from_runtime(cgroups_path).map(|path| self.layout.cgroup(&path)).map_err(CgroupError::Name)
    }

    /// The cgroup of a parent, for what a pod has used in all.
    ///
    /// # Errors
    /// [`CgroupError::Name`] when it is the root or no legal parent.
    pub fn parent_cgroup(&self, parent: &str) -> Result<Cgroup, CgroupError> {
        let placement = Placement::new(self.driver, parent, self.default_parent()).map_err(CgroupError::Name)?;
        placement.parent().map(|path| self.layout.cgroup(&path)).map_err(CgroupError::Name)
    }

    /// Whether a parent is there. The root always is.
    #[must_use]
    pub fn exists(&self, parent: &str) -> bool {
        self.parent_cgroup(parent).map_or_else(
            |error| matches!(error, CgroupError::Name(super::PlacementError::Root { .. })),
            |cgroup| cgroup.exists(),
        )
    }

    /// Makes a parent. Slices are left to systemd, which makes them with the first scope in them.
    ///
    /// # Errors
    /// [`CgroupError::Name`], [`CgroupError::Create`], [`CgroupError::Write`].
    pub fn make_parent(&self, parent: &str) -> Result<(), CgroupError> {
        if self.is_systemd() {
            return Ok(());
        }
        self.parent_cgroup(parent)?.create().map(|_| ())
    }

    /// Removes a parent that [`Self::make_parent`] has made, if nothing is in it; says whether it is gone.
    ///
    /// # Errors
    /// [`CgroupError::Name`], [`CgroupError::Remove`].
    pub fn remove_empty(&self, parent: &str) -> Result<bool, CgroupError> {
        if self.is_systemd() {
            return Ok(false);
        }
        self.parent_cgroup(parent)?.remove_if_empty()
    }

    /// The processes of a container, nested cgroups included.
    ///
    /// # Errors
    /// As [`Cgroup::procs`].
    pub fn procs(&self, cgroups_path: &str) -> Result<Vec<i32>, CgroupError> {
        self.container(cgroups_path)?.procs()
    }

    /// Kills every process of a container and waits for their end, at most 10 s. It blocks: for the blocking pool.
    ///
    /// # Errors
    /// As [`Cgroup::kill_all`].
    pub fn kill_all(&self, cgroups_path: &str) -> Result<(), CgroupError> {
        self.container(cgroups_path)?.kill_all(KILL_LIMIT)
    }
}
