//! Statistics and metrics of containers and pods: what the unary calls answer, and their streams.
//!
//! Each question first has what it is about measured anew where that is due ([`crate::stats::Sampler`]), and is then
//! answered from what is known. A container that ends meanwhile is left out of a list, or has no numbers.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use cri_proto::runtime::v1 as cri;

use crate::container::{Container, Resources};
use crate::pod::Pod;
use crate::state::{ContainerPhase, ContainerRecord, SandboxPhase, SandboxRecord};
use crate::stats::metrics::{self, ContainerFacts, Labels, Subject};
use crate::stats::{DiskUse, Sample, Source, Usage};
use crate::sys::cgroup::Cgroup;

use super::Services;
use super::convert::labels_fit;

/// The statistics of one container; one that does not run has only its attributes and its disk use.
pub(super) async fn container(services: &Services, container: &Arc<Container>) -> cri::ContainerStats {
    refresh(services, std::slice::from_ref(container), &[]).await;
    container_stats(services, &container.record())
}

/// The statistics of every running container that the filter fits.
pub(super) async fn containers(services: &Services, filter: &cri::ContainerStatsFilter) -> Vec<cri::ContainerStats> {
    let mut all = services.pods.containers().list();
    all.retain(|container| {
        let record = container.record();
        record.phase == ContainerPhase::Running
            && record.id.starts_with(&filter.id)
            && record.sandbox_id.starts_with(&filter.pod_sandbox_id)
            && labels_fit(&record.config.labels, &filter.label_selector)
    });
    refresh(services, &all, &[]).await;
    running(&all).iter().map(|record| container_stats(services, record)).collect()
}

/// The statistics of one pod and its running containers; one that is not READY has only its attributes.
pub(super) async fn pod(services: &Services, pod: &Arc<Pod>) -> cri::PodSandboxStats {
    let containers = services.pods.containers().of_sandbox(pod.id());
    refresh(services, &containers, std::slice::from_ref(pod)).await;
    pod_stats(services, &pod.record(), &running(&containers), &Parents::of(services))
}

/// The statistics of every READY pod that the filter fits.
pub(super) async fn pods(services: &Services, filter: &cri::PodSandboxStatsFilter) -> Vec<cri::PodSandboxStats> {
    let mut pods = services.pods.list();
    pods.retain(|pod| {
        let record = pod.record();
        record.phase == SandboxPhase::Ready
            && record.id.starts_with(&filter.id)
            && labels_fit(&record.config.labels, &filter.label_selector)
    });
    let found = measured(services, &pods).await;
    let parents = Parents::of(services);
    found.iter().map(|(record, containers)| pod_stats(services, record, containers, &parents)).collect()
}

/// The metrics of every READY pod and its running containers.
pub(super) async fn pod_metrics(services: &Services) -> Vec<cri::PodSandboxMetrics> {
    let mut pods = services.pods.list();
    pods.retain(|pod| pod.record().phase == SandboxPhase::Ready);
    let found = measured(services, &pods).await;
    let parents = Parents::of(services);
    found.iter().map(|(record, containers)| metrics_of(services, record, containers, &parents)).collect()
}

/// The metrics that there are.
pub(super) fn descriptors(services: &Services) -> Vec<cri::MetricDescriptor> {
    metrics::descriptors(resources(services).cgroups.version())
}

type PodRecords = (Arc<SandboxRecord>, Vec<Arc<ContainerRecord>>);

/// Measures pods and their containers; those that are still READY come with their running containers.
async fn measured(services: &Services, pods: &[Arc<Pod>]) -> Vec<PodRecords> {
    let mut of_pods: HashMap<&str, Vec<Arc<Container>>> = pods.iter().map(|pod| (pod.id(), Vec::new())).collect();
    let mut all = Vec::new();
    for container in services.pods.containers().list() {
        if let Some(own) = of_pods.get_mut(container.record().sandbox_id.as_str()) {
            own.push(container.clone());
            all.push(container);
        }
    }
    refresh(services, &all, pods).await;
    let records = pods.iter().map(|pod| (pod.record(), running(&of_pods[pod.id()])));
    records.filter(|(record, _)| record.phase == SandboxPhase::Ready).collect()
}

fn resources(services: &Services) -> &Arc<Resources> {
    services.pods.containers().resources()
}

fn is_alive(record: &ContainerRecord) -> bool {
    matches!(record.phase, ContainerPhase::Created | ContainerPhase::Running)
}

fn running(containers: &[Arc<Container>]) -> Vec<Arc<ContainerRecord>> {
    let records = containers.iter().map(|container| container.record());
    records.filter(|record| record.phase == ContainerPhase::Running).collect()
}

/// Has whatever is due measured. A driver that ends a container or pod publishes that first and then has it forgotten:
/// what is still alive after it was made known here will therefore be forgotten in time.
async fn refresh(services: &Services, containers: &[Arc<Container>], pods: &[Arc<Pod>]) {
    let resources = resources(services);
    let parents = Parents::of(services);
    for container in containers {
        let record = container.record();
        if is_alive(&record) {
            resources.sampler.watch(container.id(), || Source {
                cgroup: resources.cgroups.container(&record.cgroups_path).ok(),
                netns: None,
                started_at: record.started_at.max(record.created_at),
            });
            if !is_alive(&container.record()) {
                resources.sampler.forget(container.id());
            }
        }
    }
    for pod in pods {
        let record = pod.record();
        if record.phase == SandboxPhase::Ready {
            resources.sampler.watch(pod.id(), || Source {
                cgroup: parents.own(services, &record),
                netns: services.pods.network_namespace(&record),
                started_at: record.created_at,
            });
            if pod.record().phase != SandboxPhase::Ready {
                resources.sampler.forget(pod.id());
            }
        }
    }
    let container_ids: Vec<_> = containers.iter().map(|container| container.id()).collect();
    let ids: Vec<_> = container_ids.iter().copied().chain(pods.iter().map(|pod| pod.id())).collect();
    tokio::join!(resources.sampler.refresh(&ids), resources.disks.refresh(&container_ids));
    // One that was removed while its layer was counted left a place that nobody would clear.
    for id in container_ids {
        if services.pods.containers().find(id).is_err() {
            resources.disks.forget(id);
        }
    }
}

