//! The union of what each concern may refuse.

use super::{
    AnnotationError, ArgsError, CapsError, EnvError, MountError, NamespaceError, ResourceError, SeccompError,
    SelinuxError, SignalError, UserError,
};

/// Why a container cannot have a spec.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error("linux.security_context.privileged: the container is privileged, its sandbox {sandbox_id} is not")]
    PrivilegedInUnprivilegedPod { sandbox_id: String },
    #[error(transparent)]
    Args(#[from] ArgsError),
    #[error(transparent)]
    Env(#[from] EnvError),
    #[error(transparent)]
    User(#[from] UserError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Caps(#[from] CapsError),
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    #[error(transparent)]
    AppArmor(#[from] super::AppArmorError),
    #[error(transparent)]
    Selinux(#[from] SelinuxError),
    #[error(transparent)]
    Resource(#[from] ResourceError),
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
    #[error(transparent)]
    Path(#[from] super::PathError),
    #[error(transparent)]
    Signal(#[from] SignalError),
}

/// What the caller should be told, apart from the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request contradicts itself, the contract, or its image.
    InvalidArgument,
    /// This host, or this daemon's privileges, cannot do it.
    FailedPrecondition,
    /// An error that the kubelet knows by the name at the start of its text; the gRPC code must then be Unknown.
    Named,
}

impl SpecError {
    /// The class of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Mount(error) => error.kind(),
            Self::Caps(CapsError::NotHeld { .. })
            | Self::AppArmor(_)
            | Self::Seccomp(SeccompError::Kernel { .. } | SeccompError::Machine)
            | Self::Resource(ResourceError::UnifiedOnV1 { .. } | ResourceError::NoHugetlb { .. }) => {
                ErrorKind::FailedPrecondition
            }
            _ => ErrorKind::InvalidArgument,
        }
    }
}
