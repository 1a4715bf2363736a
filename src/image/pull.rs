//! Pulling: name → places → manifest → config → layers → durable → visible.
//!
//! A pull runs in a task of its own and ends when nobody waits for it. Only its last step, the commit, is cut loose: once
//! begun it runs to its end, so that a caller who hangs up leaves either all of an image or nothing.

mod download;
pub(super) mod logins;
mod pipe;
mod resolve;
mod turns;

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::try_join_all;

use self::logins::Logins;
use super::config::LayerPlan;
use super::error::{Attempt, ImageError};
use super::flights::Waiter;
use super::layers::{Lease, Staged};
use super::record::ImageRecord;
use super::reference::{Reference, Version};
use super::registries::Endpoint;
use super::registry::auth::Credentials;
use super::registry::{Patience, Session};
use super::table::Addition;
use super::trust::Trust;
use super::{Inner, on_disk};
use crate::storage::Digest;
use crate::task;

/// A pull's name among those in flight: callers with other credentials do not share it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct PullKey {
    /// To be tried in order: more than one for a short name.
    pub names: Vec<Reference>,
    pub credentials: Option<Credentials>,
    /// The pod's namespace: what may be pulled can depend on it.
    pub namespace: Option<String>,
}

/// A layer that is unpacked, shared by every pull that needs it.
#[derive(Debug, Clone)]
pub(super) struct Slot(Arc<tokio::sync::Mutex<SlotState>>);

#[derive(Debug)]
enum SlotState {
    Staged(Staged),
    Committed,
    Failed,
}

/// Why a layer could not be had.
#[derive(Debug, Clone)]
pub(super) struct LayerFault {
    pub attempts: Vec<Attempt>,
}

pub(super) use turns::Turns;

pub(super) type LayerResult = Result<Slot, LayerFault>;
type LayerWaiter = Waiter<Digest, LayerResult>;

impl Slot {
    pub(super) fn new(staged: Option<Staged>) -> Self {
        let state = staged.map_or(SlotState::Committed, SlotState::Staged);
        Self(Arc::new(tokio::sync::Mutex::new(state)))
    }
}

/// Runs one pull: of the first name that there is an image for.
pub(super) async fn run(inner: Arc<Inner>, key: PullKey) -> Result<Arc<ImageRecord>, ImageError> {
    let mut failures = Vec::new();
    for reference in &key.names {
        match Box::pin(one(&inner, &key, reference)).await {
            Err(error) if key.names.len() > 1 && error.is_elsewhere() => failures.push(error),
            result => return result,
        }
    }
    Err(ImageError::NotFoundAnywhere { failures })
}

async fn one(inner: &Arc<Inner>, key: &PullKey, reference: &Reference) -> Result<Arc<ImageRecord>, ImageError> {
    let name = reference.to_string();
    let settings = inner.settings.load_full();
    let trust = Trust::new(inner.rules.policies(), key.namespace.clone(), settings.unnamed_signatures);
    trust.admits_some(reference)?;
    let clients = inner.rules.clients();
    let endpoints = clients.registries().endpoints(reference)?;
    let logins = Logins::load(&settings, key.namespace.as_deref(), reference).await?;
    let session = |endpoint: Endpoint| {
        // A mirror that is down must not hold the pull up for long: there is another place to go.
        let retries = if endpoint.mirror { settings.patience.retries.min(1) } else { settings.patience.retries };
        let patience = Patience { retries, ..settings.patience.clone() };
        let login = logins.login(key.credentials.as_ref(), &endpoint);
        Arc::new(Session::new(endpoint, login, clients.clone(), patience))
    };
    let sessions: Vec<Arc<Session>> = endpoints.into_iter().map(session).collect();
    let found = resolve::resolve(inner, reference, &sessions, &trust).await?;
    let (sessions, resolved) = match found {
        resolve::Found::Known(record) => return Ok(record),
        resolve::Found::New { sessions, resolved } => (Arc::<[Arc<Session>]>::from(sessions), resolved),
    };
    let chain: Vec<Digest> = resolved.plan.iter().map(|layer| layer.chain.clone()).collect();
    // The lease is taken before looking, so that what is there stays there.
    let store = inner.layers.clone();
    let leased = chain.clone();
    let lease = task::blocking(move || store.lease(&leased)).await;
    let layers = fetch_layers(inner, &sessions, &resolved.plan, &name).await?;
    let (tag, digested) = names_of(reference, &resolved.top);
    let addition = Addition {
        config: resolved.config,
        file: resolved.file,
        manifest: resolved.manifest,
        documents: resolved.documents,
        chain,
        tag,
        digested: Some(digested),
        layers_size: 0,
    };
    let commit =
        task::spawn("image-commit", commit(inner.clone(), Commit { name: name.clone(), lease, layers, addition }));
    commit.await.unwrap_or(Err(ImageError::Lost { reference: name }))
}

