//! Pod networks: namespaces, CNI, host ports.
