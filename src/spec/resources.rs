//! Limits: cgroup resources, the OOM score, open files.

mod update;

use std::collections::HashMap;

use cri_proto::runtime::v1 as cri;
use oci_spec::runtime::{
    LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources, PosixRlimit, PosixRlimitBuilder, PosixRlimitType,
};

use super::{Clamped, HostFacts, SpecInput};
use crate::security::CgroupVersion;

pub use update::ResourceUpdate;

/// The least memory that a runtime can start a process in, in bytes. Below it the failure is one that nobody can read.
const MIN_MEMORY: i64 = 512 * 1024;

/// Open files of every container, soft and hard. It is a constant, and not inherited from the daemon's unit, so that a
/// change there changes no container; and it is finite, since programs that close or count every possible descriptor go
/// wild at the 2^30 of some units. The value is what the field has grown used to.
const OPEN_FILES: u64 = 1024 * 1024;

/// A limit that makes no sense, or that this host cannot keep.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResourceError {
    #[error("resources.{field} {value}: {reason}")]
    Value { field: &'static str, value: i64, reason: &'static str },
    #[error("resources.memory_limit_in_bytes {value}: the least that a container can start in is {MIN_MEMORY}")]
    TooLittleMemory { value: i64 },
    #[error("resources.{field} {value:?}: not a list of numbers and ranges")]
    Set { field: &'static str, value: String },
    #[error("resources.hugepage_limits[{index}].page_size {value:?}: want a size like 2MB or 1GB")]
    PageSize { index: usize, value: String },
    #[error("resources.hugepage_limits[{index}].limit {value}: too large")]
    PageLimit { index: usize, value: u64 },
    #[error(
        "resources.hugepage_limits: {page_size} is limited to {limit} bytes, but the host has no hugetlb controller"
    )]
    NoHugetlb { page_size: String, limit: u64 },
    #[error("resources.unified {key:?}: not the name of a cgroup file, or its value has a control character")]
    Unified { key: String },
    #[error("resources.unified {key:?}: the host runs cgroup v1")]
    UnifiedOnV1 { key: String },
}

pub(super) fn resources(input: &SpecInput<'_>) -> Result<LinuxResources, ResourceError> {
    match input.config.linux.as_ref().and_then(|linux| linux.resources.as_ref()) {
        Some(request) => {
            let mut resources = to_oci_resources(request, input.host)?;
            // A new cgroup has no quota, so "none" need not be said; crun 1.8 cannot even say it on version 1.
            if let Some(cpu) = resources.cpu_mut() {
                cpu.set_quota(cpu.quota().filter(|quota| *quota > 0));
            }
            Ok(resources)
        }
        None => Ok(LinuxResources::default()),
    }
}

/// The cgroup part of a request, without device rules: also what an update of a running container is made of. A zero or an
/// empty field asks for nothing.
///
/// # Errors
/// [`ResourceError`], naming the field and its value.
pub fn to_oci_resources(
    request: &cri::LinuxContainerResources,
    host: &HostFacts,
) -> Result<LinuxResources, ResourceError> {
    let hugepages = hugepages(request, host)?;
    let mut resources = LinuxResources::default();
    resources
        .set_cpu(cpu(request)?)
        .set_memory(memory(request, host)?)
        .set_hugepage_limits(Some(hugepages).filter(|list| !list.is_empty()))
        .set_unified(unified(request, host)?);
    Ok(resources)
}

/// cpu.shares, quota and period pass as they are: turning shares into a v2 weight is the runtime's work.
fn cpu(request: &cri::LinuxContainerResources) -> Result<Option<LinuxCpu>, ResourceError> {
    let unsigned = |field, value: i64, most: i64| {
        let legal = u64::try_from(value).ok().filter(|_| value <= most);
        legal.ok_or(ResourceError::Value { field, value, reason: "out of the kernel's range" })
    };
    let shares = unsigned("cpu_shares", request.cpu_shares, 262_144)?;
    let period = unsigned("cpu_period", request.cpu_period, 1_000_000)?;
    if request.cpu_quota < -1 || (1..1000).contains(&request.cpu_quota) {
        let reason = "want -1 for no limit, or at least 1000 microseconds";
        return Err(ResourceError::Value { field: "cpu_quota", value: request.cpu_quota, reason });
    }
    if (1..1000).contains(&period) {
        let reason = "want 1000 to 1000000 microseconds";
        return Err(ResourceError::Value { field: "cpu_period", value: request.cpu_period, reason });
    }
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(Some(shares).filter(|n| *n != 0))
        .set_period(Some(period).filter(|n| *n != 0))
        .set_quota(Some(request.cpu_quota).filter(|n| *n != 0))
        .set_cpus(set("cpuset_cpus", &request.cpuset_cpus)?)
        .set_mems(set("cpuset_mems", &request.cpuset_mems)?);
    Ok(Some(cpu).filter(|cpu| *cpu != LinuxCpu::default()))
}

fn set(field: &'static str, text: &str) -> Result<Option<String>, ResourceError> {
    if text.is_empty() {
        return Ok(None);
    }
    let number = |text: &str| !text.is_empty() && text.len() <= 6 && text.bytes().all(|b| b.is_ascii_digit());
    let range = |part: &str| match part.split_once('-') {
        None => number(part),
        Some((from, to)) => number(from) && number(to),
    };
    if text.len() > 64 * 1024 || !text.split(',').all(range) {
        return Err(ResourceError::Set { field, value: text.chars().take(256).collect() });
    }
    Ok(Some(text.to_owned()))
}

