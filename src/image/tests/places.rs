//! Which places are asked, with which logins: `hosts.toml`, files of logins, short names, changes while the daemon runs.

use super::*;
use crate::image::registry::auth_file::encoded;
use crate::image::tests::server::Reply;

/// A registry that serves one image as `<repository>:v1`, to those with this login only.
async fn private(repository: &'static str, user: &'static str) -> Registry {
    let image = TestImage::new(repository);
    Registry::start(move |request| {
        if request.header("authorization") == Some(&format!("Basic {}", encoded(user, "canary"))) {
            image.answer(request, repository, &["v1"])
        } else {
            Reply::new(401, "").with("www-authenticate", "Basic realm=\"x\"")
        }
    })
    .await
}

fn auths(entries: &[(&str, &str)]) -> String {
    let entry = |(key, user): &(&str, &str)| format!("{key:?}:{{\"auth\":{:?}}}", encoded(user, "canary"));
    format!("{{\"auths\":{{{}}}}}", entries.iter().map(entry).collect::<Vec<_>>().join(","))
}

/// Writes a file of a room, with its folders.
fn write(room: &Room, name: &str, text: &str) -> anyhow::Result<()> {
    let path = room.dir.path().join(name);
    std::fs::create_dir_all(path.parent().expect("a folder"))?;
    Ok(std::fs::write(path, text)?)
}

impl Room {
    async fn pull_for(&self, namespace: &str, name: &str) -> Result<Arc<ImageRecord>, ImageError> {
        let request = PullRequest { reference: name.to_owned(), auth: None, namespace: Some(namespace.to_owned()) };
        self.images.pull(request).await
    }
}

#[tokio::test]
async fn hosts_toml_leads_to_mirrors_and_says_for_whom() -> anyhow::Result<()> {
    let (mirror, image) = good("hosts").await;
    let upstream = Registry::start(|_| Reply::new(404, "")).await;
    let room = Room::new("").await?;
    let text = format!(
        "server = 'http://{}'\n[host.'http://{}']\n[host.'http://{}'.header]\nx-key = 'canary-header'\n",
        upstream.host(),
        mirror.host(),
        mirror.host()
    );
    write(&room, "certs.d/images.example/hosts.toml", &text)?;
    let record = room.pull("images.example/app:v1").await?;
    assert_eq!(record.repo_digests, [format!("images.example/app@{}", image.digest())]);
    assert!(mirror.seen().iter().all(|request| request.path.ends_with("?ns=images.example")), "{:?}", mirror.seen());
    assert_eq!(mirror.headers("x-key").len(), mirror.seen().len());
    assert!(upstream.seen().is_empty());
    // The mirror has no such tag: the server is asked, and gets no header of the mirror.
    let error = room.refused("images.example/app:v2").await;
    assert!(error.contains(&mirror.host()) && error.contains(&upstream.host()) && !error.contains("canary"), "{error}");
    assert!(!upstream.seen().is_empty() && upstream.headers("x-key").is_empty());
    assert!(upstream.seen().iter().all(|request| request.path.ends_with("?ns=images.example")));
    Ok(())
}

