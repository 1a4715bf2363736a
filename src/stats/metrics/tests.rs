//! Every metric fits its descriptor, whatever the reading.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::stats::{Cpu, Stall, Swap, Throttling};

#[derive(Debug)]
struct Numbers;

impl DeviceNames for Numbers {
    fn name(&self, (major, minor): (u32, u32)) -> Arc<str> {
        format!("{major}:{minor}").into()
    }
}

fn full() -> Sample {
    let pressure = || Some(Pressure { some: stall(3), full: stall(2) });
    let interface =
        |name: &str| Interface { name: name.to_owned(), rx_bytes: 11, tx_dropped: 12, ..Interface::default() };
    Sample {
        usage: Usage {
            timestamp: 7_000_000_000,
            cpu: Some(Cpu {
                usage_ns: 5_999_999_999,
                user_ns: Some(4 * 1_000_000_000),
                system_ns: Some(1_000_000_000),
                throttling: Some(Throttling { periods: 10, throttled_periods: 4, throttled_ns: 2_500_000_000 }),
                pressure: pressure(),
            }),
            memory: Some(Memory {
                usage: 100,
                working_set: 90,
                peak: Some(120),
                limit_hits: Some(3),
                page_faults: Some(8),
                major_page_faults: Some(9),
                pressure: pressure(),
                ..Memory::default()
            }),
            swap: Some(Swap { usage: 1, available: None }),
            io: vec![DeviceIo { device: (8, 0), read_bytes: 1, write_bytes: 2, reads: 3, writes: 4 }],
            io_pressure: pressure(),
            oom_kills: Some(1),
            pids: Some(6),
            processes: Some(5),
        },
        nano_cores: None,
        interfaces: Some(vec![interface("eth0"), interface("net1")]),
        timestamp: 7_000_000_001,
    }
}

fn stall(seconds: u64) -> Stall {
    Stall { total_ns: seconds * 1_000_000_000, ..Stall::default() }
}

fn subject<'a>(sample: &'a Sample, resources: &'a cri::LinuxContainerResources) -> Subject<'a> {
    let disk = DiskUse { timestamp: 1, bytes: 77, inodes: 2 };
    Subject {
        labels: Labels { container: "app".into(), pod: "web-0".into(), namespace: "ns".into(), ..Labels::default() },
        sample,
        container: Some(ContainerFacts {
            resources: Some(resources),
            started_at: 3_000_000_000,
            disk: Some(disk),
            disk_device: "/dev/vda1",
        }),
        device: &Numbers,
    }
}

fn fits(version: CgroupVersion, metrics: &[cri::Metric]) {
    let described: BTreeMap<_, _> = descriptors(version).into_iter().map(|own| (own.name.clone(), own)).collect();
    let mut seen = BTreeSet::new();
    for metric in metrics {
        let descriptor = &described[&metric.name];
        assert_eq!(metric.label_values.len(), descriptor.label_keys.len(), "{}", metric.name);
        assert!(metric.value.is_some(), "{}", metric.name);
        assert!(seen.insert((metric.name.clone(), metric.label_values.clone())), "twice: {metric:?}");
    }
}

#[test]
fn descriptors_are_well_formed() {
    for version in [CgroupVersion::V1, CgroupVersion::V2] {
        let all = descriptors(version);
        let names: BTreeSet<_> = all.iter().map(|own| own.name.clone()).collect();
        assert_eq!(names.len(), all.len(), "a name is there twice");
        for own in &all {
            assert!(own.name.starts_with("container_") && own.help.ends_with('.'), "{own:?}");
            let keys: BTreeSet<_> = own.label_keys.iter().collect();
            assert_eq!(keys.len(), own.label_keys.len(), "{own:?}");
            assert_eq!(own.label_keys[..LABELS.len()], LABELS);
        }
        assert_eq!(names.contains("container_pressure_io_stalled_seconds_total"), version == CgroupVersion::V2);
    }
}

#[test]
fn a_full_reading_has_a_value_for_every_descriptor() {
    let sample = full();
    let usage = Memory {
        rss: Some(1),
        cache: Some(1),
        mapped_file: Some(1),
        active_file: Some(1),
        inactive_file: Some(1),
        ..sample.usage.memory.clone().unwrap()
    };
    let sample = Sample { usage: Usage { memory: Some(usage), ..sample.usage }, ..sample };
    let resources = cri::LinuxContainerResources { cpu_quota: -1, cpu_shares: 512, ..Default::default() };
    let found = metrics(CgroupVersion::V2, &subject(&sample, &resources));
    fits(CgroupVersion::V2, &found);
    let names: BTreeSet<_> = found.iter().map(|metric| metric.name.clone()).collect();
    for own in descriptors(CgroupVersion::V2) {
        assert!(names.contains(&own.name), "{} is described, but never measured", own.name);
    }
    let value = |name: &str, last: &[&str]| {
        let metric = found.iter().find(|metric| metric.name == name && metric.label_values[LABELS.len()..] == *last);
        metric.unwrap_or_else(|| panic!("no {name} {last:?}")).value.as_ref().unwrap().value
    };
    assert_eq!(value("container_cpu_usage_seconds_total", &["total"]), 5);
    assert_eq!(value("container_cpu_cfs_throttled_seconds_total", &[]), 2);
    assert_eq!(value("container_memory_failures_total", &["pgmajfault", "hierarchy"]), 9);
    assert_eq!(value("container_network_transmit_packets_dropped_total", &["net1"]), 12);
    assert_eq!(value("container_fs_writes_total", &["8:0"]), 4);
    assert_eq!(value("container_fs_usage_bytes", &["/dev/vda1"]), 77);
    assert_eq!(value("container_spec_cpu_quota", &[]), 0, "no limit is 0");
    assert_eq!(value("container_spec_cpu_shares", &[]), 512);
    assert_eq!(value("container_start_time_seconds", &[]), 3);
    assert_eq!(value("container_last_seen", &[]), 7);
    assert_eq!(value("container_pressure_memory_waiting_seconds_total", &[]), 3);
    assert!(found.iter().all(|metric| metric.timestamp == 7_000_000_001));
    let labels = &found[0].label_values;
    assert_eq!((&*labels[0], &*labels[4], &*labels[5]), ("app", "ns", "web-0"));
}

proptest! {
    #[test]
    fn every_metric_fits_its_descriptor(has in proptest::collection::vec(any::<bool>(), 8), links in 0..4_usize) {
        let mut sample = full();
        let usage = &mut sample.usage;
        if has[0] { usage.cpu = None; }
        if has[1] { usage.memory = None; }
        if has[2] { usage.swap = None; }
        if has[3] { usage.io.clear(); }
        if let Some(cpu) = usage.cpu.as_mut().filter(|_| has[4]) { cpu.throttling = None; cpu.pressure = None; }
        sample.interfaces =
            has[5].then(|| (0..links).map(|n| Interface { name: format!("net{n}"), ..Interface::default() }).collect());
        let resources = cri::LinuxContainerResources::default();
        let mut subject = subject(&sample, &resources);
        if has[6] { subject.container = None; }
        for version in [CgroupVersion::V1, CgroupVersion::V2] {
            fits(version, &metrics(version, &subject));
        }
    }
}
