//! The layer store of the node, as the image store sees it.

use std::collections::HashSet;
use std::io::Read;
use std::sync::Arc;

use tokio::sync::Notify;

use super::{LayerError, LayerStore, Lease, Packing, Staged, Usage};
use crate::storage::{self, Compression, Digest, Limits, StagedLayer, Storage, StorageError};

impl LayerStore for Storage {
    fn has_layer(&self, chain: &Digest) -> bool {
        Self::has_layer(self, chain)
    }

    fn stage(
        &self,
        chain: &Digest,
        diff_id: Option<&Digest>,
        packing: Packing,
        content: &mut (dyn Read + Send),
    ) -> Result<Staged, LayerError> {
        let compression = match packing {
            Packing::None => Compression::None,
            Packing::Gzip => Compression::Gzip,
            Packing::Zstd => Compression::Zstd,
        };
        let layer = self.stage_layer(chain, diff_id, compression, content, &Limits::default()).map_err(whole)?;
        Ok(Staged(Box::new(layer)))
    }

    fn restage(&self, chain: &Digest, diff_id: &Digest, wanted: &(dyn Fn() -> bool + Sync)) -> Option<Staged> {
        Self::restage(self, chain, diff_id, wanted).map(|layer| Staged(Box::new(layer)))
    }

    fn commit(&self, staged: Vec<Staged>) -> Result<(), LayerError> {
        let layers = staged
            .into_iter()
            .map(|layer| *layer.0.downcast::<StagedLayer>().expect("only this store stages what it commits"))
            .collect();
        self.commit_layers(layers).map_err(whole)
    }

    fn lease(&self, chain: &[Digest]) -> Lease {
        Lease(Box::new(self.reserve(chain)))
    }

    fn remove_unleased(&self, keep: &HashSet<Digest>) -> Result<(), LayerError> {
        Self::remove_unleased(self, keep).map(|_| ()).map_err(whole)
    }

    fn freed(&self) -> Arc<Notify> {
        Self::freed(self)
    }

    fn usage(&self) -> Usage {
        counted(self.images_usage())
    }

    fn layer_size(&self, chain: &Digest) -> Option<Usage> {
        Self::layer_size(self, chain).map(counted)
    }
}

fn counted(usage: storage::Usage) -> Usage {
    Usage { bytes: usage.bytes, inodes: usage.inodes }
}

/// The whole chain of causes as one text.
fn whole(error: StorageError) -> LayerError {
    LayerError { local: error.is_no_space(), text: crate::telemetry::chain(&error) }
}
