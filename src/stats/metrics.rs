//! Metrics by the names and labels that cAdvisor has made common, so that dashboards need no change.
//!
//! One table (`FAMILIES`) says what there is: descriptors and values come from the same row, so a value can never have
//! other labels than its descriptor. Only what cricket measures is in it. The contract's values are whole numbers: seconds
//! are cut to whole seconds.

use std::sync::Arc;

use cri_proto::runtime::v1 as cri;

use super::{DeviceIo, DiskUse, Interface, Memory, Pressure, Sample, Usage};
use crate::sys::cgroup::CgroupVersion;

mod table;

use table::FAMILIES;

/// Labels that every metric begins with, in this order.
pub const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// Whose metrics they are: the values of [`LABELS`]. A pod's own have no container, image or name.
#[derive(Debug, Clone, Default)]
pub struct Labels {
    pub container: String,
    /// The cgroup, or nothing for a pod without one of its own.
    pub id: String,
    pub image: String,
    /// The container's id.
    pub name: String,
    pub namespace: String,
    pub pod: String,
}

/// What the metrics of one container or pod are made of.
#[derive(Debug)]
pub struct Subject<'a> {
    pub labels: Labels,
    pub sample: &'a Sample,
    /// Absent for a pod.
    pub container: Option<ContainerFacts<'a>>,
    /// The name of a block device.
    pub device: &'a dyn DeviceNames,
}

/// What is known of a container without reading its cgroup.
#[derive(Debug, Clone, Default)]
pub struct ContainerFacts<'a> {
    /// The limits that were asked for.
    pub resources: Option<&'a cri::LinuxContainerResources>,
    /// Nanoseconds since 1970.
    pub started_at: i64,
    pub disk: Option<DiskUse>,
    /// The device on which its writable layer lies.
    pub disk_device: &'a str,
}

/// Names of block devices by number.
pub trait DeviceNames: std::fmt::Debug + Sync {
    /// `/dev/sda`, say.
    fn name(&self, device: (u32, u32)) -> Arc<str>;
}

impl DeviceNames for super::Sampler {
    fn name(&self, device: (u32, u32)) -> Arc<str> {
        self.device_name(device)
    }
}

/// Takes one value of a family: those of its labels that come after [`LABELS`], and the number.
type Emit<'a> = dyn FnMut(&[&str], u64) + 'a;

/// All metrics of one name.
struct Family {
    name: &'static str,
    help: &'static str,
    kind: cri::MetricType,
    /// After [`LABELS`].
    labels: &'static [&'static str],
    /// Only where the kernel counts it.
    only: Option<CgroupVersion>,
    values: fn(&Subject<'_>, &mut Emit<'_>),
}

fn families(version: CgroupVersion) -> impl Iterator<Item = &'static Family> {
    FAMILIES.iter().filter(move |family| family.only.is_none_or(|only| only == version))
}

/// The metrics that there are on a machine with this version of cgroups.
#[must_use]
pub fn descriptors(version: CgroupVersion) -> Vec<cri::MetricDescriptor> {
    let descriptor = |family: &Family| cri::MetricDescriptor {
        name: family.name.to_owned(),
        help: family.help.to_owned(),
        label_keys: LABELS.iter().chain(family.labels).map(|label| (*label).to_owned()).collect(),
    };
    families(version).map(descriptor).collect()
}

/// The metrics of one container or pod: every value that is known.
#[must_use]
pub fn metrics(version: CgroupVersion, subject: &Subject<'_>) -> Vec<cri::Metric> {
    let Labels { container, id, image, name, namespace, pod } = &subject.labels;
    let common = [container, id, image, name, namespace, pod];
    let mut found = Vec::new();
    for family in families(version) {
        let mut emit = |labels: &[&str], value: u64| {
            let labels = common.iter().map(|label| (*label).clone()).chain(labels.iter().map(|l| (*l).to_owned()));
            found.push(cri::Metric {
                name: family.name.to_owned(),
                timestamp: subject.sample.timestamp,
                metric_type: family.kind.into(),
                label_values: labels.collect(),
                value: Some(cri::UInt64Value { value }),
            });
        };
        (family.values)(subject, &mut emit);
    }
    found
}

#[cfg(test)]
mod tests;
