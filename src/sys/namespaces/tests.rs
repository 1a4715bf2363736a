//! Namespaces are made, hold what was asked for, and go without a trace.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

use super::*;

fn own_inode(kind: &str) -> u64 {
    fs::metadata(format!("/proc/thread-self/ns/{kind}")).unwrap().ino()
}

/// The mounts below `dir`: other tests of this process mount things too, so only ours are looked at.
fn mounts_below(dir: &Path) -> BTreeSet<String> {
    let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
    all.lines().filter(|line| line.contains(dir.to_str().unwrap())).map(str::to_owned).collect()
}

fn read_sysctl(path: &str) -> String {
    fs::read_to_string(Path::new("/proc/sys").join(path)).unwrap().trim().to_owned()
}

fn sysctls(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// Enters a pinned namespace of any kind on a thread of its own.
fn inside<T: Send>(path: &Path, flags: CloneFlags, work: impl FnOnce() -> T + Send) -> T {
    let file = fs::File::open(path).unwrap();
    netns::on_own_thread("test", || {
        nix::sched::setns(file, flags).unwrap();
        work()
    })
    .unwrap()
}

#[test]
fn what_is_not_legal_is_refused_before_anything_is_made() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("ns/pod");
    let bad = sysctls(&[("kernel.core_pattern", "|/bin/x")]);
    let none = BTreeMap::new();
    let request = NamespaceRequest { dir: &dir, net: true, ipc: true, uts: true, hostname: "pod", sysctls: &none };
    assert!(matches!(
        create(&NamespaceRequest { sysctls: &bad, ..request.clone() }),
        Err(NamespaceError::Sysctl(SysctlError { .. }))
    ));
    for hostname in ["", "a\nb", &"a".repeat(65)] {
        assert!(matches!(create(&NamespaceRequest { hostname, ..request.clone() }), Err(NamespaceError::Hostname(_))));
    }
    let host_net = sysctls(&[("net.ipv4.ip_forward", "1")]);
    assert!(create(&NamespaceRequest { net: false, sysctls: &host_net, ..request.clone() }).is_err());
    let host_ipc = sysctls(&[("kernel.shmmax", "1")]);
    assert!(create(&NamespaceRequest { ipc: false, sysctls: &host_ipc, ..request }).is_err());
    assert!(!temp.path().join("ns").exists());
}

#[test]
fn entering_what_is_no_namespace_is_an_error() {
    let temp = tempfile::tempdir().unwrap();
    let plain = temp.path().join("net");
    assert!(matches!(enter_net(&plain, || ()), Err(NetnsError::Open { .. })));
    fs::write(&plain, "").unwrap();
    assert!(matches!(enter_net(&plain, || ()), Err(NetnsError::NotNamespace { .. })));
    assert!(!is_namespace(&plain));
    assert!(is_namespace(Path::new("/proc/self/ns/net")));
}

