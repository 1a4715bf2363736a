//! Work that makes way: a thread that computes for seconds on end lets those go first which answer a caller.

/// How nice a calm thread is; 0 is everybody, 19 is nicest (sched(7)). At 5 a thread that wakes to answer goes first, and the work
/// still has a third of another one's weight: where pods take all of the processors, a pull must not starve.
const NICE: i32 = 5;

/// The calling thread is calm for as long as this lives. Nice values are of threads on Linux, whatever POSIX says (setpriority(2)).
#[derive(Debug)]
pub struct Calm {
    before: i32,
    /// Not `Send`: it must end on the thread that it began on.
    _of_this_thread: std::marker::PhantomData<*const ()>,
}

impl Calm {
    /// Makes the calling thread calm. Where the kernel refuses, nothing changes: the work is the same.
    #[must_use = "it ends with this value"]
    pub fn begin() -> Self {
        let before = rustix::process::getpriority_process(None).unwrap_or(0);
        // A refusal leaves everything as it was.
        let _ = rustix::process::setpriority_process(None, before.max(NICE));
        Self { before, _of_this_thread: std::marker::PhantomData }
    }
}

impl Drop for Calm {
    fn drop(&mut self) {
        if let Err(error) = rustix::process::setpriority_process(None, self.before) {
            tracing::debug!(%error, "a thread stays at a low priority");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_calm_by_itself_and_for_a_while() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        let other = std::thread::spawn(move || {
            let calm = Calm::begin();
            let during = nice();
            drop(calm);
            during
        });
        assert_eq!((other.join().unwrap(), nice()), (before.max(NICE), before));
    }
}
