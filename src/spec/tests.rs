//! Tests of the room `spec`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use cri::security_profile::ProfileType;

use super::*;
use crate::devices::{DeviceKind, DeviceNode};
use crate::security::{AppArmor, Arch, Cap, CapSet, CgroupVersion};

mod cdi;
mod properties;
mod runtime;
mod snapshots;

/// Everything that an input borrows.
#[derive(Debug)]
pub(super) struct Case {
    pub sandbox: cri::PodSandboxConfig,
    pub config: cri::ContainerConfig,
    pub image_user: String,
    pub image_env: Vec<String>,
    pub working_dir: String,
    pub host: HostFacts,
    pub namespaces: NamespacePaths,
    pub handler: HandlerPolicy,
    pub files: PodFiles,
    pub devices: Vec<crate::devices::ResolvedDevice>,
    pub cdi: crate::devices::cdi::Injection,
    pub apparmor: Option<AppArmor>,
    pub seccomp_localhost: Option<Vec<u8>>,
    pub rootfs: PathBuf,
    pub cgroups_path: String,
    pub resolved_target: Option<PathBuf>,
    pub source_propagation: Option<SourcePropagation>,
}

impl Default for Case {
    fn default() -> Self {
        let mut caps = CapSet::all();
        caps.remove(Cap::SYS_RESOURCE);
        let path = |name: &str| Some(PathBuf::from(format!("/run/cricket/ns/pod/{name}")));
        Self {
            sandbox: cri::PodSandboxConfig { hostname: "pod-0".into(), ..Default::default() },
            config: cri::ContainerConfig { command: vec!["/bin/app".into()], ..Default::default() },
            image_user: String::new(),
            image_env: vec!["PATH=/app/bin:/bin".into(), "IMAGE=1".into()],
            working_dir: String::new(),
            host: HostFacts {
                kernel: Facts {
                    caps,
                    arch: Some(Arch::X86_64),
                    kernel: (6, 1),
                    seccomp: true,
                    selinux: crate::security::selinux::State::Off,
                    recursive_read_only: true,
                    min_oom_score_adj: 0,
                    max_open_files: 20_000,
                    cgroup: CgroupVersion::V2,
                    swap_accounting: true,
                    hugetlb: true,
                },
                devices: vec![node("/dev/sda", DeviceKind::Block, 8, 0), node("/dev/kvm", DeviceKind::Char, 10, 232)],
            },
            namespaces: NamespacePaths {
                net: path("net"),
                ipc: path("ipc"),
                uts: path("uts"),
                pid: PidNamespace::Own,
                user: None,
            },
            handler: HandlerPolicy { recursive_read_only: true, ..HandlerPolicy::default() },
            files: PodFiles {
                hostname: Some("/run/cricket/pods/pod/hostname".into()),
                resolv_conf: "/run/cricket/pods/pod/resolv.conf".into(),
                hosts: None,
                shm: "/run/cricket/pods/pod/shm".into(),
                writable: false,
            },
            devices: vec![],
            cdi: crate::devices::cdi::Injection::default(),
            apparmor: None,
            seccomp_localhost: None,
            rootfs: "/run/cricket/k8s.io/ctr/rootfs".into(),
            cgroups_path: "/kubepods/pod1/ctr".into(),
            resolved_target: None,
            source_propagation: None,
        }
    }
}

pub(super) fn node(path: &str, kind: DeviceKind, major: u32, minor: u32) -> DeviceNode {
    DeviceNode { path: path.into(), kind, major, minor, mode: 0o660, uid: 0, gid: 6 }
}

impl Case {
    pub fn security(&mut self) -> &mut cri::LinuxContainerSecurityContext {
        self.config.linux.get_or_insert_default().security_context.get_or_insert_default()
    }

    pub fn resources(&mut self) -> &mut cri::LinuxContainerResources {
        self.config.linux.get_or_insert_default().resources.get_or_insert_default()
    }

    pub fn privileged(&mut self) {
        self.security().privileged = true;
        self.sandbox.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    }

    pub fn seccomp(&mut self, kind: ProfileType, path: &str) {
        self.security().seccomp =
            Some(cri::SecurityProfile { profile_type: kind as i32, localhost_ref: path.to_owned() });
    }

    pub fn mount(&mut self, container_path: &str) -> &mut cri::Mount {
        let host_path = "/var/lib/volume".to_owned();
        self.config.mounts.push(cri::Mount { container_path: container_path.into(), host_path, ..Default::default() });
        self.config.mounts.last_mut().unwrap()
    }

