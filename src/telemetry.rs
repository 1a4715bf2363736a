//! Logs with an operation id; sd_notify.
