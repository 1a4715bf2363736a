//! cricket: a Kubernetes CRI server.
//!
//! The rooms, from the edge inwards; a room uses only rooms below it (`tests/tidy.rs` holds the table):
//!
//! ```text
//! main, cli
//!   daemon                                       composition root
//!     rpc  streaming                             the edge: gRPC; exec, attach and port-forward
//!       pod  container  image  events            drivers: one task owns each sandbox and container
//!         admission  spec                        pure policy: no I/O, no async
//!         runtime  monitor  network  storage  stats  devices  security
//!           state  config  keeper
//!             sys  task  telemetry               only sys may contain unsafe code
//! ```

pub mod admission;
pub mod cli;
pub mod config;
pub mod container;
pub mod daemon;
pub mod devices;
pub mod events;
#[doc(hidden)]
pub mod fuzzing;
pub mod image;
pub mod keeper;
pub mod monitor;
pub mod network;
pub mod pod;
pub mod rpc;
pub mod runtime;
pub mod security;
pub mod spec;
pub mod state;
pub mod stats;
pub mod storage;
pub mod streaming;
pub mod sys;
pub mod task;
pub mod telemetry;
