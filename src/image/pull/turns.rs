//! One at a time: whoever wants the same content as somebody else waits until that one has it, or has failed.
//!
//! A turn is waited for with nothing in hand, and who has one waits for none: so nobody can wait in a circle, whatever
//! layers images share in whatever order.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

use crate::storage::Digest;

/// Who has its turn, and who waits, by digest of the content.
#[derive(Debug, Default)]
pub(in crate::image) struct Turns(Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>);

impl Turns {
    /// Waits for a turn; those who asked before come before. It is over when the guard is dropped.
    pub(super) async fn take(&self, content: &Digest) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            turns.get(content).and_then(Weak::upgrade).unwrap_or_else(|| {
                let turn = Arc::default();
                turns.insert(content.clone(), Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }

    /// How many have a turn or wait for one.
    #[cfg(test)]
    pub(in crate::image) fn count(&self, content: &Digest) -> usize {
        let turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        turns.get(content).map_or(0, Weak::strong_count)
    }
}
