//! `cricket image ls|pull|explain|import|export|verify|rm`.

mod kept;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use cri_proto::cricket::v1::node_client::NodeClient;
use cri_proto::cricket::v1::{ExplainImageRequest, ExplainedName, ImportImageRequest};
use cri_proto::runtime::v1::image_service_client::ImageServiceClient;
use cri_proto::runtime::v1::{ImageSpec, ListImagesRequest, PullImageRequest, RemoveImageRequest};

use super::connect::{CommandError, connect};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List images.
    Ls,
    /// Pull an image from its registry.
    Pull { reference: String },
    /// Show where a pull would look for an image, in order, with the file and line that says so. Nothing is sent.
    Explain {
        reference: String,
        /// Namespace of the pod that would use it: it may have logins and a policy of its own.
        #[arg(long, default_value = "")]
        namespace: String,
    },
    /// Add the images of an OCI layout: a folder, or a tar of one.
    Import {
        path: PathBuf,
        /// Name for the image; without it the layout's own names are used.
        #[arg(long)]
        name: Option<String>,
    },
    /// Write images to an OCI layout, which is a `docker save` archive as well when it is a tar.
    Export(kept::Export),
    /// Compare what is on disk with what the images are made of. Exit code 1: something is damaged; 3: nothing is, but
    /// some layers were unpacked by an older version and cannot be verified.
    Verify(kept::Verify),
    /// Remove images, by id or name.
    Rm {
        #[arg(required = true)]
        references: Vec<String>,
    },
}

pub(super) async fn run(socket: &Path, command: Command) -> Result<(), CommandError> {
    let channel = connect(socket).await?;
    let answer = CommandError::Answer;
    let mut images = ImageServiceClient::new(channel.clone());
    match command {
        Command::Ls => {
            let list = images.list_images(ListImagesRequest::default()).await.map_err(answer)?.into_inner().images;
            println!("{:<15} {:>10}  NAMES", "IMAGE ID", "SIZE");
            for image in list {
                let id: String = image.id.trim_start_matches("sha256:").chars().take(13).collect();
                let names = if image.repo_tags.is_empty() { &image.repo_digests } else { &image.repo_tags };
                println!("{id:<15} {:>10}  {}", human(image.size), names.join(", "));
            }
        }
        Command::Pull { reference } => {
            let image = Some(ImageSpec { image: reference, ..ImageSpec::default() });
            let request = PullImageRequest { image, ..PullImageRequest::default() };
            println!("{}", images.pull_image(request).await.map_err(answer)?.into_inner().image_ref);
        }
        Command::Explain { reference, namespace } => {
            let request = ExplainImageRequest { reference, namespace };
            let found = NodeClient::new(channel).explain_image(request).await.map_err(answer)?.into_inner();
            for name in &found.names {
                print!("{}", explained(name));
            }
            for file in found.unusable_files {
                println!("beware: {file}");
            }
        }
        Command::Import { path, name } => {
            let path = std::path::absolute(&path).map_err(|source| CommandError::Path { path, source })?;
            let path = path.to_string_lossy().into_owned();
            let request = ImportImageRequest { path, name: name.unwrap_or_default() };
            let imported = NodeClient::new(channel).import_image(request).await.map_err(answer)?.into_inner();
            for image in imported.images {
                println!("{} {}", image.id, image.tags.join(" "));
            }
        }
        Command::Export(options) => kept::export(channel, options).await?,
        Command::Verify(options) => kept::verify(channel, options).await?,
        Command::Rm { references } => {
            for reference in references {
                let image = Some(ImageSpec { image: reference, ..ImageSpec::default() });
                images.remove_image(RemoveImageRequest { image }).await.map_err(answer)?;
            }
        }
    }
    Ok(())
}

/// One name, as a few lines.
fn explained(name: &ExplainedName) -> String {
    let mut lines = vec![name.name.clone()];
    if !name.decided_by.is_empty() {
        lines.push(format!("  rule    {}", name.decided_by));
    }
    if !name.refusal.is_empty() {
        lines.push(format!("  refused {}", name.refusal));
    }
    for (at, step) in name.steps.iter().enumerate() {
        let kind = if step.mirror { "mirror" } else { "registry" };
        let place = if step.place.is_empty() { "not configured" } else { &step.place };
        lines.push(format!("  {:<7} {} ({kind}; {place})", at + 1, step.url));
        lines.push(format!("          login: {}", step.login));
        lines.extend(step.notes.iter().map(|note| format!("          {note}")));
    }
    lines.push(format!("  policy  {}: {}", name.policy, name.requirements));
    lines.join("\n") + "\n"
}

/// A size for people: four digits are enough.
fn human(bytes: u64) -> String {
    let mut value = bytes;
    for unit in ["B", "kB", "MB"] {
        if value < 10_000 {
            return format!("{value} {unit}");
        }
        value /= 1_000;
    }
    format!("{value} GB")
}
