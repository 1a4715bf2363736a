//! Creation: from a request to a container in state CREATED, or to nothing at all.
//!
//! The phases, each undone by [`undo`] when a later one fails (and by the sweep at start when the daemon dies, since the
//! record that names them is written first):
//! admission → image and user → record → lease, rootfs → OCI spec, bundle → `runtime create` → monitor.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cri_proto::runtime::v1::{ContainerConfig, LinuxContainerSecurityContext, Mount};
use oci_spec::runtime::Spec;
use rustix::pipe::PipeFlags;

use crate::admission::ContainerKey;
use crate::devices::cdi;
use crate::events::Kind;
use crate::image::ImageRecord;
use crate::keeper::HeldProcess;
use crate::monitor::log::LogPlace;
use crate::monitor::{ExitReport, Monitor, Stdio, Watched};
use crate::runtime::{CreateRequest, Stdio as RuntimeStdio};
use crate::security::AppArmor;
use crate::spec::mounts::propagation_of;
use crate::spec::{
    AppArmorRequest, BuiltSpec, ImageFacts, PidNamespace, ResolvedMount, SourceKind, SpecError, SpecInput,
    UserNamespace,
};
use crate::state::{ContainerPhase, ContainerRecord};
use crate::storage::{LayerLease, PathKind, StorageError, Viewer};
use crate::sys::cgroup::OomWatch;

use super::console::Console;
use super::driver::Owned;
use super::stage::{self, Source, Stage};
use super::{ContainerError, Containers, Resources, Sandbox, files, write_file};

/// The clock of `runtime create`. The kubelet's own for this call is two minutes; ours ends before it, so that the error
/// with the reason is still heard.
const CREATE_CLOCK: Duration = Duration::from_secs(100);

/// Largest `/etc/passwd` or `/etc/group` of an image that is read, in bytes (CVE-2026-47262).
const ACCOUNT_FILE_CAP: u64 = 10 * 1024 * 1024;

/// Largest Localhost seccomp profile that is read, in bytes.
const SECCOMP_CAP: u64 = 4 * 1024 * 1024;

/// Folders of a rootfs that a runtime mounts on or makes nodes in (CVE-2026-41579, CVE-2026-47766, CVE-2019-19921).
const REAL_DIRS: [&str; 3] = ["/dev", "/proc", "/sys"];

impl Containers {
    /// Creates a container in a sandbox. A retry of a creation in progress joins it; one of a finished creation with the
    /// same configuration gets the same id, while the container has not been started.
    ///
    /// # Errors
    /// Every way in which the request is bad, or a piece cannot be made; nothing is left behind.
    pub async fn create(&self, sandbox: Arc<Sandbox>, config: ContainerConfig) -> Result<String, ContainerError> {
        let key = ContainerKey::of(&sandbox.id, &config.metadata.clone().unwrap_or_default()).to_string();
        let hash = crate::admission::config_hash(&config);
        if let Some(id) = self.holder(&sandbox.id, &config, &hash)? {
            return Ok(id);
        }
        let containers = self.clone();
        let contents = hash.clone();
        let work = async move { Box::pin(containers.build(sandbox, config, hash)).await };
        self.inner.creating.run(&key, &contents, work).await?.map_err(ContainerError::Shared)
    }

    /// The container that has this name already: its id when the request is the same and it was not started, an error
    /// otherwise.
    fn holder(&self, sandbox: &str, config: &ContainerConfig, hash: &str) -> Result<Option<String>, ContainerError> {
        for container in self.of_sandbox(sandbox) {
            let record = container.record();
            if record.config.metadata != config.metadata {
                continue;
            }
            if record.config_hash == hash && record.phase == ContainerPhase::Created {
                return Ok(Some(record.id.clone()));
            }
            let name = config.metadata.clone().unwrap_or_default().name;
            return Err(ContainerError::NameTaken { name, holder: record.id.clone() });
        }
        Ok(None)
    }

