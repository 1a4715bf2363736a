//! Images: names, registries, pulls, the image database, import.
//!
//! ```text
//!   pull ──▶ flights ──▶ resolve ──▶ download ──▶ layer store     (one task a pull, one a layer)
//!               │           │            │
//!               │       registry: HTTP, auth, retries, mirrors
//!               ▼
//!             table: documents ▸ records ▸ published snapshot ──▶ list, find, status: no lock, no disk
//! ```
//!
//! What holds here:
//! * An image's id is the digest of its config; all names that lead to it are on one record.
//! * An image is visible when, and only when, its layers, documents and record are durable (in that order).
//! * Documents are kept byte for byte; nothing that has a digest is ever written anew.
//! * Layers are freed by one collector. A pull holds a lease on the layers that it counts on from before it looks for them
//!   until its record is in the table, and gives it back between two collections, never during one.

mod artifact;
mod blobs;
pub mod config;
mod copies;
mod database;
pub mod document;
pub mod error;
mod explain;
mod export;
mod find;
mod flights;
mod hold;
mod import;
mod kept;
pub mod layers;
mod pins;
pub mod platform;
pub mod policy;
mod pull;
mod record;
pub mod reference;
pub mod registries;
pub mod registry;
mod rules;
mod stamps;
mod table;
mod trust;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use cri_proto::runtime::v1::AuthConfig;
use tokio::sync::{Notify, Semaphore};

pub use config::{ImageConfig, ImageUser, UserError};
pub use error::{ErrorKind, ImageError};
pub use explain::{Explanation, Step};
pub use export::{ExportError, Packed, Target, export};
pub use hold::{HeldImage, Hold};
pub use kept::{KeptError, KeptImage, Problem, State, verify};
pub use layers::LayerStore;
pub use record::ImageRecord;

use self::flights::Flights;
use self::layers::{Lease, Usage};
use self::pins::Pins;
use self::platform::Platform;
use self::pull::{LayerResult, PullKey, Turns};
use self::reference::Reference;
use self::registry::Patience;
use self::registry::auth::Credentials;
use self::rules::Rules;
use self::table::{Addition, Table};
use crate::config::Image as ImageSettings;
use crate::storage::Digest;
use crate::sys::host;
use crate::task;

/// Where images live and how they are pulled.
#[derive(Debug, Clone)]
pub struct ImagesOptions {
    /// `<root>/images`; made when absent.
    pub root: PathBuf,
    pub config: ImageSettings,
}

/// What to pull.
#[derive(Debug, Clone)]
pub struct PullRequest {
    pub reference: String,
    pub auth: Option<AuthConfig>,
    /// The pod's namespace, when the kubelet gives one.
    pub namespace: Option<String>,
}

/// The image file system, as last measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsUsage {
    pub mountpoint: PathBuf,
    pub bytes: u64,
    pub inodes: u64,
    /// When it was measured, since 1970.
    pub timestamp_ns: i64,
}

/// The images of this node. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Images(Arc<Inner>);

#[derive(Debug)]
struct Settings {
    patience: Patience,
    platform: Platform,
    /// Logins of the node, and of namespaces.
    auth_file: PathBuf,
    auth_dir: PathBuf,
    unnamed_signatures: bool,
}

struct Inner {
    root: PathBuf,
    layers: Arc<dyn LayerStore>,
    table: Table,
    rules: Rules,
    settings: ArcSwap<Settings>,
    downloads: Semaphore,
    pulls: Flights<PullKey, Result<Arc<ImageRecord>, ImageError>>,
    /// By chain id.
    layer_flights: Flights<Digest, LayerResult>,
    /// By diff id, over all chains.
    turns: Turns,
    /// Held by the collector; leases whose records are in the table are given back under it.
    collector: Mutex<()>,
    usage: ArcSwap<FsUsage>,
    notes: Vec<String>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Images {
    /// Opens the image store. What a crash left over is removed; what is damaged is dropped and named in [`Images::notes`].
    ///
    /// # Errors
    /// [`ImageError::Registries`] for a `registries.conf` that cannot be used, [`ImageError::Disk`] and
    /// [`ImageError::Database`] when the disk refuses or another daemon has the database open.
    pub async fn open(options: ImagesOptions, storage: Arc<dyn LayerStore>) -> Result<Self, ImageError> {
        let freed = storage.freed();
        let opened = task::blocking(move || Self::open_blocking(options, storage)).await?;
        task::spawn("image-freed", collect_freed(Arc::downgrade(&opened.0), freed));
        Ok(opened)
    }

    fn open_blocking(options: ImagesOptions, layers: Arc<dyn LayerStore>) -> Result<Self, ImageError> {
        let ImagesOptions { root, config } = options;
        let rules = Rules::open(&config)?;
        let (table, notes) = Table::open(&root, Pins::new(&config.pinned), layers.as_ref())?;
        import::sweep(&root)?;
        for note in &notes {
            tracing::warn!("{note}");
        }
        let usage = FsUsage { mountpoint: root.clone(), bytes: 0, inodes: 0, timestamp_ns: host::now_ns() };
        let downloads = usize::try_from(config.max_concurrent_downloads.max(1)).unwrap_or(1);
        let inner = Inner {
            root,
            layers,
            table,
            rules,
            settings: ArcSwap::from_pointee(Settings::of(&config)),
            downloads: Semaphore::new(downloads.min(Semaphore::MAX_PERMITS)),
            pulls: Flights::default(),
            layer_flights: Flights::default(),
            turns: Turns::default(),
            collector: Mutex::new(()),
            usage: ArcSwap::from_pointee(usage),
            notes,
        };
        inner.collect();
        Ok(Self(Arc::new(inner)))
    }

    /// What was found damaged when the store was opened, one sentence each.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.0.notes
    }

