//! The Container Device Interface: devices by name, described by files that vendors put on the node.
//!
//! ```text
//! request: CDI_devices, annotations ─▶ names ─▶ resolve ─▶ Injection ─▶ spec
//!                                                  ▲
//!            /etc/cdi, /var/run/cdi ─ folder ─ document (one file, JSON or YAML)
//! ```
//!
//! The folders are looked at when a container names a device: a file that has not changed is not read again. The outcome
//! of the last look is published, for the verbose Status. A file that is bad is passed over, named there and in the error
//! of whoever asks for a device that is then missing; it takes no other file down.
//!
//! A device of a later folder replaces the one of the same name in an earlier one; two files of one folder that describe
//! the same device make it ambiguous, and it is refused.

mod document;
mod edits;
mod folder;
mod name;
mod yaml;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;

use self::document::Document;
use super::DeviceError;

pub use edits::{Hook, HookPoint, InjectedNode, Injection, Mount, Rdt};
pub use name::{MAX_NAMES, NameError, QualifiedName, requested};

/// Most changes of one sort that the devices of one container may come to together.
const MAX_INJECTED: usize = 16 * 1024;

/// Files named in one error.
const SHOWN: usize = 8;

/// Why a container cannot have a device.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("CDI device {device}: no file in {searched} describes it{passed_over}")]
    Unresolvable { device: QualifiedName, searched: String, passed_over: String },
    #[error("CDI device {device}: {first} and {second} both describe it", first = first.display(), second = second.display())]
    Conflict { device: QualifiedName, first: PathBuf, second: PathBuf },
    #[error("CDI device {device}: {what} cannot be given to a container by this runtime", what = what.join(", "))]
    Unsupported { device: QualifiedName, what: Vec<&'static str> },
    #[error("CDI device {device}")]
    Node { device: QualifiedName, source: DeviceError },
    #[error("CDI devices: more than {MAX_INJECTED} {what} in all")]
    TooMany { what: &'static str },
}

/// What the last look at the folders found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    pub dirs: Vec<PathBuf>,
    /// Devices that can be had, over all files.
    pub devices: usize,
    /// Files and folders that could not be used, and why.
    pub bad: Vec<(PathBuf, String)>,
}

/// The node's CDI devices.
#[derive(Debug)]
pub struct Cdi {
    /// From the least to the most important.
    dirs: ArcSwap<Vec<PathBuf>>,
    files: ArcSwap<folder::Files>,
    report: ArcSwap<Report>,
}

impl Cdi {
    /// Does no I/O.
    #[must_use]
    pub fn new(dirs: Vec<PathBuf>) -> Self {
        Self { dirs: ArcSwap::from_pointee(dirs), files: ArcSwap::default(), report: ArcSwap::default() }
    }

    /// Other folders from now on.
    pub fn set_dirs(&self, dirs: Vec<PathBuf>) {
        self.dirs.store(Arc::new(dirs));
    }

    /// What the last look found. Never waits.
    #[must_use]
    pub fn report(&self) -> Arc<Report> {
        self.report.load_full()
    }

    /// Looks at the folders. It reads disks: call it from the blocking pool.
    pub fn refresh(&self) {
        let _ = self.look();
    }

    /// What these devices change in a container's spec: in their order, each after what its file wants for all of its
    /// devices, which comes once. It reads disks: call it from the blocking pool.
    ///
    /// # Errors
    /// [`CdiError`], naming the device.
    pub fn resolve(&self, names: &[QualifiedName]) -> Result<Injection, CdiError> {
        let mut injection = Injection::default();
        if names.is_empty() {
            return Ok(injection);
        }
        let found = self.look();
        let mut seen: BTreeSet<PathBuf> = BTreeSet::new();
        for name in names {
            let (path, document) = found.device(name, &self.report())?;
            let own = document.devices.get(&name.device).into_iter();
            let shared = seen.insert(path.clone()).then_some(&document.edits);
            for edits in shared.into_iter().chain(own) {
                if !edits.unsupported.is_empty() {
                    return Err(CdiError::Unsupported { device: name.clone(), what: edits.unsupported.clone() });
                }
                injection.add(edits).map_err(|source| CdiError::Node { device: name.clone(), source })?;
            }
            bounded(&injection)?;
        }
        Ok(injection)
    }

