//! The folder of configurations, watched.

use super::*;

async fn until(network: &Network, ready: bool) -> NetworkStatus {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        // Not by `status()`, which would make the watcher look: here inotify must do.
        let status = network.current.load().status.clone();
        if status.ready == ready {
            return status;
        }
        assert!(std::time::Instant::now() < deadline, "still {status:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn what_is_wrong_is_said() {
    let fixture = Fixture::with_fakes(&[]);
    let dir = fixture.config.conf_dir.display().to_string();
    fs::remove_file(fixture.config.conf_dir.join("10-pods.conflist")).unwrap();
    let network = fixture.network();
    assert_eq!(network.status().message, format!("the CNI configuration in {dir} has not been read yet"));
    network.refresh_status().await;
    let status = network.status();
    assert_eq!((status.ready, status.reason.as_str()), (false, "NetworkPluginNotReady"));
    assert_eq!(status.message, format!("no CNI configuration: no .conflist, .conf or .json file in {dir}"));
    assert!(matches!(network.attach(&fixture.pod("abc")).await, Err(NetworkError::NotReady(m)) if m == status.message));

    fixture.conf("10.conflist", r#"{"name": "a", "cniVersion": "1.0.0", "plugins": [{"type": "../../bin/sh"}]}"#);
    network.refresh_status().await;
    let status = network.status();
    let reason = "plugin type \"../../bin/sh\": want the name of a program, without a path".to_owned();
    assert_eq!(status.invalid_files, [(fixture.config.conf_dir.join("10.conflist"), reason.clone())]);
    assert_eq!(status.message, format!("no usable CNI configuration in {dir}: {dir}/10.conflist: {reason}"));

    // A later file that is legal is used, and the other one is still named.
    fixture.fake("one", &good());
    fixture.conf("20.conflist", r#"{"name": "b", "cniVersion": "1.0.0", "plugins": [{"type": "one"}]}"#);
    network.refresh_status().await;
    let status = network.status();
    assert!(status.ready);
    assert_eq!(status.invalid_files.len(), 1);

    fs::remove_dir_all(&fixture.config.conf_dir).unwrap();
    network.refresh_status().await;
    assert!(network.status().message.starts_with(&format!("no CNI configuration: {dir} cannot be read: ")));
}

#[tokio::test]
async fn a_bad_edit_changes_nothing_but_is_named() {
    let fixture = Fixture::with_fakes(&["one"]);
    let network = fixture.network();
    network.refresh_status().await;
    fixture.conf("10-pods.conflist", "{");
    fixture.conf("20-other.conflist", r#"{"name": "b", "cniVersion": "1.0.0", "plugins": [{"type": "one"}]}"#);
    network.refresh_status().await;
    let status = network.status();
    assert!(status.ready);
    let (file, reason) = &status.invalid_files[0];
    assert_eq!(file, &fixture.config.conf_dir.join("10-pods.conflist"));
    assert!(reason.starts_with("not JSON: "), "{reason}");
    assert_eq!(network.attach(&fixture.pod("abc")).await.unwrap().network, "pods");
    // Two files of one name: the first is used, the second is named.
    fixture.list("1.0.0", &["one"]);
    fixture.conf("20-other.conflist", r#"{"name": "pods", "cniVersion": "1.0.0", "plugins": [{"type": "two"}]}"#);
    network.refresh_status().await;
    let status = network.status();
    let reason = format!("network \"pods\" is configured by {} already", file.display());
    assert_eq!(status.invalid_files, [(fixture.config.conf_dir.join("20-other.conflist"), reason)]);
    assert!(status.ready);
}

#[tokio::test]
async fn a_pod_finds_a_configuration_that_no_watcher_has_seen_yet() {
    let fixture = Fixture::with_fakes(&["one"]);
    fixture.network().attach(&fixture.pod("abc")).await.unwrap();
}

#[tokio::test]
async fn the_folder_may_be_deleted_and_made_again() {
    let fixture = Fixture::with_fakes(&["one"]);
    let conf = fs::read_to_string(fixture.config.conf_dir.join("10-pods.conflist")).unwrap();
    let network = fixture.network();
    network.start();
    until(&network, true).await;
    for _ in 0..3 {
        fs::remove_dir_all(fixture.config.conf_dir.parent().unwrap()).unwrap();
        until(&network, false).await;
        fs::create_dir_all(&fixture.config.conf_dir).unwrap();
        fixture.conf("10-pods.conflist", &conf);
        until(&network, true).await;
        fs::rename(&fixture.config.conf_dir, fixture.temp.path().join("away")).unwrap();
        until(&network, false).await;
        fs::rename(fixture.temp.path().join("away"), &fixture.config.conf_dir).unwrap();
        until(&network, true).await;
    }
    fs::remove_file(fixture.config.conf_dir.join("10-pods.conflist")).unwrap();
    until(&network, false).await;
}

#[tokio::test]
async fn plugins_in_files_of_their_own_are_watched() {
    let fixture = Fixture::with_fakes(&["one", "two"]);
    fixture.list("1.0.0", &["one"]);
    let network = fixture.network();
    network.start();
    until(&network, true).await;
    fs::create_dir(fixture.config.conf_dir.join("pods")).unwrap();
    fixture.conf("pods/20-two.conf", r#"{"type": "two"}"#);
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while network.current.load().list.as_ref().is_none_or(|list| list.plugins.len() != 2) {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    network.attach(&fixture.pod("abc")).await.unwrap();
    assert_eq!(fixture.order(), ["ADD one", "ADD two"]);
    // The cache has both, so DEL is whole although the file is gone.
    fs::remove_dir_all(&fixture.config.conf_dir).unwrap();
    fixture.network().detach(&fixture.pod("abc"), false).await.unwrap();
    assert_eq!(fixture.order(), ["DEL two", "DEL one"]);
}

#[tokio::test]
async fn the_watcher_ends_with_the_network() {
    let fixture = Fixture::with_fakes(&["one"]);
    let network = fixture.network();
    network.start();
    until(&network, true).await;
    let weak = Arc::downgrade(&network);
    let poke = Arc::clone(&network.poke);
    drop(network);
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while weak.upgrade().is_some() || Arc::strong_count(&poke) > 1 {
        poke.notify_one();
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
