//! Security contexts by their effect in real containers: who runs, with which rights, and what the kernel keeps from it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use cri_proto::runtime::v1 as cri;

use crate::client::Client;
use crate::node::Node;
use crate::requests::{BUSYBOX, container, host_pod, image, security};

crate::per_runtime!(who_runs, capabilities, seccomp_profiles, limits_and_signals);

const STAGING: &str = "gcr.io/k8s-staging-cri-tools";

struct Place {
    node: Node,
    client: Client,
    sandbox: cri::PodSandboxConfig,
    pod: String,
}

async fn place(runtime: &'static str) -> Result<Place> {
    let mut node = Node::new(runtime).await?;
    let client = node.client().await?;
    client.pull(BUSYBOX).await?;
    let mut sandbox = host_pod(&node, "security");
    sandbox.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    let pod = client.run_pod(&sandbox).await?;
    Ok(Place { node, client, sandbox, pod })
}

/// The lines of a process's status file.
struct Process(BTreeMap<String, String>);

impl Process {
    fn read(text: &str) -> Self {
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        Self(lines.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect())
    }

    fn text(&self, key: &str) -> Result<&str> {
        Ok(self.0.get(key).with_context(|| format!("no {key}"))?)
    }

    fn mask(&self, key: &str) -> Result<u64> {
        Ok(u64::from_str_radix(self.text(key)?, 16)?)
    }
}

impl Place {
    /// Runs a container; gives back its id, and the status of its first process and of an exec's.
    async fn run(&self, config: &cri::ContainerConfig) -> Result<(String, [Process; 2])> {
        let id = self.client.run(&self.pod, config, &self.sandbox).await?;
        let first = self.client.output(&id, "cat /proc/1/status").await?;
        let second = self.client.output(&id, "cat /proc/self/status").await?;
        Ok((id, [Process::read(&first), Process::read(&second)]))
    }

    fn config(&self, name: &str) -> cri::ContainerConfig {
        container(&self.sandbox, name, "sleep 100000")
    }
}

type Change = fn(&mut cri::LinuxContainerSecurityContext);

async fn who_runs(runtime: &'static str) -> Result<()> {
    let place = place(runtime).await?;
    let user = |name: &str| format!("{STAGING}/test-image-user-{name}");
    let predefined = format!("{STAGING}/test-image-predefined-group");
    // Image; change; uid, gid, and the supplementary groups beside the primary one.
    let cases: [(String, Change, u32, u32, &[u32]); 9] = [
        (user("uid"), |_| {}, 1002, 0, &[]),
        (user("username"), |_| {}, 33, 33, &[]),
        (user("uid-group"), |_| {}, 1003, 1004, &[]),
        (user("username-group"), |_| {}, 33, 1004, &[]),
        // Another user than the image's does not get the image's group.
        (user("uid-group"), |s| s.run_as_user = Some(cri::Int64Value { value: 7777 }), 7777, 0, &[]),
        (BUSYBOX.to_owned(), |s| s.run_as_username = "www-data".into(), 33, 33, &[]),
        (
            BUSYBOX.to_owned(),
            |s| {
                s.run_as_username = "www-data".into();
                s.run_as_group = Some(cri::Int64Value { value: 4000 });
            },
            33,
            4000,
            &[],
        ),
        (predefined.clone(), |s| s.supplemental_groups = vec![1234], 1000, 1000, &[1234, 50000]),
        (
            predefined,
            |s| {
                s.supplemental_groups = vec![1234];
                s.supplemental_groups_policy = cri::SupplementalGroupsPolicy::Strict.into();
            },
            1000,
            1000,
            &[1234],
        ),
    ];
    for (index, (name, change, uid, gid, groups)) in cases.into_iter().enumerate() {
        place.client.pull(&name).await?;
        let mut config = place.config(&format!("who-{index}"));
        config.image = Some(image(&name));
        change(security(&mut config));
        let (id, processes) = place.run(&config).await?;
        let mut want: Vec<u32> = groups.iter().copied().chain([gid]).collect();
        want.sort_unstable();
        for process in &processes {
            let ids = |key| anyhow::Ok(process.text(key)?.split_whitespace().next().unwrap_or_default().to_owned());
            let mut seen: Vec<u32> = process.text("Groups")?.split(' ').filter_map(|g| g.parse().ok()).collect();
            seen.sort_unstable();
            let same = ids("Uid")? == uid.to_string() && ids("Gid")? == gid.to_string() && seen == want;
            ensure!(same, "case {index}, {name}: {} {} {seen:?}, not {uid} {gid} {want:?}", ids("Uid")?, ids("Gid")?);
        }
        let shown = place.client.status(&id).await?.user.and_then(|user| user.linux).context("no user")?;
        let mut groups: Vec<_> = shown.supplemental_groups.iter().map(|gid| gid.unsigned_abs()).collect();
        groups.sort_unstable();
        let same = shown.uid == i64::from(uid) && shown.gid == i64::from(gid);
        ensure!(same && groups.iter().copied().eq(want.iter().copied().map(u64::from)), "case {index}: {shown:?}");
        place.client.remove(&id).await?;
    }
    Ok(())
}

