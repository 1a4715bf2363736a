//! Errors to gRPC codes: the only place that makes a [`Status`].
//!
//! The kubelet looks at `NotFound`, at `DeadlineExceeded` of an exec, and at four prefixes of the message
//! (`RegistryUnavailable`, `SignatureValidationFailed`, `RROUnsupported`, `ImageVolumeMountFailed`), which come with code
//! `Unknown`. The message is the whole chain of causes.

use tonic::{Code, Status};

use crate::admission::AdmissionError;
use crate::container::ContainerError;
use crate::image::{self, ImageError};
use crate::network::{BuiltinError, NetworkError};
use crate::pod::PodError;
use crate::runtime::{HandlersError, RuntimeError};
use crate::security::selinux::RelabelError;
use crate::spec::{self, SpecError};
use crate::streaming::StreamingError;
use crate::task::flight::FlightError;
use crate::telemetry::chain;

/// Longest message sent, in bytes: it travels in a header, and gRPC clients take 8 KiB of those by default.
const MAX_MESSAGE: usize = 6 * 1024;

/// An error that knows its code.
pub(super) trait Coded: std::error::Error {
    fn code(&self) -> Code;
}

/// The status of an error; logged here, once.
pub(super) fn status<E: Coded + 'static>(error: &E) -> Status {
    let code = error.code();
    let message = chain(error);
    match code {
        Code::NotFound | Code::InvalidArgument | Code::AlreadyExists | Code::FailedPrecondition => {
            tracing::debug!(?code, error = %message, "refused");
        }
        _ => tracing::warn!(?code, error = %message, "failed"),
    }
    Status::new(code, bounded(message))
}

/// The status of a pull that failed. The log has it whatever it is: "not found" is an answer to a question, but not to a pull.
pub(super) fn pull_status(error: &ImageError) -> Status {
    let (code, message) = (error.code(), chain(error));
    tracing::warn!(?code, error = %message, "failed");
    Status::new(code, bounded(message))
}

/// An argument that is wrong by itself.
pub(super) fn invalid(message: String) -> Status {
    Status::new(Code::InvalidArgument, bounded(message))
}

/// An RPC that is not built yet.
pub(super) fn unimplemented(rpc: &str) -> Status {
    Status::unimplemented(format!("{rpc} is not implemented yet"))
}

fn bounded(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        let mut end = MAX_MESSAGE;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push('…');
    }
    message
}

impl Coded for FlightError {
    fn code(&self) -> Code {
        match self {
            Self::Different { .. } => Code::AlreadyExists,
            Self::Lost { .. } => Code::Internal,
        }
    }
}

impl Coded for NetworkError {
    fn code(&self) -> Code {
        let Self::BuiltinNode(error) = self else { return Code::Internal };
        match **error {
            BuiltinError::Subnet { .. } => Code::InvalidArgument,
            BuiltinError::PodCidrHeld { .. } => Code::FailedPrecondition,
            _ => Code::Internal,
        }
    }
}

impl Coded for AdmissionError {
    fn code(&self) -> Code {
        Code::InvalidArgument
    }
}

impl Coded for SpecError {
    fn code(&self) -> Code {
        match self.kind() {
            spec::ErrorKind::InvalidArgument => Code::InvalidArgument,
            spec::ErrorKind::FailedPrecondition => Code::FailedPrecondition,
            spec::ErrorKind::Named => Code::Unknown,
        }
    }
}

impl Coded for HandlersError {
    fn code(&self) -> Code {
        match self {
            Self::Unknown { .. } => Code::InvalidArgument,
            _ => Code::Internal,
        }
    }
}

impl Coded for RuntimeError {
    fn code(&self) -> Code {
        match self {
            Self::TimedOut { .. } => Code::DeadlineExceeded,
            _ => Code::Unknown,
        }
    }
}

impl Coded for ContainerError {
    fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } => Code::NotFound,
            Self::Ambiguous { .. }
            | Self::ExecEmpty
            | Self::MountSource { .. }
            | Self::SeccompProfile { .. }
            | Self::Device(_)
            | Self::Cdi(_)
            | Self::Relabel { source: RelabelError::System { .. }, .. }
            | Self::Artifact { .. }
            | Self::UnsafeRootfs { .. } => Code::InvalidArgument,
            Self::NameTaken { .. } => Code::AlreadyExists,
            Self::WrongState { .. }
            | Self::NoStdin { .. }
            | Self::StdinClosed { .. }
            | Self::MemoryInUse { .. }
            | Self::Mount { .. }
            | Self::OldKeeper => Code::FailedPrecondition,
            Self::TooManySessions { .. } => Code::ResourceExhausted,
            Self::Update { source } | Self::UpdateUndo { source, .. } => source.code(),
            Self::NoImage { .. } => Code::NotFound,
            Self::ExecTimeout { .. } | Self::Unkillable { .. } => Code::DeadlineExceeded,
            Self::ExecCancelled => Code::Cancelled,
            Self::Image(error) => error.code(),
            Self::Admission(error) => error.code(),
            Self::Spec(error) => error.code(),
            Self::Runtime(error) => error.code(),
            Self::Handler(error) => error.code(),
            Self::Flight(error) => error.code(),
            Self::Shared(error) => error.code(),
            _ => Code::Unknown,
        }
    }
}

impl Coded for PodError {
    fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } => Code::NotFound,
            Self::Ambiguous { .. } | Self::Cgroup(_) => Code::InvalidArgument,
            Self::NameTaken { .. } => Code::AlreadyExists,
            Self::NotReady { .. } | Self::UserNamespaces { .. } => Code::FailedPrecondition,
            Self::PortRefused { .. } => Code::Unavailable,
            Self::PortTimeout { .. } => Code::DeadlineExceeded,
            Self::Admission(error) => error.code(),
            Self::Handler(error) => error.code(),
            Self::Container(error) => error.code(),
            Self::Flight(error) => error.code(),
            Self::Shared(error) => error.code(),
            _ => Code::Unknown,
        }
    }
}

impl Coded for StreamingError {
    fn code(&self) -> Code {
        match self {
            Self::TooManyTokens(_) => Code::ResourceExhausted,
            _ => Code::Internal,
        }
    }
}

impl Coded for ImageError {
    fn code(&self) -> Code {
        match self.kind() {
            image::ErrorKind::Invalid => Code::InvalidArgument,
            image::ErrorKind::NotFound => Code::NotFound,
            // The kubelet reads the prefix of the message (RegistryUnavailable) only under this code.
            image::ErrorKind::Unavailable
            | image::ErrorKind::Denied
            | image::ErrorKind::BadImage
            | image::ErrorKind::Internal => Code::Unknown,
        }
    }
}
