//! Images: references, registries, pull, store, import.