/// The names that a pull gives: a pull by digest makes no tag.
pub(super) fn names_of(reference: &Reference, top: &Digest) -> (Option<String>, String) {
    let tag = match reference.version() {
        Version::Tag(_) => reference.tagged(),
        Version::Digest(_) => None,
    };
    (tag, reference.digested(top))
}

/// Gets every layer that is not there yet, side by side.
async fn fetch_layers(
    inner: &Arc<Inner>,
    sessions: &Arc<[Arc<Session>]>,
    plan: &[LayerPlan],
    name: &str,
) -> Result<Vec<(LayerWaiter, Slot)>, ImageError> {
    let store = inner.layers.clone();
    let wanted = plan.to_vec();
    let missing: Vec<LayerPlan> =
        task::blocking(move || wanted.into_iter().filter(|layer| !store.has_layer(&layer.chain)).collect()).await;
    let fetches = missing.into_iter().map(|layer| async move {
        let join = || {
            inner.layer_flights.join("image-layer", layer.chain.clone(), || {
                download::fetch(inner.clone(), sessions.clone(), layer.clone())
            })
        };
        let mut waiter = join();
        let mut result = waiter.wait().await;
        // Another pull's credentials or registry failed; that says nothing about ours. One of those who waited goes next.
        while !waiter.started && !matches!(result, Some(Ok(_))) {
            waiter.retire();
            waiter = join();
            result = waiter.wait().await;
        }
        match result {
            Some(Ok(slot)) => Ok((waiter, slot)),
            Some(Err(fault)) => {
                let stage = format!("the layer {}", layer.digest);
                Err(ImageError::from_attempts(name, &stage, fault.attempts))
            }
            None => Err(ImageError::Lost { reference: name.to_owned() }),
        }
    });
    try_join_all(fetches).await
}

struct Commit {
    name: String,
    lease: Lease,
    layers: Vec<(LayerWaiter, Slot)>,
    addition: Addition,
}

/// Layers durable, then documents, then the record, then the answer.
async fn commit(inner: Arc<Inner>, commit: Commit) -> Result<Arc<ImageRecord>, ImageError> {
    let Commit { name, lease, layers, mut addition } = commit;
    let (waiters, slots): (Vec<LayerWaiter>, Vec<Slot>) = layers.into_iter().unzip();
    // Base first: images share layers only from the base up, so two commits always lock in the same order.
    let mut held = Vec::with_capacity(slots.len());
    let mut staged = Vec::new();
    for slot in slots {
        let mut state = slot.0.lock_owned().await;
        match std::mem::replace(&mut *state, SlotState::Failed) {
            SlotState::Staged(layer) => staged.push(layer),
            SlotState::Committed => *state = SlotState::Committed,
            SlotState::Failed => return Err(ImageError::Lost { reference: name }),
        }
        held.push(state);
    }
    let store = inner.layers.clone();
    let began = Instant::now();
    let committed = task::blocking(move || if staged.is_empty() { Ok(()) } else { store.commit(staged) }).await;
    if committed.is_ok() {
        for state in &mut held {
            **state = SlotState::Committed;
        }
    }
    drop(held);
    drop(waiters);
    committed.map_err(|source| ImageError::Commit { reference: name.clone(), source })?;
    task::blocking(move || {
        addition.layers_size = on_disk(inner.layers.as_ref(), &addition.chain);
        let record = inner.add(addition, lease);
        let took = began.elapsed();
        tracing::debug!(
            image = name,
            durable_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            "the image is durable"
        );
        record
    })
    .await
}
