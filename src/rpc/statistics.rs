//! ContainerStats and ListContainerStats.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cri_proto::runtime::v1::{
    ContainerAttributes, ContainerStats, ContainerStatsFilter, FilesystemIdentifier, FilesystemUsage, UInt64Value,
};

use crate::container::Container;
use crate::state::{ContainerPhase, ContainerRecord};
use crate::stats::Samples;
use crate::sys::host::now_ns;

use super::Services;
use super::convert::labels_fit;

/// How old the size of a writable layer may be: counting it walks the disk.
const DISK_AGE: Duration = Duration::from_secs(30);

/// What is kept between questions.
#[derive(Debug, Default)]
pub struct Kept {
    rates: Samples,
    disk: Mutex<HashMap<String, DiskUse>>,
}

/// The size of a writable layer, and when it was counted.
#[derive(Debug, Clone, Copy)]
struct DiskUse {
    at: Instant,
    timestamp: i64,
    bytes: u64,
    inodes: u64,
}

impl Kept {
    fn disk(&self) -> MutexGuard<'_, HashMap<String, DiskUse>> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The statistics of every running container that the filter fits. One that ends meanwhile is left out.
pub(super) async fn list(services: &Services, filter: &ContainerStatsFilter) -> Vec<ContainerStats> {
    let containers = services.pods.containers().list();
    let lives: HashSet<&str> = containers.iter().map(|container| container.id()).collect();
    services.kept.rates.retain(|id| lives.contains(id));
    services.kept.disk().retain(|id, _| lives.contains(id.as_str()));
    let mut stats = Vec::new();
    for container in &containers {
        let record = container.record();
        let fits = record.phase == ContainerPhase::Running
            && record.id.starts_with(&filter.id)
            && record.sandbox_id.starts_with(&filter.pod_sandbox_id)
            && labels_fit(&record.config.labels, &filter.label_selector);
        if fits {
            stats.push(of(services, container).await);
        }
    }
    stats
}

/// The statistics of one container; one that does not run has only its attributes and its disk use.
pub(super) async fn of(services: &Services, container: &Container) -> ContainerStats {
    let record = container.record();
    let cgroup = services.pods.containers().resources().cgroups.container(&record.cgroups_path).ok();
    let read = cgroup.and_then(|cgroup| services.kept.rates.read(&record.id, &cgroup).ok());
    let (usage, nano_cores) = read.unwrap_or_default();
    let attributes = ContainerAttributes {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
    };
    let disk = disk(services, &record).await;
    crate::stats::container_stats(attributes, &usage, nano_cores, disk)
}

async fn disk(services: &Services, record: &ContainerRecord) -> Option<FilesystemUsage> {
    let known = services.kept.disk().get(&record.id).copied().filter(|known| known.at.elapsed() < DISK_AGE);
    let usage = match known {
        Some(known) => known,
        None => {
            let (storage, id) = (services.pods.containers().resources().storage.clone(), record.id.clone());
            let counted = crate::task::blocking(move || storage.container_usage(&id)).await.ok()?;
            let fresh =
                DiskUse { at: Instant::now(), timestamp: now_ns(), bytes: counted.bytes, inodes: counted.inodes };
            services.kept.disk().insert(record.id.clone(), fresh);
            fresh
        }
    };
    let mountpoint = services.config.load().server.root.to_string_lossy().into_owned();
    Some(FilesystemUsage {
        timestamp: usage.timestamp,
        fs_id: Some(FilesystemIdentifier { mountpoint }),
        used_bytes: Some(UInt64Value { value: usage.bytes }),
        inodes_used: Some(UInt64Value { value: usage.inodes }),
    })
}
