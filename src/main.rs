//! The `cricket` binary: arguments, and an exit code from the command.

use std::path::PathBuf;
use std::process::ExitCode;

use cricket::keeper::server::{ServerOptions, run};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().as_deref() != Some("keeper".as_ref()) {
        return ExitCode::from(64);
    }
    let mut options = ServerOptions { socket: PathBuf::new(), cgroup_dirs: Vec::new() };
    while let (Some(flag), Some(value)) = (args.next(), args.next()) {
        match flag.to_str() {
            Some("--socket") => options.socket = value.into(),
            Some("--cgroup") => options.cgroup_dirs.push(value.into()),
            _ => return ExitCode::from(64),
        }
    }
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
