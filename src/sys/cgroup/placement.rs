//! Names: from the CRI's `cgroup_parent` to the `cgroupsPath` that an OCI runtime takes, and to the folder to read.
//!
//! With the cgroupfs driver a runtime takes a path, `/kubepods/pod1/cricket-<id>`. With the systemd driver it takes
//! `slice:prefix:name` and asks systemd for the scope `cricket-<id>.scope` in that slice; systemd derives the slice's
//! folder from the dashes in its name (systemd.slice(5)).

use std::path::Path;

/// Who makes the container's cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    Cgroupfs,
    Systemd,
}

/// What containers' cgroups begin with, in both drivers.
const PREFIX: &str = "cricket";

/// Longest parent, in bytes: with a container's name behind it this stays below the kernel's PATH_MAX.
const MAX_PARENT: usize = 3072;

/// The kernel's NAME_MAX.
const MAX_NAME: usize = 255;

/// An absolute name below the hierarchies' mount points: no `.` or `..`, no empty parts, not the root itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CgroupPath(String);

/// A parent whose containers can be named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    driver: Driver,
    /// cgroupfs: an absolute path, or empty for the root. systemd: a slice's bare name.
    parent: String,
}

/// A name that was refused, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    #[error("cgroup parent {value:?} is longer than {MAX_PARENT} bytes or one of its parts longer than {MAX_NAME}")]
    TooLong { value: String },
    #[error("cgroup parent {value:?} is not an absolute path")]
    Relative { value: String },
    #[error("cgroup parent {value:?} contains {found:?}")]
    Forbidden { value: String, found: &'static str },
    #[error("cgroup parent {value:?} must end in a systemd slice (name.slice), as the systemd cgroup driver is in use")]
    NotASlice { value: String },
    #[error("{value:?} does not name a cgroup below the root")]
    Root { value: String },
    #[error("{value:?} is not a container id that can name a cgroup")]
    Id { value: String },
}

impl CgroupPath {
    /// Checks an absolute path. Doubled and trailing slashes are dropped.
    ///
    /// # Errors
    /// [`PlacementError`] for a relative path, `..`, control characters, overlong parts, and for the root.
    pub fn new(path: &str) -> Result<Self, PlacementError> {
        let clean = clean(path)?;
        if clean.is_empty() { Err(PlacementError::Root { value: shown(path) }) } else { Ok(Self(clean)) }
    }

    /// The folder of what a runtime was given as `cgroupsPath`: a path, or systemd's `slice:prefix:name`.
    ///
    /// # Errors
    /// [`PlacementError`] when the text is neither.
    pub fn from_runtime(cgroups_path: &str) -> Result<Self, PlacementError> {
        if cgroups_path.starts_with('/') {
            return Self::new(cgroups_path);
        }
        let mut parts = cgroups_path.split(':');
        let (Some(slice), Some(prefix), Some(name), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(PlacementError::Relative { value: shown(cgroups_path) });
        };
        Self::new(&format!("{}/{prefix}-{name}.scope", expand_slice(slice)?))
    }

    /// The text, with its leading slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl Placement {
    /// Checks a parent that came from a client; an empty one means `default` (the configuration's). With systemd only the
    /// last part of a path counts, and a bare slice name is taken as well.
    ///
    /// # Errors
    /// [`PlacementError`] naming the value.
    pub fn new(driver: Driver, cgroup_parent: &str, default: &str) -> Result<Self, PlacementError> {
        let given = if cgroup_parent.is_empty() { default } else { cgroup_parent };
        let parent = match driver {
            Driver::Cgroupfs => clean(given)?,
            Driver::Systemd => {
                let path = if given.contains('/') { given.to_owned() } else { format!("/{given}") };
                let clean = clean(&path)?;
                let slice = clean.rsplit('/').next().unwrap_or_default();
                expand_slice(slice).map_err(|_| PlacementError::NotASlice { value: shown(given) })?;
                slice.to_owned()
            }
        };
        Ok(Self { driver, parent })
    }

    /// The parent itself.
    ///
    /// # Errors
    /// [`PlacementError::Root`] when the parent is the root cgroup (`/`, or `-.slice`).
    pub fn parent(&self) -> Result<CgroupPath, PlacementError> {
        match self.driver {
            Driver::Cgroupfs if self.parent.is_empty() => Err(PlacementError::Root { value: "/".to_owned() }),
            Driver::Cgroupfs => CgroupPath::new(&self.parent),
            Driver::Systemd => CgroupPath::new(&expand_slice(&self.parent)?),
        }
    }

    /// The `linux.cgroupsPath` of a container.
    ///
    /// # Errors
    /// [`PlacementError::Id`] when the id has other characters than letters, digits, `_`, `.` and `-`, or is too long.
    pub fn cgroups_path(&self, id: &str) -> Result<String, PlacementError> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        if id.is_empty() || id.len() > 200 || !id.bytes().all(legal) {
            return Err(PlacementError::Id { value: shown(id) });
        }
        Ok(Self::container_name(self.driver, &self.parent, id))
    }

    pub(super) fn container_name(driver: Driver, parent: &str, id: &str) -> String {
        match driver {
            Driver::Cgroupfs => format!("{}/{PREFIX}-{id}", parent.trim_end_matches('/')),
            Driver::Systemd => format!("{parent}:{PREFIX}:{id}"),
        }
    }

    /// As the driver wants it; the root is written `/`.
    pub(super) fn into_parent(self) -> String {
        if self.parent.is_empty() { "/".to_owned() } else { self.parent }
    }

    /// The folder of a container.
    ///
    /// # Errors
    /// As [`Self::cgroups_path`].
    pub fn container(&self, id: &str) -> Result<CgroupPath, PlacementError> {
        CgroupPath::from_runtime(&self.cgroups_path(id)?)
    }
}

/// An absolute path without empty parts; empty for the root.
fn clean(path: &str) -> Result<String, PlacementError> {
    let value = || shown(path);
    if !path.starts_with('/') {
        return Err(PlacementError::Relative { value: value() });
    }
    if path.bytes().any(|b| b == 0) {
        return Err(PlacementError::Forbidden { value: value(), found: "NUL" });
    }
    if path.chars().any(char::is_control) {
        return Err(PlacementError::Forbidden { value: value(), found: "a control character" });
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    if path.len() > MAX_PARENT || parts.iter().any(|part| part.len() > MAX_NAME) {
        return Err(PlacementError::TooLong { value: value() });
    }
    for (part, found) in [("..", ".."), (".", "a part that is only a dot")] {
        if parts.contains(&part) {
            return Err(PlacementError::Forbidden { value: value(), found });
        }
    }
    Ok(parts.iter().fold(String::new(), |path, part| path + "/" + part))
}

/// `a-b.slice` lies in `a.slice`: every prefix that ends before a dash is a parent. `-.slice` is the root.
fn expand_slice(slice: &str) -> Result<String, PlacementError> {
    let refused = || PlacementError::NotASlice { value: shown(slice) };
    let stem = slice.strip_suffix(".slice").filter(|stem| !stem.is_empty()).ok_or_else(refused)?;
    if stem == "-" {
        return Ok(String::new());
    }
    if stem.contains(['/', ':']) || stem.split('-').any(str::is_empty) {
        return Err(refused());
    }
    let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
    Ok(ends.fold(String::new(), |path, end| format!("{path}/{}.slice", &stem[..end])))
}

/// A client's text in an error: no longer than a line.
fn shown(value: &str) -> String {
    value.chars().take(256).collect()
}
