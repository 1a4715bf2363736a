//! What can go wrong with images. Nothing here ever holds a URL, a header, a token or a server's own words.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::document::ContentError;
use super::layers::LayerError;
use super::reference::ReferenceError;
use super::registries::RegistriesError;

/// An operation on images failed. Cheap to clone: everybody who joined a pull gets it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error("{prefix:?} stands for more than one image: {}", candidates.join(", "))]
    Ambiguous { prefix: String, candidates: Vec<String> },
    #[error(transparent)]
    Registries(#[from] RegistriesError),
    #[error("sandbox_config.metadata.namespace: {0:?}: not letters, digits, dashes, dots and underscores, at most 253")]
    Namespace(String),
    #[error("{reference}: its logins cannot be read: {}: {reason}", path.display())]
    AuthFile { reference: String, path: PathBuf, reason: String },
    /// The kubelet looks for this first word, and for that of the next.
    #[error("SignatureValidationFailed: {reference}: {}: the policy cannot be used: {reason}", path.display())]
    Policy { reference: String, path: PathBuf, reason: String },
    #[error("SignatureValidationFailed: {reference}: {reason} ({policy})")]
    Signature { reference: String, policy: String, reason: String },
    /// A short name was searched for at several registries.
    #[error("{}", failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    NotFoundAnywhere { failures: Vec<ImageError> },
    #[error("the credentials for {0} cannot be used: {1}")]
    Credentials(String, &'static str),
    /// The kubelet looks for this first word.
    #[error("RegistryUnavailable: {stage} of {reference}: {attempts}")]
    Unavailable { reference: String, stage: String, attempts: Attempts },
    #[error("{stage} of {reference}: {attempts}")]
    Refused { reference: String, stage: String, attempts: Attempts },
    #[error("{reference}: {source}")]
    Content { reference: String, source: ContentError },
    #[error("{reference}: layer {layer} cannot be unpacked: {source}")]
    Unpack { reference: String, layer: String, source: LayerError },
    #[error("{reference}: its layers cannot be made durable: {source}")]
    Commit { reference: String, source: LayerError },
    #[error("{}: {doing}: {source}", path.display())]
    Disk { path: PathBuf, doing: &'static str, source: Arc<io::Error> },
    #[error("{}: {doing}: {source}", path.display())]
    Database { path: PathBuf, doing: &'static str, source: Arc<redb::Error> },
    #[error("{}: not an image archive: {reason}", path.display())]
    Archive { path: PathBuf, reason: String },
    #[error("{reference}: no such image here")]
    Unknown { reference: String },
    #[error("{reference}: the pull ended without a result")]
    Lost { reference: String },
}

/// How a caller should see an [`ImageError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request itself is wrong.
    Invalid,
    NotFound,
    /// Refused by the registry or by configuration.
    Denied,
    /// The registry could not be reached; trying again later may help.
    Unavailable,
    /// The image is broken or hostile, or cannot run here.
    BadImage,
    Internal,
}

impl ImageError {
    /// The class of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Reference(_)
            | Self::Ambiguous { .. }
            | Self::Credentials(..)
            | Self::Archive { .. }
            | Self::Namespace(_)
            | Self::Registries(RegistriesError::ShortName { .. }) => ErrorKind::Invalid,
            Self::Registries(RegistriesError::Blocked { .. } | RegistriesError::NoPlace { .. })
            | Self::Policy { .. }
            | Self::Signature { .. } => ErrorKind::Denied,
            // The first word of the text is that of the first failure.
            Self::NotFoundAnywhere { failures } => failures.first().map_or(ErrorKind::Internal, Self::kind),
            Self::Unknown { .. } => ErrorKind::NotFound,
            Self::Unavailable { .. } => ErrorKind::Unavailable,
            Self::Refused { attempts, .. } => match attempts.verdict() {
                Some(Failure::NotFound(_)) => ErrorKind::NotFound,
                Some(Failure::Unpack(error)) if error.local => ErrorKind::Internal,
                Some(Failure::Content(_) | Failure::Unpack(_)) => ErrorKind::BadImage,
                _ => ErrorKind::Denied,
            },
            Self::Content { .. } | Self::Unpack { .. } => ErrorKind::BadImage,
            Self::Registries(_)
            | Self::AuthFile { .. }
            | Self::Commit { .. }
            | Self::Disk { .. }
            | Self::Database { .. }
            | Self::Lost { .. } => ErrorKind::Internal,
        }
    }

    /// Whether another name that a short name may stand for is to be tried.
    pub(super) fn is_elsewhere(&self) -> bool {
        matches!(
            self,
            Self::Unavailable { .. } | Self::Refused { .. } | Self::Registries(RegistriesError::Blocked { .. })
        )
    }

    /// The error of a pull whose every place failed; [`Attempts::verdict`] decides the kind.
    pub(super) fn from_attempts(reference: &str, stage: &str, attempts: Vec<Attempt>) -> Self {
        let (reference, stage, attempts) = (reference.to_owned(), stage.to_owned(), Attempts(attempts));
        let unavailable = attempts.verdict().is_some_and(Failure::is_unavailability);
        if unavailable {
            Self::Unavailable { reference, stage, attempts }
        } else {
            Self::Refused { reference, stage, attempts }
        }
    }

    pub(super) fn disk(path: impl Into<PathBuf>, doing: &'static str, source: io::Error) -> Self {
        Self::Disk { path: path.into(), doing, source: Arc::new(source) }
    }
}