/// Memory, and memory with swap. Where no swap limit is given it is the memory limit: no swap. A host that does not count
/// swap per cgroup gets neither, as writing it there would fail the container.
fn memory(request: &cri::LinuxContainerResources, host: &HostFacts) -> Result<Option<LinuxMemory>, ResourceError> {
    let (limit, swap) = (request.memory_limit_in_bytes, request.memory_swap_limit_in_bytes);
    for (field, value) in [("memory_limit_in_bytes", limit), ("memory_swap_limit_in_bytes", swap)] {
        if value < -1 {
            return Err(ResourceError::Value { field, value, reason: "want bytes, 0 for unset or -1 for no limit" });
        }
    }
    if (1..MIN_MEMORY).contains(&limit) {
        return Err(ResourceError::TooLittleMemory { value: limit });
    }
    if swap > 0 && swap < limit {
        let reason = "counts memory and swap together, so it cannot be below memory_limit_in_bytes";
        return Err(ResourceError::Value { field: "memory_swap_limit_in_bytes", value: swap, reason });
    }
    let swap = match (host.kernel.swap_accounting, swap) {
        (false, _) => None,
        (true, 0) => Some(limit).filter(|n| *n > 0),
        (true, swap) => Some(swap),
    };
    let mut memory = LinuxMemory::default();
    memory.set_limit(Some(limit).filter(|n| *n != 0)).set_swap(swap);
    Ok(Some(memory).filter(|memory| *memory != LinuxMemory::default()))
}

/// The kubelet sends a limit of 0 for every page size of the node: without a controller, these mean nothing.
fn hugepages(
    request: &cri::LinuxContainerResources,
    host: &HostFacts,
) -> Result<Vec<LinuxHugepageLimit>, ResourceError> {
    let mut list = Vec::new();
    for (index, entry) in request.hugepage_limits.iter().enumerate() {
        if !legal_page_size(&entry.page_size) {
            let value = entry.page_size.chars().take(256).collect();
            return Err(ResourceError::PageSize { index, value });
        }
        if !host.kernel.hugetlb {
            if entry.limit > 0 {
                return Err(ResourceError::NoHugetlb { page_size: entry.page_size.clone(), limit: entry.limit });
            }
            continue;
        }
        let limit = i64::try_from(entry.limit).map_err(|_| ResourceError::PageLimit { index, value: entry.limit })?;
        let mut oci = LinuxHugepageLimit::default();
        oci.set_page_size(entry.page_size.clone()).set_limit(limit);
        list.push(oci);
    }
    Ok(list)
}

fn legal_page_size(text: &str) -> bool {
    ["KB", "MB", "GB"].iter().filter_map(|unit| text.strip_suffix(unit)).any(|number| {
        !number.starts_with('0') && (1..=8).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit())
    })
}

/// Keys are names of files in the container's cgroup, so they must not lead out of it.
fn unified(
    request: &cri::LinuxContainerResources,
    host: &HostFacts,
) -> Result<Option<HashMap<String, String>>, ResourceError> {
    for (key, value) in &request.unified {
        let name =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b) || b.is_ascii_uppercase();
        let legal = key.len() <= 128
            && key.bytes().all(name)
            && key.contains('.')
            && !key.starts_with(['.', '-'])
            && !key.starts_with("cgroup.")
            && value.len() <= 4096
            && !value.contains(|c: char| c.is_control() && c != '\n');
        if !legal {
            return Err(ResourceError::Unified { key: key.chars().take(256).collect() });
        }
        if host.kernel.cgroup == CgroupVersion::V1 {
            return Err(ResourceError::UnifiedOnV1 { key: key.clone() });
        }
    }
    Ok(Some(request.unified.clone()).filter(|map| !map.is_empty()))
}

/// The score is always set: the daemon's own, which is low, must not be inherited.
pub(super) fn oom_score_adj(input: &SpecInput<'_>, clamped: &mut Vec<Clamped>) -> Result<i32, ResourceError> {
    let resources = input.config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    let asked = resources.map_or(0, |resources| resources.oom_score_adj);
    let legal = i32::try_from(asked).ok().filter(|score| (-1000..=1000).contains(score));
    let reason = "want -1000 to 1000";
    let score = legal.ok_or(ResourceError::Value { field: "oom_score_adj", value: asked, reason })?;
    let given = score.max(input.host.kernel.min_oom_score_adj);
    if given != score {
        clamped.push(Clamped { what: "oom_score_adj", asked, given: i64::from(given) });
    }
    Ok(given)
}

pub(super) fn open_files(host: &HostFacts, clamped: &mut Vec<Clamped>) -> PosixRlimit {
    let given = OPEN_FILES.min(host.kernel.max_open_files);
    if given != OPEN_FILES {
        let number = |n| i64::try_from(n).unwrap_or(i64::MAX);
        clamped.push(Clamped { what: "RLIMIT_NOFILE", asked: number(OPEN_FILES), given: number(given) });
    }
    let limit = PosixRlimitBuilder::default().typ(PosixRlimitType::RlimitNofile).soft(given).hard(given).build();
    limit.expect("a limit has these three fields, and all are set")
}
