//! What plugins are told: order, environment, results handed on, capabilities, STATUS and GC.

use super::*;

#[tokio::test]
async fn a_chain_is_added_in_order_and_deleted_in_reverse() {
    let fixture = Fixture::with_fakes(&["one", "two", "three"]);
    let (network, pod) = (fixture.network(), fixture.pod("abc"));
    let attachment = network.attach(&pod).await.unwrap();
    assert_eq!(attachment.ips, ["10.88.0.5".parse::<std::net::IpAddr>().unwrap(), "fd00:88::5".parse().unwrap()]);
    assert_eq!(attachment.network, "pods");
    assert_eq!(fixture.order(), ["ADD one", "ADD two", "ADD three"]);
    assert_eq!(fixture.cached(), ["pods-abc-eth0"]);
    let result: Value = serde_json::from_str(RESULT).unwrap();
    assert_eq!(fixture.input("one", "ADD").get("prevResult"), None);
    assert_eq!(fixture.input("two", "ADD")["prevResult"], result);
    assert_eq!(fixture.input("two", "ADD")["name"], "pods");
    assert_eq!(fixture.input("two", "ADD")["cniVersion"], "1.0.0");
    // A record of the pod keeps it whole.
    let stored = serde_json::to_string(&attachment).unwrap();
    assert_eq!(serde_json::from_str::<Attachment>(&stored).unwrap(), attachment);

    network.detach(&pod, false).await.unwrap();
    assert_eq!(fixture.order(), ["DEL three", "DEL two", "DEL one"]);
    for plugin in ["one", "two", "three"] {
        assert_eq!(fixture.input(plugin, "DEL")["prevResult"], result);
    }
    assert_eq!(fixture.cached(), Vec::<String>::new());
    // Once more, which is no error.
    network.detach(&pod, false).await.unwrap();
    assert_eq!(fixture.input("one", "DEL").get("prevResult"), None);
}

#[tokio::test]
async fn a_plugin_gets_its_arguments_and_nothing_of_the_daemon_s_environment() {
    let fixture = Fixture::with_fakes(&["one"]);
    let (network, pod) = (fixture.network(), fixture.pod("abc"));
    network.attach(&pod).await.unwrap();
    let mut environment = fixture.environment("one", "ADD");
    // What the shell sets by itself.
    for key in ["PWD", "SHLVL", "_", "OLDPWD"] {
        environment.remove(key);
    }
    let bin = fixture.config.bin_dirs[0].display();
    let expected = [
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-abc;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=uid-abc".to_owned()),
        ("CNI_COMMAND", "ADD".to_owned()),
        ("CNI_CONTAINERID", "abc".to_owned()),
        ("CNI_IFNAME", "eth0".to_owned()),
        ("CNI_NETNS", pod.netns.display().to_string()),
        ("CNI_PATH", format!("{bin}:/usr/lib/cni")),
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
    ];
    let expected: BTreeMap<_, _> = expected.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    assert_eq!(environment, expected);
    // The namespace is not pinned (any more), so DEL gets none, whatever the caller believes.
    network.detach(&pod, true).await.unwrap();
    assert_eq!(fixture.environment("one", "DEL")["CNI_NETNS"], "");
}

