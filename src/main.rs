//! The `cricket` binary: arguments, and an exit code from the command.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    cricket::cli::run(cricket::cli::Arguments::parse())
}
