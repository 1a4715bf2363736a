//! ImageService.

use cri_proto::runtime::v1::image_service_server::ImageService;
use cri_proto::runtime::v1::{
    FilesystemIdentifier, FilesystemUsage, ImageFsInfoRequest, ImageFsInfoResponse, ImageSpec, ImageStatusRequest,
    ImageStatusResponse, ListImagesRequest, ListImagesResponse, PullImageRequest, PullImageResponse,
    RemoveImageRequest, RemoveImageResponse, StreamImagesRequest, StreamImagesResponse, UInt64Value,
};
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use crate::image::PullRequest;

use super::code::{invalid, pull_status, status};
use super::{Services, list, stream};

fn reference(image: Option<ImageSpec>) -> Result<String, Status> {
    match image {
        Some(image) if !image.image.is_empty() => Ok(image.image),
        _ => Err(invalid("image.image: \"\": an image must be named".to_owned())),
    }
}

#[tonic::async_trait]
impl ImageService for Services {
    type StreamImagesStream = BoxStream<StreamImagesResponse>;

    async fn list_images(&self, request: Request<ListImagesRequest>) -> Result<Response<ListImagesResponse>, Status> {
        Ok(Response::new(ListImagesResponse { images: list::images(self, request.into_inner().filter) }))
    }

    async fn stream_images(
        &self,
        request: Request<StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let images = list::images(self, request.into_inner().filter);
        Ok(stream::list(images, |images| StreamImagesResponse { images }))
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        let request = request.into_inner();
        let wanted = reference(request.image)?;
        let found = self.images.find(&wanted).map_err(|error| status(&error))?;
        let info = match &found {
            Some(image) if request.verbose => super::node::info(&serde_json::json!({
                "artifact": image.is_artifact(),
                "chainID": image.chain.last(),
                "imageSpec": { "config": config_info(image), "architecture": image.architecture, "os": image.os },
            })),
            _ => Default::default(),
        };
        Ok(Response::new(ImageStatusResponse { image: found.map(|image| image.to_cri()), info }))
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Result<Response<PullImageResponse>, Status> {
        let request = request.into_inner();
        let namespace = request.sandbox_config.and_then(|config| config.metadata).map(|metadata| metadata.namespace);
        let pull = PullRequest { reference: reference(request.image)?, auth: request.auth, namespace };
        let image = self.images.pull(pull).await.map_err(|error| pull_status(&error))?;
        Ok(Response::new(PullImageResponse { image_ref: image.id.to_string() }))
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        let wanted = reference(request.into_inner().image)?;
        self.images.remove(&wanted).await.map_err(|error| status(&error))?;
        Ok(Response::new(RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Result<Response<ImageFsInfoResponse>, Status> {
        let usage = self.images.fs_usage();
        let usage = FilesystemUsage {
            timestamp: usage.timestamp_ns,
            fs_id: Some(FilesystemIdentifier { mountpoint: usage.mountpoint.to_string_lossy().into_owned() }),
            used_bytes: Some(UInt64Value { value: usage.bytes }),
            inodes_used: Some(UInt64Value { value: usage.inodes }),
        };
        Ok(Response::new(ImageFsInfoResponse {
            image_filesystems: vec![usage.clone()],
            container_filesystems: vec![usage],
        }))
    }
}

/// What crictl shows of an image's config.
fn config_info(image: &crate::image::ImageRecord) -> serde_json::Value {
    let config = &image.config;
    serde_json::json!({
        "User": config.user,
        "Env": config.env,
        "Entrypoint": config.entrypoint,
        "Cmd": config.cmd,
        "WorkingDir": config.working_dir,
        "StopSignal": config.stop_signal,
    })
}
