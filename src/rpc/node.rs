//! What the node says of itself: Version, Status, RuntimeConfig, the verbose `info` maps, and the private Node service.

use std::collections::HashMap;
use std::path::PathBuf;

use cri_proto::cricket::v1::node_server::Node;
use cri_proto::cricket::v1::{
    ExplainImageRequest, ExplainImageResponse, ExplainedName, ExplainedStep, HeldImage, HoldImagesRequest,
    HoldImagesResponse, ImportImageRequest, ImportImageResponse, ImportedImage,
};
use cri_proto::runtime::v1 as cri;
use futures_util::stream;
use serde_json::json;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use crate::container::Container;
use crate::runtime::{OciRuntime, advisories};
use crate::state::{ContainerRecord, SandboxRecord};

use super::Services;
use super::code::{invalid, status as error_status};

/// The kubelet API version of old; both peers answer this literal.
const KUBELET_API_VERSION: &str = "0.1.0";

/// Appears in Node.status and in container ids (`cricket://<id>`); never to be changed.
const RUNTIME_NAME: &str = "cricket";

/// Longest list of pod CIDRs that UpdateRuntimeConfig may carry, in bytes.
const MAX_POD_CIDR: usize = 1024;

pub(super) fn version() -> cri::VersionResponse {
    cri::VersionResponse {
        version: KUBELET_API_VERSION.to_owned(),
        runtime_name: RUNTIME_NAME.to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    }
}

pub(super) fn status(services: &Services, verbose: bool) -> cri::StatusResponse {
    let network = services.pods.network().status();
    let conditions = vec![
        condition("RuntimeReady", true, "", ""),
        condition("NetworkReady", network.ready, &network.reason, &network.message),
    ];
    cri::StatusResponse {
        status: Some(cri::RuntimeStatus { conditions }),
        info: if verbose { node_info(services) } else { HashMap::new() },
        runtime_handlers: handlers(services),
        features: Some(cri::RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: false,
            mount_options: true,
        }),
    }
}

fn condition(kind: &str, status: bool, reason: &str, message: &str) -> cri::RuntimeCondition {
    cri::RuntimeCondition { r#type: kind.to_owned(), status, reason: reason.to_owned(), message: message.to_owned() }
}

/// Every handler with what its runtime and this kernel can do; the default one twice, as "" and by name.
fn handlers(services: &Services) -> Vec<cri::RuntimeHandler> {
    let resources = services.pods.containers().resources();
    let entry = |name: &str, runtime: &OciRuntime| cri::RuntimeHandler {
        name: name.to_owned(),
        features: Some(cri::RuntimeHandlerFeatures {
            recursive_read_only_mounts: resources.policy(runtime).recursive_read_only,
            user_namespaces: resources.user_namespaces(runtime).is_ok(),
        }),
    };
    let runtimes = resources.runtimes.load();
    let handlers = || runtimes.handlers.iter();
    let default = handlers().filter(|(name, _)| *name == runtimes.handlers.default_name());
    default
        .map(|(_, runtime)| entry("", runtime))
        .chain(handlers().map(|(name, runtime)| entry(name, runtime)))
        .collect()
}

pub(super) fn runtime_config(services: &Services) -> cri::RuntimeConfigResponse {
    let driver = if services.pods.containers().resources().cgroups.is_systemd() {
        cri::CgroupDriver::Systemd
    } else {
        cri::CgroupDriver::Cgroupfs
    };
    cri::RuntimeConfigResponse { linux: Some(cri::LinuxRuntimeConfiguration { cgroup_driver: driver.into() }) }
}

/// The node's pod CIDRs: checked, and handed to the builtin network. CNI configurations say themselves which addresses pods get.
pub(super) async fn update_runtime_config(
    services: &Services,
    request: &cri::UpdateRuntimeConfigRequest,
) -> Result<(), Status> {
    let network = request.runtime_config.as_ref().and_then(|config| config.network_config.as_ref());
    let cidrs = network.map(|network| network.pod_cidr.as_str()).unwrap_or_default();
    if cidrs.len() > MAX_POD_CIDR {
        return Err(invalid(format!("runtime_config.network_config.pod_cidr: {} bytes: too long", cidrs.len())));
    }
    for cidr in cidrs.split(',').map(str::trim).filter(|cidr| !cidr.is_empty()) {
        let legal = cidr.split_once('/').is_some_and(|(address, bits)| {
            let most = match address.parse() {
                Ok(std::net::IpAddr::V4(_)) => 32,
                Ok(std::net::IpAddr::V6(_)) => 128,
                Err(_) => return false,
            };
            bits.parse::<u8>().is_ok_and(|bits| bits <= most)
        });
        if !legal {
            return Err(invalid(format!(
                "runtime_config.network_config.pod_cidr: {cidr:?}: not an address with a prefix length"
            )));
        }
    }
    tracing::info!(pod_cidr = cidrs, "the kubelet sent the node's pod addresses");
    let cidrs: Vec<String> =
        cidrs.split(',').map(|cidr| cidr.trim().to_owned()).filter(|cidr| !cidr.is_empty()).collect();
    if cidrs.is_empty() {
        return Ok(());
    }
    services.pods.network().set_pod_cidrs(cidrs).await.map_err(|error| error_status(&error))
}

/// The `info` map of a verbose answer: one key, one JSON text.
pub(super) fn info(value: &serde_json::Value) -> HashMap<String, String> {
    HashMap::from([("info".to_owned(), value.to_string())])
}

fn node_info(services: &Services) -> HashMap<String, String> {
    let config = services.config.load();
    let resources = services.pods.containers().resources();
    let network = services.pods.network().status();
    let runtimes = resources.runtimes.load();
    let handlers: Vec<_> = runtimes
        .handlers
        .iter()
        .map(|(name, runtime)| {
            let version = &runtime.features.version;
            json!({ "name": name, "path": runtime.program(), "version": version, "advisories": advisories::of(version) })
        })
        .collect();
    let cdi = resources.cdi.report();
    let config = json!({
        "stateDir": config.server.state,
        "rootDir": config.server.root,
        "cgroupDriver": if resources.cgroups.is_systemd() { "systemd" } else { "cgroupfs" },
        "handlers": handlers,
        "advisoriesNote": advisories::NOTE,
        "userNamespaces": resources.user_namespaces.as_ref().map_or_else(|lacking| json!({ "lacking": lacking }), |()| json!({})),
        "keeperPid": resources.keeper.pid(),
        "unusableImageFiles": &**services.images.unusable_files(),
        "unknownImageKeys": &**services.images.unknown_keys(),
        "networkObstacles": network.obstacles,
        "invalidNetworkFiles": network.invalid_files.iter().map(|(path, why)| json!({ "path": path, "reason": why })).collect::<Vec<_>>(),
        "selinux": format!("{:?}", resources.host.kernel.selinux),
        "cdi": {
            "dirs": cdi.dirs,
            "devices": cdi.devices,
            "unusable": cdi.bad.iter().map(|(path, why)| json!({ "path": path, "reason": why })).collect::<Vec<_>>(),
        },
        "config": &**config,
    });
    HashMap::from([("config".to_owned(), config.to_string())])
}

pub(super) fn sandbox_info(record: &SandboxRecord) -> HashMap<String, String> {
    info(&json!({
        "runtimeHandler": record.resolved_handler,
        "cgroupParent": record.cgroup_parent,
        "hostname": record.hostname,
        "ips": record.ips,
        "cniResult": record.network,
        "overhead": record.overhead(),
        "resources": record.resources(),
        "config": record.config,
    }))
}

pub(super) fn container_info(services: &Services, container: &Container) -> HashMap<String, String> {
    let record: &ContainerRecord = &container.record();
    let bundle = services.pods.containers().resources().bundle(&record.id);
    let spec: serde_json::Value = std::fs::read(bundle.join("config.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    info(&json!({
        "sandboxID": record.sandbox_id,
        "pid": container.pid(),
        "bundle": bundle,
        "runtimeHandler": record.handler,
        "cgroupsPath": record.cgroups_path,
        "layers": record.chain,
        "runtimeSpec": spec,
        "config": record.config,
    }))
}

