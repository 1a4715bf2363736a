//! The CRI as a client sees it: two services on one socket, and the calls that tests make most, with errors as text.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cri::image_service_client::ImageServiceClient;
use cri::runtime_service_client::RuntimeServiceClient;
use cri_proto::runtime::v1 as cri;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::world::{PATIENCE, eventually};

/// Both services of one daemon.
#[derive(Clone)]
pub struct Client {
    pub runtime: RuntimeServiceClient<Channel>,
    pub image: ImageServiceClient<Channel>,
}

/// A plain connection to a unix socket.
pub async fn channel(socket: &Path) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
    Ok(endpoint.connect_timeout(Duration::from_secs(5)).connect().await?)
}

impl Client {
    /// Connects, and asks for the version so that it is known to answer.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let channel = channel(socket).await?;
        // The bounds of the kubelet's client.
        let bound = 16 * 1024 * 1024;
        let runtime = RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(bound);
        let image = ImageServiceClient::new(channel).max_decoding_message_size(bound);
        let mut client = Self { runtime, image };
        let request = cri::VersionRequest { version: "v1".into() };
        let answer =
            tokio::time::timeout(PATIENCE, client.runtime.version(request)).await.context("Version hangs")??;
        ensure!(answer.into_inner().runtime_name == "cricket", "another runtime answers");
        Ok(client)
    }

    pub async fn run_pod(&self, config: &cri::PodSandboxConfig) -> Result<String, Status> {
        self.run_pod_with(config, "").await
    }

    pub async fn run_pod_with(&self, config: &cri::PodSandboxConfig, handler: &str) -> Result<String, Status> {
        let request = cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.to_owned() };
        Ok(self.runtime.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    pub async fn stop_pod(&self, id: &str) -> Result<(), Status> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime.clone().stop_pod_sandbox(request).await.map(drop)
    }

    pub async fn remove_pod(&self, id: &str) -> Result<(), Status> {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime.clone().remove_pod_sandbox(request).await.map(drop)
    }

    pub async fn pod_status(&self, id: &str) -> Result<cri::PodSandboxStatus, Status> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let answer = self.runtime.clone().pod_sandbox_status(request).await?.into_inner();
        answer.status.ok_or_else(|| Status::internal("an answer without a status"))
    }

    pub async fn pods(&self) -> Result<Vec<cri::PodSandbox>, Status> {
        Ok(self.runtime.clone().list_pod_sandbox(cri::ListPodSandboxRequest { filter: None }).await?.into_inner().items)
    }

    pub async fn create(
        &self,
        pod: &str,
        config: &cri::ContainerConfig,
        sandbox: &cri::PodSandboxConfig,
    ) -> Result<String, Status> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(sandbox.clone()),
        };
        Ok(self.runtime.clone().create_container(request).await?.into_inner().container_id)
    }

    pub async fn start(&self, id: &str) -> Result<(), Status> {
        let request = cri::StartContainerRequest { container_id: id.to_owned() };
        self.runtime.clone().start_container(request).await.map(drop)
    }

    /// Creates and starts.
    pub async fn run(
        &self,
        pod: &str,
        config: &cri::ContainerConfig,
        sandbox: &cri::PodSandboxConfig,
    ) -> Result<String, Status> {
        let id = self.create(pod, config, sandbox).await?;
        self.start(&id).await?;
        Ok(id)
    }

    /// Stops with a grace period in seconds.
    pub async fn stop(&self, id: &str, timeout: i64) -> Result<(), Status> {
        let request = cri::StopContainerRequest { container_id: id.to_owned(), timeout };
        self.runtime.clone().stop_container(request).await.map(drop)
    }

    pub async fn remove(&self, id: &str) -> Result<(), Status> {
        let request = cri::RemoveContainerRequest { container_id: id.to_owned() };
        self.runtime.clone().remove_container(request).await.map(drop)
    }

    pub async fn status(&self, id: &str) -> Result<cri::ContainerStatus, Status> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = self.runtime.clone().container_status(request).await?.into_inner();
        answer.status.ok_or_else(|| Status::internal("an answer without a status"))
    }

    pub async fn containers(&self) -> Result<Vec<cri::Container>, Status> {
        Ok(self
            .runtime
            .clone()
            .list_containers(cri::ListContainersRequest { filter: None })
            .await?
            .into_inner()
            .containers)
    }

    /// Waits until the container has ended, and returns its status then.
    pub async fn ended(&self, id: &str) -> Result<cri::ContainerStatus> {
        eventually("the container ends", PATIENCE, async || {
            let status = self.status(id).await?;
            ensure!(status.state() == cri::ContainerState::ContainerExited, "{id} is {}", status.state().as_str_name());
            Ok(status)
        })
        .await
    }

    /// Runs a shell script in a container, with a timeout in seconds (0: none).
    pub async fn exec(&self, id: &str, script: &str, timeout: i64) -> Result<cri::ExecSyncResponse, Status> {
        let cmd = ["sh", "-c", script].map(str::to_owned).to_vec();
        let request = cri::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout };
        Ok(self.runtime.clone().exec_sync(request).await?.into_inner())
    }

    /// What a shell script in a container prints; it must succeed.
    pub async fn output(&self, id: &str, script: &str) -> Result<String> {
        let answer = self.exec(id, script, 0).await?;
        let (stdout, stderr) = (String::from_utf8_lossy(&answer.stdout), String::from_utf8_lossy(&answer.stderr));
        ensure!(answer.exit_code == 0, "{script}: exit code {}: {stdout}{stderr}", answer.exit_code);
        Ok(stdout.into_owned())
    }

    pub async fn pull(&self, name: &str) -> Result<String, Status> {
        let image = Some(crate::requests::image(name));
        let request = cri::PullImageRequest { image, auth: None, sandbox_config: None };
        Ok(self.image.clone().pull_image(request).await?.into_inner().image_ref)
    }

    pub async fn image_status(&self, name: &str) -> Result<Option<cri::Image>, Status> {
        let request = cri::ImageStatusRequest { image: Some(crate::requests::image(name)), verbose: false };
        Ok(self.image.clone().image_status(request).await?.into_inner().image)
    }

    pub async fn images(&self) -> Result<Vec<cri::Image>, Status> {
        Ok(self.image.clone().list_images(cri::ListImagesRequest { filter: None }).await?.into_inner().images)
    }

    pub async fn remove_image(&self, name: &str) -> Result<(), Status> {
        let request = cri::RemoveImageRequest { image: Some(crate::requests::image(name)) };
        self.image.clone().remove_image(request).await.map(drop)
    }

    /// Stops and removes every pod, and removes every image.
    pub async fn clear(&self) -> Result<()> {
        for pod in self.pods().await? {
            self.stop_pod(&pod.id).await?;
            self.remove_pod(&pod.id).await?;
        }
        for image in self.images().await? {
            self.remove_image(&image.id).await?;
        }
        Ok(())
    }
}

/// The call must have failed, with one of these codes and all of these words; the message is returned.
pub fn refused<T>(answer: Result<T, Status>, codes: &[Code], words: &[&str]) -> Result<String> {
    let Err(status) = answer else { anyhow::bail!("accepted, but expected an error with {words:?}") };
    ensure!(
        codes.is_empty() || codes.contains(&status.code()),
        "expected one of {codes:?}, the answer is {:?}: {}",
        status.code(),
        status.message()
    );
    let message = status.message().to_owned();
    for word in words {
        ensure!(message.contains(word), "the message does not name {word:?}: {message}");
    }
    Ok(message)
}
