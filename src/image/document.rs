//! Indexes, manifests and image configs: bounded, unambiguous, verified.
//!
//! A document means what its media type says, so the type that the server stated, the type in the descriptor that led
//! here, the type inside the document and its shape must all agree; anything else is two images under one digest
//! (CVE-2021-41190). Bytes are kept as they came, never written anew.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::platform::Platform;
use crate::storage::Digest;

/// Largest manifest or index taken, in bytes (the size that registries must take, by the distribution specification).
pub const MAX_MANIFEST: usize = 4 * 1024 * 1024;
/// Largest image config taken, in bytes.
pub const MAX_CONFIG: usize = 8 * 1024 * 1024;
/// Most layers of an image: what one overlay mount can hold.
pub const MAX_LAYERS: usize = 500;

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// What a manifest request accepts.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// The content is not what it must be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    #[error("{what} is larger than {limit} bytes")]
    TooLarge { what: &'static str, limit: u64 },
    #[error("{what} has the digest {got}, not {want}")]
    Digest { what: &'static str, want: Digest, got: Digest },
    #[error("{what} has {got} bytes, not {want}")]
    Size { what: &'static str, want: u64, got: u64 },
    #[error("{what} is not the same any more as when its download began")]
    Changed { what: &'static str },
    #[error("{what} is not valid: {reason}")]
    Json { what: &'static str, reason: String },
    #[error("media type {0:?} is not that of an image manifest or index")]
    MediaType(String),
    #[error("media types contradict each other: {stated:?} outside, {inside:?} inside")]
    Contradiction { stated: String, inside: String },
    #[error("the document can be read both as an index and as a manifest")]
    Ambiguous,
    #[error("config of media type {0:?}: an artifact, not a container image")]
    Artifact(String),
    #[error("no image for {host}; there is: {offered}")]
    NoPlatform { host: Platform, offered: String },
    #[error("indexes are nested too deeply")]
    Nested,
    #[error("layer of media type {0:?}: {1}")]
    Layer(String, &'static str),
    #[error("the file name {0:?} of a layer of an artifact: {1}")]
    FileName(String, &'static str),
    #[error("{0} layers are more than {MAX_LAYERS}")]
    TooManyLayers(usize),
    #[error("the config names {diff_ids} layers, the manifest {layers}")]
    LayerCount { diff_ids: usize, layers: usize },
}

/// A pointer to content. `urls` of a descriptor are never read (CVE-2020-15157).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    /// Checked when used: an index may name entries by other algorithms that nobody here asks for.
    pub digest: String,
    pub size: u64,
    #[serde(default)]
    pub platform: Option<Platform>,
    /// What a list of referrers says of an entry.
    #[serde(default)]
    pub artifact_type: Option<String>,
    #[serde(default)]
    pub annotations: Option<std::collections::BTreeMap<String, String>>,
}

/// A parsed index or manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    Index(Vec<Descriptor>),
    Manifest { config: Descriptor, layers: Vec<Descriptor> },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    fs_layers: Option<IgnoredAny>,
}

impl Descriptor {
    /// The digest, validated.
    ///
    /// # Errors
    /// [`ContentError::Json`] when it is not a digest that cricket accepts.
    pub fn digest(&self) -> Result<Digest, ContentError> {
        self.digest.parse().map_err(|error: crate::storage::DigestError| ContentError::Json {
            what: "a descriptor",
            reason: error.to_string(),
        })
    }

    /// Whether bytes are those that the descriptor means.
    ///
    /// # Errors
    /// [`ContentError::Size`] or [`ContentError::Digest`].
    pub fn verify(&self, what: &'static str, bytes: &[u8]) -> Result<Digest, ContentError> {
        let got = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if got != self.size {
            return Err(ContentError::Size { what, want: self.size, got });
        }
        verify_digest(what, bytes, &self.digest()?)
    }
}

/// Whether bytes have a digest.
///
/// # Errors
/// [`ContentError::Digest`] when they have another one.
pub fn verify_digest(what: &'static str, bytes: &[u8], want: &Digest) -> Result<Digest, ContentError> {
    let got = Digest::of(bytes);
    if got == *want { Ok(got) } else { Err(ContentError::Digest { what, want: want.clone(), got }) }
}

/// Reads an index or a manifest. `stated` is the media type given from outside (the server's header or a descriptor's
/// field); an empty or generic one states nothing.
///
/// # Errors
/// [`ContentError`] for anything that is not clearly one of the two.
pub fn parse(bytes: &[u8], stated: &str) -> Result<Document, ContentError> {
    if bytes.len() > MAX_MANIFEST {
        return Err(ContentError::TooLarge { what: "the manifest", limit: MAX_MANIFEST as u64 });
    }
    let json = |reason: String| ContentError::Json { what: "the manifest", reason };
    let raw: RawDocument = serde_json::from_slice(bytes).map_err(|error| json(not_json(bytes, &error)))?;
    let stated = stated.split(';').next().unwrap_or_default().trim();
    let stated =
        if matches!(stated, "application/json" | "application/octet-stream" | "text/plain") { "" } else { stated };
    let inside = raw.media_type.as_deref().unwrap_or_default();
    if !stated.is_empty() && !inside.is_empty() && stated != inside {
        return Err(ContentError::Contradiction { stated: cut(stated), inside: cut(inside) });
    }
    if raw.schema_version == Some(1) || raw.fs_layers.is_some() {
        return Err(json(
            "it is of Docker's schema 1, which no current registry serves; push the image anew".to_owned(),
        ));
    }
    if raw.schema_version != Some(2) {
        return Err(json("its schemaVersion is not 2".to_owned()));
    }
    if raw.manifests.is_some() && (raw.layers.is_some() || raw.config.is_some()) {
        return Err(ContentError::Ambiguous);
    }
    let kind = if stated.is_empty() { inside } else { stated };
    match (kind, raw.manifests, raw.config, raw.layers) {
        (OCI_INDEX | DOCKER_INDEX, Some(entries), None, None) => Ok(Document::Index(entries)),
        (OCI_MANIFEST | DOCKER_MANIFEST, None, Some(config), Some(layers)) => Ok(Document::Manifest { config, layers }),
        (OCI_INDEX | DOCKER_INDEX | OCI_MANIFEST | DOCKER_MANIFEST, ..) => {
            Err(json(format!("its members are not those of {kind}")))
        }
        _ => Err(ContentError::MediaType(cut(kind))),
    }
}

/// Why bytes are no document: servers before a registry answer in its place, or pack what it says.
fn not_json(bytes: &[u8], error: &serde_json::Error) -> String {
    if bytes.starts_with(&[0x1f, 0x8b]) || bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return "it is compressed, which was not asked for".to_owned();
    }
    if bytes.trim_ascii_start().starts_with(b"<") {
        return "it is a page for people, as servers before a registry send it".to_owned();
    }
    error.to_string()
}

/// The entry of an index that suits this machine best; the first of equals.
///
/// # Errors
/// [`ContentError::NoPlatform`] lists what is offered.
pub fn select<'a>(entries: &'a [Descriptor], host: &Platform) -> Result<&'a Descriptor, ContentError> {
    let mut best: Option<(u32, &Descriptor)> = None;
    for entry in entries {
        let score = match &entry.platform {
            Some(platform) => host.suits(platform).map(|level| level + 1),
            // An entry that says nothing may be for this machine; its config will tell.
            None => Some(0),
        };
        if let Some(score) = score
            && best.is_none_or(|(other, _)| score > other)
        {
            best = Some((score, entry));
        }
    }
    best.map(|(_, entry)| entry).ok_or_else(|| {
        let offered: Vec<_> =
            entries.iter().take(32).filter_map(|e| e.platform.as_ref()).map(|p| cut(&p.to_string())).collect();
        ContentError::NoPlatform { host: host.clone(), offered: offered.join(", ") }
    })
}

/// Whether a layer's media type is one that can be unpacked.
///
/// # Errors
/// [`ContentError::Layer`] says why not.
pub fn check_layer(media_type: &str) -> Result<(), ContentError> {
    let refuse = |why| Err(ContentError::Layer(cut(media_type), why));
    if media_type.contains("encrypted") {
        return refuse("encrypted layers are not supported");
    }
    match media_type {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(()),
        other if other.contains("nondistributable") || other.contains(".foreign.") => {
            refuse("it is to be fetched from a place outside the registry, which is not done")
        }
        _ => refuse("it is not a file system layer"),
    }
}

/// Hostile text, short enough for a message.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(128).collect()
}

#[cfg(test)]
mod tests;
