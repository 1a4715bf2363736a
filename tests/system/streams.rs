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
async fn all<M, T>(stream: Result<tonic::Response<Streaming<M>>, Status>, items: impl Fn(M) -> Vec<T>) -> Result<Vec<Vec<T>>> {
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

async fn streamed_containers(client: &Client, filter: Option<cri::ContainerFilter>) -> Result<Vec<Vec<cri::Container>>> {
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
    let linux = cri::LinuxContainerResources { cpu_shares: 77, ..Default::default() };
    let update = cri::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(linux.clone()),
        ..Default::default()
    };
    let told = cri::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.clone(),
        resources: Some(linux),
        ..Default::default()
    };
    let reopen = cri::ReopenContainerLogRequest { container_id: id.clone() };
    let mut states: Vec<BTreeMap<&str, Option<Code>>> = Vec::new();
    for round in ["first", "again", "stopped", "stopped again", "removed", "removed again"] {
        let mut runtime = client.runtime.clone();
        let mut answers: BTreeMap<&str, Option<Code>> = BTreeMap::new();
        let code = |answer: Option<Status>| answer.map(|status| status.code());
        match round {
            "stopped" | "stopped again" => {
                answers.insert("StopContainer", code(client.stop(&id, 0).await.err()));
                answers.insert("StopPodSandbox", code(client.stop_pod(&pod).await.err()));
            }
            "removed" | "removed again" => {
                answers.insert("RemoveContainer", code(client.remove(&id).await.err()));
                answers.insert("RemovePodSandbox", code(client.remove_pod(&pod).await.err()));
                answers.insert("StopContainer", code(client.stop(&id, 0).await.err()));
                answers.insert("StopPodSandbox", code(client.stop_pod(&pod).await.err()));
                answers.insert("StartContainer", code(client.start(&id).await.err()));
                answers.insert("ContainerStatus", code(client.status(&id).await.err()));
                answers.insert("PodSandboxStatus", code(client.pod_status(&pod).await.err()));
            }
            _ => {}
        }
        answers.insert("Update", code(runtime.update_container_resources(update.clone()).await.err()));
        answers.insert("UpdatePod", code(runtime.update_pod_sandbox_resources(told.clone()).await.err()));
        answers.insert("ReopenLog", code(runtime.reopen_container_log(reopen.clone()).await.err()));
        states.push(answers);
    }
    for pair in states.chunks(2) {
        ensure!(pair[0] == pair[1], "once more is not the same: {pair:?}");
    }
    let expected: [(usize, &[(&str, Option<Code>)]); 3] = [
        (0, &[("Update", None), ("UpdatePod", None), ("ReopenLog", None)]),
        (
            2,
            &[
                ("StopContainer", None),
                ("StopPodSandbox", None),
                ("Update", Some(Code::FailedPrecondition)),
                ("UpdatePod", None),
            ],
        ),
        (
            4,
            &[
                ("RemoveContainer", None),
                ("RemovePodSandbox", None),
                ("StopContainer", None),
                ("StopPodSandbox", None),
                ("StartContainer", Some(Code::NotFound)),
                ("ContainerStatus", Some(Code::NotFound)),
                ("PodSandboxStatus", Some(Code::NotFound)),
                ("Update", Some(Code::NotFound)),
                ("UpdatePod", Some(Code::NotFound)),
                ("ReopenLog", Some(Code::NotFound)),
            ],
        ),
    ];
    for (round, answers) in expected {
        for (call, code) in answers {
            ensure!(states[round].get(call) == Some(code), "{call} in round {round}: {:?}", states[round].get(call));
        }
    }
    client.remove_image(BUSYBOX).await?;
    client.remove_image(BUSYBOX).await?;
    ensure!(client.image_status(BUSYBOX).await?.is_none(), "the image is still there");
    client.pull(BUSYBOX).await?;
    client.pull(BUSYBOX).await?;
    ensure!(client.images().await?.len() == 1, "a second pull made a second image");
    std::fs::remove_dir_all(node.path("logs/twice"))?;
    before.assert_same(&node).await
}
