//! Operations in flight: a second call with the same key joins the first and gets its result.
//!
//! The work belongs to the daemon, not to the call: it runs in a task of its own and goes on when every caller has gone
//! away (invariant 1; tonic drops a handler's future on cancel and on the client's deadline).

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// The result of an operation, shared by all who asked for it.
pub type Shared<T, E> = Result<T, Arc<E>>;

type Answer<T, E> = watch::Receiver<Option<Shared<T, E>>>;

/// By key: what was asked for, and where the answer will be.
type Table<T, E> = Arc<Mutex<HashMap<String, (String, Answer<T, E>)>>>;

/// The operations of one kind that are under way, by key.
pub struct Flights<T, E> {
    map: Table<T, E>,
}

/// Why there is no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlightError {
    #[error("another request for {key} with other contents is in progress")]
    Different { key: String },
    #[error("the operation on {key} ended without a result")]
    Lost { key: String },
}

impl<T, E> Flights<T, E>
where
    T: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// No operation is under way.
    #[must_use]
    pub fn new() -> Self {
        Self { map: Arc::new(Mutex::new(HashMap::new())) }
    }

    /// Joins the operation on `key`, or starts `work` when there is none. `contents` tells a retry (equal) from another
    /// request for the same key (different, refused).
    ///
    /// # Errors
    /// [`FlightError::Different`] when another request holds the key; the inner error is the operation's own.
    pub async fn run<F>(&self, key: &str, contents: &str, work: F) -> Result<Shared<T, E>, FlightError>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let mut answer = self.join_or_start(key, contents, work)?;
        let result = answer.wait_for(Option::is_some).await.ok().and_then(|value| value.clone());
        result.ok_or_else(|| FlightError::Lost { key: key.to_owned() })
    }

    fn join_or_start<F>(&self, key: &str, contents: &str, work: F) -> Result<Answer<T, E>, FlightError>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let mut map = lock(&self.map);
        if let Some((held, answer)) = map.get(key) {
            if held == contents {
                return Ok(answer.clone());
            }
            return Err(FlightError::Different { key: key.to_owned() });
        }
        let (sender, answer) = watch::channel(None);
        map.insert(key.to_owned(), (contents.to_owned(), answer.clone()));
        drop(map);
        let landing = Landing { map: self.map.clone(), key: key.to_owned() };
        crate::task::spawn("flight", async move {
            let result = work.await.map_err(Arc::new);
            // The key is free before the answer is out, so that a caller who has it can ask again at once.
            drop(landing);
            let _ = sender.send(Some(result));
        });
        Ok(answer)
    }
}

/// Frees the key, also when the work panics.
struct Landing<T, E> {
    map: Table<T, E>,
    key: String,
}

impl<T, E> Drop for Landing<T, E> {
    fn drop(&mut self) {
        lock(&self.map).remove(&self.key);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T, E> fmt::Debug for Flights<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(lock(&self.map).keys()).finish()
    }
}

impl<T, E> Default for Flights<T, E>
where
    T: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::Notify;

    #[tokio::test]
    async fn a_retry_joins_and_the_work_outlives_its_callers() {
        let flights = Arc::new(Flights::<u32, String>::new());
        let (gate, runs) = (Arc::new(Notify::new()), Arc::new(AtomicU32::new(0)));
        let work = || {
            let (gate, runs) = (gate.clone(), runs.clone());
            async move {
                gate.notified().await;
                Ok(runs.fetch_add(1, Ordering::SeqCst) + 1)
            }
        };
        // The first caller goes away at once, as a client whose deadline is over.
        let gone = tokio::time::timeout(std::time::Duration::ZERO, flights.run("k", "c", work())).await;
        assert!(gone.is_err());
        let second = flights.run("k", "c", work());
        let other = flights.run("k", "x", work()).await;
        assert_eq!(other, Err(FlightError::Different { key: "k".into() }));
        gate.notify_one();
        assert_eq!(second.await, Ok(Ok(1)));
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        gate.notify_one();
        assert_eq!(flights.run("k", "x", work()).await, Ok(Ok(2)), "the key is free again");
    }

    #[tokio::test]
    async fn work_that_panics_frees_its_key() {
        let flights = Flights::<(), String>::new();
        let lost = flights.run("k", "c", async { panic!("on purpose") }).await;
        assert_eq!(lost, Err(FlightError::Lost { key: "k".into() }));
        assert_eq!(flights.run("k", "c", async { Ok(()) }).await, Ok(Ok(())));
    }
}