/// One place that was asked, and why it did not serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// `host[:port]` only; for a failure that is not the host's, this node and the folder in which it is.
    pub host: String,
    pub failure: Failure,
}

/// Every place that was asked, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempts(pub Vec<Attempt>);

impl Attempts {
    /// The failure that stands for all. It is that of the last place, which is the registry itself. When that did not
    /// answer at all, as on a node that only reaches its mirror, then a mirror's clear "not found" says more than it.
    fn verdict(&self) -> Option<&Failure> {
        let (last, before) = self.0.split_last()?;
        let silent = |failure: &Failure| {
            matches!(
                failure,
                Failure::Connection(_) | Failure::Unresolved(_) | Failure::Unconnected { .. } | Failure::Stalled { .. }
            )
        };
        let answer = before.iter().rev().map(|attempt| &attempt.failure).find(|failure| !silent(failure));
        match answer {
            Some(Failure::NotFound(_)) if silent(&last.failure) => answer,
            _ => Some(&last.failure),
        }
    }
}

impl fmt::Display for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, attempt) in self.0.iter().enumerate() {
            let separator = if n == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {}", attempt.host, attempt.failure)?;
        }
        Ok(())
    }
}

/// Why one place did not serve a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No connection, or a connection that broke; the text is the innermost cause, which never holds a URL.
    #[error("{0}")]
    Connection(String),
    /// The name of the host, or of the proxy before it, stands for no address.
    #[error("{0}")]
    Unresolved(String),
    /// The lookup, the TCP connection and the TLS handshake together took too long; `by` names the proxy, if there is one.
    #[error("no connection within {} ms{by}", after.as_millis())]
    Unconnected { after: Duration, by: String },
    #[error("no answer and no byte for {} ms", after.as_millis())]
    Stalled { after: Duration },
    #[error("too slow: {got} bytes in {} ms", over.as_millis())]
    Slow { got: u64, over: Duration },
    #[error("HTTP {status}{}", code.as_ref().map(|code| format!(" ({code})")).unwrap_or_default())]
    Status { status: u16, code: Option<String> },
    #[error("too many requests (HTTP 429){}", wait.map(|s| format!("; it asks to wait {s} s")).unwrap_or_default())]
    RateLimited { wait: Option<u64> },
    #[error("not found (HTTP 404{})", .0.as_ref().map(|code| format!(", {code}")).unwrap_or_default())]
    NotFound(Option<String>),
    #[error("unauthorized (HTTP 401): {0}")]
    Unauthorized(String),
    #[error("access denied (HTTP 403{})", .0.as_ref().map(|code| format!(", {code}")).unwrap_or_default())]
    Denied(Option<String>),
    #[error("its token service is refused: {0}")]
    Realm(&'static str),
    #[error("its redirect is refused: {0}")]
    Redirect(&'static str),
    #[error("its TLS settings cannot be used: {0}")]
    Tls(String),
    #[error("its proxy cannot be used: {0}")]
    Proxy(String),
    #[error("the body ended after {got} of {want} bytes")]
    Truncated { got: u64, want: u64 },
    #[error("unpacking failed: {0}")]
    Unpack(LayerError),
    #[error("{0}")]
    Content(#[from] ContentError),
}

impl Failure {
    /// The registry has spoken, and will not say otherwise when it is asked the same again.
    pub(super) fn is_answer(&self) -> bool {
        matches!(
            self,
            Self::Status { status: 400..=499 | 501, .. } | Self::NotFound(_) | Self::Unauthorized(_) | Self::Denied(_)
        )
    }

    /// The registry could not be reached or did not work: the kubelet's `RegistryUnavailable`.
    #[must_use]
    pub fn is_unavailability(&self) -> bool {
        match self {
            Self::Connection(_)
            | Self::Unresolved(_)
            | Self::Unconnected { .. }
            | Self::Stalled { .. }
            | Self::Slow { .. }
            | Self::RateLimited { .. }
            | Self::Truncated { .. } => true,
            Self::Status { status, .. } => *status >= 500,
            _ => false,
        }
    }
}
