//! The ways of making the pods' network that the table is walked with.

use std::path::PathBuf;

use crate::node::Setup;
use crate::world::top;

/// One way, and what it cannot do.
pub struct Mode {
    pub name: &'static str,
    /// Searched before Debian's plugins.
    plugins: Option<PathBuf>,
    /// The network configuration of a node, by the third part of its pods' addresses; `None` for none.
    conflist: Option<fn(u8) -> String>,
    /// More keys of the configuration of a node, by the same number.
    keys: fn(u8) -> Vec<(&'static str, toml::Value)>,
    /// Checks that come out the other way: how their names begin, and why. That they do is a part of the test.
    pub exceptions: &'static [(&'static str, &'static str)],
}

impl Mode {
    /// A node whose pods have the addresses 10.89.N.0/24 and fd00:89:N::/64.
    pub fn setup(&self, number: u8) -> Setup {
        Setup {
            registry: false,
            plugins: self.plugins.clone(),
            conflist: self.conflist.map(|conflist| conflist(number)),
            keys: (self.keys)(number),
            ..Setup::new("crun")
        }
    }
}

/// What the plugins cannot do, whichever their age and back end.
const OF_PLUGINS: &[(&str, &str)] = &[
    ("source kept, pod to pod of another node", "ipMasq of the bridge plugin knows no addresses but its own network's"),
    ("node a to its own host port by ::1", "IPv6 has no route_localnet, so portmap cannot lead ::1 to a pod"),
    ("spoofed source", "the bridge plugin lets a pod send with any address"),
];

/// What cricket makes by itself, with no plugin.
pub fn builtin() -> Mode {
    Mode {
        name: "builtin",
        plugins: None,
        conflist: None,
        keys: |number| {
            let subnets = [format!("10.89.{number}.0/24"), format!("fd00:89:{number}::/64")];
            vec![
                ("network.mode", "builtin".into()),
                ("network.builtin_subnets", subnets.to_vec().into()),
                ("network.builtin_cluster_cidrs", vec!["10.89.0.0/16", "fd00:89::/32"].into()),
            ]
        },
        exceptions: &[("node a to its own host port by ::1", "IPv6 has no route_localnet")],
    }
}

/// The plugins of the distribution, version 1.1.1, which speak 1.0.0.
pub fn debian() -> Mode {
    Mode {
        name: "Debian's plugins",
        plugins: None,
        conflist: Some(|number| list("1.0.0", number, "", "")),
        keys: |_| Vec::new(),
        exceptions: OF_PLUGINS,
    }
}

/// The plugins of critest/cni.
pub fn current() -> Mode {
    Mode {
        name: "current plugins",
        plugins: Some(top().join("critest/bin/cni")),
        conflist: Some(|number| list("1.1.0", number, "", "")),
        keys: |_| Vec::new(),
        exceptions: OF_PLUGINS,
    }
}

/// The same, with rules of nftables instead of iptables.
pub fn current_with_nftables() -> Mode {
    Mode {
        name: "current plugins with nftables",
        conflist: Some(|number| list("1.1.0", number, r#""ipMasqBackend": "nftables","#, r#""backend": "nftables","#)),
        ..current()
    }
}

fn list(version: &str, number: u8, bridge: &str, portmap: &str) -> String {
    let routes = r#"[{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]"#;
    format!(
        r#"{{"cniVersion": "{version}", "name": "lane", "plugins": [
          {{"type": "bridge", "bridge": "lane0", "isGateway": true, "ipMasq": true, {bridge} "hairpinMode": true,
            "ipam": {{"type": "host-local", "dataDir": "LEASES", "routes": {routes},
                      "ranges": [[{{"subnet": "10.89.{number}.0/24"}}], [{{"subnet": "fd00:89:{number}::/64"}}]]}}}},
          {{"type": "portmap", {portmap} "capabilities": {{"portMappings": true}}, "snat": true}}]}}"#
    )
}