    async fn build(
        &self,
        sandbox: Arc<Sandbox>,
        config: ContainerConfig,
        hash: String,
    ) -> Result<String, ContainerError> {
        // Looked up again inside the flight: one that has just landed has published its container.
        if let Some(id) = self.holder(&sandbox.id, &config, &hash)? {
            return Ok(id);
        }
        let resources = self.resources().clone();
        let reference = config.image.clone().unwrap_or_default().image;
        let image = resources
            .images
            .find(&reference)
            .map_err(ContainerError::Image)?
            .ok_or_else(|| ContainerError::NoImage { reference: reference.clone() })?;
        if image.is_artifact() {
            return Err(ContainerError::Artifact { reference });
        }
        let mut record = draft(&sandbox, config, hash, &image);
        record.volumes = stage::image_volumes(&resources.images, &record.config.mounts)?;
        record.cgroups_path = resources.cgroups.container_path(&sandbox.cgroup_parent, &record.id);
        let lease = lease(&resources, &record, reference)?;
        let facts = gather(&resources, &record, &image).await?;
        resources.store.put_container(&record)?;
        match make(&resources, &sandbox, record.clone(), (&image, lease), facts).await {
            Ok(owned) => Ok(self.adopt(owned, &[Kind::Created]).id().to_owned()),
            Err(error) => {
                undo(&resources, &sandbox, &record.id).await;
                Err(error)
            }
        }
    }
}

/// Holds the layers of the image and of image volumes, from before anything is read from them. They were found a moment ago,
/// and may have been removed since.
fn lease(resources: &Resources, record: &ContainerRecord, reference: String) -> Result<LayerLease, ContainerError> {
    match resources.storage.lease(&record.layers()) {
        Err(StorageError::Missing { .. }) => {
            stage::image_volumes(&resources.images, &record.config.mounts)?;
            Err(ContainerError::NoImage { reference })
        }
        lease => Ok(lease?),
    }
}

/// What has to be read from disk before the spec can be built.
struct Facts {
    passwd: Option<Vec<u8>>,
    group: Option<Vec<u8>>,
    mounts: Vec<Source>,
    devices: Vec<crate::devices::ResolvedDevice>,
    cdi: cdi::Injection,
    apparmor: Option<AppArmor>,
    seccomp: Option<Vec<u8>>,
}

fn draft(sandbox: &Sandbox, config: ContainerConfig, hash: String, image: &ImageRecord) -> ContainerRecord {
    let id = crate::state::ids::fresh_id();
    let has_log = !config.log_path.is_empty() && !sandbox.config.log_directory.is_empty();
    let log_dir = has_log.then(|| PathBuf::from(&sandbox.config.log_directory));
    ContainerRecord {
        sandbox_id: sandbox.id.clone(),
        phase: ContainerPhase::Creating,
        config_hash: hash,
        handler: sandbox.runtime.handler().to_owned(),
        image_id: image.id.to_string(),
        image_ref: image.repo_digests.first().cloned().unwrap_or_else(|| image.id.to_string()),
        chain: image.chain.clone(),
        created_at: crate::sys::host::now_ns(),
        log_dir,
        config,
        id,
        ..ContainerRecord::default()
    }
}

async fn gather(
    resources: &Resources,
    record: &ContainerRecord,
    image: &Arc<ImageRecord>,
) -> Result<Facts, ContainerError> {
    let (storage, chain) = (resources.storage.clone(), image.chain.clone());
    let config = record.config.clone();
    let cdi = resources.cdi.clone();
    let apparmor = apparmor(resources, &config).await?;
    let shelf = resources.shelf.clone();
    crate::task::blocking(move || {
        for path in REAL_DIRS {
            let kind = match storage.path_kind(&chain, path)? {
                PathKind::Missing | PathKind::Directory => continue,
                PathKind::Symlink => "symbolic link",
                PathKind::File | PathKind::Other => "file",
            };
            return Err(ContainerError::UnsafeRootfs { path, kind });
        }
        Ok(Facts {
            passwd: storage.read_file(&chain, "/etc/passwd", ACCOUNT_FILE_CAP)?,
            group: storage.read_file(&chain, "/etc/group", ACCOUNT_FILE_CAP)?,
            mounts: config
                .mounts
                .iter()
                .map(|mount| Source::open(mount, storage.resolve(&chain, &mount.container_path)?, &shelf))
                .collect::<Result<_, _>>()?,
            devices: crate::devices::resolve(&config.devices)?,
            cdi: cdi.resolve(&cdi_devices(&config)?)?,
            apparmor,
            seccomp: seccomp_profile(&config)?,
        })
    })
    .await
}

