//! One task per container: exit, stdio to the CRI log, OOM watch.
