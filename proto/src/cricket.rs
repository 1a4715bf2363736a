//! Package `cricket`: what the command line asks of the daemon beyond the CRI.

#[allow(clippy::all, clippy::pedantic, missing_debug_implementations)] // generated
#[rustfmt::skip]
#[path = "gen/cricket.v1.rs"]
pub mod v1;
