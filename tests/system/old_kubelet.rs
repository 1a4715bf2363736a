//! A client of another making and an older contract (k8s-cri speaks CRI of Kubernetes 1.32): the wire must fit.

use anyhow::{Context as _, Result, ensure};
use k8s_cri::v1 as old;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;

use crate::client::channel;
use crate::node::Node;
use crate::requests::BUSYBOX;

crate::once!(a_pod_from_an_older_kubelet);

async fn a_pod_from_an_older_kubelet() -> Result<()> {
    let mut node = Node::new("crun").await?;
    node.client().await?;
    let channel = channel(&node.socket()).await?;
    let (mut runtime, mut image) = (RuntimeServiceClient::new(channel.clone()), ImageServiceClient::new(channel));

    let version = runtime.version(old::VersionRequest::default()).await?.into_inner();
    ensure!(version.runtime_name == "cricket" && version.runtime_api_version == "v1", "{version:?}");
    let status = runtime.status(old::StatusRequest { verbose: true }).await?.into_inner();
    ensure!(status.status.context("status")?.conditions.len() >= 2, "conditions");
    let spec = old::ImageSpec { image: BUSYBOX.into(), ..Default::default() };
    image.pull_image(old::PullImageRequest { image: Some(spec.clone()), ..Default::default() }).await?;

    let options = old::NamespaceOption { network: 2, pid: 1, ..Default::default() };
    let sandbox = old::PodSandboxConfig {
        metadata: Some(old::PodSandboxMetadata {
            name: "old".into(),
            uid: "u".into(),
            namespace: "n".into(),
            attempt: 0,
        }),
        log_directory: node.path("logs/old").to_string_lossy().into_owned(),
        linux: Some(old::LinuxPodSandboxConfig {
            security_context: Some(old::LinuxSandboxSecurityContext {
                namespace_options: Some(options),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let request = old::RunPodSandboxRequest { config: Some(sandbox.clone()), ..Default::default() };
    let pod = runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
    let config = old::ContainerConfig {
        metadata: Some(old::ContainerMetadata { name: "old".into(), attempt: 1 }),
        image: Some(spec),
        command: ["sh", "-c", "echo $TEXT; sleep 100000"].map(str::to_owned).to_vec(),
        // A string there, bytes here: the same on the wire.
        envs: vec![old::KeyValue { key: "TEXT".into(), value: "from an older kubelet".into() }],
        log_path: "old.log".into(),
        ..Default::default()
    };
    let request = old::CreateContainerRequest {
        pod_sandbox_id: pod.clone(),
        config: Some(config),
        sandbox_config: Some(sandbox),
    };
    let id = runtime.create_container(request).await?.into_inner().container_id;
    runtime.start_container(old::StartContainerRequest { container_id: id.clone() }).await?;
    let cmd = ["sh", "-c", "echo $TEXT; exit 3"].map(str::to_owned).to_vec();
    let answer =
        runtime.exec_sync(old::ExecSyncRequest { container_id: id.clone(), cmd, timeout: 10 }).await?.into_inner();
    ensure!(answer.stdout == b"from an older kubelet\n" && answer.exit_code == 3, "{answer:?}");
    let request = old::ContainerStatusRequest { container_id: id.clone(), verbose: true };
    let status = runtime.container_status(request).await?.into_inner().status.context("status")?;
    ensure!(status.state() == old::ContainerState::ContainerRunning && status.started_at > 0, "{status:?}");
    runtime.stop_container(old::StopContainerRequest { container_id: id.clone(), timeout: 1 }).await?;
    runtime.remove_container(old::RemoveContainerRequest { container_id: id }).await?;
    runtime.stop_pod_sandbox(old::StopPodSandboxRequest { pod_sandbox_id: pod.clone() }).await?;
    runtime.remove_pod_sandbox(old::RemovePodSandboxRequest { pod_sandbox_id: pod }).await?;
    let left = runtime.list_pod_sandbox(old::ListPodSandboxRequest { filter: None }).await?.into_inner().items;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}
