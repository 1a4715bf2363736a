//! ExecSync, Exec, Attach and PortForward.

use cri_proto::runtime::v1 as cri;

use super::AdmissionError;
use super::field::printable;

/// Whether a command may be run to its end.
///
/// # Errors
/// [`AdmissionError`]: no container, no command, a NUL byte, a negative timeout.
pub fn exec_sync(request: &cri::ExecSyncRequest) -> Result<(), AdmissionError> {
    printable("container_id", &request.container_id)?;
    command(&request.cmd)?;
    if request.timeout < 0 {
        return Err(AdmissionError::new("timeout", request.timeout, "want seconds, 0 for no limit"));
    }
    Ok(())
}

/// Whether a streamed command may be run.
///
/// # Errors
/// [`AdmissionError`]: no container, no command, no stream, or a terminal with a stderr of its own.
pub fn exec(request: &cri::ExecRequest) -> Result<(), AdmissionError> {
    printable("container_id", &request.container_id)?;
    command(&request.cmd)?;
    streams(request.tty, [request.stdin, request.stdout, request.stderr])
}

/// Whether a container may be attached to.
///
/// # Errors
/// [`AdmissionError`]: no container, no stream, or a terminal with a stderr of its own.
pub fn attach(request: &cri::AttachRequest) -> Result<(), AdmissionError> {
    printable("container_id", &request.container_id)?;
    streams(request.tty, [request.stdin, request.stdout, request.stderr])
}

/// Whether ports of a pod may be forwarded. No ports are legal: the stream names them then.
///
/// # Errors
/// [`AdmissionError`]: no pod, or a number that is no port.
pub fn port_forward(request: &cri::PortForwardRequest) -> Result<(), AdmissionError> {
    printable("pod_sandbox_id", &request.pod_sandbox_id)?;
    match request.port.iter().position(|port| !(1..=65535).contains(port)) {
        Some(index) => Err(AdmissionError::new(format!("port[{index}]"), request.port[index], "want 1 to 65535")),
        None => Ok(()),
    }
}

fn command(cmd: &[String]) -> Result<(), AdmissionError> {
    if cmd.first().is_none_or(String::is_empty) {
        return Err(AdmissionError::missing("cmd"));
    }
    match cmd.iter().position(|arg| arg.contains('\0')) {
        Some(index) => Err(AdmissionError::new(format!("cmd[{index}]"), "", "has a NUL byte")),
        None => Ok(()),
    }
}

fn streams(tty: bool, [stdin, stdout, stderr]: [bool; 3]) -> Result<(), AdmissionError> {
    if !(stdin || stdout || stderr) {
        return Err(AdmissionError::new("stdin, stdout, stderr", false, "at least one must be asked for"));
    }
    if tty && stderr {
        return Err(AdmissionError::new("stderr", true, "a terminal has no stderr of its own"));
    }
    Ok(())
}
