//! Images held still for somebody who reads their layers: the command line, which verifies and exports.

use std::path::PathBuf;
use std::sync::Arc;

use super::error::ImageError;
use super::layers::Lease;
use super::record::ImageRecord;
use super::{Images, task};
use crate::storage::Digest;

/// While this lives, the layers of its images are not removed. The images themselves may be.
#[derive(Debug)]
pub struct Hold {
    /// The folder of the image store.
    pub root: PathBuf,
    pub images: Vec<HeldImage>,
    _lease: Lease,
}

/// One of them.
#[derive(Debug)]
pub struct HeldImage {
    pub record: Arc<ImageRecord>,
    /// The tag that the reference named; all when it was an id, or a name by digest.
    pub tags: Vec<String>,
}

impl Images {
    /// Holds the images of some ids or names; without any, every image.
    ///
    /// # Errors
    /// [`ImageError::Unknown`] when there is none, and those of [`Images::find`].
    pub async fn hold(&self, references: &[String]) -> Result<Hold, ImageError> {
        let found = self.named(references)?;
        let mut chain: Vec<Digest> = found.iter().flat_map(|image| image.record.chain.clone()).collect();
        chain.sort();
        chain.dedup();
        let store = self.0.layers.clone();
        let lease = task::blocking(move || store.lease(&chain)).await;
        // What is still in the table now had its layers when the lease was taken, and keeps them.
        let snapshot = self.0.table.snapshot();
        let (images, gone): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|image| snapshot.by_id.contains_key(&image.record.id));
        match gone.first() {
            Some(gone) if !references.is_empty() => Err(ImageError::Unknown { reference: gone.record.id.to_string() }),
            _ => Ok(Hold { root: self.0.root.clone(), images, _lease: lease }),
        }
    }

    fn named(&self, references: &[String]) -> Result<Vec<HeldImage>, ImageError> {
        let all = |record: Arc<ImageRecord>| HeldImage { tags: record.repo_tags.clone(), record };
        if references.is_empty() {
            return Ok(self.list(None).into_iter().map(all).collect());
        }
        let mut images: Vec<HeldImage> = Vec::new();
        for reference in references {
            let unknown = || ImageError::Unknown { reference: reference.chars().take(256).collect() };
            let mut image = self.find(reference)?.map(all).ok_or_else(unknown)?;
            let names = self.0.rules.clients().registries().names(reference);
            let names: Vec<String> = names.iter().flatten().filter_map(|name| name.tagged()).collect();
            if let Some(tag) = names.into_iter().find(|name| image.tags.contains(name)) {
                image.tags = vec![tag];
            }
            match images.iter_mut().find(|other| other.record.id == image.record.id) {
                None => images.push(image),
                Some(other) => {
                    other.tags.append(&mut image.tags);
                    other.tags.sort();
                    other.tags.dedup();
                }
            }
        }
        Ok(images)
    }
}
