//! Taking over the sandboxes of an earlier daemon.

use std::collections::HashMap;

use cri_proto::runtime::v1::NamespaceMode;

use crate::keeper::Held;
use crate::state::{Found, SandboxPhase, SandboxRecord};

use super::{Paths, PodError, Pods, init_id, namespace_options, owners};

impl Pods {
    /// Takes over the sandboxes of the records. `held` is what the keeper has, by id; what belongs to a sandbox is taken
    /// out of it.
    pub async fn recover(&self, found: Vec<Found<SandboxRecord>>, held: &mut HashMap<String, Held>) {
        for Found { record, other_boot } in found {
            let id = record.id.clone();
            let init = held.remove(&init_id(&id));
            if let Some(process) = init.as_ref().and_then(Held::process) {
                self.note_init(&id, process);
            }
            if let Err(error) = self.recover_one(record, other_boot, init).await {
                // Its record stays, and the next start tries again; the others are not held up by it.
                tracing::error!(%id, error = %crate::telemetry::chain(&error), "a sandbox of an earlier run cannot be taken over");
            }
        }
    }

    async fn recover_one(
        &self,
        mut record: SandboxRecord,
        other_boot: bool,
        init: Option<Held>,
    ) -> Result<(), PodError> {
        let store = &self.containers().resources().store;
        match record.phase {
            SandboxPhase::Creating | SandboxPhase::Removing => {
                self.take_away_for_good(&mut record).await?;
                store.remove(&record.id)?;
                return Ok(());
            }
            SandboxPhase::Ready if other_boot || !self.stands(&record, init) => {
                record.phase = SandboxPhase::NotReady;
                record.ips.clear();
                store.put_sandbox(&record)?;
            }
            SandboxPhase::Ready => self.restore_attachment(&record),
            SandboxPhase::NotReady => {}
        }
        self.adopt(record, &[]);
        Ok(())
    }

    /// Whether everything that makes a sandbox READY is still there.
    fn stands(&self, record: &SandboxRecord, init: Option<Held>) -> bool {
        let dir = Paths::new(&self.containers().resources().state_dir, &record.id).namespaces;
        let options = namespace_options(&record.config);
        let own_net = options.network() != NamespaceMode::Node;
        let init_lives = !record.has_init || init.is_some_and(|init| init.exit.is_none());
        let own_user = owners(&options).is_some();
        let user_stands = !own_user || crate::sys::netns::is_namespace(&dir.join("user"));
        init_lives && user_stands && (!own_net || crate::sys::netns::is_namespace(&dir.join("net")))
    }
}
