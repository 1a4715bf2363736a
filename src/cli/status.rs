//! `cricket status`.

use std::path::Path;

use cri_proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use cri_proto::runtime::v1::{
    ContainerState, ListContainersRequest, ListPodSandboxRequest, PodSandboxState, StatusRequest, VersionRequest,
};

use super::connect::{CommandError, connect};

pub(super) async fn run(socket: &Path) -> Result<(), CommandError> {
    let mut client = RuntimeServiceClient::new(connect(socket).await?);
    let answer = CommandError::Answer;
    let version = client.version(VersionRequest::default()).await.map_err(answer)?.into_inner();
    println!("{} {} (CRI {})", version.runtime_name, version.runtime_version, version.runtime_api_version);
    let status = client.status(StatusRequest { verbose: true }).await.map_err(answer)?.into_inner();
    for condition in status.status.map(|status| status.conditions).unwrap_or_default() {
        let mark = if condition.status { "yes" } else { "NO" };
        println!(
            "{}",
            format!("{:<14} {mark:<3} {} {}", condition.r#type, condition.reason, condition.message).trim_end()
        );
    }
    let info: serde_json::Value =
        status.info.get("config").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    for handler in info["handlers"].as_array().into_iter().flatten() {
        let text = |key: &str| handler[key].as_str().unwrap_or("?").to_owned();
        println!("{:<14} {} {} ({})", "handler", text("name"), text("version"), text("path"));
    }
    println!("{:<14} {}", "cgroup driver", info["cgroupDriver"].as_str().unwrap_or("?"));
    println!("{:<14} pid {}", "keeper", info["keeperPid"]);
    for file in info["invalidNetworkFiles"].as_array().into_iter().flatten() {
        let text = |key: &str| file[key].as_str().unwrap_or("?").to_owned();
        println!("{:<14} {}: {}", "bad network", text("path"), text("reason"));
    }
    for file in info["unusableImageFiles"].as_array().into_iter().flatten() {
        println!("{:<14} {}", "bad image file", file.as_str().unwrap_or("?"));
    }
    let pods = client.list_pod_sandbox(ListPodSandboxRequest::default()).await.map_err(answer)?.into_inner().items;
    let ready = pods.iter().filter(|pod| pod.state() == PodSandboxState::SandboxReady).count();
    println!("{:<14} {ready} ready of {}", "pods", pods.len());
    let list = client.list_containers(ListContainersRequest::default()).await.map_err(answer)?.into_inner().containers;
    let running = list.iter().filter(|c| c.state() == ContainerState::ContainerRunning).count();
    println!("{:<14} {running} running of {}", "containers", list.len());
    Ok(())
}
