//! The network against fake plugins (shell scripts, no root needed) and against real ones.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;
use tempfile::TempDir;

use super::*;

mod ages;
mod equal;
mod faults;
mod kills;
mod lists;
mod real;
mod watching;

/// What a fake prints for ADD.
const RESULT: &str = r#"{"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/x"}],
    "ips": [{"address": "10.88.0.5/16", "interface": 0}, {"address": "fd00:88::5/64", "interface": 0}]}"#;

/// A fake that does everything right.
fn good() -> String {
    format!("case $CNI_COMMAND in ADD) echo '{RESULT}';; esac")
}

/// Folders of its own for configurations, programs and results.
struct Fixture {
    temp: TempDir,
    config: config::Network,
}

impl Fixture {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let config = config::Network {
            conf_dir: temp.path().join("etc/net.d"),
            bin_dirs: vec![temp.path().join("bin"), "/usr/lib/cni".into()],
            cache_dir: temp.path().join("cache"),
            plugin_timeout: 30,
            mode: config::NetworkMode::Cni,
            ..config::Network::default()
        };
        for dir in [&config.conf_dir, &config.bin_dirs[0], &temp.path().join("calls")] {
            fs::create_dir_all(dir).unwrap();
        }
        Self { temp, config }
    }

    /// A list of fakes that do everything right.
    fn with_fakes(plugins: &[&str]) -> Self {
        let fixture = Self::new();
        for plugin in plugins {
            fixture.fake(plugin, &good());
        }
        fixture.list("1.0.0", plugins);
        fixture
    }

    fn network(&self) -> Arc<Network> {
        Network::new(self.config.clone(), self.temp.path().join("network"))
    }

    fn conf(&self, name: &str, text: &str) {
        fs::write(self.config.conf_dir.join(name), text).unwrap();
    }

    fn list(&self, version: &str, plugins: &[&str]) {
        let plugins: Value = plugins.iter().map(|plugin| json!({"type": plugin})).collect();
        let list = json!({"name": "pods", "cniVersion": version, "plugins": plugins});
        self.conf("10-pods.conflist", &list.to_string());
    }

    /// Writes a plugin that notes each call, with its environment and its input, and then runs `body`.
    fn fake(&self, name: &str, body: &str) {
        let calls = self.temp.path().join("calls");
        let calls = calls.display();
        self.program(
            name,
            &format!(
                "#!/bin/sh\n[ $CNI_COMMAND = VERSION ] && exit\necho \"$CNI_COMMAND {name}\" >> {calls}/order\n\
                 env > {calls}/{name}.$CNI_COMMAND.env\ncat > {calls}/{name}.$CNI_COMMAND.in\n{body}\n"
            ),
        );
    }

    fn program(&self, name: &str, text: &str) {
        let path = self.config.bin_dirs[0].join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The calls so far, such as `ADD bridge`; they are forgotten.
    fn order(&self) -> Vec<String> {
        let path = self.temp.path().join("calls/order");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let _ = fs::remove_file(path);
        text.lines().map(str::to_owned).collect()
    }

    fn input(&self, plugin: &str, verb: &str) -> Value {
        let path = self.temp.path().join(format!("calls/{plugin}.{verb}.in"));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    fn environment(&self, plugin: &str, verb: &str) -> BTreeMap<String, String> {
        let text = fs::read_to_string(self.temp.path().join(format!("calls/{plugin}.{verb}.env"))).unwrap();
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    fn pod(&self, id: &str) -> PodAttachment {
        PodAttachment {
            sandbox_id: id.to_owned(),
            pod_name: format!("web-{id}"),
            pod_namespace: "default".to_owned(),
            pod_uid: format!("uid-{id}"),
            netns: self.temp.path().join("ns").join(id).join("net"),
            ..PodAttachment::default()
        }
    }

    /// The files of the result cache.
    fn cached(&self) -> Vec<String> {
        names(&self.config.cache_dir.join("results"))
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn host_port(host_port: i32, container_port: i32) -> PortMapping {
    PortMapping { protocol: 0, container_port, host_port, host_ip: String::new() }
}
