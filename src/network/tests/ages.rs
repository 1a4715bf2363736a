//! The plugins of two ages, Debian's and the current ones (`make tools`), in every version that they speak and with every
//! back end that they have: a pod is set up, checked and taken down again, and nothing of it is left.

use super::real::{PROGRAMS, ask, on_own_host, run, serve, unpin};
use super::*;

/// Where the plugins of an age are (on a host of the test's own), the versions of the specification that they speak, and whether they can write nftables.
struct Age {
    dir: PathBuf,
    versions: &'static [&'static str],
    nftables: bool,
    /// What CHECK has against a pod with both families and a host port, although nothing is wrong with it.
    wrong_objection: Option<&'static str>,
}

fn debian() -> Age {
    Age {
        dir: "/usr/lib/cni".into(),
        versions: &["0.3.1", "0.4.0", "1.0.0"],
        nftables: false,
        wrong_objection: Some("could not check ipv6 dnat"),
    }
}

fn current() -> Age {
    let dir = Path::new(PROGRAMS).join("cni");
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("critest/bin/cni/bridge");
    assert!(built.exists() || dir.join("bridge").exists(), "no current CNI plugins: run make tools first");
    Age { dir, versions: &["0.3.1", "0.4.0", "1.0.0", "1.1.0"], nftables: true, wrong_objection: None }
}

/// How rules are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rules {
    IptablesNft,
    IptablesLegacy,
    Nftables,
}

impl Age {
    fn fixture(&self) -> Fixture {
        let mut fixture = Fixture::new();
        fixture.config.bin_dirs = vec![self.dir.clone()];
        fixture
    }

    fn rules(&self) -> &'static [Rules] {
        let all = &[Rules::IptablesNft, Rules::IptablesLegacy, Rules::Nftables];
        if self.nftables { all } else { &all[..2] }
    }
}

/// Makes `iptables` the older of Debian's two, in the mount namespace of the test.
fn use_legacy_iptables() {
    rustix::mount::mount_bind("/usr/sbin/xtables-legacy-multi", "/usr/sbin/xtables-nft-multi").unwrap();
}

/// Everything that a pod can leave on the node.
async fn node(rules: Rules) -> String {
    let mut seen = run("ip -o link").await + &run("ip route").await + &run("ip -6 route").await + &run("ip rule").await;
    seen += &run("iptables-save").await;
    seen += &run("ip6tables-save").await;
    if rules == Rules::Nftables {
        // Without counters.
        seen += &run("nft --stateless list ruleset").await;
    }
    // Counters and times, tables with nothing in them (which stay from the first look on), and the bridge's state, which
    // follows its ports a moment later.
    let mut nothing = vec!["*", "#", "COMMIT"];
    nothing.extend([":PREROUTING ", ":INPUT ", ":FORWARD ", ":OUTPUT ", ":POSTROUTING "]);
    let said = |line: &&str| !nothing.iter().any(|start| line.starts_with(start)) && !line.contains(" cni0: ");
    let lines = seen.lines().filter(said);
    lines.map(|line| line.split(" [").next().unwrap_or(line).replace(" linkdown", "")).collect::<Vec<_>>().join("\n")
}

async fn inside(pod: &PodAttachment, line: &str) -> String {
    run(&format!("nsenter --net={} -- {line}", pod.netns.display())).await
}

fn host_local(fixture: &Fixture) -> Value {
    json!({"type": "host-local", "dataDir": fixture.leases_dir(), "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd00:88::/64"}]]})
}

/// The bridge, and every plugin that can be chained to it, `loopback` too; `sbr` and `vrf` have lists of their own.
fn whole_chain(fixture: &Fixture, version: &str, rules: Rules) -> Value {
    let mut bridge = json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
        "ipam": host_local(fixture)});
    let mut portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true});
    if rules == Rules::Nftables {
        bridge["ipMasqBackend"] = "nftables".into();
        portmap["backend"] = "nftables".into();
    }
    let mut chain = json!([bridge, portmap, {"type": "bandwidth", "capabilities": {"bandwidth": true}}, {"type": "tuning", "sysctl": {"net.core.somaxconn": "77"}, "dataDir": fixture.leases_dir().join("tuning")},
        {"type": "loopback"}]);
    // This one speaks nothing older.
    if version != "0.3.1" {
        chain.as_array_mut().unwrap().insert(2, json!({"type": "firewall"}));
    }
    chain
}

