//! Why an OCI runtime did not do what it was asked.

use std::path::PathBuf;
use std::time::Duration;

use crate::keeper::KeeperError;
use crate::sys::exec::ExecError;

/// Names the operation and the container; the runtime's own words come last.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("runtime_handler {name:?}: no such handler (there are {})", known.join(", "))]
    UnknownHandler { name: String, known: Vec<String> },
    #[error("runtime.handlers.{handler}.path: {} is not an executable in {searched}", path.display())]
    Missing { handler: String, path: PathBuf, searched: &'static str },
    #[error("runtime.default: {name:?} is not among runtime.handlers ({})", known.join(", "))]
    UnknownDefault { name: String, known: Vec<String> },
    #[error("no OCI runtime: none of crun, runc, youki is in {searched}; install one or set runtime.handlers")]
    None { searched: &'static str },
    #[error("runtime.handlers.{handler}.type: shim is not supported yet")]
    Shim { handler: String },
    #[error("{}: the runtime's folder cannot be made", path.display())]
    Root { path: PathBuf, source: std::io::Error },
    #[error("{}: does not say its version", path.display())]
    Probe { path: PathBuf, source: ExecError },
    #[error("{operation} of {id}: no answer from the runtime in {} s; it was killed", after.as_secs())]
    TimedOut { operation: &'static str, id: String, after: Duration },
    #[error("{operation} of {id}: the runtime failed ({status}): {words}")]
    Failed { operation: &'static str, id: String, status: String, words: String },
    #[error("{operation} of {id}")]
    Run { operation: &'static str, id: String, source: ExecError },
    #[error("{operation} of {id}")]
    Keeper { operation: &'static str, id: String, source: KeeperError },
    #[error("{operation} of {id}: the runtime's answer is not what the specification says")]
    Answer { operation: &'static str, id: String, source: serde_json::Error },
    #[error("{operation} of {id}: {} is not UTF-8", value.display())]
    NotText { operation: &'static str, id: String, value: PathBuf },
}

impl RuntimeError {
    /// Adds what the runtime wrote into its log, where the failure is its own.
    pub(super) fn with_words(mut self, found: Option<String>) -> Self {
        if let (Self::Failed { words, .. }, Some(found)) = (&mut self, found) {
            *words = found;
        }
        self
    }
}
