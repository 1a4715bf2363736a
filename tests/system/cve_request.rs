//! Advisories in which a request, with its annotations, leads the daemon astray, and what a container must not get. Each
//! test is named after one and asserts what happened. `tests/cves.md` has the list.

use anyhow::{Context as _, Result, ensure};
use cri_proto::runtime::v1 as cri;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::client::refused;
use crate::crafted::Crafted;
use crate::cve_image::{attempt, idle, memory, node};
use crate::ledger::Ledger;
use crate::node::Node;
use crate::requests::{bind, container, host_pod, namespaces, security, with_namespaces};
use crate::world::World;

crate::per_runtime!(
    cve_2022_29162_cve_2022_27652_cve_2022_27650_cve_2022_3466_no_inheritable_capabilities,
    cve_2026_30892_the_uid_of_an_exec_is_a_number,
    cve_2023_25809_cgroups_are_read_only,
    ghsa_g54h_m393_cpwq_devices_are_denied_first
);
crate::once!(
    cve_2021_21334_environments_are_not_shared,
    cve_2021_3602_cve_2020_14370_nothing_of_the_daemon_s_environment,
    cve_2021_43784_more_than_fits,
    cve_2022_0532_cve_2022_0811_sysctls_of_the_host,
    cve_2022_31030_cve_2022_1708_output_without_end,
    cve_2020_8557_the_daemon_s_files_cannot_be_filled,
    cve_2023_2431_a_profile_that_is_not_there_is_no_freedom,
    cve_2024_3154_cve_2023_6476_cve_2025_24965_annotations_that_steer_a_runtime,
    cve_2025_0750_paths_that_climb,
    ghsa_7ww5_4wqc_m92c_energy_counters
);

async fn cve_2022_29162_cve_2022_27652_cve_2022_27650_cve_2022_3466_no_inheritable_capabilities(
    runtime: &'static str,
) -> Result<()> {
    let (node, client, ..) = node(runtime).await?;
    let reference = Crafted::configured(json!({})).import(&node, "caps").await?;
    let mut sandbox = host_pod(&node, "privileged");
    sandbox.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    let pod = client.run_pod(&sandbox).await?;
    for (name, privileged, user) in
        [("root", false, 0), ("user", false, 1000), ("all", true, 0), ("all-user", true, 1000)]
    {
        let mut config = idle(&sandbox, name, &reference);
        let own = security(&mut config);
        own.privileged = privileged;
        own.run_as_user = Some(cri::Int64Value { value: user });
        own.capabilities = Some(cri::Capability { add_capabilities: vec!["NET_ADMIN".into()], ..Default::default() });
        let id = client.run(&pod, &config, &sandbox).await?;
        for script in ["grep CapInh /proc/1/status", "grep CapInh /proc/self/status"] {
            let seen = client.output(&id, script).await?;
            ensure!(seen.split_whitespace().last() == Some("0000000000000000"), "{name}: {script}: {seen}");
        }
    }
    Ok(())
}

async fn cve_2026_30892_the_uid_of_an_exec_is_a_number(runtime: &'static str) -> Result<()> {
    let (node, client, sandbox, pod) = node(runtime).await?;
    let reference = Crafted::configured(json!({})).import(&node, "ids").await?;
    for user in [1, 10, 8, 65_534] {
        let mut config = idle(&sandbox, &format!("uid-{user}"), &reference);
        security(&mut config).run_as_user = Some(cri::Int64Value { value: user });
        security(&mut config).run_as_group = Some(cri::Int64Value { value: user + 1 });
        let id = client.run(&pod, &config, &sandbox).await?;
        let seen = client.output(&id, "id -u; id -g; grep ^Uid: /proc/self/status").await?;
        ensure!(seen.starts_with(&format!("{user}\n{}\nUid:\t{user}\t{user}\t", user + 1)), "{user}: {seen}");
    }
    Ok(())
}

