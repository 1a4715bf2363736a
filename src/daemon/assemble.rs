//! Builds the rooms from the configuration, and takes over what an earlier daemon left.

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::config::{CgroupDriver, Config};
use crate::container::{Containers, Resources, Runtimes};
use crate::devices::cdi::Cdi;
use crate::image::{Images, ImagesOptions};
use crate::keeper::{Held, Keeper, KeeperOptions};
use crate::network::Network;
use crate::pod::Pods;
use crate::rpc::Services;
use crate::runtime::{Handlers, HandlersError, HandlersOptions};
use crate::security::apparmor::Profiles;
use crate::security::selinux::State as SelinuxState;
use crate::spec::HostFacts;
use crate::state::{Records, Store};
use crate::stats::{Disks, Sampler};
use crate::storage::{Storage, StorageOptions};
use crate::streaming::{Streaming, StreamingOptions, TOKEN_TTL, TlsFiles};
use crate::sys::cgroup::{Cgroups, Driver};
use crate::sys::pidfd;

use super::DaemonError;

/// How often the network is asked anew although nobody heard of a change.
const NETWORK_POLL: Duration = Duration::from_secs(30);

/// How long a start waits for runtimes that an earlier daemon had started, and between two looks.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);
const SETTLE_STEP: Duration = Duration::from_millis(20);

