//! `cricket config default|check`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use crate::config::Config;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print every key with its default and what it means.
    Default,
    /// Read the configuration as the daemon would, and say what is wrong with it.
    Check {
        /// Configuration file [default: /etc/cricket/config.toml, which may be missing].
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

pub(super) fn run(command: &Command) -> ExitCode {
    match command {
        Command::Default => {
            print!("{}", crate::config::default_toml());
            ExitCode::SUCCESS
        }
        Command::Check { config } => match Config::load(config.as_deref()) {
            Ok(loaded) => {
                for file in &loaded.sources {
                    println!("read {}", file.display());
                }
                println!("the configuration is good");
                ExitCode::SUCCESS
            }
            Err(error) => {
                super::complain(&error);
                ExitCode::from(super::EXIT_CONFIG)
            }
        },
    }
}
