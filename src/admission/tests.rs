//! Tests of the room `admission`.

use cri_proto::runtime::v1 as cri;
use proptest::prelude::*;

use super::*;

fn pod() -> cri::RunPodSandboxRequest {
    let metadata = cri::PodSandboxMetadata {
        name: "web-0".into(),
        namespace: "default".into(),
        uid: "5f6e0d3c-0000-4000-8000-000000000000".into(),
        attempt: 2,
    };
    let config = cri::PodSandboxConfig {
        metadata: Some(metadata),
        hostname: "web-0".into(),
        log_directory: "/var/log/pods/default_web-0_5f6e".into(),
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(cri::LinuxSandboxSecurityContext::default()),
            ..Default::default()
        }),
        ..Default::default()
    };
    cri::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() }
}

fn container() -> cri::CreateContainerRequest {
    let config = cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: "app".into(), attempt: 0 }),
        image: Some(cri::ImageSpec { image: "registry/app:1".into(), ..Default::default() }),
        log_path: "app/0.log".into(),
        ..Default::default()
    };
    cri::CreateContainerRequest { pod_sandbox_id: "a".repeat(64), config: Some(config), sandbox_config: None }
}

fn mount(container_path: &str, host_path: &str) -> cri::Mount {
    cri::Mount { container_path: container_path.into(), host_path: host_path.into(), ..Default::default() }
}

fn port(host_port: i32, host_ip: &str) -> cri::PortMapping {
    cri::PortMapping { container_port: 80, host_port, host_ip: host_ip.into(), protocol: 0 }
}

#[test]
fn ordinary_requests_are_admitted() {
    run_pod_sandbox(&pod()).unwrap();
    create_container(&container()).unwrap();
    let mut request = pod();
    let config = request.config.as_mut().unwrap();
    config.hostname.clear();
    config.log_directory.clear();
    // A kubelet sends each declared port, mapped or not.
    config.port_mappings = vec![port(0, ""), port(0, ""), port(80, "10.0.0.1"), port(80, "10.0.0.2"), port(81, "::1")];
    config.dns_config = Some(cri::DnsConfig {
        servers: vec!["10.96.0.10".into(), "fe80::1%eth0".into()],
        searches: vec!["default.svc.cluster.local".into(), ".".into()],
        options: vec!["ndots:5".into()],
    });
    run_pod_sandbox(&request).unwrap();
}

type PodChange = fn(&mut cri::PodSandboxConfig);

fn security(config: &mut cri::PodSandboxConfig) -> &mut cri::LinuxSandboxSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

fn namespaces(config: &mut cri::PodSandboxConfig) -> &mut cri::NamespaceOption {
    security(config).namespace_options.get_or_insert_default()
}

