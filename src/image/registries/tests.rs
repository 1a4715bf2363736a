//! The rules of `registries.conf`, table by table.

use super::super::stamps::Stamps;
use super::*;

fn places(conf: &str, name: &str) -> Result<Vec<String>, String> {
    let mut all = Registries::default();
    all.add(&Arc::from(Path::new("/r.conf")), conf::parse(conf.as_bytes())?);
    let reference = Reference::parse(name).map_err(|e| e.to_string())?;
    let show = |e: &Endpoint| format!("{}/{}{}", e.host, e.repository, if e.is_insecure() { " insecure" } else { "" });
    all.endpoints(&reference).map(|list| list.iter().map(show).collect()).map_err(|e| e.to_string())
}

const CONF: &str = r#"
unqualified-search-registries = ["quay.io"]
short-name-mode = "enforcing"

[[registry]]
prefix = "docker.io"
location = "docker.io"
[[registry.mirror]]
location = "m1.lan:5000/hub"
insecure = true
[[registry.mirror]]
location = "m2.lan"
pull-from-mirror = "digest-only"
[[registry.mirror]]
location = "m3.lan"
pull-from-mirror = "tag-only"

[[registry]]
prefix = "docker.io/library"
location = "lib.lan/all/"

[[registry]]
location = "plain.lan:5000"
insecure = true

[[registry]]
prefix = "*.example.com"
[[registry.mirror]]
location = "ex.lan"

[[registry]]
prefix = "bad.example.com"
blocked = true

[[registry]]
prefix = "q.io/a"
mirror-by-digest-only = true
[[registry.mirror]]
location = "qm.lan/b"
"#;

#[test]
fn the_longest_prefix_leads() {
    let digest = format!("sha256:{}", "0".repeat(64));
    for (name, want) in [
        ("quay.io/a/b", vec!["quay.io/a/b"]),
        ("foo/bar", vec!["m1.lan:5000/hub/foo/bar insecure", "m3.lan/foo/bar", "docker.io/foo/bar"]),
        (&format!("foo/bar@{digest}"), vec!["m1.lan:5000/hub/foo/bar insecure", "m2.lan/foo/bar", "docker.io/foo/bar"]),
        ("busybox", vec!["lib.lan/all/busybox"]),
        (
            "docker.io/libraryx/a",
            vec!["m1.lan:5000/hub/libraryx/a insecure", "m3.lan/libraryx/a", "docker.io/libraryx/a"],
        ),
        ("plain.lan:5000/x", vec!["plain.lan:5000/x insecure"]),
        ("plain.lan:50001/x", vec!["plain.lan:50001/x"]),
        ("a.b.example.com:80/x", vec!["ex.lan:80/x", "a.b.example.com:80/x"]),
        ("a.example.com/x", vec!["ex.lan/x", "a.example.com/x"]),
        ("example.com/x", vec!["example.com/x"]),
        ("q.io/a/c:1", vec!["q.io/a/c"]),
        (&format!("q.io/a/c@{digest}"), vec!["qm.lan/b/c", "q.io/a/c"]),
        // A wildcard is for whole domains: neither for a host that only ends the same, nor for one inside of another.
        ("a.notexample.com/x", vec!["a.notexample.com/x"]),
        ("a.example.com.evil.io/x", vec!["a.example.com.evil.io/x"]),
    ] {
        assert_eq!(places(CONF, name), Ok(want.into_iter().map(str::to_owned).collect()), "{name}");
    }
    let blocked = places(CONF, "bad.example.com/x").expect_err("blocked");
    assert!(blocked.contains("bad.example.com"), "{blocked}");
}

#[test]
fn docker_hub_is_known_by_each_of_its_names() {
    for (conf, name, want) in [
        ("prefix = 'hub.lan'\nlocation = 'docker.io'", "hub.lan/busybox", "docker.io/library/busybox"),
        ("prefix = 'hub.lan'\nlocation = 'index.docker.io'", "hub.lan/busybox", "docker.io/library/busybox"),
        ("prefix = 'hub.lan'\nlocation = 'docker.io/me'", "hub.lan/app", "docker.io/me/app"),
        ("prefix = 'index.docker.io/library'\nlocation = 'lib.lan'", "busybox", "lib.lan/busybox"),
        ("location = 'docker.io'", "index.docker.io/busybox", "docker.io/library/busybox"),
    ] {
        assert_eq!(places(&format!("[[registry]]\n{conf}"), name), Ok(vec![want.to_owned()]), "{conf}");
    }
    let blocked = "[[registry]]\nlocation = 'index.docker.io'\nblocked = true";
    assert!(places(blocked, "busybox").is_err_and(|error| error.contains("blocked")));
    assert!(places(blocked, "index.docker.io.lan/x").is_ok());
}

