//! Command-line arguments and the small commands.

mod config;
mod connect;
mod image;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A Kubernetes CRI server: images, pods and containers, supervised in one daemon.
#[derive(Debug, Parser)]
#[command(name = "cricket", version, arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon.
    Serve {
        /// Configuration file [default: /etc/cricket/config.toml, which may be missing].
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Run the keeper: the daemon starts it; nobody else needs to.
    #[command(hide = true)]
    Keeper(KeeperArguments),
    /// Make a pod's namespaces below a user namespace: the daemon runs this; nobody else needs to.
    #[command(hide = true)]
    Namespaces,
    /// Show what the daemon says of itself.
    Status {
        #[command(flatten)]
        socket: Socket,
    },
    /// Print or check the configuration.
    Config {
        #[command(subcommand)]
        command: config::Command,
    },
    /// List, pull, import, export, verify or remove images.
    Image {
        #[command(flatten)]
        socket: Socket,
        #[command(subcommand)]
        command: image::Command,
    },
}

#[derive(Debug, clap::Args)]
struct KeeperArguments {
    #[arg(long)]
    socket: PathBuf,
    #[arg(long = "cgroup", value_name = "DIR")]
    cgroups: Vec<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct Socket {
    /// The daemon's socket.
    #[arg(long, value_name = "PATH", default_value = "/run/cricket/cricket.sock", global = true)]
    socket: PathBuf,
}

/// A failure's exit code, as sysexits(3) has them: what is wrong with the configuration is told from the rest.
const EXIT_CONFIG: u8 = 78;

/// Nothing is damaged as far as can be told, and that is not far enough.
const EXIT_UNVERIFIED: u8 = 3;

/// Runs the command. What goes wrong is one line on stderr.
#[must_use]
pub fn run(arguments: Arguments) -> ExitCode {
    match arguments.command {
        // Before anything else starts: the keeper is small because nothing else has run in it.
        Command::Keeper(arguments) => {
            let options =
                crate::keeper::server::ServerOptions { socket: arguments.socket, cgroup_dirs: arguments.cgroups };
            finish(crate::keeper::server::run(options))
        }
        // One thread, for the same reason.
        Command::Namespaces => finish(crate::sys::namespaces::carry_out()),
        Command::Serve { config } => match crate::config::Config::load(config.as_deref()) {
            Ok(loaded) => finish(crate::daemon::run(loaded, config)),
            Err(error) => {
                complain(&error);
                ExitCode::from(EXIT_CONFIG)
            }
        },
        Command::Config { command } => config::run(&command),
        Command::Status { socket } => finish(connect::block_on(status::run(&socket.socket))),
        Command::Image { socket, command } => match connect::block_on(image::run(&socket.socket, command)) {
            Err(error @ connect::CommandError::Unverified) => {
                complain(&error);
                ExitCode::from(EXIT_UNVERIFIED)
            }
            result => finish(result),
        },
    }
}

fn finish<E: std::error::Error + 'static>(result: Result<(), E>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn complain<E: std::error::Error + 'static>(error: &E) {
    eprintln!("cricket: {}", crate::telemetry::chain(error));
}
