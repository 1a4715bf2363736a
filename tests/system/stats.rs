//! Statistics and metrics against what the cgroup's files and the pod's links say.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use cri_proto::runtime::v1 as cri;
use tonic::Code;

use crate::client::{Client, refused};
use crate::ledger::Ledger;
use crate::lifecycle::host_node;
use crate::limits::{cpu_used, limit};
use crate::node::Node;
use crate::requests::{BUSYBOX, container, host_pod, pod, resources};
use crate::world::{PATIENCE, eventually};

crate::per_runtime!(numbers_are_those_of_the_kernel, a_pod_on_the_network);
crate::once!(lists_filters_and_streams, metrics_fit_their_descriptors, a_reader_keeps_nothing_of_a_pod_that_ends);

const MIB: u64 = 1 << 20;

/// Keeps a processor busy and some memory in use, and writes some to its layer.
const BUSY: &str = "dd if=/dev/zero of=/file bs=1M count=3 2>/dev/null; touch /done; while :; do :; done";

async fn stats(client: &Client, id: &str) -> Result<cri::ContainerStats> {
    let request = cri::ContainerStatsRequest { container_id: id.to_owned() };
    client.runtime.clone().container_stats(request).await?.into_inner().stats.context("no stats")
}

async fn pod_stats(client: &Client, id: &str) -> Result<cri::PodSandboxStats> {
    let request = cri::PodSandboxStatsRequest { pod_sandbox_id: id.to_owned() };
    client.runtime.clone().pod_sandbox_stats(request).await?.into_inner().stats.context("no stats")
}

async fn pod_list(client: &Client, filter: cri::PodSandboxStatsFilter) -> Result<Vec<cri::PodSandboxStats>> {
    let request = cri::ListPodSandboxStatsRequest { filter: Some(filter) };
    Ok(client.runtime.clone().list_pod_sandbox_stats(request).await?.into_inner().stats)
}

fn value(wrapper: &Option<cri::UInt64Value>) -> Result<u64> {
    wrapper.as_ref().map(|number| number.value).context("a number is missing")
}

async fn numbers_are_those_of_the_kernel(runtime: &'static str) -> Result<()> {
    let (node, client, sandbox, pod) = host_node(runtime).await?;
    let mut config = container(&sandbox, "busy", BUSY);
    resources(&mut config).memory_limit_in_bytes = 64 << 20;
    let id = client.run(&pod, &config, &sandbox).await?;
    // The kernel's counter before, ours, and the kernel's after: ours lies between.
    let found = eventually("the container is measured in its loop", PATIENCE, async || {
        let found = stats(&client, &id).await?;
        let used = value(&found.cpu.as_ref().context("cpu")?.usage_core_nano_seconds)?;
        ensure!(used > 500_000_000, "{used} ns");
        let disk = found.writable_layer.as_ref().context("no writable layer yet")?;
        ensure!(value(&disk.used_bytes)? >= 3 * MIB && value(&disk.inodes_used)? >= 1, "{disk:?}");
        // A rate takes two samples.
        value(&found.cpu.as_ref().context("cpu")?.usage_nano_cores).context("no rate yet")?;
        Ok(found)
    })
    .await?;
    let cpu = found.cpu.context("cpu")?;
    ensure!(value(&cpu.usage_core_nano_seconds)? <= limit(&node, &id, "cpuacct.usage")?.parse()?, "more than there is");
    let rate = value(&cpu.usage_nano_cores)?;
    ensure!(rate > 10_000_000 && rate < 3_000_000_000, "a busy loop uses {rate} of 1e9 of a core");
    let memory = found.memory.context("memory")?;
    let (used, set) = (value(&memory.usage_bytes)?, value(&memory.working_set_bytes)?);
    ensure!(set > 0 && set <= used && used < 64 * MIB, "{memory:?}");
    ensure!(value(&memory.available_bytes)? == 64 * MIB - set, "{memory:?}");
    ensure!(value(&memory.rss_bytes)? > 0 && value(&memory.page_faults)? > 0, "{memory:?}");
    let swap = found.swap.context("swap")?;
    ensure!(value(&swap.swap_usage_bytes)? <= 64 * MIB, "{swap:?}");
    let mount = found.writable_layer.and_then(|layer| layer.fs_id).context("no file system")?.mountpoint;
    ensure!(node.world.seen(&mount).is_dir(), "{mount} is no folder");
    ensure!(cpu.timestamp > 0 && memory.timestamp > 0 && swap.timestamp > 0, "no times");

    // Counters only go up, and a second question soon after is answered by the same sample or a newer one.
    let again = stats(&client, &id).await?.cpu.context("cpu")?;
    ensure!(again.timestamp >= cpu.timestamp, "an older sample");
    ensure!(value(&again.usage_core_nano_seconds)? >= value(&cpu.usage_core_nano_seconds)?, "a counter went back");
    let later = eventually("a new sample is taken", PATIENCE, async || {
        let later = stats(&client, &id).await?.cpu.context("cpu")?;
        ensure!(later.timestamp > cpu.timestamp, "the old sample");
        Ok(later)
    })
    .await?;
    ensure!(value(&later.usage_core_nano_seconds)? > value(&cpu.usage_core_nano_seconds)?, "it stands still");

    client.stop(&id, 0).await?;
    let ended = stats(&client, &id).await?;
    ensure!(ended.cpu.is_none() && ended.attributes.is_some_and(|own| own.id == id), "numbers of a dead container");
    client.remove(&id).await?;
    refused(
        client.runtime.clone().container_stats(cri::ContainerStatsRequest { container_id: id }).await,
        &[Code::NotFound],
        &[],
    )?;
    Ok(())
}

