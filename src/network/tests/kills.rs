//! Pods without end on the builtin network, and a process that is killed in their midst, as the daemon may be.

use std::collections::{HashMap, VecDeque};
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::signal::{Signal, kill};

use super::*;
use crate::network::builtin::tests::{Standing, on_own_host};
use crate::sys::exec::{self, Exec};
use crate::sys::namespaces::{self, NamespaceRequest};

/// The folder that lives share, their number, and after how many pods this one is killed; 0 for the one that ends by itself.
const DIR: &str = "CRICKET_TEST_LIVES";
const LIFE: &str = "CRICKET_TEST_LIFE";
const KILLED_AFTER: &str = "CRICKET_TEST_KILLED_AFTER";

/// Pods that came and went before the last life.
const CYCLES: usize = 2_000;
const WORKERS: usize = 8;
/// Pods that each worker leaves on the node. With those that are just going, all have room among 61 addresses.
const STANDING: usize = 3;

/// Two thousand pods, eight at a time, on few addresses, in a process that is killed every few dozen pods, wherever its workers
/// are then. The next one takes over those that the records have. Nothing of others is left, no address is held twice, and in
/// the end everything is gone.
#[test]
#[ignore = "needs root: two thousand pods"]
fn pods_without_end_and_kills_among_them() {
    on_own_host(|host| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = host.dir.path();
        for life in 0.. {
            let cycles = fs::read_to_string(dir.join("cycles")).unwrap_or_default().lines().count();
            let last = cycles >= CYCLES;
            let killed_after = if last { 0 } else { 30 + life * 17 % 90 };
            let output = runtime.block_on(exec::run(a_process(dir, life, killed_after))).unwrap();
            let log = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            if last {
                assert!(output.status.success() && log.contains("1 passed"), "life {life}: {log}");
                println!("{cycles} pods in {life} lives that were killed");
                break;
            }
            assert_eq!(output.status.signal(), Some(9), "life {life}: {log}");
        }
        assert_eq!(network(dir).builtin.standing(), Standing::of(0));
        assert_eq!(names(&dir.join("ns")), Vec::<String>::new());
    });
}

fn a_process(dir: &Path, life: usize, killed_after: usize) -> Exec {
    let test = concat!(module_path!(), "::a_life").trim_start_matches("cricket::");
    Exec {
        program: std::env::current_exe().unwrap(),
        args: ["--exact", test, "--ignored", "--nocapture"].iter().map(Into::into).collect(),
        env: vec![
            (DIR.into(), dir.into()),
            (LIFE.into(), life.to_string().into()),
            (KILLED_AFTER.into(), killed_after.to_string().into()),
        ],
        stdin: Vec::new(),
        timeout: Duration::from_secs(300),
        output_cap: 16 * 1024 * 1024,
    }
}

#[test]
#[ignore = "run by pods_without_end_and_kills_among_them, in a process of its own"]
fn a_life() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else {
        // Among all ignored tests, nothing is shared and nobody is killed: it is a short life.
        return on_own_host(|host| live(host.dir.path(), 0, 0));
    };
    let number = |key| std::env::var(key).unwrap().parse().unwrap();
    live(&dir, number(LIFE), number(KILLED_AFTER));
}

fn live(dir: &Path, number: usize, killed_after: usize) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let life = Life {
            network: network(dir),
            dir: dir.to_owned(),
            number,
            killed_after,
            made: AtomicUsize::new(0),
            ports: AtomicUsize::new(0),
            holders: Mutex::default(),
        };
        let life = Arc::new(life);
        let mut standing = life.take_over().await;
        if killed_after == 0 {
            // A few more, so that the last one is no exception.
            standing.push_back(life.up(0, 0).await);
            for pod in standing {
                life.down(pod).await;
            }
            let builtin = Arc::clone(&life.network.builtin);
            task::blocking(move || builtin.reap()).await.unwrap();
            assert_eq!(life.network.builtin.standing(), Standing::of(0));
            return;
        }
        let mut shares = vec![VecDeque::new(); WORKERS];
        for (index, pod) in standing.into_iter().enumerate() {
            shares[index % WORKERS].push_back(pod);
        }
        let work = |(worker, share)| task::spawn("worker", Arc::clone(&life).work(worker, share));
        for worker in shares.into_iter().enumerate().map(work).collect::<Vec<_>>() {
            worker.await.unwrap();
        }
    });
}