/// Makes a folder that only root may enter, or closes the one there is.
pub(super) fn make_private_dir(path: &Path) -> Result<(), DaemonError> {
    let failed = |source| DaemonError::MakeDir { path: path.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(failed)
}

pub(super) async fn assemble(config: &Config) -> Result<Arc<Services>, DaemonError> {
    let root = config.server.root.clone();
    let storage_options = StorageOptions { images: root.join("images"), containers: root.join("containers") };
    let storage = crate::task::blocking(move || Storage::open(storage_options)).await?;
    let store = Store::open(&config.server.root)?;
    let records = store.load()?;
    // Opening the images collects layers: those of containers must be held before, whether their image is still there or not.
    let in_use: Vec<_> = records.containers.iter().map(|found| storage.reserve(&found.record.layers())).collect();
    let images_options = ImagesOptions { root: config.server.root.join("images"), config: config.image.clone() };
    let images = Images::open(images_options, Arc::new(storage.clone())).await.map_err(DaemonError::Image)?;
    let cgroups = cgroups(config)?;
    let default_parent = cgroups.parent(&config.cgroup.parent)?;
    cgroups.make_parent(&default_parent)?;
    for dir in ["k8s.io", "ns", "pods", "tty"] {
        make_private_dir(&config.server.state.join(dir))?;
    }
    let runtimes = load_runtimes(config, cgroups.is_systemd()).await?;
    let keeper = Keeper::connect_or_start(KeeperOptions {
        cgroup_dirs: keeper_cgroups(&cgroups, &default_parent)?,
        ..KeeperOptions::new(config.server.state.join("keeper.sock"))
    })
    .await?;
    let shelf = super::shelf::make(&config.server.state)?;
    let user_namespaces = super::shelf::user_namespaces(&storage, &shelf, &config.server.state).await;
    let host = HostFacts { kernel: crate::security::probe()?, devices: crate::devices::host_devices()? };
    let cdi = Arc::new(Cdi::new(config.runtime.cdi_spec_dirs.clone()));
    crate::task::blocking({
        let cdi = cdi.clone();
        move || cdi.refresh()
    })
    .await;
    let apparmor = Profiles::default();
    if let Err(error) = apparmor.with_default().await {
        tracing::warn!(error = %crate::telemetry::chain(&error), "containers that ask for RuntimeDefault AppArmor will be refused");
    }
    if host.kernel.selinux == SelinuxState::NoPolicy {
        tracing::warn!("SELinux is on, but its policy has no container_t: containers get no labels");
    }
    let layers = storage.clone();
    let disks = Disks::new(crate::sys::host::device_name_of(&config.server.root), move |id| {
        layers.container_usage(id).ok().map(|usage| (usage.bytes, usage.inodes))
    });
    let resources = Arc::new(Resources {
        keeper,
        runtimes: ArcSwap::from_pointee(runtimes),
        storage,
        images: images.clone(),
        store,
        cgroups,
        events: crate::events::Events::new(),
        sampler: Sampler::new(),
        disks,
        host,
        cdi,
        apparmor,
        state_dir: config.server.state.clone(),
        shelf,
        user_namespaces,
        max_log_line: usize::try_from(config.log.max_line_size).unwrap_or(usize::MAX),
    });
    let network = Network::new(config.network.clone(), config.server.root.join("network"));
    network.start();
    network.guard_tables();
    let pods = Pods::new(Containers::new(resources), network, default_parent);
    Box::pin(take_over(&pods, records)).await?;
    drop(in_use);
    poll_network(&pods);
    let streaming = Streaming::start(streaming_options(config), Arc::new(pods.clone())).await?;
    let config = Arc::new(ArcSwap::from_pointee(config.clone()));
    Ok(Arc::new(Services { pods, images, config, streaming }))
}

fn cgroups(config: &Config) -> Result<Cgroups, DaemonError> {
    let driver = match config.cgroup.driver {
        CgroupDriver::Systemd => Some(Driver::Systemd),
        CgroupDriver::Cgroupfs => Some(Driver::Cgroupfs),
        CgroupDriver::Auto => None,
    };
    let cgroups = Cgroups::detect(Path::new("/"), driver)?;
    if cgroups.layout().is_hybrid() {
        tracing::warn!(
            "cgroup v1 is mounted beside v2 (hybrid): crun 1.9 and newer refuse limits on such a machine; runc takes them"
        );
    }
    Ok(cgroups)
}

/// The handlers, found and asked for their features.
pub(super) async fn load_runtimes(config: &Config, systemd_cgroup: bool) -> Result<Runtimes, HandlersError> {
    let options = HandlersOptions { state: config.server.state.clone(), systemd_cgroup };
    let handlers = Handlers::load(&config.runtime, &options).await?;
    Ok(Runtimes { handlers, config: config.runtime.handlers.clone() })
}

/// The keeper's own cgroup, beside those of the pods: never the daemon's, whose end must not be the keeper's.
fn keeper_cgroups(cgroups: &Cgroups, default_parent: &str) -> Result<Vec<PathBuf>, DaemonError> {
    // Below systemd the service's own (delegated) cgroup has room for it; a process may not be put into a slice.
    if cgroups.is_systemd() {
        return Ok(Vec::new());
    }
    let path = cgroups.container_path(default_parent, "keeper");
    Ok(cgroups.container(&path)?.dirs())
}

/// What an earlier daemon left: containers, sandboxes, then whatever nobody has a record of.
async fn take_over(pods: &Pods, records: Records) -> Result<(), DaemonError> {
    for (path, reason) in &records.bad {
        tracing::error!(path = %path.display(), reason, "a record is damaged and was set aside");
    }
    let resources = pods.containers().resources().clone();
    let mut held = settled(&resources.keeper).await?;
    let (sandboxes, containers) = (records.sandboxes.len(), records.containers.len());
    pods.containers().recover(records.containers, &mut held).await;
    pods.recover(records.sandboxes, &mut held).await;
    for (id, held) in held {
        // Nobody can ask for it any more: an exec of an earlier daemon, or the rest of a creation that was cut off.
        if held.exit.is_none()
            && let Some(process) = held.process()
        {
            let _ = pidfd::signal(process.pidfd.as_fd(), rustix::process::Signal::KILL);
        }
        resources.keeper.forget(&id).await?;
    }
    if sandboxes + containers > 0 {
        tracing::info!(sandboxes, containers, "took over what an earlier daemon left");
    }
    pods.network().refresh_status().await;
    let attached: Vec<_> = pods
        .list()
        .iter()
        .map(|pod| pod.record())
        .filter(|record| record.network_attached)
        .map(|record| (record.id.clone(), "eth0".to_owned()))
        .collect();
    if let Err(error) = pods.network().gc(&attached).await {
        tracing::warn!(error = %crate::telemetry::chain(&error), "the network's leftovers could not be collected");
    }
    pods.check_networks();
    Ok(())
}

/// What the keeper holds, once the runtimes that an earlier daemon asked for have ended: a creation that is still under way
/// cannot be undone. One that hangs is not waited for beyond [`SETTLE_LIMIT`].
async fn settled(keeper: &Keeper) -> Result<HashMap<String, Held>, DaemonError> {
    let deadline = tokio::time::Instant::now() + SETTLE_LIMIT;
    loop {
        let held: HashMap<String, Held> =
            keeper.held().await?.into_iter().map(|held| (held.id.clone(), held)).collect();
        if tokio::time::Instant::now() >= deadline || !held.values().any(|held| held.in_flight) {
            return Ok(held);
        }
        tokio::time::sleep(SETTLE_STEP).await;
    }
}

fn streaming_options(config: &Config) -> StreamingOptions {
    let config = &config.streaming;
    StreamingOptions {
        listen: config.listen.parse().expect("the configuration was checked"),
        advertise: config.advertise.clone(),
        tls: TlsFiles::of(&config.tls_cert, &config.tls_key, &config.tls_client_ca),
        idle_timeout: Duration::from_secs(config.idle_timeout.into()),
        creation_timeout: Duration::from_secs(config.creation_timeout.into()),
        token_ttl: TOKEN_TTL,
    }
}

fn poll_network(pods: &Pods) {
    let network = pods.network().clone();
    crate::task::spawn("network-poll", async move {
        loop {
            tokio::time::sleep(NETWORK_POLL).await;
            network.refresh_status().await;
        }
    });
}