fn write_list(fixture: &Fixture, version: &str, plugins: &Value) {
    let list = json!({"name": "pods", "cniVersion": version, "plugins": plugins});
    fixture.conf("10-pods.conflist", &list.to_string());
}

async fn the_whole_chain(age: &Age, version: &str, rules: Rules) {
    let fixture = age.fixture();
    write_list(&fixture, version, &whole_chain(&fixture, version, rules));
    let network = fixture.network();
    network.refresh_status().await;
    assert_eq!(network.status(), NetworkStatus { ready: true, ..NetworkStatus::default() }, "{version} {rules:?}");
    let mut before = String::new();
    // What is made once for a node (the bridge, the plugins' own chains) comes with the first pod.
    for round in 0..2 {
        let mut pod = fixture.pinned(&format!("pod{round}"));
        pod.port_mappings = vec![host_port(12000, 80)];
        pod.annotations = [("kubernetes.io/ingress-bandwidth".to_owned(), "10M".to_owned())].into();
        let attachment = network.attach(&pod).await.unwrap_or_else(|error| panic!("{version} {rules:?}: {error}"));
        let leases: Vec<_> = attachment.ips.iter().map(ToString::to_string).collect();
        assert_eq!(fixture.leases(), leases);
        for address in [std::net::SocketAddr::new(attachment.ips[0], 80), "127.0.0.1:12000".parse().unwrap()] {
            let server = serve(&pod, "0.0.0.0:80");
            assert_eq!(ask(address), "hello", "{version} {rules:?} {address}");
            server.join().unwrap();
        }
        assert_eq!(inside(&pod, "cat /proc/sys/net/core/somaxconn").await.trim(), "77");
        assert!(run("tc qdisc show").await.contains("rate 10Mbit"));
        match (network.check(&pod).await, age.wrong_objection.filter(|_| version != "0.3.1")) {
            (Ok(()), None) => {}
            (Err(error), Some(known)) => assert!(error.to_string().contains(known), "{version} {rules:?}: {error}"),
            (checked, _) => panic!("{version} {rules:?}: {checked:?}"),
        }
        network.detach(&pod, true).await.unwrap_or_else(|error| panic!("{version} {rules:?}: {error}"));
        assert!(fixture.leases().is_empty() && fixture.cached().is_empty());
        unpin(&pod);
        let now = node(rules).await;
        assert!(!now.contains("12000") && !now.contains(&leases[0]) && !now.contains(&leases[1]), "{version}: {now}");
        if round == 0 {
            before = now;
        } else {
            assert_eq!(before, now, "{version} {rules:?}");
        }
    }
}

async fn ptp_and_static(age: &Age, version: &str) {
    let fixture = age.fixture();
    let ipam = json!({"type": "static", "addresses": [{"address": "10.90.0.5/24", "gateway": "10.90.0.1"}],
        "routes": [{"dst": "0.0.0.0/0"}]});
    write_list(&fixture, version, &json!([{"type": "ptp", "ipMasq": true, "ipam": ipam}]));
    attached_and_gone(&fixture, version, "10.90.0.5", "default via 10.90.0.1").await;
}

async fn macvlan_and_host_local(age: &Age, version: &str) {
    let fixture = age.fixture();
    write_list(&fixture, version, &json!([{"type": "macvlan", "master": "m0", "ipam": host_local(&fixture)}]));
    attached_and_gone(&fixture, version, "10.88.0.2", "10.88.0.0/24 dev eth0").await;
}