const NET_BIND_SERVICE: u64 = 1 << 10;
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;
/// What Docker has given since its beginnings: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP,
/// NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP.
const DEFAULT: u64 = 0xa804_25fb;

async fn capabilities(runtime: &'static str) -> Result<()> {
    let place = place(runtime).await?;
    let daemon = place.node.daemon_pid()?;
    let own = std::fs::read_to_string(place.node.world.seen(format!("/proc/{daemon}/status")))?;
    let own = Process::read(&own);
    let held = own.mask("CapPrm")? & own.mask("CapBnd")?;
    let caps = |add: &[&str], drop: &[&str], ambient: &[&str]| {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        cri::Capability {
            add_capabilities: list(add),
            drop_capabilities: list(drop),
            add_ambient_capabilities: list(ambient),
        }
    };
    // Request, user, privileged; effective, ambient and inheritable, bounding.
    let cases = [
        (caps(&[], &[], &[]), 0, false, DEFAULT & held, 0, DEFAULT & held),
        (caps(&[], &["ALL"], &[]), 0, false, 0, 0, 0),
        (caps(&["NET_BIND_SERVICE"], &["ALL"], &[]), 0, false, NET_BIND_SERVICE, 0, NET_BIND_SERVICE),
        (caps(&["ALL"], &["CAP_NET_RAW"], &[]), 0, false, held & !NET_RAW, 0, held & !NET_RAW),
        (caps(&[], &[], &[]), 1000, false, 0, 0, DEFAULT & held),
        (caps(&["NET_ADMIN"], &[], &["NET_ADMIN"]), 1000, false, NET_ADMIN, NET_ADMIN, (DEFAULT | NET_ADMIN) & held),
        (caps(&[], &["ALL"], &[]), 0, true, held, 0, held),
    ];
    for (index, (request, uid, privileged, effective, ambient, bounding)) in cases.into_iter().enumerate() {
        let mut config = place.config(&format!("caps-{index}"));
        let context = security(&mut config);
        context.capabilities = Some(request);
        context.run_as_user = Some(cri::Int64Value { value: uid });
        context.privileged = privileged;
        let (id, processes) = place.run(&config).await?;
        for (which, process) in processes.iter().enumerate() {
            let seen =
                [process.mask("CapEff")?, process.mask("CapAmb")?, process.mask("CapInh")?, process.mask("CapBnd")?];
            let want = [effective, ambient, ambient, bounding];
            ensure!(seen == want, "case {index}, process {which}: {seen:x?}, not {want:x?}");
        }
        place.client.remove(&id).await?;
    }
    Ok(())
}

