//! Whole specs, as a reviewer should read them. Seccomp's list of calls is shown by its size only.

use serde_json::Value;

use super::*;
use crate::devices::ResolvedDevice;

fn shown(built: &BuiltSpec) -> Value {
    let mut value = serde_json::to_value(&built.spec).unwrap();
    for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
        let path = format!("/process/capabilities/{set}");
        if let Some(Value::Array(list)) = value.pointer_mut(&path) {
            list.sort_by_key(|cap| cap.to_string());
        }
    }
    if let Some(Value::Array(rules)) = value.pointer_mut("/linux/seccomp/syscalls") {
        let size: usize = rules.iter().map(|rule| rule["names"].as_array().unwrap().len()).sum();
        if size > 10 {
            *rules = vec![Value::String(format!("{} rules, {size} names", rules.len()))];
        }
    }
    value.sort_all_objects();
    value
}

macro_rules! snapshot {
    ($name:literal, $case:expr) => {
        insta::assert_json_snapshot!($name, shown(&$case.built()))
    };
}

#[test]
fn plain() {
    snapshot!("plain", Case::default());
}

#[test]
fn as_a_kubelet_asks() {
    let mut case = Case { image_user: "app".into(), ..Case::default() };
    case.config.envs = vec![pair("KUBERNETES_SERVICE_HOST", b"10.96.0.1")];
    *case.security() = cri::LinuxContainerSecurityContext {
        run_as_user: Some(cri::Int64Value { value: 1000 }),
        namespace_options: Some(cri::NamespaceOption { pid: 1, ..Default::default() }),
        masked_paths: ["/proc/acpi", "/proc/kcore", "/sys/firmware"].map(str::to_owned).to_vec(),
        readonly_paths: ["/proc/bus", "/proc/sys"].map(str::to_owned).to_vec(),
        ..Default::default()
    };
    case.seccomp(ProfileType::RuntimeDefault, "");
    *case.resources() = cri::LinuxContainerResources {
        cpu_shares: 102,
        cpu_period: 100_000,
        cpu_quota: 50_000,
        memory_limit_in_bytes: 128 << 20,
        oom_score_adj: 985,
        hugepage_limits: vec![cri::HugepageLimit { page_size: "2MB".into(), limit: 0 }],
        unified: [("memory.oom.group".to_owned(), "1".to_owned())].into(),
        ..Default::default()
    };
    case.mount("/var/run/secrets/kubernetes.io/serviceaccount").readonly = true;
    case.mount("/etc/hosts").host_path = "/var/lib/kubelet/pods/u/etc-hosts".into();
    case.mount("/dev/termination-log").host_path = "/var/lib/kubelet/pods/u/containers/c/1".into();
    snapshot!("kubelet", case);
}

#[test]
fn privileged() {
    let mut case = Case::default();
    case.privileged();
    case.seccomp(ProfileType::RuntimeDefault, "");
    case.security().masked_paths = vec!["/proc/kcore".into()];
    snapshot!("privileged", case);
    case.mount("/dev").host_path = "/dev".into();
    let built = case.built();
    assert_eq!(linux(&built).devices().as_deref(), Some(&[][..]), "no node is made in the host's /dev");
    let targets: Vec<_> = built.spec.mounts().iter().flatten().map(|m| m.destination().display().to_string()).collect();
    let want = ["/proc", "/sys", "/dev", "/etc/resolv.conf", "/etc/hostname", "/sys/fs/cgroup"];
    assert_eq!(targets, want, "what is below /dev comes with it");
}

#[test]
fn privileged_without_host_devices() {
    let mut case = Case::default();
    case.privileged();
    case.handler.privileged_without_host_devices = true;
    case.devices = vec![ResolvedDevice { node: node("/dev/fuse", DeviceKind::Char, 10, 229), access: "rw".into() }];
    snapshot!("privileged_without_host_devices", case);
}

#[test]
fn with_a_terminal_and_a_device() {
    let mut case = Case::default();
    case.config.tty = true;
    case.config.stdin = true;
    case.devices = vec![ResolvedDevice { node: node("/dev/fuse", DeviceKind::Char, 10, 229), access: "rwm".into() }];
    snapshot!("tty", case);
}

#[test]
fn in_the_hosts_namespaces() {
    let namespaces = NamespacePaths { net: None, ipc: None, uts: None, pid: PidNamespace::Host, user: None };
    let mut case = Case { namespaces, ..Case::default() };
    case.files.shm = "/dev/shm".into();
    case.files.hostname = None;
    snapshot!("host_namespaces", case);
}

#[test]
fn with_the_pods_processes_on_cgroup_v1() {
    let mut case = Case::default();
    case.namespaces.pid = PidNamespace::Path("/run/cricket/ns/pod/pid".into());
    case.host.kernel.cgroup = CgroupVersion::V1;
    snapshot!("shared_pid_v1", case);
}

#[test]
fn with_every_limit() {
    let mut case = Case::default();
    *case.resources() = cri::LinuxContainerResources {
        cpu_shares: 512,
        cpu_period: 50_000,
        cpu_quota: -1,
        cpuset_cpus: "0-1,3".into(),
        cpuset_mems: "0".into(),
        memory_limit_in_bytes: 15 << 20,
        memory_swap_limit_in_bytes: 30 << 20,
        oom_score_adj: 1000,
        hugepage_limits: vec![cri::HugepageLimit { page_size: "1GB".into(), limit: 1 << 30 }],
        unified: [("memory.high".to_owned(), "max".to_owned())].into(),
    };
    snapshot!("resources", case);
}

#[test]
fn with_a_profile_of_the_administrator() {
    let mut case = Case::default();
    case.seccomp(ProfileType::Localhost, "/var/lib/kubelet/seccomp/no-chmod.json");
    let json = br#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO"}]}"#;
    case.seccomp_localhost = Some(json.to_vec());
    snapshot!("seccomp_localhost", case);
}

#[test]
fn with_a_read_only_root_and_mounts_of_all_kinds() {
    let mut case = Case::default();
    case.security().readonly_rootfs = true;
    case.mount("/data/deep/deeper").propagation = 1;
    case.mount("/data").propagation = 2;
    let mount = case.mount("/ro");
    (mount.readonly, mount.recursive_read_only) = (true, true);
    case.mount("/noexec").mount_options = vec!["noexec".into(), "nosuid".into(), "noexec".into()];
    case.mount("/etc/resolv.conf/");
    case.mount("/dev/shm");
    snapshot!("readonly_and_mounts", case);
}

#[test]
fn with_capabilities_and_annotations() {
    let mut case = Case::default();
    case.security().capabilities = Some(cri::Capability {
        add_capabilities: vec!["NET_ADMIN".into()],
        drop_capabilities: vec!["ALL".into()],
        add_ambient_capabilities: vec!["NET_ADMIN".into()],
    });
    case.security().no_new_privs = true;
    case.handler.allowed_annotations = vec!["io.example/*".into()];
    case.sandbox.annotations =
        [("io.example/a", "pod"), ("io.example/b", "pod"), ("run.oci.handler", "wasm")].map(own).into();
    case.config.annotations = [("io.example/a", "container"), ("other", "x")].map(own).into();
    let mut value = shown(&case.built());
    value.as_object_mut().unwrap().remove("mounts");
    insta::assert_json_snapshot!("capabilities_and_annotations", value);
}

fn own((key, value): (&str, &str)) -> (String, String) {
    (key.to_owned(), value.to_owned())
}