#[test]
fn wrong_files_are_refused() {
    for text in [
        "[registries.search]\nregistries = ['a']",
        "[[registry]]\ninsecure = true",
        "[[registry]]\nprefix = 'a.*.b'\nlocation='x'",
        "[[registry]]\nlocation = 'https://a.lan'",
        "[[registry]]\nlocation = 'user:pass@a.lan'",
        "[[registry]]\nlocation = 'a.lan'\nblocked = 'yes'",
        "[[registry]]\nlocation = 'a.lan'\n[[registry.mirror]]\nlocation = 'b.lan'\npull-from-mirror = 'never'",
        "[[registry]]\nlocation = 'a.lan'\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = 'b.lan'\npull-from-mirror = 'all'",
        "[[registry]]\nprefix = 'a.lan/x:1'\nlocation = 'b.lan/x'",
        "short-name-mode = 'sometimes'",
        "unqualified-search-registries = ['https://a.lan']",
        "unqualified-search-registries = ['a.lan/path']",
        "[aliases]\n'a:1' = 'b.lan/a'",
        "[aliases]\n'b.lan/a' = 'b.lan/a'",
        "[aliases]\n'a' = 'b.lan/a:1'",
        "[aliases]\n'a' = 'b.lan/a@sha256:0'",
        "[aliases]\n'a' = 'b/a'",
        "[[registry]]\nlocation = 'a.lan'\nblocked = true\n[[registry]]\nlocation = 'a.lan'",
        "[[registry]]\nlocation = 'a.lan'\n[[registry]]\nprefix = 'a.lan/'\nlocation = 'b.lan'\ninsecure = true",
        "[[registry]",
    ] {
        assert!(places(text, "busybox").is_err(), "{text}");
    }
    let leak = places("[[registry]]\nlocation = 'https://user:canary@a.lan'", "busybox").expect_err("refused");
    assert!(!leak.contains("canary"), "{leak}");
    let outside = places("[[registry]]\nprefix='a.lan'\nlocation = 'b.lan/..'", "a.lan/x").expect_err("refused");
    assert!(outside.contains("not a registry and path"), "{outside}");
}

#[test]
fn of_two_rules_for_a_prefix_in_one_file_the_first_counts_and_the_other_is_told() {
    let text = "[[registry]]\nlocation = 'a.lan'\n[[registry]]\nprefix = 'a.lan'\nlocation = 'b.lan'\n[[registry]]\nlocation = 'a.lan'";
    assert_eq!(places(text, "a.lan/x"), Ok(vec!["a.lan/x".to_owned()]));
    let told = conf::parse(text.as_bytes()).expect("a good file").unknown;
    assert!(told.len() == 1 && told[0].contains("line 3: this [[registry]] has no effect"), "{told:?}");
    let error = conf::parse(b"[[registry]]\nlocation='a.lan'\nblocked=true\n\n[[registry]]\nlocation='a.lan'")
        .expect_err("unclear");
    assert!(error.contains("line 5") && error.contains("line 1"), "{error}");
}

#[test]
fn files_are_read_in_order_and_later_ones_win() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("registries.conf.d");
    let file = dir.path().join("registries.conf");
    let sources = Sources { conf: file.clone(), conf_dir: folder.clone(), certs_d: Vec::new() };
    let load = || sources.load(None, &mut Stamps::default(), &mut Notes::default());
    assert!(load()?.rules.is_empty());
    std::fs::create_dir(&folder)?;
    std::fs::write(&file, "[[registry]]\nlocation = 'a.lan'\nblocked = true")?;
    std::fs::write(folder.join("20.conf"), "[[registry]]\nlocation = 'a.lan'\ninsecure = true")?;
    std::fs::write(folder.join("10.conf"), "[[registry]]\nlocation = 'a.lan'")?;
    std::fs::write(folder.join("30.txt"), "not toml at all [")?;
    let found = load()?.endpoints(&Reference::parse("a.lan/x")?)?;
    assert!(found.len() == 1 && found[0].is_insecure());
    std::fs::write(folder.join("30.conf"), "not toml at all [")?;
    let error = load().expect_err("refused").to_string();
    assert!(error.contains("30.conf"), "{error}");
    Ok(())
}

