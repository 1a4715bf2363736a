//! A node in this process: the rooms below the edge, put together in a folder of the test's own.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use cri_proto::runtime::v1 as cri;
use cricket::config;
use cricket::container::{Containers, Resources, Runtimes};
use cricket::image::{Images, ImagesOptions};
use cricket::keeper::{Keeper, KeeperOptions};
use cricket::network::Network;
use cricket::pod::Pods;
use cricket::runtime::{Handlers, HandlersOptions};
use cricket::spec::HostFacts;
use cricket::state::Store;
use cricket::storage::{Storage, StorageOptions};
use cricket::sys::cgroup::{Cgroups, Driver};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Long enough for a loaded machine; nothing waits for it when all is well.
pub const LONG: Duration = Duration::from_secs(60);

static TESTS: RwLock<()> = RwLock::const_new(());

pub async fn beside_others() -> RwLockReadGuard<'static, ()> {
    TESTS.read().await
}

pub async fn alone() -> RwLockWriteGuard<'static, ()> {
    TESTS.write().await
}

/// The image of all containers: nothing but folders, over which the host's programs are mounted.
const IMAGE: &str = "localhost/empty:1";

pub struct Place {
    pub pods: Pods,
    keeper: Keeper,
    dir: Arc<tempfile::TempDir>,
    runtime: &'static str,
    parent: String,
}

