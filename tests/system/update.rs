//! UpdateContainerResources and UpdatePodSandboxResources: in force in the cgroup's files, shown as requested, all or nothing.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use cri_proto::runtime::v1 as cri;
use tonic::{Code, Status};

use crate::client::{Client, refused};
use crate::ledger::Ledger;
use crate::lifecycle::host_node;
use crate::limits::{expect, has_controller, limit, limits};
use crate::node::{Node, Setup};
use crate::requests::{BUSYBOX, container, host_pod, resources};
use crate::world::{PATIENCE, World, eventually};

crate::per_runtime!(
    limits_are_in_force_and_shown,
    memory_goes_up_and_down_with_swap,
    all_or_nothing,
    below_what_is_used_is_refused,
    a_created_container_is_updated,
    updates_of_one_container_take_turns
);
crate::once!(a_runtime_that_fails_half_way, what_is_refused, a_sandbox_keeps_what_it_is_told);

const MIB: i64 = 1 << 20;

type Change = fn(&mut cri::LinuxContainerResources);

async fn update(client: &Client, id: &str, change: impl Fn(&mut cri::LinuxContainerResources)) -> Result<(), Status> {
    let mut linux = cri::LinuxContainerResources::default();
    change(&mut linux);
    let request =
        cri::UpdateContainerResourcesRequest { container_id: id.to_owned(), linux: Some(linux), ..Default::default() };
    client.runtime.clone().update_container_resources(request).await.map(drop)
}

async fn shown(client: &Client, id: &str) -> Result<cri::LinuxContainerResources> {
    client.status(id).await?.resources.context("no resources")?.linux.context("no Linux resources")
}

async fn limits_are_in_force_and_shown(runtime: &'static str) -> Result<()> {
    let (mut node, client, sandbox, pod) = host_node(runtime).await?;
    let mut before = None;
    let mut client = client;
    for name in ["first", "second"] {
        let mut config = container(&sandbox, name, "sleep 1000");
        *resources(&mut config) = cri::LinuxContainerResources {
            cpu_shares: 512,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            memory_limit_in_bytes: 64 * MIB,
            oom_score_adj: 500,
            ..Default::default()
        };
        let asked = resources(&mut config).clone();
        let id = client.run(&pod, &config, &sandbox).await?;
        ensure!(shown(&client, &id).await? == asked, "shown from creation on: {:?}", shown(&client, &id).await?);
        update(&client, &id, |l| {
            l.cpu_shares = 100;
            l.cpu_quota = 30_000;
            l.cpuset_cpus = "0".into();
            l.oom_score_adj = 1;
        })
        .await?;
        expect(&node, &id, &[("cpu.shares", 100), ("cpu.cfs_quota_us", 30_000), ("cpu.cfs_period_us", 100_000)])?;
        expect(&node, &id, &[("cpuset.cpus", 0), ("memory.limit_in_bytes", 64 * MIB)])?;
        let after = cri::LinuxContainerResources {
            cpu_shares: 100,
            cpu_quota: 30_000,
            cpuset_cpus: "0".into(),
            ..asked.clone()
        };
        ensure!(shown(&client, &id).await? == after, "shown: {:?}", shown(&client, &id).await?);
        // A process may not lose its score at run time, and a restart of the daemon changes nothing of it.
        client = node.crash_and_restart().await?;
        ensure!(shown(&client, &id).await? == after, "after a restart: {:?}", shown(&client, &id).await?);
        // And it goes on from there, to no limit at last.
        update(&client, &id, |l| {
            l.cpu_quota = -1;
            l.memory_limit_in_bytes = -1;
        })
        .await?;
        expect(&node, &id, &[("cpu.cfs_quota_us", -1), ("cpu.shares", 100)])?;
        ensure!(limit(&node, &id, "memory.limit_in_bytes")?.len() > 15, "memory is limited");
        // A request that says nothing changes nothing.
        let held = limits(&node, &id)?;
        update(&client, &id, |_| {}).await?;
        let request = cri::UpdateContainerResourcesRequest {
            container_id: id.clone(),
            annotations: [("hint".to_owned(), "x".to_owned())].into(),
            ..Default::default()
        };
        client.runtime.clone().update_container_resources(request).await?;
        ensure!(limits(&node, &id)? == held, "changed: {held:?}");
        client.stop(&id, 0).await?;
        refused(update(&client, &id, |l| l.cpu_shares = 5).await, &[Code::FailedPrecondition], &["EXITED", &id])?;
        client.remove(&id).await?;
        refused(update(&client, &id, |l| l.cpu_shares = 5).await, &[Code::NotFound], &[&id])?;
        match before {
            None => before = Some(Ledger::take(&node).await?),
            Some(ref before) => before.assert_same_but(&node, "fd daemon").await?,
        }
    }
    Ok(())
}

