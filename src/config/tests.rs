//! Files in a temporary folder, and the sample against the code.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::*;

/// Writes `config.toml` and drop-ins and loads them.
fn load(main: Option<&str>, drop_ins: &[(&str, &str)]) -> (tempfile::TempDir, Result<Loaded, ConfigError>) {
    let dir = tempfile::tempdir().unwrap();
    if let Some(text) = main {
        fs::write(dir.path().join("config.toml"), text).unwrap();
    }
    fs::create_dir(dir.path().join("conf.d")).unwrap();
    for (name, text) in drop_ins {
        fs::write(dir.path().join("conf.d").join(name), text).unwrap();
    }
    let loaded = Config::load_files(&dir.path().join("config.toml"), main.is_some());
    (dir, loaded)
}

fn error(text: &str) -> String {
    let (dir, loaded) = load(Some(text), &[]);
    let text = loaded.expect_err("the configuration is wrong").to_string();
    text.replace(dir.path().to_str().unwrap(), "")
}

#[test]
fn no_file_means_defaults_unless_it_was_asked_for() {
    let (_dir, loaded) = load(None, &[]);
    assert_eq!(loaded.unwrap(), Loaded { config: Config::default(), sources: Vec::new() });
    let missing = Config::load(Some(Path::new("/nonexistent/config.toml"))).unwrap_err();
    assert!(matches!(missing, ConfigError::Read { .. }), "{missing}");
}

#[test]
fn drop_ins_change_single_keys_in_order() {
    let main = "[network]\nbin_dirs = [\"/a\", \"/b\"]\nplugin_timeout = 7\n[runtime.handlers.kata]\npath = \"/k\"\n";
    let (dir, loaded) = load(
        Some(main),
        &[
            ("20-b.toml", "[network]\nbin_dirs = [\"/c\"]\n[runtime.handlers.kata]\ntype = \"shim\"\n"),
            ("10-a.toml", "[network]\nbin_dirs = [\"/x\"]\ncache_dir = \"/cache\"\n"),
            ("ignored.conf", "nonsense"),
            (".hidden.toml", "nonsense"),
        ],
    );
    let loaded = loaded.unwrap();
    let network = &loaded.config.network;
    assert_eq!(network.bin_dirs, [Path::new("/c")]);
    assert_eq!((network.plugin_timeout, network.cache_dir.as_path()), (7, Path::new("/cache")));
    let kata = &loaded.config.runtime.handlers["kata"];
    assert_eq!((kata.path.as_path(), kata.kind), (Path::new("/k"), HandlerKind::Shim));
    let sources = ["config.toml", "conf.d/10-a.toml", "conf.d/20-b.toml"].map(|name| dir.path().join(name));
    assert_eq!(loaded.sources, sources);
}

#[test]
fn errors_name_file_line_and_key() {
    for (text, wanted) in [
        ("\n[server]\nlistne = \"/x\"\n", "/config.toml:3: unknown key server.listne; did you mean server.listen?"),
        ("[sever]\nlisten = \"/x\"\n", "/config.toml:1: unknown key sever; did you mean server?"),
        ("listen = \"/x\"\n", "/config.toml:1: unknown key listen; did you mean server.listen?"),
        ("[log]\nwholly_other = 1\n", "/config.toml:2: unknown key log.wholly_other"),
        (
            "[runtime.handlers.kata]\npth = \"/x\"\n",
            "/config.toml:2: unknown key runtime.handlers.kata.pth; did you mean runtime.handlers.kata.path?",
        ),
        ("[image]\n\nmax_concurrent_downloads = \"six\"\n", "/config.toml:3: "),
        ("[image]\nmax_concurrent_downloads = -1\n", "/config.toml:2: "),
        ("[log]\nformat = \"xml\"\n", "/config.toml:2: "),
        ("server = 3\n", "/config.toml:1: "),
        ("[server]\nlisten = \n", "/config.toml:2: "),
        ("[server]\nlisten = \"x\"\n", "/config.toml:2: server.listen = \"x\": "),
        ("[server]\nroot = \"/run/cricket/images\"\n", "/config.toml:2: server.root = \"/run/cricket/images\": "),
        ("[server]\n\nmax_request_size = 1\n", "/config.toml:3: server.max_request_size = 1: "),
    ] {
        let message = error(text);
        assert!(message.starts_with(wanted), "{message:?} is not {wanted:?}");
    }
    let (dir, loaded) = load(Some(""), &[("10-a.toml", "[network]\nplugin_timeout = 0\n")]);
    let message = loaded.unwrap_err().to_string();
    assert!(
        message.contains("conf.d/10-a.toml:2: network.plugin_timeout = 0"),
        "{message} in {}",
        dir.path().display()
    );
}

