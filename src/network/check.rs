//! CHECK: whether pods that an earlier life of the daemon attached are as they were made. It informs, and ends nothing
//! (docs/decisions/034).

use super::{Call, Network, NetworkError, PodAttachment, chain, conf};
use crate::task;

impl Network {
    /// Asks the plugins whether the pod's interface is as ADD made it. Fine for a pod that has no network, or one of a
    /// configuration that has no CHECK (older than 0.4.0, or with `disableCheck`).
    ///
    /// # Errors
    /// What the first plugin has to object.
    pub async fn check(&self, pod: &PodAttachment) -> Result<(), NetworkError> {
        // As ADD and DEL: GC must not free what is being looked at.
        let _gate = self.gc_gate.read().await;
        let (cache, id) = (self.cache.clone(), pod.sandbox_id.clone());
        let entries = task::blocking(move || cache.of_container(&id)).await.map_err(NetworkError::Cache)?;
        for entry in entries {
            let list = conf::parse_list(&entry.config, &|_| Ok(Vec::new()));
            // One that does not read, or has no result, was not attached to the end.
            let (Ok(list), Some(result)) = (list, &entry.result) else { continue };
            if list.disable_check || !list.version.has_check() {
                continue;
            }
            let call = Call::of(&entry, Some(&pod.netns));
            let saved = chain::Saved { runtime: &call.runtime, result: Some(result) };
            let checked = chain::check(&self.status_plugins, &list, &call.target(), &saved).await;
            checked.map_err(|error| NetworkError::Check { network: list.name, pod: pod.full_name(), error })?;
        }
        Ok(())
    }
}
