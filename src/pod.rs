//! Pod sandboxes: one driver task owns each.