#[test]
fn the_rule_for_one_tag_blocks_that_tag() {
    let conf = "[[registry]]\nprefix = 'a.lan/x:bad'\nblocked = true";
    assert_eq!(places(conf, "a.lan/x:good"), Ok(vec!["a.lan/x".to_owned()]));
    assert_eq!(places(conf, "a.lan/x:bad2"), Ok(vec!["a.lan/x".to_owned()]));
    assert!(places(conf, "a.lan/x:bad").is_err_and(|error| error.contains("/r.conf:1")));
}

#[test]
fn places_know_their_lines() -> anyhow::Result<()> {
    let mut all = Registries::default();
    all.add(&Arc::from(Path::new("/r.conf")), conf::parse(CONF.as_bytes()).map_err(anyhow::Error::msg)?);
    let reference = Reference::parse("foo/bar:1")?;
    let lines = all.endpoints(&reference)?.iter().map(|e| e.place.as_ref().map(|p| p.line)).collect::<Vec<_>>();
    assert_eq!(lines, [Some(8), Some(14), Some(5)]);
    assert_eq!(
        all.decided_by(&reference).map(|(prefix, place)| format!("{prefix} {place}")),
        Some("docker.io /r.conf:5".into())
    );
    Ok(())
}

#[test]
fn short_names() -> anyhow::Result<()> {
    let names = |conf: &str, text: &str| -> anyhow::Result<Vec<String>> {
        let mut all = Registries::default();
        all.add(&Arc::from(Path::new("/r.conf")), conf::parse(conf.as_bytes()).map_err(anyhow::Error::msg)?);
        Ok(all.names_to_pull(text)?.iter().map(ToString::to_string).collect())
    };
    let two = "unqualified-search-registries = ['a.lan:5000', 'docker.io']\n";
    let alias = "[aliases]\n'app' = 'b.lan/team/app'\n";
    let digest = format!("app@sha256:{}", "0".repeat(64));
    for (conf, text, want) in [
        ("", "app", vec!["docker.io/library/app:latest"]),
        (two, "app:1", vec!["a.lan:5000/app:1", "docker.io/library/app:1"]),
        (two, "x/app", vec!["a.lan:5000/x/app:latest", "docker.io/x/app:latest"]),
        (two, "c.lan/app", vec!["c.lan/app:latest"]),
        (two, "localhost/app", vec!["localhost/app:latest"]),
        (alias, "app:2", vec!["b.lan/team/app:2"]),
        // With the defaults of Docker Hub filled in, also where they are left out.
        ("[aliases]\n'app' = 'docker.io/alpine'", "app:3", vec!["docker.io/library/alpine:3"]),
        ("[aliases]\n'ubi8/ubi' = 'b.lan/ubi8/ubi'", "ubi8/ubi", vec!["b.lan/ubi8/ubi:latest"]),
        ("[aliases]\n'app' = 'localhost:5000/app'", "app", vec!["localhost:5000/app:latest"]),
        ("unqualified-search-registries = ['a.lan/']", "app", vec!["a.lan/app:latest"]),
        (alias, &digest, vec![&*digest.replace("app", "b.lan/team/app")]),
        (alias, "x/app", vec!["docker.io/x/app:latest"]),
        (
            &format!("short-name-mode = 'disabled'\n{two}{alias}"),
            "app",
            vec!["a.lan:5000/app:latest", "docker.io/library/app:latest"],
        ),
        (&format!("short-name-mode = 'enforcing'\n{two}{alias}"), "app", vec!["b.lan/team/app:latest"]),
        ("short-name-mode = 'enforcing'\nunqualified-search-registries = ['a.lan']", "app", vec!["a.lan/app:latest"]),
    ] {
        assert_eq!(names(conf, text)?, want, "{conf} {text}");
    }
    let error = names(&format!("short-name-mode = 'enforcing'\n{two}"), "app").expect_err("a guess").to_string();
    assert!(error.contains("a.lan:5000/app:latest, docker.io/library/app:latest"), "{error}");
    Ok(())
}

