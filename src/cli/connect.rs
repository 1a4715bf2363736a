//! The small commands' connection to the daemon.

use std::future::Future;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    #[error("the async runtime cannot be started")]
    Runtime { source: std::io::Error },
    #[error("{}: no daemon answers there (is `cricket serve` running?)", path.display())]
    Connect { path: PathBuf, source: tonic::transport::Error },
    #[error("{}", .0.message())]
    Answer(tonic::Status),
    #[error("the daemon's answer cannot be used: {0}")]
    Strange(String),
    #[error(transparent)]
    Export(#[from] crate::image::ExportError),
    #[error(transparent)]
    Verify(#[from] crate::storage::StorageError),
    #[error("{damaged} of {all} images {} damaged", if *damaged == 1 { "is" } else { "are" })]
    Damaged { damaged: usize, all: usize },
    #[error(
        "some layers were unpacked by an older version and cannot be verified; remove their images and pull them again"
    )]
    Unverified,
    #[error("{}: cannot be resolved", path.display())]
    Path { path: PathBuf, source: std::io::Error },
}

pub(super) fn block_on(command: impl Future<Output = Result<(), CommandError>>) -> Result<(), CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| CommandError::Runtime { source })?;
    runtime.block_on(command)
}

pub(super) async fn connect(socket: &Path) -> Result<Channel, CommandError> {
    let path = socket.to_owned();
    // The name is only there because HTTP wants one; the connector goes to the socket.
    Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .map_err(|source| CommandError::Connect { path: socket.to_owned(), source })
}
