//! CRI config + image config + host facts to an OCI runtime spec: a pure function, so that every security decision can be
//! read (and snapshot-tested) in one place. No I/O, no clock, no async: whatever must be looked up comes in by parameter.
//!
//! | concern | file |
//! |---|---|
//! | command line, working directory | `args` |
//! | environment | `env` |
//! | uid, gid, supplementary groups | `user` |
//! | bind mounts, built-in mounts, which targets are refused | `mounts` |
//! | capabilities | `caps` |
//! | seccomp, AppArmor, SELinux | `seccomp`, `apparmor`, `selinux` |
//! | device nodes and device rules | `devices` |
//! | what CDI devices bring | `cdi` |
//! | cgroup limits, rlimits, OOM score | `resources` |
//! | namespaces | `namespaces` |
//! | annotations for the runtime | `annotations` |
//! | stop signal | `signal` |
//!
//! A spec has no hooks but those of CDI files, which are the administrator's (`cdi`), and nothing of an image's labels is even a parameter (CVE-2026-53488).

mod annotations;
mod apparmor;
mod args;
mod caps;
mod cdi;
mod devices;
mod env;
mod error;
mod exec;
pub mod mounts;
mod namespaces;
mod paths;
mod resources;
mod seccomp;
mod selinux;
mod signal;
pub mod user;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use cri_proto::runtime::v1 as cri;
use oci_spec::runtime::{Linux, Process, Root, Spec};

use crate::devices::cdi::Injection;
use crate::devices::{DeviceNode, ResolvedDevice};
use crate::security::{AppArmor, Facts};

pub use annotations::AnnotationError;
pub use apparmor::{AppArmorError, AppArmorRequest, apparmor_request};
pub use args::ArgsError;
pub use caps::CapsError;
pub use env::EnvError;
pub use error::{ErrorKind, SpecError};
pub use exec::exec_process;
pub use mounts::{MountError, SourcePropagation, image_volumes};
pub use namespaces::{NamespaceError, NamespacePaths, PidNamespace, UserNamespace};
pub use paths::PathError;
pub use resources::{ResourceError, ResourceUpdate, to_oci_resources};
pub use seccomp::{SeccompError, seccomp_localhost_path};
pub use selinux::{SelinuxError, check_selinux_options, file_label};
pub use signal::{SignalError, parse_signal};
pub use user::UserError;

/// The lowest version that says all that a spec of ours needs: Debian's crun 1.8.1 refuses anything above 1.0.x.
pub const OCI_VERSION: &str = "1.0.2";

/// Everything that a container's spec depends on.
#[derive(Debug)]
pub struct SpecInput<'a> {
    pub id: &'a str,
    pub sandbox_id: &'a str,
    pub sandbox: &'a cri::PodSandboxConfig,
    pub config: &'a cri::ContainerConfig,
    pub image: &'a ImageFacts<'a>,
    /// The image's `/etc/passwd` and `/etc/group`; absent where the image has none. At most [`user::MAX_FILE_SIZE`].
    pub passwd: Option<&'a [u8]>,
    pub group: Option<&'a [u8]>,
    /// The pod's host name, for `HOSTNAME`: the node's own in a pod of the host's network.
    pub hostname: &'a str,
    pub host: &'a HostFacts,
    pub namespaces: &'a NamespacePaths,
    pub files: &'a PodFiles,
    pub rootfs: &'a Path,
    pub cgroups_path: &'a str,
    pub handler: &'a HandlerPolicy,
    /// One for each of the request's mounts, in its order; after them any of the daemon's own (for [`image_volumes`], say).
    pub mounts: &'a [ResolvedMount<'a>],
    pub devices: &'a [ResolvedDevice],
    /// What the CDI devices that the request names change.
    pub cdi: &'a Injection,
    /// AppArmor as it is now; `None` where it is off.
    pub apparmor: Option<&'a AppArmor>,
    /// The profile at [`seccomp_localhost_path`], read by the caller.
    pub seccomp_localhost: Option<&'a [u8]>,
    /// The pod's SELinux level (`s0:c1,c2`), which the pod driver chose; for containers that ask for none.
    pub selinux_level: Option<&'a str>,
}

