//! The Stream* lists say what the unary ones say, each item once; and every mutating call may be made twice.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use cri_proto::runtime::v1 as cri;
use tonic::{Code, Status, Streaming};

use crate::client::{Client, refused};
use crate::ledger::Ledger;
use crate::lifecycle::host_node;
use crate::node::Node;
use crate::requests::{BUSYBOX, container, host_pod};

crate::once!(streams_say_what_lists_say, a_large_list_comes_in_pieces, every_call_twice_and_after_the_end);

/// All messages of a stream; none may be empty.
async fn all<M, T>(
    stream: Result<tonic::Response<Streaming<M>>, Status>,
    items: impl Fn(M) -> Vec<T>,
) -> Result<Vec<Vec<T>>> {
    let mut stream = stream?.into_inner();
    let mut found = Vec::new();
    while let Some(message) = stream.message().await? {
        found.push(items(message));
    }
    ensure!(found.iter().all(|items| !items.is_empty()), "an empty message");
    Ok(found)
}

async fn streamed_pods(client: &Client, filter: Option<cri::PodSandboxFilter>) -> Result<Vec<Vec<cri::PodSandbox>>> {
    let request = cri::StreamPodSandboxesRequest { filter };
    all(client.runtime.clone().stream_pod_sandboxes(request).await, |message| message.pod_sandboxes).await
}

async fn streamed_containers(
    client: &Client,
    filter: Option<cri::ContainerFilter>,
) -> Result<Vec<Vec<cri::Container>>> {
    let request = cri::StreamContainersRequest { filter };
    all(client.runtime.clone().stream_containers(request).await, |message| message.containers).await
}

async fn streamed_images(client: &Client, name: &str) -> Result<Vec<Vec<cri::Image>>> {
    let filter = (!name.is_empty()).then(|| cri::ImageFilter { image: Some(crate::requests::image(name)) });
    let request = cri::StreamImagesRequest { filter };
    all(client.image.clone().stream_images(request).await, |message| message.images).await
}

async fn streams_say_what_lists_say() -> Result<()> {
    let mut node = Node::new("crun").await?;
    let client = node.client().await?;
    // Of nothing there is no message at all.
    ensure!(streamed_pods(&client, None).await?.is_empty());
    ensure!(streamed_containers(&client, None).await?.is_empty());
    ensure!(streamed_images(&client, "").await?.is_empty());

    client.pull(BUSYBOX).await?;
    client.pull("gcr.io/k8s-staging-cri-tools/test-image-tags:1").await?;
    let mut pods = Vec::new();
    for name in ["first", "second"] {
        let sandbox = host_pod(&node, name);
        let pod = client.run_pod(&sandbox).await?;
        client.run(&pod, &container(&sandbox, "running", "sleep 1000"), &sandbox).await?;
        client.create(&pod, &container(&sandbox, "created", "sleep 1000"), &sandbox).await?;
        pods.push(pod);
    }
    client.stop_pod(&pods[1]).await?;
    ensure!(streamed_pods(&client, None).await?.concat() == client.pods().await?, "pods");
    ensure!(streamed_containers(&client, None).await?.concat() == client.containers().await?, "containers");
    ensure!(streamed_images(&client, "").await?.concat() == client.images().await?, "images");
    let ready = cri::PodSandboxFilter {
        state: Some(cri::PodSandboxStateValue { state: cri::PodSandboxState::SandboxReady.into() }),
        ..Default::default()
    };
    let ready = streamed_pods(&client, Some(ready)).await?.concat();
    ensure!(ready.len() == 1 && ready[0].id == pods[0], "{ready:?}");
    let own = cri::ContainerFilter { pod_sandbox_id: pods[1].clone(), ..Default::default() };
    ensure!(streamed_containers(&client, Some(own)).await?.concat().len() == 2, "containers of one pod");
    ensure!(streamed_images(&client, BUSYBOX).await?.concat().len() == 1, "one image");
    ensure!(streamed_images(&client, "no/such:image").await?.is_empty(), "no image");
    client.clear().await
}

async fn a_large_list_comes_in_pieces() -> Result<()> {
    let (node, client, _sandbox, pod) = host_node("crun").await?;
    // Forty pods of 300 KiB each are more than one message takes; the whole of them fits no unary answer of 4 MiB either.
    let mut expected = vec![pod];
    for n in 0..40 {
        let mut heavy = host_pod(&node, &format!("heavy-{n}"));
        heavy.annotations.insert("weight".into(), "x".repeat(300 << 10));
        expected.push(client.run_pod(&heavy).await?);
    }
    let pieces = streamed_pods(&client, None).await?;
    ensure!(pieces.len() > 2, "{} pieces", pieces.len());
    let mut ids: Vec<_> = pieces.concat().into_iter().map(|pod| pod.id).collect();
    ids.sort();
    expected.sort();
    ensure!(ids == expected, "{} of {} pods", ids.len(), expected.len());
    client.clear().await
}