/// The places of a `hosts.toml`, shown.
fn hosts(text: &str, name: &str) -> Result<Vec<String>, String> {
    let mut all = Registries::default();
    let reference = Reference::parse(name).map_err(|error| error.to_string())?;
    let file = hosts::parse(text.as_bytes(), Path::new("/certs.d/x"))?;
    all.hosts.insert("_default".into(), (Arc::from(Path::new("/certs.d/x/hosts.toml")), Ok(file)));
    let show = |e: &Endpoint| {
        let marks = [
            (e.namespace.is_some(), " ns"),
            (!e.resolves, " content"),
            (!e.serves, " manifests"),
            (e.mirror, " mirror"),
        ];
        let marks: String = marks.iter().filter(|(is, _)| *is).map(|(_, mark)| *mark).collect();
        format!("{}{marks} {}", e.shown(), e.place.as_ref().map_or(0, |place| place.line))
    };
    all.endpoints(&reference).map(|list| list.iter().map(show).collect()).map_err(|error| error.to_string())
}

#[test]
fn hosts_are_asked_in_the_order_of_the_file_and_the_server_last() {
    let text = r#"
server = "https://registry-1.docker.io"
capabilities = ["pull", "resolve"]

[host."https://z.lan"]
  capabilities = ["pull", "resolve"]
  ca = "z.crt"
  [host."https://z.lan".header]
    x-canary = ["one", "two"]

[host."http://a.lan:5000/proxy"]
  capabilities = ["pull"]
  skip_verify = true

[host."https://b.lan/v2/hub"]
  override_path = true
  client = [["c.pem", "/k.pem"]]

[host."https://push.lan"]
  capabilities = ["push"]
"#;
    let want = [
        "https://z.lan/v2/library/app ns mirror 5",
        "https://a.lan:5000/proxy/v2/library/app ns content mirror 11",
        "https://b.lan/v2/hub/library/app ns mirror 15",
        "https://registry-1.docker.io/v2/library/app 2",
    ];
    assert_eq!(hosts(text, "app"), Ok(want.map(str::to_owned).to_vec()));
    // Without a server it is the registry of the name; with it as a mirror only, nothing else is asked.
    assert_eq!(hosts("", "a.lan/x"), Ok(vec!["https://a.lan/v2/x 1".to_owned()]));
    let only = "server = 'https://m.lan'\n[host.'https://m.lan']";
    assert_eq!(hosts(only, "a.lan/x"), Ok(vec!["https://m.lan/v2/x ns mirror 2".to_owned()]));
    // As containerd reads them.
    let odd = "capabilities = []\n[host.'https://m.lan']\ncapabilities = ['Pull', 'RESOLVE']";
    let both = ["https://m.lan/v2/x ns mirror 2", "https://a.lan/v2/x 1"];
    assert_eq!(hosts(odd, "a.lan/x"), Ok(both.map(str::to_owned).to_vec()));
    let none = "capabilities = ['push']";
    assert!(hosts(none, "a.lan/x").is_err_and(|error| error.contains("capability")));
    let file = hosts::parse(text.as_bytes(), Path::new("/certs.d/x")).expect("a good file");
    let files: Vec<_> = file.files().map(|path| path.display().to_string()).collect();
    assert_eq!(files, ["/certs.d/x/z.crt", "/certs.d/x/c.pem", "/k.pem"]);
}

#[test]
fn wrong_hosts_are_refused_without_their_secrets() {
    for text in [
        "server = 'ftp://a.lan'",
        "server = 'https://user:canary@a.lan'",
        "server = 'https://a.lan?token=canary'",
        "[host.'https://a b']",
        "[host.'https://a.lan']\ncapabilities = ['fly']",
        "[host.'https://a.lan']\nclient = [['a', 'b'], ['c', 'd']]",
        "[host.'https://a.lan']\nskip_verify = 1",
        "[host.'https://a.lan'.header]\n'bad name' = 'canary'",
        "[host.'https://a.lan'.header]\nhost = 'canary'",
        "[host.'https://a.lan'.header]\nx = \"canary\\n\"",
        "[host.'https://a.lan'",
        "dial_timeout = '0s'",
        "[host.'https://a.lan']\ndial_timeout = '-1s'",
        "[host.'https://a.lan']\ndial_timeout = '61m'",
        "[host.'https://a.lan']\ndial_timeout = 5",
    ] {
        let error = hosts(text, "a.lan/x").expect_err(text);
        assert!(!error.contains("canary"), "{error}");
    }
}

