//! SIGHUP: reads the configuration again and applies what can be applied to a running daemon.

use std::sync::Arc;

use crate::config::Config;
use crate::telemetry::Notifier;

use super::{Daemon, assemble, tell};

pub(super) async fn reload(daemon: &Daemon) {
    tell(Notifier.reloading());
    match Config::load(daemon.config_file.as_deref()) {
        Ok(loaded) => apply(daemon, loaded.config).await,
        Err(error) => {
            tracing::error!(error = %crate::telemetry::chain(&error), "the configuration is bad; the old one stays");
        }
    }
    tell(Notifier.ready("ready"));
}

async fn apply(daemon: &Daemon, fresh: Config) {
    let diff = crate::config::reload_diff(&daemon.config.load(), &fresh);
    if let Err(error) = daemon.log.set(&fresh.log.level) {
        tracing::error!(error = %crate::telemetry::chain(&error), "log.level stays as it was");
    }
    let resources = daemon.services.pods.containers().resources();
    match assemble::load_runtimes(&fresh, resources.cgroups.is_systemd()).await {
        Ok(runtimes) => resources.runtimes.store(Arc::new(runtimes)),
        Err(error) => {
            tracing::error!(error = %crate::telemetry::chain(&error), "runtime handlers stay as they were");
        }
    }
    resources.cdi.set_dirs(fresh.runtime.cdi_spec_dirs.clone());
    let cdi = resources.cdi.clone();
    crate::task::blocking(move || cdi.refresh()).await;
    if let Err(error) = daemon.services.images.reload(&fresh.image) {
        tracing::error!(error = %crate::telemetry::chain(&error), "registries stay as they were");
    }
    if let Err(error) = daemon.services.streaming.reload().await {
        tracing::error!(error = %crate::telemetry::chain(&error), "the streaming server's certificates stay as they were");
    }
    tracing::info!(applied = ?diff.applied, "the configuration was read again");
    if !diff.needs_restart.is_empty() {
        tracing::warn!(keys = ?diff.needs_restart, "these keys take effect at the next start");
    }
    daemon.config.store(Arc::new(fresh));
}