    /// All images in the order of their ids, or the one that `filter` leads to. No lock, no disk.
    #[must_use]
    pub fn list(&self, filter: Option<&str>) -> Vec<Arc<ImageRecord>> {
        match filter.filter(|text| !text.is_empty()) {
            None => self.0.table.snapshot().by_id.values().cloned().collect(),
            Some(text) => self.find(text).ok().flatten().into_iter().collect(),
        }
    }

    /// The image of an id (with or without `sha256:`, whole or a unique beginning) or a name (`name`, `name:tag`,
    /// `name@digest`, `name:tag@digest`: the digest decides). No lock, no disk.
    ///
    /// # Errors
    /// [`ImageError::Ambiguous`] names the candidates; [`ImageError::Reference`] when it is neither.
    pub fn find(&self, reference: &str) -> Result<Option<Arc<ImageRecord>>, ImageError> {
        find::find(&self.0.table.snapshot(), &self.0.rules.clients().registries(), reference)
    }

    /// Pulls an image, or joins the same pull in flight. It goes on while anybody waits for it.
    ///
    /// # Errors
    /// Any [`ImageError`]; one whose text begins with `RegistryUnavailable: ` when no registry could be reached.
    pub async fn pull(&self, request: PullRequest) -> Result<Arc<ImageRecord>, ImageError> {
        // Without regard to other places that a short name may stand for: the kubelet chose the credentials for this one.
        let plain = Reference::parse(&request.reference)?;
        let namespace = request.namespace.filter(|namespace| !namespace.is_empty());
        namespace.as_deref().map_or(Ok(()), rules::check_namespace)?;
        let credentials = match &request.auth {
            None => None,
            Some(auth) => Credentials::from_cri(auth, plain.host())
                .map_err(|reason| ImageError::Credentials(plain.name(), reason))?,
        };
        let inner = self.0.clone();
        task::blocking(move || inner.rules.refresh()).await;
        let names = self.0.rules.clients().registries().names_to_pull(&request.reference)?;
        let name = plain.to_string();
        let key = PullKey { names, credentials, namespace };
        let (inner, work) = (self.0.clone(), key.clone());
        let mut waiter = self.0.pulls.join("image-pull", key, move || pull::run(inner, work));
        waiter.wait().await.unwrap_or(Err(ImageError::Lost { reference: name }))
    }

    /// Removes the image that an id or name leads to, with all its names. It is gone for every reader when this returns;
    /// its layers are freed afterwards, unless a container or another image holds them. Unknown images are no error.
    ///
    /// # Errors
    /// [`ImageError::Ambiguous`], [`ImageError::Reference`], or the disk refuses.
    pub async fn remove(&self, reference: &str) -> Result<(), ImageError> {
        let Some(record) = self.find(reference)? else { return Ok(()) };
        let inner = self.0.clone();
        // All of it in one piece, which a caller who hangs up does not cut short.
        task::blocking(move || {
            let removed = inner.table.remove(&record.id);
            task::spawn("image-collect", task::blocking(move || inner.collect()));
            removed
        })
        .await
    }

    /// Sentences about files of registries, policies and certificates that cannot be used as they are now.
    #[must_use]
    pub fn unusable_files(&self) -> Arc<Vec<String>> {
        self.0.rules.bad()
    }

    /// Sentences about keys of those files that are not known here and have no effect.
    #[must_use]
    pub fn unknown_keys(&self) -> Arc<Vec<String>> {
        self.0.rules.unknown()
    }