/// Memory and swap depend on each other: whichever order the kernel needs, the request says only what is wanted.
async fn memory_goes_up_and_down_with_swap(runtime: &'static str) -> Result<()> {
    let (node, client, sandbox, pod) = host_node(runtime).await?;
    let mut config = container(&sandbox, "own", "sleep 1000");
    resources(&mut config).memory_limit_in_bytes = 64 * MIB;
    let id = client.run(&pod, &config, &sandbox).await?;
    let (memory, both) = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes");
    expect(&node, &id, &[(memory, 64 * MIB), (both, 64 * MIB)])?;
    // Without a limit of its own swap follows: none before, none after.
    for size in [256, 32, 128] {
        update(&client, &id, |l| l.memory_limit_in_bytes = size * MIB).await?;
        expect(&node, &id, &[(memory, size * MIB), (both, size * MIB)])?;
        ensure!(shown(&client, &id).await?.memory_swap_limit_in_bytes == 0, "a swap limit that nobody asked for");
    }
    for (size, swap) in [(64, 96), (300, 400), (48, 48), (200, 220)] {
        update(&client, &id, |l| {
            l.memory_limit_in_bytes = size * MIB;
            l.memory_swap_limit_in_bytes = swap * MIB;
        })
        .await?;
        expect(&node, &id, &[(memory, size * MIB), (both, swap * MIB)])?;
    }
    // Now swap has a limit, which memory alone cannot pass.
    let over = update(&client, &id, |l| l.memory_limit_in_bytes = 500 * MIB).await;
    refused(over, &[Code::InvalidArgument], &["memory_swap_limit_in_bytes"])?;
    expect(&node, &id, &[(memory, 200 * MIB), (both, 220 * MIB)])?;
    Ok(())
}

async fn all_or_nothing(runtime: &'static str) -> Result<()> {
    let (node, client, sandbox, pod) = host_node(runtime).await?;
    let mut config = container(&sandbox, "own", "sleep 1000");
    resources(&mut config).memory_limit_in_bytes = 64 * MIB;
    let id = client.run(&pod, &config, &sandbox).await?;
    let (before, said) = (limits(&node, &id)?, shown(&client, &id).await?);
    // The kernel has no such CPU; all the rest of the request could be done, and some of it is before this is found out.
    let answer = update(&client, &id, |l| {
        l.cpu_shares = 77;
        l.cpu_quota = 20_000;
        l.memory_limit_in_bytes = 128 * MIB;
        l.cpuset_cpus = "4095".into();
    })
    .await;
    refused(answer, &[], &["stay as they were", "update"])?;
    ensure!(limits(&node, &id)? == before, "{:?} is not {before:?}", limits(&node, &id)?);
    ensure!(shown(&client, &id).await? == said, "shown: {:?}", shown(&client, &id).await?);
    // And it is no worse for it.
    update(&client, &id, |l| l.cpu_shares = 78).await?;
    expect(&node, &id, &[("cpu.shares", 78), ("memory.limit_in_bytes", 64 * MIB)])?;
    Ok(())
}

