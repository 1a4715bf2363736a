//! Images from a file: OCI layouts (folder or tar) and `docker save` archives. All of it blocks.
//!
//! Every document has a size bound (CVE-2023-25153), every name in the archive is one that we ask for, never one that the
//! archive chooses, and every blob is verified as if a registry had sent it.

mod archive;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, Cursor, Read};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::archive::{Entry, Source};
use super::config::{self, ConfigFile, LayerPlan};
use super::document::{
    self, ContentError, DOCKER_CONFIG, DOCKER_MANIFEST, Descriptor, Document, MAX_CONFIG, MAX_MANIFEST,
};
use super::error::ImageError;
use super::layers::{LayerError, Packing, Staged};
use super::platform::Platform;
use super::record::ImageRecord;
use super::reference::{Reference, check_tag};
use super::table::Addition;
use super::{Inner, on_disk};
use crate::storage::{Digest, Hasher};

pub(super) use archive::sweep;

const MAX_IMAGES: usize = 256;
const MAX_DEPTH: usize = 3;
/// Written by containerd's and Docker's tools: the full name.
pub(super) const FULL_NAME: &str = "io.containerd.image.name";
/// Of the OCI specification: a tag, or by custom a full name.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Imports every image for this machine that the source holds.
pub(super) fn run(
    inner: &Arc<Inner>,
    path: &Path,
    name: Option<&Reference>,
) -> Result<Vec<Arc<ImageRecord>>, ImageError> {
    let source = Source::open(path, &inner.root)?;
    let host = inner.settings.load().platform.clone();
    let job = Job { inner, path, source, host, hashes: RefCell::default() };
    if job.source.find("index.json")?.is_some() {
        job.layout(name)
    } else if job.source.find("manifest.json")?.is_some() {
        job.docker(name)
    } else {
        Err(job.bad("it has neither index.json nor manifest.json"))
    }
}

struct Job<'a> {
    inner: &'a Arc<Inner>,
    path: &'a Path,
    source: Source,
    host: Platform,
    hashes: RefCell<HashMap<String, (u64, Digest)>>,
}

/// An image whose documents are read and checked.
struct Ready {
    manifest: Digest,
    documents: Vec<Vec<u8>>,
    config: Vec<u8>,
    file: ConfigFile,
    plan: Vec<LayerPlan>,
    /// Where each layer is in the archive.
    places: Vec<String>,
    tags: Vec<String>,
}

#[derive(Deserialize)]
struct LayoutIndex {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    /// Go writes an empty list as `null`.
    #[serde(default)]
    layers: Option<Vec<String>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DockerManifest<'a> {
    schema_version: u32,
    media_type: &'a str,
    config: DockerDescriptor<'a>,
    layers: Vec<DockerDescriptor<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DockerDescriptor<'a> {
    media_type: &'a str,
    size: u64,
    digest: Digest,
}

