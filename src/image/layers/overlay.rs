//! The layer store that the daemon has: [`Storage`].

use std::collections::HashSet;
use std::io::Read;

use crate::storage::{Compression, Digest, Limits, StagedLayer, Storage};
use crate::telemetry::chain;

use super::{LayerError, LayerStore, Lease, Packing, Staged, Usage};

impl LayerStore for Storage {
    fn has_layer(&self, chain: &Digest) -> bool {
        Storage::has_layer(self, chain)
    }

    fn stage(
        &self,
        chain_id: &Digest,
        diff_id: &Digest,
        packing: Packing,
        content: &mut (dyn Read + Send),
    ) -> Result<Staged, LayerError> {
        let compression = match packing {
            Packing::None => Compression::None,
            Packing::Gzip => Compression::Gzip,
            Packing::Zstd => Compression::Zstd,
        };
        let staged = self.stage_layer(chain_id, diff_id, compression, content, &Limits::default());
        staged.map(|layer| Staged(Box::new(layer))).map_err(|error| LayerError(chain(&error)))
    }

    fn commit(&self, staged: Vec<Staged>) -> Result<(), LayerError> {
        let own = |staged: Staged| staged.0.downcast::<StagedLayer>().map(|layer| *layer);
        let layers: Result<Vec<_>, _> = staged.into_iter().map(own).collect();
        let layers = layers.map_err(|_| LayerError("a layer of another store".to_owned()))?;
        self.commit_layers(layers).map_err(|error| LayerError(chain(&error)))
    }

    fn lease(&self, chain: &[Digest]) -> Lease {
        Lease(Box::new(self.reserve(chain)))
    }

    fn remove_unleased(&self, keep: &HashSet<Digest>) -> Result<(), LayerError> {
        Storage::remove_unleased(self, keep).map(|_| ()).map_err(|error| LayerError(chain(&error)))
    }

    fn usage(&self) -> Usage {
        let usage = self.images_usage();
        Usage { bytes: usage.bytes, inodes: usage.inodes }
    }

    fn layer_size(&self, chain: &Digest) -> Option<Usage> {
        Storage::layer_size(self, chain).map(|usage| Usage { bytes: usage.bytes, inodes: usage.inodes })
    }
}
