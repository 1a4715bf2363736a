//! Device nodes for containers.
