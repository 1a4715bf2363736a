//! A reading in the CRI's messages. Absent means unknown there, and a wrapper with 0 means none.

use cri_proto::runtime::v1 as cri;

use super::{Interface, Pressure, Sample, Stall, Usage};

/// A container's statistics. The kubelet works out the processor's rate itself where `nano_cores` is `None`.
#[must_use]
pub fn container_stats(
    attributes: cri::ContainerAttributes,
    usage: &Usage,
    nano_cores: Option<u64>,
    writable_layer: Option<cri::FilesystemUsage>,
) -> cri::ContainerStats {
    cri::ContainerStats {
        attributes: Some(attributes),
        cpu: cpu_usage(usage, nano_cores),
        memory: memory_usage(usage),
        writable_layer,
        swap: swap_usage(usage),
        io: io_usage(usage),
    }
}

/// Processor time; `nano_cores` comes from a [`super::CpuRate`].
#[must_use]
pub fn cpu_usage(usage: &Usage, nano_cores: Option<u64>) -> Option<cri::CpuUsage> {
    usage.cpu.as_ref().map(|cpu| cri::CpuUsage {
        timestamp: usage.timestamp,
        usage_core_nano_seconds: Some(value(cpu.usage_ns)),
        usage_nano_cores: nano_cores.map(value),
        psi: cpu.pressure.as_ref().map(psi),
    })
}

/// Memory; what is available is left out without a limit.
#[must_use]
pub fn memory_usage(usage: &Usage) -> Option<cri::MemoryUsage> {
    usage.memory.as_ref().map(|memory| cri::MemoryUsage {
        timestamp: usage.timestamp,
        working_set_bytes: Some(value(memory.working_set)),
        available_bytes: memory.limit.map(|limit| value(limit.saturating_sub(memory.working_set))),
        usage_bytes: Some(value(memory.usage)),
        rss_bytes: memory.rss.map(value),
        page_faults: memory.page_faults.map(value),
        major_page_faults: memory.major_page_faults.map(value),
        psi: memory.pressure.as_ref().map(psi),
    })
}

/// Swap, where the kernel accounts for it.
#[must_use]
pub fn swap_usage(usage: &Usage) -> Option<cri::SwapUsage> {
    usage.swap.as_ref().map(|swap| cri::SwapUsage {
        timestamp: usage.timestamp,
        swap_available_bytes: swap.available.map(value),
        swap_usage_bytes: Some(value(swap.usage)),
    })
}

/// Pressure on block devices, where the kernel accounts for it.
#[must_use]
pub fn io_usage(usage: &Usage) -> Option<cri::IoUsage> {
    usage.io_pressure.as_ref().map(|pressure| cri::IoUsage { timestamp: usage.timestamp, psi: Some(psi(pressure)) })
}

/// A pod's statistics, with those of its containers.
#[must_use]
pub fn pod_stats(
    attributes: cri::PodSandboxAttributes,
    sample: &Sample,
    containers: Vec<cri::ContainerStats>,
) -> cri::PodSandboxStats {
    let usage = &sample.usage;
    cri::PodSandboxStats {
        attributes: Some(attributes),
        linux: Some(cri::LinuxPodSandboxStats {
            cpu: cpu_usage(usage, sample.nano_cores),
            memory: memory_usage(usage),
            network: sample.interfaces.as_ref().map(|interfaces| network_usage(sample.timestamp, interfaces)),
            process: process_usage(usage),
            containers,
            io: io_usage(usage),
        }),
        windows: None,
    }
}

/// The name that CNI's clients give a pod's first link.
const DEFAULT_INTERFACE: &str = "eth0";

/// What went over a pod's links.
#[must_use]
pub fn network_usage(timestamp: i64, interfaces: &[Interface]) -> cri::NetworkUsage {
    let one = |own: &Interface| cri::NetworkInterfaceUsage {
        name: own.name.clone(),
        rx_bytes: Some(value(own.rx_bytes)),
        rx_errors: Some(value(own.rx_errors)),
        tx_bytes: Some(value(own.tx_bytes)),
        tx_errors: Some(value(own.tx_errors)),
    };
    cri::NetworkUsage {
        timestamp,
        default_interface: interfaces.iter().find(|own| own.name == DEFAULT_INTERFACE).map(one),
        interfaces: interfaces.iter().filter(|own| own.name != DEFAULT_INTERFACE).map(one).collect(),
    }
}

/// The number of processes, for a pod's statistics.
#[must_use]
pub fn process_usage(usage: &Usage) -> Option<cri::ProcessUsage> {
    usage.processes.map(|count| cri::ProcessUsage { timestamp: usage.timestamp, process_count: Some(value(count)) })
}

fn value(value: u64) -> cri::UInt64Value {
    cri::UInt64Value { value }
}

fn psi(pressure: &Pressure) -> cri::PsiStats {
    let data = |stall: &Stall| cri::PsiData {
        total: stall.total_ns,
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    };
    cri::PsiStats { full: Some(data(&pressure.full)), some: Some(data(&pressure.some)) }
}
