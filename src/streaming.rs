//! The streaming server: exec, attach and port-forward over SPDY/3.1 and WebSocket. An edge like [`crate::rpc`]: its
//! protocols stop here, and the container room sees [`crate::container::session::SessionStreams`].

pub mod spdy;