async fn seccomp_profiles(runtime: &'static str) -> Result<()> {
    let place = place(runtime).await?;
    let strict = place.node.path("no-mkdir.json");
    let rules = r#"{"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}]}"#;
    std::fs::write(&strict, rules)?;
    let strict = strict.to_string_lossy().into_owned();
    let profile = |kind: cri::security_profile::ProfileType, path: &str| cri::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: path.to_owned(),
    };
    use cri::security_profile::ProfileType::{Localhost, RuntimeDefault, Unconfined};
    // Profile, no_new_privs, privileged; the mode that the kernel shows (2 is a filter), and whether mkdir works.
    let cases = [
        (None, false, false, "0", true),
        (Some(profile(Unconfined, "")), true, false, "0", true),
        (Some(profile(RuntimeDefault, "")), false, false, "2", true),
        (Some(profile(RuntimeDefault, "")), true, false, "2", true),
        (Some(profile(RuntimeDefault, "")), false, true, "0", true),
        (Some(profile(Localhost, &strict)), false, false, "2", false),
    ];
    for (index, (profile, no_new_privs, privileged, mode, may)) in cases.into_iter().enumerate() {
        let mut config = place.config(&format!("seccomp-{index}"));
        let context = security(&mut config);
        (context.seccomp, context.no_new_privs, context.privileged) = (profile, no_new_privs, privileged);
        let (id, processes) = place.run(&config).await?;
        for (which, process) in processes.iter().enumerate() {
            let seen = (process.text("Seccomp")?, process.text("NoNewPrivs")?);
            let want = (mode, if no_new_privs { "1" } else { "0" });
            ensure!(seen == want, "case {index}, process {which}: {seen:?}, not {want:?}");
        }
        let made = place.client.exec(&id, "mkdir /made", 0).await?;
        ensure!((made.exit_code == 0) == may, "case {index}: {:?}", String::from_utf8_lossy(&made.stderr));
        place.client.remove(&id).await?;
    }
    // The container that asked for the impossible is not made, and above all not unconfined.
    for path in ["", "relative.json", "/no/such/profile.json", "/etc"] {
        let mut config = place.config("refused");
        security(&mut config).seccomp = Some(profile(Localhost, path));
        let answer = place.client.create(&place.pod, &config, &place.sandbox).await;
        crate::client::refused(answer, &[tonic::Code::InvalidArgument], &[path])?;
    }
    ensure!(place.client.containers().await?.is_empty());
    Ok(())
}

async fn limits_and_signals(runtime: &'static str) -> Result<()> {
    let place = place(runtime).await?;
    let mut config = container(&place.sandbox, "signals", "trap 'exit 42' USR1; while :; do sleep 0.1; done");
    config.stop_signal = cri::Signal::Sigusr1.into();
    crate::requests::resources(&mut config).oom_score_adj = 500;
    let id = place.client.run(&place.pod, &config, &place.sandbox).await?;
    let seen = place.client.output(&id, "cat /proc/1/oom_score_adj; ulimit -n; ulimit -c").await?;
    let lines: Vec<_> = seen.lines().collect();
    ensure!(lines[0] == "500", "oom_score_adj: {seen}");
    ensure!(lines[1].parse::<u64>().is_ok_and(|files| files >= 1024), "open files: {seen}");
    ensure!(place.client.status(&id).await?.stop_signal() == cri::Signal::Sigusr1);
    place.client.stop(&id, 60).await?;
    let status = place.client.status(&id).await?;
    ensure!(status.exit_code == 42, "the container got another signal: {status:?}");
    // One that the daemon may not give is brought up to what it may, not refused.
    let mut config = place.config("precious");
    crate::requests::resources(&mut config).oom_score_adj = -999;
    let id = place.client.run(&place.pod, &config, &place.sandbox).await?;
    let given: i32 = place.client.output(&id, "cat /proc/1/oom_score_adj").await?.trim().parse()?;
    ensure!((-999..=0).contains(&given), "oom_score_adj {given}");
    Ok(())
}