async fn cve_2023_25809_cgroups_are_read_only(runtime: &'static str) -> Result<()> {
    let (node, client, sandbox, pod) = node(runtime).await?;
    let reference = Crafted::configured(json!({})).import(&node, "cgroups").await?;
    let id = client.run(&pod, &idle(&sandbox, "cgroups", &reference), &sandbox).await?;
    let script = "for f in $(find /sys/fs/cgroup -name cgroup.procs -o -name release_agent -o -name memory.limit_in_bytes); do \
                  (echo 0 >$f) 2>/dev/null && echo wrote $f; done; \
                  mkdir /sys/fs/cgroup/*/made 2>/dev/null; find /sys/fs/cgroup -mindepth 2 -name made; echo done";
    let seen = client.output(&id, script).await?;
    ensure!(seen == "done\n", "{seen}");
    // On v1 the hierarchies lie in a tmpfs. crun leaves that one writable (src/runtime/adapt.rs says why it is not asked for more).
    if runtime == "runc" {
        let made = client.exec(&id, "mkdir /sys/fs/cgroup/made", 20).await?;
        let stderr = String::from_utf8_lossy(&made.stderr).to_lowercase();
        ensure!(made.exit_code != 0 && stderr.contains("read-only"), "{}: {stderr}", made.exit_code);
    }
    let files = client.output(&id, "find /sys/fs/cgroup -name cgroup.procs | wc -l").await?;
    ensure!(files.trim().parse::<u32>()? > 0, "no cgroup is mounted: the test proved nothing");
    Ok(())
}

async fn ghsa_g54h_m393_cpwq_devices_are_denied_first(runtime: &'static str) -> Result<()> {
    let (node, client, sandbox, pod) = node(runtime).await?;
    let reference = Crafted::configured(json!({})).import(&node, "devices").await?;
    let mut config = idle(&sandbox, "devices", &reference);
    let mknod = cri::Capability { add_capabilities: vec!["MKNOD".into()], ..Default::default() };
    security(&mut config).capabilities = Some(mknod);
    let id = client.run(&pod, &config, &sandbox).await?;
    // Block devices and /dev/mem of the host: even with a node for them they cannot be opened.
    for (kind, major, minor) in [('b', 254, 0), ('b', 8, 0), ('b', 259, 0), ('c', 1, 1), ('c', 10, 237)] {
        let script = format!("mknod /node {kind} {major} {minor} && head -c 1 /node; rm -f /node");
        let answer = client.exec(&id, &script, 20).await?;
        let stderr = String::from_utf8_lossy(&answer.stderr).to_lowercase();
        ensure!(stderr.contains("not permitted") && answer.stdout.is_empty(), "{kind} {major}:{minor}: {stderr}");
    }
    // The control: what every container has.
    ensure!(client.output(&id, "head -c 3 /dev/zero | wc -c").await? == "3\n");
    let bundle = node.world.seen(node.path(&format!("state/k8s.io/{id}/config.json")));
    let spec: Value = serde_json::from_slice(&std::fs::read(bundle)?)?;
    let first = &spec["linux"]["resources"]["devices"][0];
    ensure!(first["allow"] == false && first["access"] == "rwm" && first["major"].is_null(), "{first}");
    Ok(())
}

async fn cve_2021_21334_environments_are_not_shared() -> Result<()> {
    let (node, client, sandbox, pod) = node("crun").await?;
    let shared = json!({"Env": ["PATH=/bin", "SHARED=by the image", "REPLACED=by the image"]});
    let reference = Crafted::configured(shared).import(&node, "shared").await?;
    let runs = (0..40).map(|n| {
        let (client, sandbox, pod) = (client.clone(), sandbox.clone(), pod.clone());
        let mut config = idle(&sandbox, &format!("env-{n}"), &reference);
        let pair = |key: &str| cri::KeyValue { key: key.into(), value: format!("secret-{n}").into_bytes() };
        config.envs = vec![pair(&format!("OWN_{n}")), pair("REPLACED")];
        async move {
            let id = client.run(&pod, &config, &sandbox).await?;
            let seen = client.output(&id, "tr '\\0' '\\n' </proc/1/environ").await?;
            Ok::<_, anyhow::Error>((n, seen))
        }
    });
    for run in join_all(runs).await {
        let (n, seen) = run?;
        let mut lines: Vec<_> = seen.lines().filter(|line| !of_the_shell(line)).collect();
        lines.sort_unstable();
        let (own, replaced) = (format!("OWN_{n}=secret-{n}"), format!("REPLACED=secret-{n}"));
        ensure!(lines == [own.as_str(), "PATH=/bin", &replaced, "SHARED=by the image"], "{n}: {lines:?}");
    }
    Ok(())
}

/// A variable that every container has, or that the runtime or the container's shell adds to those that it was given.
fn of_the_shell(line: &str) -> bool {
    ["_", "SHLVL", "PWD", "OLDPWD", "HOME", "HOSTNAME"].contains(&line.split('=').next().unwrap_or(line))
}

