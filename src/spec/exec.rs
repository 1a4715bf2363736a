//! The process document of an exec session.

use oci_spec::runtime::{Process, Spec};

use super::args::{self, ArgsError};

/// The process for an exec: the container's own user, groups, capabilities, environment, directory, labels and limits, with
/// another command line. It is handed to the runtime as a document and never as flags, which some runtimes have read
/// otherwise than they were meant (CVE-2026-30892, CVE-2022-29162). `None` for a spec without a process, which
/// [`super::build`] never makes.
///
/// # Errors
/// [`ArgsError`] for a command line that is empty or that the kernel would refuse.
pub fn exec_process(spec: &Spec, cmd: &[String], tty: bool) -> Result<Option<Process>, ArgsError> {
    let cmd = args::checked(cmd.to_vec())?;
    let Some(mut process) = spec.process().clone() else { return Ok(None) };
    process.set_args(Some(cmd)).set_terminal(Some(tty));
    if tty {
        let env = process.env_mut().get_or_insert_default();
        if !env.iter().any(|entry| entry.starts_with("TERM=")) {
            env.push("TERM=xterm".to_owned());
        }
    }
    Ok(Some(process))
}