impl Job<'_> {
    fn layout(&self, name: Option<&Reference>) -> Result<Vec<Arc<ImageRecord>>, ImageError> {
        let index: LayoutIndex = self.json("index.json", MAX_MANIFEST)?;
        let foreign = |entry: &&Descriptor| entry.platform.as_ref().is_none_or(|p| self.host.suits(p).is_some());
        let entries: Vec<&Descriptor> = index.manifests.iter().filter(foreign).collect();
        if entries.is_empty() {
            return Err(self.bad(&format!("it has no image for {}", self.host)));
        }
        self.count(entries.len(), name)?;
        let mut ready = Vec::new();
        for entry in entries {
            let tags = layout_tags(entry, name);
            ready.push(self.read_layout(entry, tags)?);
        }
        ready.into_iter().map(|image| self.store(image)).collect()
    }

    fn read_layout(&self, entry: &Descriptor, tags: Vec<String>) -> Result<Ready, ImageError> {
        let mut entry = entry.clone();
        let mut documents = Vec::new();
        loop {
            let bytes = self.blob(&entry, "the manifest", MAX_MANIFEST)?;
            let document = document::parse(&bytes, &entry.media_type).map_err(|error| self.content(error))?;
            documents.push(bytes);
            match document {
                Document::Index(entries) => {
                    if documents.len() >= MAX_DEPTH {
                        return Err(self.content(ContentError::Nested));
                    }
                    entry = document::select(&entries, &self.host).map_err(|error| self.content(error))?.clone();
                }
                Document::Manifest { config, layers } => {
                    config::check_config_type(&config.media_type).map_err(|error| self.content(error))?;
                    let bytes = self.blob(&config, "the image config", MAX_CONFIG)?;
                    let file = config::parse(&bytes).map_err(|error| self.content(error))?;
                    let plan =
                        config::plan(&config, &layers, &file, &self.host).map_err(|error| self.content(error))?;
                    let places = plan.iter().map(|layer| blob_path(&layer.digest)).collect();
                    let manifest = entry.digest().map_err(|error| self.content(error))?;
                    return Ok(Ready { manifest, documents, config: bytes, file, plan, places, tags });
                }
            }
        }
    }

    fn docker(&self, name: Option<&Reference>) -> Result<Vec<Arc<ImageRecord>>, ImageError> {
        let entries: Vec<DockerEntry> = self.json("manifest.json", MAX_MANIFEST)?;
        self.count(entries.len(), name)?;
        let ready: Vec<Ready> = entries.iter().map(|entry| self.read_docker(entry, name)).collect::<Result<_, _>>()?;
        ready.into_iter().map(|image| self.store(image)).collect()
    }

    /// A `docker save` archive has no manifest; one is written for it, once, and kept like any other.
    fn read_docker(&self, entry: &DockerEntry, name: Option<&Reference>) -> Result<Ready, ImageError> {
        let config = self.read(&entry.config, "the image config", MAX_CONFIG)?;
        let file = config::parse(&config).map_err(|error| self.content(error))?;
        let described = |media_type: &'static str, size, digest| DockerDescriptor { media_type, size, digest };
        let places = entry.layers.clone().unwrap_or_default();
        let mut layers = Vec::new();
        for place in places.iter().take(document::MAX_LAYERS + 1) {
            let (size, digest) = self.hashed(place)?;
            layers.push(described("application/vnd.docker.image.rootfs.diff.tar", size, digest));
        }
        let size = u64::try_from(config.len()).unwrap_or(u64::MAX);
        let manifest = DockerManifest {
            schema_version: 2,
            media_type: DOCKER_MANIFEST,
            config: described(DOCKER_CONFIG, size, Digest::of(&config)),
            layers,
        };
        let manifest = serde_json::to_vec(&manifest).expect("strings and numbers are JSON");
        let document = document::parse(&manifest, DOCKER_MANIFEST).map_err(|error| self.content(error))?;
        let Document::Manifest { config: described, layers } = document else {
            return Err(self.bad("its manifest is an index"));
        };
        let plan = config::plan(&described, &layers, &file, &self.host).map_err(|error| self.content(error))?;
        let tags = match name {
            Some(name) => name.tagged().into_iter().collect(),
            None => entry.repo_tags.iter().flatten().take(MAX_IMAGES).filter_map(|tag| full_tag(tag)).collect(),
        };
        Ok(Ready { manifest: Digest::of(&manifest), documents: vec![manifest], config, file, plan, places, tags })
    }

    /// Layers durable, then the record, as for a pull.
    fn store(&self, image: Ready) -> Result<Arc<ImageRecord>, ImageError> {
        let store = self.inner.layers.as_ref();
        let chain: Vec<Digest> = image.plan.iter().map(|layer| layer.chain.clone()).collect();
        let lease = store.lease(&chain);
        let mut staged = Vec::new();
        for (layer, place) in image.plan.iter().zip(&image.places) {
            if !store.has_layer(&layer.chain) {
                staged.push(self.stage(layer, place)?);
            }
        }
        if !staged.is_empty() {
            store.commit(staged).map_err(|source| ImageError::Commit { reference: self.shown(), source })?;
        }
        let mut tags = image.tags.into_iter();
        let addition = Addition {
            config: image.config,
            file: image.file,
            manifest: image.manifest,
            documents: image.documents,
            layers_size: on_disk(store, &chain),
            chain,
            tag: tags.next(),
            digested: None,
        };
        let record = self.inner.add(addition, lease)?;
        tags.try_fold(record, |record, tag| {
            Ok(self.inner.table.add_name(&record.id, Some(tag), None)?.unwrap_or(record))
        })
    }

    fn stage(&self, layer: &LayerPlan, place: &str) -> Result<Staged, ImageError> {
        let entry = self.entry(place)?;
        if entry.size() != layer.size {
            let error = ContentError::Size { what: "the layer", want: layer.size, got: entry.size() };
            return Err(self.content(error));
        }
        let unpack = |source| ImageError::Unpack { reference: self.shown(), layer: layer.digest.to_string(), source };
        let mut hashed = Hashed { inner: entry, hasher: Hasher::new() };
        let mut head = Vec::with_capacity(4);
        (&mut hashed).take(4).read_to_end(&mut head).map_err(|error| self.broken(place, error))?;
        let packing = Packing::sniff(&head);
        let mut content = Cursor::new(head).chain(&mut hashed);
        let staged =
            self.inner.layers.stage(&layer.chain, Some(&layer.diff_id), packing, &mut content).map_err(unpack)?;
        io::copy(&mut hashed, &mut io::sink()).map_err(|error| self.broken(place, error))?;
        let got = hashed.hasher.finish();
        if got != layer.digest {
            return Err(self.content(ContentError::Digest { what: "the layer", want: layer.digest.clone(), got }));
        }
        Ok(staged)
    }

    /// Size and digest of a file of the archive, read once however many images have it.
    fn hashed(&self, place: &str) -> Result<(u64, Digest), ImageError> {
        if let Some(known) = self.hashes.borrow().get(place) {
            return Ok(known.clone());
        }
        let entry = self.entry(place)?;
        let size = entry.size();
        let digest = hash(entry).map_err(|error| self.broken(place, error))?;
        self.hashes.borrow_mut().insert(place.to_owned(), (size, digest.clone()));
        Ok((size, digest))
    }

    fn blob(&self, descriptor: &Descriptor, what: &'static str, cap: usize) -> Result<Vec<u8>, ImageError> {
        let digest = descriptor.digest().map_err(|error| self.content(error))?;
        let bytes = self.read(&blob_path(&digest), what, cap)?;
        descriptor.verify(what, &bytes).map_err(|error| self.content(error))?;
        Ok(bytes)
    }

    fn json<T: for<'de> Deserialize<'de>>(&self, name: &'static str, cap: usize) -> Result<T, ImageError> {
        let bytes = self.read(name, name, cap)?;
        serde_json::from_slice(&bytes)
            .map_err(|error| self.content(ContentError::Json { what: name, reason: error.to_string() }))
    }

    fn read(&self, name: &str, what: &'static str, cap: usize) -> Result<Vec<u8>, ImageError> {
        let entry = self.entry(name)?;
        let limit = u64::try_from(cap).unwrap_or(u64::MAX);
        if entry.size() > limit {
            return Err(self.content(ContentError::TooLarge { what, limit }));
        }
        let mut bytes = Vec::new();
        entry.take(limit).read_to_end(&mut bytes).map_err(|error| self.broken(name, error))?;
        Ok(bytes)
    }

    fn entry(&self, name: &str) -> Result<Entry, ImageError> {
        self.source.find(name)?.ok_or_else(|| self.bad(&format!("it has no {:?}", document::cut(name))))
    }

    fn count(&self, images: usize, name: Option<&Reference>) -> Result<(), ImageError> {
        match images {
            0 => Err(self.bad("it has no image")),
            n if n > MAX_IMAGES => Err(self.bad(&format!("its {n} images are more than {MAX_IMAGES}"))),
            n if n > 1 && name.is_some() => {
                Err(self.bad(&format!("it has {n} images; one name does not fit them all")))
            }
            _ => Ok(()),
        }
    }

    fn shown(&self) -> String {
        self.path.display().to_string()
    }

    fn bad(&self, reason: &str) -> ImageError {
        ImageError::Archive { path: self.path.to_owned(), reason: reason.to_owned() }
    }

    fn broken(&self, place: &str, error: io::Error) -> ImageError {
        let source = LayerError::of_the_layer(format!("{} cannot be read: {error}", document::cut(place)));
        ImageError::Unpack { reference: self.shown(), layer: document::cut(place), source }
    }

    fn content(&self, source: ContentError) -> ImageError {
        ImageError::Content { reference: self.shown(), source }
    }
}

/// The tags of one entry of a layout: the caller's name, else the full name it has, else none. A bare tag alone names
/// nothing.
fn layout_tags(entry: &Descriptor, name: Option<&Reference>) -> Vec<String> {
    if let Some(name) = name {
        return name.tagged().into_iter().collect();
    }
    let annotation = |key: &str| entry.annotations.as_ref().and_then(|all| all.get(key));
    let full = annotation(FULL_NAME).or_else(|| annotation(REF_NAME).filter(|text| check_tag(text).is_err()));
    full.and_then(|text| full_tag(text)).into_iter().collect()
}

fn full_tag(text: &str) -> Option<String> {
    Reference::parse(text).ok().and_then(|reference| reference.tagged())
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn hash(mut entry: Entry) -> io::Result<Digest> {
    let mut hashed = Hashed { inner: &mut entry, hasher: Hasher::new() };
    io::copy(&mut hashed, &mut io::sink())?;
    Ok(hashed.hasher.finish())
}

struct Hashed<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(into)?;
        self.hasher.update(&into[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