#[tonic::async_trait]
impl Node for Services {
    async fn import_image(
        &self,
        request: Request<ImportImageRequest>,
    ) -> Result<Response<ImportImageResponse>, Status> {
        let request = request.into_inner();
        let path = PathBuf::from(&request.path);
        if !path.is_absolute() {
            return Err(invalid(format!("path: {:?}: must be absolute", request.path)));
        }
        let name = (!request.name.is_empty()).then_some(request.name.as_str());
        let images = self.images.import(&path, name).await.map_err(|error| error_status(&error))?;
        let images = images
            .iter()
            .map(|image| ImportedImage { id: image.id.to_string(), tags: image.repo_tags.clone() })
            .collect();
        Ok(Response::new(ImportImageResponse { images }))
    }

    async fn explain_image(
        &self,
        request: Request<ExplainImageRequest>,
    ) -> Result<Response<ExplainImageResponse>, Status> {
        let ExplainImageRequest { reference, namespace } = request.into_inner();
        let images = self.images.clone();
        let explained = crate::task::blocking(move || {
            images.explain(&reference, Some(namespace.as_str()).filter(|namespace| !namespace.is_empty()))
        });
        let names = explained.await.map_err(|error| error_status(&error))?.into_iter().map(explained_name).collect();
        let unusable_files = [&**self.images.unusable_files(), &**self.images.unknown_keys()].concat();
        Ok(Response::new(ExplainImageResponse { names, unusable_files }))
    }

    type HoldImagesStream = BoxStream<HoldImagesResponse>;

    async fn hold_images(
        &self,
        request: Request<HoldImagesRequest>,
    ) -> Result<Response<Self::HoldImagesStream>, Status> {
        let references = request.into_inner().references;
        let hold = self.images.hold(&references).await.map_err(|error| error_status(&error))?;
        let held = |image: &crate::image::HeldImage| HeldImage {
            id: image.record.id.to_string(),
            manifest: image.record.manifest.to_string(),
            documents: image.record.documents.iter().map(ToString::to_string).collect(),
            layers: image.record.chain.iter().map(ToString::to_string).collect(),
            tags: image.tags.clone(),
            artifact: image.record.is_artifact(),
        };
        let root = hold.root.to_string_lossy().into_owned();
        let message = HoldImagesResponse { root, images: hold.images.iter().map(held).collect() };
        let messages = stream::unfold((Some(message), hold), |(message, hold)| async {
            match message {
                Some(message) => Some((Ok(message), (None, hold))),
                // What is held is held until the caller goes away and this is dropped.
                None => std::future::pending().await,
            }
        });
        Ok(Response::new(Box::pin(messages)))
    }
}

fn explained_name(found: crate::image::Explanation) -> ExplainedName {
    let (policy, requirements) = found.policy;
    let step = |step: crate::image::Step| ExplainedStep {
        url: step.url,
        mirror: step.mirror,
        place: step.place,
        login: step.login,
        notes: step.notes,
    };
    ExplainedName {
        name: found.name,
        decided_by: found.decided_by,
        refusal: found.refusal,
        steps: found.steps.into_iter().map(step).collect(),
        policy,
        requirements,
    }
}
