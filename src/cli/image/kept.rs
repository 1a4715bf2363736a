//! `cricket image export` and `cricket image verify`: the daemon holds the images, this process reads them, so that neither the
//! memory nor the time of it is the daemon's.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use cri_proto::cricket::v1::node_client::NodeClient;
use cri_proto::cricket::v1::{self as proto, HoldImagesRequest, HoldImagesResponse};
use serde_json::json;
use tonic::Streaming;
use tonic::transport::Channel;

use super::super::connect::CommandError;
use crate::image::{self, KeptImage, Packed, Problem, State, Target};
use crate::storage::{Digest, Report};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Export {
    /// Images, by id or name. A tag exports that name; an id, all names of the image.
    #[arg(required = true)]
    references: Vec<String>,
    /// Where to: nothing that is there is written over. `-` is standard output.
    #[arg(long, short, value_name = "PATH")]
    output: PathBuf,
    /// Write a folder in place of a tar.
    #[arg(long)]
    folder: bool,
    /// Compression of the layers. Whatever it is, the image's id stays; the digest of its manifest depends on it.
    #[arg(long, value_enum, default_value_t = Compress::None)]
    compress: Compress,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Compress {
    None,
    Gzip,
    Zstd,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Verify {
    /// Images, by id or name.
    #[arg(required_unless_present = "all")]
    references: Vec<String>,
    /// Every image of this node.
    #[arg(long, conflicts_with = "references")]
    all: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How often an image whose documents are missing or damaged is looked at again: it may be removed and pulled meanwhile.
const MAX_TRIES: usize = 3;

/// Images that the daemon holds until this is dropped.
struct Held {
    root: PathBuf,
    images: Vec<KeptImage>,
    _stream: Streaming<HoldImagesResponse>,
}

async fn hold(channel: &Channel, references: Vec<String>) -> Result<Held, CommandError> {
    let request = HoldImagesRequest { references };
    let mut stream =
        NodeClient::new(channel.clone()).hold_images(request).await.map_err(CommandError::Answer)?.into_inner();
    let message = stream.message().await.map_err(CommandError::Answer)?;
    let message = message.ok_or_else(|| CommandError::Strange("it is empty".to_owned()))?;
    let images = message.images.into_iter().map(kept).collect::<Result<_, _>>()?;
    Ok(Held { root: message.root.into(), images, _stream: stream })
}

fn kept(image: proto::HeldImage) -> Result<KeptImage, CommandError> {
    let digest = |text: &String| text.parse::<Digest>().map_err(|error| CommandError::Strange(error.to_string()));
    Ok(KeptImage {
        id: digest(&image.id)?,
        manifest: digest(&image.manifest)?,
        documents: image.documents.iter().map(digest).collect::<Result<_, _>>()?,
        layers: image.layers.iter().map(digest).collect::<Result<_, _>>()?,
        tags: image.tags,
        artifact: image.artifact,
    })
}

pub(super) async fn export(channel: Channel, options: Export) -> Result<(), CommandError> {
    let held = hold(&channel, options.references).await?;
    let target = match (options.output.as_os_str() == "-", options.folder) {
        (true, _) => Target::Stdout,
        (false, true) => Target::Folder(options.output),
        (false, false) => Target::Archive(options.output),
    };
    let packed = match options.compress {
        Compress::None => Packed::None,
        Compress::Gzip => Packed::Gzip,
        Compress::Zstd => Packed::Zstd,
    };
    let (root, images, to) = (held.root.clone(), held.images.clone(), target.clone());
    // The connection must live on meanwhile: with it goes the hold.
    let manifests = crate::task::blocking(move || image::export(&root, &images, packed, &to)).await?;
    if target != Target::Stdout {
        for (image, manifest) in held.images.iter().zip(manifests) {
            println!("{} manifest {manifest}", image.id);
        }
    }
    Ok(())
}

pub(super) async fn verify(channel: Channel, options: Verify) -> Result<(), CommandError> {
    let held = hold(&channel, options.references).await?;
    let mut seen = HashMap::new();
    let (mut all, mut damaged, mut unknown) = (0, 0, 0);
    let mut list = Vec::new();
    for kept in &held.images {
        let Some((state, problems, entries)) = verified(&channel, &held.root, kept, &mut seen).await? else { continue };
        all += 1;
        damaged += usize::from(state == State::Damaged);
        unknown += usize::from(state == State::Unknown);
        if options.json {
            list.push(as_json(kept, state, &problems, entries));
        } else {
            print!("{}", as_text(kept, state, &problems, entries));
        }
    }
    if options.json {
        println!("{}", json!({ "images": list }));
    }
    match (damaged, unknown) {
        (0, 0) => Ok(()),
        (0, _) => Err(CommandError::Unverified),
        _ => Err(CommandError::Damaged { damaged, all }),
    }
}

/// How an image is; `None` when it was removed meanwhile.
async fn verified(
    channel: &Channel,
    root: &Path,
    kept: &KeptImage,
    seen: &mut HashMap<Digest, Option<Report>>,
) -> Result<Option<(State, Vec<Problem>, u64)>, CommandError> {
    let mut image = kept.clone();
    let mut again = Vec::new();
    loop {
        let (root, looked_at, mut known) = (root.to_owned(), image.clone(), std::mem::take(seen));
        let work = move || {
            let found = image::verify(&root, &looked_at, &mut known);
            (found, known)
        };
        let (found, known) = crate::task::blocking(work).await;
        *seen = known;
        let found = found?;
        // Documents go with their image at once, whoever holds the layers. It may be back by now, with others.
        let of_documents = found.1.iter().any(|problem| problem.layer.is_none());
        if !of_documents || again.len() == MAX_TRIES {
            return Ok(Some(found));
        }
        match hold(channel, vec![kept.id.to_string()]).await {
            Err(CommandError::Answer(status)) if status.code() == tonic::Code::NotFound => return Ok(None),
            held => again.push(held?),
        }
        let Some(now) = again.last().and_then(|held| held.images.first()) else { return Ok(None) };
        image = now.clone();
    }
}

fn word(state: State) -> &'static str {
    match state {
        State::Good => "good",
        State::Damaged => "damaged",
        State::Unknown => "unknown",
    }
}

fn as_text(image: &KeptImage, state: State, problems: &[Problem], entries: u64) -> String {
    let name = image.tags.first().cloned().unwrap_or_else(|| image.id.to_string());
    let why = if state == State::Unknown { ", unpacked by an older version: remove it and pull it again" } else { "" };
    let mut text = format!("{name}: {} ({} layers, {entries} entries{why})\n", word(state), image.layers.len());
    for problem in problems {
        let place = match &problem.layer {
            Some(layer) => format!("layer {}", &layer.hex()[..12]),
            None => "documents".to_owned(),
        };
        let path = if problem.path.is_empty() { String::new() } else { format!("{}: ", problem.path) };
        text.push_str(&format!("  {place}: {path}{}\n", problem.problem));
    }
    text
}

fn as_json(image: &KeptImage, state: State, problems: &[Problem], entries: u64) -> serde_json::Value {
    let problems: Vec<_> = problems
        .iter()
        .map(|found| json!({ "layer": found.layer, "path": found.path, "problem": found.problem }))
        .collect();
    json!({
        "id": image.id,
        "tags": image.tags,
        "layers": image.layers,
        "entries": entries,
        "state": word(state),
        "problems": problems,
    })
}
