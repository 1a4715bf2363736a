//! Debian's plugins, in a network namespace and a mount namespace of the test's own: bridges, rules and addresses never
//! touch the host.

use std::future::Future;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use nix::sched::CloneFlags;
use rustix::mount::{MountFlags, MountPropagationFlags};

use super::*;
use crate::sys::exec::{self, Exec};
use crate::sys::namespaces::{self, NamespaceRequest, enter_net};

/// Where a host of [`on_own_host`] has what `make tools` built.
pub(super) const PROGRAMS: &str = "/mnt";

/// Runs a test on a thread that is a host of its own. Everything that it starts, processes and threads, is inside too.
pub(super) fn on_own_host(work: impl Future<Output = ()> + Send) {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                nix::sched::unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
                rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
                // The tree may itself be below /tmp.
                let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("critest/bin");
                if programs.exists() {
                    rustix::mount::mount_bind(&programs, PROGRAMS).unwrap();
                }
                for dir in ["/run", "/tmp"] {
                    rustix::mount::mount("tmpfs", dir, "tmpfs", MountFlags::empty(), None).unwrap();
                }
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    run("ip link set lo up").await;
                    work.await;
                });
            })
            .join()
            .unwrap();
    });
}

pub(super) async fn run(line: &str) -> String {
    let mut words = line.split(' ');
    let program = words.next().unwrap();
    let path = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].iter().map(|dir| Path::new(dir).join(program));
    let exec = Exec {
        program: path.into_iter().find(|path| path.exists()).unwrap(),
        args: words.map(Into::into).collect(),
        env: vec![("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into())],
        stdin: Vec::new(),
        timeout: Duration::from_secs(60),
        output_cap: 1024 * 1024,
    };
    let output = exec::run(exec).await.unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Fixture {
    /// bridge and host-local with both families, the leases below our own folder, and then `more`.
    pub(super) fn bridge(&self, version: &str, more: &[Value]) {
        let ipam = json!({"type": "host-local", "dataDir": self.leases_dir(), "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd00:88::/64"}]]});
        let mut plugins = vec![json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
            "hairpinMode": true, "ipam": ipam})];
        plugins.extend_from_slice(more);
        self.conf("10-pods.conflist", &json!({"name": "pods", "cniVersion": version, "plugins": plugins}).to_string());
    }

    pub(super) fn leases_dir(&self) -> PathBuf {
        self.temp.path().join("leases")
    }

    /// The addresses that host-local holds.
    pub(super) fn leases(&self) -> Vec<String> {
        let mut leases = names(&self.leases_dir().join("pods"));
        leases.retain(|name| name.parse::<IpAddr>().is_ok());
        leases
    }

    /// A pod with a pinned network namespace.
    pub(super) fn pinned(&self, id: &str) -> PodAttachment {
        let pod = self.pod(id);
        let none = BTreeMap::new();
        let made = namespaces::create(&NamespaceRequest {
            dir: pod.netns.parent().unwrap(),
            net: true,
            ipc: false,
            uts: false,
            hostname: "",
            sysctls: &none,
        });
        assert_eq!(made.unwrap().net.as_ref(), Some(&pod.netns));
        pod
    }
}

pub(super) fn unpin(pod: &PodAttachment) {
    namespaces::remove(pod.netns.parent().unwrap()).unwrap();
}

/// A server in the pod that answers one connection with a word.
pub(super) fn serve(pod: &PodAttachment, address: &str) -> std::thread::JoinHandle<()> {
    let listener = enter_net(&pod.netns, || TcpListener::bind(address).unwrap()).unwrap();
    std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"hello").unwrap())
}

pub(super) fn ask(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(20)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

async fn rules() -> String {
    run("iptables-save").await + &run("ip6tables-save").await
}

#[test]
#[ignore = "needs root"]
fn a_pod_is_reached_by_its_addresses_and_its_host_port_and_nothing_is_left() {
    on_own_host(async {
        let fixture = Fixture::new();
        fixture.bridge(
            "1.0.0",
            &[
                json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}),
                json!({"type": "firewall"}),
                json!({"type": "tuning", "sysctl": {"net.ipv4.conf.all.log_martians": "1"}}),
            ],
        );
        let network = fixture.network();
        network.refresh_status().await;
        assert_eq!(network.status(), NetworkStatus { ready: true, ..NetworkStatus::default() });
        let mut pod = fixture.pinned("abc");
        pod.port_mappings = vec![host_port(12000, 80)];
        let attachment = network.attach(&pod).await.unwrap();
        assert_eq!(attachment.ips.len(), 2);
        assert!(attachment.ips[0].is_ipv4() && attachment.ips[1].is_ipv6());
        let eth0 = attachment.interfaces.iter().find(|interface| interface.name == "eth0").unwrap();
        assert_eq!((Path::new(&eth0.sandbox), eth0.mac.len()), (pod.netns.as_path(), 17));
        let leases: Vec<_> = attachment.ips.iter().map(ToString::to_string).collect();
        assert_eq!(fixture.leases(), leases);

        let by_address = SocketAddr::new(attachment.ips[0], 80);
        for address in [by_address, "127.0.0.1:12000".parse().unwrap()] {
            let server = serve(&pod, "0.0.0.0:80");
            assert_eq!(ask(address), "hello");
            server.join().unwrap();
        }
        assert!(rules().await.contains("12000"));

        network.detach(&pod, true).await.unwrap();
        assert!(fixture.leases().is_empty() && fixture.cached().is_empty());
        let rules = rules().await;
        assert!(!rules.contains("12000") && !rules.contains(&leases[0]) && !rules.contains(&leases[1]), "{rules}");
        let links = enter_net(&pod.netns, || fs::read_to_string("/proc/thread-self/net/dev").unwrap()).unwrap();
        assert!(!links.contains("eth0"), "{links}");
        assert!(!run("ip -o link").await.contains("veth"));
        network.detach(&pod, true).await.unwrap();
        unpin(&pod);
        network.detach(&pod, false).await.unwrap();
    });
}