async fn a_pod_on_the_network(runtime: &'static str) -> Result<()> {
    let mut node = Node::new(runtime).await?;
    let client = node.client().await?;
    client.pull(BUSYBOX).await?;
    let mut sandbox = pod(&node, "own");
    // A parent of its own, as a kubelet makes one for each pod.
    let parent = format!("{}/pods/own", node.world.cgroup_parent());
    sandbox.linux.get_or_insert_default().cgroup_parent = parent.clone();
    let pod = client.run_pod(&sandbox).await?;
    let script = "dd if=/dev/zero of=/dev/null bs=1M count=100 2>/dev/null; exec httpd -f -p 8080 -h /etc";
    let first = client.run(&pod, &container(&sandbox, "first", script), &sandbox).await?;
    client.run(&pod, &container(&sandbox, "second", "sleep 1000 & sleep 1001"), &sandbox).await?;
    let address = client.pod_status(&pod).await?.network.context("no network")?.ip;
    eventually("the pod answers", PATIENCE, async || {
        let script = format!("exec 3<>/dev/tcp/{address}/8080; printf 'GET /passwd HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3");
        let page = node.world.must("timeout", &["5", "bash", "-c", &script]).await?;
        ensure!(page.contains("root:"), "{page}");
        Ok(())
    })
    .await?;
    let found = eventually("all of it is measured", PATIENCE, async || {
        let found = pod_stats(&client, &pod).await?;
        let linux = found.linux.clone().context("no numbers")?;
        ensure!(linux.containers.len() == 2, "{} containers", linux.containers.len());
        let processes = value(&linux.process.context("no processes")?.process_count)?;
        // The shell has become its last command.
        ensure!(processes == 3, "{processes} processes");
        let link = linux.network.context("no network")?.default_interface.context("no eth0")?;
        ensure!(value(&link.rx_bytes)? > 100 && value(&link.tx_bytes)? > 100, "{link:?}");
        Ok(found)
    })
    .await?;
    ensure!(found.attributes.context("attributes")?.id == pod);
    let linux = found.linux.context("numbers")?;
    let network = linux.network.context("network")?;
    ensure!(network.timestamp > 0 && network.interfaces.is_empty(), "{network:?}");
    // What the kernel says of the link inside of the pod, read by a container of it.
    let seen = client.output(&first, "cat /sys/class/net/eth0/statistics/rx_bytes").await?;
    let link = network.default_interface.context("eth0")?;
    ensure!(link.name == "eth0" && value(&link.rx_bytes)? <= seen.trim().parse()?, "{link:?}, the kernel: {seen}");
    let own = cpu_used(&parent)?;
    let used = value(&linux.cpu.context("cpu")?.usage_core_nano_seconds)?;
    let parts: Vec<u64> = linux
        .containers
        .iter()
        .map(|own| value(&own.cpu.as_ref().context("cpu")?.usage_core_nano_seconds))
        .collect::<Result<_>>()?;
    ensure!(used <= own && used >= *parts.iter().max().context("parts")?, "{used}: {parts:?}, {own}");
    ensure!(value(&linux.memory.context("memory")?.usage_bytes)? > 0);

    // A host network pod has no links of its own.
    let other = client.run_pod(&host_pod(&node, "host")).await?;
    ensure!(pod_stats(&client, &other).await?.linux.context("numbers")?.network.is_none(), "the host's links");
    client.stop_pod(&pod).await?;
    let ended = pod_stats(&client, &pod).await?;
    ensure!(ended.linux.is_none_or(|linux| linux.network.is_none() && linux.containers.is_empty()), "of a stopped pod");
    let unknown = cri::PodSandboxStatsRequest { pod_sandbox_id: "0".repeat(64) };
    refused(client.runtime.clone().pod_sandbox_stats(unknown).await, &[Code::NotFound], &[])?;
    client.clear().await
}