async fn below_what_is_used_is_refused(runtime: &'static str) -> Result<()> {
    let (node, client, sandbox, pod) = host_node(runtime).await?;
    let mut config = container(&sandbox, "own", "exec dd if=/dev/zero of=/dev/null bs=40M");
    resources(&mut config).memory_limit_in_bytes = 128 * MIB;
    let id = client.run(&pod, &config, &sandbox).await?;
    eventually("the container has its memory", PATIENCE, async || {
        let used: i64 = limit(&node, &id, "memory.usage_in_bytes")?.parse()?;
        ensure!(used > 38 * MIB, "{used} bytes");
        Ok(())
    })
    .await?;
    let answer = update(&client, &id, |l| l.memory_limit_in_bytes = 20 * MIB).await;
    let message = refused(answer, &[Code::FailedPrecondition], &["memory_limit_in_bytes", &(20 * MIB).to_string()])?;
    let numbers = message.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse::<i64>().ok());
    ensure!(numbers.clone().any(|number| number > 38 * MIB), "what is used is not said: {message}");
    expect(&node, &id, &[("memory.limit_in_bytes", 128 * MIB)])?;
    ensure!(client.status(&id).await?.state() == cri::ContainerState::ContainerRunning, "it was killed");
    update(&client, &id, |l| l.memory_limit_in_bytes = 100 * MIB).await?;
    expect(&node, &id, &[("memory.limit_in_bytes", 100 * MIB)])?;
    Ok(())
}

async fn a_created_container_is_updated(runtime: &'static str) -> Result<()> {
    let (node, client, sandbox, pod) = host_node(runtime).await?;
    let id = client.create(&pod, &container(&sandbox, "own", "sleep 1000"), &sandbox).await?;
    update(&client, &id, |l| {
        l.cpuset_cpus = "0".into();
        l.cpu_shares = 300;
    })
    .await?;
    ensure!(client.status(&id).await?.state() == cri::ContainerState::ContainerCreated, "no longer CREATED");
    client.start(&id).await?;
    expect(&node, &id, &[("cpuset.cpus", 0), ("cpu.shares", 300)])?;
    let seen = client.output(&id, "grep Cpus_allowed_list /proc/1/status").await?;
    ensure!(seen.trim().ends_with("\t0"), "the process may run on {seen}");
    Ok(())
}

async fn updates_of_one_container_take_turns(runtime: &'static str) -> Result<()> {
    let (node, client, sandbox, pod) = host_node(runtime).await?;
    let id = client.run(&pod, &container(&sandbox, "own", "sleep 1000"), &sandbox).await?;
    let mut updates = Vec::new();
    for n in 1..=8 {
        let (client, id) = (client.clone(), id.clone());
        updates.push(cricket::task::spawn("update", async move {
            update(&client, &id, |l| {
                l.cpu_shares = 100 + n;
                l.memory_limit_in_bytes = (64 + n) * MIB;
            })
            .await
        }));
    }
    for one in updates {
        one.await??;
    }
    // Whichever was the last one, it was whole.
    let last = shown(&client, &id).await?;
    ensure!(last.memory_limit_in_bytes == (last.cpu_shares - 100 + 64) * MIB, "{last:?}");
    expect(&node, &id, &[("cpu.shares", last.cpu_shares), ("memory.limit_in_bytes", last.memory_limit_in_bytes)])
}

/// A runtime that sets some of the limits and then fails, and cannot be asked to take them back.
fn half_way(world: &World) -> Result<PathBuf> {
    let script = "#!/bin/sh\nfor word; do [ \"$word\" = update ] && mode=update; last=$word; done\n\
        [ \"$mode\" = update ] || exec crun \"$@\"\n\
        for folder in $(find /sys/fs/cgroup -type d -name \"cricket-$last\"); do\n\
        for file in cpu.shares cpu.weight; do [ ! -f $folder/$file ] || echo 9 >$folder/$file; done\n\
        for file in memory.limit_in_bytes memory.max; do [ ! -f $folder/$file ] || echo 30M >$folder/$file; done\n\
        done\necho 'half of it is done' >&2\nexit 1\n";
    let program = world.folder().join("half-way");
    std::fs::write(&program, script)?;
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(program)
}

async fn a_runtime_that_fails_half_way() -> Result<()> {
    let world = World::new().await?;
    let mut setup = Setup::new("crun");
    setup.handlers.push(("half".into(), half_way(&world)?));
    let mut node = Node::start(world, setup).await?;
    let client = node.client().await?;
    client.pull(BUSYBOX).await?;
    let sandbox = host_pod(&node, "pod");
    let pod = client.run_pod_with(&sandbox, "half").await?;
    let mut config = container(&sandbox, "own", "sleep 1000");
    resources(&mut config).memory_limit_in_bytes = 64 * MIB;
    let id = client.run(&pod, &config, &sandbox).await?;
    let before = limits(&node, &id)?;
    let request = |l: &mut cri::LinuxContainerResources| {
        l.cpu_shares = 50;
        l.memory_limit_in_bytes = 80 * MIB;
    };
    refused(update(&client, &id, request).await, &[], &["stay as they were", "half of it is done"])?;
    ensure!(limits(&node, &id)? == before, "{:?} is not {before:?}", limits(&node, &id)?);
    ensure!(shown(&client, &id).await?.memory_limit_in_bytes == 64 * MIB, "a refused limit is shown");
    client.clear().await
}