async fn attached_and_gone(fixture: &Fixture, version: &str, address: &str, route: &str) {
    let network = fixture.network();
    let (pod, before) = (fixture.pinned("abc"), node(Rules::IptablesNft).await);
    let attachment = network.attach(&pod).await.unwrap_or_else(|error| panic!("{version}: {error}"));
    assert_eq!(attachment.ips[0].to_string(), address);
    assert!(inside(&pod, "ip route").await.contains(route));
    network.check(&pod).await.unwrap_or_else(|error| panic!("{version}: {error}"));
    inside(&pod, "ip link set eth0 name gone0").await;
    let checked = network.check(&pod).await;
    assert_eq!(checked.is_err(), version != "0.3.1", "{version}: {checked:?}");
    inside(&pod, "ip link set gone0 name eth0").await;
    network.detach(&pod, true).await.unwrap_or_else(|error| panic!("{version}: {error}"));
    assert!(!inside(&pod, "ip -o link").await.contains("eth0"));
    unpin(&pod);
    assert!(fixture.leases().is_empty() && fixture.cached().is_empty());
    assert_eq!(node(Rules::IptablesNft).await, before, "{version}");
}

/// With each back end of the plugins of this age, on a host of its own.
fn chains_of(age: &Age) {
    for rules in age.rules().iter().copied() {
        on_own_host(async {
            if rules == Rules::IptablesLegacy {
                use_legacy_iptables();
            }
            for version in age.versions {
                the_whole_chain(age, version, rules).await;
            }
        });
    }
}

#[test]
#[ignore = "needs root"]
fn debian_s_plugins_in_one_chain() {
    chains_of(&debian());
}

#[test]
#[ignore = "needs root"]
fn current_plugins_in_one_chain() {
    chains_of(&current());
}

#[test]
#[ignore = "needs root"]
fn interfaces_of_both_ages() {
    on_own_host(async {
        run("ip link add m0 type veth peer name m1").await;
        run("ip link set m0 up").await;
        for age in [debian(), current()] {
            for version in age.versions {
                ptp_and_static(&age, version).await;
                macvlan_and_host_local(&age, version).await;
            }
        }
    });
}

/// The routes are in a table of the pod's addresses, in which no bridge plugin looks for them at CHECK: one reason why CHECK
/// ends nothing (docs/decisions/034).
#[test]
#[ignore = "needs root"]
fn routes_by_source_of_both_ages() {
    on_own_host(async {
        for age in [debian(), current()] {
            for version in age.versions {
                let fixture = age.fixture();
                let bridge =
                    json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": host_local(&fixture)});
                write_list(&fixture, version, &json!([bridge, {"type": "sbr"}]));
                let (network, pod) = (fixture.network(), fixture.pinned("abc"));
                let attachment = network.attach(&pod).await.unwrap();
                assert!(inside(&pod, "ip rule").await.contains(&format!("from {}", attachment.ips[0])), "{version}");
                let checked = network.check(&pod).await;
                assert_eq!(checked.is_err(), *version != "0.3.1", "{version}");
                if let Err(error) = checked {
                    assert!(error.to_string().contains("Failed to find Gateway 10.88.0.1"), "{version}: {error}");
                }
                network.detach(&pod, true).await.unwrap();
                unpin(&pod);
                assert!(fixture.leases().is_empty() && fixture.cached().is_empty(), "{version}");
            }
        }
    });
}

fn with_vrf(age: &Age) -> Fixture {
    let fixture = age.fixture();
    let bridge = json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": host_local(&fixture)});
    write_list(&fixture, "1.0.0", &json!([bridge, {"type": "vrf", "vrfname": "blue"}]));
    fixture
}

#[test]
#[ignore = "lacks VRF devices: the kernels that the tests run on have no CONFIG_NET_VRF"]
fn vrf_of_both_ages() {
    on_own_host(async {
        for age in [debian(), current()] {
            let fixture = with_vrf(&age);
            let (network, pod) = (fixture.network(), fixture.pinned("abc"));
            network.attach(&pod).await.unwrap();
            assert!(inside(&pod, "ip -o link show master blue").await.contains("eth0"));
            network.check(&pod).await.unwrap();
            network.detach(&pod, true).await.unwrap();
            unpin(&pod);
            assert!(fixture.leases().is_empty());
        }
    });
}

