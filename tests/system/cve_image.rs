//! Advisories in which an image's files or its configuration lead the daemon astray. Each test is named after one and
//! asserts what happened (who runs, what the host's files hold), never an error text alone. `tests/cves.md` has the list.

use anyhow::{Context as _, Result, ensure};
use cri_proto::runtime::v1 as cri;
use serde_json::json;
use tar::EntryType;

use crate::archive::Entry;
use crate::canary::{Canary, SECRET};
use crate::client::Client;
use crate::crafted::Crafted;
use crate::ledger::Ledger;
use crate::node::{Node, Setup};
use crate::requests::{container, host_pod, image, security};
use crate::world::{PATIENCE, World, eventually};

crate::per_runtime!(
    cve_2019_19921_cve_2023_27561_cve_2023_28642_system_folders_that_are_links,
    cve_2026_41579_cve_2026_47766_dev_that_is_a_link,
    cve_2024_5154_etc_that_is_a_link,
    cve_2025_31133_null_that_is_a_link,
    cve_2019_5736_nobody_overwrites_a_runtime
);
crate::once!(
    cve_2019_11245_the_image_s_user_stays,
    cve_2022_23648_volumes_stay_inside,
    cve_2022_4318_cve_2026_15809_home_with_a_line_break,
    cve_2023_25173_cve_2022_2995_the_primary_group_counts,
    cve_2024_40635_cve_2026_46680_numbers_are_never_names,
    cve_2024_21626_working_directories_stay_inside,
    cve_2025_23266_an_image_s_environment_stays_inside,
    cve_2026_47262_cve_2025_4437_cve_2024_9676_account_files_without_end,
    cve_2026_53488_labels_of_an_image_steer_nothing,
    cve_2026_55686_working_directories_are_made_inside
);

/// A node with one pod on the host's network, and no registry.
pub async fn node(runtime: &'static str) -> Result<(Node, Client, cri::PodSandboxConfig, String)> {
    let mut setup = Setup::new(runtime);
    setup.registry = false;
    let mut node = Node::start(Box::pin(World::new()).await?, setup).await?;
    let client = node.client().await?;
    let sandbox = host_pod(&node, "pod");
    let pod = client.run_pod(&sandbox).await?;
    Ok((node, client, sandbox, pod))
}

/// A container of a crafted image that stays.
pub fn idle(sandbox: &cri::PodSandboxConfig, name: &str, reference: &str) -> cri::ContainerConfig {
    cri::ContainerConfig { image: Some(image(reference)), ..container(sandbox, name, "sleep 100000") }
}