#[tokio::test]
async fn hosts_of_hosts_toml_are_logged_in_to_over_http_and_through_a_token() -> anyhow::Result<()> {
    let plain = private("app", "user").await;
    let image = TestImage::new("app");
    let by_token = Registry::start(move |request| {
        let here = request.header("host").unwrap_or_default();
        match request.header("authorization") {
            Some("Bearer t") => image.answer(request, "app", &["v1"]),
            _ if request.path.starts_with("/token") => Reply::new(200, r#"{"token":"t"}"#),
            _ => Reply::new(401, "").with("www-authenticate", format!("Bearer realm=\"http://{here}/token\"")),
        }
    })
    .await;
    for registry in [&plain, &by_token] {
        let room = Room::new("").await?;
        write(&room, "certs.d/images.example/hosts.toml", &format!("[host.'http://{}']\n", registry.host()))?;
        write(&room, "auth.json", &auths(&[(&registry.host(), "user")]))?;
        room.pull("images.example/app:v1").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_host_for_content_only_is_not_asked_for_tags() -> anyhow::Result<()> {
    let (content, image) = good("content").await;
    let served = image.clone();
    let tags = Registry::start(move |request| served.answer(request, "app", &["v1"])).await;
    let room = Room::new("").await?;
    let text =
        format!("server = 'http://{}'\n[host.'http://{}']\ncapabilities = ['pull']\n", tags.host(), content.host());
    write(&room, "certs.d/_default/hosts.toml", &text)?;
    room.pull("images.example/app:v1").await?;
    assert_eq!((content.count("/manifests/v1"), tags.count("/manifests/v1")), (0, 1));
    assert_eq!((content.count(&image.blob(0)), tags.count(&image.blob(0))), (1, 0));
    Ok(())
}

#[tokio::test]
async fn a_path_can_be_taken_as_it_is() -> anyhow::Result<()> {
    let image = TestImage::new("path");
    let mirror = Registry::start(move |request| {
        let mut request = request.clone();
        request.path = request.path.replacen("/api/hub/", "/v2/", 1);
        image.answer(&request, "app", &["v1"])
    })
    .await;
    let room = Room::new("").await?;
    let text = format!("[host.'http://{}/api/hub']\noverride_path = true\n", mirror.host());
    write(&room, "certs.d/images.example/hosts.toml", &text)?;
    room.pull("images.example/app:v1").await?;
    assert!(mirror.seen().iter().all(|request| request.path.starts_with("/api/hub/app/")), "{:?}", mirror.seen());
    Ok(())
}

#[tokio::test]
async fn a_rule_of_registries_conf_goes_before_hosts_toml() -> anyhow::Result<()> {
    let (ruled, _) = good("ruled").await;
    let (hosts, _) = good("hosts").await;
    let conf = format!("[[registry]]\nprefix = 'images.example'\nlocation = '{}'\ninsecure = true\n", ruled.host());
    let room = Room::new(&conf).await?;
    write(&room, "certs.d/images.example/hosts.toml", &format!("[host.'http://{}']\n", hosts.host()))?;
    room.pull("images.example/app:v1").await?;
    assert!(hosts.seen().is_empty() && !ruled.seen().is_empty());
    Ok(())
}

#[tokio::test]
async fn logins_of_files_go_to_the_places_of_their_keys_only() -> anyhow::Result<()> {
    let (one, other) = (private("team/app", "one").await, private("app", "other").await);
    let room = Room::trusting(&[&one, &other]).await?;
    let (one_host, other_host) = (one.host(), other.host());
    write(&room, "auth.json", &auths(&[(&format!("{one_host}/team"), "one"), (&other_host, "other")]))?;
    room.pull(&one.name("team/app:v1")).await?;
    room.pull(&other.name("app:v1")).await?;
    let login = |user: &str| format!("Basic {}", encoded(user, "canary"));
    assert!(one.headers("authorization").iter().all(|sent| *sent == login("one")));
    assert!(other.headers("authorization").iter().all(|sent| *sent == login("other")));
    // Another path of the same host is not of the key.
    let before = one.headers("authorization").len();
    assert!(room.refused(&one.name("app:v1")).await.contains("asks for credentials"));
    assert_eq!(one.headers("authorization").len(), before);
    // A helper program is not run, and the error says so.
    write(&room, "auth.json", &format!("{{\"credHelpers\":{{{one_host:?}:\"canary\"}}}}"))?;
    let error = room.refused(&one.name("team/app:v2")).await;
    assert!(error.contains("helper program") && !error.contains("canary"), "{error}");
    // A broken file is named, and quotes nothing.
    write(&room, "auth.json", "{\"auths\":{\"a\":{\"auth\":5}}}")?;
    let error = room.refused(&one.name("team/app:v3")).await;
    assert!(error.contains("auth.json: line 1"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_namespace_has_logins_of_its_own_also_for_mirrors() -> anyhow::Result<()> {
    let mirror = private("app", "team").await;
    let upstream = Registry::start(|_| Reply::new(404, "")).await;
    let conf = format!(
        "[[registry]]\nprefix = 'images.example'\nlocation = '{}'\ninsecure = true\n[[registry.mirror]]\nlocation = '{}'\ninsecure = true\n",
        upstream.host(),
        mirror.host()
    );
    let room = Room::new(&conf).await?;
    write(&room, "auth/team.json", &auths(&[(&mirror.host(), "team")]))?;
    let error = room.pull_for("other", "images.example/app:v1").await.expect_err("no login").to_string();
    assert!(error.contains("asks for credentials"), "{error}");
    assert!(mirror.headers("authorization").is_empty());
    // The CRI's own login is for the registry of the name, and not shown to the mirror.
    let auth = AuthConfig { username: "cri".into(), password: "canary".into(), ..AuthConfig::default() };
    assert!(room.pull_as("images.example/app:v1", Some(auth)).await.is_err());
    assert!(mirror.headers("authorization").is_empty());
    room.pull_for("team", "images.example/app:v1").await?;
    // As CRI-O's provider writes them: for one image.
    let sum = Digest::of(b"images.example/app");
    write(&room, &format!("auth/one-{}.json", sum.hex()), &auths(&[(&mirror.host(), "team")]))?;
    room.pull_for("one", "images.example/app:v1").await?;
    for bad in ["../team", "..", ".team", "a/b", "a\0b", &"n".repeat(254)] {
        let error = room.pull_for(bad, "images.example/app:v1").await.expect_err(bad);
        assert!(matches!(error.kind(), ErrorKind::Invalid), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn a_short_name_is_searched_for_in_order_and_found_again() -> anyhow::Result<()> {
    let empty = Registry::start(|_| Reply::new(404, "")).await;
    let (full, image) = good("short").await;
    let search = format!("unqualified-search-registries = ['{}', '{}']\n", empty.host(), full.host());
    let room = Room::new(&(search + &insecure(&[&empty, &full]))).await?;
    let record = room.pull("app:v1").await?;
    assert_eq!(record.repo_tags, [full.name("app:v1")]);
    assert_eq!(room.images.find("app:v1")?.map(|found| found.id.clone()), Some(image.id()));
    assert_eq!(room.images.find("docker.io/library/app:v1")?, None);
    let error = room.refused("app:v2").await;
    assert!(error.contains(&empty.host()) && error.contains(&full.host()), "{error}");
    room.images.remove("app:v1").await?;
    assert!(room.images.list(None).is_empty());
    Ok(())
}

#[tokio::test]
async fn a_change_of_a_file_counts_for_the_next_pull_and_a_bad_one_does_not() -> anyhow::Result<()> {
    let (registry, _) = good("change").await;
    let room = Room::new("").await?;
    let plain = registry.name("app:v1");
    assert!(room.refused(&plain).await.starts_with("RegistryUnavailable"));
    write(&room, "registries.conf", &insecure(&[&registry]))?;
    room.pull(&plain).await?;
    write(&room, "registries.conf", "[[registry]\nsomething = ")?;
    room.pull(&plain).await?;
    let notes = room.images.unusable_files();
    assert!(notes.len() == 1 && notes[0].contains("registries.conf: line 1"), "{notes:?}");
    write(
        &room,
        "registries.conf.d/10.conf",
        &format!("[[registry]]\nlocation = '{}'\nblocked = true", registry.host()),
    )?;
    // The drop-in is good, the file beside it is not: nothing new counts.
    room.pull(&plain).await?;
    write(&room, "registries.conf", &insecure(&[&registry]))?;
    let error = room.refused(&plain).await;
    assert!(error.contains("10.conf:1"), "{error}");
    assert!(room.images.unusable_files().is_empty());
    Ok(())
}

#[tokio::test]
async fn what_is_told_is_what_is_done() -> anyhow::Result<()> {
    let conf = "[[registry]]\nprefix = 'images.example'\n[[registry.mirror]]\nlocation = 'm.example:5000/x'\ninsecure = true\n";
    let room = Room::new(conf).await?;
    write(&room, "auth.json", &auths(&[("m.example:5000/x", "user")]))?;
    write(
        &room,
        "certs.d/other.example/hosts.toml",
        "[host.'https://h.example']\ncapabilities = ['pull']\ndial_timeout = '1.5s'\nproxi = 1\n",
    )?;
    let file = |name: &str| room.dir.path().join(name).display().to_string();
    let found = room.images.explain("images.example/app", None)?;
    assert_eq!(found[0].name, "images.example/app:latest");
    assert_eq!(found[0].decided_by, format!("{}:1 (prefix \"images.example\")", file("registries.conf")));
    let steps = &found[0].steps;
    assert_eq!(steps[0].url, "https://m.example:5000/v2/x/app");
    assert_eq!(steps[0].place, format!("{}:3", file("registries.conf")));
    assert_eq!(steps[0].login, format!("{} (m.example:5000/x)", file("auth.json")));
    assert!(steps[0].notes.len() == 2 && steps[0].mirror);
    assert_eq!((steps.len(), steps[1].url.as_str()), (2, "https://images.example/v2/app"));
    let found = room.images.explain("other.example/app", None)?;
    assert_eq!(found[0].steps[0].place, format!("{}:1", file("certs.d/other.example/hosts.toml")));
    let notes = &found[0].steps[0].notes;
    assert!(notes[0].contains("1.5s") && notes[0].contains("dial_timeout") && notes[1].contains("not asked for tags"));
    let told = room.images.unknown_keys();
    assert!(told.len() == 1 && told[0].contains("other.example/hosts.toml: line 4: the key \"proxi\""), "{told:?}");
    assert!(room.images.unusable_files().is_empty());
    assert_eq!(found[0].policy.1, "accepted unsigned");
    assert!(!format!("{found:?}").contains("canary"));
    Ok(())
}

#[tokio::test]
async fn a_mirror_that_has_it_not_and_a_registry_that_is_not_there_are_told_apart() -> anyhow::Result<()> {
    let missing = Registry::start(|_| Reply::new(404, "")).await;
    let closed = { Registry::start(|_| Reply::new(200, "")).await.host() };
    let rule = |own: &str, mirror: &str| {
        let insecure = own.ends_with(".invalid");
        format!(
            "[[registry]]\nprefix = 'images.example'\nlocation = '{own}'\ninsecure = {insecure}\n[[registry.mirror]]\nlocation = '{mirror}'\ninsecure = true\n"
        )
    };
    // No resolver can be asked for a label of 64 bytes (RFC 1035, 2.3.4), so none is: whatever this machine has for one, the
    // name cannot be looked up. (TLS knows no such name at all: it is plain HTTP that comes to the lookup.) At the other place
    // nobody listens. In both cases only the mirror has answered.
    let nameless = format!("{}.invalid", "a".repeat(64));
    for own in [&nameless, &closed] {
        let room = Room::new(&rule(own, &missing.host())).await?;
        let error = room.pull("images.example/app:v1").await.expect_err("nowhere");
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("{}: not found", missing.host())) && text.contains(own), "{text}");
    }
    // Nobody has answered.
    let room = Room::new(&rule(&nameless, &closed)).await?;
    let error = room.refused("images.example/app:v1").await;
    assert!(error.starts_with("RegistryUnavailable: ") && error.contains("cannot be looked up"), "{error}");
    // The registry answers that it does not work: that is not "not found".
    let broken = Registry::start(|_| Reply::new(503, "")).await;
    let conf = rule(&broken.host(), &missing.host()) + &insecure(&[&broken]);
    let room = Room::new(&conf.replacen("insecure = false", "insecure = true", 1)).await?;
    assert!(room.refused("images.example/app:v1").await.starts_with("RegistryUnavailable: "));
    Ok(())
}
