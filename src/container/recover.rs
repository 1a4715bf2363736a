//! Taking over what an earlier daemon left: containers that run on, exits that nobody was told, creations and removals
//! that were cut off.

use std::collections::HashMap;
use std::sync::Arc;

use crate::keeper::{Exit, ExitStatus, Held, HeldProcess};
use crate::monitor::{ExitReport, Stdio};
use crate::runtime::OciRuntime;
use crate::state::{ContainerPhase, ContainerRecord, Ending, Found};

use super::driver::Owned;
use super::{ContainerError, Containers, attach, create, files};

impl Containers {
    /// Takes over the containers of the records. `held` is what the keeper has, by id; what belongs to a container is
    /// taken out of it.
    pub async fn recover(&self, found: Vec<Found<ContainerRecord>>, held: &mut HashMap<String, Held>) {
        for Found { record, other_boot } in found {
            let id = record.id.clone();
            let held = held.remove(&id);
            if let Err(error) = Box::pin(self.recover_one(record, other_boot, held)).await {
                // Its record stays, and the next start tries again; the others are not held up by it.
                tracing::error!(%id, error = %crate::telemetry::chain(&error), "a container of an earlier run cannot be taken over");
            }
        }
    }

    async fn recover_one(
        &self,
        record: ContainerRecord,
        other_boot: bool,
        held: Option<Held>,
    ) -> Result<(), ContainerError> {
        let resources = self.resources().clone();
        let runtime = resources.runtime(&record.handler).ok();
        match record.phase {
            ContainerPhase::Creating | ContainerPhase::Removing => {
                files::take_away(&resources, &record.id, &record.cgroups_path, runtime.as_deref()).await?;
                resources.keeper.forget(&record.id).await?;
                resources.store.remove(&record.id)?;
                Ok(())
            }
            ContainerPhase::Exited => self.stand(record, runtime, None).await,
            ContainerPhase::Created | ContainerPhase::Running if other_boot => {
                self.lost(record, runtime, "the machine was restarted").await
            }
            ContainerPhase::Created | ContainerPhase::Running => self.living(record, runtime, held).await,
        }
    }

    /// A container that was alive when the earlier daemon ended.
    async fn living(
        &self,
        mut record: ContainerRecord,
        runtime: Option<Arc<OciRuntime>>,
        held: Option<Held>,
    ) -> Result<(), ContainerError> {
        let Some((process, stdio)) = held.and_then(|held| take(held, record.config.tty)) else {
            return self.lost(record, runtime, "the keeper was lost together with the daemon").await;
        };
        if record.phase == ContainerPhase::Created && has_started(runtime.as_deref(), &record.id).await {
            // The daemon died between the runtime's start and the record of it.
            record.phase = ContainerPhase::Running;
            record.started_at = crate::sys::host::now_ns();
            self.resources().store.put_container(&record)?;
        }
        self.stand(record, runtime, Some((process, stdio))).await
    }

    async fn stand(
        &self,
        record: ContainerRecord,
        runtime: Option<Arc<OciRuntime>>,
        alive: Option<(HeldProcess, Stdio)>,
    ) -> Result<(), ContainerError> {
        let resources = self.resources();
        let lease = match resources.storage.lease(&record.layers()) {
            Ok(lease) => Some(lease),
            Err(error) => {
                tracing::warn!(id = %record.id, error = %crate::telemetry::chain(&error), "layers of a container are not there");
                None
            }
        };
        let (process, monitor, report, input) = match alive {
            Some((process, stdio)) => {
                let input = stdio.input();
                let (monitor, report) = create::watch(resources, &record, &process, stdio)?;
                (Some(process), Some(monitor), Some(report), input)
            }
            None => (None, None, None, None),
        };
        self.adopt(Owned { record, runtime, process, monitor, input, lease, report }, &[]);
        Ok(())
    }

    /// A container whose end nobody saw.
    async fn lost(
        &self,
        mut record: ContainerRecord,
        runtime: Option<Arc<OciRuntime>>,
        why: &str,
    ) -> Result<(), ContainerError> {
        if let Some(runtime) = &runtime {
            // Whatever still runs of it has no supervisor; it must not run on unseen.
            runtime.delete(&record.id, true).await?;
        }
        let exit = Exit { status: ExitStatus::Unknown, finished_at_ns: crate::sys::host::now_ns() };
        let ending = super::driver::ending(&ExitReport { exit, oom_killed: false });
        record.ending = Some(Ending { message: format!("the exit code is unknown: {why}"), ..ending });
        record.phase = ContainerPhase::Exited;
        self.resources().store.put_container(&record)?;
        self.stand(record, runtime, None).await
    }
}

fn take(mut held: Held, terminal: bool) -> Option<(HeldProcess, Stdio)> {
    let process = held.process()?;
    let stdout = held.fds.remove("stdout");
    let stderr = held.fds.remove("stderr");
    // One that was closed for good is held as something else.
    let stdin = held.fds.remove("stdin").filter(|fd| attach::is_open_stdin(fd));
    Some((process, Stdio { stdin, stdout, stderr, terminal }))
}

async fn has_started(runtime: Option<&OciRuntime>, id: &str) -> bool {
    let Some(runtime) = runtime else { return false };
    // A container that has started and ended since has no "created" state any more either.
    match runtime.state(id).await {
        Ok(Some(state)) => state.status != "created",
        Ok(None) | Err(_) => false,
    }
}
