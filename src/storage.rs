//! Layers on disk and the overlay mounts made from them.
//!
//! ```text
//! <images>/staging/<n>/{diff/, layer.json}      a layer being unpacked, or being removed: swept at start
//! <images>/layers/<hex chain id>/{diff/, layer.json, skeleton.zst, replaced/}
//! <images>/empty/                               what an image without layers is mounted from
//! <containers>/<container id>/{upper/, work/}
//! ```
//!
//! A layer is unpacked into `staging`, made durable, given its marker `layer.json`, and renamed into `layers`: so one in
//! `layers` with a marker is whole, also after a power cut, and anything else is swept when the store is opened. After
//! that a layer never changes. Which layers exist is known in memory; the disk is only looked at when the store opens.
//!
//! Everything here blocks: call it through [`crate::task::blocking`]. No lock is held over the network, over unpacking, or
//! over removing a tree. Lists of chain ids are in the order of the image configuration: the base layer first.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::sys::root::Root;

mod digest;
mod early;
mod error;
mod kept;
mod layers;
mod lease;
mod merged;
mod removal;
mod reuse;
mod rootfs;
mod skeleton;
mod unpack;
mod usage;
mod verify;
mod volume;
mod whiteouts;

#[cfg(test)]
pub(crate) mod tests;

pub use digest::{Digest, DigestError, Hasher};
pub use error::StorageError;
pub use kept::KeptLayer;
pub use layers::{RemovedLayers, StagedLayer};
pub use lease::LayerLease;
pub use merged::PathKind;
pub use rootfs::Viewer;
pub use unpack::{Compression, Limits, UnpackError};
pub use usage::Usage;
pub use verify::{Finding, Report};
pub use volume::Volume;

/// Where things are kept. Both directories are made with mode 0700, and belong to one daemon alone.
#[derive(Debug, Clone)]
pub struct StorageOptions {
    pub images: PathBuf,
    /// On a file system that an overlay can write to: not itself an overlay.
    pub containers: PathBuf,
}

/// The layer store. Clones are the same store.
#[derive(Debug, Clone)]
pub struct Storage(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: StorageOptions,
    layers: Root,
    staging: Root,
    early: early::Early,
    containers: Root,
    state: Mutex<State>,
    /// Held while names in `layers` change, so that a commit and a removal of one layer cannot cross.
    renaming: Mutex<()>,
    next: AtomicU64,
    freed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    layers: HashMap<Digest, layers::Known>,
    /// Those in staging whose archives can be had again; some may be gone.
    staged: Vec<layers::InStaging>,
    leases: HashMap<Digest, usize>,
    /// Layers that the last removal would have taken, had they not been leased.
    spared: HashSet<Digest>,
}

impl Storage {
    /// Opens the store, makes its directories, and sweeps what a crash left: all in staging, and each layer whose marker
    /// is missing or does not parse. What cannot be removed is told of and stays: it is in nobody's way.
    ///
    /// # Errors
    /// [`StorageError::Directory`] when a directory cannot be made or listed.
    pub fn open(options: StorageOptions) -> Result<Self, StorageError> {
        let make = |path: &Path| {
            Root::make(path, 0o700).map_err(|source| StorageError::directory(path, "cannot be made", source))
        };
        make(&options.images)?;
        let inner = Inner {
            layers: make(&options.images.join("layers"))?,
            staging: make(&options.images.join("staging"))?,
            containers: make(&options.containers)?,
            early: early::Early::new(options.images.clone()),
            options,
            state: Mutex::default(),
            renaming: Mutex::default(),
            next: AtomicU64::new(0),
            freed: Arc::default(),
        };
        make(&inner.empty())?;
        inner.sweep_staging()?;
        inner.load()?;
        Ok(Self(Arc::new(inner)))
    }

    /// Has each so many unpacked bytes written early, in place of a portion that tests do not reach.
    #[cfg(test)]
    pub(crate) fn write_early_each(&self, bytes: u64) {
        self.0.early.each(bytes);
    }

    /// Whether the layer is here, whole and durable.
    #[must_use]
    pub fn has_layer(&self, chain: &Digest) -> bool {
        self.0.state().layers.contains_key(chain)
    }

    /// What a layer occupies, as counted when it was unpacked.
    #[must_use]
    pub fn layer_size(&self, chain: &Digest) -> Option<Usage> {
        self.0.state().layers.get(chain).map(|known| known.usage)
    }

    /// What all layers occupy: a sum of known figures, no walk.
    #[must_use]
    pub fn images_usage(&self) -> Usage {
        self.0.state().layers.values().fold(Usage::default(), |sum, known| sum.plus(known.usage))
    }

    /// Keeps layers from being removed until the lease is dropped.
    ///
    /// # Errors
    /// [`StorageError::Missing`] when one of them is not here; none is leased then.
    pub fn lease(&self, chains: &[Digest]) -> Result<LayerLease, StorageError> {
        let mut state = self.0.state();
        if let Some(missing) = chains.iter().find(|chain| !state.layers.contains_key(chain)) {
            return Err(StorageError::Missing { chain: missing.clone() });
        }
        Ok(LayerLease::new(&self.0, &mut state, chains))
    }

    /// Like [`Storage::lease`] for layers that may not be here yet. A pull holds one from its start until its image is
    /// recorded, so that a removal in between takes none of its layers.
    pub fn reserve(&self, chains: &[Digest]) -> LayerLease {
        LayerLease::new(&self.0, &mut self.0.state(), chains)
    }

    /// Is notified when the last lease is given back of a layer that a removal left for it: the next one can take that.
    #[must_use]
    pub fn freed(&self) -> Arc<Notify> {
        Arc::clone(&self.0.freed)
    }

    /// Removes every layer that is neither in `keep` nor leased or reserved.
    ///
    /// # Errors
    /// [`StorageError::Layer`] for the first layer that cannot be removed; the others are.
    pub fn remove_unleased(&self, keep: &HashSet<Digest>) -> Result<RemovedLayers, StorageError> {
        self.0.remove_unleased(keep)
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change of the state is one insertion or removal: a panic elsewhere leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn empty(&self) -> PathBuf {
        self.options.images.join("empty")
    }

    /// A name in staging that was not used since the store was opened.
    fn staging_number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn sweep_staging(&self) -> Result<(), StorageError> {
        let path = self.options.images.join("staging");
        for name in names(&self.staging, &path)? {
            if let Err(error) = removal::remove_tree(self.staging.as_fd(), name.as_ref()) {
                tracing::warn!(path = %path.join(&name).display(), %error, "what a crash left cannot be removed");
                let taken = name.parse().unwrap_or(0_u64);
                self.next.fetch_max(taken.saturating_add(1), Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// The names in one of the store's own directories; those that are not text are not the store's, and left out.
fn names(root: &Root, path: &Path) -> Result<Vec<String>, StorageError> {
    let unlisted = |source: rustix::io::Errno| StorageError::directory(path, "cannot be listed", source.into());
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(root).map_err(unlisted)? {
        let entry = entry.map_err(unlisted)?;
        match entry.file_name().to_str() {
            Ok("." | "..") | Err(_) => {}
            Ok(name) => names.push(name.to_owned()),
        }
    }
    Ok(names)
}
