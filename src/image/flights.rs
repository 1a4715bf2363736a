//! Work in flight: whoever asks for the same thing at the same time shares one run of it.
//!
//! The work runs in a task of its own. It goes on while at least one waiter lives and is aborted when the last one goes,
//! so a caller that hangs up costs nobody else anything.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::task::AbortHandle;

/// The runs in flight, by key.
pub struct Flights<K, V> {
    runs: Arc<Mutex<HashMap<K, Run<V>>>>,
}

struct Run<V> {
    waiters: usize,
    result: watch::Receiver<Option<V>>,
    abort: AbortHandle,
}

/// A share in a run. Dropping the last one ends the run.
pub struct Waiter<K: Hash + Eq, V> {
    key: K,
    result: watch::Receiver<Option<V>>,
    runs: Arc<Mutex<HashMap<K, Run<V>>>>,
    /// Whether this one began the run.
    pub started: bool,
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self { runs: Arc::default() }
    }
}

impl<K, V> fmt::Debug for Flights<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").finish_non_exhaustive()
    }
}

impl<K: Hash + Eq, V> fmt::Debug for Waiter<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiter").field("started", &self.started).finish_non_exhaustive()
    }
}

fn locked<K, V>(runs: &Mutex<HashMap<K, Run<V>>>) -> MutexGuard<'_, HashMap<K, Run<V>>> {
    runs.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K, V> Flights<K, V>
where
    K: Hash + Eq + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Joins the run of a key, or begins it.
    pub fn join<F>(&self, name: &'static str, key: K, work: impl FnOnce() -> F) -> Waiter<K, V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut runs = locked(&self.runs);
        let runs_handle = self.runs.clone();
        if let Some(run) = runs.get_mut(&key) {
            run.waiters += 1;
            return Waiter { key, result: run.result.clone(), runs: runs_handle, started: false };
        }
        let (sender, result) = watch::channel(None);
        let work = work();
        let task = crate::task::spawn(name, async move {
            // Nobody left to tell is no error.
            let _ = sender.send(Some(work.await));
        });
        runs.insert(key.clone(), Run { waiters: 1, result: result.clone(), abort: task.abort_handle() });
        Waiter { key, result, runs: runs_handle, started: true }
    }

    /// How many wait for a key now.
    #[cfg(test)]
    pub fn waiting(&self, key: &K) -> usize {
        locked(&self.runs).get(key).map_or(0, |run| run.waiters)
    }
}

impl<K: Hash + Eq, V: Clone> Waiter<K, V> {
    /// The result; `None` when the run ended without one (it panicked).
    pub async fn wait(&mut self) -> Option<V> {
        self.result.wait_for(Option::is_some).await.ok().and_then(|value| value.clone())
    }
}

impl<K: Hash + Eq, V> Waiter<K, V> {
    /// Leaves a run whose result is not to be had by anybody else: whoever joins next begins another.
    pub fn retire(self) {
        let mut runs = locked(&self.runs);
        if runs.get(&self.key).is_some_and(|run| run.result.same_channel(&self.result)) {
            runs.remove(&self.key);
        }
    }
}

impl<K: Hash + Eq, V> Drop for Waiter<K, V> {
    fn drop(&mut self) {
        let mut runs = locked(&self.runs);
        // After a retirement the key may be that of another run.
        if let Some(run) = runs.get_mut(&self.key).filter(|run| run.result.same_channel(&self.result)) {
            run.waiters -= 1;
            if run.waiters == 0 {
                run.abort.abort();
                runs.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Notify;

    #[tokio::test]
    async fn one_run_serves_all_and_ends_with_the_last() {
        let flights: Flights<&str, usize> = Flights::default();
        let runs = Arc::new(AtomicUsize::new(0));
        let go = Arc::new(Notify::new());
        let begin = || {
            let (runs, go) = (runs.clone(), go.clone());
            flights.join("test", "key", move || async move {
                let n = runs.fetch_add(1, Ordering::SeqCst);
                go.notified().await;
                n
            })
        };
        let (mut a, mut b) = (begin(), begin());
        assert!(a.started && !b.started);
        go.notify_one();
        assert_eq!((a.wait().await, b.wait().await), (Some(0), Some(0)));
        drop((a, b));

        // The last waiter gone, the work is dropped: its half of the channel shows it.
        let (hold, mut gone) = tokio::sync::mpsc::channel::<()>(1);
        let waiter = flights.join("test", "other", move || async move {
            let _hold = hold;
            std::future::pending().await
        });
        assert_eq!(flights.waiting(&"other"), 1);
        drop(waiter);
        assert_eq!(gone.recv().await, None);
        assert_eq!(flights.waiting(&"other"), 0);
    }

    #[tokio::test]
    async fn a_retired_run_is_joined_by_nobody_and_its_waiters_end_no_other() {
        let flights: Flights<&str, usize> = Flights::default();
        let (mut first, mut second) =
            (flights.join("test", "key", || async { 1 }), flights.join("test", "key", || async { 2 }));
        assert_eq!((first.wait().await, second.wait().await), (Some(1), Some(1)));
        second.retire();
        let mut third = flights.join("test", "key", || async { 3 });
        assert!(third.started);
        drop(first);
        assert_eq!((flights.waiting(&"key"), third.wait().await), (1, Some(3)));
    }

    #[tokio::test]
    async fn a_run_that_panics_leaves_no_waiter_hanging() {
        let flights: Flights<&str, usize> = Flights::default();
        let mut waiter = flights.join("test", "key", || async { panic!("as planned") });
        assert_eq!(waiter.wait().await, None);
    }
}
