//! What the kernel holds a container or a pod to and what they used, by the names of cgroup v1, on either cgroup version.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use crate::node::Node;

/// The number that cgroup v1 has where there is no limit: the largest one that is whole pages (`PAGE_COUNTER_MAX`).
const UNLIMITED: i64 = 0x7fff_ffff_ffff_f000;

/// The files that a kubelet changes, for comparisons.
const CHANGED: [&str; 7] = [
    "cpu.shares",
    "cpu.cfs_quota_us",
    "cpu.cfs_period_us",
    "cpuset.cpus",
    "cpuset.mems",
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
];

/// The cgroup folders of one container, one for each hierarchy.
fn folders(node: &Node, id: &str) -> Vec<PathBuf> {
    let all = node.world.cgroups();
    all.into_iter().filter(|folder| folder.ends_with(format!("cricket-{id}"))).collect()
}

fn read(file: &Path) -> Result<String> {
    Ok(std::fs::read_to_string(file).with_context(|| file.display().to_string())?.trim().to_owned())
}

/// The value of a file of cgroup v1 that one of these folders has, or what the files of cgroup v2 mean by that name.
fn value(folders: &[PathBuf], name: &str) -> Result<String> {
    let Some(folder) = folders.iter().find(|folder| folder.join(name).exists()) else {
        let folder = folders.iter().find(|folder| folder.join("cgroup.type").exists());
        return unified(folder.with_context(|| format!("no {name} in {folders:?}"))?, name);
    };
    read(&folder.join(name))
}

fn unified(folder: &Path, name: &str) -> Result<String> {
    let number = |text: &str| if text == "max" { Ok(UNLIMITED) } else { text.parse::<i64>() };
    let file = |name: &str| read(&folder.join(name));
    Ok(match name {
        // 2…262144 shares are a weight of 1…10000, which has no way back: `expect` goes the same way.
        "cpu.shares" => file("cpu.weight")?,
        "cpu.cfs_quota_us" => file("cpu.max")?.split(' ').next().context("cpu.max")?.replace("max", "-1"),
        "cpu.cfs_period_us" => file("cpu.max")?.split(' ').nth(1).context("cpu.max")?.to_owned(),
        "memory.limit_in_bytes" => number(&file("memory.max")?)?.to_string(),
        // v1 limits memory and swap together, v2 swap alone.
        "memory.memsw.limit_in_bytes" => {
            let (memory, swap) = (number(&file("memory.max")?)?, number(&file("memory.swap.max")?)?);
            memory.saturating_add(swap).min(UNLIMITED).to_string()
        }
        "memory.usage_in_bytes" => file("memory.current")?,
        "cpuacct.usage" => {
            let stat = file("cpu.stat")?;
            let used = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")).context("usage_usec")?;
            (used.parse::<u64>()? * 1000).to_string()
        }
        _ => bail!("{name} has no name here for cgroup v2"),
    })
}

/// Whether the folder of a cgroup is one of cgroup v2.
fn is_unified(folders: &[PathBuf]) -> bool {
    !folders.iter().any(|folder| folder.join("cpu.shares").exists())
}

/// A limit or a counter of a container. `name` is the file of cgroup v1, or a file that both versions have.
pub fn limit(node: &Node, id: &str, name: &str) -> Result<String> {
    value(&folders(node, id), name)
}

/// The whole set of limits that a kubelet changes.
pub fn limits(node: &Node, id: &str) -> Result<Vec<String>> {
    CHANGED.iter().map(|name| limit(node, id, name)).collect()
}

/// The limits of a container are these.
pub fn expect(node: &Node, id: &str, expected: &[(&str, i64)]) -> Result<()> {
    for (name, value) in expected {
        let is = limit(node, id, name)?;
        let shares = *name == "cpu.shares" && is_unified(&folders(node, id));
        let value = if shares { 1 + (value - 2) * 9999 / 262_142 } else { *value };
        ensure!(is == value.to_string(), "{name} is {is}, not {value}");
    }
    Ok(())
}

/// The nanoseconds of CPU that all below a cgroup have used. `parent` is its path below the mount point, with a leading slash.
pub fn cpu_used(parent: &str) -> Result<u64> {
    let tops = ["/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup"];
    let folders: Vec<PathBuf> = tops.iter().map(|top| PathBuf::from(format!("{top}{parent}"))).collect();
    Ok(value(&folders, "cpuacct.usage")?.parse()?)
}

/// Whether the kernel has this controller in either version.
pub fn has_controller(name: &str) -> bool {
    let unified = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    Path::new("/sys/fs/cgroup").join(name).exists() || unified.split_whitespace().any(|one| one == name)
}
