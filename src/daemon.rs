//! The composition root: the only room that names every concrete type. Start, serve, reload, stop.
//!
//! The order of the start: lock the state folder → open what is on disk → keeper → take over what an earlier daemon left →
//! listen → say READY. A request is never served before the takeover is whole.

mod assemble;
mod listen;
mod reload;
mod shelf;

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Config, ConfigError, Loaded};
use crate::container::ContainerError;
use crate::image::ImageError;
use crate::keeper::KeeperError;
use crate::runtime::HandlersError;
use crate::state::StateError;
use crate::storage::StorageError;
use crate::sys::cgroup::CgroupError;
use crate::sys::instance::{Instance, InstanceError};
use crate::telemetry::{FilterHandle, Format, Notifier, TelemetryError};

/// Threads of the async runtime that tasks share; blocking work has its own pool.
const WORKERS: usize = 2;

/// Threads of the blocking pool at most: unpacking, mounts, fsync.
const BLOCKING: usize = 64;

/// Why the daemon did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("log")]
    Telemetry(#[from] TelemetryError),
    #[error("{}: the folder cannot be made", path.display())]
    MakeDir { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Instance(#[from] InstanceError),
    #[error("the async runtime cannot be started")]
    Runtime { source: std::io::Error },
    #[error("records")]
    State(#[from] StateError),
    #[error("storage")]
    Storage(#[from] StorageError),
    #[error("images")]
    Image(#[source] ImageError),
    #[error("OCI runtimes")]
    Handlers(#[from] HandlersError),
    #[error("cgroup.parent")]
    Cgroup(#[from] CgroupError),
    #[error("keeper")]
    Keeper(#[from] KeeperError),
    #[error("what the kernel offers")]
    Probe(#[from] crate::security::ProbeError),
    #[error("the host's devices")]
    Devices(#[from] crate::devices::DeviceError),
    #[error("containers")]
    Container(#[from] ContainerError),
    #[error(transparent)]
    Streaming(#[from] crate::streaming::StreamingError),
    #[error("{}: the socket cannot be opened", path.display())]
    Listen { path: PathBuf, source: std::io::Error },
    #[error("the server failed")]
    Serve { source: tonic::transport::Error },
    #[error("signals cannot be caught")]
    Signal { source: std::io::Error },
}

/// What lives as long as the daemon.
pub(crate) struct Daemon {
    services: Arc<crate::rpc::Services>,
    config: Arc<ArcSwap<Config>>,
    config_file: Option<PathBuf>,
    log: FilterHandle,
}

/// Runs the daemon until SIGTERM or SIGINT. Containers run on after it.
///
/// # Errors
/// Whatever keeps it from starting.
pub fn run(loaded: Loaded, config_file: Option<PathBuf>) -> Result<(), DaemonError> {
    let config = loaded.config;
    let format = match config.log.format {
        crate::config::LogFormat::Text => Format::Text,
        crate::config::LogFormat::Json => Format::Json,
    };
    let log = crate::telemetry::init(format, &config.log.level)?;
    for dir in [&config.server.root, &config.server.state] {
        assemble::make_private_dir(dir)?;
    }
    let _instance = Instance::lock(&config.server.state)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .enable_all()
        .build()
        .map_err(|source| DaemonError::Runtime { source })?;
    let sources: Vec<_> = loaded.sources.iter().map(|path| path.display().to_string()).collect();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), config = ?sources, "cricket starts");
    let result = runtime.block_on(serve(config, config_file, log));
    // Work that still runs belongs to containers that go on without us; it is found in the records.
    runtime.shutdown_background();
    result
}

async fn serve(config: Config, config_file: Option<PathBuf>, log: FilterHandle) -> Result<(), DaemonError> {
    let services = Box::pin(assemble::assemble(&config)).await?;
    let daemon = Daemon { config: services.config.clone(), services, config_file, log };
    let listener = listen::bind(&config.server.listen)?;
    let catch = |kind| signal(kind).map_err(|source| DaemonError::Signal { source });
    let (mut term, mut int, mut hup) =
        (catch(SignalKind::terminate())?, catch(SignalKind::interrupt())?, catch(SignalKind::hangup())?);
    let max_request = usize::try_from(config.server.max_request_size).unwrap_or(usize::MAX);
    let router = crate::rpc::router(daemon.services.clone(), max_request);
    tell(Notifier.ready("ready"));
    tracing::info!(socket = %config.server.listen.display(), "ready");
    let serving = router.serve_with_incoming(listen::incoming(listener));
    tokio::pin!(serving);
    let watchdog = watchdog();
    tokio::pin!(watchdog);
    let result = loop {
        tokio::select! {
            served = &mut serving => break served.map_err(|source| DaemonError::Serve { source }),
            _ = term.recv() => break Ok(()),
            _ = int.recv() => break Ok(()),
            _ = hup.recv() => reload::reload(&daemon).await,
            () = &mut watchdog => {}
        }
    };
    tell(Notifier.stopping());
    tracing::info!("cricket stops; containers run on");
    let _ = std::fs::remove_file(&config.server.listen);
    // A keeper that holds nothing has nobody to wait for; one that holds anything refuses.
    daemon.services.pods.containers().resources().keeper.quit_if_idle().await;
    result
}

/// Feeds systemd's watchdog while the runtime turns; never returns.
async fn watchdog() {
    let Some(interval) = Notifier.watchdog_interval() else { return std::future::pending().await };
    loop {
        tell(Notifier.watchdog());
        tokio::time::sleep(interval / 2).await;
    }
}

fn tell(result: Result<(), crate::telemetry::NotifyError>) {
    if let Err(error) = result {
        tracing::warn!(error = %crate::telemetry::chain(&error), "systemd cannot be told");
    }
}
