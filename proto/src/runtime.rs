//! Package `runtime`: the CRI itself.

#[allow(clippy::all, clippy::pedantic, missing_debug_implementations)] // generated
#[rustfmt::skip]
#[path = "gen/runtime.v1.rs"]
pub mod v1;