    fn look(&self) -> Found {
        let dirs = self.dirs.load_full();
        let (files, bad_dirs) = folder::read(&dirs, &self.files.load());
        let found = Found::of(&dirs, &files);
        let bad_files =
            files.iter().filter_map(|(path, file)| Some((path.clone(), file.content.as_ref().err()?.clone())));
        let mut bad: Vec<_> = bad_dirs.into_iter().chain(bad_files).collect();
        for (device, place) in &found.devices {
            if let Some(other) = &place.conflict {
                bad.push((place.path.clone(), format!("device {device} is in {}, too", other.display())));
            }
        }
        let devices = found.devices.values().filter(|place| place.conflict.is_none()).count();
        self.report.store(Arc::new(Report { dirs: dirs.to_vec(), devices, bad }));
        self.files.store(Arc::new(files));
        found
    }
}

fn bounded(injection: &Injection) -> Result<(), CdiError> {
    for (what, count) in [
        ("variables", injection.env.len()),
        ("device nodes", injection.nodes.len()),
        ("mounts", injection.mounts.len()),
        ("hooks", injection.hooks.len()),
        ("groups", injection.additional_gids.len()),
    ] {
        if count > MAX_INJECTED {
            return Err(CdiError::TooMany { what });
        }
    }
    Ok(())
}

/// Where each device is described.
#[derive(Debug, Default)]
struct Found {
    devices: BTreeMap<QualifiedName, Place>,
}

#[derive(Debug)]
struct Place {
    path: PathBuf,
    document: Arc<Document>,
    /// Another file of the same folder.
    conflict: Option<PathBuf>,
}

impl Found {
    fn of(dirs: &[PathBuf], files: &folder::Files) -> Self {
        let mut devices: BTreeMap<QualifiedName, Place> = BTreeMap::new();
        for dir in dirs {
            for (path, file) in files.iter().filter(|(path, _)| path.parent() == Some(dir)) {
                let Ok(document) = &file.content else { continue };
                for device in document.devices.keys() {
                    let name = QualifiedName { kind: document.kind.clone(), device: device.clone() };
                    match devices.get_mut(&name) {
                        Some(place) if place.path.parent() == Some(dir) => place.conflict = Some(path.clone()),
                        _ => {
                            let place = Place { path: path.clone(), document: document.clone(), conflict: None };
                            devices.insert(name, place);
                        }
                    }
                }
            }
        }
        Self { devices }
    }

    fn device(&self, name: &QualifiedName, report: &Report) -> Result<(&PathBuf, &Document), CdiError> {
        match self.devices.get(name) {
            Some(Place { path, conflict: Some(second), .. }) => {
                Err(CdiError::Conflict { device: name.clone(), first: path.clone(), second: second.clone() })
            }
            Some(place) => Ok((&place.path, &place.document)),
            None => Err(CdiError::Unresolvable {
                device: name.clone(),
                searched: joined(report.dirs.iter().map(|dir| dir.display().to_string())),
                passed_over: match report.bad.len() {
                    0 => String::new(),
                    count => {
                        let shown = report.bad.iter().take(SHOWN);
                        let shown = joined(shown.map(|(path, why)| format!("{}: {why}", path.display())));
                        format!("; {count} could not be used ({shown})")
                    }
                },
            }),
        }
    }
}

fn joined(parts: impl Iterator<Item = String>) -> String {
    let parts: Vec<_> = parts.collect();
    if parts.is_empty() { "no folder".to_owned() } else { parts.join(", ") }
}
