//! The driver: the one task that changes a sandbox.

use std::sync::Arc;
use std::time::Duration;

use cri_proto::runtime::v1::LinuxContainerResources;
use tokio::sync::{mpsc, oneshot};

use crate::events::Kind;
use crate::state::{SandboxPhase, SandboxRecord};

use super::{Pod, PodError, Pods};

/// RemovePodSandbox calls that a network which cannot be taken down may fail, before the sandbox goes without it.
const DETACH_ATTEMPTS: u32 = 3;

/// The answer to a command.
pub(super) type Reply = oneshot::Sender<Result<(), PodError>>;

/// What a driver is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    Stop {
        reply: Reply,
    },
    Remove {
        reply: Reply,
    },
    /// What the sandbox costs, and the sum of its containers.
    Update {
        told: Box<(Option<LinuxContainerResources>, Option<LinuxContainerResources>)>,
        reply: Reply,
    },
    /// The pid 1 that the pod's containers share has ended.
    InitEnded,
}

struct Driver {
    pods: Pods,
    handle: Arc<Pod>,
    record: SandboxRecord,
    failed_detaches: u32,
    /// Its end has been told of.
    stop_told: bool,
}

/// Starts the driver of a sandbox that stands.
pub(super) fn start(pods: Pods, handle: Arc<Pod>, mut commands: mpsc::Receiver<Command>, record: SandboxRecord) {
    let stop_told = record.phase != SandboxPhase::Ready;
    let mut driver = Driver { pods, handle, record, failed_detaches: 0, stop_told };
    crate::task::spawn("pod", async move {
        while let Some(command) = commands.recv().await {
            match command {
                Command::Stop { reply } => {
                    let result = driver.stop().await;
                    // A caller whose deadline is over has gone; the work is done all the same.
                    let _ = reply.send(result);
                }
                Command::Update { told, reply } => {
                    let _ = reply.send(driver.update(*told));
                }
                Command::InitEnded => driver.init_ended(),
                Command::Remove { reply } => {
                    let result = driver.remove().await;
                    let gone = result.is_ok();
                    let _ = reply.send(result);
                    if gone {
                        return;
                    }
                }
            }
        }
    });
}

impl Driver {
    async fn stop(&mut self) -> Result<(), PodError> {
        // Creations that are under way finish first; the ones that come find the pod not READY.
        let gate = self.handle.gate.clone().write_owned().await;
        if self.record.phase == SandboxPhase::Ready {
            self.record.phase = SandboxPhase::NotReady;
            self.save();
        }
        drop(gate);
        self.stop_containers().await?;
        // What is counted there keeps the network namespace alive.
        self.pods.containers().resources().sampler.forget(&self.record.id);
        let detached = self.pods.detach(&mut self.record).await;
        self.save();
        self.tell_stop();
        detached
    }

    /// Once: a stop may be repeated, and the end of the pod's pid 1 may come before it.
    fn tell_stop(&mut self) {
        if !std::mem::replace(&mut self.stop_told, true) {
            self.tell(&[Kind::Stopped]);
        }
    }

    fn update(
        &mut self,
        (overhead, resources): (Option<LinuxContainerResources>, Option<LinuxContainerResources>),
    ) -> Result<(), PodError> {
        let mut changed = self.record.clone();
        changed.overhead = overhead.or(changed.overhead);
        changed.resources = resources.or(changed.resources);
        self.pods.containers().resources().store.put_sandbox(&changed)?;
        self.record = changed;
        self.publish();
        Ok(())
    }

    /// Without its pid 1 the pod cannot run a container any more; the kubelet makes another one.
    fn init_ended(&mut self) {
        if self.record.phase == SandboxPhase::Ready {
            tracing::warn!(id = %self.record.id, "the pod's pid 1 has ended");
            self.record.phase = SandboxPhase::NotReady;
            self.save();
            self.tell_stop();
        }
    }

    /// Kills the containers, all at once. The kubelet has stopped them one by one before, with their grace.
    async fn stop_containers(&self) -> Result<(), PodError> {
        let containers = self.pods.containers();
        let mut stops = Vec::new();
        for container in containers.of_sandbox(&self.record.id) {
            let containers = containers.clone();
            stops.push(crate::task::spawn("stop-container", async move {
                containers.stop(container.id(), Duration::ZERO).await
            }));
        }
        for stop in stops {
            if let Ok(result) = stop.await {
                result?;
            }
        }
        Ok(())
    }

    async fn remove(&mut self) -> Result<(), PodError> {
        if let Err(error) = self.stop().await {
            self.give_up_network(error)?;
        }
        let containers = self.pods.containers();
        for container in containers.of_sandbox(&self.record.id) {
            containers.remove(container.id()).await?;
        }
        let store = &containers.resources().store;
        self.record.phase = SandboxPhase::Removing;
        if let Err(error) = store.put_sandbox(&self.record) {
            tracing::warn!(id = %self.record.id, error = %crate::telemetry::chain(&error), "removal goes on without a record of it");
        }
        let removed = self.pods.take_away(&mut self.record).await;
        if let Err(error) = removed {
            self.record.phase = SandboxPhase::NotReady;
            self.save();
            return Err(error);
        }
        store.remove(&self.record.id)?;
        self.pods.forget(&self.record.id);
        self.tell(&[Kind::Deleted]);
        Ok(())
    }

    /// A plugin that can never take the network down (its binary is gone, say) must not keep the pod for ever. The error
    /// is the caller's until it has come [`DETACH_ATTEMPTS`] times.
    fn give_up_network(&mut self, error: PodError) -> Result<(), PodError> {
        let PodError::Network(failed) = &error else { return Err(error) };
        self.failed_detaches += 1;
        if self.failed_detaches < DETACH_ATTEMPTS {
            return Err(error);
        }
        self.pods.abandon_network(&mut self.record, failed);
        Ok(())
    }

    /// Writes and publishes the record.
    fn save(&self) {
        if let Err(error) = self.pods.containers().resources().store.put_sandbox(&self.record) {
            tracing::warn!(id = %self.record.id, error = %crate::telemetry::chain(&error), "the record of a sandbox cannot be written");
        }
        self.publish();
    }

    fn publish(&self) {
        self.handle.record.store(Arc::new(self.record.clone()));
        self.tell(&[]);
    }

    /// Tells those who listen what the published record means.
    fn tell(&self, kinds: &[Kind]) {
        self.pods.containers().resources().events.sandbox(&self.handle.record.load_full(), kinds);
    }
}
