//! Which network a new pod gets: the builtin one or the CNI's; and the builtin one's place in the front.
//!
//! With `network.mode = "auto"` a CNI configuration, once there is one, is what new pods get. The builtin network serves as
//! long as the folder has no configuration, good or bad. It never takes the place of a CNI network: when a configuration goes
//! away under pods, or under this process, the network is not ready, as it always was. A pod stays on the network that it was
//! put on, and that network takes it down.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::builtin::{self, Builtin, BuiltinError, Limits, Touched};
use super::capability::HostPort;
use super::conf::NetworkList;
use super::status::{Current, NetworkStatus, not_ready};
use super::{Attachment, Network, NetworkError, PodAttachment};
use crate::config::NetworkMode;
use crate::sys::netlink::Event;
use crate::task;

/// After a change of somebody else to our tables, so long is waited for the rest of it.
const SETTLE: Duration = Duration::from_millis(20);
/// Least time between two repairs, so that a fight with another program costs neither much.
const PAUSE: Duration = Duration::from_millis(500);
/// Between two attempts to hear of changes, and after a repair that failed.
pub(super) const RETRY: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 10_000 });

impl Network {
    /// The CNI network of a new pod; `None` for the builtin one.
    pub(super) async fn list_for_new_pod(&self) -> Result<Option<Arc<NetworkList>>, NetworkError> {
        match self.config.mode {
            NetworkMode::Builtin => return Ok(None),
            NetworkMode::Cni => return self.list_or_reload().await.map(Some),
            NetworkMode::Auto => {}
        }
        let known = self.current.load_full();
        let read = if known.list.is_some() { known } else { self.reload().await };
        if self.builtin_serves(&read) {
            return Ok(None);
        }
        read.list.clone().map(Some).ok_or_else(|| NetworkError::NotReady(read.status.message.clone()))
    }

    /// Notes that the folder has a CNI network.
    pub(super) fn note_cni(&self, list: &NetworkList) {
        let first = !self.cni_seen.swap(true, Ordering::AcqRel);
        let pods = self.builtin.pods();
        if first && pods > 0 && self.config.mode == NetworkMode::Auto {
            let network = &list.name;
            tracing::warn!(
                network,
                pods,
                "there is a CNI configuration now: new pods get it, older ones stay on the builtin network"
            );
        }
    }

    /// Whether new pods get the builtin network, after what was read in the folder.
    pub(super) fn builtin_serves(&self, read: &Current) -> bool {
        match self.config.mode {
            NetworkMode::Builtin => true,
            NetworkMode::Cni => false,
            NetworkMode::Auto => read.list.is_none() && read.absent && !self.cni_seen.load(Ordering::Acquire),
        }
    }

    pub(super) async fn attach_builtin(
        &self,
        pod: &PodAttachment,
        ports: Vec<HostPort>,
        runtime: &Map<String, Value>,
    ) -> Result<Attachment, NetworkError> {
        let owner = self.claim(pod, &ports)?;
        let wanted = builtin::Pod { limits: limits(runtime), ..pod_of(pod, ports) };
        let network = Arc::clone(&self.builtin);
        let attached = task::blocking(move || network.attach(&wanted)).await;
        attached.map_err(|error| {
            let error = NetworkError::Builtin { pod: pod.full_name(), source: Box::new(error) };
            if error.left_nothing() {
                owner.give_back();
            }
            error
        })
    }

    /// Takes the pod down if it is on the builtin network; false when it is not.
    pub(super) async fn detach_builtin(&self, pod: &PodAttachment) -> Result<bool, NetworkError> {
        let (network, id) = (Arc::clone(&self.builtin), pod.sandbox_id.clone());
        let released = task::blocking(move || -> Result<bool, BuiltinError> {
            let held = network.lease(&id)?.is_some();
            network.release(&id)?;
            Ok(held)
        });
        let released = released.await;
        let held = released.map_err(|error| NetworkError::Builtin { pod: pod.full_name(), source: Box::new(error) })?;
        if held {
            // The pod is off the network. Its link is gone soon, together with those of pods that stop at the same time.
            drop(task::spawn("network-links", reap(Arc::clone(&self.builtin))));
        }
        Ok(held || pod.made.as_ref().is_some_and(|made| builtin::lease_of(made).is_some()))
    }

    /// Notes on which network a pod of an earlier life of the daemon is.
    pub(super) fn adopt_mode(&self, pod: &PodAttachment, ports: Vec<HostPort>) {
        let recorded = pod.made.as_ref().and_then(builtin::lease_of);
        let held = recorded.is_some() || self.builtin.lease(&pod.sandbox_id).is_ok_and(|lease| lease.is_some());
        if !held {
            self.cni_seen.store(true, Ordering::Release);
            return;
        }
        // What was attached had legal annotations.
        let runtime = super::capability::runtime_config(pod, &ports).unwrap_or_default();
        let wanted = builtin::Pod { limits: limits(&runtime), ..pod_of(pod, ports) };
        if let Err(error) = self.builtin.adopt(&wanted, recorded) {
            tracing::error!(pod = wanted.name, error = %crate::telemetry::chain(&error), "the pod's lease cannot be taken over");
        }
    }

