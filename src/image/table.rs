//! All images: the durable table and the snapshot that every reader sees.
//!
//! One writer at a time; it commits to disk, then publishes. Readers take the published snapshot and wait for nobody.
//! Methods that change something block.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use super::artifact;
use super::blobs::Blobs;
use super::config::{self, ConfigFile};
use super::database::{Database, Loaded, Records};
use super::error::ImageError;
use super::layers::{LayerStore, Usage};
use super::pins::Pins;
use super::record::{ImageRecord, StoredRecord};
use crate::storage::Digest;

/// The images of this node.
#[derive(Debug)]
pub(super) struct Table {
    database: Database,
    blobs: Blobs,
    /// Held by the one writer; guards the globs that pin images too.
    writer: Mutex<Pins>,
    published: ArcSwap<Snapshot>,
}

/// What readers see.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    pub by_id: BTreeMap<Digest, Arc<ImageRecord>>,
    /// Tags and digested names to ids.
    pub by_name: HashMap<String, Digest>,
    /// Manifests and indexes to ids.
    pub by_document: HashMap<Digest, Digest>,
}

/// An image to add, or to add a name to. Its layers are durable.
#[derive(Debug)]
pub(super) struct Addition {
    /// The config, verbatim (of an artifact, the manifest); its digest is the image's id.
    pub config: Vec<u8>,
    pub file: ConfigFile,
    /// The manifest's digest.
    pub manifest: Digest,
    /// Indexes and the manifest, verbatim.
    pub documents: Vec<Vec<u8>>,
    pub chain: Vec<Digest>,
    pub tag: Option<String>,
    pub digested: Option<String>,
    /// Bytes on disk of the layers.
    pub layers_size: u64,
}

impl Table {
    /// Opens the table. Images whose layers or documents are missing are dropped and named in the notes.
    pub(super) fn open(root: &Path, pins: Pins, layers: &dyn LayerStore) -> Result<(Self, Vec<String>), ImageError> {
        let blobs = Blobs::open(root)?;
        let (database, loaded) = Database::open(root)?;
        let Loaded { records: stored, unreadable: mut doomed, note, recalled, .. } = loaded;
        let mut notes: Vec<String> = note.into_iter().collect();
        if recalled > 0 {
            notes.push(format!("{recalled} images are known from the copies of their records"));
        }
        notes.extend(doomed.iter().map(|id| format!("image {id}: its record cannot be read; dropped")));
        let mut by_id = BTreeMap::new();
        for (id, record) in stored {
            match restore(&id, record, &blobs, layers) {
                Ok(record) => {
                    by_id.insert(id, record);
                }
                Err(reason) => {
                    notes.push(format!("image {id}: {reason}; dropped"));
                    doomed.push(id.to_string());
                }
            }
        }
        let known = || by_id.iter().map(|(id, record)| (id.clone(), store(record))).collect();
        if !doomed.is_empty()
            && let Err(error) = database.commit(&[], &doomed, known)
        {
            // The next write finds them there, and the next start as they are now.
            notes.push(format!("{error}; what was dropped is not off the disk"));
        }
        let keep: HashSet<&Digest> =
            by_id.iter().flat_map(|(id, record)| record.documents.iter().chain([id])).collect();
        blobs.retain(&keep);
        for record in by_id.values_mut() {
            record.pinned = pins.hold(record);
        }
        let snapshot = Snapshot::of(by_id.into_iter().map(|(id, record)| (id, Arc::new(record))).collect());
        Ok((Self { database, blobs, writer: Mutex::new(pins), published: ArcSwap::from_pointee(snapshot) }, notes))
    }