async fn cve_2021_3602_cve_2020_14370_nothing_of_the_daemon_s_environment() -> Result<()> {
    let mut node = Box::pin(Node::prepare(Box::pin(World::new()).await?, {
        let mut setup = crate::node::Setup::new("crun");
        setup.registry = false;
        setup
    }))
    .await?;
    node.env = ["HTTP_PROXY=http://secret", "LISTEN_FDS=1", "AWS_SECRET_ACCESS_KEY=secret", "LD_LIBRARY_PATH=/secret"]
        .map(str::to_owned)
        .to_vec();
    let client = node.launch().await?;
    let sandbox = host_pod(&node, "pod");
    let pod = client.run_pod(&sandbox).await?;
    let reference = Crafted::configured(json!({"Env": ["ONLY=this"]})).import(&node, "env").await?;
    let id = client.run(&pod, &idle(&sandbox, "env", &reference), &sandbox).await?;
    for script in ["tr '\\0' '\\n' </proc/1/environ", "cat /proc/self/environ | tr '\\0' '\\n'"] {
        let seen = client.output(&id, script).await?;
        let mut names: Vec<_> = seen.lines().map(|line| line.split('=').next().unwrap_or(line)).collect();
        names.retain(|name| *name == "HOSTNAME" || !of_the_shell(name));
        names.sort_unstable();
        ensure!(names == ["HOSTNAME", "ONLY", "PATH"], "{script}: {seen}");
    }
    Ok(())
}

async fn cve_2021_43784_more_than_fits() -> Result<()> {
    let (node, client, sandbox, pod) = node("crun").await?;
    let reference = Crafted::configured(json!({})).import(&node, "many").await?;
    let before = Ledger::take(&node).await?;
    let invalid = &[tonic::Code::InvalidArgument];
    let mut config = idle(&sandbox, "mounts", &reference);
    config.mounts = (0..100_000).map(|n| bind("/tmp", &format!("/m/{n}"))).collect();
    refused(client.create(&pod, &config, &sandbox).await, invalid, &["mounts"])?;
    let mut config = idle(&sandbox, "path", &reference);
    config.mounts = vec![bind("/tmp", &format!("/{}", "p".repeat(70_000)))];
    refused(client.create(&pod, &config, &sandbox).await, invalid, &["container_path"])?;
    let mut config = idle(&sandbox, "annotations", &reference);
    config.annotations = [("key".to_owned(), "v".repeat(2_000_000))].into();
    refused(client.create(&pod, &config, &sandbox).await, invalid, &["annotations"])?;
    let mut bad = host_pod(&node, "id-maps");
    let line = |n: u32| cri::IdMapping { host_id: 100_000 + n, container_id: n, length: 1 };
    let options = bad.linux.get_or_insert_default().security_context.get_or_insert_default();
    options.namespace_options.get_or_insert_default().userns_options = Some(cri::UserNamespace {
        mode: cri::NamespaceMode::Pod.into(),
        uids: (0..400).map(line).collect(),
        gids: (0..400).map(line).collect(),
    });
    refused(client.run_pod(&bad).await, &[], &["userns_options"])?;
    before.assert_same(&node).await
}