    pub(super) async fn reconcile_builtin(&self) {
        let (network, mode) = (Arc::clone(&self.builtin), self.config.mode);
        let done =
            task::blocking(
                move || {
                    if mode == NetworkMode::Cni && network.is_unused() { Ok(()) } else { network.reconcile() }
                },
            );
        if let Err(error) = done.await {
            tracing::error!(error = %crate::telemetry::chain(&error), "the builtin network could not be brought in order");
        }
    }

    /// The pod CIDRs that the kubelet hands over (UpdateRuntimeConfig). The CNI's network says itself which addresses pods get.
    ///
    /// # Errors
    /// When they are no subnets for pods, or pods have addresses of the present ones; the present ones then stay.
    pub async fn set_pod_cidrs(&self, cidrs: Vec<String>) -> Result<(), NetworkError> {
        if self.config.mode == NetworkMode::Cni {
            return Ok(());
        }
        let network = Arc::clone(&self.builtin);
        let taken = task::blocking(move || network.hand_over(&cidrs)).await;
        if taken.map_err(|error| NetworkError::BuiltinNode(Box::new(error)))? {
            self.poke.notify_one();
        }
        Ok(())
    }

    /// What the builtin network says of itself.
    pub(super) async fn check_builtin(&self) -> NetworkStatus {
        let network = Arc::clone(&self.builtin);
        let checked = task::blocking(move || network.check().map(|()| network.obstacles())).await;
        match checked {
            Ok(obstacles) => {
                NetworkStatus { ready: true, message: obstacles.join("; "), obstacles, ..NetworkStatus::default() }
            }
            Err(error) => not_ready(format!("builtin network: {}", crate::telemetry::chain(&error)), Vec::new()),
        }
    }

    /// Starts the task that puts our rules back when another program removes them, and has Status looked at anew when others'
    /// change, which may be in the way. It ends when the last owner of the network
    /// is gone.
    pub fn guard_tables(self: &Arc<Self>) {
        if self.config.mode != NetworkMode::Cni {
            // The handle is not needed: the task ends by itself, and has nothing to hand back.
            drop(task::spawn("network-tables", guard(Arc::downgrade(&self.builtin), Arc::clone(&self.poke))));
        }
    }
}

pub(super) async fn guard(network: Weak<Builtin>, status: Arc<Notify>) {
    loop {
        match builtin::listen() {
            Ok(monitor) => watch(&network, monitor, &status).await,
            Err(error) => tracing::warn!(%error, "changes of others to the rules of pods are not noticed"),
        }
        if network.strong_count() == 0 {
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Repairs until the socket is of no use or nobody needs it.
async fn watch(network: &Weak<Builtin>, mut monitor: crate::sys::netlink::Monitor, status: &Notify) {
    // When rules of others are looked at: each program changes many at a time, and some do so all day.
    let mut look_at = None;
    loop {
        let events = tokio::select! {
            events = monitor.next() => events,
            () = tokio::time::sleep_until(look_at.unwrap_or_else(|| Instant::now() + RETRY)) => Ok(Vec::new()),
        };
        let Ok(events) = events else { return };
        let Some(strong) = network.upgrade() else { return };
        let touched = if events.is_empty() { Touched::default() } else { touched(strong, events).await };
        if look_at.is_some_and(|at| at <= Instant::now()) {
            look_at = None;
            status.notify_one();
        }
        if touched.others && look_at.is_none() {
            look_at = Some(Instant::now() + PAUSE);
        }
        if touched.ours {
            tokio::time::sleep(SETTLE).await;
            repair(network).await;
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Off the runtime's threads, since a change to the tables may hold their lock.
async fn touched(network: Arc<Builtin>, events: Vec<Event>) -> Touched {
    task::blocking(move || network.touched(&events)).await
}

/// Makes the tables anew, and tries for as long as the kernel refuses: no event tells when it will not any more.
async fn repair(network: &Weak<Builtin>) {
    while let Some(strong) = network.upgrade() {
        match task::blocking(move || strong.repair()).await {
            Ok(()) => {
                tracing::warn!("another program changed the tables of pods in nftables: they are made anew");
                return;
            }
            Err(error) => {
                tracing::error!(error = %crate::telemetry::chain(&error), "the tables of pods in nftables cannot be made anew");
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Removes the links of pods that were released. What fails is tried again with the next pod's, and at the next start.
async fn reap(network: Arc<Builtin>) {
    if let Err(error) = task::blocking(move || network.reap()).await {
        tracing::error!(error = %crate::telemetry::chain(&error), "links of pods that are gone cannot be removed yet");
    }
}

fn pod_of(pod: &PodAttachment, ports: Vec<HostPort>) -> builtin::Pod {
    builtin::Pod {
        sandbox_id: pod.sandbox_id.clone(),
        name: pod.full_name(),
        netns: Path::to_owned(&pod.netns),
        ports,
        limits: Limits::default(),
    }
}

/// The bandwidth of the capability arguments, which were checked.
fn limits(runtime: &Map<String, Value>) -> Limits {
    let bandwidth = runtime.get("bandwidth");
    let rate = |key| bandwidth.and_then(|limits| limits.get(key)).and_then(Value::as_u64);
    Limits { ingress: rate("ingressRate"), egress: rate("egressRate") }
}
