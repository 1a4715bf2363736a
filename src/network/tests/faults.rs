//! Plugins that fail, each in its own way: what is said, and what is undone.

use super::*;

/// Attaches a pod to "first" and "bad", and returns the error and the calls.
async fn fail(fixture: &Fixture) -> (AddError, Vec<PluginError>, Vec<String>) {
    fixture.fake("first", &good());
    fixture.list("1.0.0", &["first", "bad", "last"]);
    fixture.fake("last", &good());
    let error = fixture.network().attach(&fixture.pod("abc")).await.unwrap_err();
    let NetworkError::Add { failed, undo, .. } = error else { panic!("{error:?}") };
    (*failed, undo, fixture.order())
}

const UNDONE: [&str; 5] = ["ADD first", "ADD bad", "DEL last", "DEL bad", "DEL first"];

fn only_add(body: &str) -> String {
    format!("case $CNI_COMMAND in ADD) {body};; esac")
}

#[tokio::test]
async fn an_error_object_is_told_in_full() {
    let fixture = Fixture::new();
    let object = r#"{"cniVersion": "1.0.0", "code": 11, "msg": "no addresses", "details": "range is full"}"#;
    fixture.fake("bad", &only_add(&format!("echo 'some\nwarning' >&2; echo '{object}'; exit 1")));
    let (failed, undo, order) = fail(&fixture).await;
    assert!(matches!(failed, AddError::Plugin(PluginError::Failed { code: 11, .. })), "{failed:?}");
    assert_eq!(
        failed.to_string(),
        "CNI plugin \"bad\" failed ADD: no addresses; range is full (code 11, try again later); stderr: some warning"
    );
    assert!(undo.is_empty());
    assert_eq!(order, UNDONE);
    assert!(fixture.cached().is_empty());
}

#[tokio::test]
async fn each_fault_is_its_own_error() {
    type Is = fn(&PluginError) -> bool;
    let cases: [(&str, &str, Is); 8] = [
        ("exit 7", "without an error object: exit status: 7", |e| matches!(e, PluginError::Exited { .. })),
        ("echo oops; exit 1", "; stdout: oops", |e| matches!(e, PluginError::Exited { .. })),
        ("kill -9 $$", "signal: 9", |e| matches!(e, PluginError::Exited { .. })),
        ("true", "printed no result", |e| matches!(e, PluginError::Silent { .. })),
        ("echo hello", "; stdout: hello", |e| matches!(e, PluginError::Garbage { .. })),
        ("echo '[1]'", "; stdout: [1]", |e| matches!(e, PluginError::Garbage { .. })),
        ("printf '{\"ips\": '", "something else", |e| matches!(e, PluginError::Garbage { .. })),
        // It forgot to fail.
        ("echo '{\"code\": 7, \"msg\": \"no\"}'", "failed ADD: no (code 7)", |e| {
            matches!(e, PluginError::Failed { .. })
        }),
    ];
    for (body, text, is) in cases {
        let fixture = Fixture::new();
        fixture.fake("bad", &only_add(body));
        let (failed, undo, order) = fail(&fixture).await;
        let AddError::Plugin(error) = &failed else { panic!("{failed:?}") };
        assert!(is(error) && error.to_string().contains(text), "{body}: {error}");
        assert!(undo.is_empty());
        assert_eq!(order, UNDONE);
        assert!(fixture.cached().is_empty());
    }
}

#[tokio::test]
async fn a_plugin_that_floods_is_cut_short() {
    let fixture = Fixture::new();
    fixture.fake("bad", &only_add("head -c 100000000 /dev/zero | tr '\\0' x"));
    let (failed, ..) = fail(&fixture).await;
    assert_eq!(failed.to_string(), "CNI plugin \"bad\" printed more than 1048576 bytes for ADD");
}

