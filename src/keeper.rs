//! The keeper: one small process per node that parents, reaps and holds.
//!
//! ```text
//!  daemon (client.rs, any number of lives)          keeper (server.rs, one thread, no tokio)
//!    spawn: run an OCI runtime          ─────────▶  fork + exec, pid-file, pidfd back; the container becomes its child
//!    fork_init: pid 1 of a shared pid ns ────────▶  clone3, drops everything, reaps for ever (init.rs)
//!    hold / forget: descriptors under an id ─────▶  table.rs
//!    held, after a restart              ◀─────────  ids, pids, exits and all descriptors
//!    wait_exit                          ◀─────────  exit event, remembered until forgotten
//! ```
//!
//! Either side may be killed at any time. A daemon that comes back takes everything from [`client::Keeper::held`]. When
//! the keeper dies, the client starts another and hands its own duplicates over; exits then come from the pidfds.
//! The wire is JSON datagrams with descriptors (`protocol.rs`), versioned, since a new daemon speaks to an old keeper
//! until the node reboots: operations and fields are only ever added.

pub mod client;
mod error;
pub mod protocol;
pub mod server;

pub use client::{Held, HeldProcess, Keeper, KeeperOptions, ProcessFile, SpawnRequest, Spawned};
pub use error::KeeperError;
pub use protocol::{Exit, ExitStatus};
