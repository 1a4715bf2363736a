//! A layer store in memory, for tests: verifies diff ids and keeps count of everything.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::*;

/// The store; clones of the `Arc`s inside staged layers and leases keep the counts.
#[derive(Debug, Default)]
pub(crate) struct FakeLayers {
    layers: Mutex<HashMap<Digest, u64>>,
    leases: Arc<Mutex<HashMap<Digest, usize>>>,
    staged: Arc<AtomicUsize>,
    stages: AtomicUsize,
    freed: Arc<Notify>,
}

struct FakeStaged {
    chain: Digest,
    size: u64,
    alive: Arc<AtomicUsize>,
}

struct FakeLease {
    chain: Vec<Digest>,
    leases: Arc<Mutex<HashMap<Digest, usize>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeLayers {
    /// Layers that are staged and neither committed nor dropped.
    pub(crate) fn staged(&self) -> usize {
        self.staged.load(Ordering::SeqCst)
    }

    /// Calls of `stage` so far.
    pub(crate) fn stages(&self) -> usize {
        self.stages.load(Ordering::SeqCst)
    }

    pub(crate) fn count(&self) -> usize {
        locked(&self.layers).len()
    }

    pub(crate) fn leases(&self) -> usize {
        locked(&self.leases).len()
    }

    /// Loses a layer, as a damaged disk does.
    pub(crate) fn lose(&self, chain: &Digest) {
        locked(&self.layers).remove(chain);
    }
}

impl Drop for FakeStaged {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for FakeLease {
    fn drop(&mut self) {
        let mut leases = locked(&self.leases);
        for chain in &self.chain {
            if let Some(count) = leases.get_mut(chain) {
                *count -= 1;
                if *count == 0 {
                    leases.remove(chain);
                }
            }
        }
    }
}

impl LayerStore for FakeLayers {
    fn has_layer(&self, chain: &Digest) -> bool {
        locked(&self.layers).contains_key(chain)
    }

    fn stage(
        &self,
        chain: &Digest,
        diff_id: Option<&Digest>,
        packing: Packing,
        content: &mut (dyn Read + Send),
    ) -> Result<Staged, LayerError> {
        self.stages.fetch_add(1, Ordering::SeqCst);
        let mut bytes = Vec::new();
        let read = match packing {
            Packing::None => content.read_to_end(&mut bytes),
            Packing::Gzip => flate2::read::GzDecoder::new(content).read_to_end(&mut bytes),
            Packing::Zstd => Err(io::Error::from(io::ErrorKind::Unsupported)),
        };
        read.map_err(|error| LayerError::of_the_layer(error.to_string()))?;
        if diff_id.is_some_and(|want| Digest::of(&bytes) != *want) {
            return Err(LayerError::of_the_layer("its diff id differs"));
        }
        self.staged.fetch_add(1, Ordering::SeqCst);
        let size = u64::try_from(bytes.len()).unwrap_or(0);
        Ok(Staged(Box::new(FakeStaged { chain: chain.clone(), size, alive: self.staged.clone() })))
    }

    /// It keeps no content.
    fn restage(&self, _: &Digest, _: &Digest, _: &(dyn Fn() -> bool + Sync)) -> Option<Staged> {
        None
    }

    fn commit(&self, staged: Vec<Staged>) -> Result<(), LayerError> {
        for layer in staged {
            let layer = layer.0.downcast::<FakeStaged>().map_err(|_| LayerError::of_the_layer("of another store"))?;
            locked(&self.layers).insert(layer.chain.clone(), layer.size);
        }
        Ok(())
    }

    fn lease(&self, chain: &[Digest]) -> Lease {
        let mut leases = locked(&self.leases);
        for layer in chain {
            *leases.entry(layer.clone()).or_default() += 1;
        }
        Lease(Box::new(FakeLease { chain: chain.to_vec(), leases: self.leases.clone() }))
    }

    fn remove_unleased(&self, keep: &HashSet<Digest>) -> Result<(), LayerError> {
        let leases = locked(&self.leases);
        locked(&self.layers).retain(|chain, _| keep.contains(chain) || leases.contains_key(chain));
        Ok(())
    }

    /// It has nothing to say: the tests that hold leases over a removal use the real store.
    fn freed(&self) -> Arc<Notify> {
        self.freed.clone()
    }

    fn usage(&self) -> Usage {
        let layers = locked(&self.layers);
        Usage { bytes: layers.values().sum(), inodes: u64::try_from(layers.len()).unwrap_or(0) }
    }

    fn layer_size(&self, chain: &Digest) -> Option<Usage> {
        locked(&self.layers).get(chain).map(|size| Usage { bytes: *size, inodes: 1 })
    }
}
