//! Readings of fake trees, and one of this machine.

use std::fs;
use std::path::Path;

use super::*;
use crate::sys::cgroup::{Cgroup, CgroupLayout, CgroupPath};

fn machine(mountinfo: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, Cgroup) {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("proc/self")).unwrap();
    fs::write(root.path().join("proc/self/mountinfo"), mountinfo).unwrap();
    for (name, text) in files {
        let path = root.path().join("sys/fs/cgroup").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let cgroup = CgroupLayout::detect(root.path()).unwrap().cgroup(&CgroupPath::new("/pod/c").unwrap());
    (root, cgroup)
}

const V2: &str = "25 30 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
const V1: &str = "\
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio
";
const PSI: &str =
    "some avg10=1.25 avg60=0.50 avg300=0.00 total=166\nfull avg10=0.00 avg60=0.25 avg300=0.00 total=128\n";

#[test]
fn version_2_has_everything() {
    let (_root, cgroup) = machine(
        V2,
        &[
            (
                "pod/c/cpu.stat",
                "usage_usec 906151\nuser_usec 7\nsystem_usec 9\nnr_periods 4\nnr_throttled 2\nthrottled_usec 30\n",
            ),
            ("pod/c/cpu.pressure", PSI),
            ("pod/c/memory.pressure", PSI),
            ("pod/c/io.pressure", PSI),
            ("pod/c/memory.current", "5000\n"),
            ("pod/c/memory.max", "9000\n"),
            ("pod/c/memory.swap.current", "100\n"),
            ("pod/c/memory.swap.max", "max\n"),
            ("pod/c/pids.current", "3\n"),
            ("pod/c/cgroup.procs", "17\n18\n"),
            ("pod/c/memory.events", "low 0\nhigh 0\nmax 5\noom 1\noom_kill 1\n"),
            ("pod/c/memory.peak", "8000\n"),
            ("pod/c/io.stat", "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n253:1 rbytes=7\n"),
            ("pod/c/memory.stat", "anon 700\nfile 3\nanon_thp 1\ninactive_file 1000\npgfault 42\npgmajfault 0\n"),
        ],
    );
    let usage = Usage::read(&cgroup).unwrap();
    assert!(usage.timestamp > 0);
    let memory = usage.memory.clone().unwrap();
    assert_eq!((memory.usage, memory.working_set, memory.limit), (5000, 4000, Some(9000)));
    assert_eq!((memory.rss, memory.page_faults, memory.major_page_faults), (Some(700), Some(42), Some(0)));
    assert_eq!(usage.swap, Some(Swap { usage: 100, available: None }));
    assert_eq!((usage.pids, usage.processes, usage.oom_kills), (Some(3), Some(2), Some(1)));
    assert_eq!((memory.peak, memory.limit_hits, memory.cache), (Some(8000), Some(5), Some(3)));
    let cpu = usage.cpu.clone().unwrap();
    assert_eq!((cpu.user_ns, cpu.system_ns), (Some(7000), Some(9000)));
    let throttling = Throttling { periods: 4, throttled_periods: 2, throttled_ns: 30_000 };
    assert_eq!(cpu.throttling, Some(throttling));
    let sda = DeviceIo { device: (8, 0), read_bytes: 10, write_bytes: 20, reads: 1, writes: 2 };
    assert_eq!(usage.io, [sda, DeviceIo { device: (253, 1), read_bytes: 7, ..DeviceIo::default() }]);

    let stats = container_stats(Default::default(), &usage, Some(250), None);
    let cpu = stats.cpu.unwrap();
    assert_eq!(cpu.usage_core_nano_seconds.unwrap().value, 906_151_000);
    assert_eq!(cpu.usage_nano_cores.unwrap().value, 250);
    let some = cpu.psi.unwrap().some.unwrap();
    assert_eq!(
        (some.total, some.avg10, some.avg60),
        (166_000, 1.25, 0.5),
        "the kernel's microseconds become nanoseconds"
    );
    let memory = stats.memory.unwrap();
    assert_eq!(memory.available_bytes.unwrap().value, 5000);
    assert_eq!(memory.major_page_faults.unwrap().value, 0, "none is not unknown");
    assert_eq!(stats.io.unwrap().psi.unwrap().full.unwrap().total, 128_000);
    assert_eq!(stats.swap.unwrap().swap_available_bytes, None);
    assert_eq!(process_usage(&usage).unwrap().process_count.unwrap().value, 2);
}

