//! From a name to a manifest and config for this machine, at the first place that serves them right.

use std::sync::Arc;

use super::super::config::{self, ConfigFile, LayerPlan};
use super::super::document::{self, ContentError, Document, MAX_CONFIG};
use super::super::error::{Attempt, Failure, ImageError};
use super::super::record::ImageRecord;
use super::super::reference::{Reference, Version};
use super::super::registry::Session;
use super::super::trust::Trust;
use super::super::{Inner, artifact};
use super::names_of;
use crate::storage::Digest;
use crate::task;

/// Indexes within indexes that are followed.
const MAX_DEPTH: usize = 3;

/// What a name leads to.
pub(super) enum Found {
    /// The registry has what we have; the name is on the record now.
    Known(Arc<ImageRecord>),
    /// To be fetched, from these places in this order.
    New { sessions: Vec<Arc<Session>>, resolved: Box<Resolved> },
}

/// Documents that were fetched and verified.
pub(super) struct Resolved {
    /// The digest that the name stands for: an index's, if it leads to one.
    pub top: Digest,
    pub manifest: Digest,
    pub documents: Vec<Vec<u8>>,
    /// Of an artifact, the manifest.
    pub config: Vec<u8>,
    pub file: ConfigFile,
    pub plan: Vec<LayerPlan>,
}

/// Asks one place after the other.
pub(super) async fn resolve(
    inner: &Arc<Inner>,
    reference: &Reference,
    sessions: &[Arc<Session>],
    trust: &Trust,
) -> Result<Found, ImageError> {
    let mut attempts = Vec::new();
    let by_tag = matches!(reference.version(), Version::Tag(_));
    for (at, session) in sessions.iter().enumerate() {
        let endpoint = session.endpoint();
        if by_tag && !endpoint.resolves {
            continue;
        }
        let failure = match known(inner, reference, session).await {
            Ok(Some((record, top))) => {
                trust.check(reference, &[&top, &record.manifest], sessions).await?;
                if let Some(record) = name_known(inner, reference, &record, &top).await? {
                    return Ok(Found::Known(record));
                }
                None
            }
            Ok(None) => None,
            Err(failure) => Some(failure),
        };
        let failure = match failure {
            Some(failure) => failure,
            None => match documents(inner, reference, session).await {
                Ok(resolved) => {
                    trust.check(reference, &[&resolved.top, &resolved.manifest], sessions).await?;
                    let order = order(sessions, at);
                    return Ok(Found::New { sessions: order, resolved: Box::new(resolved) });
                }
                Err(failure) => failure,
            },
        };
        attempts.push(Attempt { host: session.host().to_owned(), failure });
    }
    Err(ImageError::from_attempts(&reference.to_string(), "the manifest", attempts))
}

/// Where to fetch the rest: the place that served the manifest is the likeliest to have it, but for those before it that
/// are only there for content.
fn order(sessions: &[Arc<Session>], at: usize) -> Vec<Arc<Session>> {
    let (before, from) = sessions.split_at(at);
    let (content, asked): (Vec<_>, Vec<_>) = before.iter().cloned().partition(|session| !session.endpoint().resolves);
    let mut order = content;
    order.extend(from.iter().cloned());
    order.extend(asked);
    // One that may only resolve has no content to give, unless there is no other.
    if order.iter().any(|session| session.endpoint().serves) {
        order.retain(|session| session.endpoint().serves);
    }
    order
}

/// Whether the registry's answer to a cheap question is an image that is here. It is asked even for a digest that is
/// here: the registry decides who may have it.
async fn known(
    inner: &Arc<Inner>,
    reference: &Reference,
    session: &Session,
) -> Result<Option<(Arc<ImageRecord>, Digest)>, Failure> {
    let repository = reference.name();
    let seen = |name: &String| name.strip_prefix(&repository).is_some_and(|rest| rest.starts_with([':', '@']));
    let likely = match reference.version() {
        Version::Tag(_) => inner.table.snapshot().by_name.keys().any(seen),
        Version::Digest(digest) => inner.table.snapshot().by_document.contains_key(digest),
    };
    if !likely {
        return Ok(None);
    }
    let top = match session.head(reference.version()).await {
        Ok(Some(top)) => top,
        // Not every registry knows the cheap question, and some answer it otherwise than the real one. What is final is not said here.
        Ok(None) => return Ok(None),
        Err(failure) if failure.is_answer() => return Ok(None),
        Err(failure) => return Err(failure),
    };
    let snapshot = inner.table.snapshot();
    let Some(record) = snapshot.by_document.get(&top).and_then(|id| snapshot.by_id.get(id)).cloned() else {
        return Ok(None);
    };
    let (store, chain) = (inner.layers.clone(), record.chain.clone());
    let whole = task::blocking(move || chain.iter().all(|layer| store.has_layer(layer))).await;
    Ok(whole.then_some((record, top)))
}

async fn name_known(
    inner: &Arc<Inner>,
    reference: &Reference,
    record: &ImageRecord,
    top: &Digest,
) -> Result<Option<Arc<ImageRecord>>, ImageError> {
    let (tag, digested) = names_of(reference, top);
    let (inner, id) = (inner.clone(), record.id.clone());
    task::blocking(move || inner.table.add_name(&id, tag, Some(digested))).await
}

async fn documents(inner: &Arc<Inner>, reference: &Reference, session: &Session) -> Result<Resolved, Failure> {
    let host = inner.settings.load().platform.clone();
    let fetched = session.manifest(reference.version()).await?;
    let top = Digest::of(&fetched.bytes);
    let mut documents = vec![fetched.bytes];
    let mut current = document::parse(&documents[0], &fetched.media_type)?;
    let mut manifest = top.clone();
    loop {
        match current {
            Document::Manifest { config, layers } if !config::is_image_config(&config.media_type) => {
                // Its config may be anything, and is not asked for: the manifest says all that is to be known.
                let plan = artifact::plan(&layers)?;
                let config = documents.last().cloned().unwrap_or_default();
                let file = artifact::config_file();
                return Ok(Resolved { top, manifest, documents, config, file, plan });
            }
            Document::Manifest { config, layers } => {
                let too_large = ContentError::TooLarge { what: "the image config", limit: MAX_CONFIG as u64 };
                if config.size > MAX_CONFIG as u64 {
                    return Err(too_large.into());
                }
                let cap = usize::try_from(config.size).map_err(|_| too_large)?;
                let bytes = session.small_blob("the image config", &config.digest()?, cap).await?;
                config.verify("the image config", &bytes)?;
                let file = config::parse(&bytes)?;
                let plan = config::plan(&config, &layers, &file, &host)?;
                return Ok(Resolved { top, manifest, documents, config: bytes, file, plan });
            }
            Document::Index(entries) => {
                if documents.len() >= MAX_DEPTH {
                    return Err(ContentError::Nested.into());
                }
                let entry = document::select(&entries, &host)?;
                manifest = entry.digest()?;
                let fetched = session.manifest(&Version::Digest(manifest.clone())).await?;
                entry.verify("the manifest", &fetched.bytes)?;
                // Three witnesses: the descriptor, the server, and the document itself.
                document::parse(&fetched.bytes, &fetched.media_type)?;
                current = document::parse(&fetched.bytes, &entry.media_type)?;
                documents.push(fetched.bytes);
            }
        }
    }
}
