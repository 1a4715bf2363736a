//! The metrics, one row each.

use cri::MetricType::{Counter, Gauge};
use cri_proto::runtime::v1 as cri;

use super::{ContainerFacts, DeviceIo, Emit, Family, Interface, Memory, Pressure, Subject, Usage};
use crate::sys::cgroup::CgroupVersion;

const NS: u64 = 1_000_000_000;

/// A row without labels of its own, whose value is one number of the reading.
macro_rules! plain {
    ($name:literal, $kind:ident, $help:literal, $value:expr) => {
        Family {
            name: $name,
            help: $help,
            kind: $kind,
            labels: &[],
            only: None,
            values: |subject, emit| one(emit, $value(&subject.sample.usage)),
        }
    };
}

/// A row of what is known of a container without a reading.
macro_rules! known {
    ($name:literal, $help:literal, $value:expr) => {
        Family {
            name: $name,
            help: $help,
            kind: Gauge,
            labels: &[],
            only: None,
            values: |subject, emit| one(emit, subject.container.as_ref().and_then($value)),
        }
    };
}

/// A row with a value for each link of a pod.
macro_rules! link {
    ($name:literal, $help:literal, $field:ident) => {
        Family {
            name: $name,
            help: $help,
            kind: Counter,
            labels: &["interface"],
            only: None,
            values: |subject, emit| links(subject, emit, |interface| interface.$field),
        }
    };
}

/// A row with a value for each block device.
macro_rules! device {
    ($name:literal, $help:literal, $field:ident) => {
        Family {
            name: $name,
            help: $help,
            kind: Counter,
            labels: &["device"],
            only: None,
            values: |subject, emit| devices(subject, emit, |io| io.$field),
        }
    };
}

/// A row of pressure, which only version 2 counts.
macro_rules! stall {
    ($name:literal, $help:literal, $pressure:expr, $kind:ident) => {
        Family {
            name: $name,
            help: $help,
            kind: Counter,
            labels: &[],
            only: Some(CgroupVersion::V2),
            values: |subject, emit| {
                let pressure: Option<&Pressure> = $pressure(&subject.sample.usage);
                one(emit, pressure.map(|pressure| pressure.$kind.total_ns / NS));
            },
        }
    };
}

fn one(emit: &mut Emit<'_>, value: Option<u64>) {
    if let Some(value) = value {
        emit(&[], value);
    }
}

fn links(subject: &Subject<'_>, emit: &mut Emit<'_>, field: fn(&Interface) -> u64) {
    for interface in subject.sample.interfaces.iter().flatten() {
        emit(&[&interface.name], field(interface));
    }
}

fn devices(subject: &Subject<'_>, emit: &mut Emit<'_>, field: fn(&DeviceIo) -> u64) {
    for io in &subject.sample.usage.io {
        emit(&[&subject.device.name(io.device)], field(io));
    }
}

fn memory(usage: &Usage, field: impl Fn(&Memory) -> Option<u64>) -> Option<u64> {
    usage.memory.as_ref().and_then(field)
}

/// A limit as asked for; none is 0, as the field has it.
fn limit(facts: &ContainerFacts<'_>, field: impl Fn(&cri::LinuxContainerResources) -> i64) -> Option<u64> {
    Some(facts.resources.map_or(0, |resources| u64::try_from(field(resources)).unwrap_or(0)))
}

fn now_seconds(subject: &Subject<'_>) -> Option<u64> {
    u64::try_from(subject.sample.timestamp).ok().map(|ns| ns / NS).filter(|_| subject.container.is_some())
}

fn throttling(usage: &Usage, field: fn(&crate::stats::Throttling) -> u64) -> Option<u64> {
    usage.cpu.as_ref()?.throttling.as_ref().map(field)
}

fn failures(subject: &Subject<'_>, emit: &mut Emit<'_>) {
    let Some(memory) = &subject.sample.usage.memory else { return };
    for (kind, value) in [("pgfault", memory.page_faults), ("pgmajfault", memory.major_page_faults)] {
        if let Some(value) = value {
            // What is below the container's cgroup counts too: the field's "hierarchy".
            emit(&[kind, "hierarchy"], value);
        }
    }
}

