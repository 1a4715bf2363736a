//! The same pod on both networks: what it sees of its link, its addresses, its routes and the kernel's settings is the same, but
//! for what is named here.

use super::*;
use crate::network::builtin::tests::on_own_host;
use crate::sys::exec::{self, Exec};
use crate::sys::namespaces::{self, NamespaceRequest, enter_net};

/// What differs on purpose, and why.
const DIFFERENT: [(&str, &str); 2] = [
    (
        "address \"inet6\"",
        "without duplicate-address detection, for itself: the plugin switches it off for the whole link too",
    ),
    (
        "ipv4.arp_notify",
        "the plugin announces a new MAC; here whoever comes to have an address has the MAC that goes with it",
    ),
];

#[test]
#[ignore = "needs root and Debian's plugins"]
fn a_pod_sees_the_same_of_both_networks() {
    let (mut plugins, mut builtin) = (BTreeMap::new(), BTreeMap::new());
    on_own_host(|_| plugins = on(config::NetworkMode::Cni));
    on_own_host(|_| builtin = on(config::NetworkMode::Builtin));
    let keys: std::collections::BTreeSet<&String> = plugins.keys().chain(builtin.keys()).collect();
    let differ: Vec<_> = keys.into_iter().filter(|key| plugins.get(*key) != builtin.get(*key)).collect();
    let named: Vec<&str> = DIFFERENT.iter().map(|(key, _)| *key).collect();
    let shown: Vec<_> = differ.iter().map(|key| (key, plugins.get(*key), builtin.get(*key))).collect();
    assert_eq!(differ, named, "{shown:#?}");
}

/// What the first pod of a host sees, in this mode.
fn on(mode: config::NetworkMode) -> BTreeMap<String, String> {
    let mut fixture = Fixture::new();
    let ipam = json!({"type": "host-local", "dataDir": fixture.temp.path().join("leases"),
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd00:88::/64"}]]});
    let bridge = json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": ipam});
    fixture.conf("10-pods.conflist", &json!({"name": "pods", "cniVersion": "1.0.0", "plugins": [bridge]}).to_string());
    fixture.config.mode = mode;
    fixture.config.builtin_subnets = vec!["10.88.0.0/24".into(), "fd00:88::/64".into()];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(seen(&fixture, &fixture.network()))
}

/// Attaches a pod, looks around in it, and detaches it.
async fn seen(fixture: &Fixture, network: &Network) -> BTreeMap<String, String> {
    let pod = fixture.pod("a");
    let dir = pod.netns.parent().unwrap();
    let sysctls = BTreeMap::new();
    let (net, ipc, uts, hostname) = (true, false, false, "");
    namespaces::create(&NamespaceRequest { dir, net, ipc, uts, hostname, sysctls: &sysctls }).unwrap();
    let made = network.attach(&pod).await.unwrap_or_else(|error| panic!("{}", crate::telemetry::chain(&error)));
    let mut seen = BTreeMap::from([("status".to_owned(), format!("{:?}", made.ips))]);
    let link = &ip(&pod, &["-d", "address", "show", "dev", "eth0"]).await[0];
    for key in ["mtu", "operstate", "flags", "link_type", "group"] {
        seen.insert(format!("link {key}"), link[key].to_string());
    }
    for own in link["addr_info"].as_array().unwrap().iter().filter(|own| own["scope"] == "global") {
        seen.insert(format!("address {}", own["family"]), own.to_string());
    }
    for family in ["-4", "-6"] {
        for route in ip(&pod, &[family, "route", "show"]).await.as_array().unwrap() {
            seen.insert(format!("route {family} {}", route["dst"]), route.to_string());
        }
    }
    for family in ["ipv4", "ipv6"] {
        let settings = enter_net(&pod.netns, || settings(&format!("/proc/sys/net/{family}/conf/eth0"))).unwrap();
        seen.extend(settings.into_iter().map(|(key, value)| (format!("{family}.{key}"), value)));
    }
    network.detach(&pod, true).await.unwrap();
    namespaces::remove(dir).unwrap();
    seen
}

fn settings(dir: &str) -> Vec<(String, String)> {
    // Some can only be written, and the secret of an address is each link's own.
    let read = |name: String| Some((name.clone(), fs::read_to_string(Path::new(dir).join(&name)).ok()?));
    names(Path::new(dir)).into_iter().filter(|name| name != "stable_secret").filter_map(read).collect()
}

async fn ip(pod: &PodAttachment, args: &[&str]) -> Value {
    let netns = format!("--net={}", pod.netns.display());
    let args = [&netns, "ip", "-j"].into_iter().chain(args.iter().copied()).map(Into::into).collect();
    let exec = Exec {
        program: "/usr/bin/nsenter".into(),
        args,
        env: vec![("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into())],
        stdin: Vec::new(),
        timeout: Duration::from_secs(60),
        output_cap: 1024 * 1024,
    };
    let output = exec::run(exec).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}