#[test]
fn what_is_wrong_with_a_pod_is_named() {
    let cases: [(PodChange, &str); 28] = [
        (|c| c.metadata = None, "config.metadata"),
        (|c| c.metadata.as_mut().unwrap().name.clear(), "metadata.name"),
        (|c| c.metadata.as_mut().unwrap().namespace.clear(), "metadata.namespace"),
        (|c| c.metadata.as_mut().unwrap().uid.clear(), "metadata.uid"),
        (|c| c.metadata.as_mut().unwrap().uid = "../../etc".into(), "metadata.uid"),
        (|c| c.metadata.as_mut().unwrap().uid = "..".into(), "metadata.uid"),
        (|c| c.metadata.as_mut().unwrap().name = "a\nb".into(), "metadata.name"),
        (|c| c.metadata.as_mut().unwrap().name = "x".repeat(254), "metadata.name"),
        (|c| c.log_directory = "var/log".into(), "log_directory"),
        (|c| c.log_directory = "/var/log/../../etc".into(), "log_directory"),
        (|c| c.log_directory = "/var/log\0".into(), "log_directory"),
        (|c| c.hostname = "x".repeat(65), "hostname"),
        (|c| c.hostname = "a b".into(), "hostname"),
        (|c| c.hostname = "a\nnameserver".into(), "hostname"),
        (|c| c.hostname = "-a".into(), "hostname"),
        (|c| c.dns_config.get_or_insert_default().searches = vec!["a\nnameserver 6.6.6.6".into()], "searches[0]"),
        (|c| c.dns_config.get_or_insert_default().servers = vec![String::new()], "servers[0]"),
        (|c| c.dns_config.get_or_insert_default().options = vec!["x".into(); 200], "options"),
        (|c| c.port_mappings = vec![port(65536, "")], "host_port"),
        (|c| c.port_mappings = vec![port(80, "x")], "host_ip"),
        (|c| c.port_mappings = vec![port(80, ""), port(80, "0.0.0.0")], "port_mappings[1]"),
        (|c| c.port_mappings = vec![cri::PortMapping { container_port: 0, ..port(80, "") }], "container_port"),
        (|c| c.port_mappings = vec![cri::PortMapping { protocol: 3, ..port(80, "") }], "protocol"),
        (|c| c.annotations = [("k".into(), "v".repeat(MAX_METADATA))].into(), "annotations"),
        (|c| c.labels = [(String::new(), "v".into())].into(), "labels"),
        (|c| security(c).run_as_group = Some(cri::Int64Value { value: 7 }), "run_as_group"),
        (|c| namespaces(c).network = 1, "namespace_options.network"),
        (|c| namespaces(c).pid = 3, "namespace_options.pid"),
    ];
    for (change, field) in cases {
        let mut request = pod();
        change(request.config.as_mut().unwrap());
        let error = run_pod_sandbox(&request).expect_err(field);
        assert!(error.field.contains(field), "{field}: {error}");
        assert!(error.value.chars().count() <= 256);
    }
}

#[test]
fn cve_2025_0750_names_and_paths_cannot_climb() {
    for climbing in ["..", "../x", "a/../../b", "/etc", "a/..", "x\0y", "a\nb", "", ".", "a/"] {
        let mut request = container();
        let config = request.config.as_mut().unwrap();
        config.log_path = climbing.into();
        assert_eq!(create_container(&request).is_ok(), climbing.is_empty(), "log_path {climbing:?}");
        let mut request = container();
        request.config.as_mut().unwrap().metadata.as_mut().unwrap().name = climbing.into();
        assert!(create_container(&request).is_err(), "name {climbing:?}");
    }
}

#[test]
fn a_user_namespace_has_one_range_from_root_on_and_nothing_of_the_host() {
    let mapping = |container_id, length| cri::IdMapping { host_id: 100_000, container_id, length };
    let judge = |mode: i32, ids: Vec<cri::IdMapping>| {
        let mut request = pod();
        namespaces(request.config.as_mut().unwrap()).userns_options =
            Some(cri::UserNamespace { mode, uids: ids.clone(), gids: ids });
        run_pod_sandbox(&request)
    };
    assert_eq!(judge(2, vec![]), Ok(()));
    assert_eq!(judge(0, vec![mapping(0, 65536)]), Ok(()));
    for (mode, ids) in [
        (0, vec![]),
        (0, vec![mapping(0, 65536), mapping(65536, 10)]),
        (0, vec![mapping(1, 65536)]),
        (0, vec![mapping(0, 65535)]),
        (0, vec![cri::IdMapping { host_id: 0, container_id: 0, length: 65536 }]),
        (0, vec![mapping(0, 0)]),
        (0, vec![mapping(0, u32::MAX)]),
        (1, vec![mapping(0, 65536)]),
        (3, vec![mapping(0, 65536)]),
        (9, vec![]),
    ] {
        let error = judge(mode, ids.clone()).unwrap_err();
        assert!(error.field.contains("userns_options"), "{mode} {ids:?}: {error}");
    }
    let hosts: [fn(&mut cri::NamespaceOption); 3] = [|o| o.network = 2, |o| o.ipc = 2, |o| o.pid = 2];
    for host in hosts {
        let mut request = pod();
        let options = namespaces(request.config.as_mut().unwrap());
        let ids = vec![mapping(0, 65536)];
        options.userns_options = Some(cri::UserNamespace { mode: 0, uids: ids.clone(), gids: ids });
        host(options);
        let error = run_pod_sandbox(&request).unwrap_err();
        assert!(error.value == "NODE" && error.field.contains("namespace_options."), "{error}");
    }
}