async fn lists_filters_and_streams() -> Result<()> {
    let mut node = Node::new("crun").await?;
    let client = node.client().await?;
    client.pull(BUSYBOX).await?;
    ensure!(pod_list(&client, cri::PodSandboxStatsFilter::default()).await?.is_empty(), "of nothing");
    let mut pods = Vec::new();
    for name in ["first", "second", "stopped"] {
        let sandbox = host_pod(&node, name);
        let pod = client.run_pod(&sandbox).await?;
        for own in ["a", "b"] {
            client.run(&pod, &container(&sandbox, own, "sleep 1000"), &sandbox).await?;
        }
        pods.push(pod);
    }
    client.stop_pod(&pods[2]).await?;
    let ids = |stats: &[cri::PodSandboxStats]| -> BTreeSet<String> {
        stats.iter().filter_map(|own| Some(own.attributes.as_ref()?.id.clone())).collect()
    };
    let ready: BTreeSet<String> = pods[..2].iter().cloned().collect();
    let all = pod_list(&client, cri::PodSandboxStatsFilter::default()).await?;
    ensure!(ids(&all) == ready, "{:?}", ids(&all));
    for own in &all {
        let linux = own.linux.as_ref().context("numbers")?;
        ensure!(linux.containers.len() == 2, "{} containers", linux.containers.len());
        // Without a parent of its own a pod is the sum of its containers.
        let parts: Vec<u64> = linux
            .containers
            .iter()
            .map(|own| value(&own.memory.as_ref().context("memory")?.working_set_bytes))
            .collect::<Result<_>>()?;
        let set = value(&linux.memory.as_ref().context("memory")?.working_set_bytes)?;
        ensure!(set == parts.iter().sum::<u64>(), "{set} is not the sum of {parts:?}");
    }
    let by_id = cri::PodSandboxStatsFilter { id: pods[1].clone(), ..Default::default() };
    ensure!(ids(&pod_list(&client, by_id).await?) == [pods[1].clone()].into(), "by id");
    let by_label =
        cri::PodSandboxStatsFilter { label_selector: [("label".into(), "first".into())].into(), ..Default::default() };
    ensure!(ids(&pod_list(&client, by_label.clone()).await?) == [pods[0].clone()].into(), "by label");
    let none = cri::PodSandboxStatsFilter { id: "0".repeat(64), ..Default::default() };
    ensure!(pod_list(&client, none).await?.is_empty(), "an id that nothing has");

    let request = cri::StreamPodSandboxStatsRequest { filter: Some(by_label) };
    let mut stream = client.runtime.clone().stream_pod_sandbox_stats(request).await?.into_inner();
    let message = stream.message().await?.context("no message")?;
    ensure!(ids(&message.pod_sandbox_stats) == [pods[0].clone()].into(), "streamed by label");
    ensure!(stream.message().await?.is_none(), "more than one message");
    let mut stream =
        client.runtime.clone().stream_container_stats(cri::StreamContainerStatsRequest::default()).await?.into_inner();
    let message = stream.message().await?.context("no message")?;
    ensure!(message.container_stats.len() == 4, "{} containers", message.container_stats.len());
    ensure!(message.container_stats.iter().all(|own| own.cpu.is_some() && own.memory.is_some()), "without numbers");
    ensure!(stream.message().await?.is_none(), "more than one message");
    client.clear().await
}

