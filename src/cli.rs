//! Command-line arguments and the small commands.