/// What the image's config says of how to run it. Its labels are left out on purpose.
#[derive(Debug, Clone, Copy, Default)]
pub struct ImageFacts<'a> {
    pub user: &'a str,
    pub env: &'a [String],
    pub entrypoint: &'a [String],
    pub cmd: &'a [String],
    pub working_dir: &'a str,
    pub stop_signal: Option<&'a str>,
    pub volumes: &'a [String],
}

/// The host, as probed at start.
#[derive(Debug, Clone)]
pub struct HostFacts {
    pub kernel: Facts,
    /// For privileged containers, from [`crate::devices::host_devices`].
    pub devices: Vec<DeviceNode>,
}

/// The daemon's own files of a pod, bind-mounted into each of its containers.
#[derive(Debug, Clone)]
pub struct PodFiles {
    pub hostname: Option<PathBuf>,
    pub resolv_conf: PathBuf,
    /// For containers whose request mounts none; absent: the image's own is kept.
    pub hosts: Option<PathBuf>,
    /// The pod's shared memory; the host's `/dev/shm` with host IPC.
    pub shm: PathBuf,
    /// Containers may write to the three files. Only true where they lie on a small file system of the pod's own:
    /// otherwise a container could fill the daemon's (CVE-2020-8557).
    pub writable: bool,
}

/// What the operator's configuration of a runtime handler says.
#[derive(Debug, Clone, Default)]
pub struct HandlerPolicy {
    /// Annotation keys that may reach the runtime: exact, or a prefix that ends in `*`.
    pub allowed_annotations: Vec<String>,
    pub privileged_without_host_devices: bool,
    /// Mounts of this handler's containers can be prepared, and so be read-only with all that is below them.
    pub recursive_read_only: bool,
}

/// A mount of the request, with what the caller found out about it.
#[derive(Debug, Clone)]
pub struct ResolvedMount<'a> {
    pub cri: &'a cri::Mount,
    /// The host path with every symbolic link resolved; for an image, where its content will be found.
    pub source: PathBuf,
    pub source_kind: SourceKind,
    /// How the mount that holds the source propagates; `None` when it was not looked up, and then it is not checked.
    pub source_propagation: Option<SourcePropagation>,
    /// The container path as it resolves inside the image's root, when the caller looked. It is checked like the path
    /// itself, so that a link in the image is no way to a refused target (CVE-2019-16884).
    pub resolved_target: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    Directory,
    /// A regular file, socket, FIFO or device node.
    File,
}

/// A spec, and what the rest of the daemon needs to know of it.
#[derive(Debug, Clone)]
pub struct BuiltSpec {
    pub spec: Spec,
    /// For ContainerStatus: the supplementary groups include the primary one.
    pub user: cri::LinuxContainerUser,
    /// The number of the signal that asks the container to stop.
    pub stop_signal: i32,
    pub args: Vec<String>,
    /// Values that the host allows less of than was asked for; worth saying once.
    pub clamped: Vec<Clamped>,
    /// The SELinux label that volumes of the container are to get, where SELinux is on.
    pub mount_label: Option<String>,
}

/// A value that was brought down (or up) to what the daemon may set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clamped {
    pub what: &'static str,
    pub asked: i64,
    pub given: i64,
}

/// What several concerns ask about a container.
pub(crate) struct Asked<'a> {
    pub security: &'a cri::LinuxContainerSecurityContext,
    pub sandbox_security: Option<&'a cri::LinuxSandboxSecurityContext>,
    pub privileged: bool,
}

impl<'a> Asked<'a> {
    fn of(input: &SpecInput<'a>, default: &'a cri::LinuxContainerSecurityContext) -> Result<Self, SpecError> {
        let security = input.config.linux.as_ref().and_then(|l| l.security_context.as_ref()).unwrap_or(default);
        let sandbox_security = input.sandbox.linux.as_ref().and_then(|l| l.security_context.as_ref());
        if security.privileged && !sandbox_security.is_some_and(|pod| pod.privileged) {
            return Err(SpecError::PrivilegedInUnprivilegedPod { sandbox_id: input.sandbox_id.to_owned() });
        }
        Ok(Self { security, sandbox_security, privileged: security.privileged })
    }
}

