//! What a real runtime makes of a spec. The container sees the machine's own `/usr`, read-only, and runs its perl: it can
//! make any system call with any argument.

use std::time::Duration;

use super::*;
use crate::sys::exec::{self, Exec};

/// crun refuses the hybrid of both cgroup versions that some machines have, so it is hidden from it.
const PRIVATE: &str = r#"
    mount --make-rslave / && { ! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified; } && exec "$@"
"#;

/// Runs a spec to its end and gives back what it printed.
async fn run(runtime: &str, case: &mut Case, script: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path();
    case.rootfs = bundle.join("rootfs");
    std::fs::create_dir(&case.rootfs).unwrap();
    for (link, target) in [("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")] {
        std::os::unix::fs::symlink(target, case.rootfs.join(link)).unwrap();
    }
    for file in ["resolv.conf", "hostname"] {
        std::fs::write(bundle.join(file), "x\n").unwrap();
    }
    std::fs::create_dir(bundle.join("shm")).unwrap();
    case.files.hostname = Some(bundle.join("hostname"));
    case.files.resolv_conf = bundle.join("resolv.conf");
    case.files.shm = bundle.join("shm");
    case.host = HostFacts { kernel: crate::security::probe().unwrap(), devices: vec![] };
    case.namespaces = NamespacePaths { net: None, ipc: None, uts: None, pid: PidNamespace::Own, user: None };
    let id = format!("cricket-spec-test-{}-{}", std::process::id(), bundle.file_name().unwrap().to_string_lossy());
    case.cgroups_path = format!("/{}", id.replace('.', ""));
    case.config.command = ["/usr/bin/perl", "-e", script].map(str::to_owned).to_vec();
    let program = case.rootfs.join("socketcall");
    std::fs::write(&program, socketcall_program()).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let usr = case.mount("/usr");
    (usr.host_path, usr.readonly) = ("/usr".into(), true);
    let built = case.built();
    std::fs::write(bundle.join("config.json"), serde_json::to_vec(&built.spec).unwrap()).unwrap();
    let mut args = vec!["-m".into(), "sh".into(), "-c".into(), PRIVATE.into(), "sh".into(), runtime.into()];
    args.extend(["--root".into(), bundle.join("state").into(), "run".into(), "-b".into(), bundle.into(), id.into()]);
    let output = exec::run(Exec {
        program: "unshare".into(),
        args,
        env: vec![("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into())],
        stdin: vec![],
        timeout: Duration::from_secs(60),
        output_cap: 64 * 1024,
    })
    .await
    .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{runtime}: {} {}", output.status, text(&output.stderr));
    text(&output.stdout)
}

/// An ELF program of a few instructions: the 32-bit kernel entry with `socketcall(SYS_SOCKET, {AF_INET, SOCK_STREAM, 0})`,
/// whose negated result becomes the exit status.
fn socketcall_program() -> Vec<u8> {
    const BASE: u32 = 0x40_0000;
    const HEADERS: u32 = 0x78;
    let code = |arguments: u32| -> Vec<u8> {
        let mut code = vec![0xb8, 102, 0, 0, 0, 0xbb, 1, 0, 0, 0, 0xb9]; // eax = socketcall, ebx = SYS_SOCKET, ecx =
        code.extend(arguments.to_le_bytes());
        code.extend([0xcd, 0x80, 0x89, 0xc7, 0xf7, 0xdf]); // int 0x80, edi = -eax
        code.extend([0xb8, 60, 0, 0, 0, 0x0f, 0x05]); // exit(edi)
        code
    };
    let size = u32::try_from(code(0).len()).unwrap();
    let mut text = code(BASE + HEADERS + size);
    [2_u32, 1, 0].iter().for_each(|argument| text.extend(argument.to_le_bytes()));
    let (base, entry, length) = (u64::from(BASE), u64::from(BASE + HEADERS), u64::from(HEADERS) + text.len() as u64);
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    elf.extend([2_u16, 62].iter().flat_map(|n| n.to_le_bytes())); // an executable, for x86-64
    elf.extend(1_u32.to_le_bytes());
    elf.extend([entry, 64, 0].iter().flat_map(|n| n.to_le_bytes()));
    elf.extend(0_u32.to_le_bytes());
    elf.extend([64_u16, 56, 1, 0, 0, 0].iter().flat_map(|n| n.to_le_bytes()));
    elf.extend([1_u32, 5].iter().flat_map(|n| n.to_le_bytes())); // loaded, readable and executable
    elf.extend([0, base, base, length, length, 0x1000].iter().flat_map(|n| n.to_le_bytes()));
    elf.extend(text);
    elf
}

/// `name errno` for each attempt; 0 is success.
const SOCKETS: &str = r#"
    use strict;
    my %try = (inet => 2, alg => 38, vsock => 40, alg_high => 38 | 1 << 32, vsock_high => 40 | 7 << 40, none => 77);
    for my $name (sort keys %try) { $! = 0; syscall(41, $try{$name}, 2, 0); print "$name ", $! + 0, "\n"; }
    open(my $status, "<", "/proc/self/status") or die;
    while (<$status>) { print if /^(Seccomp|CapInh|NoNewPrivs):/; }
    $! = 0; syscall(435, 0, 0); print "clone3 ", $! + 0, "\n";
    $! = 0; syscall(272, 0x10000000); print "unshare ", $! + 0, "\n";
    $! = 0; syscall(425, 1, 0); print "io_uring ", $! + 0, "\n";
    print "socketcall ", system("/socketcall") >> 8, "\n";
"#;

async fn the_default_profile_holds_under(runtime: &str) {
    let mut case = Case::default();
    case.seccomp(ProfileType::RuntimeDefault, "");
    let seen = run(runtime, &mut case, SOCKETS).await;
    let seen: Vec<String> = seen.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let want = [
        "alg 97",
        "alg_high 97",
        "inet 0",
        "none 1",
        "vsock 97",
        "vsock_high 97",
        "CapInh: 0000000000000000",
        "NoNewPrivs: 0",
        "Seccomp: 2",
        "clone3 38",
        "unshare 1",
        "io_uring 1",
        "socketcall 38",
    ];
    assert_eq!(seen, want, "{runtime}");
}

#[tokio::test]
#[ignore = "needs root and crun"]
async fn the_default_profile_holds_under_crun() {
    the_default_profile_holds_under("crun").await;
}

#[tokio::test]
#[ignore = "needs root and runc"]
async fn the_default_profile_holds_under_runc() {
    the_default_profile_holds_under("runc").await;
}

const WHO: &str = r#"
    print "$< $( ", join(",", sort keys %ENV), " ", open(my $conf, ">>", "/etc/resolv.conf") ? "rw" : "ro", "\n";
    open(my $status, "<", "/proc/self/status") or die;
    while (<$status>) { print if /^(Seccomp|CapInh|CapBnd):/; }
    open(my $null, ">", "/dev/null") or die; print $null "x" or die;
    my $disk_path = "/disk";
    print "mknod ", syscall(133, $disk_path, 060600, 0x800) == 0 && open(my $disk, "<", "/disk") ? "opened" : "refused", "\n";
    my @steering = grep { -e } glob("/sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/*/devices.allow");
    print "cgroup ", scalar(@steering) ? "seen" : "missing", "\n";
    print "$_ opened\n" for grep { open(my $file, ">>", $_) } @steering;
"#;

#[tokio::test]
#[ignore = "needs root, crun and runc"]
async fn ghsa_g54h_m393_cpwq_a_plain_container_opens_no_disk_and_no_cgroup() {
    for runtime in ["crun", "runc"] {
        let mut case = Case { image_env: vec!["IMAGE=1".into()], ..Case::default() };
        let seen = run(runtime, &mut case, WHO).await;
        let held = case.host.kernel.caps;
        let want = if held.contains(Cap::MKNOD) { "CapBnd:\t00000000a80425fb" } else { "CapBnd:" };
        for line in ["CapInh:\t0000000000000000", "Seccomp:\t0", "mknod refused", "cgroup seen", want] {
            assert!(seen.contains(line), "{runtime}: no {line:?} in {seen}");
        }
        assert!(!seen.contains("opened"), "{runtime}: {seen}");
        // HOME is the runtime's own doing.
        assert!(seen.starts_with("0 0 0 HOME,HOSTNAME,IMAGE,PATH ro\n"), "{runtime}: {seen}");
    }
}

#[tokio::test]
#[ignore = "needs root, crun and runc"]
async fn an_unprivileged_user_has_its_groups_and_no_capability() {
    for runtime in ["crun", "runc"] {
        let mut case = Case { image_user: "app".into(), ..Case::default() };
        case.security().no_new_privs = true;
        case.seccomp(ProfileType::RuntimeDefault, "");
        case.security().masked_paths = vec!["/proc/cpuinfo".into()];
        case.security().readonly_paths = vec!["/proc/sys".into()];
        let script = r#"
            print "$<|$(|", length(`/usr/bin/cat /proc/cpuinfo`), "|", open(my $sysctl, ">>", "/proc/sys/kernel/core_pattern") ? "w" : "-", "|";
            open(my $status, "<", "/proc/self/status") or die; while (<$status>) { print $1 if /^CapEff:\s*(\S+)/; }
        "#;
        let seen = run(runtime, &mut case, script).await;
        assert_eq!(seen, "1000|1000 1000 50000|0|-|0000000000000000", "{runtime}");
    }
}
