//! Networks of pods that are gone: DEL failed, and nobody will ask for it again. It is tried again in the background, so that
//! an address is not lost because a plugin's daemon was away for a minute.
//!
//! What DEL needs is in the result cache, so nothing is lost with this process either: the collection at the next start
//! ([`Network::gc`]) finds it there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::{Network, PodAttachment};
use crate::task;

/// Between the first attempts; each wait is twice the one before, up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_secs(30);
const PAUSE_MAX: Duration = Duration::from_secs(15 * 60);
/// Most pods that are kept in mind. Those beyond wait for the next start.
const PODS_MAX: usize = 1024;

/// The pods, by sandbox id.
#[derive(Debug, Default)]
pub(super) struct Abandoned(Mutex<BTreeMap<String, PodAttachment>>);

impl Abandoned {
    fn list(&self) -> Vec<PodAttachment> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

impl Network {
    /// Takes over a pod whose record goes although its network could not be taken down. Its host ports stay taken until it is.
    pub fn abandon(&self, pod: PodAttachment) {
        let mut pods = self.abandoned.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pods.len() < PODS_MAX || pods.contains_key(&pod.sandbox_id) {
            pods.insert(pod.sandbox_id.clone(), pod);
        } else {
            tracing::error!(
                sandbox = pod.sandbox_id,
                "more than {PODS_MAX} networks wait to be taken down: this one waits for the next start"
            );
        }
    }

    /// One more DEL for each pod that was abandoned, one after the other; the number of those that are left.
    pub(super) async fn retry_abandoned(&self) -> usize {
        let mut left = 0;
        for pod in self.abandoned.list() {
            // The pin went with the pod's record; should it be there still, DEL has use for it.
            match self.detach(&pod, true).await {
                Ok(()) => {
                    tracing::info!(sandbox = pod.sandbox_id, "the network of a pod that is gone is taken down at last");
                    self.abandoned.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&pod.sandbox_id);
                }
                Err(error) => {
                    left += 1;
                    let error = crate::telemetry::chain(&error);
                    tracing::warn!(sandbox = pod.sandbox_id, error = %error, "the network of a pod that is gone cannot be taken down yet");
                }
            }
        }
        left
    }

    /// Starts the task that tries again. It ends when the last owner of the network is gone.
    pub(super) fn start_retries(self: &Arc<Self>) {
        // The handle is not needed: the task ends by itself, and has nothing to hand back.
        drop(task::spawn("network-retry", retry(Arc::downgrade(self))));
    }
}

async fn retry(network: Weak<Network>) {
    let mut pause = PAUSE;
    loop {
        tokio::time::sleep(pause).await;
        let Some(network) = network.upgrade() else { return };
        pause = if network.retry_abandoned().await == 0 { PAUSE } else { (pause * 2).min(PAUSE_MAX) };
    }
}