    /// What a pull of a name would ask, in order, and why. Nothing is sent. Blocks for some file reads.
    ///
    /// # Errors
    /// Those of [`Images::pull`] that come before anybody is asked.
    pub fn explain(&self, reference: &str, namespace: Option<&str>) -> Result<Vec<Explanation>, ImageError> {
        namespace.map_or(Ok(()), rules::check_namespace)?;
        self.0.rules.refresh();
        explain::explain(&self.0, reference, namespace)
    }

    /// The file system of images, as measured after the last change.
    #[must_use]
    pub fn fs_usage(&self) -> FsUsage {
        self.0.usage.load().as_ref().clone()
    }

    /// Imports the images of an OCI layout (a folder or a tar, gzip or not) or of a `docker save` archive.
    /// `name` is given to the image when there is just one.
    ///
    /// # Errors
    /// [`ImageError::Archive`], [`ImageError::Content`], [`ImageError::Unpack`], or the disk refuses.
    pub async fn import(&self, source: &Path, name: Option<&str>) -> Result<Vec<Arc<ImageRecord>>, ImageError> {
        let name = name.map(Reference::parse).transpose()?;
        let (inner, source) = (self.0.clone(), source.to_owned());
        task::blocking(move || import::run(&inner, &source, name.as_ref())).await
    }

    /// Puts a new configuration in force: `registries.conf` and certificates are read anew, pins and clocks change.
    /// `max_concurrent_downloads` needs a restart. Blocks for some file reads.
    ///
    /// # Errors
    /// [`ImageError::Registries`]: the old rules then stay in force.
    pub fn reload(&self, config: &ImageSettings) -> Result<(), ImageError> {
        self.0.rules.reload(config)?;
        self.0.settings.store(Arc::new(Settings::of(config)));
        self.0.table.repin(Pins::new(&config.pinned));
        Ok(())
    }
}

impl Settings {
    fn of(config: &ImageSettings) -> Self {
        let progress = Duration::from_secs(u64::from(config.pull_progress_timeout.max(1)));
        Self {
            patience: Patience { least_rate: config.pull_min_rate.into(), ..Patience::new(progress) },
            platform: Platform::host(),
            auth_file: config.auth_file.clone(),
            auth_dir: config.auth_dir.clone(),
            unnamed_signatures: config.unnamed_signatures,
        }
    }
}

/// Takes what a removal left for a lease, once that is given back: a container's that outlived its image, or that of
/// a pull which read the layer.
async fn collect_freed(inner: Weak<Inner>, freed: Arc<Notify>) {
    loop {
        freed.notified().await;
        let Some(inner) = inner.upgrade() else { return };
        task::blocking(move || inner.collect()).await;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Ends the task that waits for it.
        self.layers.freed().notify_one();
    }
}

impl Inner {
    /// Frees layers that nothing needs. Blocks. A failure is logged here, as nobody waits for it.
    fn collect(&self) {
        let guard = self.collector.lock().unwrap_or_else(PoisonError::into_inner);
        let keep = self.table.snapshot().layers();
        if let Err(error) = self.layers.remove_unleased(&keep) {
            tracing::warn!(%error, "layers that no image needs could not all be removed");
        }
        drop(guard);
        self.measure();
    }

    /// Adds an image whose layers this lease held until now, or frees those that were brought for it. Blocks.
    fn add(self: &Arc<Self>, addition: Addition, lease: Lease) -> Result<Arc<ImageRecord>, ImageError> {
        let added = self.table.add(addition);
        if added.is_ok() {
            self.release(lease);
        } else {
            drop(lease);
            self.collect();
        }
        added
    }

    /// Gives a lease back whose layers are in the table by now. Blocks while the collector runs: it may have looked at the
    /// table before they were.
    fn release(self: &Arc<Self>, lease: Lease) {
        let inner = self.clone();
        // Not awaited: the caller's answer need not wait for a collection.
        task::spawn(
            "image-release",
            task::blocking(move || {
                let guard = inner.collector.lock().unwrap_or_else(PoisonError::into_inner);
                drop(lease);
                drop(guard);
                inner.measure();
            }),
        );
    }

    fn measure(&self) {
        let (layers, documents) = (self.layers.usage(), self.table.usage());
        self.usage.store(Arc::new(FsUsage {
            mountpoint: self.root.clone(),
            bytes: layers.bytes + documents.bytes,
            inodes: layers.inodes + documents.inodes,
            timestamp_ns: host::now_ns(),
        }));
    }
}

/// Bytes on disk of some layers.
fn on_disk(store: &dyn LayerStore, chain: &[Digest]) -> u64 {
    chain.iter().filter_map(|layer| store.layer_size(layer)).map(|Usage { bytes, .. }| bytes).sum()
}

#[cfg(test)]
mod tests;