/// Runs a container of this image and returns what the script prints, or the refusal, whichever it comes to.
pub async fn attempt(
    client: &Client,
    pod: &str,
    sandbox: &cri::PodSandboxConfig,
    config: &cri::ContainerConfig,
    script: &str,
) -> Result<Result<String, tonic::Status>> {
    let id = match client.create(pod, config, sandbox).await {
        Ok(id) => id,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let outcome = match client.start(&id).await {
        Ok(()) => client.exec(&id, script, 20).await.map(|answer| {
            [answer.stdout, answer.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat()
        }),
        Err(refusal) => Err(refusal),
    };
    client.remove(&id).await?;
    Ok(outcome)
}

/// Each of these paths of the image is a link to the canary: whatever comes of it, the canary is neither seen nor touched.
async fn links_to_the_canary(runtime: &'static str, paths: &[&str]) -> Result<()> {
    let (node, client, sandbox, pod) = node(runtime).await?;
    let canary = Canary::new(&node)?;
    for (index, path) in paths.iter().enumerate() {
        let entry = Entry::symlink(path, canary.path());
        let name = format!("link-{index}");
        let reference = Crafted::with(vec![entry]).import(&node, &name).await.with_context(|| (*path).to_owned())?;
        let config = idle(&sandbox, &name, &reference);
        let script = format!("cat /{path}/secret /{path}/etc/passwd; : >/{path}/made; ls /{path}; ls -a / /etc");
        if let Ok(seen) = attempt(&client, &pod, &sandbox, &config, &script).await? {
            ensure!(!seen.contains(SECRET), "/{path}: the container sees the host: {seen}");
        }
        canary.assert_untouched().with_context(|| format!("/{path} is a link"))?;
    }
    Ok(())
}

async fn cve_2019_19921_cve_2023_27561_cve_2023_28642_system_folders_that_are_links(
    runtime: &'static str,
) -> Result<()> {
    Box::pin(links_to_the_canary(runtime, &["proc", "sys"])).await
}

async fn cve_2026_41579_cve_2026_47766_dev_that_is_a_link(runtime: &'static str) -> Result<()> {
    Box::pin(links_to_the_canary(runtime, &["dev"])).await
}

async fn cve_2024_5154_etc_that_is_a_link(runtime: &'static str) -> Result<()> {
    Box::pin(links_to_the_canary(runtime, &["etc", "etc/mtab", "run", "etc/resolv.conf", "etc/hostname"])).await
}

async fn cve_2025_31133_null_that_is_a_link(runtime: &'static str) -> Result<()> {
    let (node, client, sandbox, pod) = node(runtime).await?;
    let pattern = "/proc/sys/kernel/core_pattern";
    let before = std::fs::read(pattern)?;
    let layer = vec![Entry::folder("dev"), Entry::symlink("dev/null", pattern), Entry::file("masked", b"unmasked")];
    let reference = Crafted::with(layer).import(&node, "null").await?;
    let mut config = idle(&sandbox, "null", &reference);
    security(&mut config).masked_paths = ["/masked", "/proc/kcore"].map(str::to_owned).to_vec();
    let script = "cat /masked; readlink /dev/null; echo overwritten >/dev/null; echo overwritten >/masked";
    if let Ok(seen) = attempt(&client, &pod, &sandbox, &config, script).await? {
        ensure!(!seen.contains("unmasked"), "a masked path is readable: {seen}");
        ensure!(!seen.contains("core_pattern"), "the image's own /dev/null is in use: {seen}");
    }
    ensure!(std::fs::read(pattern)? == before, "the host's core_pattern changed");
    Ok(())
}

async fn cve_2019_5736_nobody_overwrites_a_runtime(runtime: &'static str) -> Result<()> {
    let (node, client, sandbox, pod) = node(runtime).await?;
    let binaries = ["/usr/bin/crun", "/usr/sbin/runc", env!("CARGO_BIN_EXE_cricket")];
    let sums = || binaries.map(|path| std::fs::read(path).map(|bytes| crate::archive::digest(&bytes)).ok());
    let before = sums();
    ensure!(before.iter().flatten().count() == 3, "not every runtime is where this test expects it: {before:?}");
    // Whoever is executed as this finds himself in /proc/self/exe, and tries to write to it.
    let evil = b"#!/proc/self/exe\n";
    let writer = b"#!/bin/sh\nfor p in /proc/[0-9]*/exe; do echo overwritten >\"$p\"; done 2>/dev/null; true\n";
    let layer = vec![Entry::file("evil", evil), Entry::file("writer", writer)];
    let reference = Crafted::with(layer).import(&node, "evil").await?;
    let id = client.run(&pod, &idle(&sandbox, "evil", &reference), &sandbox).await?;
    for command in ["/evil", "/writer"].repeat(10) {
        let request = cri::ExecSyncRequest { container_id: id.clone(), cmd: vec![command.to_owned(); 3], timeout: 20 };
        // Whatever it says: the binaries are what counts.
        let _ = client.runtime.clone().exec_sync(request).await;
    }
    let mut config = idle(&sandbox, "init", &reference);
    config.command = vec!["/evil".into(), "/evil".into()];
    let _ = attempt(&client, &pod, &sandbox, &config, "true").await?;
    ensure!(sums() == before, "a binary of the host changed");
    Ok(())
}

async fn cve_2019_11245_the_image_s_user_stays() -> Result<()> {
    let (mut node, client, sandbox, pod) = node("crun").await?;
    let crafted = Crafted::configured(json!({"User": "1234"}));
    let reference = crafted.import(&node, "user").await?;
    let whoami = async |client: &Client, name: &str| -> Result<()> {
        let id = client.run(&pod, &idle(&sandbox, name, &reference), &sandbox).await?;
        for script in ["id -u", "grep ^Uid: /proc/1/status"] {
            let seen = client.output(&id, script).await?;
            ensure!(seen.contains("1234"), "{name}: {script}: {seen}");
        }
        client.remove(&id).await?;
        Ok(())
    };
    Box::pin(whoami(&client, "first")).await?;
    Box::pin(whoami(&client, "second")).await?;
    let client = node.crash_and_restart().await?;
    Box::pin(whoami(&client, "after-a-restart")).await?;
    client.remove_image(&reference).await?;
    crafted.import(&node, "user").await?;
    Box::pin(whoami(&client, "after-a-re-import")).await
}

async fn cve_2022_23648_volumes_stay_inside() -> Result<()> {
    let (node, client, sandbox, pod) = node("crun").await?;
    let canary = Canary::new(&node)?;
    let up = format!("/../../../../../..{}", canary.path());
    let volumes = json!({"Volumes": {&up: {}, "/vol": {}, "/vol/deep": {}, "relative/../../..": {}}});
    let layer = vec![Entry::symlink("vol", canary.path())];
    let reference = Crafted::with(layer).and(volumes).import(&node, "volumes").await?;
    let script = format!("cat /vol/secret /vol/deep/* {0}/secret; ls /vol {0}; : >/vol/made", canary.path());
    if let Ok(seen) = attempt(&client, &pod, &sandbox, &idle(&sandbox, "volumes", &reference), &script).await? {
        ensure!(!seen.contains(SECRET), "a volume shows the host: {seen}");
    }
    canary.assert_untouched()
}

async fn cve_2022_4318_cve_2026_15809_home_with_a_line_break() -> Result<()> {
    let (node, client, sandbox, pod) = node("crun").await?;
    let line = "root2:x:0:0::/root:/bin/sh";
    let homes = ["/\n", "/\r", "/:0:0\n", "/\\n", "/\u{2028}", "/\u{85}"];
    for (index, start) in homes.iter().enumerate() {
        let home = format!("{start}{line}");
        let name = format!("home-{index}");
        let reference =
            Crafted::configured(json!({"Env": ["PATH=/bin", format!("HOME={home}")]})).import(&node, &name).await?;
        let plain = Crafted::configured(json!({})).import(&node, &format!("plain-{index}")).await?;
        let mut by_request = idle(&sandbox, &format!("request-{index}"), &plain);
        by_request.envs = vec![cri::KeyValue { key: "HOME".into(), value: home.clone().into_bytes() }];
        for mut config in [idle(&sandbox, &name, &reference), by_request] {
            // An id that no line of the image has: the peers then wrote one, with the home in it.
            security(&mut config).run_as_user = Some(cri::Int64Value { value: 4321 });
            let script = "id -u; grep -c root2 /etc/passwd; cut -d: -f3 /etc/passwd | grep -cx 0";
            if let Ok(seen) = attempt(&client, &pod, &sandbox, &config, script).await? {
                ensure!(seen.starts_with("4321\n0\n1\n"), "{home:?}: {seen:?}");
            }
        }
    }
    Ok(())
}

async fn cve_2023_25173_cve_2022_2995_the_primary_group_counts() -> Result<()> {
    let (node, client, sandbox, pod) = node("crun").await?;
    let layer = vec![Entry::file("guarded", b"for everyone but the group").owned(0o707, 0, 5555)];
    let reference = Crafted::with(layer).and(json!({"User": "1000:5555"})).import(&node, "groups").await?;
    let mut config = idle(&sandbox, "groups", &reference);
    config.command = ["sh", "-c", "cat /guarded; id -G; sleep 100000"].map(str::to_owned).to_vec();
    let id = client.run(&pod, &config, &sandbox).await?;
    let seen = client.exec(&id, "cat /guarded; id -G", 20).await?;
    let text = String::from_utf8_lossy(&seen.stdout);
    ensure!(!text.contains("everyone") && text.split_whitespace().any(|gid| gid == "5555"), "exec: {text}");
    let log = client.status(&id).await?.log_path;
    eventually("the container has spoken", PATIENCE, async || {
        let text = std::fs::read_to_string(&log)?;
        ensure!(text.contains("5555"), "not yet: {text}");
        Ok(())
    })
    .await?;
    let text = std::fs::read_to_string(&log)?;
    ensure!(!text.contains("everyone"), "init: {text}");
    let user = client.status(&id).await?.user.and_then(|user| user.linux).context("the status names a user")?;
    ensure!(user.supplemental_groups.contains(&5555), "{user:?}");
    Ok(())
}

async fn cve_2024_40635_cve_2026_46680_numbers_are_never_names() -> Result<()> {
    let (node, client, sandbox, pod) = node("crun").await?;
    let users = [
        "4294967296",
        "4294967295",
        "2147483648",
        "-1",
        "10000000000",
        "18446744073709551616",
        "0x0",
        "１",
        "1:4294967296",
        "99999999999999999999999999",
        "1e1",
        "+0",
    ];
    for (index, user) in users.iter().enumerate() {
        // The image says that this "name" is root.
        let name = user.split(':').next().unwrap_or(user);
        let passwd = format!("root:x:0:0::/:/bin/sh\n{name}:x:0:0::/:/bin/sh\n");
        let layer = vec![Entry::file("etc/passwd", passwd.as_bytes()).owned(0o644, 0, 0)];
        let crafted = Crafted::with(layer).and(json!({"User": user}));
        // Refused at the import, at the creation, or run as what it says: never as root.
        let Ok(reference) = crafted.import(&node, &format!("user-{index}")).await else { continue };
        let status = client.image_status(&reference).await?.context("imported")?;
        let mut config = idle(&sandbox, &format!("user-{index}"), &reference);
        config.command = ["sh", "-c", "sleep 100000"].map(str::to_owned).to_vec();
        let outcome = attempt(&client, &pod, &sandbox, &config, "id -u").await?;
        // A text with something else than digits in it is a name, and this image may well call its root that.
        let is_name = !name.bytes().all(|byte| byte.is_ascii_digit());
        match outcome {
            Ok(seen) if is_name => {
                ensure!(status.username == name && status.uid.is_none(), "{user}: {status:?} runs as {seen}");
            }
            Ok(seen) => ensure!(seen.trim() == name, "{user} runs as {seen}"),
            Err(_) => {}
        }
    }
    ensure!(client.containers().await?.is_empty());
    Ok(())
}

async fn cve_2024_21626_working_directories_stay_inside() -> Result<()> {
    let (node, client, sandbox, pod) = node("crun").await?;
    let canary = Canary::new(&node)?;
    let up = format!("../../../../../../..{}", canary.path());
    let places = (3..=12).map(|fd| format!("/proc/self/fd/{fd}")).chain(
        ["/proc/1/cwd", "/proc/1/root", "/proc/thread-self/cwd", "/dev/fd/8", "proc/self/fd/7"].map(str::to_owned),
    );
    for (index, place) in places.enumerate() {
        let name = format!("cwd-{index}");
        let reference = Crafted::configured(json!({"WorkingDir": place})).import(&node, &name).await?;
        let config = idle(&sandbox, &name, &reference);
        let script = format!("pwd; ls -a; cat {up}/secret; cat {0}/secret", canary.path());
        if let Ok(seen) = attempt(&client, &pod, &sandbox, &config, &script).await? {
            ensure!(!seen.contains(SECRET), "{place}: {seen}");
        }
    }
    // Nothing is open in a container but its three streams.
    let plain = Crafted::configured(json!({})).import(&node, "plain").await?;
    let mut config = idle(&sandbox, "descriptors", &plain);
    config.command = ["sh", "-c", "ls -l /proc/$$/fd; echo listed; sleep 100000"].map(str::to_owned).to_vec();
    let id = client.run(&pod, &config, &sandbox).await?;
    for script in ["ls /proc/1/fd; true", "ls /proc/$$/fd; true"] {
        let seen = client.output(&id, script).await?;
        let numbers: Vec<_> = seen.split_whitespace().filter(|fd| !["0", "1", "2"].contains(fd)).collect();
        ensure!(numbers.is_empty(), "{script}: descriptors {numbers:?}");
    }
    canary.assert_untouched()
}

async fn cve_2025_23266_an_image_s_environment_stays_inside() -> Result<()> {
    let world = Box::pin(World::new()).await?;
    let wrapper = world.folder().join("noting-runtime");
    let notes = world.folder().join("notes");
    let script = format!("#!/bin/sh\nenv >>{0}; pwd >>{0}\nexec crun \"$@\"\n", notes.display());
    std::fs::write(&wrapper, script)?;
    std::fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let mut setup = Setup::new("crun");
    setup.registry = false;
    setup.handlers = vec![("noting".to_owned(), wrapper)];
    let mut node = Node::start(world, setup).await?;
    let client = node.client().await?;
    let sandbox = host_pod(&node, "pod");
    let pod = client.run_pod_with(&sandbox, "noting").await?;
    let env = json!({"Env": ["PATH=/bin", "LD_PRELOAD=/evil.so", "BASH_ENV=/evil.sh", "CANARY=sings"]});
    let reference = Crafted::configured(env).import(&node, "preload").await?;
    let mut config = idle(&sandbox, "preload", &reference);
    config.envs = vec![cri::KeyValue { key: "REQUESTED".into(), value: b"sings".to_vec() }];
    let id = client.run(&pod, &config, &sandbox).await?;
    client.output(&id, "true").await?;
    client.remove(&id).await?;
    let notes = std::fs::read_to_string(notes).context("the runtime was never called")?;
    for line in notes.lines().filter(|line| !line.starts_with('/')) {
        let name = line.split('=').next().unwrap_or(line);
        // The last three are the shell's own.
        ensure!(["PATH", "PWD", "SHLVL", "_"].contains(&name), "the runtime was given {line:?}");
    }
    ensure!(notes.contains("PATH="), "nothing was noted: {notes}");
    Ok(())
}

async fn cve_2026_47262_cve_2025_4437_cve_2024_9676_account_files_without_end() -> Result<()> {
    let (node, client, sandbox, pod) = node("crun").await?;
    let canary = Canary::new(&node)?;
    let secret = format!("{}/etc/passwd", canary.path());
    let long = vec![b'x'; 64 << 20];
    let cases = [
        ("one line of 64 MiB", Entry::file("etc/group", &long)),
        ("passwd of 64 MiB", Entry::file("etc/passwd", &long)),
        ("a FIFO", Entry::new(EntryType::Fifo, "etc/passwd", "", b"")),
        ("a folder", Entry::folder("etc/group/deep")),
        ("a link to /dev/zero", Entry::symlink("etc/group", "/dev/zero")),
        ("a link to a file of the host", Entry::symlink("etc/passwd", &secret)),
        ("a link that climbs", Entry::symlink("etc/passwd", "../../../../../../../etc/shadow")),
        ("a link to itself", Entry::symlink("etc/group", "group")),
    ];
    for (index, (what, entry)) in cases.into_iter().enumerate() {
        let name = format!("accounts-{index}");
        let reference = Crafted::with(vec![entry]).import(&node, &name).await.context(what)?;
        let mut config = idle(&sandbox, &name, &reference);
        security(&mut config).run_as_user = Some(cri::Int64Value { value: 1000 });
        let before = memory(&node)?;
        // Whoever waits for a FIFO's writer or reads /dev/zero never comes back.
        let attempt = attempt(&client, &pod, &sandbox, &config, "id -u; id -G");
        let outcome = tokio::time::timeout(PATIENCE, attempt).await.with_context(|| format!("{what}: hangs"))??;
        if let Ok(seen) = outcome {
            ensure!(seen.starts_with("1000\n"), "{what}: {seen}");
        }
        let grown = memory(&node)?.saturating_sub(before);
        ensure!(grown < 16 << 20, "{what}: the daemon grew by {grown} bytes");
    }
    canary.assert_untouched()
}

/// The daemon's resident memory, in bytes.
pub fn memory(node: &Node) -> Result<u64> {
    let status = std::fs::read_to_string(node.world.seen(format!("/proc/{}/status", node.daemon_pid()?)))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

async fn cve_2026_53488_labels_of_an_image_steer_nothing() -> Result<()> {
    let (node, client, sandbox, pod) = node("crun").await?;
    let keys = [
        "io.kubernetes.container.name",
        "io.kubernetes.pod.uid",
        "io.kubernetes.cri.container-type",
        "io.containerd.runtime",
        "containerd.io/restart.loguri",
        "containerd.io/restart.status",
        "io.cricket.log",
        "run.oci.handler",
        "run.oci.hooks.stdout",
        "org.systemd.property.ExecStopPost",
        "org.criu.config",
        "module.wasm.image/variant",
        "log_path",
        "cdi.k8s.io/x",
    ];
    let evil: serde_json::Map<_, _> =
        keys.iter().map(|key| ((*key).to_owned(), json!("binary:///bin/sh?-c=evil"))).collect();
    let labelled = Crafted::configured(json!({"Labels": evil})).import(&node, "labelled").await?;
    let plain = Crafted::configured(json!({})).import(&node, "plain").await?;
    let mut seen = Vec::new();
    for reference in [&labelled, &plain] {
        let id = client.run(&pod, &idle(&sandbox, "same", reference), &sandbox).await?;
        let status = client.status(&id).await?;
        let listed = client.containers().await?;
        let bundle = node.world.seen(node.path(&format!("state/k8s.io/{id}/config.json")));
        let spec: serde_json::Value = serde_json::from_slice(&std::fs::read(bundle)?)?;
        let record = std::fs::read_to_string(node.world.seen(node.path(&format!("root/pods/{id}.json"))))?;
        ensure!(!record.contains("evil") && !spec.to_string().contains("evil"), "a label came through");
        seen.push((status.labels, status.annotations, listed[0].labels.clone(), spec["annotations"].clone()));
        client.remove(&id).await?;
    }
    ensure!(seen[0] == seen[1], "with labels {:?}, without {:?}", seen[0], seen[1]);
    Ok(())
}

async fn cve_2026_55686_working_directories_are_made_inside() -> Result<()> {
    let (node, client, sandbox, pod) = node("crun").await?;
    let canary = Canary::new(&node)?;
    let layer = vec![Entry::symlink("work", canary.path())];
    let reference = Crafted::with(layer).and(json!({"WorkingDir": "/work/new/deep"})).import(&node, "cwd").await?;
    let before = Ledger::take(&node).await?;
    for (name, cwd) in [("by-image", ""), ("by-request", "/work/other/deep"), ("existing", "/work/empty")] {
        let mut config = idle(&sandbox, name, &reference);
        cwd.clone_into(&mut config.working_dir);
        let _ = attempt(&client, &pod, &sandbox, &config, "pwd; touch made").await?;
        canary.assert_untouched().context(name)?;
    }
    before.assert_same(&node).await?;
    // The control: a working directory that is not there is made, in the container.
    let plain = Crafted::configured(json!({"WorkingDir": "/made/for/me"})).import(&node, "plain").await?;
    let id = client.run(&pod, &idle(&sandbox, "control", &plain), &sandbox).await?;
    ensure!(client.output(&id, "pwd").await? == "/made/for/me\n");
    Ok(())
}