/// Where the kernel has no such device, the pod is refused with the plugin's words, and what the bridge did is undone.
#[test]
#[ignore = "needs root"]
fn what_the_kernel_lacks_is_said_and_undone() {
    on_own_host(async {
        for age in [debian(), current()] {
            let fixture = with_vrf(&age);
            let (network, pod) = (fixture.network(), fixture.pinned("abc"));
            // Where this is no error, the kernel has such devices, and vrf_of_both_ages is to be run instead.
            let error = network.attach(&pod).await.unwrap_err();
            assert!(error.to_string().contains("CNI plugin \"vrf\" failed ADD"), "{error}");
            assert!(error.left_nothing(), "{error}");
            assert!(fixture.leases().is_empty() && fixture.cached().is_empty());
            assert!(!run("ip -o link").await.contains("veth"));
            unpin(&pod);
        }
    });
}

#[test]
#[ignore = "needs root"]
fn an_older_plugin_lowers_the_version_for_all() {
    on_own_host(async {
        let mut fixture = current().fixture();
        // The current bridge; the addresses are given by Debian's host-local, which speaks 1.0.0.
        fixture.config.bin_dirs.insert(0, fixture.temp.path().join("mixed"));
        fs::create_dir(&fixture.config.bin_dirs[0]).unwrap();
        fs::copy("/usr/lib/cni/host-local", fixture.config.bin_dirs[0].join("host-local")).unwrap();
        let bridge = json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": host_local(&fixture)});
        let list = json!({"name": "pods", "cniVersion": "0.4.0", "cniVersions": ["0.4.0", "1.0.0", "1.1.0"], "plugins": [bridge]});
        fixture.conf("10-pods.conflist", &list.to_string());
        let (network, pod) = (fixture.network(), fixture.pinned("abc"));
        network.refresh_status().await;
        assert!(network.status().ready, "{:?}", network.status());
        assert_eq!(network.attach(&pod).await.unwrap().result["cniVersion"], "1.0.0");
        fs::remove_file(fixture.config.bin_dirs[0].join("host-local")).unwrap();
        network.refresh_status().await;
        network.detach(&pod, true).await.unwrap();
        assert_eq!(network.attach(&pod).await.unwrap().result["cniVersion"], "1.1.0");
        network.detach(&pod, true).await.unwrap();
        unpin(&pod);
        assert!(fixture.leases().is_empty());
        // Only 1.1.0, and Debian's plugins alone.
        fixture.config.bin_dirs = vec!["/usr/lib/cni".into()];
        write_list(&fixture, "1.1.0", &json!([{"type": "ptp", "ipam": host_local(&fixture)}]));
        let network = fixture.network();
        network.refresh_status().await;
        let message = network.status().message;
        assert!(message.contains("speaks the CNI versions 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0"), "{message}");
    });
}

/// What the cache knows is collected by DEL. GC is called too, and nobody objects; but no plugin of either age does anything
/// for it, so what the cache does not know stays: the day that this changes, this test says so.
#[test]
#[ignore = "needs root"]
fn current_plugins_collect_what_the_cache_knows() {
    on_own_host(async {
        let fixture = current().fixture();
        write_list(&fixture, "1.1.0", &whole_chain(&fixture, "1.1.0", Rules::IptablesNft));
        let before = fixture.network();
        let mut addresses = Vec::new();
        for id in ["kept", "stale", "unknown"] {
            let ips = before.attach(&fixture.pinned(id)).await.unwrap().ips;
            addresses.push(ips.iter().map(ToString::to_string).collect::<Vec<_>>());
        }
        let (kept, stale, unknown) = (fixture.pod("kept"), fixture.pod("stale"), fixture.pod("unknown"));
        unpin(&stale);
        unpin(&unknown);
        fs::remove_file(fixture.config.cache_dir.join("results/pods-unknown-eth0")).unwrap();
        let after = fixture.network();
        after.gc(&[("kept".into(), "eth0".into())]).await.unwrap();
        assert_eq!(fixture.cached(), ["pods-kept-eth0"]);
        let mut held = [addresses[0].clone(), addresses[2].clone()].concat();
        held.sort();
        assert_eq!(fixture.leases(), held);
        after.check(&kept).await.unwrap();
        after.detach(&kept, true).await.unwrap();
        unpin(&kept);
        // Without a cache DEL goes by today's configuration.
        after.detach(&unknown, false).await.unwrap();
        assert!(fixture.leases().is_empty());
    });
}