    pub fn build(&self) -> Result<BuiltSpec, SpecError> {
        let image = ImageFacts {
            user: &self.image_user,
            env: &self.image_env,
            working_dir: &self.working_dir,
            ..ImageFacts::default()
        };
        let mounts: Vec<ResolvedMount<'_>> = self
            .config
            .mounts
            .iter()
            .map(|cri| ResolvedMount {
                cri,
                source: if cri.image.is_some() {
                    "/run/cricket.shelf/image".into()
                } else {
                    cri.host_path.clone().into()
                },
                source_kind: SourceKind::Directory,
                source_propagation: self.source_propagation,
                resolved_target: self.resolved_target.clone(),
            })
            .collect();
        build(&SpecInput {
            id: "ctr",
            sandbox_id: "pod",
            sandbox: &self.sandbox,
            config: &self.config,
            image: &image,
            passwd: Some(b"root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/:/bin/sh\n"),
            group: Some(b"root:x:0:\napp:x:1000:\nstaff:x:50000:app\n"),
            hostname: &self.sandbox.hostname,
            host: &self.host,
            namespaces: &self.namespaces,
            files: &self.files,
            rootfs: &self.rootfs,
            cgroups_path: &self.cgroups_path,
            handler: &self.handler,
            mounts: &mounts,
            devices: &self.devices,
            cdi: &self.cdi,
            apparmor: self.apparmor.as_ref(),
            seccomp_localhost: self.seccomp_localhost.as_deref(),
            selinux_level: Some("s0:c1,c2"),
        })
    }

    pub fn built(&self) -> BuiltSpec {
        self.build().unwrap_or_else(|e| panic!("{e}"))
    }

    pub fn refused(&self) -> String {
        self.build().err().unwrap_or_else(|| panic!("was built: {:?}", self.config)).to_string()
    }
}

pub(super) fn linux(built: &BuiltSpec) -> &Linux {
    built.spec.linux().as_ref().unwrap()
}

pub(super) fn process(built: &BuiltSpec) -> &Process {
    built.spec.process().as_ref().unwrap()
}

fn env_of(case: &Case) -> Vec<String> {
    process(&case.built()).env().clone().unwrap()
}

fn pair(key: &str, value: &[u8]) -> cri::KeyValue {
    cri::KeyValue { key: key.into(), value: value.into() }
}

#[test]
fn cve_2021_21334_the_environment_is_exactly_the_computed_list() {
    let mut case = Case { image_env: vec!["A=image".into(), "B=image".into()], ..Case::default() };
    case.config.envs = vec![pair("B", b"pod"), pair("C", b"x=y"), pair("EMPTY", b"")];
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let want = [path, "HOSTNAME=pod-0", "A=image", "B=pod", "C=x=y", "EMPTY="];
    assert_eq!(env_of(&case), want);
    assert_eq!(case.image_env, ["A=image", "B=image"]);
    case.config.tty = true;
    assert!(env_of(&case).contains(&"TERM=xterm".to_owned()));
    case.config.envs = vec![pair("TERM", b"vt100"), pair("PATH", b"/p"), pair("HOSTNAME", b"mine")];
    assert_eq!(env_of(&case), ["PATH=/p", "HOSTNAME=mine", "TERM=vt100", "A=image", "B=image"]);
    case.image_env = ["noequals", "=novalue", "", "NUL=a\0b", "OK=1"].map(str::to_owned).to_vec();
    assert_eq!(env_of(&case), ["PATH=/p", "HOSTNAME=mine", "TERM=vt100", "OK=1"]);
}

#[test]
fn variables_that_no_process_can_have_are_named() {
    let too_long = vec![b'x'; 128 * 1024];
    let cases: [(&str, &[u8], &str); 6] = [
        ("", b"x", "envs[0]"),
        ("A=B", b"x", "A=B"),
        ("A\0", b"x", "envs[0]"),
        ("BYTES", &[0xff, 0xfe], "BYTES"),
        ("NULS", b"secret\0", "NULS"),
        ("LONG", &too_long, "LONG"),
    ];
    for (key, value, named) in cases {
        let mut case = Case::default();
        case.config.envs = vec![pair(key, value)];
        let error = case.refused();
        assert!(error.contains(named) && !error.contains("secret"), "{error}");
    }
}