#[test]
fn a_bad_hosts_file_concerns_its_host_only_and_leaves_what_it_said() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (first, second) = (dir.path().join("1"), dir.path().join("2"));
    for (root, folder, text) in [
        (&first, "good.lan", "[host.'https://m.lan']"),
        (&first, "b.lan_5000_", "server = 5"),
        (&second, "good.lan", "[host.'https://later.lan']"),
        (&second, "_default", "[host.'https://default.lan']"),
    ] {
        std::fs::create_dir_all(root.join(folder))?;
        std::fs::write(root.join(folder).join("hosts.toml"), text)?;
    }
    let sources = Sources {
        conf: dir.path().join("none"),
        conf_dir: dir.path().join("none"),
        certs_d: vec![first.clone(), second],
    };
    let mut notes = Notes::default();
    let all = sources.load(None, &mut Stamps::default(), &mut notes)?;
    let ask = |all: &Registries, name: &str| -> anyhow::Result<String> {
        Ok(all.endpoints(&Reference::parse(name)?)?.first().map(|place| place.host.clone()).unwrap_or_default())
    };
    assert_eq!(ask(&all, "good.lan/x")?, "m.lan");
    assert_eq!(ask(&all, "other.lan/x")?, "default.lan");
    assert!(ask(&all, "b.lan:5000/x").is_err_and(|error| error.to_string().contains("b.lan_5000_/hosts.toml: line 1")));
    assert!(notes.bad.len() == 1 && notes.bad[0].contains("are refused"), "{notes:?}");
    std::fs::write(first.join("good.lan/hosts.toml"), "nonsense")?;
    notes = Notes::default();
    let next = sources.load(Some(&all), &mut Stamps::default(), &mut notes)?;
    assert_eq!(ask(&next, "good.lan/x")?, "m.lan");
    assert!(
        notes.bad.iter().any(|note| note.contains("good.lan/hosts.toml") && note.contains("stays in force")),
        "{notes:?}"
    );
    Ok(())
}

#[test]
fn keys_that_nobody_knows_are_told_with_their_lines() {
    let text = r#"
server = "https://a.lan"
dial_timout = "1s"

[host."https://m.lan"]
  skip_verfy = true
  dial_timeout = "1.5s"
  [host."https://m.lan".header]
    dial_timout = "a header may have any name"

[host."https://n.lan"]
  proxi = "http://p.lan:8080"
  server = "https://not.here"
"#;
    let file = hosts::parse(text.as_bytes(), Path::new("/certs.d/x")).expect("a good file");
    assert_eq!(
        file.unknown(),
        [
            r#"line 3: the key "dial_timout" is not known here and has no effect (near to "dial_timeout")"#,
            r#"line 6: the key "skip_verfy" is not known here and has no effect (near to "skip_verify")"#,
            r#"line 12: the key "proxi" is not known here and has no effect (near to "proxy")"#,
            r#"line 13: the key "server" is not known here and has no effect"#,
        ]
    );
    let conf = "short-name-mod = 'enforcing'\n[aliases]\n'anything' = 'b.lan/a'\n[[registry]]\nlocation = 'a.lan'\nblockd = true\n[[registry.mirror]]\nlocation = 'b.lan'\npull_from_mirror = 'all'";
    let told = conf::parse(conf.as_bytes()).expect("a good file").unknown;
    let lines: Vec<&str> = told.iter().filter_map(|one| one.split(':').next()).collect();
    assert_eq!(lines, ["line 1", "line 6", "line 9"], "{told:?}");
    // However many there are.
    let many: String = (0..1000).map(|n| format!("key{n} = 1\n")).collect();
    assert_eq!(conf::parse(many.as_bytes()).expect("a good file").unknown.len(), 16);
}

