//! An image in the store, read from outside of the daemon while the daemon holds it ([`super::hold`]). All of it blocks.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use super::blobs;
use super::config::{self, ConfigFile};
use crate::storage::{Digest, KeptLayer, Report, StorageError};

/// What an image is made of.
#[derive(Debug, Clone)]
pub struct KeptImage {
    pub id: Digest,
    pub manifest: Digest,
    pub documents: Vec<Digest>,
    /// Chain ids, the base first.
    pub layers: Vec<Digest>,
    pub tags: Vec<String>,
    pub artifact: bool,
}

/// A part of an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    #[error("{}: cannot be read", path.display())]
    Document { path: PathBuf, source: io::Error },
    #[error("{}: its content has the digest {got}", path.display())]
    Digest { path: PathBuf, got: Digest },
    #[error("the config of image {id} does not belong to its layers: {why}")]
    Config { id: Digest, why: String },
}

/// How an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Good,
    Damaged,
    /// A part of it was unpacked by a version that kept nothing to compare with. What could be compared is good.
    Unknown,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The layer, by its chain id; `None` for a document.
    pub layer: Option<Digest>,
    /// Below the layer's root; empty for the layer as a whole.
    pub path: String,
    pub problem: String,
}

impl KeptImage {
    /// One of the image's documents, verified.
    ///
    /// # Errors
    /// [`KeptError::Document`] and [`KeptError::Digest`].
    pub(super) fn document(root: &Path, digest: &Digest) -> Result<Vec<u8>, KeptError> {
        let path = blobs::folder(root).join(digest.hex());
        let (bytes, got) = blobs::read(&path).map_err(|source| KeptError::Document { path: path.clone(), source })?;
        if got == *digest { Ok(bytes) } else { Err(KeptError::Digest { path, got }) }
    }

    /// The config, verbatim and parsed, and found to be that of these layers.
    ///
    /// # Errors
    /// [`KeptError`].
    pub(super) fn config(&self, root: &Path) -> Result<(Vec<u8>, ConfigFile), KeptError> {
        let bytes = Self::document(root, &self.id)?;
        let wrong = |why: String| KeptError::Config { id: self.id.clone(), why };
        let file = config::parse(&bytes).map_err(|error| wrong(error.to_string()))?;
        if Digest::chains(&file.diff_ids) == self.layers {
            Ok((bytes, file))
        } else {
            Err(wrong("it names others".to_owned()))
        }
    }
}

/// Verifies an image: its documents by their digests, its layers by the digests that the config states. Layers that were
/// looked at before are in `seen`. Gives the problems, the worst state of its parts, and the entries of its layers.
///
/// # Errors
/// [`StorageError`] when a layer cannot be compared; damage is no error.
pub fn verify(
    root: &Path,
    image: &KeptImage,
    seen: &mut HashMap<Digest, Option<Report>>,
) -> Result<(State, Vec<Problem>, u64), StorageError> {
    let mut problems = Vec::new();
    let of_documents =
        |error: &KeptError| Problem { layer: None, path: String::new(), problem: crate::telemetry::chain(error) };
    for document in &image.documents {
        problems.extend(KeptImage::document(root, document).err().as_ref().map(of_documents));
    }
    let diff_ids: Vec<Option<Digest>> = match image.config(root) {
        _ if image.artifact => vec![None; image.layers.len()],
        Ok((_, file)) => file.diff_ids.into_iter().map(Some).collect(),
        Err(error) => {
            problems.push(of_documents(&error));
            // The markers of the layers know their digests as well.
            vec![None; image.layers.len()]
        }
    };
    let (mut unknown, mut entries) = (false, 0);
    for (chain, diff_id) in image.layers.iter().zip(&diff_ids) {
        if !seen.contains_key(chain) {
            seen.insert(chain.clone(), layer(root, chain, diff_id.as_ref())?);
        }
        let of_layer = |path: &str, problem: &str| Problem {
            layer: Some(chain.clone()),
            path: path.into(),
            problem: problem.into(),
        };
        match &seen[chain] {
            None => unknown = true,
            Some(report) => {
                entries += report.entries;
                problems.extend(report.findings.iter().map(|found| of_layer(&found.path, &found.problem)));
                if report.more > 0 {
                    problems.push(of_layer("", &format!("{} more problems are not listed", report.more)));
                }
            }
        }
    }
    let state = match (problems.is_empty(), unknown) {
        (false, _) => State::Damaged,
        (true, true) => State::Unknown,
        (true, false) => State::Good,
    };
    Ok((state, problems, entries))
}

/// One layer; `None` when there is nothing to compare with.
fn layer(root: &Path, chain: &Digest, diff_id: Option<&Digest>) -> Result<Option<Report>, StorageError> {
    let found = |problem: String| Report {
        findings: vec![crate::storage::Finding { path: String::new(), problem }],
        ..Report::default()
    };
    match KeptLayer::open(root, chain) {
        Ok(layer) => match layer.verify(diff_id.unwrap_or(layer.diff_id())) {
            Err(StorageError::NoSkeleton { .. }) => Ok(None),
            report => report.map(Some),
        },
        Err(error @ (StorageError::Missing { .. } | StorageError::Layer { .. })) => {
            Ok(Some(found(crate::telemetry::chain(&error))))
        }
        Err(error) => Err(error),
    }
}
