//! A daemon in a world: its configuration, its registry and network, and its starts and ends.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::client::Client;
use crate::world::{PATIENCE, World, eventually, top};

/// What a test wants to be different from an ordinary node.
pub struct Setup {
    /// The default handler: `crun` or `runc`.
    pub runtime: &'static str,
    /// Serve the test images, and lead their upstream names there.
    pub registry: bool,
    /// More text for registries.conf.
    pub registries: String,
    /// The network configuration: `None` leaves the folder empty.
    pub conflist: Option<String>,
    /// Searched before Debian's plugins.
    pub plugins: Option<PathBuf>,
    /// More handlers: name and path.
    pub handlers: Vec<(String, PathBuf)>,
    /// More keys, `section.key` and a TOML value.
    pub keys: Vec<(&'static str, toml::Value)>,
    /// Size of a tmpfs for the root folder; the disk when unset.
    pub root_size: Option<&'static str>,
    /// Size of the tmpfs of the state folder.
    pub state_size: &'static str,
}

impl Setup {
    /// An ordinary node with this default runtime.
    pub fn new(runtime: &'static str) -> Self {
        Self {
            runtime,
            registry: true,
            registries: String::new(),
            conflist: Some(BRIDGE.to_owned()),
            plugins: None,
            handlers: Vec::new(),
            keys: Vec::new(),
            root_size: None,
            state_size: "50%",
        }
    }
}

/// A bridge with masquerading and host ports, as a node's network usually is. `LEASES` is replaced by a folder.
pub const BRIDGE: &str = r#"{"cniVersion": "1.0.0", "name": "lane", "plugins": [
  {"type": "bridge", "bridge": "lane0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "LEASES", "routes": [{"dst": "0.0.0.0/0"}],
            "ranges": [[{"subnet": "10.89.0.0/16"}]]}},
  {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}]}"#;

/// A running (or stopped) daemon.
pub struct Node {
    // Before the world: the daemon's wrapper is reaped before its namespaces go.
    daemon: Option<tokio::process::Child>,
    registry: Option<tokio::process::Child>,
    /// More variables of the daemon's environment, `NAME=value`, from its next start on.
    pub env: Vec<String>,
    /// A program that the daemon is started by.
    pub starter: Option<PathBuf>,
    pub world: World,
}

impl Node {
    /// An ordinary node, started.
    pub async fn new(runtime: &'static str) -> Result<Self> {
        Box::pin(Self::start(Box::pin(World::new()).await?, Setup::new(runtime))).await
    }

    /// Configures a daemon in a world and starts it.
    pub async fn start(world: World, setup: Setup) -> Result<Self> {
        let mut node = Box::pin(Self::prepare(world, setup)).await?;
        node.launch().await?;
        Ok(node)
    }

