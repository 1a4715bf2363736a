//! What may go wrong with the keeper, on both sides.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Names the operation, and the path or the id that it was about.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    // The process.
    #[error("keeper: another one holds {}", path.display())]
    AlreadyRunning { path: PathBuf },
    #[error("keeper: {}: cannot be locked", path.display())]
    Lock { path: PathBuf, source: io::Error },
    #[error("keeper: {}: cannot listen", path.display())]
    Listen { path: PathBuf, source: io::Error },
    #[error("keeper: {}: cannot move into this cgroup", path.display())]
    Cgroup { path: PathBuf, source: io::Error },
    #[error("keeper: {what}")]
    Setup { what: &'static str, source: io::Error },
    #[error("keeper: waiting for events")]
    Poll { source: io::Error },

    // Its client.
    #[error("keeper: {}: cannot connect", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("keeper: {}: cannot be started", exe.display())]
    Start { exe: PathBuf, source: io::Error },
    #[error("keeper: {} ended before it was ready: {said}", exe.display())]
    NotReady { exe: PathBuf, said: String },
    #[error("keeper: no answer to {operation} within {} ms", after.as_millis())]
    NoAnswer { operation: &'static str, after: Duration },
    #[error("keeper: it died or was replaced during {operation}; another one has been asked for")]
    Died { operation: &'static str },
    #[error("keeper: another daemon has taken it over")]
    TakenOver,
    #[error("keeper: {operation} does not fit one datagram of 64 KiB and 16 descriptors")]
    TooLarge { operation: &'static str },
    #[error("keeper: it sent something that is not an answer to {operation}")]
    WrongAnswer { operation: &'static str },
    #[error("keeper: {operation}: {message}")]
    Refused { operation: &'static str, message: String },
    #[error("keeper: {program}: cannot be run: {message}")]
    Exec { program: String, message: String },
    #[error("keeper: {program}: killed with its process group after {} ms", after.as_millis())]
    TimedOut { program: String, after: Duration },
    #[error("keeper: {program} succeeded but {message}")]
    NoPid { program: String, message: String },
}
