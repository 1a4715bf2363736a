//! One layer: downloaded, verified and unpacked in one pass; or unpacked from another layer that has the same content.

use std::io::{self, Cursor, Read as _};
use std::sync::Arc;

use tokio::sync::mpsc;

use super::super::config::LayerPlan;
use super::super::document::ContentError;
use super::super::error::{Attempt, Failure};
use super::super::layers::{LayerError, LayerStore, Packing, Staged};
use super::super::registry::{Bytes, Download, Progress, Session};
use super::super::{Inner, artifact};
use super::pipe::{Pipe, PipeError};
use super::{LayerFault, LayerResult, Slot};
use crate::task;

/// Pieces between the network and the unpacker. The HTTP library makes them of at most 400 KiB.
const PIECES: usize = 4;
/// Times that one download may be taken up again where it broke.
const MAX_RESUMES: u32 = 8;
/// Of these, times after a stall: each has cost a whole progress clock.
const MAX_STALLS: u32 = 1;

/// Gets a layer: from another layer that is here, or from the first place that serves it right.
pub(super) async fn fetch(inner: Arc<Inner>, sessions: Arc<[Arc<Session>]>, layer: LayerPlan) -> LayerResult {
    let (store, chain) = (inner.layers.clone(), layer.chain.clone());
    if task::blocking(move || store.has_layer(&chain)).await {
        return Ok(Slot::new(None));
    }
    // An artifact's file is no archive, and nobody knows the digest of the one that is made around it.
    let shared = layer.file.is_none();
    // The turn comes before the permit: who waits for another one's download must not keep a third from beginning.
    let _turn = if shared { Some(inner.turns.take(&layer.diff_id).await) } else { None };
    let _permit = inner.downloads.acquire().await;
    if shared && let Some(staged) = from_here(&inner.layers, &layer).await {
        return Ok(Slot::new(Some(staged)));
    }
    let mut attempts = Vec::new();
    let mut first = 0;
    while let Some(left) = sessions.get(first..).filter(|left| !left.is_empty()) {
        match attempt(&inner, left, &layer, &mut attempts).await {
            Ok(staged) => return Ok(Slot::new(Some(staged))),
            Err(used) => first += used,
        }
    }
    Err(LayerFault { attempts })
}

/// Unpacks the layer from another with the same content, if one is here and whole.
async fn from_here(store: &Arc<dyn LayerStore>, layer: &LayerPlan) -> Option<Staged> {
    // Dropped with this future, when nobody waits any more.
    let waiting = Arc::new(());
    let waits = Arc::downgrade(&waiting);
    let (store, chain, diff_id) = (store.clone(), layer.chain.clone(), layer.diff_id.clone());
    task::blocking(move || store.restage(&chain, &diff_id, &|| waits.strong_count() > 0)).await
}

/// How feeding the unpacker ended; the number is the place that served last.
enum Fed {
    Whole(usize),
    /// The unpacker went away: it has the reason.
    Unread(usize),
    /// This place, and all before it, are noted as failed.
    Failed(usize),
}

/// Stages the layer once, from the first place that answers; a later one may take a broken download up.
/// The error is how many places are used up.
async fn attempt(
    inner: &Inner,
    sessions: &[Arc<Session>],
    layer: &LayerPlan,
    attempts: &mut Vec<Attempt>,
) -> Result<Staged, usize> {
    let (feeder, pieces) = mpsc::channel(PIECES);
    let pipe = Pipe::new(pieces, layer.size);
    let (store, wanted) = (inner.layers.clone(), layer.clone());
    let staging = task::blocking(move || stage(store.as_ref(), pipe, &wanted));
    let (fed, staged) = tokio::join!(feed(sessions, layer, feeder, attempts), staging);
    match (fed, staged) {
        (Fed::Whole(_), Ok(staged)) => Ok(staged),
        (Fed::Whole(at) | Fed::Unread(at), Err(failure)) => {
            let local = matches!(&failure, Failure::Unpack(error) if error.local);
            // A full disk is full whoever sends the layer; going on, or naming the registry, would blame that for it.
            let here = || format!("this node, {}", inner.root.display());
            let host = if local { here() } else { sessions[at].host().to_owned() };
            attempts.push(Attempt { host, failure });
            Err(if local { sessions.len() } else { at + 1 })
        }
        // The unpacker is content but the download went on: the feeder has noted why that is wrong.
        (Fed::Failed(at) | Fed::Unread(at), _) => Err(at + 1),
    }
}