#[tokio::test]
async fn programs_that_cannot_be_run() {
    let fixture = Fixture::new();
    let (failed, undo, order) = fail(&fixture).await;
    assert!(matches!(failed, AddError::Plugin(PluginError::Missing { .. })), "{failed:?}");
    // Nothing of it ran, so that it cannot be run for DEL either is no trouble.
    assert!(undo.is_empty());
    assert_eq!(order, ["ADD first", "DEL last", "DEL first"]);

    fixture.fake("bad", "");
    let path = fixture.config.bin_dirs[0].join("bad");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let (failed, undo, _) = fail(&fixture).await;
    assert!(matches!(failed, AddError::Plugin(PluginError::NotExecutable { .. })), "{failed:?}");
    assert!(undo.is_empty());

    fixture.program("bad", "#!/no/such/interpreter\n");
    let (failed, undo, _) = fail(&fixture).await;
    assert!(matches!(failed, AddError::Plugin(PluginError::Start { .. })), "{failed:?}");
    assert!(undo.is_empty());
    assert!(fixture.cached().is_empty());
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_with_its_children_and_undone_in_a_clock_of_its_own() {
    let mut fixture = Fixture::new();
    fixture.config.plugin_timeout = 1;
    let pids = fixture.temp.path().join("pids");
    fixture.fake("bad", &only_add(&format!("sleep 1000 & echo $! $$ > {}; echo stuck >&2; wait", pids.display())));
    let (failed, undo, order) = fail(&fixture).await;
    assert!(matches!(failed, AddError::Plugin(PluginError::TimedOut { .. })), "{failed:?}");
    assert_eq!(failed.to_string(), "CNI plugin \"bad\" did not answer ADD within 1 s and was killed; stderr: stuck");
    assert!(undo.is_empty());
    assert_eq!(order, UNDONE);
    for pid in fs::read_to_string(pids).unwrap().split_whitespace() {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        // A killed child whose parent is gone may be a zombie until init reaps it.
        while fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(std::time::Instant::now() < deadline, "{pid} is alive");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn a_hung_plugin_holds_up_no_other_pod_and_no_teardown() {
    let fixture = Fixture::with_fakes(&["one"]);
    let network = fixture.network();
    network.attach(&fixture.pod("done")).await.unwrap();
    let gate = fixture.temp.path().join("gate");
    fixture.fake(
        "one",
        &format!(
            "case $CNI_COMMAND.$CNI_CONTAINERID in ADD.hung*) while ! test -e {}; do sleep 0.05; done;; esac\n{}",
            gate.display(),
            good()
        ),
    );
    // As many as may run at once, so a further ADD would have to wait.
    let hung: Vec<_> = (0..16)
        .map(|n| {
            let (network, pod) = (Arc::clone(&network), fixture.pod(&format!("hung{n}")));
            task::spawn("test", async move { network.attach(&pod).await })
        })
        .collect();
    network.detach(&fixture.pod("done"), false).await.unwrap();
    assert!(hung.iter().all(|task| !task.is_finished()));
    fs::write(gate, "").unwrap();
    for task in hung {
        task.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn results_without_an_address_are_undone() {
    for result in
        [r"{}", r#"{"cniVersion": "1.0.0", "ips": []}"#, r#"{"ips": [{"address": "10.0.0.1/8", "interface": 4}]}"#]
    {
        let fixture = Fixture::with_fakes(&["one"]);
        fixture.fake("one", &only_add(&format!("echo '{result}'")));
        let network = fixture.network();
        let error = network.attach(&fixture.pod("abc")).await.unwrap_err();
        assert!(matches!(error, NetworkError::Result { .. }), "{error:?}");
        assert_eq!(fixture.order(), ["ADD one", "DEL one"]);
        assert!(fixture.cached().is_empty());
    }
    let fixture = Fixture::with_fakes(&["one"]);
    fixture.fake("one", &only_add(r#"echo '{"cniVersion": "7.0.0"}'"#));
    let error = fixture.network().attach(&fixture.pod("abc")).await.unwrap_err();
    assert!(error.to_string().contains("cniVersion \"7.0.0\""), "{error}");
}

#[tokio::test]
async fn what_cannot_be_undone_is_kept_for_a_later_del() {
    let fixture = Fixture::with_fakes(&["one", "two", "three"]);
    fixture.fake("three", &only_add("exit 1"));
    fixture.fake(
        "two",
        "case $CNI_COMMAND in DEL) echo '{\"code\": 5, \"msg\": \"daemon is down\"}'; exit 1;; esac\n\
        echo '{\"ips\": [{\"address\": \"10.0.0.5/8\"}]}'",
    );
    let network = fixture.network();
    let mut pod = fixture.pod("abc");
    pod.port_mappings = vec![host_port(80, 80)];
    let error = network.attach(&pod).await.unwrap_err();
    assert!(error.to_string().ends_with("could not be undone: CNI plugin \"two\" failed DEL: daemon is down (code 5)"));
    // "one" may give its address back only when nothing of "two" leads to it any more.
    assert_eq!(fixture.order(), ["ADD one", "ADD two", "ADD three", "DEL three", "DEL two"]);
    assert_eq!(fixture.cached(), ["pods-abc-eth0"]);
    let other = PodAttachment { port_mappings: pod.port_mappings.clone(), ..fixture.pod("def") };
    assert!(matches!(network.attach(&other).await, Err(NetworkError::HostPort(_))));

    let error = network.detach(&pod, false).await.unwrap_err();
    assert!(matches!(&error, NetworkError::Del { errors, .. } if errors.len() == 1), "{error:?}");
    fixture.fake("two", &good());
    fixture.order();
    network.detach(&pod, false).await.unwrap();
    assert_eq!(fixture.order(), ["DEL three", "DEL two", "DEL one"]);
    assert!(fixture.cached().is_empty());
}

#[tokio::test]
async fn a_program_that_is_gone_does_not_keep_the_others_from_cleaning_up() {
    let fixture = Fixture::with_fakes(&["one", "two"]);
    let (network, pod) = (fixture.network(), fixture.pod("abc"));
    network.attach(&pod).await.unwrap();
    fixture.order();
    fs::remove_file(fixture.config.bin_dirs[0].join("two")).unwrap();
    let error = network.detach(&pod, false).await.unwrap_err();
    assert!(matches!(&error, NetworkError::Del { errors, .. } if matches!(errors[..], [PluginError::Missing { .. }])));
    assert_eq!(fixture.order(), ["DEL one"]);
    fixture.fake("two", &good());
    network.detach(&pod, false).await.unwrap();
    assert_eq!(fixture.order(), ["DEL two", "DEL one"]);
}

#[tokio::test]
async fn a_crash_in_add_leaves_what_del_needs() {
    let fixture = Fixture::with_fakes(&["one"]);
    let started = fixture.temp.path().join("started");
    fixture.fake("one", &only_add(&format!("touch {}; exec sleep 1000", started.display())));
    let (network, pod) = (fixture.network(), fixture.pod("abc"));
    let attach = {
        let (network, pod) = (Arc::clone(&network), pod.clone());
        task::spawn("test", async move { network.attach(&pod).await })
    };
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !started.exists() {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    attach.abort();
    assert!(attach.await.unwrap_err().is_cancelled());
    fs::remove_dir_all(&fixture.config.conf_dir).unwrap();
    fixture.fake("one", &good());
    fixture.order();
    fixture.network().detach(&pod, false).await.unwrap();
    assert_eq!(fixture.order(), ["DEL one"]);
    assert!(fixture.cached().is_empty());
}

#[tokio::test]
async fn a_damaged_cache_is_done_without() {
    let fixture = Fixture::with_fakes(&["one"]);
    let (network, pod) = (fixture.network(), fixture.pod("abc"));
    network.attach(&pod).await.unwrap();
    fs::write(fixture.config.cache_dir.join("results/pods-abc-eth0"), "{").unwrap();
    fixture.order();
    network.detach(&pod, false).await.unwrap();
    assert_eq!(fixture.order(), ["DEL one"]);
    assert!(fixture.cached().is_empty());

    // An entry whose configuration is damaged: today's of the same name takes its place.
    network.attach(&pod).await.unwrap();
    let path = fixture.config.cache_dir.join("results/pods-abc-eth0");
    let mut entry: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    entry["config"] = "e30=".into();
    fs::write(&path, entry.to_string()).unwrap();
    fixture.order();
    network.detach(&pod, false).await.unwrap();
    assert_eq!(fixture.order(), ["DEL one"]);
    assert!(fixture.cached().is_empty());
}

#[tokio::test]
async fn without_a_cache_nothing_is_begun() {
    let fixture = Fixture::with_fakes(&["one"]);
    fs::write(&fixture.config.cache_dir, "").unwrap();
    let network = fixture.network();
    let error = network.attach(&fixture.pod("abc")).await.unwrap_err();
    assert!(matches!(error, NetworkError::Cache(_)), "{error:?}");
    assert!(fixture.order().is_empty());
    fs::remove_file(&fixture.config.cache_dir).unwrap();
    network.attach(&fixture.pod("abc")).await.unwrap();
}

#[tokio::test]
async fn nothing_of_a_plugin_s_group_outlives_its_call() {
    let fixture = Fixture::with_fakes(&["one"]);
    let pids = fixture.temp.path().join("pids");
    let script = format!("sleep 1000 >/dev/null 2>&1 & echo $! >> {}; {}", pids.display(), good());
    fixture.fake("one", &script);
    let (network, pod) = (fixture.network(), fixture.pod("abc"));
    network.attach(&pod).await.unwrap();
    network.detach(&pod, false).await.unwrap();
    let pids = fs::read_to_string(pids).unwrap();
    assert_eq!(pids.lines().count(), 2);
    for pid in pids.lines() {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(std::time::Instant::now() < deadline, "{pid} is alive");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn who_does_not_know_the_container_has_nothing_to_take_down() {
    let fixture = Fixture::with_fakes(&["one", "two"]);
    let (network, pod) = (fixture.network(), fixture.pod("abc"));
    network.attach(&pod).await.unwrap();
    fixture.fake("two", r#"echo '{"code": 3, "msg": "unknown container"}'; exit 1"#);
    fixture.order();
    network.detach(&pod, false).await.unwrap();
    assert_eq!(fixture.order(), ["DEL two", "DEL one"]);
    assert!(fixture.cached().is_empty());
}

#[tokio::test]
async fn a_del_that_nobody_waits_for_is_tried_again_until_it_succeeds() {
    let fixture = Fixture::with_fakes(&["one"]);
    let network = fixture.network();
    let mut pod = fixture.pod("abc");
    pod.port_mappings = vec![host_port(80, 80)];
    network.attach(&pod).await.unwrap();
    let down = fixture.temp.path().join("down");
    fs::write(&down, "").unwrap();
    fixture
        .fake("one", &format!("case $CNI_COMMAND in DEL) ! test -e {};; ADD) echo '{RESULT}';; esac", down.display()));
    network.detach(&pod, false).await.unwrap_err();
    network.abandon(pod.clone());
    network.abandon(pod.clone());
    assert_eq!(network.retry_abandoned().await, 1);
    // What it held is held until then.
    let other = PodAttachment { port_mappings: pod.port_mappings.clone(), ..fixture.pod("def") };
    assert!(matches!(network.attach(&other).await, Err(NetworkError::HostPort(_))));
    fs::remove_file(down).unwrap();
    fixture.order();
    assert_eq!(network.retry_abandoned().await, 0);
    assert_eq!(fixture.order(), ["DEL one"]);
    assert_eq!(network.retry_abandoned().await, 0);
    assert!(fixture.cached().is_empty() && fixture.order().is_empty());
    network.attach(&other).await.unwrap();
}
