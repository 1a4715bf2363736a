//! Records to the CRI's messages.

use std::collections::HashMap;

use cri_proto::runtime::v1 as cri;
use cri_proto::runtime::v1::{
    Container, ContainerFilter, ContainerResources, ContainerState, ContainerStatus, ContainerUser, ImageSpec,
    LinuxPodSandboxStatus, Namespace, NamespaceMode, PodIp, PodSandbox, PodSandboxFilter, PodSandboxNetworkStatus,
    PodSandboxState, PodSandboxStatus, Signal,
};

use crate::pod::namespace_options;
use crate::state::{ContainerPhase, ContainerRecord, SandboxPhase, SandboxRecord};

pub(super) fn sandbox_state(record: &SandboxRecord) -> PodSandboxState {
    match record.phase {
        SandboxPhase::Ready => PodSandboxState::SandboxReady,
        _ => PodSandboxState::SandboxNotready,
    }
}

pub(super) fn sandbox(record: &SandboxRecord) -> PodSandbox {
    PodSandbox {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: sandbox_state(record).into(),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.handler.clone(),
    }
}

pub(super) fn sandbox_status(record: &SandboxRecord) -> PodSandboxStatus {
    let options = namespace_options(&record.config);
    // The first address is the primary one and is not repeated among the others. Host network: present, but empty.
    let mut ips = record.ips.iter().filter(|_| options.network() != NamespaceMode::Node);
    let network = PodSandboxNetworkStatus {
        ip: ips.next().cloned().unwrap_or_default(),
        additional_ips: ips.map(|ip| PodIp { ip: ip.clone() }).collect(),
    };
    PodSandboxStatus {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: sandbox_state(record).into(),
        created_at: record.created_at,
        network: Some(network),
        linux: Some(LinuxPodSandboxStatus { namespaces: Some(Namespace { options: Some(options) }) }),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.handler.clone(),
    }
}

pub(super) fn sandbox_fits(record: &SandboxRecord, filter: &PodSandboxFilter) -> bool {
    record.id.starts_with(&filter.id)
        && filter.state.as_ref().is_none_or(|wanted| wanted.state() == sandbox_state(record))
        && labels_fit(&record.config.labels, &filter.label_selector)
}

pub(super) fn container_state(record: &ContainerRecord) -> ContainerState {
    match record.phase {
        ContainerPhase::Creating | ContainerPhase::Created => ContainerState::ContainerCreated,
        ContainerPhase::Running => ContainerState::ContainerRunning,
        ContainerPhase::Exited => ContainerState::ContainerExited,
        ContainerPhase::Removing if record.ending.is_some() => ContainerState::ContainerExited,
        ContainerPhase::Removing => ContainerState::ContainerUnknown,
    }
}

pub(super) fn container(record: &ContainerRecord) -> Container {
    Container {
        id: record.id.clone(),
        pod_sandbox_id: record.sandbox_id.clone(),
        metadata: record.config.metadata.clone(),
        image: record.config.image.clone(),
        image_ref: record.image_ref.clone(),
        state: container_state(record).into(),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        image_id: record.image_id.clone(),
    }
}

pub(super) fn container_status(record: &ContainerRecord) -> ContainerStatus {
    let ending = record.ending.clone().unwrap_or_default();
    let resources = record.resources().cloned();
    ContainerStatus {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: container_state(record).into(),
        created_at: record.created_at,
        started_at: record.started_at,
        finished_at: ending.finished_at,
        exit_code: ending.exit_code,
        image: record.config.image.as_ref().map(shown_image),
        image_ref: record.image_ref.clone(),
        reason: ending.reason,
        message: printable(&ending.message),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        mounts: mounts(record),
        log_path: record.log_path().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
        resources: resources.map(|linux| ContainerResources { linux: Some(linux), windows: None }),
        image_id: record.image_id.clone(),
        user: Some(ContainerUser { linux: Some(record.user.clone()) }),
        stop_signal: signal(record.stop_signal).into(),
    }
}

/// The image as the pod named it: the kubelet creates by id and says separately what the user wrote.
fn shown_image(spec: &ImageSpec) -> ImageSpec {
    let image =
        if spec.user_specified_image.is_empty() { spec.image.clone() } else { spec.user_specified_image.clone() };
    ImageSpec { image, ..spec.clone() }
}

pub(super) fn container_fits(record: &ContainerRecord, filter: &ContainerFilter) -> bool {
    record.id.starts_with(&filter.id)
        && record.sandbox_id.starts_with(&filter.pod_sandbox_id)
        && filter.state.as_ref().is_none_or(|wanted| wanted.state() == container_state(record))
        && labels_fit(&record.config.labels, &filter.label_selector)
}

pub(super) fn labels_fit(labels: &HashMap<String, String>, selector: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// The CRI's name of a Linux signal number: the first of its names, where a signal has two.
fn signal(number: i32) -> Signal {
    (1..=Signal::Sigrtmax.into())
        .filter_map(|value| Signal::try_from(value).ok())
        .find(|signal| {
            let name = signal.as_str_name().trim_start_matches("SIGNAL_").replace("PLUS", "+").replace("MINUS", "-");
            crate::spec::parse_signal(&name) == Some(number)
        })
        .unwrap_or(Signal::RuntimeDefault)
}

/// Control characters escaped: a client shows this text on a terminal (CVE-2021-25743).
fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| if c.is_control() && c != '\n' { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect()
}

/// The request's mounts, and behind the name of each image that is mounted the digest of what was found.
fn mounts(record: &ContainerRecord) -> Vec<cri::Mount> {
    let mut volumes = record.volumes.iter();
    let mut mounts = record.config.mounts.clone();
    for mount in &mut mounts {
        let Some(image) = mount.image.as_mut().filter(|image| !image.image.is_empty()) else { continue };
        if let Some(volume) = volumes.next()
            && image.image_ref.is_empty()
        {
            image.image_ref.clone_from(&volume.image_ref);
        }
    }
    mounts
}