impl Place {
    pub async fn new(runtime: &'static str) -> Self {
        // By this name the lane finds the folder and the cgroups, should the tests be killed.
        let prefix = format!("{}-", std::env::var("CRICKET_LANE").unwrap_or_else(|_| "cricket".to_owned()));
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir_in("/tmp").unwrap();
        for folder in ["root", "state/k8s.io", "state/ns", "state/pods", "cni", "logs", "leases"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        std::fs::write(dir.path().join("cni/10-net.conflist"), conflist(&dir.path().join("leases"))).unwrap();
        let name = dir.path().file_name().unwrap().to_str().unwrap().replace('.', "-");
        let place = Box::pin(Self::assemble(Arc::new(dir), runtime, format!("/{name}"))).await;
        let archive = place.path("image.tar");
        std::fs::write(&archive, archive_of_nothing()).unwrap();
        place.pods.containers().resources().images.import(&archive, None).await.unwrap();
        place
    }

    /// As the next daemon would find it. The runtime in which the earlier one lived must be gone.
    pub async fn taken_over(dir: Arc<tempfile::TempDir>, runtime: &'static str, parent: String) -> Self {
        let place = Box::pin(Self::assemble(dir, runtime, parent)).await;
        let mut held: HashMap<_, _> =
            place.keeper.held().await.unwrap().into_iter().map(|held| (held.id.clone(), held)).collect();
        let records = place.pods.containers().resources().store.load().unwrap();
        place.pods.containers().recover(records.containers, &mut held).await;
        place.pods.recover(records.sandboxes, &mut held).await;
        place
    }

    /// What is needed to take it over.
    pub fn remains(&self) -> (Arc<tempfile::TempDir>, &'static str, String) {
        (self.dir.clone(), self.runtime, self.parent.clone())
    }

    async fn assemble(dir: Arc<tempfile::TempDir>, runtime: &'static str, parent: String) -> Self {
        let at = |name: &str| dir.path().join(name);
        let (root, state) = (at("root"), at("state"));
        let storage =
            Storage::open(StorageOptions { images: root.join("images"), containers: root.join("containers") }).unwrap();
        let image_config =
            config::Image { registries_conf: at("none"), registries_conf_dir: at("none"), ..config::Image::default() };
        let options = ImagesOptions { root: root.join("images"), config: image_config };
        let images = Images::open(options, Arc::new(storage.clone())).await.unwrap();
        let cgroups = Cgroups::detect(Path::new("/"), Some(Driver::Cgroupfs)).unwrap();
        let parent_path = cgroups.parent(&parent).unwrap();
        cgroups.make_parent(&parent_path).unwrap();
        let runtime_config = config::Runtime { default: runtime.to_owned(), ..config::Runtime::default() };
        let handlers_options = HandlersOptions { state: state.clone(), systemd_cgroup: false };
        let handlers = Handlers::load(&runtime_config, &handlers_options).await.unwrap();
        let keeper = Keeper::connect_or_start(KeeperOptions {
            socket: state.join("keeper.sock"),
            exe: PathBuf::from(env!("CARGO_BIN_EXE_cricket")),
            cgroup_dirs: Vec::new(),
        })
        .await
        .unwrap();
        let host = HostFacts {
            kernel: cricket::security::probe().unwrap(),
            devices: cricket::devices::host_devices().unwrap(),
        };
        // As the daemon makes it: an empty folder for a root file system is all that it holds.
        std::fs::create_dir_all(at("shelf/rootfs")).unwrap();
        let resources = Resources {
            keeper: keeper.clone(),
            runtimes: ArcSwap::from_pointee(Runtimes { handlers, config: runtime_config.handlers }),
            storage,
            images,
            store: Store::open(&root).unwrap(),
            cgroups,
            host,
            cdi: Arc::new(cricket::devices::cdi::Cdi::new(Vec::new())),
            apparmor: cricket::security::apparmor::Profiles::default(),
            events: cricket::events::Events::new(),
            sampler: cricket::stats::Sampler::new(),
            disks: cricket::stats::Disks::new(String::new(), |_| None),
            shelf: at("shelf"),
            user_namespaces: Err("not tried here".to_owned()),
            state_dir: state,
            max_log_line: 16 * 1024,
        };
        let network = Network::new(
            config::Network {
                conf_dir: at("cni"),
                cache_dir: at("cni-cache"),
                bin_dirs: vec!["/usr/lib/cni".into()],
                ..config::Network::default()
            },
            at("root/network"),
        );
        network.refresh_status().await;
        let pods = Pods::new(Containers::new(Arc::new(resources)), network, parent_path);
        Self { pods, keeper, dir, runtime, parent }
    }

    pub fn containers(&self) -> &Containers {
        self.pods.containers()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn network_namespace(&self, sandbox: &str) -> PathBuf {
        self.path("state/ns").join(sandbox).join("net")
    }

    /// A pod on the host's network, or on one of its own.
    pub async fn pod(&self, name: &str, own_network: bool) -> String {
        let network = if own_network { cri::NamespaceMode::Pod } else { cri::NamespaceMode::Node };
        let mut config = cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "sessions".to_owned(),
                attempt: 0,
            }),
            log_directory: self.path("logs").to_string_lossy().into_owned(),
            ..Default::default()
        };
        let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.namespace_options = Some(namespaces(network));
        Box::pin(self.pods.run(config, String::new())).await.unwrap()
    }

    /// A shell script in a container of a pod, to be changed.
    pub fn config(name: &str, script: &str) -> cri::ContainerConfig {
        let mount = |source: &str, target: &str| cri::Mount {
            host_path: source.to_owned(),
            container_path: target.to_owned(),
            readonly: true,
            ..Default::default()
        };
        let mut config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(cri::ImageSpec { image: IMAGE.to_owned(), ..Default::default() }),
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            log_path: format!("{name}.log"),
            mounts: vec![
                mount("/usr", "/usr"),
                mount("/usr/bin", "/bin"),
                mount("/usr/lib", "/lib"),
                mount("/usr/lib64", "/lib64"),
            ],
            ..Default::default()
        };
        let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.namespace_options = Some(namespaces(cri::NamespaceMode::Node));
        config
    }

    /// A running container of a pod of its own.
    pub async fn run(&self, config: cri::ContainerConfig) -> String {
        let id = Box::pin(self.create(config)).await;
        self.containers().start(&id).await.unwrap();
        id
    }

    pub async fn create(&self, config: cri::ContainerConfig) -> String {
        let pod = self.pod(&config.metadata.clone().unwrap().name, false).await;
        Box::pin(self.pods.create_container(&pod, config)).await.unwrap()
    }

    /// A container that does nothing, for commands. Its first process reaps what is orphaned to it, as an init does.
    pub async fn idle(&self) -> String {
        Box::pin(self.run(Self::config("idle", "sleep 100000 & while :; do wait; done"))).await
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.path("logs").join(format!("{name}.log"))
    }

    /// The processes of this node that have a word in their command line.
    pub fn with_word(&self, word: &str) -> Vec<i32> {
        processes().into_iter().filter(|(_, words)| words.iter().any(|own| own == word)).map(|(pid, _)| pid).collect()
    }

    /// Takes everything down; nothing of the node may be left.
    pub async fn end(self) {
        for pod in self.pods.list() {
            self.pods.remove(pod.id()).await.unwrap();
        }
        assert!(self.keeper.held().await.unwrap().is_empty(), "the keeper holds something still");
        let resources = self.containers().resources();
        let parent = resources.cgroups.parent(&self.parent).unwrap();
        until("the pods' cgroups are empty", || resources.cgroups.remove_empty(&parent).unwrap_or(true)).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // After a test that failed half-way the lane's end takes the containers down.
        if Arc::strong_count(&self.dir) == 1
            && let Some(pid) = Pid::from_raw(self.keeper.pid())
        {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

fn namespaces(network: cri::NamespaceMode) -> cri::NamespaceOption {
    cri::NamespaceOption { network: network.into(), pid: cri::NamespaceMode::Container.into(), ..Default::default() }
}

fn processes() -> Vec<(i32, Vec<String>)> {
    let pids = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let words = |pid: i32| {
        let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
    };
    pids.map(|pid| (pid, words(pid))).collect()
}

fn conflist(leases: &Path) -> String {
    let ipam = json!({"type": "host-local", "dataDir": leases, "ranges": [[{"subnet": "10.90.0.0/16"}]]});
    json!({"cniVersion": "1.0.0", "name": "sessions", "plugins": [
        {"type": "bridge", "bridge": "sessions0", "isGateway": true, "ipam": ipam}]})
    .to_string()
}

/// An archive as `docker save` writes them, whose one layer is empty but for a folder.
fn archive_of_nothing() -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o1777);
    header.set_size(0);
    layer.append_data(&mut header, "tmp/", std::io::empty()).unwrap();
    let layer = layer.into_inner().unwrap();
    let digest = cricket::storage::Digest::of(&layer).to_string();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let image = json!({"architecture": architecture, "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest]}});
    let manifest = json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
    let mut archive = tar::Builder::new(Vec::new());
    let files = [
        ("layer.tar", layer),
        ("config.json", image.to_string().into_bytes()),
        ("manifest.json", manifest.to_string().into_bytes()),
    ];
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    archive.into_inner().unwrap()
}

/// Looks until something holds; panics after a long time.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: never came true");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The result of something that must not take for ever.
pub async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, work).await.unwrap_or_else(|_| panic!("{what}: hangs"))
}
