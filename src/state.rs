//! Records on disk: sandboxes and containers.