fn with_sysctl(key: &str, value: &str, change: PodChange) -> Result<(), AdmissionError> {
    let mut request = pod();
    let config = request.config.as_mut().unwrap();
    change(config);
    config.linux.get_or_insert_default().sysctls = [(key.to_owned(), value.to_owned())].into();
    run_pod_sandbox(&request)
}

#[test]
fn cve_2022_0532_and_0811_only_the_pods_own_sysctls() {
    for (key, value) in [
        ("kernel.shm_rmid_forced", "1"),
        ("fs.mqueue.msg_max", "100"),
        ("net.ipv4.ip_local_port_range", "1024 65535"),
        ("net.ipv4.ip_local_reserved_ports", "80,90-99"),
        ("net/ipv4/conf/eth0.100/rp_filter", "-1"),
        ("net.ipv4.conf.eth0/100.rp_filter", "1"),
    ] {
        with_sysctl(key, value, |_| {}).unwrap_or_else(|e| panic!("{e}"));
    }
    for key in [
        "kernel.core_pattern",
        "vm.swappiness",
        "kernel.shmmax/../core_pattern",
        "net/../kernel/core_pattern",
        "net",
        "net.",
        "net..x",
        "",
        "fs.mqueue",
        "kernel.shmmaxx",
        "net.ipv4.x+kernel.core_pattern",
        "net ipv4",
        "net.ipv4.x\n",
        "net.//.//kernel",
        "kernel/core_pattern",
        "net/./x",
        "kernel.hostname",
    ] {
        assert!(with_sysctl(key, "1", |_| {}).is_err(), "{key}");
    }
    for value in ["", "1+kernel.core_pattern=|/x", "a=b", "1\nkernel.core_pattern", "1\0", "|/bin/sh"] {
        assert!(with_sysctl("net.ipv4.ip_forward", value, |_| {}).is_err(), "{value:?}");
    }
    assert!(with_sysctl("net.ipv4.ip_forward", "1", |c| namespaces(c).network = 2).is_err());
    assert!(with_sysctl("kernel.shmmax", "1", |c| namespaces(c).ipc = 2).is_err());
    assert!(with_sysctl("kernel.shmmax", "1", |c| namespaces(c).network = 2).is_ok());
}

#[test]
fn cgroup_parents() {
    for (text, fine) in [
        ("", true),
        ("/kubepods/burstable/pod1", true),
        ("/kubepods.slice/kubepods-pod1.slice", true),
        ("test.slice", true),
        ("/test.slice", true),
        ("/a/../../b", false),
        ("relative", false),
        ("a/b.slice", false),
        ("../x.slice", false),
        ("a\0.slice", false),
    ] {
        assert_eq!(cgroup_parent(text).is_ok(), fine, "{text}");
    }
}

type ContainerChange = fn(&mut cri::ContainerConfig);

#[test]
fn what_is_wrong_with_a_container_is_named() {
    let cases: [(ContainerChange, &str); 13] = [
        (|c| c.metadata = None, "config.metadata"),
        (|c| c.image = None, "config.image"),
        (|c| c.image.as_mut().unwrap().image.clear(), "image.image"),
        (|c| c.mounts = vec![mount("relative", "/h")], "mounts[0].container_path"),
        (|c| c.mounts = vec![mount("/c", "h")], "mounts[0].host_path"),
        (|c| c.mounts = vec![mount("/c", "")], "mounts[0].host_path"),
        (|c| c.mounts = vec![mount("/c", "/h"), mount("//c/.", "/h")], "mounts[1].container_path"),
        (|c| c.mounts = vec![cri::Mount { propagation: 5, ..mount("/c", "/h") }], "mounts[0].propagation"),
        (|c| c.mounts = vec![mount(&"/x".repeat(35_000), "/h")], "mounts[0].container_path"),
        (|c| c.mounts = (0..100_000).map(|n| mount(&format!("/{n}"), "/h")).collect(), "config.mounts"),
        (|c| c.cdi_devices = vec![cri::CdiDevice { name: "vendor/class".into() }], "CDI_devices"),
        (|c| c.annotations = [("k".into(), "v".repeat(MAX_METADATA))].into(), "annotations"),
        (
            |c| {
                let security = c.linux.get_or_insert_default().security_context.get_or_insert_default();
                security.namespace_options = Some(cri::NamespaceOption { pid: 3, ..Default::default() });
            },
            "target_id",
        ),
    ];
    for (change, field) in cases {
        let mut request = container();
        change(request.config.as_mut().unwrap());
        let error = create_container(&request).expect_err(field);
        assert!(error.field.contains(field), "{field}: {error}");
    }
    let mut request = container();
    request.pod_sandbox_id.clear();
    assert_eq!(create_container(&request).expect_err("no sandbox").field, "pod_sandbox_id");
}

