//! ContainerStats and ListContainerStats.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cri_proto::runtime::v1::{
    ContainerAttributes, ContainerStats, ContainerStatsFilter, FilesystemIdentifier, FilesystemUsage, UInt64Value,
};

use crate::container::{Container, now_ns};
use crate::state::{ContainerPhase, ContainerRecord};
use crate::stats::{CpuRate, Usage};

use super::Services;
use super::convert::labels_fit;

/// How old the size of a writable layer may be: counting it walks the disk.
const DISK_AGE: Duration = Duration::from_secs(30);

/// What is kept between questions, for each container.
#[derive(Debug, Default)]
pub struct Samples(Mutex<HashMap<String, Sample>>);

#[derive(Debug, Default, Clone, Copy)]
struct Sample {
    rate: CpuRate,
    disk: Option<(Instant, i64, u64, u64)>,
}

impl Samples {
    fn with<T>(&self, id: &str, change: impl FnOnce(&mut Sample) -> T) -> T {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(map.entry(id.to_owned()).or_default())
    }

    fn keep_only(&self, alive: impl Fn(&str) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| alive(id));
    }
}

/// The statistics of every running container that the filter fits. One that ends meanwhile is left out.
pub(super) async fn list(services: &Services, filter: &ContainerStatsFilter) -> Vec<ContainerStats> {
    let containers = services.pods.containers().list();
    services.samples.keep_only(|id| containers.iter().any(|container| container.id() == id));
    let mut stats = Vec::new();
    for container in containers {
        let record = container.record();
        let fits = record.phase == ContainerPhase::Running
            && record.id.starts_with(&filter.id)
            && record.sandbox_id.starts_with(&filter.pod_sandbox_id)
            && labels_fit(&record.config.labels, &filter.label_selector);
        if fits {
            stats.push(of(services, &container).await);
        }
    }
    stats
}

/// The statistics of one container; one that does not run has only its attributes and its disk use.
pub(super) async fn of(services: &Services, container: &Container) -> ContainerStats {
    let record = container.record();
    let usage = read(services, &record);
    let nano_cores = usage
        .as_ref()
        .and_then(|usage| usage.cpu.as_ref())
        .and_then(|cpu| services.samples.with(&record.id, |sample| sample.rate.update(Instant::now(), cpu.usage_ns)));
    let attributes = ContainerAttributes {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
    };
    let disk = disk(services, &record).await;
    crate::stats::container_stats(attributes, &usage.unwrap_or_default(), nano_cores, disk)
}

fn read(services: &Services, record: &ContainerRecord) -> Option<Usage> {
    let cgroup = services.pods.containers().resources().cgroups.container(&record.cgroups_path).ok()?;
    Usage::read(&cgroup).ok()
}

async fn disk(services: &Services, record: &ContainerRecord) -> Option<FilesystemUsage> {
    let known = services.samples.with(&record.id, |sample| sample.disk);
    let (_, timestamp, bytes, inodes) = match known {
        Some(known) if known.0.elapsed() < DISK_AGE => known,
        _ => {
            let (storage, id) = (services.pods.containers().resources().storage.clone(), record.id.clone());
            let usage = crate::task::blocking(move || storage.container_usage(&id)).await.ok()?;
            let fresh = (Instant::now(), now_ns(), usage.bytes, usage.inodes);
            services.samples.with(&record.id, |sample| sample.disk = Some(fresh));
            fresh
        }
    };
    let mountpoint = services.config.load().server.root.to_string_lossy().into_owned();
    Some(FilesystemUsage {
        timestamp,
        fs_id: Some(FilesystemIdentifier { mountpoint }),
        used_bytes: Some(UInt64Value { value: bytes }),
        inodes_used: Some(UInt64Value { value: inodes }),
    })
}
