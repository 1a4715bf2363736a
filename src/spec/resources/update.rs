//! UpdateContainerResources: from the limits in force and a request to the limits after it, and to what the runtime is told.

use cri_proto::runtime::v1 as cri;
use oci_spec::runtime::LinuxResources;

use super::{ResourceError, to_oci_resources};
use crate::spec::HostFacts;

/// A change of a container's limits that is legal.
#[derive(Debug, Clone, PartialEq)]
pub struct ResourceUpdate {
    /// The limits after it, in the words of the requests: what ContainerStatus shows from then on.
    pub after: cri::LinuxContainerResources,
    /// What the runtime is told: the fields of the request, each with the one that it depends on (a quota with its period,
    /// memory with swap). `None` when the request asks for nothing.
    pub told: Option<LinuxResources>,
    /// The same of the limits in force before, with "no limit" where there was none.
    pub undo: LinuxResources,
}

impl ResourceUpdate {
    /// Merges a request into the limits in force. A zero or an empty field of the request leaves a limit as it is, as does
    /// a page size or a unified key that it does not name. `oom_score_adj` is a property of processes, not of the cgroup:
    /// it stays what it was, whatever is asked, as it does with the peers.
    ///
    /// # Errors
    /// [`ResourceError`] when the request, or what comes out together with the limits in force, is not legal.
    pub fn new(
        current: &cri::LinuxContainerResources,
        request: &cri::LinuxContainerResources,
        host: &HostFacts,
    ) -> Result<Self, ResourceError> {
        let after = merged(current, request);
        // What was in force is legal, so only what the request brings can fail here.
        to_oci_resources(&after, host)?;
        let told = to_oci_resources(&part(&after, request), host)?;
        let undo = to_oci_resources(&unlimited_where_unset(part(current, request), request), host)?;
        let told = Some(told).filter(|told| *told != LinuxResources::default());
        Ok(Self { after, told, undo })
    }

    /// The memory limit that the runtime will set, in bytes; `None` when it stays, or is taken away.
    #[must_use]
    pub fn memory_limit(&self) -> Option<u64> {
        let limit = self.told.as_ref()?.memory().as_ref()?.limit()?;
        u64::try_from(limit).ok()
    }
}

fn merged(
    current: &cri::LinuxContainerResources,
    request: &cri::LinuxContainerResources,
) -> cri::LinuxContainerResources {
    let number = |old: i64, new: i64| if new == 0 { old } else { new };
    let text = |old: &String, new: &String| if new.is_empty() { old.clone() } else { new.clone() };
    let mut after = cri::LinuxContainerResources {
        cpu_period: number(current.cpu_period, request.cpu_period),
        cpu_quota: number(current.cpu_quota, request.cpu_quota),
        cpu_shares: number(current.cpu_shares, request.cpu_shares),
        memory_limit_in_bytes: number(current.memory_limit_in_bytes, request.memory_limit_in_bytes),
        memory_swap_limit_in_bytes: number(current.memory_swap_limit_in_bytes, request.memory_swap_limit_in_bytes),
        oom_score_adj: current.oom_score_adj,
        cpuset_cpus: text(&current.cpuset_cpus, &request.cpuset_cpus),
        cpuset_mems: text(&current.cpuset_mems, &request.cpuset_mems),
        hugepage_limits: current.hugepage_limits.clone(),
        unified: current.unified.clone(),
    };
    for wanted in &request.hugepage_limits {
        match after.hugepage_limits.iter_mut().find(|own| own.page_size == wanted.page_size) {
            Some(own) => own.limit = wanted.limit,
            None => after.hugepage_limits.push(wanted.clone()),
        }
    }
    after.unified.extend(request.unified.clone());
    after
}

/// Of a whole set of limits those that a request touches.
fn part(whole: &cri::LinuxContainerResources, request: &cri::LinuxContainerResources) -> cri::LinuxContainerResources {
    let bandwidth = request.cpu_quota != 0 || request.cpu_period != 0;
    let memory = request.memory_limit_in_bytes != 0 || request.memory_swap_limit_in_bytes != 0;
    let number = |touched: bool, value: i64| if touched { value } else { 0 };
    let text = |request: &String, value: &String| if request.is_empty() { String::new() } else { value.clone() };
    let names = |size: &str| request.hugepage_limits.iter().any(|wanted| wanted.page_size == size);
    let mut swap = number(memory, whole.memory_swap_limit_in_bytes);
    if memory && swap == 0 && whole.memory_limit_in_bytes == -1 {
        // Without a limit of its own swap follows memory: both together have none.
        swap = -1;
    }
    cri::LinuxContainerResources {
        cpu_period: number(bandwidth, whole.cpu_period),
        cpu_quota: number(bandwidth, whole.cpu_quota),
        cpu_shares: number(request.cpu_shares != 0, whole.cpu_shares),
        memory_limit_in_bytes: number(memory, whole.memory_limit_in_bytes),
        memory_swap_limit_in_bytes: swap,
        oom_score_adj: 0,
        cpuset_cpus: text(&request.cpuset_cpus, &whole.cpuset_cpus),
        cpuset_mems: text(&request.cpuset_mems, &whole.cpuset_mems),
        hugepage_limits: whole.hugepage_limits.iter().filter(|own| names(&own.page_size)).cloned().collect(),
        unified: whole.unified.iter().filter(|(key, _)| request.unified.contains_key(*key)).map(owned).collect(),
    }
}

fn owned((key, value): (&String, &String)) -> (String, String) {
    (key.clone(), value.clone())
}

/// The kernel's values of "no limit" where a limit that the request touches was never set.
fn unlimited_where_unset(
    mut part: cri::LinuxContainerResources,
    request: &cri::LinuxContainerResources,
) -> cri::LinuxContainerResources {
    let fill = |value: &mut i64, touched: bool, unlimited: i64| {
        if touched && *value == 0 {
            *value = unlimited;
        }
    };
    let bandwidth = request.cpu_quota != 0 || request.cpu_period != 0;
    let memory = request.memory_limit_in_bytes != 0 || request.memory_swap_limit_in_bytes != 0;
    fill(&mut part.cpu_quota, bandwidth, -1);
    fill(&mut part.cpu_period, bandwidth, 100_000);
    fill(&mut part.cpu_shares, request.cpu_shares != 0, 1024);
    let never_limited = part.memory_limit_in_bytes == 0;
    fill(&mut part.memory_limit_in_bytes, memory, -1);
    fill(&mut part.memory_swap_limit_in_bytes, memory && never_limited, -1);
    part
}

#[cfg(test)]
mod tests;
