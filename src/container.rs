//! Containers: one driver task owns each.