/// Blocks: unpacks from the pipe, then verifies what went through it.
fn stage(store: &dyn LayerStore, mut pipe: Pipe, layer: &LayerPlan) -> Result<Staged, Failure> {
    if let Some(name) = &layer.file {
        let odd = |error: io::Error| Failure::Unpack(LayerError::of_the_layer(error.to_string()));
        let mut content = artifact::archive(name, layer.size, &mut pipe).map_err(odd)?;
        let staged = store.stage(&layer.chain, None, Packing::None, &mut content).map_err(Failure::Unpack)?;
        drop(content);
        return verified(staged, pipe, layer);
    }
    let mut head = Vec::with_capacity(4);
    (&mut pipe).take(4).read_to_end(&mut head).map_err(|_| stopped())?;
    let packing = Packing::sniff(&head);
    let mut content = Cursor::new(head).chain(&mut pipe);
    let staged = store.stage(&layer.chain, Some(&layer.diff_id), packing, &mut content).map_err(Failure::Unpack)?;
    verified(staged, pipe, layer)
}

/// The staged layer, if what came is what the manifest says.
fn verified(staged: Staged, pipe: Pipe, layer: &LayerPlan) -> Result<Staged, Failure> {
    match pipe.finish(&layer.digest) {
        Ok(()) => Ok(staged),
        Err(PipeError::Stopped) => Err(stopped()),
        Err(PipeError::Content(error)) => Err(error.into()),
    }
}

fn stopped() -> Failure {
    Failure::Connection("the download stopped".to_owned())
}

async fn feed(
    sessions: &[Arc<Session>],
    layer: &LayerPlan,
    feeder: mpsc::Sender<Bytes>,
    attempts: &mut Vec<Attempt>,
) -> Fed {
    let mut progress = Progress::default();
    let mut resumes = 0;
    for (at, session) in sessions.iter().enumerate() {
        progress.elsewhere();
        let (mut tried, mut stalls) = (0, 0);
        let failure = loop {
            // A request that got no answer was tried again inside; what is taken up again here is a body that broke.
            let before = progress.offset;
            let failure = match session.blob(&layer.digest, layer.size, &mut progress).await {
                Ok(download) => match pump(session, download, layer, (&mut progress.offset, &feeder)).await {
                    Ok(true) => return Fed::Whole(at),
                    Ok(false) => return Fed::Unread(at),
                    Err(failure) => failure,
                },
                // Its patience is used up already.
                Err(failure @ Failure::Content(_)) => failure,
                Err(failure) => break failure,
            };
            if matches!(failure, Failure::Content(_)) {
                attempts.push(Attempt { host: session.host().to_owned(), failure });
                return Fed::Failed(at);
            }
            resumes += 1;
            if resumes > MAX_RESUMES {
                break failure;
            }
            if progress.offset > before {
                tried = 0;
                let stalled = matches!(failure, Failure::Stalled { .. } | Failure::Slow { .. });
                // A connection can be dead while the server is not. Where there is another place, that is tried instead.
                if stalled && at + 1 == sessions.len() && stalls < MAX_STALLS {
                    stalls += 1;
                    continue;
                }
            }
            if let Err(failure) = session.pause(failure, &mut tried, None).await {
                break failure;
            }
        };
        attempts.push(Attempt { host: session.host().to_owned(), failure });
    }
    Fed::Failed(sessions.len().saturating_sub(1))
}

/// Moves bytes from one answer to the unpacker. `Ok(true)`: all; `Ok(false)`: nobody reads any more.
async fn pump(
    session: &Session,
    mut download: Download,
    layer: &LayerPlan,
    (offset, feeder): (&mut u64, &mpsc::Sender<Bytes>),
) -> Result<bool, Failure> {
    loop {
        // The clock covers the wait for the network only; a slow disk shows as a full channel and is no stall.
        let piece = tokio::select! {
            piece = session.piece(&mut download) => piece?,
            () = feeder.closed(), if *offset < layer.size => return Ok(false),
        };
        let Some(piece) = piece else {
            return match *offset == layer.size {
                true => Ok(true),
                false => Err(Failure::Truncated { got: *offset, want: layer.size }),
            };
        };
        *offset += u64::try_from(piece.len()).unwrap_or(u64::MAX);
        if *offset > layer.size {
            return Err(ContentError::Size { what: "the layer", want: layer.size, got: *offset }.into());
        }
        if feeder.send(piece).await.is_err() {
            return Ok(false);
        }
    }
}