fn network(dir: &Path) -> Arc<Network> {
    let config = config::Network {
        mode: config::NetworkMode::Builtin,
        builtin_subnets: vec!["10.85.0.0/26".into(), "fd00:85::/64".into()],
        conf_dir: dir.join("net.d"),
        cache_dir: dir.join("cache"),
        ..config::Network::default()
    };
    Network::new(config, dir.join("network"))
}

/// What the daemon is to the network, from one start to the next.
struct Life {
    network: Arc<Network>,
    dir: PathBuf,
    number: usize,
    killed_after: usize,
    made: AtomicUsize,
    ports: AtomicUsize,
    /// Who has which address, as far as their owners know.
    holders: Mutex<HashMap<std::net::IpAddr, String>>,
}

impl Life {
    /// As at a start of the daemon: what has no record goes, what has one is there.
    async fn take_over(&self) -> VecDeque<PodAttachment> {
        let mut pods = VecDeque::new();
        for name in names(&self.dir.join("records")) {
            let pod: PodAttachment =
                serde_json::from_slice(&fs::read(self.dir.join("records").join(name)).unwrap()).unwrap();
            self.network.adopt(&pod);
            self.hold(&pod);
            pods.push_back(pod);
        }
        for id in names(&self.dir.join("ns")) {
            if pods.iter().all(|pod| pod.sandbox_id != id) {
                namespaces::remove(&self.dir.join("ns").join(id)).unwrap();
            }
        }
        self.network.gc(&[]).await.unwrap();
        assert_eq!(self.network.builtin.standing(), Standing::of(pods.len()), "life {}", self.number);
        pods
    }

    async fn work(self: Arc<Self>, worker: usize, mut standing: VecDeque<PodAttachment>) {
        for n in 0.. {
            let pod = self.up(worker, n).await;
            standing.push_back(pod);
            if self.made.fetch_add(1, Ordering::AcqRel) + 1 >= self.killed_after {
                kill(nix::unistd::Pid::this(), Signal::SIGKILL).unwrap();
            }
            while standing.len() > STANDING {
                let oldest = standing.pop_front().unwrap();
                self.down(oldest).await;
            }
        }
    }

    fn hold(&self, pod: &PodAttachment) {
        for ip in &pod.made.as_ref().unwrap().ips {
            let other = self.holders.lock().unwrap().insert(*ip, pod.sandbox_id.clone());
            assert_eq!(other, None, "{ip} is held twice, now by {}", pod.sandbox_id);
        }
    }

    /// One that no pod has that may be there yet: a life makes fewer than 150 pods.
    fn port(&self) -> i32 {
        let port = 20_000 + (self.number * 150 + self.ports.fetch_add(1, Ordering::AcqRel)) % 30_000;
        i32::try_from(port).unwrap()
    }

    async fn up(&self, worker: usize, n: usize) -> PodAttachment {
        let id = format!("{}-{worker}-{n}", self.number);
        let dir = self.dir.join("ns").join(&id);
        let mut pod = PodAttachment {
            sandbox_id: id.clone(),
            pod_name: id.clone(),
            pod_namespace: "default".to_owned(),
            netns: dir.join("net"),
            port_mappings: vec![host_port(self.port(), 80)],
            ..PodAttachment::default()
        };
        task::blocking(move || {
            let sysctls = BTreeMap::new();
            let (net, ipc, uts, hostname) = (true, false, false, "");
            namespaces::create(&NamespaceRequest { dir: &dir, net, ipc, uts, hostname, sysctls: &sysctls })
        })
        .await
        .unwrap();
        pod.made = Some(
            self.network.attach(&pod).await.unwrap_or_else(|error| panic!("{id}: {}", crate::telemetry::chain(&error))),
        );
        self.hold(&pod);
        let (records, text) = (self.dir.join("records"), serde_json::to_vec(&pod).unwrap());
        fs::create_dir_all(&records).unwrap();
        // As a whole or not at all, as a record is.
        fs::write(self.dir.join(&id), text).unwrap();
        fs::rename(self.dir.join(&id), records.join(&id)).unwrap();
        pod
    }

    async fn down(&self, pod: PodAttachment) {
        fs::remove_file(self.dir.join("records").join(&pod.sandbox_id)).unwrap();
        self.holders.lock().unwrap().retain(|_, holder| *holder != pod.sandbox_id);
        self.network.detach(&pod, true).await.unwrap();
        let dir = self.dir.join("ns").join(&pod.sandbox_id);
        task::blocking(move || namespaces::remove(&dir)).await.unwrap();
        let mut cycles = fs::OpenOptions::new().append(true).create(true).open(self.dir.join("cycles")).unwrap();
        cycles.write_all(b"\n").unwrap();
    }
}
