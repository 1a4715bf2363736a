//! RuntimeService: pods, containers, exec, statistics. What concerns the node as a whole is in [`super::node`].

use std::time::Duration;

use cri_proto::runtime::v1 as cri;
use cri_proto::runtime::v1::runtime_service_server::RuntimeService;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use crate::admission;
use crate::container::ContainerError;
use crate::pod::PodError;

use super::Services;
use super::code::{status, unimplemented};
use super::{convert, list, node, sessions, statistics, stream};

fn container_error(error: ContainerError) -> Status {
    status(&error)
}

fn pod_error(error: PodError) -> Status {
    status(&error)
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl RuntimeService for Services {
    type StreamPodSandboxesStream = BoxStream<cri::StreamPodSandboxesResponse>;
    type StreamContainersStream = BoxStream<cri::StreamContainersResponse>;
    type StreamContainerStatsStream = BoxStream<cri::StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = BoxStream<cri::StreamPodSandboxStatsResponse>;
    type StreamPodSandboxMetricsStream = BoxStream<cri::StreamPodSandboxMetricsResponse>;
    type GetContainerEventsStream = BoxStream<cri::ContainerEventResponse>;

    async fn version(&self, _: Request<cri::VersionRequest>) -> Answer<cri::VersionResponse> {
        Ok(Response::new(node::version()))
    }

    async fn status(&self, request: Request<cri::StatusRequest>) -> Answer<cri::StatusResponse> {
        Ok(Response::new(node::status(self, request.into_inner().verbose)))
    }

    async fn runtime_config(&self, _: Request<cri::RuntimeConfigRequest>) -> Answer<cri::RuntimeConfigResponse> {
        Ok(Response::new(node::runtime_config(self)))
    }

    async fn update_runtime_config(
        &self,
        request: Request<cri::UpdateRuntimeConfigRequest>,
    ) -> Answer<cri::UpdateRuntimeConfigResponse> {
        node::update_runtime_config(self, &request.into_inner()).await?;
        Ok(Response::new(cri::UpdateRuntimeConfigResponse {}))
    }

    async fn run_pod_sandbox(&self, request: Request<cri::RunPodSandboxRequest>) -> Answer<cri::RunPodSandboxResponse> {
        let request = request.into_inner();
        admission::run_pod_sandbox(&request).map_err(|error| status(&error))?;
        let config = request.config.unwrap_or_default();
        let pod_sandbox_id = self.pods.run(config, request.runtime_handler).await.map_err(pod_error)?;
        Ok(Response::new(cri::RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Answer<cri::StopPodSandboxResponse> {
        self.pods.stop(&request.into_inner().pod_sandbox_id).await.map_err(pod_error)?;
        Ok(Response::new(cri::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Answer<cri::RemovePodSandboxResponse> {
        self.pods.remove(&request.into_inner().pod_sandbox_id).await.map_err(pod_error)?;
        Ok(Response::new(cri::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Answer<cri::PodSandboxStatusResponse> {
        let request = request.into_inner();
        let pod = self.pods.find(&request.pod_sandbox_id).map_err(pod_error)?;
        // One point of the order of events: a client that has heard an event of later than `timestamp` knows more than this.
        let moment = self.pods.containers().resources().events.moment(pod.id());
        let record = moment.sandbox.unwrap_or_else(|| pod.record());
        let info = if request.verbose { node::sandbox_info(&record) } else { Default::default() };
        Ok(Response::new(cri::PodSandboxStatusResponse {
            status: Some(convert::sandbox_status(&record)),
            info,
            containers_statuses: moment.containers.iter().map(|own| convert::container_status(own)).collect(),
            timestamp: moment.at,
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Answer<cri::ListPodSandboxResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        Ok(Response::new(cri::ListPodSandboxResponse { items: list::sandboxes(self, &filter) }))
    }

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Answer<cri::CreateContainerResponse> {
        let request = request.into_inner();
        admission::create_container(&request).map_err(|error| status(&error))?;
        let config = request.config.unwrap_or_default();
        let container_id = self.pods.create_container(&request.pod_sandbox_id, config).await.map_err(pod_error)?;
        Ok(Response::new(cri::CreateContainerResponse { container_id }))
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Answer<cri::StartContainerResponse> {
        let id = request.into_inner().container_id;
        self.pods.containers().start(&id).await.map_err(container_error)?;
        Ok(Response::new(cri::StartContainerResponse {}))
    }

    async fn stop_container(&self, request: Request<cri::StopContainerRequest>) -> Answer<cri::StopContainerResponse> {
        let request = request.into_inner();
        // A negative grace means the same as none, as it does to the field.
        let grace = Duration::from_secs(request.timeout.max(0).unsigned_abs());
        self.pods.containers().stop(&request.container_id, grace).await.map_err(container_error)?;
        Ok(Response::new(cri::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Answer<cri::RemoveContainerResponse> {
        let id = request.into_inner().container_id;
        self.pods.containers().remove(&id).await.map_err(container_error)?;
        Ok(Response::new(cri::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<cri::ListContainersRequest>,
    ) -> Answer<cri::ListContainersResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        Ok(Response::new(cri::ListContainersResponse { containers: list::containers(self, &filter) }))
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Answer<cri::ContainerStatusResponse> {
        let request = request.into_inner();
        let container = self.pods.containers().find(&request.container_id).map_err(container_error)?;
        let record = container.record();
        let info = if request.verbose { node::container_info(self, &container) } else { Default::default() };
        Ok(Response::new(cri::ContainerStatusResponse { status: Some(convert::container_status(&record)), info }))
    }

    async fn reopen_container_log(
        &self,
        request: Request<cri::ReopenContainerLogRequest>,
    ) -> Answer<cri::ReopenContainerLogResponse> {
        let id = request.into_inner().container_id;
        self.pods.containers().reopen_log(&id).await.map_err(container_error)?;
        Ok(Response::new(cri::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(&self, request: Request<cri::ExecSyncRequest>) -> Answer<cri::ExecSyncResponse> {
        let request = request.into_inner();
        admission::exec_sync(&request).map_err(|error| status(&error))?;
        let timeout = Duration::from_secs(request.timeout.unsigned_abs());
        let timeout = (!timeout.is_zero()).then_some(timeout);
        let containers = self.pods.containers();
        let output =
            containers.exec_sync(&request.container_id, request.cmd, timeout).await.map_err(container_error)?;
        Ok(Response::new(cri::ExecSyncResponse {
            stdout: output.stdout,
            stderr: output.stderr,
            exit_code: output.exit_code,
        }))
    }

    async fn container_stats(
        &self,
        request: Request<cri::ContainerStatsRequest>,
    ) -> Answer<cri::ContainerStatsResponse> {
        let id = request.into_inner().container_id;
        let container = self.pods.containers().find(&id).map_err(container_error)?;
        let stats = statistics::container(self, &container).await;
        Ok(Response::new(cri::ContainerStatsResponse { stats: Some(stats) }))
    }

    async fn list_container_stats(
        &self,
        request: Request<cri::ListContainerStatsRequest>,
    ) -> Answer<cri::ListContainerStatsResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        Ok(Response::new(cri::ListContainerStatsResponse { stats: statistics::containers(self, &filter).await }))
    }

    async fn update_container_resources(
        &self,
        request: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Answer<cri::UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        admission::update_container_resources(&request).map_err(|error| status(&error))?;
        let containers = self.pods.containers();
        match request.linux {
            Some(linux) => containers.update(&request.container_id, linux).await.map_err(container_error)?,
            // Annotations are hints, and say nothing to the runtimes of this node.
            None => drop(containers.find(&request.container_id).map_err(container_error)?),
        }
        Ok(Response::new(cri::UpdateContainerResourcesResponse {}))
    }

    async fn exec(&self, request: Request<cri::ExecRequest>) -> Answer<cri::ExecResponse> {
        Ok(Response::new(cri::ExecResponse { url: sessions::exec(self, request.into_inner())? }))
    }

    async fn attach(&self, request: Request<cri::AttachRequest>) -> Answer<cri::AttachResponse> {
        Ok(Response::new(cri::AttachResponse { url: sessions::attach(self, request.get_ref())? }))
    }

    async fn port_forward(&self, request: Request<cri::PortForwardRequest>) -> Answer<cri::PortForwardResponse> {
        Ok(Response::new(cri::PortForwardResponse { url: sessions::port_forward(self, request.get_ref())? }))
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<cri::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let items = list::sandboxes(self, &filter);
        Ok(stream::list(items, |pod_sandboxes| cri::StreamPodSandboxesResponse { pod_sandboxes }))
    }

    async fn stream_containers(
        &self,
        request: Request<cri::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let items = list::containers(self, &filter);
        Ok(stream::list(items, |containers| cri::StreamContainersResponse { containers }))
    }

    async fn stream_container_stats(
        &self,
        request: Request<cri::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let items = statistics::containers(self, &filter).await;
        Ok(stream::list(items, |container_stats| cri::StreamContainerStatsResponse { container_stats }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<cri::PodSandboxStatsRequest>,
    ) -> Answer<cri::PodSandboxStatsResponse> {
        let pod = self.pods.find(&request.into_inner().pod_sandbox_id).map_err(pod_error)?;
        let stats = statistics::pod(self, &pod).await;
        Ok(Response::new(cri::PodSandboxStatsResponse { stats: Some(stats) }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<cri::ListPodSandboxStatsRequest>,
    ) -> Answer<cri::ListPodSandboxStatsResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        Ok(Response::new(cri::ListPodSandboxStatsResponse { stats: statistics::pods(self, &filter).await }))
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<cri::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let items = statistics::pods(self, &filter).await;
        Ok(stream::list(items, |pod_sandbox_stats| cri::StreamPodSandboxStatsResponse { pod_sandbox_stats }))
    }

    async fn checkpoint_container(
        &self,
        _: Request<cri::CheckpointContainerRequest>,
    ) -> Answer<cri::CheckpointContainerResponse> {
        Err(unimplemented("CheckpointContainer"))
    }

    async fn checkpoint_pod(&self, _: Request<cri::CheckpointPodRequest>) -> Answer<cri::CheckpointPodResponse> {
        Err(unimplemented("CheckpointPod"))
    }

    async fn restore_pod(&self, _: Request<cri::RestorePodRequest>) -> Answer<cri::RestorePodResponse> {
        Err(unimplemented("RestorePod"))
    }

    async fn get_container_events(&self, _: Request<cri::GetEventsRequest>) -> Answer<Self::GetContainerEventsStream> {
        stream::events(&self.pods.containers().resources().events)
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<cri::ListMetricDescriptorsRequest>,
    ) -> Answer<cri::ListMetricDescriptorsResponse> {
        Ok(Response::new(cri::ListMetricDescriptorsResponse { descriptors: statistics::descriptors(self) }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<cri::ListPodSandboxMetricsRequest>,
    ) -> Answer<cri::ListPodSandboxMetricsResponse> {
        Ok(Response::new(cri::ListPodSandboxMetricsResponse { pod_metrics: statistics::pod_metrics(self).await }))
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<cri::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        let items = statistics::pod_metrics(self).await;
        Ok(stream::list(items, |pod_sandbox_metrics| cri::StreamPodSandboxMetricsResponse { pod_sandbox_metrics }))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<cri::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<cri::UpdatePodSandboxResourcesResponse> {
        let request = request.into_inner();
        admission::update_pod_sandbox_resources(&request).map_err(|error| status(&error))?;
        self.pods.update(&request.pod_sandbox_id, request.overhead, request.resources).await.map_err(pod_error)?;
        Ok(Response::new(cri::UpdatePodSandboxResourcesResponse {}))
    }
}