/// The code of each call's answer; `None` for success.
type Codes = BTreeMap<&'static str, Option<Code>>;

fn code<T>(answer: Result<T, Status>) -> Option<Code> {
    answer.err().map(|status| status.code())
}

/// Makes calls about one pod and its container.
struct Caller<'a> {
    client: &'a Client,
    pod: &'a str,
    id: &'a str,
}

impl Caller<'_> {
    async fn stop(&self, codes: &mut Codes) {
        codes.insert("StopContainer", code(self.client.stop(self.id, 0).await));
        codes.insert("StopPodSandbox", code(self.client.stop_pod(self.pod).await));
    }

    async fn remove(&self, codes: &mut Codes) {
        codes.insert("RemoveContainer", code(self.client.remove(self.id).await));
        codes.insert("RemovePodSandbox", code(self.client.remove_pod(self.pod).await));
        self.stop(codes).await;
        codes.insert("StartContainer", code(self.client.start(self.id).await));
        codes.insert("ContainerStatus", code(self.client.status(self.id).await));
        codes.insert("PodSandboxStatus", code(self.client.pod_status(self.pod).await));
    }

    async fn change(&self, codes: &mut Codes) {
        let mut runtime = self.client.runtime.clone();
        let linux = Some(cri::LinuxContainerResources { cpu_shares: 77, ..Default::default() });
        let request = cri::UpdateContainerResourcesRequest {
            container_id: self.id.to_owned(),
            linux: linux.clone(),
            ..Default::default()
        };
        codes.insert("Update", code(runtime.update_container_resources(request).await));
        let request = cri::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: self.pod.to_owned(),
            resources: linux,
            ..Default::default()
        };
        codes.insert("UpdatePod", code(runtime.update_pod_sandbox_resources(request).await));
        let request = cri::ReopenContainerLogRequest { container_id: self.id.to_owned() };
        codes.insert("ReopenLog", code(runtime.reopen_container_log(request).await));
    }
}

/// What each mutating call must answer when it is made once more, and when the thing is gone.
async fn every_call_twice_and_after_the_end() -> Result<()> {
    let (node, client, _first, first) = host_node("crun").await?;
    client.remove_pod(&first).await?;
    let before = Ledger::take(&node).await?;
    let sandbox = host_pod(&node, "twice");
    let pod = client.run_pod(&sandbox).await?;
    ensure!(client.run_pod(&sandbox).await? == pod, "RunPodSandbox twice is one sandbox");
    let config = container(&sandbox, "own", "sleep 1000");
    let id = client.create(&pod, &config, &sandbox).await?;
    ensure!(client.create(&pod, &config, &sandbox).await? == id, "CreateContainer twice is one container");
    client.start(&id).await?;
    refused(client.start(&id).await, &[Code::FailedPrecondition], &["RUNNING"])?;

    let caller = Caller { client: &client, pod: &pod, id: &id };
    let (mut runs, mut stopped, mut removed) = ([(); 2].map(|()| Codes::new()), Vec::new(), Vec::new());
    for codes in &mut runs {
        caller.change(codes).await;
    }
    for _ in 0..2 {
        let mut codes = Codes::new();
        caller.stop(&mut codes).await;
        caller.change(&mut codes).await;
        stopped.push(codes);
    }
    for _ in 0..2 {
        let mut codes = Codes::new();
        caller.remove(&mut codes).await;
        caller.change(&mut codes).await;
        removed.push(codes);
    }
    let (refused, gone) = (Some(Code::FailedPrecondition), Some(Code::NotFound));
    let expected: Codes = [("Update", None), ("UpdatePod", None), ("ReopenLog", None)].into();
    ensure!(runs[0] == expected && runs[1] == expected, "while it runs: {runs:?}");
    let expected: Codes = [
        ("StopContainer", None),
        ("StopPodSandbox", None),
        ("Update", refused),
        ("UpdatePod", None),
        ("ReopenLog", refused),
    ]
    .into();
    ensure!(stopped[0] == expected && stopped[1] == expected, "when it is stopped: {stopped:?}");
    let expected: Codes = [
        ("RemoveContainer", None),
        ("RemovePodSandbox", None),
        ("StopContainer", None),
        ("StopPodSandbox", None),
        ("StartContainer", gone),
        ("ContainerStatus", gone),
        ("PodSandboxStatus", gone),
        ("Update", gone),
        ("UpdatePod", gone),
        ("ReopenLog", gone),
    ]
    .into();
    ensure!(removed[0] == expected && removed[1] == expected, "when it is gone: {removed:?}");

    client.remove_image(BUSYBOX).await?;
    client.remove_image(BUSYBOX).await?;
    ensure!(client.image_status(BUSYBOX).await?.is_none(), "the image is still there");
    client.pull(BUSYBOX).await?;
    client.pull(BUSYBOX).await?;
    ensure!(client.images().await?.len() == 1, "a second pull made a second image");
    std::fs::remove_dir_all(node.path("logs/twice"))?;
    before.assert_same(&node).await
}
