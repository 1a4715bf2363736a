//! OCI runtimes behind handlers: the command line of crun, runc, youki and runsc, and what each of them can do.
//!
//! `create` and `exec` run in the keeper, which becomes the parent of what they leave behind; everything else is a
//! child of the daemon. Every call has a clock, a fixed environment and a bound on what is read of it.

mod adapt;
pub mod advisories;
pub mod cli;
pub mod features;
pub mod handlers;
mod report;

pub use cli::{CreateRequest, ExecRequest, OciRuntime, RuntimeState, Stdio};
pub use features::RuntimeFeatures;
pub use handlers::{Handlers, HandlersError, HandlersOptions};

use std::time::Duration;

use crate::keeper::KeeperError;
use crate::sys::exec::ExecError;

/// Where binaries are looked for, whatever the daemon's environment says.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A call of a runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The handler.
    pub runtime: String,
    pub operation: &'static str,
    /// The container's id.
    pub container: String,
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.runtime, self.operation, self.container)
    }
}

/// Why a runtime did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The runtime refused; the message is its own.
    #[error("{call}: {message}")]
    Failed { call: Box<Call>, message: String },
    #[error("{call}: killed after {} ms without an end{}", after.as_millis(), said(message))]
    TimedOut { call: Box<Call>, after: Duration, message: String },
    #[error("{call}: the runtime cannot be run")]
    Exec { call: Box<Call>, source: ExecError },
    #[error("{call}: through the keeper")]
    Keeper { call: Box<Call>, source: KeeperError },
    #[error("{call}: {what}")]
    Prepare { call: Box<Call>, what: String, source: std::io::Error },
    /// What was asked for would be left out without a word.
    #[error("{call}: this build of the runtime has no {feature}, which the container asks for")]
    Lacks { call: Box<Call>, feature: &'static str },
    #[error("{call}: its answer cannot be read: {answer:?}")]
    Answer { call: Box<Call>, answer: String },
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!("; it said: {message}") }
}

#[cfg(test)]
#[path = "runtime/tests.rs"]
mod tests;
