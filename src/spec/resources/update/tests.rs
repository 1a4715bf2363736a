//! Merging: what stays, what goes together, and what is refused.

use proptest::prelude::*;

use super::*;
use crate::spec::tests::Case;

const MIB: i64 = 1 << 20;

type Change = fn(&mut cri::LinuxContainerResources);

fn limits(change: impl Fn(&mut cri::LinuxContainerResources)) -> cri::LinuxContainerResources {
    let mut limits = cri::LinuxContainerResources::default();
    change(&mut limits);
    limits
}

/// A host of cgroup version 2, where everything is legal that is legal anywhere.
fn anything_goes() -> HostFacts {
    let mut host = Case::default().host;
    host.kernel.cgroup = crate::security::CgroupVersion::V2;
    host.kernel.swap_accounting = true;
    host.kernel.hugetlb = true;
    host
}

#[test]
fn what_depends_on_each_other_is_told_together() {
    let current = limits(|l| {
        l.cpu_period = 50_000;
        l.cpu_quota = 10_000;
        l.cpu_shares = 512;
        l.memory_limit_in_bytes = 64 * MIB;
        l.oom_score_adj = 300;
    });
    let request = limits(|l| {
        l.cpu_quota = 20_000;
        l.memory_limit_in_bytes = 128 * MIB;
        l.oom_score_adj = 5;
    });
    let update = ResourceUpdate::new(&current, &request, &anything_goes()).unwrap();
    let told = update.told.clone().unwrap();
    let cpu = told.cpu().clone().unwrap();
    assert_eq!((cpu.quota(), cpu.period(), cpu.shares()), (Some(20_000), Some(50_000), None));
    let memory = told.memory().unwrap();
    assert_eq!((memory.limit(), memory.swap()), (Some(128 * MIB), Some(128 * MIB)), "no swap before, none after");
    assert_eq!(update.memory_limit(), Some(128 << 20));
    assert_eq!(update.after.oom_score_adj, 300, "cannot change at run time");
    assert_eq!((update.after.cpu_shares, update.after.memory_swap_limit_in_bytes), (512, 0), "shown as requested");
    let undo = update.undo.memory().unwrap();
    assert_eq!((undo.limit(), undo.swap()), (Some(64 * MIB), Some(64 * MIB)));
}

#[test]
fn limits_can_be_taken_away_and_put_back_where_there_were_none() {
    let current = limits(|l| l.memory_limit_in_bytes = 64 * MIB);
    let request = limits(|l| l.memory_limit_in_bytes = -1);
    let update = ResourceUpdate::new(&current, &request, &anything_goes()).unwrap();
    let memory = update.told.clone().unwrap().memory().unwrap();
    assert_eq!((memory.limit(), memory.swap()), (Some(-1), Some(-1)));
    assert_eq!(update.memory_limit(), None);

    let request = limits(|l| {
        l.memory_limit_in_bytes = 64 * MIB;
        l.cpu_quota = 5000;
        l.cpu_shares = 2;
    });
    let undo = ResourceUpdate::new(&limits(|_| {}), &request, &anything_goes()).unwrap().undo;
    let (cpu, memory) = (undo.cpu().clone().unwrap(), undo.memory().unwrap());
    assert_eq!((cpu.quota(), cpu.period(), cpu.shares()), (Some(-1), Some(100_000), Some(1024)));
    assert_eq!((memory.limit(), memory.swap()), (Some(-1), Some(-1)));
}