async fn what_is_refused() -> Result<()> {
    let (node, client, sandbox, pod) = host_node("crun").await?;
    let id = client.run(&pod, &container(&sandbox, "own", "sleep 1000"), &sandbox).await?;
    let before = limits(&node, &id)?;
    let cases: [(Change, &str); 7] = [
        (|l| l.cpu_quota = 7, "cpu_quota 7"),
        (|l| l.cpu_period = 12, "cpu_period 12"),
        (|l| l.cpu_shares = -1, "cpu_shares -1"),
        (|l| l.memory_limit_in_bytes = 4096, "memory_limit_in_bytes 4096"),
        (|l| l.cpuset_cpus = "0;reboot".into(), "cpuset_cpus"),
        (|l| drop(l.unified.insert("../cgroup.procs".into(), "1".into())), "../cgroup.procs"),
        (|l| l.hugepage_limits = vec![cri::HugepageLimit { page_size: "../x".into(), limit: 1 }], "../x"),
    ];
    for (change, word) in cases {
        let answer = update(&client, &id, |l| {
            l.cpu_shares = 55;
            change(l);
        });
        refused(answer.await, &[Code::InvalidArgument], &[word])?;
    }
    let windows = Some(cri::WindowsContainerResources::default());
    let request = cri::UpdateContainerResourcesRequest { container_id: id.clone(), windows, ..Default::default() };
    let answer = client.runtime.clone().update_container_resources(request).await;
    refused(answer, &[Code::InvalidArgument], &["windows"])?;
    refused(update(&client, &"0".repeat(64), |_| {}).await, &[Code::NotFound], &[])?;
    ensure!(limits(&node, &id)? == before, "{:?} is not {before:?}", limits(&node, &id)?);
    if !has_controller("hugetlb") {
        let answer = update(&client, &id, |l| {
            l.hugepage_limits = vec![cri::HugepageLimit { page_size: "2MB".into(), limit: 2 << 20 }];
        });
        refused(answer.await, &[Code::FailedPrecondition], &["hugetlb"])?;
    }
    Ok(())
}

async fn a_sandbox_keeps_what_it_is_told() -> Result<()> {
    let (mut node, mut client, _sandbox, pod) = host_node("crun").await?;
    let told = cri::LinuxContainerResources { cpu_shares: 1234, memory_limit_in_bytes: 77 * MIB, ..Default::default() };
    let request = cri::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.clone(),
        overhead: Some(cri::LinuxContainerResources { cpu_shares: 12, ..Default::default() }),
        resources: Some(told),
    };
    client.runtime.clone().update_pod_sandbox_resources(request.clone()).await?;
    for _ in 0..2 {
        let status = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: true };
        let info = client.runtime.clone().pod_sandbox_status(status).await?.into_inner().info;
        let info: serde_json::Value = serde_json::from_str(info.get("info").context("no info")?)?;
        let shares = |key: &str| info[key]["cpu_shares"].as_i64();
        if (shares("overhead"), shares("resources")) != (Some(12), Some(1234)) {
            bail!("info says {} and {}", info["overhead"], info["resources"]);
        }
        client = node.crash_and_restart().await?;
    }
    let unknown = cri::UpdatePodSandboxResourcesRequest { pod_sandbox_id: "0".repeat(64), ..request.clone() };
    let answer = client.runtime.clone().update_pod_sandbox_resources(unknown).await;
    refused(answer, &[Code::NotFound], &[])?;
    client.stop_pod(&pod).await?;
    client.runtime.clone().update_pod_sandbox_resources(request.clone()).await?;
    client.remove_pod(&pod).await?;
    refused(client.runtime.clone().update_pod_sandbox_resources(request).await, &[Code::NotFound], &[])?;
    Ok(())
}
