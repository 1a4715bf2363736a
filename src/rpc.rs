//! The gRPC edge: decode, call, encode. The only room that names tonic.
