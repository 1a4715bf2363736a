//! UpdateContainerResources: all of a change of limits, or nothing of it.
//!
//! check (pure) → the limits in force are noted → `runtime update` → what the runtime passed over → record. When a step
//! fails, the limits that were noted are written back, and the record is as before. The container's driver does it, so two
//! updates never meet, and none meets a start or the end.

use cri_proto::runtime::v1::LinuxContainerResources;
use oci_spec::runtime::LinuxResources;

use crate::runtime::OciRuntime;
use crate::spec::{ResourceUpdate, SpecError};
use crate::state::ContainerRecord;
use crate::stats::{StatsError, Usage};
use crate::sys::cgroup::{Cgroup, Limits};

use super::{ContainerError, Resources};

/// Changes the limits of a living container, and its record with them.
pub(super) async fn apply(
    resources: &Resources,
    runtime: &OciRuntime,
    record: &mut ContainerRecord,
    request: &LinuxContainerResources,
) -> Result<(), ContainerError> {
    let current = record.resources().cloned().unwrap_or_default();
    let update = ResourceUpdate::new(&current, request, &resources.host).map_err(SpecError::from)?;
    let Some(told) = &update.told else { return Ok(()) };
    let cgroup = resources.cgroups.container(&record.cgroups_path)?;
    let before = note(&cgroup, &update, request).await?;
    let done = set(runtime, &record.id, told, &before, &cgroup).await;
    let done = done.and_then(|()| {
        let changed = ContainerRecord { resources: Some(update.after.clone()), ..record.clone() };
        resources.store.put_container(&changed)?;
        *record = changed;
        Ok(())
    });
    let Err(error) = done else { return Ok(()) };
    let source = Box::new(error);
    match put_back(resources, runtime, &record.id, &update.undo, before).await {
        Ok(()) => Err(ContainerError::Update { source }),
        Err(left) => {
            let left = crate::telemetry::chain(&left);
            Err(ContainerError::UpdateUndo { source, left })
        }
    }
}

/// Notes the limits in force. A memory limit that the container is above already is refused here: version 2 kernels would
/// kill for it. What can be given back at once (inactive file pages) is no hindrance.
async fn note(
    cgroup: &Cgroup,
    update: &ResourceUpdate,
    request: &LinuxContainerResources,
) -> Result<Limits, ContainerError> {
    let (cgroup, limit, request) = (cgroup.clone(), update.memory_limit(), request.clone());
    crate::task::blocking(move || {
        if let Some(limit) = limit {
            let usage = match Usage::read(&cgroup) {
                // The end of the container is on its way to the driver; the runtime will say that it is gone.
                Err(StatsError::Gone { .. }) => None,
                read => read?.memory,
            };
            if let Some(memory) = usage.filter(|memory| memory.working_set > limit) {
                return Err(ContainerError::MemoryInUse { limit, used: memory.working_set });
            }
        }
        let sizes: Vec<_> = request.hugepage_limits.iter().map(|pages| &*pages.page_size).collect();
        let keys: Vec<_> = request.unified.keys().map(String::as_str).collect();
        Ok(cgroup.limits(&sizes, &keys)?)
    })
    .await
}

async fn set(
    runtime: &OciRuntime,
    id: &str,
    told: &LinuxResources,
    before: &Limits,
    cgroup: &Cgroup,
) -> Result<(), ContainerError> {
    match runtime.update(id, &encoded(told)?).await {
        Err(_) if takes_quota_away(told) => without_quota(runtime, id, told, before).await?,
        updated => updated?,
    }
    // runc's update knows neither of these, and says nothing of it.
    for pages in told.hugepage_limits().iter().flatten() {
        before.set_if_passed_over(&cgroup.hugepage_file(pages.page_size()), &pages.limit().to_string())?;
    }
    for (key, value) in told.unified().iter().flatten() {
        before.set_if_passed_over(key, value)?;
    }
    Ok(())
}

/// crun 1.8 writes the quota -1 as a number without a sign, which version 1 kernels refuse.
fn takes_quota_away(told: &LinuxResources) -> bool {
    told.cpu().as_ref().is_some_and(|cpu| cpu.quota() == Some(-1))
}

/// All but the quota by the runtime, which has failed with it; the quota by hand.
async fn without_quota(
    runtime: &OciRuntime,
    id: &str,
    told: &LinuxResources,
    before: &Limits,
) -> Result<(), ContainerError> {
    let mut rest = told.clone();
    let period = told.cpu().as_ref().and_then(|cpu| cpu.period());
    if let Some(cpu) = rest.cpu_mut() {
        cpu.set_quota(None);
    }
    runtime.update(id, &encoded(&rest)?).await?;
    before.set("cpu.cfs_quota_us", "-1")?;
    let bandwidth = period.map_or_else(|| "max".to_owned(), |period| format!("max {period}"));
    Ok(before.set("cpu.max", &bandwidth)?)
}

async fn put_back(
    resources: &Resources,
    runtime: &OciRuntime,
    id: &str,
    undo: &LinuxResources,
    before: Limits,
) -> Result<(), ContainerError> {
    if resources.cgroups.is_systemd() {
        // systemd keeps limits of its own beside the kernel's, and sets them again when it pleases. Whether the runtime can
        // take them back or not, the files below have the last word.
        let _ = runtime.update(id, &encoded(undo)?).await;
    }
    Ok(crate::task::blocking(move || before.restore()).await?)
}

fn encoded(resources: &LinuxResources) -> Result<Vec<u8>, ContainerError> {
    serde_json::to_vec(resources).map_err(|source| ContainerError::UpdateEncode { source })
}