#[test]
fn sessions() {
    let cmd = vec!["ls".to_owned()];
    let sync = cri::ExecSyncRequest { container_id: "c".into(), cmd: cmd.clone(), timeout: 0 };
    assert!(exec_sync(&sync).is_ok());
    assert!(exec_sync(&cri::ExecSyncRequest { timeout: -1, ..sync.clone() }).is_err());
    assert!(exec_sync(&cri::ExecSyncRequest { cmd: vec![], ..sync.clone() }).is_err());
    assert!(exec_sync(&cri::ExecSyncRequest { cmd: vec!["a".into(), "b\0".into()], ..sync.clone() }).is_err());
    assert!(exec_sync(&cri::ExecSyncRequest { container_id: String::new(), ..sync }).is_err());
    for (tty, streams, fine) in [
        (false, [true, true, true], true),
        (true, [true, true, false], true),
        (true, [true, true, true], false),
        (false, [false; 3], false),
        (true, [true, false, false], true),
    ] {
        let [stdin, stdout, stderr] = streams;
        let request = cri::ExecRequest { container_id: "c".into(), cmd: cmd.clone(), tty, stdin, stdout, stderr };
        assert_eq!(exec(&request).is_ok(), fine, "{request:?}");
        let request = cri::AttachRequest { container_id: "c".into(), tty, stdin, stdout, stderr };
        assert_eq!(attach(&request).is_ok(), fine, "{request:?}");
    }
    let forward =
        |port: &[i32]| port_forward(&cri::PortForwardRequest { pod_sandbox_id: "p".into(), port: port.to_vec() });
    assert!(forward(&[]).is_ok() && forward(&[1, 65535]).is_ok());
    assert!(forward(&[0]).is_err() && forward(&[80, 65536]).is_err() && forward(&[-1]).is_err());
}

#[test]
fn a_config_has_one_hash_whatever_the_order_of_its_maps() {
    let labels: Vec<(String, String)> = (0..100).map(|n| (format!("k{n}"), format!("v{n}"))).collect();
    let (mut one, mut two) = (pod().config.unwrap(), pod().config.unwrap());
    one.labels = labels.iter().cloned().collect();
    two.labels = labels.into_iter().rev().collect();
    assert_eq!(config_hash(&one), config_hash(&two));
    two.labels.insert("k0".into(), "other".into());
    assert_ne!(config_hash(&one), config_hash(&two));
    let key = SandboxKey::of(one.metadata.as_ref().unwrap());
    assert_eq!(key.to_string(), "web-0_default_5f6e0d3c-0000-4000-8000-000000000000_2");
}

proptest! {
    #[test]
    fn an_admitted_path_stays_below_its_directory(path in "[a./\\PC]{0,16}") {
        if field::relative_path("f", &path).is_ok() {
            let joined = std::path::Path::new("/logs").join(&path);
            prop_assert!(joined.starts_with("/logs") && !joined.components().any(|part| part.as_os_str() == ".."));
            prop_assert!(joined != std::path::Path::new("/logs"));
        }
    }

    #[test]
    fn an_admitted_sysctl_stays_below_its_tree(key in "(net|kernel|fs)[a-z./]{0,20}") {
        if with_sysctl(&key, "1", |_| {}).is_ok() {
            let ours = ["net", "kernel", "fs.mqueue", "fs/mqueue"].iter().any(|tree| key.starts_with(tree));
            prop_assert!(ours && !key.split('/').any(|part| part == ".."), "{}", key);
        }
    }
}