#[test]
fn cve_2022_4318_and_2026_15809_home_reaches_the_environment_and_no_file() {
    let mut case = Case { image_env: vec!["HOME=/x\nevil:x:0:0::/:/bin/sh".into()], ..Case::default() };
    case.security().run_as_user = Some(cri::Int64Value { value: 4242 });
    let built = case.built();
    let targets: Vec<_> = built.spec.mounts().as_ref().unwrap().iter().map(|m| m.destination().clone()).collect();
    assert!(!targets.iter().any(|target| target.ends_with("passwd") || target.ends_with("group")), "{targets:?}");
}

#[test]
fn cve_2019_11245_the_images_user_is_the_one_that_runs_and_is_reported() {
    let case = Case { image_user: "app".into(), ..Case::default() };
    let built = case.built();
    assert_eq!((process(&built).user().uid(), process(&built).user().gid()), (1000, 1000));
    assert_eq!(process(&built).user().additional_gids().as_deref(), Some(&[1000, 50000][..]));
    let status = cri::LinuxContainerUser { uid: 1000, gid: 1000, supplemental_groups: vec![1000, 50000] };
    assert_eq!(built.user, status);
}

#[test]
fn cve_2023_2431_localhost_never_runs_unconfined() {
    let mut case = Case::default();
    for path in ["", "relative.json", "p\0q"] {
        case.seccomp(ProfileType::Localhost, path);
        assert!(case.refused().contains("Localhost"), "{path:?}");
    }
    case.seccomp(ProfileType::Localhost, "/p/profile.json");
    assert!(case.refused().contains("/p/profile.json"), "not read");
    case.seccomp_localhost = Some(b"{}".to_vec());
    assert!(case.refused().contains("/p/profile.json"), "not a profile");
    case.seccomp_localhost = Some(br#"{"defaultAction":"SCMP_ACT_ALLOW"}"#.to_vec());
    assert!(linux(&case.built()).seccomp().is_some());
    case.host.kernel.seccomp = false;
    assert!(case.refused().contains("kernel"));
    case.privileged();
    assert!(linux(&case.built()).seccomp().is_none(), "privileged ignores the profile");
}

#[test]
#[allow(deprecated)] // the old fields are what is tested
fn the_deprecated_profile_fields_count_when_the_new_are_unset() {
    let mut case =
        Case { seccomp_localhost: Some(br#"{"defaultAction":"SCMP_ACT_ALLOW"}"#.to_vec()), ..Case::default() };
    for (path, confined) in [
        ("", false),
        ("unconfined", false),
        ("runtime/default", true),
        ("docker/default", true),
        ("localhost//p.json", true),
    ] {
        case.security().seccomp_profile_path = path.into();
        assert_eq!(linux(&case.built()).seccomp().is_some(), confined, "{path}");
    }
    for path in ["localhost/", "localhost/relative", "nonsense"] {
        case.security().seccomp_profile_path = path.into();
        case.refused();
    }
    case.seccomp(ProfileType::Unconfined, "");
    assert!(linux(&case.built()).seccomp().is_none(), "the new field wins");
}

#[test]
#[allow(deprecated)] // the old field is what is tested
fn apparmor_profiles() {
    let profile = |case: &Case| process(&case.built()).apparmor_profile().clone();
    let mut case = Case::default();
    assert_eq!(profile(&case), None);
    let localhost = |name: &str| cri::SecurityProfile { profile_type: 2, localhost_ref: name.into() };
    case.security().apparmor = Some(localhost("localhost/mine"));
    assert!(case.refused().contains("not enabled"));
    case.apparmor = Some(AppArmor { loaded: BTreeSet::from(["mine".to_owned()]) });
    assert_eq!(profile(&case).as_deref(), Some("mine"));
    case.security().apparmor_profile = "localhost/other".into();
    assert_eq!(profile(&case).as_deref(), Some("mine"), "the new field wins");
    case.security().apparmor = Some(localhost("absent"));
    assert!(case.refused().contains("not loaded"));
    case.security().apparmor = Some(localhost(""));
    case.refused();
    case.security().apparmor = None;
    assert!(case.refused().contains("other"));
    case.security().apparmor_profile = String::new();
    assert_eq!(profile(&case), None, "no default profile is loaded");
    case.security().apparmor = Some(cri::SecurityProfile::default());
    assert!(case.refused().contains("cricket-default"), "RuntimeDefault is a promise");
    case.apparmor.as_mut().unwrap().loaded.insert("cricket-default".into());
    assert_eq!(profile(&case).as_deref(), Some("cricket-default"));
    case.privileged();
    assert_eq!(profile(&case), None);
}

#[test]
fn selinux_labels() {
    let mut case = Case::default();
    case.security().selinux_options = Some(cri::SeLinuxOption { level: "s0,c4,c5".into(), ..Default::default() });
    assert!(case.refused().contains("s0,c4,c5"), "refused also where SELinux is off");
    case.security().selinux_options = None;
    case.host.kernel.selinux = crate::security::selinux::State::On;
    let built = case.built();
    assert_eq!(process(&built).selinux_label().as_deref(), Some("system_u:system_r:container_t:s0:c1,c2"));
    assert_eq!(built.mount_label.as_deref(), Some("system_u:object_r:container_file_t:s0:c1,c2"));
    case.privileged();
    assert!(process(&case.built()).selinux_label().as_ref().unwrap().contains(":spc_t:"));
}

#[test]
fn privileged_needs_a_privileged_sandbox() {
    let mut case = Case::default();
    case.security().privileged = true;
    assert!(case.refused().contains("privileged"));
}

#[test]
fn ghsa_7ww5_4wqc_m92c_energy_counters_are_masked_with_any_list() {
    let mut case = Case::default();
    assert_eq!(linux(&case.built()).masked_paths(), &None, "an empty list masks nothing");
    case.security().masked_paths = vec!["/proc/kcore".into()];
    let powercap = "/sys/devices/virtual/powercap".to_owned();
    assert_eq!(linux(&case.built()).masked_paths(), &Some(vec!["/proc/kcore".into(), powercap.clone()]));
    case.security().masked_paths.push(powercap);
    assert_eq!(linux(&case.built()).masked_paths().as_ref().unwrap().len(), 2);
    case.security().readonly_paths = vec!["relative".into()];
    assert!(case.refused().contains("readonly_paths[0]"));
    case.security().readonly_paths = vec!["/proc/sys".into()];
    case.privileged();
    let built = case.built();
    assert_eq!((linux(&built).masked_paths(), linux(&built).readonly_paths()), (&None, &None));
}

#[test]
fn limits_that_make_no_sense_are_named() {
    type Change = fn(&mut cri::LinuxContainerResources);
    let cases: [(Change, &str); 14] = [
        (|r| r.memory_limit_in_bytes = 512 * 1024 - 1, "memory_limit_in_bytes 524287"),
        (|r| r.memory_limit_in_bytes = -2, "memory_limit_in_bytes"),
        (|r| (r.memory_limit_in_bytes, r.memory_swap_limit_in_bytes) = (1 << 30, 1 << 20), "memory_swap_limit"),
        (|r| r.cpu_shares = -1, "cpu_shares"),
        (|r| r.cpu_shares = 262_145, "cpu_shares"),
        (|r| r.cpu_quota = 999, "cpu_quota"),
        (|r| r.cpu_period = 1_000_001, "cpu_period"),
        (|r| r.oom_score_adj = 1001, "oom_score_adj"),
        (|r| r.oom_score_adj = i64::MIN, "oom_score_adj"),
        (|r| r.cpuset_cpus = "0-3;rm".into(), "cpuset_cpus"),
        (|r| r.cpuset_mems = "a".into(), "cpuset_mems"),
        (|r| r.hugepage_limits = vec![cri::HugepageLimit { page_size: "2 MB".into(), limit: 1 }], "2 MB"),
        (|r| r.unified = [("../x.y".into(), "1".into())].into(), "../x.y"),
        (|r| r.unified = [("cgroup.procs".into(), "1".into())].into(), "cgroup.procs"),
    ];
    for (change, named) in cases {
        let mut case = Case::default();
        change(case.resources());
        let error = case.refused();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn limits_are_what_the_host_can_keep() {
    let mut case = Case::default();
    case.resources().memory_limit_in_bytes = 64 << 20;
    case.resources().oom_score_adj = -997;
    let memory = |case: &Case| *linux(&case.built()).resources().as_ref().unwrap().memory().as_ref().unwrap();
    assert_eq!((memory(&case).limit(), memory(&case).swap()), (Some(64 << 20), Some(64 << 20)));
    let built = case.built();
    assert_eq!(process(&built).oom_score_adj(), Some(0));
    assert_eq!(built.clamped.len(), 2, "{:?}", built.clamped);
    case.host.kernel.swap_accounting = false;
    assert_eq!(memory(&case).swap(), None);
    case.host.kernel.min_oom_score_adj = -1000;
    case.host.kernel.max_open_files = u64::MAX;
    assert_eq!(process(&case.built()).oom_score_adj(), Some(-997));
    assert!(case.built().clamped.is_empty());

    case.resources().unified = [("memory.high".into(), "1".into())].into();
    assert!(linux(&case.built()).resources().as_ref().unwrap().unified().is_some());
    case.host.kernel.cgroup = CgroupVersion::V1;
    assert!(case.refused().contains("memory.high"));
    case.resources().unified.clear();
    case.host.kernel.hugetlb = false;
    case.resources().hugepage_limits = vec![cri::HugepageLimit { page_size: "2MB".into(), limit: 0 }];
    assert_eq!(linux(&case.built()).resources().as_ref().unwrap().hugepage_limits(), &None);
    case.resources().hugepage_limits[0].limit = 1 << 21;
    assert!(case.refused().contains("2MB"));
}

#[test]
fn a_container_has_its_pods_user_namespace() {
    let mut case = Case::default();
    let range = cri::IdMapping { host_id: 200_000, container_id: 0, length: 65536 };
    let asked = cri::UserNamespace { mode: 0, uids: vec![range], gids: vec![range] };
    let options = |asked: &cri::UserNamespace| {
        Some(cri::NamespaceOption { userns_options: Some(asked.clone()), ..Default::default() })
    };
    case.security().namespace_options = options(&asked);
    let error = case.build().expect_err("was built");
    assert!(error.kind() == ErrorKind::InvalidArgument && error.to_string().contains("0:200000:65536"), "{error}");
    case.mount("/mapped").uid_mappings = vec![range];
    case.security().namespace_options = None;
    assert!(case.refused().contains("no user namespace"));
    let path = PathBuf::from("/run/cricket/ns/pod/user");
    case.namespaces.user = Some(UserNamespace { path: path.clone(), uids: range, gids: range });
    assert!(case.refused().contains("gid_mappings"));
    case.config.mounts[0].gid_mappings = vec![range];
    for options in [None, options(&asked)] {
        case.security().namespace_options = options;
        let built = case.built();
        let maps = linux(&built).uid_mappings().clone().unwrap();
        assert_eq!((maps[0].container_id(), maps[0].host_id(), maps[0].size()), (0, 200_000, 65536));
        assert_eq!(linux(&built).gid_mappings().as_ref(), Some(&maps));
        let list = linux(&built).namespaces().clone().unwrap();
        let user = list.iter().find(|namespace| namespace.typ().to_string() == "user").unwrap();
        assert_eq!(user.path().as_ref(), Some(&path));
        assert_eq!(built.spec.process().as_ref().unwrap().rlimits(), &None);
    }
    case.security().namespace_options = options(&cri::UserNamespace { mode: 2, ..Default::default() });
    assert!(case.refused().contains("NODE"));
    case.security().namespace_options = None;
    case.config.mounts[0].propagation = 2;
    assert!(case.refused().contains("do not reach the host"));
}

#[test]
fn cve_2023_25809_the_cgroup_namespace_is_private_on_v2() {
    let kinds = |case: &Case| -> Vec<String> {
        linux(&case.built()).namespaces().as_ref().unwrap().iter().map(|ns| ns.typ().to_string()).collect()
    };
    let mut case = Case::default();
    assert_eq!(kinds(&case), ["mnt", "net", "ipc", "uts", "pid", "cgroup"]);
    case.privileged();
    assert!(kinds(&case).contains(&"cgroup".to_owned()));
    case.host.kernel.cgroup = CgroupVersion::V1;
    assert!(!kinds(&case).contains(&"cgroup".to_owned()));
}

#[test]
fn an_exec_is_the_container_with_another_command() {
    let mut case = Case { image_user: "app".into(), ..Case::default() };
    case.security().no_new_privs = true;
    let built = case.built();
    let exec = exec_process(&built.spec, &["id".into(), "-u".into()], true).unwrap().unwrap();
    assert_eq!(exec.args().as_deref().unwrap(), ["id", "-u"]);
    assert_eq!((exec.terminal(), exec.no_new_privileges()), (Some(true), Some(true)));
    assert!(exec.env().as_ref().unwrap().contains(&"TERM=xterm".to_owned()));
    assert_eq!((exec.user(), exec.capabilities()), (process(&built).user(), process(&built).capabilities()));
    assert_eq!((exec.cwd(), exec.oom_score_adj()), (process(&built).cwd(), process(&built).oom_score_adj()));
    let quiet = exec_process(&built.spec, &["id".into()], false).unwrap().unwrap();
    assert_eq!(quiet.env(), process(&built).env());
    assert!(exec_process(&built.spec, &[], false).is_err());
    assert!(exec_process(&built.spec, &["a\0".into()], false).is_err());
}