#[test]
fn version_1_counts_what_is_below_too_and_has_no_pressure() {
    let files = [
        ("cpu,cpuacct/pod/c/cpuacct.usage", "917101654053\n"),
        ("pids/pod/c/pids.current", "7\n"),
        ("memory/pod/c/memory.usage_in_bytes", "5000\n"),
        ("memory/pod/c/memory.limit_in_bytes", "9223372036854771712\n"),
        ("memory/pod/c/memory.memsw.usage_in_bytes", "5100\n"),
        ("memory/pod/c/memory.memsw.limit_in_bytes", "6000\n"),
        ("cpu,cpuacct/pod/c/cpu.stat", "nr_periods 4\nnr_throttled 2\nthrottled_time 30000\n"),
        ("memory/pod/c/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
        ("memory/pod/c/memory.failcnt", "9\n"),
        ("memory/pod/c/cgroup.procs", "1\n2\n3\n"),
        (
            "blkio/pod/c/blkio.throttle.io_service_bytes_recursive",
            "8:0 Read 10\n8:0 Write 20\n8:0 Sync 30\n8:0 Total 30\nTotal 30\n",
        ),
        ("blkio/pod/c/blkio.throttle.io_serviced_recursive", "8:0 Read 1\n8:0 Write 2\nTotal 3\n"),
        (
            "memory/pod/c/memory.stat",
            "rss 1\ninactive_file 2\npgfault 3\ntotal_rss 700\ntotal_inactive_file 9000\ntotal_pgfault 42\ntotal_swap 100\n",
        ),
    ];
    let (_root, cgroup) = machine(V1, &files);
    let usage = Usage::read(&cgroup).unwrap();
    let memory = usage.memory.clone().unwrap();
    assert_eq!((memory.working_set, memory.limit, memory.rss), (0, None, Some(700)), "never below zero");
    assert_eq!((memory.page_faults, memory.major_page_faults), (Some(42), None));
    assert_eq!(usage.swap, Some(Swap { usage: 100, available: Some(900) }));
    assert_eq!((usage.oom_kills, usage.processes, memory.limit_hits), (Some(2), Some(3), Some(9)));
    let throttling = Throttling { periods: 4, throttled_periods: 2, throttled_ns: 30_000 };
    assert_eq!(usage.cpu.clone().unwrap().throttling, Some(throttling));
    assert_eq!(usage.io, [DeviceIo { device: (8, 0), read_bytes: 10, write_bytes: 20, reads: 1, writes: 2 }]);
    let stats = container_stats(Default::default(), &usage, None, None);
    assert_eq!((stats.io, stats.memory.unwrap().available_bytes), (None, None));
    assert_eq!(stats.cpu.unwrap().usage_nano_cores, None);

    let (_root, no_swap) = machine(V1, &files[..4]);
    assert_eq!(Usage::read(&no_swap).unwrap().swap, None, "without swap accounting swap is unknown");
}

#[test]
fn a_cgroup_that_is_gone_says_so_and_garbage_is_unknown() {
    let (_root, cgroup) = machine(V2, &[("other/cpu.stat", "")]);
    assert!(matches!(Usage::read(&cgroup), Err(StatsError::Gone { .. })));
    let huge = "x".repeat(1 << 20);
    for text in ["", "usage_usec", "usage_usec -1", "usage_usec 99999999999999999999999", &huge] {
        let (_root, cgroup) =
            machine(V2, &[("pod/c/cpu.stat", text), ("pod/c/cpu.pressure", text), ("pod/c/memory.current", "1")]);
        assert_eq!(Usage::read(&cgroup).unwrap().cpu, None, "{:.40}", text);
    }
    let (_root, cgroup) =
        machine(V2, &[("pod/c/cpu.stat", "usage_usec 5\n"), ("pod/c/cpu.pressure", "some avg10=NaN\n")]);
    assert_eq!(Usage::read(&cgroup).unwrap().cpu, Some(Cpu { usage_ns: 5000, ..Cpu::default() }));
}

#[test]
fn the_rate_needs_two_readings_apart() {
    let start = Instant::now();
    let after = |ms| start + Duration::from_millis(ms);
    let mut rate = CpuRate::default();
    assert_eq!(rate.update(start, 0), None);
    assert_eq!(rate.update(after(1000), 500_000_000), Some(500_000_000), "half a core");
    assert_eq!(rate.update(after(1100), 600_000_000), Some(500_000_000), "too soon: the last rate");
    assert_eq!(rate.update(after(3000), 4_500_000_000), Some(2_000_000_000), "two cores");
    assert_eq!(rate.update(after(5000), 3), None, "the counter went back");
    assert_eq!(rate.update(after(6000), 3), Some(0));
}

#[test]
fn a_young_container_has_a_rate_from_its_start_on() {
    let start = Instant::now();
    let mut rate = CpuRate::since(start);
    assert_eq!(rate.update(start + Duration::from_secs(2), 1_000_000_000), Some(500_000_000));
    assert_eq!(rate.update(start + Duration::from_secs(3), 1_000_000_000), Some(0));
}

#[test]
fn sums_are_of_what_is_known() {
    let one = |cpu: Option<u64>, processes| Usage {
        timestamp: 5,
        cpu: cpu.map(|usage_ns| Cpu { usage_ns, ..Cpu::default() }),
        memory: cpu.map(|usage| Memory { usage, rss: Some(1), ..Memory::default() }),
        processes,
        ..Usage::default()
    };
    let sum = Usage::sum(&[one(Some(3), Some(1)), one(None, None), one(Some(4), Some(2))]);
    assert_eq!((sum.cpu.unwrap().usage_ns, sum.processes, sum.timestamp), (7, Some(3), 5));
    let memory = sum.memory.unwrap();
    assert_eq!((memory.usage, memory.rss, memory.cache), (7, Some(2), None));
    assert_eq!(Usage::sum(&[]), Usage::default(), "nothing is not zero");
}

#[test]
fn links_are_told_apart() {
    let own = |name: &str| Interface { name: name.to_owned(), rx_bytes: 5, ..Interface::default() };
    let usage = network_usage(9, &[own("net1"), own("eth0")]);
    assert_eq!(usage.default_interface.unwrap().name, "eth0");
    assert_eq!(usage.interfaces.iter().map(|own| &*own.name).collect::<Vec<_>>(), ["net1"]);
    assert_eq!(usage.interfaces[0].rx_bytes.unwrap().value, 5);
    assert_eq!(network_usage(9, &[]).default_interface, None);
}

#[test]
#[ignore = "needs root"]
#[allow(clippy::disallowed_methods)] // sys::exec waits for the program's end, and this one has none
fn a_real_cgroup_is_read() {
    let layout = CgroupLayout::detect(Path::new("/")).unwrap();
    let path = CgroupPath::new(&format!("/cricket-test-stats-{}", std::process::id())).unwrap();
    let cgroup = layout.cgroup(&path);
    assert!(cgroup.create().unwrap());
    let mut child = std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
    let work = (|| {
        cgroup.attach(child.id())?;
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let usage = Usage::read(&cgroup)?;
            if usage.cpu.as_ref().is_some_and(|c| c.usage_ns > 10_000_000) || Instant::now() > deadline {
                return anyhow::Ok(usage);
            }
        }
    })();
    child.kill().unwrap();
    child.wait().unwrap();
    while !cgroup.remove_if_empty().unwrap() {}
    let usage = work.unwrap();
    assert!(usage.cpu.unwrap().usage_ns > 10_000_000);
    assert_eq!(usage.pids, Some(1));
    assert!(usage.memory.is_some());
}