#[tokio::test]
async fn capabilities_go_to_those_who_declare_them() {
    let fixture = Fixture::with_fakes(&["plain", "ports", "all"]);
    let all = json!({"portMappings": true, "bandwidth": true, "dns": true, "cgroupPath": true, "mac": true,
        "io.kubernetes.cri.pod-annotations": true});
    let plugins = json!([{"type": "plain"}, {"type": "ports", "capabilities": {"portMappings": true, "dns": false}},
        {"type": "all", "capabilities": all}]);
    fixture.conf("10-pods.conflist", &json!({"name": "pods", "cniVersion": "1.0.0", "plugins": plugins}).to_string());
    let network = fixture.network();
    let mut pod = fixture.pod("abc");
    pod.port_mappings = vec![host_port(8080, 80), host_port(0, 443)];
    pod.annotations = [("kubernetes.io/ingress-bandwidth".to_owned(), "1M".to_owned())].into();
    pod.dns.servers = vec!["10.96.0.10".to_owned()];
    pod.cgroup_parent = "/kubepods/pod1".to_owned();
    network.attach(&pod).await.unwrap();
    network.detach(&pod, false).await.unwrap();
    for verb in ["ADD", "DEL"] {
        assert_eq!(fixture.input("plain", verb).get("runtimeConfig"), None);
        let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}]);
        assert_eq!(fixture.input("ports", verb)["runtimeConfig"], json!({"portMappings": ports}));
        assert_eq!(
            fixture.input("all", verb)["runtimeConfig"],
            json!({
                "portMappings": ports,
                "bandwidth": {"ingressRate": 1_000_000, "ingressBurst": i32::MAX},
                "dns": {"servers": ["10.96.0.10"], "searches": [], "options": []},
                "io.kubernetes.cri.pod-annotations": {"kubernetes.io/ingress-bandwidth": "1M"},
                "cgroupPath": "/kubepods/pod1",
            })
        );
    }
}

#[tokio::test]
async fn a_pod_that_cannot_be_named_to_plugins_never_reaches_them() {
    let fixture = Fixture::with_fakes(&["one"]);
    let network = fixture.network();
    let good = fixture.pod("abc");
    let bad = [
        PodAttachment { pod_name: "a;IP=1".into(), ..good.clone() },
        PodAttachment { sandbox_id: "../abc".into(), ..good.clone() },
        PodAttachment { netns: "/proc/1/ns/net".into(), ..good.clone() },
        PodAttachment { netns: "ns".into(), ..good.clone() },
        PodAttachment { port_mappings: vec![host_port(-1, 80)], ..good.clone() },
        PodAttachment { annotations: [("kubernetes.io/egress-bandwidth".into(), "x".into())].into(), ..good.clone() },
    ];
    for pod in bad {
        let error = network.attach(&pod).await.unwrap_err();
        assert!(matches!(error, NetworkError::Argument { .. }), "{error:?}");
        assert_eq!(fixture.order(), Vec::<String>::new());
        network.detach(&pod, true).await.unwrap();
        // Whether there was an ADD is not known then; but no DEL gets somebody else's namespace.
        if !fixture.order().is_empty() {
            assert_eq!(fixture.environment("one", "DEL")["CNI_NETNS"], "");
        }
    }
    assert!(fixture.cached().is_empty());
}

#[tokio::test]
async fn one_pod_holds_a_host_port() {
    let fixture = Fixture::with_fakes(&["one"]);
    let network = fixture.network();
    let (mut first, mut second) = (fixture.pod("a"), fixture.pod("b"));
    first.port_mappings = vec![host_port(8080, 80)];
    second.port_mappings = vec![host_port(8081, 80), host_port(8080, 81)];
    network.attach(&first).await.unwrap();
    assert!(matches!(network.attach(&first).await, Err(NetworkError::AlreadyAttached(_))));
    fixture.order();
    let error = network.attach(&second).await.unwrap_err().to_string();
    assert_eq!(error, "pod default/web-b: host port 8080/tcp on every address is held by pod default/web-a");
    assert_eq!(fixture.order(), Vec::<String>::new());
    // A daemon that starts anew is told of the pods that run.
    let restarted = fixture.network();
    restarted.adopt(&first);
    assert!(matches!(restarted.attach(&second).await, Err(NetworkError::HostPort(_))));
    restarted.detach(&first, false).await.unwrap();
    restarted.attach(&second).await.unwrap();
}