#[test]
#[ignore = "needs root"]
fn a_pod_gets_its_namespaces_and_the_host_keeps_its_own() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("ns/pod");
    let before = [own_inode("net"), own_inode("ipc"), own_inode("uts")];
    let host = (read_sysctl("net/ipv4/ip_forward"), read_sysctl("kernel/shmmni"), read_sysctl("kernel/hostname"));
    let wanted = sysctls(&[
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv4.conf.all.accept_redirects", "1"),
        ("net.ipv4.ping_group_range", "0 2147483647"),
        ("net.ipv6.conf.default.accept_ra", "2"),
        ("kernel.shmmni", "123"),
        ("kernel.shm_rmid_forced", "1"),
        ("fs.mqueue.msg_max", "100"),
    ]);
    let request = NamespaceRequest { dir: &dir, net: true, ipc: true, uts: true, hostname: "web-0", sysctls: &wanted };
    let made = create(&request).unwrap();
    let (net, ipc, uts) = (made.net.unwrap(), made.ipc.unwrap(), made.uts.unwrap());
    assert_eq!((&net, &ipc, &uts), (&dir.join("net"), &dir.join("ipc"), &dir.join("uts")));
    assert_eq!(mounts_below(&dir).len(), 3);
    assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);

    inside(&net, CloneFlags::CLONE_NEWNET, || {
        assert_eq!(read_sysctl("net/ipv4/ip_forward"), "1");
        assert_eq!(read_sysctl("net/ipv4/conf/all/accept_redirects"), "1");
        assert_eq!(read_sysctl("net/ipv4/ping_group_range"), "0\t2147483647");
        assert_eq!(read_sysctl("net/ipv6/conf/default/accept_ra"), "2");
    });
    inside(&ipc, CloneFlags::CLONE_NEWIPC, || {
        assert_eq!(read_sysctl("kernel/shmmni"), "123");
        assert_eq!(read_sysctl("kernel/shm_rmid_forced"), "1");
        assert_eq!(read_sysctl("fs/mqueue/msg_max"), "100");
    });
    assert_eq!(inside(&uts, CloneFlags::CLONE_NEWUTS, || read_sysctl("kernel/hostname")), "web-0");

    // lo is up: what is sent to 127.0.0.1 and to ::1 arrives.
    for address in ["127.0.0.1:0", "[::1]:0"] {
        enter_net(&net, || {
            let listener = std::net::TcpListener::bind(address).unwrap();
            std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        })
        .unwrap();
    }
    assert_ne!(enter_net(&net, || own_inode("net")).unwrap(), before[0]);

    assert_eq!([own_inode("net"), own_inode("ipc"), own_inode("uts")], before);
    let after = (read_sysctl("net/ipv4/ip_forward"), read_sysctl("kernel/shmmni"), read_sysctl("kernel/hostname"));
    assert_eq!(after, host);

    // One that is there is not made again, and the one that is there stays.
    assert!(matches!(create(&request), Err(NamespaceError::MakeDir { .. })));
    assert_eq!(mounts_below(&dir).len(), 3);

    remove(&dir).unwrap();
    remove(&dir).unwrap();
    assert!(!dir.exists());
    assert_eq!(mounts_below(temp.path()), BTreeSet::new());
}

#[test]
#[ignore = "needs root"]
fn only_the_namespaces_asked_for_are_made() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("pod");
    let none = BTreeMap::new();
    let request = NamespaceRequest { dir: &dir, net: true, ipc: false, uts: false, hostname: "", sysctls: &none };
    let made = create(&request).unwrap();
    assert_eq!(made, PinnedNamespaces { net: Some(dir.join("net")), ..PinnedNamespaces::default() });
    let names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["net"]);
    // What a pod does not ask for otherwise.
    inside(&dir.join("net"), CloneFlags::CLONE_NEWNET, || {
        assert_eq!(read_sysctl("net/ipv6/conf/default/accept_ra"), "0");
    });
    remove(&dir).unwrap();
}

#[test]
#[ignore = "needs root"]
fn a_step_that_fails_leaves_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("pod");
    for (key, value) in [("net.no.such", "1"), ("net.ipv4.ip_forward", "many")] {
        let wanted = sysctls(&[("kernel.shmmni", "5"), (key, value)]);
        let request =
            NamespaceRequest { dir: &dir, net: true, ipc: true, uts: true, hostname: "web", sysctls: &wanted };
        let error = create(&request).unwrap_err();
        assert!(matches!(&error, NamespaceError::WriteSysctl { key: named, .. } if named == key), "{error:?}");
        assert!(!dir.exists());
    }
    assert_eq!(mounts_below(temp.path()), BTreeSet::new());
}