    /// What readers see now.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.published.load_full()
    }

    /// Room taken by documents.
    pub(super) fn usage(&self) -> Usage {
        self.blobs.usage()
    }

    /// Adds an image or a name of one: documents first, then the record, then readers see it.
    pub(super) fn add(&self, addition: Addition) -> Result<Arc<ImageRecord>, ImageError> {
        let pins = self.lock();
        let id = Digest::of(&addition.config);
        let digests: Vec<Digest> = addition.documents.iter().map(|bytes| Digest::of(bytes)).collect();
        let documents = digests.iter().zip(addition.documents.iter().map(Vec::as_slice));
        let kept = self.blobs.put(documents.chain([(&id, addition.config.as_slice())]));
        let added = kept.and_then(|()| self.record(&id, &digests, addition, &pins));
        if added.is_err() {
            // Those that came for it; nobody else counts on them before the lock is given back.
            let snapshot = self.snapshot();
            let unused = |digest: &&Digest| !snapshot.needs(digest);
            if let Err(error) = self.blobs.remove(digests.iter().chain([&id]).filter(unused)) {
                tracing::warn!(%error, "a document of an image that was not recorded stays until the next start");
            }
        }
        added
    }

    /// Adds the record of an image whose documents are durable.
    fn record(
        &self,
        id: &Digest,
        digests: &[Digest],
        addition: Addition,
        pins: &Pins,
    ) -> Result<Arc<ImageRecord>, ImageError> {
        let mut by_id = self.snapshot().by_id.clone();
        let config_size = if digests.contains(id) { 0 } else { addition.config.len() };
        let documents_size: usize = addition.documents.iter().map(Vec::len).sum::<usize>() + config_size;
        let fresh = ImageRecord {
            id: id.clone(),
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            size: (addition.layers_size + u64::try_from(documents_size).unwrap_or(0)).max(1),
            pinned: false,
            chain: addition.chain,
            manifest: addition.manifest,
            documents: BTreeSet::new(),
            config: addition.file.config,
            architecture: addition.file.platform.architecture,
            os: addition.file.platform.os,
            created: addition.file.created,
        };
        let mut record = by_id.get(id).map_or(fresh, |known| known.as_ref().clone());
        record.documents.extend(digests.iter().cloned());
        self.name(&mut by_id, record, addition.tag, addition.digested, pins)
    }

    /// Gives a known image another name. `None` when the image is gone.
    pub(super) fn add_name(
        &self,
        id: &Digest,
        tag: Option<String>,
        digested: Option<String>,
    ) -> Result<Option<Arc<ImageRecord>>, ImageError> {
        let pins = self.lock();
        let mut by_id = self.snapshot().by_id.clone();
        let Some(known) = by_id.get(id).cloned() else { return Ok(None) };
        let has = |list: &[String], name: &Option<String>| name.as_ref().is_none_or(|name| list.contains(name));
        if has(&known.repo_tags, &tag) && has(&known.repo_digests, &digested) {
            return Ok(Some(known));
        }
        self.name(&mut by_id, known.as_ref().clone(), tag, digested, &pins).map(Some)
    }

    /// Puts names on a record, takes a moved tag from its old image, commits and publishes.
    fn name(
        &self,
        by_id: &mut BTreeMap<Digest, Arc<ImageRecord>>,
        mut record: ImageRecord,
        tag: Option<String>,
        digested: Option<String>,
        pins: &Pins,
    ) -> Result<Arc<ImageRecord>, ImageError> {
        let mut changed = Vec::new();
        if let Some(tag) = tag {
            for other in by_id.values_mut().filter(|other| other.id != record.id && other.repo_tags.contains(&tag)) {
                let mut untagged = other.as_ref().clone();
                untagged.repo_tags.retain(|name| *name != tag);
                untagged.pinned = pins.hold(&untagged);
                *other = Arc::new(untagged);
                changed.push((other.id.clone(), store(other)));
            }
            insert_sorted(&mut record.repo_tags, tag);
        }
        if let Some(digested) = digested {
            insert_sorted(&mut record.repo_digests, digested);
        }
        record.pinned = pins.hold(&record);
        let record = Arc::new(record);
        changed.push((record.id.clone(), store(&record)));
        self.database.commit(&changed, &[], || self.snapshot().records())?;
        by_id.insert(record.id.clone(), record.clone());
        self.published.store(Arc::new(Snapshot::of(std::mem::take(by_id))));
        Ok(record)
    }

    /// Removes an image with all its names. Nothing happens when it is gone already.
    pub(super) fn remove(&self, id: &Digest) -> Result<(), ImageError> {
        let _writer = self.lock();
        let mut by_id = self.snapshot().by_id.clone();
        let Some(gone) = by_id.remove(id) else { return Ok(()) };
        self.database.commit(&[], &[id.to_string()], || self.snapshot().records())?;
        let snapshot = Arc::new(Snapshot::of(by_id));
        self.published.store(snapshot.clone());
        // Still under the lock, so that no pull can count on a document that is about to go.
        let unused = |digest: &&Digest| !snapshot.needs(digest);
        self.blobs.remove(gone.documents.iter().chain([id]).filter(unused))
    }

    /// Puts other globs in force.
    pub(super) fn repin(&self, pins: Pins) {
        let mut writer = self.lock();
        *writer = pins;
        let mut by_id = self.snapshot().by_id.clone();
        for record in by_id.values_mut() {
            let pinned = writer.hold(record);
            if pinned != record.pinned {
                *record = Arc::new(ImageRecord { pinned, ..record.as_ref().clone() });
            }
        }
        self.published.store(Arc::new(Snapshot::of(by_id)));
    }

    fn lock(&self) -> MutexGuard<'_, Pins> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Snapshot {
    fn of(by_id: BTreeMap<Digest, Arc<ImageRecord>>) -> Self {
        let mut by_name = HashMap::new();
        let mut by_document = HashMap::new();
        for (id, record) in &by_id {
            for name in record.repo_tags.iter().chain(&record.repo_digests) {
                by_name.insert(name.clone(), id.clone());
            }
            for document in &record.documents {
                by_document.insert(document.clone(), id.clone());
            }
        }
        Self { by_id, by_name, by_document }
    }

    /// Whether an image has this document or config.
    fn needs(&self, digest: &Digest) -> bool {
        self.by_document.contains_key(digest) || self.by_id.contains_key(digest)
    }

    /// What the database is to hold.
    fn records(&self) -> Records {
        self.by_id.iter().map(|(id, record)| (id.clone(), store(record))).collect()
    }

    /// Every layer that an image needs.
    pub(super) fn layers(&self) -> HashSet<Digest> {
        self.by_id.values().flat_map(|record| record.chain.iter().cloned()).collect()
    }
}

