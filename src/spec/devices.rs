//! Device nodes, and the rules of what may be done with them.

use std::collections::BTreeMap;
use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use super::mounts::clean;
use super::{Asked, SpecInput};
use crate::devices::{DeviceKind, DeviceNode};

/// The nodes and the device rules. The first rule denies everything, so that the list is one of what is allowed and not of
/// what is forbidden (GHSA-g54h-m393-cpwq); the runtime itself adds `/dev/null` and its kin. A privileged container may do
/// everything with every node of the host, unless its handler says `privileged_without_host_devices`.
pub(super) fn devices(input: &SpecInput<'_>, asked: &Asked<'_>) -> (Vec<LinuxDevice>, Vec<LinuxDeviceCgroup>) {
    let mut nodes: BTreeMap<&Path, &DeviceNode> = BTreeMap::new();
    let all = asked.privileged && !input.handler.privileged_without_host_devices;
    if all {
        // A request that mounts its own /dev has the nodes there, and that may be the host's /dev: none is made in it.
        let own_dev = input.config.mounts.iter().any(|mount| clean(&mount.container_path) == Path::new("/dev"));
        let made = input.host.devices.iter().filter(|node| !own_dev || !node.path.starts_with("/dev"));
        nodes.extend(made.map(|node| (node.path.as_path(), node)));
    }
    nodes.extend(input.devices.iter().map(|device| (device.node.path.as_path(), &device.node)));
    let nodes = nodes.into_values().map(to_oci).collect();
    let mut rules = vec![rule(all, None, None, "rwm")];
    if !all {
        rules.extend(input.devices.iter().map(|device| {
            let numbers = (i64::from(device.node.major), i64::from(device.node.minor));
            rule(true, Some(kind(device.node.kind)), Some(numbers), &device.access)
        }));
    }
    (nodes, rules)
}

pub(super) fn kind(kind: DeviceKind) -> LinuxDeviceType {
    match kind {
        DeviceKind::Char => LinuxDeviceType::C,
        DeviceKind::Block => LinuxDeviceType::B,
        DeviceKind::Fifo => LinuxDeviceType::P,
    }
}

fn to_oci(node: &DeviceNode) -> LinuxDevice {
    let mut device = LinuxDevice::default();
    device
        .set_path(node.path.clone())
        .set_typ(kind(node.kind))
        .set_major(i64::from(node.major))
        .set_minor(i64::from(node.minor))
        .set_file_mode(Some(node.mode))
        .set_uid(Some(node.uid))
        .set_gid(Some(node.gid));
    device
}

pub(super) fn rule(
    allow: bool,
    kind: Option<LinuxDeviceType>,
    numbers: Option<(i64, i64)>,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow)
        .set_typ(kind)
        .set_major(numbers.map(|(major, _)| major))
        .set_minor(numbers.map(|(_, minor)| minor))
        .set_access(Some(access.to_owned()));
    rule
}
