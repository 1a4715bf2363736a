//! Exec, Attach and PortForward: whether the session may be, and then the URL at which its client begins it.

use cri_proto::runtime::v1 as cri;
use tonic::Status;

use crate::admission;
use crate::container::{Container, ContainerError, state_name};
use crate::pod::PodError;
use crate::state::{ContainerPhase, SandboxPhase};
use crate::streaming::{AttachRequest, ExecRequest, PortForwardRequest, Streams};

use super::Services;
use super::code::status;

/// The URL for a command with streams, in a running container.
pub(super) fn exec(services: &Services, request: cri::ExecRequest) -> Result<String, Status> {
    admission::exec(&request).map_err(|error| status(&error))?;
    let found = services.pods.containers().find(&request.container_id);
    let container = found.map_err(|error| status(&error))?;
    in_phase(&container, &[ContainerPhase::Running], "RUNNING")?;
    let streams = Streams { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, tty: request.tty };
    let request = ExecRequest { container_id: container.id().to_owned(), command: request.cmd, streams };
    services.streaming.exec(request).map_err(|error| status(&error))
}

/// The URL for attaching to a container that is created or runs.
pub(super) fn attach(services: &Services, request: &cri::AttachRequest) -> Result<String, Status> {
    admission::attach(request).map_err(|error| status(&error))?;
    let found = services.pods.containers().find(&request.container_id);
    let container = found.map_err(|error| status(&error))?;
    in_phase(&container, &[ContainerPhase::Created, ContainerPhase::Running], "CREATED or RUNNING")?;
    if request.stdin && !container.record().config.stdin {
        return Err(status(&ContainerError::NoStdin { id: container.id().to_owned() }));
    }
    let streams = Streams { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, tty: request.tty };
    let request = AttachRequest { container_id: container.id().to_owned(), streams };
    services.streaming.attach(request).map_err(|error| status(&error))
}

/// The URL for connections to ports of a pod that is READY.
pub(super) fn port_forward(services: &Services, request: &cri::PortForwardRequest) -> Result<String, Status> {
    admission::port_forward(request).map_err(|error| status(&error))?;
    let pod = services.pods.find(&request.pod_sandbox_id).map_err(|error| status(&error))?;
    if pod.record().phase != SandboxPhase::Ready {
        return Err(status(&PodError::NotReady { id: pod.id().to_owned() }));
    }
    // Admission has seen that each is a port.
    let ports = request.port.iter().filter_map(|port| u16::try_from(*port).ok()).collect();
    let request = PortForwardRequest { sandbox_id: pod.id().to_owned(), ports };
    services.streaming.port_forward(request).map_err(|error| status(&error))
}

fn in_phase(container: &Container, phases: &[ContainerPhase], wanted: &'static str) -> Result<(), Status> {
    let record = container.record();
    if phases.contains(&record.phase) {
        return Ok(());
    }
    let state = state_name(record.phase);
    Err(status(&ContainerError::WrongState { id: record.id.clone(), state, wanted }))
}
