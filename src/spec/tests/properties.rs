//! Whatever is asked, these hold (the list of invariants beside the table of advisories).

use std::path::Path;

use proptest::prelude::*;

use super::*;

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        "[a-z0-9/._:=-]{0,12}",
        Just("ALL".to_owned()),
        Just("CAP_SYS_ADMIN".to_owned()),
        Just("net_raw".to_owned()),
        "\\PC{0,6}",
    ]
}

fn target() -> impl Strategy<Value = String> {
    let parts = prop_oneof![
        Just("proc"),
        Just("sys"),
        Just("dev"),
        Just("null"),
        Just("shm"),
        Just("fs"),
        Just("cgroup"),
        Just(".."),
        Just("."),
        Just("etc"),
        Just("self"),
        Just(""),
        Just("meminfo"),
        Just("data"),
        Just("kernel"),
        Just("pts"),
    ];
    proptest::collection::vec(parts, 0..5).prop_map(|parts| format!("/{}", parts.join("/")))
}

fn mount() -> impl Strategy<Value = cri::Mount> {
    (target(), any::<bool>(), any::<bool>(), 0..4).prop_map(|(container_path, readonly, rro, propagation)| cri::Mount {
        container_path,
        host_path: "/var/lib/volume".into(),
        readonly,
        propagation,
        recursive_read_only: rro && readonly,
        ..Default::default()
    })
}

fn annotations() -> impl Strategy<Value = std::collections::HashMap<String, String>> {
    let key = prop_oneof![
        Just("run.oci.handler".to_owned()),
        Just("org.systemd.property.ExecStart".to_owned()),
        Just("org.criu.config".to_owned()),
        Just("krun.cpus".to_owned()),
        Just("io.example/a".to_owned()),
        text(),
    ];
    proptest::collection::hash_map(key, text(), 0..5)
}

fn security() -> impl Strategy<Value = cri::LinuxContainerSecurityContext> {
    let names = || proptest::collection::vec(text(), 0..3);
    let ids = proptest::option::of(-2_i64..100_000);
    let masked = proptest::collection::vec(target(), 0..3);
    (any::<bool>(), names(), names(), ids.clone(), ids, masked, 0..3_i32, any::<bool>()).prop_map(
        |(privileged, add, drop, user, group, masked_paths, seccomp, no_new_privs)| {
            cri::LinuxContainerSecurityContext {
                privileged,
                capabilities: Some(cri::Capability {
                    add_capabilities: add,
                    drop_capabilities: drop,
                    ..Default::default()
                }),
                run_as_user: user.map(|value| cri::Int64Value { value }),
                run_as_group: group.map(|value| cri::Int64Value { value }),
                masked_paths,
                seccomp: Some(cri::SecurityProfile { profile_type: seccomp, localhost_ref: "/p.json".into() }),
                no_new_privs,
                ..Default::default()
            }
        },
    )
}

fn case() -> impl Strategy<Value = Case> {
    let mounts = proptest::collection::vec(mount(), 0..4);
    (security(), mounts, annotations(), annotations(), text(), text(), any::<bool>()).prop_map(
        |(security, mounts, pod, own, image_user, working_dir, pod_privileged)| {
            let mut case = Case { image_user, working_dir, ..Case::default() };
            *case.security() = security;
            case.config.mounts = mounts;
            case.config.annotations = own;
            case.sandbox.annotations = pod;
            case.sandbox.linux.get_or_insert_default().security_context.get_or_insert_default().privileged =
                pod_privileged;
            case.handler.allowed_annotations = vec!["*".into()];
            case.seccomp_localhost = Some(br#"{"defaultAction":"SCMP_ACT_ALLOW"}"#.to_vec());
            case
        },
    )
}

/// A mount of ours at such a place is the kernel's own file system.
fn check_mounts(built: &BuiltSpec, privileged: bool) -> Result<(), TestCaseError> {
    let mounts = built.spec.mounts().as_ref().unwrap();
    let mut last = 0;
    let mut seen = BTreeSet::new();
    for mount in mounts {
        let target = mount.destination();
        let depth = target.components().count();
        prop_assert!(depth >= last, "{target:?} comes after a deeper mount");
        last = depth;
        prop_assert!(seen.insert(target.clone()), "{target:?} twice");
        prop_assert!(target.is_absolute() && target != Path::new("/"), "{target:?}");
        prop_assert!(!target.components().any(|part| part == std::path::Component::ParentDir), "{target:?}");
        let options = mount.options().clone().unwrap_or_default();
        let readonly = options.iter().any(|option| option == "ro" || option == "rro");
        if !privileged && mount.typ().as_deref() == Some("bind") {
            let statistics = target == Path::new("/proc/meminfo");
            prop_assert!(statistics || !target.starts_with("/proc"), "{target:?}");
            let kernels = target.starts_with("/sys/fs/cgroup");
            prop_assert!(kernels || readonly || !target.starts_with("/sys"), "{target:?}");
            prop_assert!(!target.starts_with("/dev/null") && !target.starts_with("/dev/pts"), "{target:?}");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_spec_keeps_the_invariants(case in case()) {
        let Ok(built) = case.build() else { return Ok(()) };
        let privileged = case.config.linux.as_ref().unwrap().security_context.as_ref().unwrap().privileged;
        let caps = process(&built).capabilities().as_ref().unwrap();
        prop_assert!(caps.inheritable().as_ref().unwrap().is_empty(), "CVE-2022-29162");
        let held = case.host.kernel.caps.to_oci();
        prop_assert!(caps.bounding().as_ref().unwrap().is_subset(&held));

        let resources = linux(&built).resources().as_ref().unwrap();
        let first = &resources.devices().as_ref().unwrap()[0];
        prop_assert_eq!(first.allow(), privileged, "GHSA-g54h-m393-cpwq");
        prop_assert_eq!(first.access().as_deref(), Some("rwm"));
        prop_assert!(first.major().is_none() && first.minor().is_none());

        check_mounts(&built, privileged)?;
        for key in built.spec.annotations().iter().flat_map(|map| map.keys()) {
            for steering in ["run.oci.", "org.systemd.property.", "org.criu.", "krun."] {
                prop_assert!(!key.starts_with(steering), "{key}");
            }
        }
        let user = process(&built).user();
        prop_assert!(user.additional_gids().as_ref().unwrap().contains(&user.gid()), "CVE-2023-25173");
        prop_assert!(!process(&built).cwd().starts_with("/proc/self"), "CVE-2024-21626");
        prop_assert!(built.spec.hooks().is_none());
        prop_assert_eq!(linux(&built).cgroups_path().as_deref(), Some(Path::new("/kubepods/pod1/ctr")));
        if let (false, Some(masked)) = (privileged, linux(&built).masked_paths()) {
            prop_assert!(masked.iter().any(|path| path.ends_with("/powercap")), "GHSA-7ww5-4wqc-m92c");
        }
        let again: Spec = serde_json::from_slice(&serde_json::to_vec(&built.spec).unwrap()).unwrap();
        prop_assert_eq!(again, built.spec, "what is written is what is read");
    }
}
