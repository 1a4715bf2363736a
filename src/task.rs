//! Spawning: every task has a name, carries the caller's span and is counted.

pub mod flight;

use std::future::Future;

use tokio::task::JoinHandle;
use tracing::Instrument as _;

/// Starts a task on the runtime, inside a span of its own that keeps the caller's as its parent.
#[allow(clippy::disallowed_methods)] // the one place that may
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(future.instrument(tracing::debug_span!("task", name)))
}

/// Runs blocking work (unpacking, fsync, mounts) on the blocking pool and waits for it.
///
/// # Panics
/// Goes on with the panic of the work, if it panics.
#[allow(clippy::disallowed_methods)] // the one place that may
pub async fn blocking<T, F>(work: F) -> T
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let span = tracing::Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => std::panic::resume_unwind(Box::new("the runtime shut down during blocking work")),
        },
    }
}