#[tokio::test]
async fn the_configuration_of_add_is_the_one_of_del() {
    let fixture = Fixture::with_fakes(&["one"]);
    let network = fixture.network();
    let (first, second) = (fixture.pod("a"), fixture.pod("b"));
    network.attach(&first).await.unwrap();
    network.attach(&second).await.unwrap();
    // Another network takes over, and then none.
    fixture.fake("other", &good());
    let other = json!({"name": "other", "cniVersion": "0.4.0", "plugins": [{"type": "other"}]});
    fixture.conf("05-other.conflist", &other.to_string());
    network.refresh_status().await;
    fixture.order();
    network.detach(&first, false).await.unwrap();
    assert_eq!(fixture.order(), ["DEL one"]);
    fs::remove_dir_all(&fixture.config.conf_dir).unwrap();
    let restarted = fixture.network();
    restarted.detach(&second, false).await.unwrap();
    assert_eq!(fixture.order(), ["DEL one"]);
    assert_eq!(fixture.input("one", "DEL")["cniVersion"], "1.0.0");
    // Neither a cache nor a configuration: there is nothing that could be asked.
    restarted.detach(&fixture.pod("c"), false).await.unwrap();
}

#[tokio::test]
async fn del_of_old_versions_has_no_result() {
    let fixture = Fixture::with_fakes(&["one"]);
    fixture.list("0.3.1", &["one"]);
    let (network, pod) = (fixture.network(), fixture.pod("abc"));
    let attachment = network.attach(&pod).await.unwrap();
    assert_eq!(attachment.result["cniVersion"], "0.3.1");
    assert_eq!(attachment.result["ips"][0]["version"], "4");
    network.detach(&pod, false).await.unwrap();
    assert_eq!(fixture.input("one", "DEL").get("prevResult"), None);
}