fn insert_sorted(names: &mut Vec<String>, name: String) {
    if let Err(at) = names.binary_search(&name) {
        names.insert(at, name);
    }
}

fn store(record: &ImageRecord) -> StoredRecord {
    StoredRecord {
        manifest: record.manifest.clone(),
        documents: record.documents.clone(),
        chain: record.chain.clone(),
        repo_tags: record.repo_tags.iter().cloned().collect(),
        repo_digests: record.repo_digests.iter().cloned().collect(),
        size: record.size,
    }
}

/// A record as it was, checked against what is on disk now.
fn restore(id: &Digest, stored: StoredRecord, blobs: &Blobs, layers: &dyn LayerStore) -> Result<ImageRecord, String> {
    for digest in &stored.documents {
        blobs.get(digest).map_err(|error| format!("its document {digest} is missing or damaged ({error})"))?;
    }
    let bytes = blobs.get(id).map_err(|error| format!("its config is missing or damaged ({error})"))?;
    let file = match *id == stored.manifest {
        true => artifact::config_file(),
        false => config::parse(&bytes).map_err(|error| error.to_string())?,
    };
    if let Some(missing) = stored.chain.iter().find(|chain| !layers.has_layer(chain)) {
        return Err(format!("its layer {missing} is missing"));
    }
    Ok(ImageRecord {
        id: id.clone(),
        repo_tags: stored.repo_tags.into_iter().collect(),
        repo_digests: stored.repo_digests.into_iter().collect(),
        size: stored.size.max(1),
        pinned: false,
        chain: stored.chain,
        manifest: stored.manifest,
        documents: stored.documents,
        config: file.config,
        architecture: file.platform.architecture,
        os: file.platform.os,
        created: file.created,
    })
}