/// libcni, as other tools have it, finds what we attached, and can check and delete it.
#[test]
#[ignore = "needs root"]
fn other_tools_find_the_results() {
    on_own_host(async {
        let reader = Path::new(PROGRAMS).join("cnicache");
        assert!(reader.exists(), "no cnicache: run make tools first");
        for (age, version) in [(debian(), "0.4.0"), (debian(), "1.0.0"), (current(), "1.1.0")] {
            let fixture = age.fixture();
            write_list(&fixture, version, &whole_chain(&fixture, version, Rules::IptablesNft));
            let (network, mut pod) = (fixture.network(), fixture.pinned("abc"));
            pod.port_mappings = vec![host_port(12000, 80)];
            let attachment = network.attach(&pod).await.unwrap();
            let ask = |what: &str| {
                let conf = fixture.config.conf_dir.join("10-pods.conflist");
                let (cache, bin) = (fixture.config.cache_dir.display(), age.dir.display());
                let line = format!("{} {cache} {bin} {} {what} abc", reader.display(), conf.display());
                async move { run(&line).await }
            };
            let shown: Value = serde_json::from_str(&ask("show").await).unwrap();
            assert_eq!(shown["result"]["ips"][0]["address"], format!("{}/24", attachment.ips[0]));
            assert_eq!(shown["attachment"]["NetNS"], pod.netns.display().to_string());
            assert_eq!(shown["attachment"]["CapabilityArgs"]["portMappings"][0]["hostPort"], 12000);
            if age.wrong_objection.is_none() {
                ask("check").await;
            }
            ask("del").await;
            assert!(fixture.leases().is_empty() && fixture.cached().is_empty());
            assert!(!node(Rules::IptablesNft).await.contains("12000"));
            network.detach(&pod, true).await.unwrap();
            unpin(&pod);
        }
    });
}

/// The plugin of a hostile or broken node: the pod would have an address, and nowhere to have it. The namespace is put back,
/// since the bridge finds its rules by the addresses inside.
#[test]
#[ignore = "needs root"]
fn a_plugin_that_takes_the_namespace_away() {
    on_own_host(async {
        let other = "mount --bind /proc/$$/ns/net $CNI_NETNS";
        for (what, takes) in [
            ("gone", "umount -l $CNI_NETNS".to_owned()),
            ("gone with its file", "umount -l $CNI_NETNS; rm $CNI_NETNS".to_owned()),
            ("another", format!("umount -l $CNI_NETNS; {other}")),
            ("another on top", other.to_owned()),
            ("gone, and an error", "umount -l $CNI_NETNS; exit 1".to_owned()),
        ] {
            let fixture = Fixture::new();
            let calls = fixture.temp.path().join("calls/thief.ADD.in");
            let result = format!("sed 's/.*\"prevResult\":\\({{.*}}\\),\"type\".*/\\1/' {}", calls.display());
            fixture.fake("thief", &format!("case $CNI_COMMAND in ADD) {takes}; {result};; esac"));
            fixture.bridge("1.0.0", &[json!({"type": "thief"})]);
            // The bridge and what is made once for a node.
            let (network, first) = (fixture.network(), fixture.pinned("first"));
            network.attach(&first).await.unwrap_err();
            unpin(&first);
            let (pod, before) = (fixture.pinned("abc"), node(Rules::IptablesNft).await);
            let error = network.attach(&pod).await.unwrap_err();
            assert!(error.left_nothing() && error.to_string().contains("\"thief\""), "{what}: {error}");
            assert_eq!(error.to_string().contains("took away"), !takes.contains("exit"), "{what}: {error}");
            assert!(!inside(&pod, "ip -o link").await.contains("eth0"), "{what}");
            assert!(fixture.leases().is_empty() && fixture.cached().is_empty(), "{what}");
            assert_eq!(node(Rules::IptablesNft).await, before, "{what}");
            unpin(&pod);
        }
    });
}