#[test]
fn plain_http_with_words_about_tls_is_asked_by_tls_first() -> anyhow::Result<()> {
    // As its makers do, whose own example has http and skip_verify for a registry of either kind.
    for (address, more, want) in [
        ("http://m.lan:5000", "skip_verify = true", Scheme::Either),
        ("http://m.lan:5000", "skip_verify = false", Scheme::Either),
        ("http://m.lan", "ca = 'x.pem'", Scheme::Either),
        ("http://m.lan:5000", "client = 'x.pem'", Scheme::Either),
        ("http://m.lan:80", "skip_verify = true", Scheme::Http),
        ("http://m.lan:80/x", "skip_verify = true", Scheme::Http),
        ("http://m.lan:5000", "", Scheme::Http),
        ("https://m.lan:5000", "skip_verify = true", Scheme::Https),
    ] {
        let text = format!("server = '{address}'\n{more}");
        let mut all = Registries::default();
        let file = hosts::parse(text.as_bytes(), Path::new("/certs.d/x")).map_err(anyhow::Error::msg)?;
        all.hosts.insert("a.lan".into(), (Arc::from(Path::new("/certs.d/x/hosts.toml")), Ok(file)));
        let found = all.endpoints(&Reference::parse("a.lan/x")?)?;
        assert_eq!(found.iter().map(|place| place.scheme).collect::<Vec<_>>(), [want], "{text}");
        let host = found[0].host.clone();
        assert_eq!(all.is_insecure_host(&host), want != Scheme::Https || more.contains("true"), "{text}");
    }
    Ok(())
}

#[test]
fn a_place_has_its_own_proxy_and_no_error_tells_its_login() -> anyhow::Result<()> {
    let text = "proxy = 'http://s.lan:1'\n[host.'https://m.lan']\nproxy = 'https://canary:canary@p.lan/'\n[host.'https://n.lan']\n";
    let mut all = Registries::default();
    let file = hosts::parse(text.as_bytes(), Path::new("/certs.d/x")).map_err(anyhow::Error::msg)?;
    all.hosts.insert("a.lan".into(), (Arc::from(Path::new("/certs.d/x/hosts.toml")), Ok(file)));
    let found = all.endpoints(&Reference::parse("a.lan/x")?)?;
    let proxies: Vec<_> = found.iter().map(|place| place.proxy.as_ref().map(ToString::to_string)).collect();
    let [first, last] = ["https://p.lan:443 (/certs.d/x/hosts.toml:2)", "http://s.lan:1 (/certs.d/x/hosts.toml:1)"];
    assert_eq!(proxies, [Some(first.to_owned()), None, Some(last.to_owned())]);
    assert!(!format!("{all:?} {found:?}").contains("canary"));
    for bad in
        ["socks5://canary:canary@p.lan", "p.lan:3128", "http://canary:canary@p.lan/x", "http://p.lan?x=canary", "/x"]
    {
        let error = hosts::parse(format!("\nproxy = '{bad}'").as_bytes(), Path::new("/x")).expect_err(bad);
        assert!(error.contains("line 1: proxy") && !error.contains("canary"), "{error}");
    }
    Ok(())
}

#[test]
fn a_host_has_its_own_time_to_connect() -> anyhow::Result<()> {
    let text = "dial_timeout = '2m'\n[host.'https://m.lan']\ndial_timeout = '250ms'\n[host.'https://n.lan']\n";
    let mut all = Registries::default();
    let file = hosts::parse(text.as_bytes(), Path::new("/certs.d/x")).map_err(anyhow::Error::msg)?;
    all.hosts.insert("a.lan".into(), (Arc::from(Path::new("/certs.d/x/hosts.toml")), Ok(file)));
    let found = all.endpoints(&Reference::parse("a.lan/x")?)?;
    let times: Vec<_> = found.iter().map(|place| (place.host.as_str(), place.dial_timeout)).collect();
    let millis = |n| Some(Duration::from_millis(n));
    assert_eq!(times, [("m.lan", millis(250)), ("n.lan", None), ("a.lan", millis(120_000))]);
    Ok(())
}

proptest::proptest! {
    #[test]
    fn any_text_is_refused_or_leads_to_safe_places(text in "(?s).{0,200}", name in "[a-z.]{1,10}/[a-z]{1,5}") {
        if let Ok(conf) = conf::parse(text.as_bytes()) {
            let mut all = Registries::default();
            all.add(&Arc::from(Path::new("/r.conf")), conf);
            if let Ok(reference) = Reference::parse(&name) {
                let _ = all.endpoints(&reference);
            }
        }
        let _ = hosts::parse(text.as_bytes(), Path::new("/x"));
    }
}