#[test]
fn values_out_of_bounds_are_refused() {
    let long = format!("[server]\nlisten = \"/{}\"", "x".repeat(107));
    for (text, key) in [
        ("[server]\nlisten = \"/\"", "server.listen"),
        (long.as_str(), "server.listen"),
        ("[server]\nlisten = \"/run/../x\"", "server.listen"),
        ("[server]\nroot = \"/run/cricket\"", "server.root"),
        ("[server]\nstate = \"relative\"", "server.state"),
        ("[runtime]\ndefault = \"a/b\"", "runtime.default"),
        ("[runtime.handlers.Kata]\npath = \"/x\"", "runtime.handlers.Kata"),
        ("[runtime.handlers.\"\"]\npath = \"/x\"", "runtime.handlers."),
        ("[runtime.handlers.kata]\n", "runtime.handlers.kata.path"),
        ("[runtime.handlers.kata]\npath = \"bin/x\"", "runtime.handlers.kata.path"),
        (
            "[runtime.handlers.kata]\npath = \"x\"\nallowed_annotations = [\"a*b\"]",
            "runtime.handlers.kata.allowed_annotations",
        ),
        ("[cgroup]\nparent = \"relative\"", "cgroup.parent"),
        ("[cgroup]\nparent = \"/a/../b\"", "cgroup.parent"),
        ("[cgroup]\ndriver = \"systemd\"\nparent = \"/cricket\"", "cgroup.parent"),
        ("[cgroup]\ndriver = \"cgroupfs\"\nparent = \"/\"", "cgroup.parent"),
        ("[network]\nbin_dirs = [\"/ok\", \"no\"]", "network.bin_dirs"),
        ("[image]\nmax_concurrent_downloads = 65", "image.max_concurrent_downloads"),
        ("[image]\npinned = [\"\"]", "image.pinned"),
        ("[streaming]\nlisten = \"localhost:0\"", "streaming.listen"),
        ("[streaming]\nlisten = \"127.0.0.1\"", "streaming.listen"),
        ("[streaming]\nlisten = \"0.0.0.0:10010\"", "streaming.listen"),
        ("[streaming]\nadvertise = \"http://node\"", "streaming.advertise"),
        ("[streaming]\nadvertise = \"node:80\"", "streaming.advertise"),
        ("[streaming]\nadvertise = \"fe80::1%eth0\"", "streaming.advertise"),
        ("[streaming]\ntls_cert = \"/c.pem\"", "streaming.tls_cert"),
        ("[streaming]\ntls_client_ca = \"/ca.pem\"", "streaming.tls_cert"),
        ("[streaming]\ntls_cert = \"c.pem\"\ntls_key = \"/k.pem\"", "streaming.tls_cert"),
        ("[streaming]\nidle_timeout = 0", "streaming.idle_timeout"),
        ("[streaming]\ncreation_timeout = 3601", "streaming.creation_timeout"),
        ("[log]\nlevel = \"loud,=\"", "log.level"),
        ("[log]\nmax_line_size = 0", "log.max_line_size"),
    ] {
        let message = error(text);
        assert!(message.contains(&format!("{key} = ")), "{message}");
    }
    let good = "[streaming]\nlisten = \"[::]:10010\"\nadvertise = \"2001:db8::1\"\n[cgroup]\nparent = \"pods.slice\"\n[runtime]\ndefault = \"crun\"\n[log]\nlevel = \"info,cricket::pod=debug\"\n";
    load(Some(good), &[]).1.unwrap();
}

#[test]
fn the_file_cap_holds() {
    let (_dir, loaded) = load(Some(&"#".repeat((1 << 20) + 1)), &[]);
    assert!(matches!(loaded, Err(ConfigError::TooLarge { .. })));
}

#[test]
fn the_sample_shows_every_key_with_its_default() {
    let sample = default_toml();
    assert_eq!(toml::from_str::<Config>(&sample).unwrap(), Config::default());
    let active: String = sample
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line).to_owned() + "\n")
        .collect();
    let mut config: Config = toml::from_str(&active).unwrap();
    let handler = Handler { path: "crun".into(), ..Handler::default() };
    assert_eq!(config.runtime.handlers.remove("crun"), Some(handler));
    assert_eq!(config, Config::default());
}

#[test]
fn the_table_of_keys_is_the_struct() {
    let mut full = Config::default();
    full.runtime.handlers.insert("*".to_owned(), Handler::default());
    let fields: BTreeSet<String> = reload::flat(&full).into_keys().collect();
    let documented: BTreeSet<String> = KEYS.iter().map(|key| key.name.to_owned()).collect();
    assert_eq!(fields, documented);
    assert_eq!(documented.len(), KEYS.len(), "a key is documented twice");
}

#[test]
fn the_deployed_sample_is_the_generated_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/config.toml");
    if std::env::var_os("UPDATE_SAMPLE").is_some() {
        fs::write(&path, default_toml()).unwrap();
    }
    let stored = fs::read_to_string(&path).unwrap_or_default();
    assert!(stored == default_toml(), "run UPDATE_SAMPLE=1 cargo test config and commit deploy/config.toml");
}

#[test]
fn a_reload_says_what_waits() {
    let old = Config::default();
    assert_eq!(reload_diff(&old, &old), ReloadDiff::default());
    let mut new = old.clone();
    new.log.level = "debug".into();
    new.server.listen = "/elsewhere".into();
    new.runtime.handlers.insert("kata".into(), Handler { path: "/k".into(), ..Handler::default() });
    let diff = reload_diff(&old, &new);
    assert!(diff.applied.contains(&"log.level".to_owned()), "{diff:?}");
    assert!(diff.applied.contains(&"runtime.handlers.kata.path".to_owned()), "{diff:?}");
    assert!(diff.needs_restart.contains(&"server.listen".to_owned()), "{diff:?}");
}
