//! Usage from cgroup files.