#[test]
#[ignore = "needs root"]
fn a_process_s_namespace_is_pinned_and_stacked_pins_go() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("pod");
    let me = rustix::process::getpid();
    let path = pin(me, NamespaceKind::Pid, &dir).unwrap();
    assert_eq!(path, dir.join("pid"));
    assert_eq!(fs::metadata(&path).unwrap().ino(), own_inode("pid"));
    assert!(matches!(pin(me, NamespaceKind::Pid, &dir), Err(NamespaceError::MakePin { .. })));
    rustix::mount::mount_bind("/proc/thread-self/ns/pid", &path).unwrap();
    assert_eq!(mounts_below(&dir).len(), 2);
    remove(&dir).unwrap();
    assert_eq!(mounts_below(temp.path()), BTreeSet::new());

    // No such process: nothing is left but the folder, which belongs to the pod.
    let gone = Pid::from_raw(i32::MAX).unwrap();
    assert!(matches!(pin(gone, NamespaceKind::Net, &dir), Err(NamespaceError::Pin { .. })));
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
}

#[test]
#[ignore = "needs root"]
fn entering_leaves_the_caller_where_it_was_even_after_a_panic() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("pod");
    let none = BTreeMap::new();
    let request = NamespaceRequest { dir: &dir, net: true, ipc: false, uts: false, hostname: "", sysctls: &none };
    let net = create(&request).unwrap().net.unwrap();
    let before = own_inode("net");
    let panic = std::panic::catch_unwind(|| enter_net(&net, || panic!("inside")));
    assert!(panic.is_err());
    assert_eq!(own_inode("net"), before);
    remove(&dir).unwrap();
    assert!(matches!(enter_net(&net, || ()), Err(NetnsError::Open { .. })));
}

#[test]
#[ignore = "needs root"]
fn many_at_once_come_and_go() {
    let temp = tempfile::tempdir().unwrap();
    let before = [own_inode("net"), own_inode("ipc"), own_inode("uts")];
    let wanted = sysctls(&[("net.ipv4.ip_forward", "1"), ("kernel.sem", "250 32000 100 128")]);
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let (root, wanted) = (temp.path(), &wanted);
            scope.spawn(move || {
                for round in 0..10 {
                    let dir = root.join(format!("ns/{worker}-{round}"));
                    let request = NamespaceRequest {
                        dir: &dir,
                        net: true,
                        ipc: true,
                        uts: true,
                        hostname: "pod",
                        sysctls: wanted,
                    };
                    create(&request).unwrap();
                    remove(&dir).unwrap();
                }
            });
        }
    });
    assert_eq!([own_inode("net"), own_inode("ipc"), own_inode("uts")], before);
    assert_eq!(mounts_below(temp.path()), BTreeSet::new());
    assert_eq!(fs::read_dir(temp.path().join("ns")).unwrap().count(), 0);
}

#[test]
#[ignore = "needs root"]
fn a_pin_that_is_taken_away_can_be_put_back() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("pod");
    let none = BTreeMap::new();
    let request = NamespaceRequest { dir: &dir, net: true, ipc: false, uts: false, hostname: "", sysctls: &none };
    let path = create(&request).unwrap().net.unwrap();
    let inode = fs::metadata(&path).unwrap().ino();
    let held = HeldNamespace::open(&path).unwrap();
    assert!(held.is_pinned());
    let take: [(&str, &dyn Fn()); 4] = [
        ("unmounted", &|| unmount(&path).unwrap()),
        ("removed", &|| {
            unmount(&path).unwrap();
            fs::remove_file(&path).unwrap();
        }),
        ("covered", &|| rustix::mount::mount_bind("/proc/thread-self/ns/net", &path).unwrap()),
        ("replaced", &|| {
            unmount(&path).unwrap();
            rustix::mount::mount_bind("/proc/thread-self/ns/net", &path).unwrap();
        }),
    ];
    for (what, take) in take {
        take();
        assert!(!held.is_pinned(), "{what}");
        held.pin_again().unwrap();
        assert!(held.is_pinned() && fs::metadata(&path).unwrap().ino() == inode, "{what}");
        assert_eq!(mounts_below(temp.path()).len(), 1, "{what}");
    }
    drop(held);
    // Nothing but its pin keeps it now.
    assert!(is_namespace(&path));
    remove(&dir).unwrap();
    assert!(mounts_below(temp.path()).is_empty());
    assert!(HeldNamespace::open(&path).is_err());
}