/// AppArmor as it is now, with the default profile loaded if the container is to have it. Only one that asked for that
/// profile is refused when it cannot be had; one that said nothing goes without, as on a node without AppArmor.
async fn apparmor(resources: &Resources, config: &ContainerConfig) -> Result<Option<AppArmor>, ContainerError> {
    let none = LinuxContainerSecurityContext::default();
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref()).unwrap_or(&none);
    match crate::spec::apparmor_request(security).map_err(SpecError::from)? {
        _ if security.privileged => Ok(None),
        AppArmorRequest::Unconfined | AppArmorRequest::Localhost(_) => Ok(resources.apparmor.state()?),
        AppArmorRequest::RuntimeDefault => Ok(resources.apparmor.with_default().await?),
        AppArmorRequest::Unset => match resources.apparmor.with_default().await {
            Ok(state) => Ok(state),
            Err(error) => {
                tracing::warn!(error = %crate::telemetry::chain(&error), "a container goes without an AppArmor profile");
                Ok(resources.apparmor.state()?)
            }
        },
    }
}

/// The CDI devices that the request names. The pod's annotations are the user's and name none (decision 019).
fn cdi_devices(config: &ContainerConfig) -> Result<Vec<cdi::QualifiedName>, cdi::CdiError> {
    let field = config.cdi_devices.iter().map(|device| device.name.as_str());
    Ok(cdi::requested(field, &config.annotations)?)
}

fn seccomp_profile(config: &ContainerConfig) -> Result<Option<Vec<u8>>, ContainerError> {
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let path = security.map(crate::spec::seccomp_localhost_path).transpose().map_err(SpecError::from)?.flatten();
    let Some(path) = path else { return Ok(None) };
    let failed = |source| ContainerError::SeccompProfile { path: path.clone(), source };
    crate::sys::host::read_regular(&path, SECCOMP_CAP).map(Some).map_err(failed)
}

async fn make(
    resources: &Arc<Resources>,
    sandbox: &Arc<Sandbox>,
    mut record: ContainerRecord,
    (image, lease): (&Arc<ImageRecord>, LayerLease),
    facts: Facts,
) -> Result<Owned, ContainerError> {
    let bundle = resources.bundle(&record.id);
    let rootfs = bundle.join("rootfs");
    let mut built = build_spec(resources, sandbox, &record, image, &facts, &rootfs)?;
    sandbox.runtime.adapt(&record.id, &mut built.spec)?;
    record.user = built.user.clone();
    record.stop_signal = built.stop_signal;
    record.shares_pids = sandbox.namespaces.pid != PidNamespace::Own;
    relabel(&record.config, &facts, built.mount_label.clone()).await?;
    let mounts = make_bundle(resources, sandbox, &record, built.spec, facts.mounts).await?;
    let (process, stdio) = create_process(resources, sandbox, &record, mounts).await?;
    record.phase = ContainerPhase::Created;
    let input = stdio.input();
    let (monitor, report) = watch(resources, &record, &process, stdio)?;
    resources.store.put_container(&record)?;
    Ok(Owned {
        record,
        runtime: Some(sandbox.runtime.clone()),
        process: Some(process),
        monitor: Some(monitor),
        input,
        lease: Some(lease),
        report: Some(report),
    })
}

/// Labels the volumes that ask for it as the container's files: never what merely happens to be mounted (CVE-2021-43816).
async fn relabel(config: &ContainerConfig, facts: &Facts, label: Option<String>) -> Result<(), ContainerError> {
    let Some(label) = label else { return Ok(()) };
    let volumes = config.mounts.iter().zip(&facts.mounts).filter(|(mount, _)| mount.selinux_relabel);
    let volumes: Vec<_> = volumes.map(|(mount, source)| (mount.container_path.clone(), source.path.clone())).collect();
    if volumes.is_empty() {
        return Ok(());
    }
    crate::task::blocking(move || {
        for (target, path) in volumes {
            crate::security::selinux::relabel(&path, &label)
                .map_err(|source| ContainerError::Relabel { target, source })?;
        }
        Ok(())
    })
    .await
}

