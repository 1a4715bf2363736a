//! What CDI devices change in a spec. The files that say so are the administrator's; a request only names devices.
//!
//! These are the only hooks that a spec ever has. A hook runs as root, outside of the container or half inside of it, so it
//! has an environment of its own and never the container's or the daemon's: an image's `LD_PRELOAD` must not come to act
//! on the host (CVE-2025-23266).

use oci_spec::runtime::{Hook, Hooks, LinuxDevice, LinuxDeviceCgroup, LinuxIntelRdt, Mount};

use super::devices::{kind, rule};
use super::mounts::oci_mount;
use super::user::Identity;
use crate::devices::DeviceKind;
use crate::devices::cdi::{self, HookPoint, Injection};

/// Where a hook without a PATH of its own looks for programs.
const HOOK_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The mode of a node whose file says none: the runtimes' own default.
const NODE_MODE: u32 = 0o666;

/// Adds the mounts, in the place of those at the same path; parents stay before what is mounted below them.
pub(super) fn mounts(injection: &Injection, list: &mut Vec<Mount>) {
    if injection.mounts.is_empty() {
        return;
    }
    for mount in &injection.mounts {
        list.retain(|other| *other.destination() != mount.target);
        let options: Vec<&str> = mount.options.iter().map(String::as_str).collect();
        let bind = options.iter().any(|option| matches!(*option, "bind" | "rbind"));
        let kind = if mount.kind.is_empty() && bind { "bind" } else { &mount.kind };
        list.push(oci_mount(kind, &mount.source, &mount.target, &options));
    }
    list.sort_by_key(|mount| mount.destination().components().count());
}

/// Adds the nodes, in the place of those at the same path, and what may be done with them. A node without an owner belongs
/// to the container's user, who would not get at it otherwise.
pub(super) fn devices(
    injection: &Injection,
    who: &Identity,
    nodes: &mut Vec<LinuxDevice>,
    rules: &mut Vec<LinuxDeviceCgroup>,
) {
    for node in &injection.nodes {
        nodes.retain(|other| *other.path() != node.path);
        let mut device = LinuxDevice::default();
        device
            .set_path(node.path.clone())
            .set_typ(kind(node.kind))
            .set_major(i64::from(node.major))
            .set_minor(i64::from(node.minor))
            .set_file_mode(Some(node.mode.unwrap_or(NODE_MODE)))
            .set_uid(Some(node.uid.unwrap_or(who.uid)))
            .set_gid(Some(node.gid.unwrap_or(who.gid)));
        nodes.push(device);
        // A rule without access would allow nothing, and some runtimes read it as "everything".
        if node.kind != DeviceKind::Fifo && !node.access.is_empty() {
            let numbers = (i64::from(node.major), i64::from(node.minor));
            rules.push(rule(true, Some(kind(node.kind)), Some(numbers), &node.access));
        }
    }
}

/// Adds the groups.
pub(super) fn groups(injection: &Injection, who: &mut Identity) {
    for gid in &injection.additional_gids {
        if !who.groups.contains(gid) {
            who.groups.push(*gid);
        }
    }
}

/// The hooks; `None` when there are none.
pub(super) fn hooks(injection: &Injection) -> Option<Hooks> {
    if injection.hooks.is_empty() {
        return None;
    }
    let at = |point: HookPoint| {
        let list: Vec<Hook> = injection.hooks.iter().filter(|hook| hook.point == point).map(hook).collect();
        (!list.is_empty()).then_some(list)
    };
    let mut hooks = Hooks::default();
    #[allow(deprecated)] // vendors' files still have prestart hooks, and every runtime runs them
    hooks.set_prestart(at(HookPoint::Prestart));
    hooks
        .set_create_runtime(at(HookPoint::CreateRuntime))
        .set_create_container(at(HookPoint::CreateContainer))
        .set_start_container(at(HookPoint::StartContainer))
        .set_poststart(at(HookPoint::Poststart))
        .set_poststop(at(HookPoint::Poststop));
    Some(hooks)
}

/// The environment is never left out: a runtime would then hand its own on, or the container's.
fn hook(asked: &cdi::Hook) -> Hook {
    let mut env = asked.env.clone();
    if !env.iter().any(|entry| entry.starts_with("PATH=")) {
        env.push(HOOK_PATH.to_owned());
    }
    let mut hook = Hook::default();
    hook.set_path(asked.path.clone())
        .set_args((!asked.args.is_empty()).then(|| asked.args.clone()))
        .set_env(Some(env))
        .set_timeout(asked.timeout);
    hook
}

pub(super) fn intel_rdt(injection: &Injection) -> Option<LinuxIntelRdt> {
    let asked = injection.rdt.as_ref()?;
    let mut rdt = LinuxIntelRdt::default();
    rdt.set_clos_id(asked.clos_id.clone())
        .set_l3_cache_schema(asked.l3_cache_schema.clone())
        .set_mem_bw_schema(asked.mem_bw_schema.clone());
    #[allow(deprecated)] // CDI before 1.1.0 has them, and so has the version of our specs
    rdt.set_enable_cmt(asked.enable_cmt).set_enable_mbm(asked.enable_mbm);
    Some(rdt)
}
