//! Why a pod's network could not be set up or taken down.

use super::args::ArgumentError;
use super::builtin::BuiltinError;
use super::cache::CacheError;
use super::chain::AddError;
use super::hostports::HostPortConflict;
use super::plugin::PluginError;
use super::result::ResultError;

/// Why a pod's network could not be set up or taken down.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("the network is not ready: {0}")]
    NotReady(String),
    #[error("pod {pod}")]
    Argument { pod: String, source: ArgumentError },
    #[error(transparent)]
    HostPort(HostPortConflict),
    #[error("sandbox {0} has a network, or is being given one")]
    AlreadyAttached(String),
    #[error("network {network:?} for pod {pod}: {failed}{}", undone(undo))]
    Add {
        network: String,
        pod: String,
        failed: Box<AddError>,
        /// What went wrong when it was undone; something is left over then, and the caller must [`super::Network::detach`].
        undo: Vec<PluginError>,
    },
    #[error("network {network:?} for pod {pod}: {reason}{}", undone(undo))]
    Result { network: String, pod: String, reason: ResultError, undo: Vec<PluginError> },
    #[error("network {network:?} for sandbox {sandbox_id}: {}", joined(errors))]
    Del { network: String, sandbox_id: String, errors: Vec<PluginError> },
    #[error("network {network:?} of pod {pod} is not as it was made: {}", with_cause(error))]
    Check { network: String, pod: String, error: PluginError },
    #[error("network {network:?}: attachments that nobody uses: {}", joined(errors))]
    Gc { network: String, errors: Vec<PluginError> },
    #[error(transparent)]
    Cache(CacheError),
    #[error("builtin network for pod {pod}")]
    Builtin { pod: String, source: Box<BuiltinError> },
    #[error("builtin network")]
    BuiltinNode(#[source] Box<BuiltinError>),
}

impl NetworkError {
    /// Whether an attach that failed with this left nothing behind, so that no detach is due.
    #[must_use]
    pub fn left_nothing(&self) -> bool {
        match self {
            Self::NotReady(_) | Self::Argument { .. } | Self::HostPort(_) => true,
            Self::Add { undo, .. } | Self::Result { undo, .. } => undo.is_empty(),
            Self::Builtin { source, .. } => source.left_nothing(),
            Self::AlreadyAttached(_)
            | Self::Del { .. }
            | Self::Check { .. }
            | Self::Gc { .. }
            | Self::Cache(_)
            | Self::BuiltinNode(_) => false,
        }
    }
}

fn joined(errors: &[PluginError]) -> String {
    errors.iter().map(with_cause).collect::<Vec<_>>().join("; ")
}

pub(super) fn with_cause(error: &PluginError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn undone(undo: &[PluginError]) -> String {
    if undo.is_empty() { String::new() } else { format!("; and it could not be undone: {}", joined(undo)) }
}
