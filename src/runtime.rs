//! OCI runtimes behind handlers.
