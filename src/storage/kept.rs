//! A layer in the store, read from outside of the daemon: by the command line, which verifies and exports.
//!
//! Nothing is locked. Whoever reads has the daemon hold the layer; a layer in the store never changes.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::layers::Marker;
use super::merged::Merged;
use super::skeleton::Rebuilt;
use super::verify::{self, Report};
use super::{Digest, StorageError};
use crate::sys::root::Root;

/// One layer's directory.
#[derive(Debug)]
pub struct KeptLayer {
    /// The folder of all layers.
    layers: PathBuf,
    chain: Digest,
    root: Root,
    marker: Marker,
}

/// Most layers that one may lie on: far more than an image can have, so that markers that lead in a circle have an end.
const MAX_BELOW: usize = 10_000;

impl KeptLayer {
    /// Opens a layer of the store below `images`.
    ///
    /// # Errors
    /// [`StorageError::Missing`] when there is none, [`StorageError::Layer`] when its marker cannot be read.
    pub fn open(images: &Path, chain: &Digest) -> Result<Self, StorageError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => StorageError::Missing { chain: chain.clone() },
            _ => StorageError::Layer { chain: chain.clone(), operation: "its marker cannot be read", source },
        };
        let layers = images.join("layers");
        let root = Root::open(&layers.join(chain.hex())).map_err(failed)?;
        let marker = Marker::read(&root, chain).map_err(failed)?;
        Ok(Self { layers, chain: chain.clone(), root, marker })
    }

    /// The digest of the uncompressed archive, as it was when the layer was unpacked.
    #[must_use]
    pub fn diff_id(&self) -> &Digest {
        &self.marker.diff_id
    }

    /// Bytes of its uncompressed archive; `None` when it was unpacked by a version that kept no skeleton.
    #[must_use]
    pub fn archive_size(&self) -> Option<u64> {
        self.marker.archive
    }

    /// The uncompressed archive, put together again from skeleton and tree. A file that is not what it was is an error
    /// that names it; whether the whole has the right digest is for the caller to see.
    ///
    /// # Errors
    /// [`StorageError::NoSkeleton`] and [`StorageError::Skeleton`].
    pub fn archive(&self) -> Result<impl Read + use<>, StorageError> {
        self.has_skeleton()?;
        Rebuilt::open(&self.root, |damage| Err(io::Error::other(damage)))
            .map_err(|source| StorageError::Skeleton { chain: self.chain.clone(), source })
    }

    /// Compares the tree with the archive: content, and all that an archive says of its entries. `diff_id` is the digest of
    /// the uncompressed archive by the image's config.
    ///
    /// # Errors
    /// [`StorageError::NoSkeleton`], and [`StorageError::Verify`] when the comparison itself fails. What is damaged is no
    /// error, but in the report.
    pub fn verify(&self, diff_id: &Digest) -> Result<Report, StorageError> {
        self.has_skeleton()?;
        verify::verify(&self.root, &self.chain, diff_id, &|| self.below())
    }

    /// What it lies on; `None` when that is not known to the end.
    fn below(&self) -> io::Result<Option<Merged>> {
        let mut roots = Vec::new();
        let (mut parent, mut base) = (self.marker.parent.clone(), self.marker.is_base());
        while let Some(chain) = parent.filter(|_| roots.len() < MAX_BELOW) {
            let layer = Root::open(&self.layers.join(chain.hex()))?;
            roots.push(layer.open_dir("diff")?);
            let marker = Marker::read(&layer, &chain)?;
            base = marker.is_base() || marker.opaque_root;
            parent = marker.parent.filter(|_| !marker.opaque_root);
        }
        Ok(base.then(|| Merged::new(roots)))
    }

    fn has_skeleton(&self) -> Result<(), StorageError> {
        match self.marker.archive {
            Some(_) => Ok(()),
            None => Err(StorageError::NoSkeleton { chain: self.chain.clone() }),
        }
    }
}