async fn metrics_fit_their_descriptors() -> Result<()> {
    let mut node = Node::new("crun").await?;
    let client = node.client().await?;
    client.pull(BUSYBOX).await?;
    let sandbox = pod(&node, "own");
    let id = client.run_pod(&sandbox).await?;
    let mut config = container(&sandbox, "busy", BUSY);
    resources(&mut config).memory_limit_in_bytes = 64 << 20;
    resources(&mut config).cpu_shares = 512;
    let own = client.run(&id, &config, &sandbox).await?;
    // A layer is counted at the first question, and then for a while no more.
    eventually("the file is written", PATIENCE, async || client.output(&own, "ls /done").await).await?;
    let answer = client.runtime.clone().list_metric_descriptors(cri::ListMetricDescriptorsRequest {}).await?;
    let described: BTreeMap<_, _> =
        answer.into_inner().descriptors.into_iter().map(|own| (own.name.clone(), own.label_keys)).collect();
    ensure!(described.len() > 30, "{} metrics", described.len());

    let found = eventually("the container is measured", PATIENCE, async || {
        let answer = client.runtime.clone().list_pod_sandbox_metrics(cri::ListPodSandboxMetricsRequest {}).await?;
        let pods = answer.into_inner().pod_metrics;
        ensure!(pods.len() == 1 && pods[0].container_metrics.len() == 1, "{} pods", pods.len());
        let names: BTreeSet<_> = pods[0].container_metrics[0].metrics.iter().map(|own| &*own.name).collect();
        ensure!(names.contains("container_fs_usage_bytes"), "the layer is not counted yet");
        pods.into_iter().next().context("a pod")
    })
    .await?;
    ensure!(found.pod_sandbox_id == id && found.container_metrics[0].container_id == own);
    for metric in found.metrics.iter().chain(&found.container_metrics[0].metrics) {
        let keys = described.get(&metric.name).with_context(|| format!("{} is not described", metric.name))?;
        ensure!(keys.len() == metric.label_values.len(), "{}: {keys:?} {:?}", metric.name, metric.label_values);
        ensure!(metric.value.is_some() && metric.timestamp > 0, "{metric:?}");
    }
    let metric = |name: &str| found.container_metrics[0].metrics.iter().find(|own| own.name == name);
    let number = |name: &str| value(&metric(name).with_context(|| format!("no {name}"))?.value);
    ensure!(number("container_spec_memory_limit_bytes")? == 64 * MIB && number("container_spec_cpu_shares")? == 512);
    ensure!(number("container_fs_usage_bytes")? >= 3 * MIB && number("container_processes")? >= 1);
    let labels: BTreeMap<_, _> = described["container_memory_rss"]
        .iter()
        .zip(&metric("container_memory_rss").context("no rss")?.label_values)
        .map(|(key, value)| (&**key, &**value))
        .collect();
    for (key, expected) in
        [("container", "busy"), ("pod", "own"), ("namespace", "lane"), ("name", &*own), ("image", BUSYBOX)]
    {
        ensure!(labels[key] == expected, "{key} is {}", labels[key]);
    }
    ensure!(labels["id"].ends_with(&own), "{}", labels["id"]);
    let links: Vec<_> =
        found.metrics.iter().filter(|own| own.name == "container_network_receive_bytes_total").collect();
    ensure!(links.len() == 1 && links[0].label_values.iter().any(|label| label == "eth0"), "{links:?}");

    let request = cri::StreamPodSandboxMetricsRequest {};
    let mut stream = client.runtime.clone().stream_pod_sandbox_metrics(request).await?.into_inner();
    ensure!(stream.message().await?.is_some_and(|message| message.pod_sandbox_metrics.len() == 1), "streamed");
    ensure!(stream.message().await?.is_none(), "more than one message");
    client.clear().await
}

/// Descriptors of cgroups and of a pod's network are kept between questions: not beyond the pod's end.
async fn a_reader_keeps_nothing_of_a_pod_that_ends() -> Result<()> {
    let mut node = Node::new("crun").await?;
    let client = node.client().await?;
    client.pull(BUSYBOX).await?;
    let mut before = None;
    for _ in 0..2 {
        let sandbox = pod(&node, "own");
        let id = client.run_pod(&sandbox).await?;
        let own = client.run(&id, &container(&sandbox, "own", "sleep 1000"), &sandbox).await?;
        stats(&client, &own).await?.cpu.context("cpu")?;
        pod_stats(&client, &id).await?.linux.and_then(|linux| linux.network).context("network")?;
        let request = cri::ListContainerStatsRequest::default();
        ensure!(client.runtime.clone().list_container_stats(request).await?.into_inner().stats.len() == 1);
        client.stop_pod(&id).await?;
        // Asked once more when it has ended: nothing may come back by that.
        stats(&client, &own).await?;
        pod_stats(&client, &id).await?;
        client.remove_pod(&id).await?;
        std::fs::remove_dir_all(node.path("logs/own"))?;
        match before {
            None => before = Some(Ledger::take(&node).await?),
            Some(ref before) => before.assert_same(&node).await?,
        }
    }
    Ok(())
}