pub(super) static FAMILIES: &[Family] = &[
    Family {
        name: "container_cpu_usage_seconds_total",
        help: "Cumulative cpu time consumed in seconds.",
        kind: Counter,
        labels: &["cpu"],
        only: None,
        values: |subject, emit| {
            if let Some(cpu) = &subject.sample.usage.cpu {
                emit(&["total"], cpu.usage_ns / NS);
            }
        },
    },
    plain!(
        "container_cpu_user_seconds_total",
        Counter,
        "Cumulative user cpu time consumed in seconds.",
        |u: &Usage| { Some(u.cpu.as_ref()?.user_ns? / NS) }
    ),
    plain!(
        "container_cpu_system_seconds_total",
        Counter,
        "Cumulative system cpu time consumed in seconds.",
        |u: &Usage| Some(u.cpu.as_ref()?.system_ns? / NS)
    ),
    plain!("container_cpu_cfs_periods_total", Counter, "Number of elapsed enforcement period intervals.", |u| {
        throttling(u, |t| t.periods)
    }),
    plain!("container_cpu_cfs_throttled_periods_total", Counter, "Number of throttled period intervals.", |u| {
        throttling(u, |t| t.throttled_periods)
    }),
    plain!(
        "container_cpu_cfs_throttled_seconds_total",
        Counter,
        "Total time duration the container has been throttled.",
        |u| throttling(u, |t| t.throttled_ns / NS)
    ),
    plain!("container_memory_usage_bytes", Gauge, "Current memory usage in bytes, page cache included.", |u| {
        memory(u, |m| Some(m.usage))
    }),
    plain!("container_memory_working_set_bytes", Gauge, "Current working set in bytes.", |u| {
        memory(u, |m| Some(m.working_set))
    }),
    plain!("container_memory_max_usage_bytes", Gauge, "Maximum memory usage recorded in bytes.", |u| {
        memory(u, |m| m.peak)
    }),
    plain!("container_memory_rss", Gauge, "Size of RSS in bytes.", |u| memory(u, |m| m.rss)),
    plain!("container_memory_cache", Gauge, "Number of bytes of page cache memory.", |u| memory(u, |m| m.cache)),
    plain!("container_memory_mapped_file", Gauge, "Size of memory mapped files in bytes.", |u| {
        memory(u, |m| m.mapped_file)
    }),
    plain!("container_memory_total_active_file_bytes", Gauge, "Current total active file in bytes.", |u| {
        memory(u, |m| m.active_file)
    }),
    plain!("container_memory_total_inactive_file_bytes", Gauge, "Current total inactive file in bytes.", |u| {
        memory(u, |m| m.inactive_file)
    }),
    plain!("container_memory_swap", Gauge, "Container swap usage in bytes.", |u: &Usage| {
        u.swap.as_ref().map(|swap| swap.usage)
    }),
    plain!("container_memory_failcnt", Counter, "Number of memory usage hits limits.", |u| {
        memory(u, |m| m.limit_hits)
    }),
    Family {
        name: "container_memory_failures_total",
        help: "Cumulative count of memory allocation failures.",
        kind: Counter,
        labels: &["failure_type", "scope"],
        only: None,
        values: failures,
    },
    plain!(
        "container_oom_events_total",
        Counter,
        "Count of out of memory events observed for the container.",
        |u: &Usage| { u.oom_kills }
    ),
    plain!("container_processes", Gauge, "Number of processes running inside the container.", |u: &Usage| u.processes),
    plain!("container_threads", Gauge, "Number of threads running inside the container.", |u: &Usage| u.pids),
    device!("container_fs_reads_bytes_total", "Cumulative count of bytes read.", read_bytes),
    device!("container_fs_reads_total", "Cumulative count of reads completed.", reads),
    device!("container_fs_writes_bytes_total", "Cumulative count of bytes written.", write_bytes),
    device!("container_fs_writes_total", "Cumulative count of writes completed.", writes),
    Family {
        name: "container_fs_usage_bytes",
        help: "Number of bytes that are consumed by the container on this filesystem.",
        kind: Gauge,
        labels: &["device"],
        only: None,
        values: |subject, emit| {
            if let Some((facts, disk)) = subject.container.as_ref().and_then(|facts| Some((facts, facts.disk?))) {
                emit(&[facts.disk_device], disk.bytes);
            }
        },
    },
    link!("container_network_receive_bytes_total", "Cumulative count of bytes received.", rx_bytes),
    link!("container_network_receive_packets_total", "Cumulative count of packets received.", rx_packets),
    link!(
        "container_network_receive_errors_total",
        "Cumulative count of errors encountered while receiving.",
        rx_errors
    ),
    link!(
        "container_network_receive_packets_dropped_total",
        "Cumulative count of packets dropped while receiving.",
        rx_dropped
    ),
    link!("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted.", tx_bytes),
    link!("container_network_transmit_packets_total", "Cumulative count of packets transmitted.", tx_packets),
    link!(
        "container_network_transmit_errors_total",
        "Cumulative count of errors encountered while transmitting.",
        tx_errors
    ),
    link!(
        "container_network_transmit_packets_dropped_total",
        "Cumulative count of packets dropped while transmitting.",
        tx_dropped
    ),
    known!("container_spec_cpu_period", "CPU period of the container.", |facts| limit(facts, |r| r.cpu_period)),
    known!("container_spec_cpu_quota", "CPU quota of the container.", |facts| limit(facts, |r| r.cpu_quota)),
    known!("container_spec_cpu_shares", "CPU share of the container.", |facts| limit(facts, |r| r.cpu_shares)),
    known!("container_spec_memory_limit_bytes", "Memory limit for the container.", |facts| {
        limit(facts, |r| r.memory_limit_in_bytes)
    }),
    known!("container_spec_memory_swap_limit_bytes", "Memory swap limit for the container.", |facts| {
        limit(facts, |r| r.memory_swap_limit_in_bytes)
    }),
    known!("container_start_time_seconds", "Start time of the container since unix epoch in seconds.", |facts| {
        u64::try_from(facts.started_at).ok().filter(|ns| *ns > 0).map(|ns| ns / NS)
    }),
    Family {
        name: "container_last_seen",
        help: "Last time a container was seen by the exporter.",
        kind: Gauge,
        labels: &[],
        only: None,
        values: |subject, emit| one(emit, now_seconds(subject)),
    },
    stall!(
        "container_pressure_cpu_waiting_seconds_total",
        "Total time duration tasks in the container have waited due to CPU congestion.",
        |u| cpu_pressure(u),
        some
    ),
    stall!(
        "container_pressure_cpu_stalled_seconds_total",
        "Total time duration no tasks in the container could make progress due to CPU congestion.",
        |u| cpu_pressure(u),
        full
    ),
    stall!(
        "container_pressure_memory_waiting_seconds_total",
        "Total time duration tasks in the container have waited due to memory congestion.",
        |u| memory_pressure(u),
        some
    ),
    stall!(
        "container_pressure_memory_stalled_seconds_total",
        "Total time duration no tasks in the container could make progress due to memory congestion.",
        |u| memory_pressure(u),
        full
    ),
    stall!(
        "container_pressure_io_waiting_seconds_total",
        "Total time duration tasks in the container have waited due to IO congestion.",
        |u| io_pressure(u),
        some
    ),
    stall!(
        "container_pressure_io_stalled_seconds_total",
        "Total time duration no tasks in the container could make progress due to IO congestion.",
        |u| io_pressure(u),
        full
    ),
];

fn cpu_pressure(usage: &Usage) -> Option<&Pressure> {
    usage.cpu.as_ref()?.pressure.as_ref()
}

fn memory_pressure(usage: &Usage) -> Option<&Pressure> {
    usage.memory.as_ref()?.pressure.as_ref()
}

fn io_pressure(usage: &Usage) -> Option<&Pressure> {
    usage.io_pressure.as_ref()
}