#[test]
#[ignore = "needs root"]
fn pods_side_by_side_on_ptp() {
    on_own_host(async {
        let fixture = Fixture::new();
        let ipam = json!({"type": "host-local", "subnet": "10.89.0.0/24", "dataDir": fixture.leases_dir()});
        let conf = json!({"name": "pods", "cniVersion": "0.3.1", "type": "ptp", "ipam": ipam});
        fixture.conf("10-pods.conf", &conf.to_string());
        let network = fixture.network();
        let pods: Vec<_> = (0..12).map(|n| fixture.pinned(&format!("pod{n}"))).collect();
        let tasks: Vec<_> = pods
            .iter()
            .map(|pod| {
                let (network, pod) = (Arc::clone(&network), pod.clone());
                task::spawn("test", async move { network.attach(&pod).await.unwrap() })
            })
            .collect();
        let mut ips = HashSet::new();
        for task in tasks {
            ips.extend(task.await.unwrap().ips);
        }
        assert_eq!(ips.len(), 12);
        assert_eq!((fixture.leases().len(), fixture.cached().len()), (12, 12));
        for pod in &pods {
            network.detach(pod, true).await.unwrap();
            unpin(pod);
        }
        assert!(fixture.leases().is_empty() && fixture.cached().is_empty());
    });
}

/// CRI-O issue 2849: whatever is at the pin's path after a reboot, a DEL gets no namespace that is not the pod's, and still frees
/// the pod's addresses.
#[test]
#[ignore = "needs root"]
fn cri_o_2849_after_a_reboot_addresses_are_freed_with_and_without_a_cache() {
    on_own_host(async {
        let fixture = Fixture::new();
        let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
        fixture.bridge("0.4.0", &[portmap]);
        let pods = [fixture.pinned("cached"), fixture.pinned("uncached")];
        let before = fixture.network();
        for pod in &pods {
            before.attach(pod).await.unwrap();
            unpin(pod);
        }
        assert_eq!(fixture.leases().len(), 4);
        fs::remove_file(fixture.config.cache_dir.join("results/pods-uncached-eth0")).unwrap();
        // A plain file where the pin was is what a state folder on a disk would show.
        fs::create_dir_all(pods[0].netns.parent().unwrap()).unwrap();
        fs::write(&pods[0].netns, "").unwrap();
        let after = fixture.network();
        after.detach(&pods[0], true).await.unwrap();
        assert_eq!(fixture.leases().len(), 2);
        after.detach(&pods[1], false).await.unwrap();
        assert!(fixture.leases().is_empty() && fixture.cached().is_empty());
    });
}

#[test]
#[ignore = "needs root"]
fn an_add_that_fails_late_gives_everything_back() {
    on_own_host(async {
        let fixture = Fixture::new();
        fixture.fake("bad", "case $CNI_COMMAND in ADD) exit 1;; esac");
        fixture.bridge(
            "1.0.0",
            &[json!({"type": "portmap", "capabilities": {"portMappings": true}}), json!({"type": "bad"})],
        );
        let before = rules().await;
        let network = fixture.network();
        let mut pod = fixture.pinned("abc");
        pod.port_mappings = vec![host_port(12001, 80)];
        let error = network.attach(&pod).await.unwrap_err();
        assert!(matches!(&error, NetworkError::Add { undo, .. } if undo.is_empty()), "{error:?}");
        assert!(fixture.leases().is_empty() && fixture.cached().is_empty());
        assert!(!before.contains("12001") && !rules().await.contains("12001"));
        assert!(!run("ip -o link").await.contains("veth"));
        // The same sandbox may try again, on a network without the one that fails.
        fixture.bridge("1.0.0", &[]);
        network.refresh_status().await;
        network.attach(&pod).await.unwrap();
        network.detach(&pod, true).await.unwrap();
        unpin(&pod);
        assert!(fixture.leases().is_empty());
    });
}

#[test]
#[ignore = "needs root"]
fn gc_spares_what_is_still_pinned() {
    on_own_host(async {
        let fixture = Fixture::new();
        fixture.bridge("1.0.0", &[]);
        let (foreign, stale) = (fixture.pinned("foreign"), fixture.pinned("stale"));
        let before = fixture.network();
        before.attach(&foreign).await.unwrap();
        before.attach(&stale).await.unwrap();
        unpin(&stale);
        fixture.network().gc(&[]).await.unwrap();
        assert_eq!(fixture.cached(), ["pods-foreign-eth0"]);
        assert_eq!(fixture.leases().len(), 2);
        before.detach(&foreign, true).await.unwrap();
        unpin(&foreign);
        assert!(fixture.leases().is_empty());
    });
}

#[test]
#[ignore = "needs root"]
fn bandwidth_annotations_shape_the_pod() {
    on_own_host(async {
        let fixture = Fixture::new();
        fixture.bridge("1.0.0", &[json!({"type": "bandwidth", "capabilities": {"bandwidth": true}})]);
        let mut pod = fixture.pinned("abc");
        pod.annotations = [("kubernetes.io/ingress-bandwidth".to_owned(), "10M".to_owned())].into();
        let network = fixture.network();
        network.attach(&pod).await.unwrap();
        let qdiscs = run("tc qdisc show").await;
        assert!(qdiscs.contains("tbf") && qdiscs.contains("rate 10Mbit"), "{qdiscs}");
        network.detach(&pod, true).await.unwrap();
        assert!(!run("tc qdisc show").await.contains("tbf"));
        unpin(&pod);
    });
}
