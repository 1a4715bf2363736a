//! CRI config + image config + host facts to an OCI spec: pure.