/// Makes the bundle, its root file system, and what its mounts are made of. Returns the mount namespace that the runtime
/// is to be run in, where it is one of its own.
async fn make_bundle(
    resources: &Arc<Resources>,
    sandbox: &Arc<Sandbox>,
    record: &ContainerRecord,
    mut spec: Spec,
    sources: Vec<Source>,
) -> Result<Option<Arc<OwnedFd>>, ContainerError> {
    let mounts = record.config.mounts.clone();
    let able = resources.keeper.enters_mount_namespaces();
    let needed = sandbox.namespaces.user.is_some() || stage::is_needed(&mounts);
    if needed && !able {
        return Err(ContainerError::OldKeeper);
    }
    let staged = needed || (able && !mounts.is_empty());
    let (resources, sandbox, record) = (resources.clone(), sandbox.clone(), record.clone());
    crate::task::blocking(move || {
        let bundle = resources.bundle(&record.id);
        let rootfs = bundle.join("rootfs");
        files::make_bundle(&bundle)?;
        let user = sandbox.namespaces.user.as_ref().map(open_user_namespace).transpose()?;
        let user = user.as_ref().map(|(fd, root)| Viewer { namespace: fd.as_fd(), root: *root });
        resources.storage.mount_rootfs(&record.id, &record.chain, &rootfs, user)?;
        let stage = Stage {
            shelf: &resources.shelf,
            storage: &resources.storage,
            mounts: &mounts,
            sources: &sources,
            volumes: &record.volumes,
            user: user.map(|viewer| viewer.namespace),
        };
        let namespace = if staged { Some(Arc::new(stage.build(&mut spec)?)) } else { None };
        let path = bundle.join("config.json");
        let text = serde_json::to_vec(&spec)
            .map_err(|source| ContainerError::Bundle { path: path.clone(), source: source.into() })?;
        write_file(&path, &text)?;
        Ok(namespace)
    })
    .await
}

fn open_user_namespace(user: &UserNamespace) -> Result<(OwnedFd, (u32, u32)), ContainerError> {
    let file =
        fs::File::open(&user.path).map_err(|source| ContainerError::Bundle { path: user.path.clone(), source })?;
    Ok((file.into(), (user.uids.host_id, user.gids.host_id)))
}

fn build_spec<'a>(
    resources: &Resources,
    sandbox: &Sandbox,
    record: &'a ContainerRecord,
    image: &ImageRecord,
    facts: &Facts,
    rootfs: &Path,
) -> Result<BuiltSpec, ContainerError> {
    let config = &record.config;
    // The table grows with every pod of the node: it is read only where there is a mount to look up.
    let table = (!config.mounts.is_empty()).then(|| fs::read_to_string("/proc/self/mountinfo").ok()).flatten();
    let mountinfo = table.unwrap_or_default();
    let resolved = |(mount, source): (&'a Mount, &Source)| ResolvedMount {
        cri: mount,
        source: source.path.clone(),
        source_kind: if source.directory { SourceKind::Directory } else { SourceKind::File },
        source_propagation: propagation_of(&mountinfo, &source.path),
        resolved_target: Some(source.place.clone()),
    };
    let mounts: Vec<_> = config.mounts.iter().zip(&facts.mounts).map(resolved).collect();
    let config_of_image = &image.config;
    let image_facts = ImageFacts {
        user: &config_of_image.user,
        env: &config_of_image.env,
        entrypoint: &config_of_image.entrypoint,
        cmd: &config_of_image.cmd,
        working_dir: &config_of_image.working_dir,
        stop_signal: Some(config_of_image.stop_signal.as_str()),
        volumes: &config_of_image.volumes,
    };
    let input = SpecInput {
        id: &record.id,
        sandbox_id: &sandbox.id,
        sandbox: &sandbox.config,
        config,
        image: &image_facts,
        passwd: facts.passwd.as_deref(),
        group: facts.group.as_deref(),
        host: &resources.host,
        namespaces: &sandbox.namespaces,
        files: &sandbox.files,
        rootfs,
        cgroups_path: &record.cgroups_path,
        handler: &resources.policy(&sandbox.runtime),
        mounts: &mounts,
        devices: &facts.devices,
        cdi: &facts.cdi,
        apparmor: facts.apparmor.as_ref(),
        seccomp_localhost: facts.seccomp.as_deref(),
        hostname: &sandbox.hostname,
        selinux_level: sandbox.selinux_level.as_deref(),
    };
    Ok(crate::spec::build(&input)?)
}

/// The daemon's and the container's ends of the three streams.
struct Pipes {
    theirs: [Arc<OwnedFd>; 3],
    stdout: Arc<OwnedFd>,
    stderr: Arc<OwnedFd>,
    /// Write end of stdin, when the container asked for one.
    stdin: Option<Arc<OwnedFd>>,
}

fn pipes(stdin: bool) -> std::io::Result<Pipes> {
    let (stdout, stdout_w) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr, stderr_w) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let (theirs, ours) = if stdin {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        (read, Some(Arc::new(write)))
    } else {
        (crate::sys::host::dev_null()?, None)
    };
    Ok(Pipes {
        theirs: [theirs, stdout_w, stderr_w].map(Arc::new),
        stdout: stdout.into(),
        stderr: stderr.into(),
        stdin: ours,
    })
}