#[tokio::test]
async fn plugins_say_whether_they_are_ready() {
    let fixture = Fixture::with_fakes(&["one", "two"]);
    fixture.list("1.1.0", &["one", "two"]);
    let network = fixture.network();
    assert!(!network.status().ready);
    network.refresh_status().await;
    assert_eq!(network.status(), NetworkStatus { ready: true, ..NetworkStatus::default() });
    assert_eq!(fixture.order(), ["STATUS one", "STATUS two"]);
    assert_eq!(fixture.environment("one", "STATUS").get("CNI_CONTAINERID"), None);

    fixture
        .fake("two", r#"echo '{"cniVersion": "1.1.0", "code": 50, "msg": "no daemon", "details": "socket"}'; exit 1"#);
    network.refresh_status().await;
    let status = network.status();
    assert_eq!((status.ready, status.reason.as_str()), (false, "NetworkPluginNotReady"));
    let path = fixture.config.conf_dir.join("10-pods.conflist");
    assert_eq!(
        status.message,
        format!(
            "network \"pods\" of {}: CNI plugin \"two\" failed STATUS: no daemon; socket (code 50, not available)",
            path.display()
        )
    );
    // Merely reading the folder again does not make it ready; the plugins must say so.
    network.list_or_reload().await.unwrap();
    assert!(!network.status().ready);
    fixture.fake("two", &good());
    network.refresh_status().await;
    assert!(network.status().ready);

    // Before 1.1.0 nobody is asked, but the programs must be there.
    fixture.order();
    fixture.list("1.0.0", &["one", "three"]);
    network.refresh_status().await;
    assert!(fixture.order().is_empty());
    assert!(network.status().message.contains("CNI plugin \"three\" is in none of"), "{:?}", network.status());
}

#[tokio::test]
async fn gc_frees_what_nobody_uses() {
    let fixture = Fixture::with_fakes(&["one", "two"]);
    fixture.list("1.1.0", &["one", "two"]);
    let before = fixture.network();
    for id in ["valid", "stale", "adopted"] {
        before.attach(&fixture.pod(id)).await.unwrap();
    }
    fixture.order();
    let network = fixture.network();
    network.adopt(&fixture.pod("adopted"));
    network.gc(&[("valid".into(), "eth0".into())]).await.unwrap();
    assert_eq!(fixture.order(), ["DEL two", "DEL one", "GC one", "GC two"]);
    assert_eq!(fixture.environment("one", "DEL")["CNI_CONTAINERID"], "stale");
    assert_eq!(fixture.cached(), ["pods-adopted-eth0", "pods-valid-eth0"]);
    let in_use = json!([{"containerID": "adopted", "ifname": "eth0"}, {"containerID": "valid", "ifname": "eth0"}]);
    assert_eq!(fixture.input("two", "GC")["cni.dev/valid-attachments"], in_use);
    assert_eq!(fixture.input("two", "GC")["cni.dev/attachments"], in_use);

    // One that fails does not keep the others from being asked.
    fixture.fake("one", "exit 3");
    let error = network.gc(&[]).await.unwrap_err();
    assert!(matches!(&error, NetworkError::Gc { errors, .. } if errors.len() == 2), "{error}");

    // Old versions have no GC, and an operator may switch it off.
    fixture.order();
    for (version, off, expected) in [("1.0.0", false, vec!["DEL one"]), ("1.1.0", true, vec![])] {
        let fixture = Fixture::with_fakes(&["one"]);
        let list = json!({"name": "pods", "cniVersion": version, "disableGC": off, "plugins": [{"type": "one"}]});
        fixture.conf("10-pods.conflist", &list.to_string());
        fixture.network().attach(&fixture.pod("stale")).await.unwrap();
        fixture.order();
        fixture.network().gc(&[]).await.unwrap();
        assert_eq!(fixture.order(), expected, "{version} {off}");
    }
}

#[tokio::test]
async fn requests_have_no_keys_that_are_the_runtime_s() {
    let fixture = Fixture::with_fakes(&["one"]);
    for (version, hidden) in [("1.1.0", true), ("1.0.0", true), ("0.4.0", false)] {
        let one = json!({"type": "one", "capabilities": {"dns": true}, "cni.dev/attachments": [], "cni.dev/x": 1,
            "prevResult": {}, "args": {"cni": {"ips": ["10.0.0.9"]}}, "other": {"kept": [1]}});
        let list = json!({"name": "pods", "cniVersion": version, "plugins": [one]});
        fixture.conf("10-pods.conflist", &list.to_string());
        let network = fixture.network();
        network.attach(&fixture.pod("abc")).await.unwrap();
        network.check(&fixture.pod("abc")).await.unwrap();
        network.detach(&fixture.pod("abc"), false).await.unwrap();
        for verb in ["ADD", "CHECK", "DEL"] {
            let input = fixture.input("one", verb);
            let keys: Vec<&str> = input.as_object().unwrap().keys().map(String::as_str).collect();
            let mut wanted = vec!["args", "cniVersion", "name", "other", "type"];
            wanted.extend((!hidden).then_some("capabilities"));
            wanted.extend((verb != "ADD").then_some("prevResult"));
            wanted.sort_unstable();
            assert_eq!(keys, wanted, "{version} {verb}");
        }
    }
}

#[tokio::test]
async fn the_version_is_one_that_every_program_speaks() {
    let speaks = |versions: &str| {
        format!(
            "#!/bin/sh\ncat >/dev/null\ncase $CNI_COMMAND in VERSION) echo '{{\"supportedVersions\": {versions}}}';; ADD) echo '{RESULT}';; esac\n"
        )
    };
    let fixture = Fixture::new();
    fixture.program("new", &speaks(r#"["0.4.0", "1.0.0", "1.1.0"]"#));
    fixture.program("old", &speaks(r#"["0.3.1", "0.4.0"]"#));
    // It says nothing of versions, which is no reason not to use it.
    fixture.fake("silent", &good());
    let list = |versions: &[&str], plugins: Value| {
        let list = json!({"name": "pods", "cniVersions": versions, "plugins": plugins});
        fixture.conf("10-pods.conflist", &list.to_string());
    };
    let network = fixture.network();
    list(&["0.3.1", "0.4.0", "1.1.0"], json!([{"type": "new"}, {"type": "silent"}]));
    network.refresh_status().await;
    assert!(network.status().ready, "{:?}", network.status());
    network.attach(&fixture.pod("new")).await.unwrap();
    assert_eq!(fixture.input("silent", "ADD")["cniVersion"], "1.1.0");

    // Those that give addresses count too, and the pod is taken down in the version that it was set up in.
    list(&["0.3.1", "0.4.0", "1.1.0"], json!([{"type": "new", "ipam": {"type": "old"}}, {"type": "silent"}]));
    network.refresh_status().await;
    let attached = network.attach(&fixture.pod("old")).await.unwrap();
    assert_eq!(fixture.input("silent", "ADD")["cniVersion"], "0.4.0");
    assert_eq!(attached.result["cniVersion"], "0.4.0");
    fixture.program("old", &speaks(r#"["1.1.0"]"#));
    network.refresh_status().await;
    assert_eq!(network.current.load().list.as_ref().unwrap().version, conf::Version::V1_1_0);
    network.detach(&fixture.pod("old"), false).await.unwrap();
    assert_eq!(fixture.input("silent", "DEL")["cniVersion"], "0.4.0");
    assert_eq!(fixture.input("silent", "DEL")["prevResult"]["cniVersion"], "0.4.0");

    // None in common: said before a pod is tried.
    fixture.program("old", &speaks(r#"["0.3.1"]"#));
    let said = "CNI plugin \"old\" speaks the CNI versions 0.3.1, the configuration wants ";
    for (versions, wanted) in [(&["0.4.0", "1.1.0"][..], "0.4.0 or 1.1.0"), (&["1.0.0"], "1.0.0")] {
        list(versions, json!([{"type": "old"}]));
        let fresh = fixture.network();
        fresh.refresh_status().await;
        let status = fresh.status();
        assert!(!status.ready && status.message.ends_with(&format!("{said}{wanted}")), "{status:?}");
    }
}

#[tokio::test]
async fn check_says_what_is_wrong_with_a_pod_and_changes_nothing() {
    let fixture = Fixture::with_fakes(&["one", "two"]);
    let (network, pod) = (fixture.network(), fixture.pod("abc"));
    // Never attached: nobody is asked.
    network.check(&pod).await.unwrap();
    let attached = network.attach(&pod).await.unwrap();
    fixture.order();
    network.check(&pod).await.unwrap();
    assert_eq!(fixture.order(), ["CHECK one", "CHECK two"]);
    for plugin in ["one", "two"] {
        assert_eq!(fixture.input(plugin, "CHECK")["prevResult"], attached.result);
        assert_eq!(fixture.environment(plugin, "CHECK")["CNI_NETNS"], pod.netns.display().to_string());
    }
    fixture.fake("one", r#"echo '{"code": 100, "msg": "no eth0"}'; exit 1"#);
    let error = network.check(&pod).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "network \"pods\" of pod default/web-abc is not as it was made: CNI plugin \"one\" failed CHECK: no eth0 (code 100)"
    );
    assert_eq!(fixture.order(), ["CHECK one"]);
    assert_eq!(fixture.cached(), ["pods-abc-eth0"]);

    // Switched off by the administrator, or too old.
    for list in [json!({"cniVersion": "1.0.0", "disableCheck": true}), json!({"cniVersion": "0.3.1"})] {
        let fixture = Fixture::with_fakes(&["one"]);
        let mut list = list;
        (list["name"], list["plugins"]) = ("pods".into(), json!([{"type": "one"}]));
        fixture.conf("10-pods.conflist", &list.to_string());
        let network = fixture.network();
        network.attach(&pod).await.unwrap();
        fixture.order();
        network.check(&pod).await.unwrap();
        assert!(fixture.order().is_empty());
    }
}