#[test]
fn what_does_not_fit_the_limits_in_force_is_refused() {
    let current = limits(|l| {
        l.memory_limit_in_bytes = 64 * MIB;
        l.memory_swap_limit_in_bytes = 80 * MIB;
    });
    let over_swap = limits(|l| l.memory_limit_in_bytes = 100 * MIB);
    let refused = ResourceUpdate::new(&current, &over_swap, &anything_goes()).unwrap_err().to_string();
    assert!(refused.contains("memory_swap_limit_in_bytes") && refused.contains(&(80 * MIB).to_string()), "{refused}");
    let cases: [(Change, &str); 6] = [
        (|l| l.cpu_quota = 5, "cpu_quota 5"),
        (|l| l.cpu_shares = -3, "cpu_shares -3"),
        (|l| l.cpuset_cpus = "0;1".into(), "cpuset_cpus \"0;1\""),
        (|l| l.memory_limit_in_bytes = 4096, "memory_limit_in_bytes 4096"),
        (|l| drop(l.unified.insert("../memory.max".into(), "1".into())), "../memory.max"),
        (|l| l.hugepage_limits.push(cri::HugepageLimit { page_size: "2 MB".into(), limit: 1 }), "2 MB"),
    ];
    for (change, word) in cases {
        let refused = ResourceUpdate::new(&current, &limits(change), &anything_goes()).unwrap_err().to_string();
        assert!(refused.contains(word), "{word}: {refused}");
    }
}

fn any_limits() -> impl Strategy<Value = cri::LinuxContainerResources> {
    let sizes = proptest::collection::btree_map(prop_oneof![Just("2MB"), Just("1GB")], 0..9_u64, 0..3);
    let unified = proptest::collection::hash_map("(memory|cpu)\\.(high|max|min)", "[0-9]{1,4}", 0..3);
    (
        (prop_oneof![Just(0), 1000..1_000_000_i64], prop_oneof![Just(0), Just(-1), 1000..9_000_000_i64]),
        prop_oneof![Just(0), 2..262_144_i64],
        prop_oneof![Just(0), Just(-1), MIB..64 * MIB],
        prop_oneof![Just(0), 64 * MIB..128 * MIB],
        (prop_oneof![Just(String::new()), "[0-3](-[4-7])?"], prop_oneof![Just(String::new()), Just("0".to_owned())]),
        sizes,
        unified,
    )
        .prop_map(|(cpu, cpu_shares, memory, swap, sets, sizes, unified)| cri::LinuxContainerResources {
            cpu_period: cpu.0,
            cpu_quota: cpu.1,
            cpu_shares,
            memory_limit_in_bytes: memory,
            memory_swap_limit_in_bytes: swap,
            oom_score_adj: 7,
            cpuset_cpus: sets.0,
            cpuset_mems: sets.1,
            hugepage_limits: sizes
                .into_iter()
                .map(|(size, limit)| cri::HugepageLimit { page_size: size.to_owned(), limit })
                .collect(),
            unified,
        })
}

proptest! {
    #[test]
    fn merging_is_what_it_says(current in any_limits(), request in any_limits()) {
        let host = anything_goes();
        let nothing = ResourceUpdate::new(&current, &cri::LinuxContainerResources::default(), &host).unwrap();
        prop_assert_eq!(&nothing.after, &current);
        prop_assert_eq!(nothing.told, None);

        let update = ResourceUpdate::new(&current, &request, &host).unwrap();
        let again = ResourceUpdate::new(&update.after, &request, &host).unwrap();
        prop_assert_eq!(&again.after, &update.after, "twice is once");
        prop_assert_eq!(&again.told, &update.told, "a retry tells the runtime the same");
        let after = &update.after;
        for (old, new, is) in [
            (current.cpu_period, request.cpu_period, after.cpu_period),
            (current.cpu_quota, request.cpu_quota, after.cpu_quota),
            (current.cpu_shares, request.cpu_shares, after.cpu_shares),
            (current.memory_limit_in_bytes, request.memory_limit_in_bytes, after.memory_limit_in_bytes),
        ] {
            prop_assert_eq!(is, if new == 0 { old } else { new });
        }
        for (key, value) in &request.unified {
            prop_assert_eq!(after.unified.get(key), Some(value));
        }
        prop_assert!(current.unified.keys().all(|key| after.unified.contains_key(key)));
        let told = update.told.unwrap_or_default();
        let pages = told.hugepage_limits().clone().unwrap_or_default();
        prop_assert_eq!(pages.len(), request.hugepage_limits.len());
        if request.memory_limit_in_bytes == 0 && request.memory_swap_limit_in_bytes == 0 {
            prop_assert!(told.memory().is_none(), "memory is not touched");
        }
    }
}
