//! The rules of `registries.conf`, table by table.

use super::*;

fn places(conf: &str, name: &str) -> Result<Vec<String>, String> {
    let mut all = Registries::default();
    all.add(conf)?;
    let reference = Reference::parse(name).map_err(|e| e.to_string())?;
    let show = |e: &Endpoint| format!("{}/{}{}", e.host, e.repository, if e.insecure { " insecure" } else { "" });
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
    ] {
        assert_eq!(places(CONF, name), Ok(want.into_iter().map(str::to_owned).collect()), "{name}");
    }
    let blocked = places(CONF, "bad.example.com/x").expect_err("blocked");
    assert!(blocked.contains("bad.example.com"), "{blocked}");
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
fn files_are_read_in_order_and_later_ones_win() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("registries.conf.d");
    let file = dir.path().join("registries.conf");
    assert_eq!(Registries::load(&file, &folder)?, Registries::default());
    std::fs::create_dir(&folder)?;
    std::fs::write(&file, "[[registry]]\nlocation = 'a.lan'\nblocked = true")?;
    std::fs::write(folder.join("20.conf"), "[[registry]]\nlocation = 'a.lan'\ninsecure = true")?;
    std::fs::write(folder.join("10.conf"), "[[registry]]\nlocation = 'a.lan'")?;
    std::fs::write(folder.join("30.txt"), "not toml at all [")?;
    let found = Registries::load(&file, &folder)?.endpoints(&Reference::parse("a.lan/x")?)?;
    assert!(found.len() == 1 && found[0].insecure);
    std::fs::write(folder.join("30.conf"), "not toml at all [")?;
    let error = Registries::load(&file, &folder).expect_err("refused").to_string();
    assert!(error.contains("30.conf"), "{error}");
    Ok(())
}