async fn cve_2022_0532_cve_2022_0811_sysctls_of_the_host() -> Result<()> {
    let (node, client, ..) = node("crun").await?;
    let host = ["/proc/sys/kernel/core_pattern", "/proc/sys/kernel/shm_rmid_forced", "/proc/sys/net/ipv4/ip_forward"];
    // As the lane sees them: its network namespace is the host's one for its pods.
    let read = || host.map(|path| std::fs::read(node.world.seen(path)).ok());
    let before = read();
    let modes = |network, ipc| {
        let mut options = namespaces(network, cri::NamespaceMode::Container);
        options.ipc = i32::from(ipc);
        options
    };
    use cri::NamespaceMode::{Node as Host, Pod};
    for (index, (network, ipc, key, value)) in [
        (Host, Pod, "net.ipv4.ip_forward", "0"),
        (Host, Host, "kernel.shm_rmid_forced", "1"),
        (Pod, Pod, "kernel.shm_rmid_forced", "1+kernel.core_pattern=|/evil"),
        (Pod, Pod, "kernel.shm_rmid_forced", "1\nkernel.core_pattern=|/evil"),
        (Pod, Pod, "kernel.shm_rmid_forced+kernel.core_pattern", "|/evil"),
        (Pod, Pod, "kernel.core_pattern", "|/evil"),
        (Pod, Pod, "net/../kernel/core_pattern", "|/evil"),
        (Pod, Pod, "net..kernel.core_pattern", "|/evil"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut config = with_namespaces(host_pod(&node, &format!("sysctl-{index}")), modes(network, ipc as i32 == 2));
        let options = config.linux.get_or_insert_default();
        if ipc == Host {
            options.security_context.get_or_insert_default().namespace_options.get_or_insert_default().ipc = 2;
        }
        options.sysctls = [(key.to_owned(), value.to_owned())].into();
        refused(client.run_pod(&config).await, &[], &[]).with_context(|| format!("{key}={value}"))?;
        ensure!(read() == before, "{key}={value} changed the host");
    }
    Ok(())
}

async fn cve_2022_31030_cve_2022_1708_output_without_end() -> Result<()> {
    let (node, client, sandbox, pod) = node("crun").await?;
    let reference = Crafted::configured(json!({})).import(&node, "output").await?;
    let id = client.run(&pod, &idle(&sandbox, "output", &reference), &sandbox).await?;
    client.output(&id, "true").await?;
    let before = (memory(&node)?, disk(&node)?);
    let answer = client.exec(&id, "dd if=/dev/zero bs=1M count=400; exit 7", 0).await?;
    ensure!(answer.exit_code == 7, "the command did not come to its own end: {}", answer.exit_code);
    ensure!(answer.stdout.len() <= 16 << 20, "{} bytes", answer.stdout.len());
    // The answer is held once as kept and once as sent.
    let grown = memory(&node)?.saturating_sub(before.0);
    ensure!(grown < 64 << 20, "the daemon grew by {grown} bytes for 400 MiB of output");
    let written = disk(&node)?.saturating_sub(before.1);
    ensure!(written < 1 << 20, "{written} bytes were written to the daemon's folders");
    Ok(())
}

/// Bytes of all files in the daemon's folders and logs.
fn disk(node: &Node) -> Result<u64> {
    let mut open = ["root", "state", "logs"].map(|name| node.world.seen(node.path(name))).to_vec();
    let mut bytes = 0;
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(meta) = std::fs::symlink_metadata(entry.path()) else { continue };
            if meta.is_dir() {
                open.push(entry.path());
            } else if entry.file_name() != "daemon" {
                bytes += meta.len();
            }
        }
    }
    Ok(bytes)
}

async fn cve_2020_8557_the_daemon_s_files_cannot_be_filled() -> Result<()> {
    let (node, client, sandbox, pod) = node("crun").await?;
    let reference = Crafted::configured(json!({})).import(&node, "fill").await?;
    let id = client.run(&pod, &idle(&sandbox, "fill", &reference), &sandbox).await?;
    let before = std::fs::metadata(node.world.seen(node.path("state")))?.len();
    let script = "for f in /etc/resolv.conf /etc/hostname /etc/hosts; do \
                  dd if=/dev/zero bs=1M count=8 2>/dev/null >>$f; done; ls -l /etc/resolv.conf /etc/hostname";
    client.exec(&id, script, 30).await?;
    let pod_files = node.world.seen(node.path(&format!("state/pods/{pod}")));
    for name in ["resolv.conf", "hostname"] {
        let size = std::fs::metadata(pod_files.join(name)).map_or(0, |meta| meta.len());
        ensure!(size < 1 << 16, "{name} of the pod has {size} bytes now");
    }
    ensure!(std::fs::metadata(node.world.seen(node.path("state")))?.len() == before);
    Ok(())
}

async fn cve_2023_2431_a_profile_that_is_not_there_is_no_freedom() -> Result<()> {
    let (node, client, sandbox, pod) = node("crun").await?;
    let reference = Crafted::configured(json!({})).import(&node, "profiles").await?;
    let folder = node.path("profiles");
    std::fs::create_dir(&folder)?;
    std::fs::write(folder.join("bad.json"), "{\"defaultAction\": ")?;
    std::fs::write(folder.join("empty.json"), "")?;
    let before = Ledger::take(&node).await?;
    let at = |name: &str| folder.join(name).to_string_lossy().into_owned();
    for profile in [String::new(), at("missing.json"), at(""), at("bad.json"), at("empty.json"), "relative.json".into()]
    {
        for deprecated in [false, true] {
            let mut config = idle(&sandbox, "profile", &reference);
            let own = security(&mut config);
            if deprecated {
                #[allow(deprecated)] // the field is what this case is about
                {
                    own.seccomp_profile_path = format!("localhost/{profile}");
                }
            } else {
                own.seccomp = Some(cri::SecurityProfile {
                    profile_type: cri::security_profile::ProfileType::Localhost.into(),
                    localhost_ref: profile.clone(),
                });
            }
            let outcome = attempt(&client, &pod, &sandbox, &config, "grep ^Seccomp: /proc/1/status").await?;
            ensure!(outcome.is_err(), "{profile:?} (deprecated: {deprecated}) runs: {outcome:?}");
        }
    }
    before.assert_same(&node).await
}

