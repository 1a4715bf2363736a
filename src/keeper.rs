//! The keeper: one small process per node that parents, reaps and holds.
