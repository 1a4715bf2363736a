//! The system lane: the real daemon with real runtimes, plugins and registry, driven over its socket.
//!
//! Every test has a [`world::World`] of its own (mount, network and pid namespaces, a private `/run`), so tests run beside
//! each other, nothing reaches the machine, and the kernel clears up after a test that fails half-way. All of them need
//! root and are therefore ignored by a plain `cargo test`; `make system-test` runs them.
//!
//! ```text
//! world      namespaces, and running programs in them
//!   node     a daemon in a world: configuration, registry, network, start, kill, restart
//!     outside            a neighbour on the node's network, and clients of what pods serve
//!     client, requests   the CRI as a client sees it; sandbox and container configurations
//!     streaming_client   crictl, SPDY and WebSocket, for what the streaming server serves
//!     ledger             everything that could be left behind, before and after
//!   internet   two nodes, a router and an outside host, and who reaches whom
//!   hostile, archive, crafted   a registry and images that misbehave
//!     canary             what no container may see or change
//! ```

mod archive;
mod builtin_network;
mod canary;
mod client;
mod crafted;
mod hostile;
mod ledger;
mod node;
mod outside;
mod requests;
mod streaming_client;
mod world;

mod bad_layers;
mod bad_network;
mod bad_registry;
mod bad_requests;
mod bad_runtime;
mod crash;
mod cve_image;
mod cve_node;
mod cve_request;
mod devices;
mod dual_stack;
mod events;
mod exec;
mod full_disk;
mod hostports;
mod image_kept;
mod image_volumes;
mod images;
mod internet;
mod lane;
mod lifecycle;
mod limits;
mod logs;
mod mounts;
mod old_kubelet;
mod pods;
mod pulls;
mod security_context;
mod server;
mod stats;
mod storm;
mod streaming;
mod streaming_hostile;
mod streams;
mod update;
mod userns;

/// Makes two tests, `name::crun` and `name::runc`, of each `async fn name(runtime: &'static str) -> anyhow::Result<()>`.
#[macro_export]
macro_rules! per_runtime {
    ($($name:ident),* $(,)?) => { $(
        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "needs root: make system-test"]
            async fn crun() -> anyhow::Result<()> {
                Box::pin(super::$name("crun")).await
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "needs root: make system-test"]
            async fn runc() -> anyhow::Result<()> {
                Box::pin(super::$name("runc")).await
            }
        }
    )* };
}

/// Makes one test, `name::once`, of each `async fn name() -> anyhow::Result<()>` in which the runtime plays no part.
#[macro_export]
macro_rules! once {
    ($($name:ident),* $(,)?) => { $(
        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "needs root: make system-test"]
            async fn once() -> anyhow::Result<()> {
                Box::pin(super::$name()).await
            }
        }
    )* };
}