async fn cve_2024_3154_cve_2023_6476_cve_2025_24965_annotations_that_steer_a_runtime() -> Result<()> {
    let (node, client, ..) = node("crun").await?;
    let reference = Crafted::configured(json!({})).import(&node, "annotations").await?;
    let evil = [
        "org.systemd.property.ExecStopPost",
        "org.systemd.property.TimeoutStopUSec",
        "run.oci.handler",
        "run.oci.hooks.stdout",
        "run.oci.keep_original_groups",
        "run.oci.keep_original_groups/ctr",
        "org.criu.config",
        "krun.cpus",
        "module.wasm.image/variant",
        "io.kubernetes.cri.container-type",
        "io.kubernetes.cri-o.UnifiedCgroup",
        "io.kubernetes.cri-o.UnifiedCgroup/ctr",
        "run.oci.systemd.subgroup",
        "RUN.OCI.HANDLER",
        "run.oci./../handler",
    ];
    let annotations: std::collections::HashMap<_, _> =
        evil.iter().map(|key| ((*key).to_owned(), "evil".to_owned())).collect();
    let mut sandbox = host_pod(&node, "annotated");
    sandbox.annotations.clone_from(&annotations);
    let pod = client.run_pod(&sandbox).await?;
    let mut config = idle(&sandbox, "annotated", &reference);
    config.annotations.clone_from(&annotations);
    let id = client.run(&pod, &config, &sandbox).await?;
    let bundle = node.world.seen(node.path(&format!("state/k8s.io/{id}/config.json")));
    let text = std::fs::read_to_string(bundle)?;
    ensure!(!text.contains("evil"), "an annotation reached the runtime: {text}");
    // What was given comes back as it was given.
    let status = client.status(&id).await?;
    ensure!(status.annotations == annotations, "{:?}", status.annotations);
    Ok(())
}

async fn cve_2025_0750_paths_that_climb() -> Result<()> {
    let (node, client, sandbox, pod) = node("crun").await?;
    let reference = Crafted::configured(json!({})).import(&node, "logs").await?;
    let target = node.path("target");
    std::fs::write(&target, "before")?;
    let logs = std::path::PathBuf::from(&sandbox.log_directory);
    std::fs::create_dir_all(&logs)?;
    std::os::unix::fs::symlink(&target, logs.join("link.log"))?;
    std::os::unix::fs::symlink(node.world.folder(), logs.join("folder"))?;
    for path in ["../target", "/etc/target", "link.log", "folder/target", "a/../../target", "./../target"] {
        let mut config = container(&sandbox, "log", "echo written by the container; sleep 100000");
        config.image = Some(crate::requests::image(&reference));
        path.clone_into(&mut config.log_path);
        let _ = attempt(&client, &pod, &sandbox, &config, "true").await?;
        ensure!(std::fs::read_to_string(&target)? == "before", "{path}: the file was written to");
    }
    for (index, folder) in ["relative", "/tmp/../../etc/logs", ""].iter().enumerate() {
        let mut config = host_pod(&node, &format!("folder-{index}"));
        (*folder).clone_into(&mut config.log_directory);
        let made = client.run_pod(&config).await;
        ensure!(folder.is_empty() || made.is_err(), "log_directory {folder:?} is taken");
    }
    for uid in ["../../x", "a/b", "..", "x\0y"] {
        let mut config = host_pod(&node, "uid");
        config.metadata.get_or_insert_default().uid = uid.to_owned();
        // Legal or not, nothing is made at a path with it.
        if let Ok(id) = client.run_pod(&config).await {
            client.stop_pod(&id).await?;
            client.remove_pod(&id).await?;
        }
        ensure!(!node.path("x").exists() && !node.world.folder().join("root/x").exists(), "{uid:?}");
    }
    Ok(())
}

async fn ghsa_7ww5_4wqc_m92c_energy_counters() -> Result<()> {
    let (node, client, sandbox, pod) = node("crun").await?;
    let reference = Crafted::configured(json!({})).import(&node, "energy").await?;
    let mut config = idle(&sandbox, "energy", &reference);
    // The list of a kubelet that does not know of it yet.
    security(&mut config).masked_paths = ["/proc/kcore", "/sys/firmware"].map(str::to_owned).to_vec();
    let id = client.run(&pod, &config, &sandbox).await?;
    let seen = client.output(&id, "find /sys/devices/virtual/powercap -type f 2>/dev/null; echo end").await?;
    ensure!(seen == "end\n", "{seen}");
    let bundle = node.world.seen(node.path(&format!("state/k8s.io/{id}/config.json")));
    ensure!(std::fs::read_to_string(bundle)?.contains("/sys/devices/virtual/powercap"), "it is not masked");
    Ok(())
}
