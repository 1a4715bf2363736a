//! Counted claims on layers, in memory: containers and pulls are claimed anew when the daemon starts.

use std::sync::Arc;

use super::{Digest, Inner, State};

/// While this lives, its layers are not removed.
#[derive(Debug)]
#[must_use = "the layers may be removed once the lease is dropped"]
pub struct LayerLease {
    inner: Arc<Inner>,
    chains: Vec<Digest>,
}

impl LayerLease {
    pub(super) fn new(inner: &Arc<Inner>, state: &mut State, chains: &[Digest]) -> Self {
        for chain in chains {
            *state.leases.entry(chain.clone()).or_default() += 1;
        }
        Self { inner: Arc::clone(inner), chains: chains.to_vec() }
    }

    /// The layers, as they were given.
    #[must_use]
    pub fn chains(&self) -> &[Digest] {
        &self.chains
    }
}

impl Drop for LayerLease {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        let mut freed = false;
        for chain in &self.chains {
            if let Some(count) = state.leases.get_mut(chain) {
                *count -= 1;
                if *count == 0 {
                    state.leases.remove(chain);
                    freed |= state.spared.remove(chain);
                }
            }
        }
        drop(state);
        if freed {
            self.inner.freed.notify_one();
        }
    }
}
