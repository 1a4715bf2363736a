//! Images as files again: an OCI layout, as a folder or a tar. The tar is a `docker save` archive as well.
//!
//! Layers are put together again from what was unpacked ([`crate::storage::KeptLayer`]), so the config and with it the image's
//! id stay what they were. Their compression is not known any more; a manifest that names other compressed layers is written
//! anew. One that names layers without compression is kept, and so is its digest.
//!
//! Everything streams. Nothing is written over, and a name is given to what is whole and durable only. All of it blocks.

mod output;
mod pack;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use self::output::Output;
use super::document::{self, DOCKER_MANIFEST, Document, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};
use super::import::{FULL_NAME, REF_NAME};
use super::kept::{KeptError, KeptImage};
use super::reference::{Reference, Version};
use crate::storage::{Digest, KeptLayer, StorageError};

pub use self::output::Target;
pub use self::pack::Packed;

/// An export failed; nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    Kept(#[from] KeptError),
    #[error(transparent)]
    Layer(#[from] StorageError),
    #[error("layer {chain}: it cannot be put together again")]
    Archive { chain: Digest, source: io::Error },
    #[error(
        "layer {chain}: its archive has the digest {got}, the image says {want}; `cricket image verify` tells more"
    )]
    Damaged { chain: Digest, want: Digest, got: Digest },
    #[error("image {id} is an artifact; only images can be exported")]
    Artifact { id: Digest },
    #[error("{}: it is there already, and is not written over", path.display())]
    Exists { path: PathBuf },
    #[error("{}: {operation}", path.display())]
    Write { path: PathBuf, operation: &'static str, source: io::Error },
    #[error("compressed layers need a file that can be gone back in; standard output is none")]
    NotSeekable,
}

#[derive(Serialize, Clone)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: &'static str,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    media_type: &'static str,
    manifests: Vec<Descriptor>,
}

/// One image in `manifest.json` of a `docker save` archive.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

/// Exports images of the store in `root`. Gives the digest of each one's manifest as it is in the export.
///
/// # Errors
/// [`ExportError`]. A target that is there already stays as it is.
pub fn export(root: &Path, images: &[KeptImage], packed: Packed, target: &Target) -> Result<Vec<Digest>, ExportError> {
    if let Some(artifact) = images.iter().find(|image| image.artifact) {
        return Err(ExportError::Artifact { id: artifact.id.clone() });
    }
    if packed != Packed::None && *target == Target::Stdout {
        return Err(ExportError::NotSeekable);
    }
    let mut export = Export { root, packed, out: Output::begin(target)?, layers: BTreeMap::new() };
    export.out.document("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    export.out.folders()?;
    let (mut entries, mut saved, mut manifests) = (Vec::new(), Vec::new(), Vec::new());
    for image in images {
        let (manifest, layers) = export.image(image)?;
        manifests.push(manifest.digest.clone());
        saved.push(Saved {
            config: blob(&image.id),
            repo_tags: image.tags.clone(),
            layers: layers.iter().map(|layer| blob(&layer.digest)).collect(),
        });
        entries.extend(named(&manifest, &image.tags));
    }
    let index = Index { schema_version: 2, media_type: OCI_INDEX, manifests: entries };
    export.out.document("index.json", &json(&index))?;
    // Folders are never taken for the other kind of archive.
    if !matches!(target, Target::Folder(_)) {
        export.out.document("manifest.json", &json(&saved))?;
    }
    export.out.finish()?;
    Ok(manifests)
}

struct Export<'e> {
    root: &'e Path,
    packed: Packed,
    out: Output,
    /// What was written, by the digest of the uncompressed archive: images share layers, and may have one twice.
    layers: BTreeMap<Digest, Descriptor>,
}

impl Export<'_> {
    fn image(&mut self, image: &KeptImage) -> Result<(Descriptor, Vec<Descriptor>), ExportError> {
        let (config, file) = image.config(self.root)?;
        let manifest = KeptImage::document(self.root, &image.manifest)?;
        let mut layers = Vec::new();
        for (chain, diff_id) in image.layers.iter().zip(&file.diff_ids) {
            layers.push(self.layer(chain, diff_id)?);
        }
        let (media_type, manifest) = match self.fitting(&manifest, &layers) {
            Some(media_type) => (media_type, manifest),
            None => {
                let config = described(OCI_CONFIG, &config);
                let written = Manifest { schema_version: 2, media_type: OCI_MANIFEST, config, layers: layers.clone() };
                (OCI_MANIFEST, json(&written))
            }
        };
        self.document(&config)?;
        self.document(&manifest)?;
        Ok((described(media_type, &manifest), layers))
    }

    /// The media type of the manifest that the image came with, if it names these very layers.
    fn fitting(&self, manifest: &[u8], layers: &[Descriptor]) -> Option<&'static str> {
        if self.packed != Packed::None {
            return None;
        }
        [OCI_MANIFEST, DOCKER_MANIFEST].into_iter().find(|media_type| {
            let Ok(Document::Manifest { layers: own, .. }) = document::parse(manifest, media_type) else {
                return false;
            };
            own.len() == layers.len()
                && own.iter().zip(layers).all(|(own, ours)| own.digest == ours.digest.as_str() && own.size == ours.size)
        })
    }

    fn layer(&mut self, chain: &Digest, diff_id: &Digest) -> Result<Descriptor, ExportError> {
        if let Some(known) = self.layers.get(diff_id) {
            return Ok(known.clone());
        }
        let layer = KeptLayer::open(self.root, chain)?;
        let archive = layer.archive()?;
        let known = match (self.packed, layer.archive_size()) {
            (Packed::None, Some(size)) => Some((diff_id, size)),
            _ => None,
        };
        let mut source = pack::Source::new(archive);
        let (digest, size) =
            self.out.blob(known, |out| pack::pack(&mut source, self.packed, out)).map_err(|error| {
                // Whose fault it was is known by who remembers it.
                match source.failed.take() {
                    Some(source) => ExportError::Archive { chain: chain.clone(), source },
                    None => error,
                }
            })?;
        let got = source.hasher.finish();
        if got != *diff_id {
            return Err(ExportError::Damaged { chain: chain.clone(), want: diff_id.clone(), got });
        }
        let media_type = self.packed.media_type().to_owned();
        let written = Descriptor { media_type, digest, size, annotations: BTreeMap::new() };
        self.layers.insert(diff_id.clone(), written.clone());
        Ok(written)
    }

    fn document(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        self.out.document(&blob(&Digest::of(bytes)), bytes)
    }
}

/// One entry of the index for each name; one without a name for an image that has none.
fn named(manifest: &Descriptor, tags: &[String]) -> Vec<Descriptor> {
    let with = |tag: &String| {
        let mut annotations = BTreeMap::from([(FULL_NAME, tag.clone())]);
        if let Ok(Version::Tag(short)) = Reference::parse(tag).as_ref().map(Reference::version) {
            annotations.insert(REF_NAME, short.clone());
        }
        Descriptor { annotations, ..manifest.clone() }
    };
    if tags.is_empty() { vec![manifest.clone()] } else { tags.iter().map(with).collect() }
}

fn described(media_type: &str, bytes: &[u8]) -> Descriptor {
    let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    Descriptor { media_type: media_type.to_owned(), digest: Digest::of(bytes), size, annotations: BTreeMap::new() }
}

fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings and numbers are JSON")
}

#[cfg(test)]
mod tests;
