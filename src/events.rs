//! Broadcast of container events.