/// How many READY pods have the same cgroup parent.
struct Parents(HashMap<String, usize>);

impl Parents {
    fn of(services: &Services) -> Self {
        let mut counts = HashMap::new();
        for pod in services.pods.list() {
            let record = pod.record();
            if record.phase == SandboxPhase::Ready {
                *counts.entry(record.cgroup_parent.clone()).or_default() += 1;
            }
        }
        Self(counts)
    }

    /// The cgroup of a pod, if it is the pod's alone: a kubelet makes one for each. The daemon's own parent, and one that
    /// several pods were given, say nothing of one pod.
    fn own(&self, services: &Services, record: &SandboxRecord) -> Option<Cgroup> {
        let parent = &record.cgroup_parent;
        let shared = parent == services.pods.default_parent() || self.0.get(parent).is_some_and(|count| *count > 1);
        if shared { None } else { resources(services).cgroups.parent_cgroup(parent).ok() }
    }
}

fn container_stats(services: &Services, record: &ContainerRecord) -> cri::ContainerStats {
    let resources = resources(services);
    let sample = resources.sampler.sample(&record.id).unwrap_or_default();
    let attributes = cri::ContainerAttributes {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
    };
    let layer = resources.disks.last(&record.id).map(|usage| layer(usage, &services.config.load().server.root));
    crate::stats::container_stats(attributes, &sample.usage, sample.nano_cores, layer)
}

fn layer(usage: DiskUse, root: &Path) -> cri::FilesystemUsage {
    cri::FilesystemUsage {
        timestamp: usage.timestamp,
        fs_id: Some(cri::FilesystemIdentifier { mountpoint: root.to_string_lossy().into_owned() }),
        used_bytes: Some(cri::UInt64Value { value: usage.bytes }),
        inodes_used: Some(cri::UInt64Value { value: usage.inodes }),
    }
}

/// A pod's numbers: its own cgroup's, or the sum of its running containers' where it has none of its own.
fn pod_sample(
    services: &Services,
    record: &SandboxRecord,
    containers: &[Arc<ContainerRecord>],
    parents: &Parents,
) -> Sample {
    let sampler = &resources(services).sampler;
    let mut sample = sampler.sample(&record.id).map(|sample| (*sample).clone()).unwrap_or_default();
    let parts: Vec<_> = containers.iter().filter_map(|own| sampler.sample(&own.id)).collect();
    let sum = Usage::sum(parts.iter().map(|part| &part.usage));
    let processes = sum.processes;
    if sample.usage.cpu.is_none() || parents.own(services, record).is_none() {
        sample.nano_cores = parts.iter().filter_map(|part| part.nano_cores).reduce(u64::saturating_add);
        sample.usage = sum;
    }
    // The pod's cgroup itself has none: they are in those of its containers.
    sample.usage.processes = processes;
    sample
}

fn pod_stats(
    services: &Services,
    record: &SandboxRecord,
    containers: &[Arc<ContainerRecord>],
    parents: &Parents,
) -> cri::PodSandboxStats {
    let attributes = cri::PodSandboxAttributes {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
    };
    let sample = pod_sample(services, record, containers, parents);
    let containers = containers.iter().map(|own| container_stats(services, own)).collect();
    crate::stats::pod_stats(attributes, &sample, containers)
}

fn metrics_of(
    services: &Services,
    record: &SandboxRecord,
    containers: &[Arc<ContainerRecord>],
    parents: &Parents,
) -> cri::PodSandboxMetrics {
    let resources = resources(services);
    let version = resources.cgroups.version();
    let metadata = record.config.metadata.clone().unwrap_or_default();
    let labels = Labels { namespace: metadata.namespace, pod: metadata.name, ..Labels::default() };
    let path = |cgroup: Option<Cgroup>| cgroup.map(|cgroup| cgroup.path().as_str().to_owned()).unwrap_or_default();
    let own = path(parents.own(services, record));
    let sample = pod_sample(services, record, containers, parents);
    let subject = Subject {
        labels: Labels { id: own, ..labels.clone() },
        sample: &sample,
        container: None,
        device: &resources.sampler,
    };
    let of_container = |own: &Arc<ContainerRecord>| {
        let sample = resources.sampler.sample(&own.id).unwrap_or_default();
        let name = |metadata: &cri::ContainerMetadata| metadata.name.clone();
        let facts = ContainerFacts {
            resources: own.resources(),
            started_at: own.started_at,
            disk: resources.disks.last(&own.id),
            disk_device: resources.disks.device(),
        };
        let subject = Subject {
            labels: Labels {
                container: own.config.metadata.as_ref().map(name).unwrap_or_default(),
                id: path(resources.cgroups.container(&own.cgroups_path).ok()),
                image: own.config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default(),
                name: own.id.clone(),
                ..labels.clone()
            },
            sample: &sample,
            container: Some(facts),
            device: &resources.sampler,
        };
        cri::ContainerMetrics { container_id: own.id.clone(), metrics: metrics::metrics(version, &subject) }
    };
    cri::PodSandboxMetrics {
        pod_sandbox_id: record.id.clone(),
        metrics: metrics::metrics(version, &subject),
        container_metrics: containers.iter().map(of_container).collect(),
    }
}