    /// Writes every configuration file and starts the registry, but not the daemon.
    pub async fn prepare(world: World, setup: Setup) -> Result<Self> {
        let mut node = Self { daemon: None, registry: None, env: Vec::new(), starter: None, world };
        for folder in ["root", "state", "conf.d", "cni", "cni-cache", "leases", "logs", "registry"] {
            let path = node.path(folder);
            std::fs::create_dir_all(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        }
        node.mount_tmpfs("state", setup.state_size).await?;
        if let Some(size) = setup.root_size {
            node.mount_tmpfs("root", size).await?;
        }
        let mut registries = setup.registries.clone();
        if setup.registry {
            node.serve_images().await?;
            registries.push_str(&std::fs::read_to_string(node.path("registry/registries.conf"))?);
        }
        std::fs::write(node.path("registries.conf"), registries)?;
        // The machine's own policy is nothing to a test.
        let policy = r#"{"default":[{"type":"insecureAcceptAnything"}]}"#;
        std::fs::write(node.path("policy.json"), policy)?;
        if let Some(conflist) = &setup.conflist {
            node.write_conflist(conflist)?;
        }
        let text = toml::to_string(&node.config(&setup)?)?;
        std::fs::write(node.path("config.toml"), text)?;
        Ok(node)
    }

    async fn mount_tmpfs(&self, folder: &str, size: &str) -> Result<()> {
        let path = self.path(folder);
        let path = path.to_str().context("the lane's paths are UTF-8")?;
        let options = format!("mode=700,size={size}");
        self.world.must("mount", &["-t", "tmpfs", "-o", &options, &format!("lane-{folder}"), path]).await?;
        Ok(())
    }

    /// Replaces the network's configuration.
    pub fn write_conflist(&self, text: &str) -> Result<()> {
        let leases = self.path("leases");
        let text = text.replace("LEASES", leases.to_str().context("the lane's paths are UTF-8")?);
        std::fs::write(self.path("cni/10-lane.conflist"), text).context("cni/10-lane.conflist")
    }

    fn config(&self, setup: &Setup) -> Result<toml::Table> {
        let mut config = toml::Table::new();
        let path = |name: &str| toml::Value::from(self.path(name).to_string_lossy().into_owned());
        let mut keys: Vec<(String, toml::Value)> = vec![
            ("server.listen".into(), path("state/cricket.sock")),
            ("server.root".into(), path("root")),
            ("server.state".into(), path("state")),
            ("runtime.default".into(), setup.runtime.into()),
            ("runtime.handlers.crun.path".into(), "crun".into()),
            ("runtime.handlers.runc.path".into(), "runc".into()),
            ("cgroup.driver".into(), "cgroupfs".into()),
            ("cgroup.parent".into(), self.world.cgroup_parent().into()),
            ("network.mode".into(), "cni".into()),
            ("network.conf_dir".into(), path("cni")),
            ("network.cache_dir".into(), path("cni-cache")),
            ("image.registries_conf".into(), path("registries.conf")),
            ("image.registries_conf_dir".into(), path("none")),
            ("image.certs_d".into(), toml::Value::Array(vec![path("certs.d")])),
            ("image.auth_file".into(), path("auth.json")),
            ("image.auth_dir".into(), path("auth")),
            ("image.signature_policy".into(), path("policy.json")),
            ("image.signature_policy_dir".into(), path("policies")),
            ("log.level".into(), "info,cricket=debug".into()),
        ];
        let mut plugins = vec![toml::Value::from("/usr/lib/cni")];
        if let Some(folder) = &setup.plugins {
            plugins.insert(0, folder.to_string_lossy().into_owned().into());
        }
        keys.push(("network.bin_dirs".into(), plugins.into()));
        for (name, program) in &setup.handlers {
            keys.push((format!("runtime.handlers.{name}.path"), program.to_string_lossy().into_owned().into()));
        }
        keys.extend(setup.keys.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        for (key, value) in keys {
            let (sections, last) = key.rsplit_once('.').context("a key has a section")?;
            let mut table = &mut config;
            for section in sections.split('.') {
                let entry = table.entry(section).or_insert_with(|| toml::Table::new().into());
                table = entry.as_table_mut().with_context(|| format!("{section} is a section"))?;
            }
            table.insert(last.to_owned(), value);
        }
        Ok(config)
    }

    async fn serve_images(&mut self) -> Result<()> {
        let (tool, images) = (top().join("critest/bin/testimages"), top().join("critest/images/out"));
        ensure!(tool.exists() && images.join("key").exists(), "no test images: run make images first");
        let folder = self.path("registry");
        let child = self
            .world
            .program(tool.to_str().context("the source tree's path is UTF-8")?)
            .args(["serve".as_ref(), "-out".as_ref(), images.as_os_str(), "-dir".as_ref(), folder.as_os_str()])
            .stdout(Stdio::null())
            .spawn()?;
        self.registry = Some(child);
        let address = folder.join("address");
        eventually("the registry answers", PATIENCE, async || {
            ensure!(address.exists(), "{} is not there", address.display());
            Ok(())
        })
        .await
    }

    /// Starts the daemon and waits until it answers.
    pub async fn launch(&mut self) -> Result<Client> {
        ensure!(self.daemon.is_none(), "the daemon runs already");
        self.daemon = Some(self.spawn_daemon(&self.path("config.toml"), "daemon")?);
        self.client().await
    }

    /// As [`Self::launch`], from a parent that left a file open under many numbers.
    pub async fn launch_with_descriptors(&mut self, file: &Path, count: u32) -> Result<Client> {
        let opens = (10..10 + count).map(|fd| format!("exec {fd}<\"$0\"\n")).collect::<String>();
        let script = format!("{opens}exec \"$@\"");
        let starter = self.path("starter");
        std::fs::write(
            &starter,
            format!("#!/bin/bash\nset -- \"$@\"\n{}", script.replace("$0", &file.display().to_string())),
        )?;
        std::fs::set_permissions(&starter, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        self.starter = Some(starter);
        self.launch().await
    }

    /// Starts a daemon with some configuration file. Its log and its pid go to files named after it; nothing waits for it.
    pub fn spawn_daemon(&self, config: &Path, name: &str) -> Result<tokio::process::Child> {
        let log = std::fs::File::options().create(true).append(true).open(self.path(&format!("logs/{name}")))?;
        let child = self
            .world
            .program("sh")
            // The wrapper outside of the pid namespace is not the daemon: the daemon's own shell notes its pid.
            .args([
                "-c",
                "echo $$ >\"$1\"; binary=$2 config=$3; shift 3; exec env \"$@\" \"$binary\" serve --config \"$config\"",
                "lane",
            ])
            .arg(self.path(&format!("{name}.pid")))
            .arg(env!("CARGO_BIN_EXE_cricket"))
            .arg(config)
            .args(&self.env)
            .args(&self.starter)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(child)
    }

    /// A fresh connection, once the daemon answers `Version`.
    pub async fn client(&mut self) -> Result<Client> {
        let socket = self.socket();
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let failure = match Client::connect(&socket).await {
                Ok(client) => return Ok(client),
                Err(failure) => failure,
            };
            if let Some(status) = self.daemon.as_mut().and_then(|daemon| daemon.try_wait().ok().flatten()) {
                bail!("the daemon ended with {status}: {}", self.log_tail(30));
            }
            ensure!(std::time::Instant::now() < deadline, "no answer on {}: {failure:#}", socket.display());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The CRI socket, in a form that opens from here.
    pub fn socket(&self) -> PathBuf {
        self.world.seen(self.path("state/cricket.sock"))
    }

    /// A file or folder of this node, as the daemon names it. `root` and `state` may be mounts: read them by [`World::seen`].
    pub fn path(&self, name: &str) -> PathBuf {
        self.world.folder().join(name)
    }

    /// The daemon's pid, as seen inside of the world.
    pub fn daemon_pid(&self) -> Result<u32> {
        let text = std::fs::read_to_string(self.path("daemon.pid")).context("daemon.pid")?;
        text.trim().parse().context("daemon.pid")
    }

    /// The pids of the keepers of this world.
    pub fn keeper_pids(&self) -> Vec<u32> {
        // By inode: the folder of the program may be reached by a link, and the kernel would name it otherwise.
        let inode = |path: &Path| std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
        let own = inode(Path::new(env!("CARGO_BIN_EXE_cricket")));
        let is_keeper = |pid: u32, words: &[String]| {
            let exe = inode(&self.world.seen(format!("/proc/{pid}/exe")));
            exe.is_some() && exe == own && words.get(1).is_some_and(|word| word == "keeper")
        };
        self.world.processes().into_iter().filter(|(pid, words)| is_keeper(*pid, words)).map(|(pid, _)| pid).collect()
    }

    async fn signal(&self, signal: &str) -> Result<()> {
        self.world.must("kill", &[&format!("-{signal}"), &self.daemon_pid()?.to_string()]).await?;
        Ok(())
    }

    async fn ended(&mut self) -> Result<ExitStatus> {
        let mut daemon = self.daemon.take().context("no daemon runs")?;
        let ended = tokio::time::timeout(PATIENCE, daemon.wait()).await;
        Ok(ended.with_context(|| format!("the daemon does not end: {}", self.log_tail(30)))??)
    }

    /// Kills the daemon with SIGKILL and waits until it is gone.
    pub async fn kill9(&mut self) -> Result<()> {
        self.kill().await?;
        self.buried().await
    }

    /// Kills the daemon with SIGKILL, in the middle of whatever it does for whom.
    pub async fn kill(&self) -> Result<()> {
        self.signal("KILL").await
    }

    /// Waits until a killed daemon is gone.
    pub async fn buried(&mut self) -> Result<()> {
        let status = self.ended().await?;
        ensure!(status.signal() == Some(9) || status.code() == Some(137), "killed, but ended with {status}");
        Ok(())
    }

    /// Asks the daemon to stop, which must succeed.
    pub async fn stop(&mut self) -> Result<()> {
        self.signal("TERM").await?;
        let status = self.ended().await?;
        ensure!(status.success(), "SIGTERM: the daemon ended with {status}: {}", self.log_tail(30));
        Ok(())
    }

    /// Kills the daemon with SIGKILL and starts it again.
    pub async fn crash_and_restart(&mut self) -> Result<Client> {
        self.kill9().await?;
        self.launch().await
    }

    /// Asks the daemon to read its configuration again.
    pub async fn reload(&self) -> Result<()> {
        self.signal("HUP").await
    }

    /// What the daemon logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("logs/daemon")).unwrap_or_default()
    }

    fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<_> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Shown by the test runner only where the test failed.
        eprintln!("--- the end of the daemon's log:\n{}", self.log_tail(60));
    }
}
