//! A layer unpacked from another one that is here: the same archive on other layers below it (docs/decisions/042).
//!
//! A tree serves one chain only, as the folders that it implies look like those below it. Its archive serves all, and the
//! skeleton gives it back byte for byte. What is read may be in the store or still staged, and stays while it is read.

use std::io::{self, Read};
use std::sync::Arc;

use super::layers::Staging;
use super::skeleton::Rebuilt;
use super::unpack::{Compression, Limits};
use super::{Digest, Inner, LayerLease, StagedLayer, Storage, StorageError};

/// Most memory for what an archive replaced in itself, in bytes: enough for thousands of names, and an archive may have
/// millions. Layers with more are not unpacked again.
const MAX_MOVES: usize = 1 << 20;

/// A layer whose archive is read.
struct Source {
    chain: Digest,
    /// Where it is as long as it is staged, and through which it is read wherever a commit moves it.
    staged: Option<Arc<Staging>>,
    /// From when it is in the store.
    _lease: LayerLease,
}

/// Reads on as long as somebody waits for the result.
struct Wanted<'w, R> {
    source: R,
    wanted: &'w (dyn Fn() -> bool + Sync),
}

impl<R: Read> Read for Wanted<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if (self.wanted)() { self.source.read(into) } else { Err(io::Error::other("nobody waits for it any more")) }
    }
}

impl Storage {
    /// Unpacks a layer from the archive of another one that is here, in the store or staged, as [`Storage::stage_layer`] does
    /// from a registry's: what comes out has the diff id, or is not taken. `None` when no layer here has such an archive, or
    /// none that is whole, which is told as a warning that names it; nothing is left in staging then. `wanted` is asked before
    /// each read, and ends the work.
    #[must_use]
    pub fn restage(&self, chain: &Digest, diff_id: &Digest, wanted: &(dyn Fn() -> bool + Sync)) -> Option<StagedLayer> {
        let mut tried = Vec::new();
        while let Some(source) = self.0.source(diff_id, &tried) {
            let staged = self.0.archive(&source).and_then(|archive| {
                let reader = Wanted { source: archive, wanted };
                self.stage_layer(chain, diff_id, Compression::None, reader, &Limits::default())
            });
            match staged {
                Ok(staged) => {
                    tracing::debug!(layer = %chain, source = %source.chain, "a layer is unpacked from another that is here");
                    return Some(staged);
                }
                // Neither says anything about the layer that was read.
                Err(error) if error.is_no_space() || !wanted() => return None,
                Err(error) => {
                    let error = crate::telemetry::chain(&error);
                    tracing::warn!(layer = %source.chain, error, "a layer that is here cannot be unpacked again");
                }
            }
            tried.push(source.chain.clone());
        }
        None
    }
}

impl Inner {
    /// A layer whose archive has this digest, held: neither a removal nor the end of its pull takes it away.
    fn source(self: &Arc<Self>, diff_id: &Digest, tried: &[Digest]) -> Option<Source> {
        let mut state = self.state();
        let fits = |chain: &Digest, archive: &Digest| archive == diff_id && !tried.contains(chain);
        let mut stored = state.layers.iter().filter_map(|(chain, known)| Some((chain, known.archive.as_ref()?)));
        let stored = stored.find(|(chain, archive)| fits(chain, archive)).map(|(chain, _)| (chain.clone(), None));
        let (chain, staged) = stored.or_else(|| {
            let mut staged = state.staged.iter().filter(|layer| fits(&layer.chain, &layer.archive));
            staged.find_map(|layer| Some((layer.chain.clone(), Some(layer.directory.upgrade()?))))
        })?;
        let lease = LayerLease::new(self, &mut state, std::slice::from_ref(&chain));
        Some(Source { chain, staged, _lease: lease })
    }

    fn archive(&self, source: &Source) -> Result<Rebuilt<'static>, StorageError> {
        let strict = |damage| Err(io::Error::other(damage));
        let opened = match &source.staged {
            Some(staged) => Rebuilt::within(MAX_MOVES, &staged.root, strict),
            None => {
                self.layers.open_dir(source.chain.hex()).and_then(|layer| Rebuilt::within(MAX_MOVES, &layer, strict))
            }
        };
        opened.map_err(|source_error| StorageError::Skeleton { chain: source.chain.clone(), source: source_error })
    }
}