async fn create_process(
    resources: &Resources,
    sandbox: &Sandbox,
    record: &ContainerRecord,
    mounts: Option<Arc<OwnedFd>>,
) -> Result<(HeldProcess, Stdio), ContainerError> {
    let bundle = resources.bundle(&record.id);
    if record.config.tty {
        return create_with_terminal(resources, sandbox, record, mounts).await;
    }
    let pipes = pipes(record.config.stdin).map_err(|source| ContainerError::Pipe { source })?;
    let mut hold = vec![("stdout".to_owned(), pipes.stdout.clone()), ("stderr".to_owned(), pipes.stderr.clone())];
    hold.extend(pipes.stdin.clone().map(|fd| ("stdin".to_owned(), fd)));
    let request = CreateRequest {
        id: record.id.clone(),
        bundle,
        stdio: RuntimeStdio::Fds(pipes.theirs),
        timeout: CREATE_CLOCK,
        hold,
        mounts,
    };
    let process = sandbox.runtime.create(&resources.keeper, request).await?;
    let (stdout, stderr) = (Some(pipes.stdout), Some(pipes.stderr));
    Ok((process, Stdio { stdin: pipes.stdin, stdout, stderr, terminal: false }))
}

/// As [`create_process`], with a pseudo-terminal whose master the runtime hands over.
async fn create_with_terminal(
    resources: &Resources,
    sandbox: &Sandbox,
    record: &ContainerRecord,
    mounts: Option<Arc<OwnedFd>>,
) -> Result<(HeldProcess, Stdio), ContainerError> {
    let bundle = resources.bundle(&record.id);
    let failed = |source| ContainerError::Pipe { source };
    let console = Console::listen(&resources.state_dir).map_err(failed)?;
    let request = CreateRequest {
        id: record.id.clone(),
        bundle,
        stdio: RuntimeStdio::Console(console.path().to_owned()),
        timeout: CREATE_CLOCK,
        hold: Vec::new(),
        mounts,
    };
    let create = sandbox.runtime.create(&resources.keeper, request);
    let (created, master) = console.during(create, |_| ()).await?;
    let master = master.map_err(failed)?;
    resources.keeper.hold(&record.id, vec![("stdout".to_owned(), master.clone())]).await?;
    Ok((created, Stdio { stdin: None, stdout: Some(master), stderr: None, terminal: true }))
}

/// Starts the monitor of a living container.
pub(super) fn watch(
    resources: &Arc<Resources>,
    record: &ContainerRecord,
    process: &HeldProcess,
    stdio: Stdio,
) -> Result<(Monitor, tokio::sync::oneshot::Receiver<ExitReport>), ContainerError> {
    let oom = match OomWatch::open(&resources.cgroups, &record.cgroups_path) {
        Ok(watch) => Some(watch),
        Err(error) => {
            tracing::warn!(id = %record.id, error = %crate::telemetry::chain(&error), "out-of-memory kills will not be told from others");
            None
        }
    };
    let watched = Watched {
        id: record.id.clone(),
        pidfd: process.pidfd.clone(),
        stdio,
        log: record.log_dir.clone().map(|dir| LogPlace { dir, relative: PathBuf::from(&record.config.log_path) }),
        max_line: resources.max_log_line,
        oom,
        leftovers: record.shares_pids.then(|| (resources.cgroups.clone(), record.cgroups_path.clone())),
    };
    let (report, receiver) = tokio::sync::oneshot::channel();
    let monitor = Monitor::start(resources.keeper.clone(), watched, move |ending| {
        // Without a driver nobody asks how it ended.
        let _ = report.send(ending);
    })?;
    Ok((monitor, receiver))
}

/// Takes back whatever a failed creation made.
async fn undo(resources: &Arc<Resources>, sandbox: &Sandbox, id: &str) {
    let cgroups_path = resources.cgroups.container_path(&sandbox.cgroup_parent, id);
    let result = async {
        files::take_away(resources, id, &cgroups_path, Some(&sandbox.runtime)).await?;
        resources.keeper.forget(id).await?;
        resources.store.remove(id)?;
        Ok::<(), ContainerError>(())
    };
    if let Err(error) = result.await {
        // The record stays, so the next start of the daemon tries again.
        tracing::error!(%id, error = %crate::telemetry::chain(&error), "a failed creation could not be undone whole");
    }
}
