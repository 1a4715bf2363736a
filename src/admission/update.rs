//! UpdateContainerResources and UpdatePodSandboxResources.

use cri_proto::runtime::v1 as cri;

use super::AdmissionError;
use super::field::{metadata, printable};

/// Page sizes of one request; a machine has three at most.
const MAX_PAGE_SIZES: usize = 16;
/// Keys of `unified` in one request; a cgroup has some fifty files that take a limit.
const MAX_UNIFIED: usize = 256;
/// Bytes of a list of CPUs or memory nodes.
const MAX_SET: usize = 64 * 1024;

/// Whether limits of a container may be asked for so. Their values are checked by [`crate::spec`], together with the limits
/// in force.
///
/// # Errors
/// [`AdmissionError`] for the first field that is not legal.
pub fn update_container_resources(request: &cri::UpdateContainerResourcesRequest) -> Result<(), AdmissionError> {
    printable("container_id", &request.container_id)?;
    metadata("annotations", &request.annotations)?;
    if request.windows.is_some() {
        return Err(AdmissionError::new("windows", "", "this is a Linux node"));
    }
    request.linux.as_ref().map_or(Ok(()), |linux| sizes("linux", linux))
}

/// Whether resources of a pod may be told so. They are only kept, so nothing but their size matters.
///
/// # Errors
/// [`AdmissionError`] for the first field that is not legal.
pub fn update_pod_sandbox_resources(request: &cri::UpdatePodSandboxResourcesRequest) -> Result<(), AdmissionError> {
    printable("pod_sandbox_id", &request.pod_sandbox_id)?;
    for (field, resources) in [("overhead", &request.overhead), ("resources", &request.resources)] {
        if let Some(resources) = resources {
            sizes(field, resources)?;
        }
    }
    Ok(())
}

fn sizes(field: &str, resources: &cri::LinuxContainerResources) -> Result<(), AdmissionError> {
    let most = |part: &str, is: usize, most: usize| {
        let reason = format!("the limit is {most}");
        if is > most { Err(AdmissionError::new(format!("{field}.{part}"), is, reason)) } else { Ok(()) }
    };
    most("hugepage_limits", resources.hugepage_limits.len(), MAX_PAGE_SIZES)?;
    most("unified", resources.unified.len(), MAX_UNIFIED)?;
    most("cpuset_cpus", resources.cpuset_cpus.len(), MAX_SET)?;
    most("cpuset_mems", resources.cpuset_mems.len(), MAX_SET)?;
    for (key, value) in &resources.unified {
        most("unified", key.len() + value.len(), MAX_SET)?;
    }
    for (index, limit) in resources.hugepage_limits.iter().enumerate() {
        let place = format!("hugepage_limits[{index}].page_size");
        most(&place, limit.page_size.len(), 64)?;
        let twice = resources.hugepage_limits[..index].iter().any(|other| other.page_size == limit.page_size);
        if twice {
            return Err(AdmissionError::new(format!("{field}.{place}"), &limit.page_size, "is given twice"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(linux: cri::LinuxContainerResources) -> cri::UpdateContainerResourcesRequest {
        cri::UpdateContainerResourcesRequest { container_id: "a".repeat(64), linux: Some(linux), ..Default::default() }
    }

    fn pages(size: &str) -> cri::HugepageLimit {
        cri::HugepageLimit { page_size: size.to_owned(), limit: 0 }
    }

    #[test]
    fn only_the_size_of_a_request_is_looked_at_here() {
        update_container_resources(&of(cri::LinuxContainerResources::default())).unwrap();
        update_container_resources(&of(cri::LinuxContainerResources { cpu_shares: -1, ..Default::default() })).unwrap();
        let mut request = of(cri::LinuxContainerResources::default());
        request.linux = None;
        update_container_resources(&request).unwrap();
        request.windows = Some(cri::WindowsContainerResources::default());
        assert_eq!(update_container_resources(&request).unwrap_err().field, "windows");
        request.container_id.clear();
        assert_eq!(update_container_resources(&request).unwrap_err().field, "container_id");
    }

    #[test]
    fn what_would_grow_without_end_is_refused() {
        let many = (0..17).map(|n| pages(&format!("{n}MB"))).collect();
        let keys = (0..300).map(|n| (format!("memory.k{n}"), "1".to_owned())).collect();
        let cases = [
            (cri::LinuxContainerResources { hugepage_limits: many, ..Default::default() }, "linux.hugepage_limits"),
            (
                cri::LinuxContainerResources {
                    hugepage_limits: vec![pages("2MB"), pages("2MB")],
                    ..Default::default()
                },
                "linux.hugepage_limits[1].page_size",
            ),
            (cri::LinuxContainerResources { unified: keys, ..Default::default() }, "linux.unified"),
            (
                cri::LinuxContainerResources { cpuset_cpus: "0,".repeat(40_000), ..Default::default() },
                "linux.cpuset_cpus",
            ),
        ];
        for (linux, field) in cases {
            assert_eq!(update_container_resources(&of(linux.clone())).unwrap_err().field, field);
            let request = cri::UpdatePodSandboxResourcesRequest {
                pod_sandbox_id: "a".into(),
                resources: Some(linux),
                ..Default::default()
            };
            let refused = update_pod_sandbox_resources(&request).unwrap_err().field;
            assert_eq!(refused, field.replace("linux", "resources"));
        }
    }
}
