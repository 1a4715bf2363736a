//! Which request is legal, idempotent, or joins an operation in flight: pure, no I/O.
