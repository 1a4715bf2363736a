//! Exec, Attach and PortForward as the streaming server calls them: real runtimes and namespaces, the rooms in this process,
//! and clients that are pipes in memory. All of them need root and run in a lane (`tests/in-lane.sh`).
#![allow(clippy::unwrap_used)] // a test

mod attach;
mod client;
mod exec;
mod forward;
mod leaks;
mod place;

/// Makes two tests, `name::crun` and `name::runc`, of each `async fn name(runtime: &'static str)`. They run beside each other.
#[macro_export]
macro_rules! per_runtime {
    ($($name:ident),* $(,)?) => { $(
        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "needs root: make test"]
            async fn crun() {
                let _others = $crate::place::beside_others().await;
                Box::pin(super::$name("crun")).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "needs root: make test"]
            async fn runc() {
                let _others = $crate::place::beside_others().await;
                Box::pin(super::$name("runc")).await;
            }
        }
    )* };
}

/// Makes one test, `name::once`, of each `async fn name()`. It runs while no other test of this program does: what it counts
/// is its own.
#[macro_export]
macro_rules! alone {
    ($($name:ident),* $(,)?) => { $(
        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "needs root: make test"]
            async fn once() {
                let _alone = $crate::place::alone().await;
                Box::pin(super::$name()).await;
            }
        }
    )* };
}