/// Makes the spec of a container.
///
/// # Errors
/// [`SpecError`], which names the field and the value that cannot be had; [`SpecError::kind`] says whose fault it is.
pub fn build(input: &SpecInput<'_>) -> Result<BuiltSpec, SpecError> {
    let default = cri::LinuxContainerSecurityContext::default();
    let asked = Asked::of(input, &default)?;
    let mut identity = user::resolve(asked.security, input.image.user, input.passwd, input.group)?;
    cdi::groups(input.cdi, &mut identity);
    let resources = resources::resources(input)?;
    let labels = selinux::labels(input, &asked)?;
    let mut clamped = Vec::new();
    let process = process(input, &asked, &identity, labels.as_ref(), &mut clamped)?;
    let args = process.args().clone().unwrap_or_default();
    let mut built_mounts = mounts::build(input, &asked)?;
    cdi::mounts(input.cdi, &mut built_mounts.mounts);
    let (mut nodes, mut rules) = devices::devices(input, &asked);
    cdi::devices(input.cdi, &identity, &mut nodes, &mut rules);
    let caps = caps::capabilities(&asked, input.host.kernel.caps)?;

    let mut oci_resources = resources;
    oci_resources.set_devices(Some(rules));
    let (masked, readonly) = paths::masked_and_readonly(&asked)?;
    let (uid_maps, gid_maps) = namespaces::user_maps(input.namespaces);
    let mut linux = Linux::default();
    linux
        .set_uid_mappings(uid_maps)
        .set_gid_mappings(gid_maps)
        .set_sysctl(None)
        .set_resources(Some(oci_resources))
        .set_cgroups_path(Some(input.cgroups_path.into()))
        .set_namespaces(Some(namespaces::namespaces(input)?))
        .set_devices(Some(nodes))
        .set_intel_rdt(cdi::intel_rdt(input.cdi))
        .set_seccomp(seccomp::profile(input, &asked, caps.bounding)?)
        .set_rootfs_propagation(built_mounts.rootfs_propagation.map(str::to_owned))
        .set_masked_paths(masked)
        .set_readonly_paths(readonly)
        .set_mount_label(labels.as_ref().map(|labels| labels.mount.clone()));
    let mut root = Root::default();
    root.set_path(input.rootfs.to_owned()).set_readonly(Some(asked.security.readonly_rootfs));
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned())
        .set_root(Some(root))
        .set_mounts(Some(built_mounts.mounts))
        .set_process(Some(process))
        .set_hostname(None)
        .set_hooks(cdi::hooks(input.cdi))
        .set_annotations(annotations::forwarded(input)?)
        .set_linux(Some(linux));
    Ok(BuiltSpec {
        spec,
        user: identity.status(),
        stop_signal: signal::stop_signal(input.config.stop_signal, input.image.stop_signal)?,
        args,
        clamped,
        mount_label: labels.map(|labels| labels.mount),
    })
}

fn process(
    input: &SpecInput<'_>,
    asked: &Asked<'_>,
    identity: &user::Identity,
    labels: Option<&selinux::Labels>,
    clamped: &mut Vec<Clamped>,
) -> Result<Process, SpecError> {
    let caps = caps::capabilities(asked, input.host.kernel.caps)?;
    let mut process = Process::default();
    process
        .set_terminal(Some(input.config.tty))
        .set_user(identity.to_oci())
        .set_args(Some(args::args(input.config, input.image)?))
        .set_env(Some(env::env(input)?))
        .set_cwd(args::cwd(input.config, input.image)?.into())
        .set_capabilities(Some(caps.to_oci()))
        .set_rlimits(rlimits(input, clamped))
        .set_no_new_privileges(Some(asked.security.no_new_privs))
        .set_apparmor_profile(apparmor::profile(input, asked)?)
        .set_selinux_label(labels.map(|labels| labels.process.clone()))
        .set_oom_score_adj(Some(resources::oom_score_adj(input, clamped)?));
    Ok(process)
}

/// In a user namespace, limits are the daemon's own: there, some runtimes set them when they may not raise one any more.
fn rlimits(input: &SpecInput<'_>, clamped: &mut Vec<Clamped>) -> Option<Vec<oci_spec::runtime::PosixRlimit>> {
    input.namespaces.user.is_none().then(|| vec![resources::open_files(input.host, clamped)])
}
