//! The rules of the tree that no compiler checks. Each failure names the file, and what to do instead.

#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/spdx.rs"]
mod spdx;

use std::path::Path;

use source::{Source, rooms, sources};

/// The rooms, from the edge inwards; those of one line do not know each other, but for [`SIDEWAYS`].
const LAYERS: &[&[&str]] = &[
    &["main", "fuzzing"],
    &["cli"],
    &["daemon"],
    &["rpc", "streaming"],
    &["pod", "container", "image", "events"],
    &["admission", "spec"],
    &["runtime", "monitor", "network", "storage", "nri", "stats", "devices", "security"],
    &["state", "config", "keeper"],
    &["sys", "task", "telemetry", "metrics"],
];

/// Who may use whom beside or above it, and why.
const SIDEWAYS: &[(&str, &str, &str)] = &[
    ("rpc", "streaming", "Exec, Attach and PortForward answer with URLs of the streaming server"),
    ("pod", "container", "a pod stops and removes its containers"),
    ("pod", "image", "a pod's driver hands its images on"),
    ("container", "image", "a container begins with a look-up of its image"),
    ("pod", "events", "a driver tells of each change that it has published"),
    ("container", "events", "a driver tells of each change that it has published"),
    ("admission", "spec", "both are pure, and admission checks what spec will read"),
    ("state", "storage::Digest", "a digest is a word of the records, and does nothing"),
];

/// One room may use another: it is below it, or the path is in [`SIDEWAYS`].
fn may_use(room: &str, path: &str) -> bool {
    let layer = |name: &str| LAYERS.iter().position(|rooms| rooms.contains(&name));
    let target = path.split("::").next().unwrap_or_default();
    let (Some(from), Some(to)) = (layer(room), layer(target)) else { return false };
    let listed = |(user, used, _): &(&str, &str, &str)| {
        *user == room && (path == *used || path.strip_prefix(used).is_some_and(|rest| rest.starts_with("::")))
    };
    room == target || to > from || SIDEWAYS.iter().any(listed)
}

/// Fails with all offenders, not only the first.
fn expect_none(offenders: &[String], rule: &str) {
    assert!(offenders.is_empty(), "{rule}\n  {}", offenders.join("\n  "));
}

fn offenders(keep: impl Fn(&Source) -> bool, broken: impl Fn(&Source) -> Vec<String>) -> Vec<String> {
    sources().iter().filter(|source| keep(source)).flat_map(broken).collect()
}

#[test]
fn every_room_has_its_place() {
    let placed: Vec<&str> = LAYERS.iter().flat_map(|layer| layer.iter().copied()).collect();
    let missing: Vec<String> = rooms().into_iter().filter(|room| !placed.contains(&room.as_str())).collect();
    expect_none(&missing, "a room of src/lib.rs is in no line of LAYERS:");
}

#[test]
fn imports_point_down() {
    let known: Vec<&str> = LAYERS.iter().flat_map(|layer| layer.iter().copied()).collect();
    let found = offenders(Source::is_src, |source| {
        let Some(room) = source.room() else { return Vec::new() };
        let paths = source.crate_paths();
        // Macros and items of the crate's root are no rooms.
        let upward = paths.iter().filter(|path| known.contains(&path.split("::").next().unwrap_or_default()));
        upward.filter(|path| !may_use(room, path)).map(|path| format!("{}: crate::{path}", source.name)).collect()
    });
    expect_none(&found, "a room uses only rooms below it (src/lib.rs); take a parameter or a small trait instead:");
}

#[test]
fn the_layer_rule_itself_holds() {
    for (room, path, may) in [
        ("pod", "sys::mount", true),
        ("pod", "container::Containers", true),
        ("container", "pod::Pods", false),
        ("image", "container", false),
        ("sys", "config", false),
        ("config", "telemetry::check_filter", true),
        ("state", "storage::Digest", true),
        ("state", "storage::DigestError", false),
        ("state", "storage::Store", false),
        ("sys", "sys::exec", true),
    ] {
        assert_eq!(may_use(room, path), may, "{room} -> {path}");
    }
}

#[test]
fn grpc_stays_at_the_edge() {
    let edge = ["rpc", "daemon", "cli", "main"];
    let found = offenders(
        |source| source.is_src() && !source.room().is_some_and(|room| edge.contains(&room)),
        |source| source.lines_with_path("tonic"),
    );
    expect_none(&found, "tonic's types stop at src/rpc, src/daemon and src/cli; use a type of the room:");
}

#[test]
fn unsafe_code_stays_in_sys() {
    let found =
        offenders(|source| source.is_src() && source.room() != Some("sys"), |source| source.lines_with_word("unsafe"));
    expect_none(&found, "unsafe is for src/sys only; call it from there:");
}

#[test]
fn files_are_short_and_say_what_they_are() {
    let long = offenders(
        |_| true,
        |source| {
            let lines = source.text.lines().count();
            if lines > 600 { vec![format!("{}: {lines} lines", source.name)] } else { Vec::new() }
        },
    );
    expect_none(&long, "more than 600 lines: what is the second subject? Give it a file of its own:");
    let silent = offenders(|source| !source.text.starts_with("//!"), |source| vec![source.name.clone()]);
    expect_none(&silent, "a file begins with //! and a sentence on what it is for:");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for room in rooms() {
        let file = root.join(&room).with_extension("rs");
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(text.starts_with("//!"), "room {room} has no file {} that begins with //!", file.display());
    }
}

#[test]
fn files_are_named_after_what_is_in_them() {
    let barred = ["utils", "util", "common", "helpers", "helper", "misc", "manager", "mod"];
    let found = offenders(
        |source| {
            let path = Path::new(&source.name);
            path.iter()
                .any(|part| barred.iter().any(|name| Path::new(part).file_stem().is_some_and(|stem| stem == *name)))
        },
        |source| vec![source.name.clone()],
    );
    expect_none(&found, "a name that says nothing (or a mod.rs); name the thing itself:");
}

#[test]
fn every_configuration_key_is_in_the_deployed_sample() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/config.toml");
    let sample = std::fs::read_to_string(&path).expect("deploy/config.toml is there");
    let mut section = String::new();
    let mut shown = Vec::new();
    for line in sample.lines() {
        let line = line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line);
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.to_owned();
        } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            shown.push(format!("{section}.{key}"));
        }
    }
    let has = |key: &cricket::config::Key| {
        shown.iter().any(|name| {
            let (have, want): (Vec<_>, Vec<_>) = (name.split('.').collect(), key.name.split('.').collect());
            have.len() == want.len() && have.iter().zip(&want).all(|(have, want)| *want == "*" || have == want)
        })
    };
    let missing: Vec<String> =
        cricket::config::KEYS.iter().filter(|key| !has(key)).map(|key| key.name.to_owned()).collect();
    expect_none(&missing, "keys that deploy/config.toml does not show; run UPDATE_SAMPLE=1 cargo test config:");
}

#[test]
fn deployed_files_fit_the_defaults() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let read = |name: &str| std::fs::read_to_string(deploy.join(name)).expect("a deployed file is there");
    let server = cricket::config::Config::default().server;
    let endpoint = format!("endpoint: unix://{}", server.listen.display());
    assert_eq!(read("crictl.yaml").matches(&endpoint).count(), 2, "crictl.yaml points at another socket");
    let unit = read("cricket.service");
    for line in
        ["Type=notify", "KillMode=process", "Delegate=yes", "RuntimeDirectoryPreserve=yes", "OOMScoreAdjust=-999"]
    {
        assert!(unit.lines().any(|is| is == line), "cricket.service lost {line}, without which containers die or leak");
    }
    assert_eq!(server.state, Path::new("/run/cricket"), "RuntimeDirectory= in cricket.service makes another folder");
    assert_eq!(server.root, Path::new("/var/lib/cricket"), "StateDirectory= in cricket.service makes another folder");
    let network: serde_json::Value =
        serde_json::from_str(&read("10-cricket-bridge.conflist")).expect("the network sample is JSON");
    assert_eq!(network["plugins"][1]["capabilities"]["portMappings"], true, "host ports would not work");
}

#[test]
fn ignored_tests_say_why_and_nothing_is_left_open() {
    let bare = offenders(
        |_| true,
        |source| {
            let attributes = source.lines_with("#[ignore");
            attributes.into_iter().filter(|(_, line)| !line.contains("#[ignore = \"")).map(|(at, _)| at).collect()
        },
    );
    expect_none(&bare, "#[ignore] without a reason:");
    let open = offenders(
        |_| true,
        |source| ["todo", "unimplemented"].iter().flat_map(|name| source.macro_calls(name)).collect(),
    );
    expect_none(&open, "code that is not there; return an error that says so:");
}

#[test]
fn licences_of_all_dependencies_are_allowed() {
    let packages = spdx::packages();
    assert!(packages.len() > 50, "cargo metadata lists {} packages only", packages.len());
    let refused: Vec<String> = packages
        .iter()
        .filter(|package| !package.license.as_deref().is_some_and(spdx::is_allowed))
        .map(|package| format!("{}: {}", package.name, package.license.as_deref().unwrap_or("no licence is stated")))
        .collect();
    expect_none(&refused, "crates whose licence is not on the list in tests/tidy/spdx.rs:");
}

/// The fuzzing targets are a workspace of their own, so the rule above does not see what they need.
#[test]
fn fuzzing_takes_no_crates_that_the_daemon_and_its_tests_do_not() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| std::fs::read_to_string(top.join(name)).expect("a lock file");
    let names = |lock: &str| -> std::collections::BTreeSet<String> {
        lock.lines().filter_map(|line| Some(line.strip_prefix("name = \"")?.trim_end_matches('"').to_owned())).collect()
    };
    let (ours, fuzzing) = (names(&read("Cargo.lock")), names(&read("fuzz/Cargo.lock")));
    // LLVM's libFuzzer is in the targets only, under MIT or Apache-2.0, and NCSA.
    let known = |name: &&String| ours.contains(*name) || ["cricket-fuzz", "libfuzzer-sys"].contains(&name.as_str());
    let other: Vec<String> = fuzzing.iter().filter(|name| !known(name)).cloned().collect();
    assert!(fuzzing.contains("libfuzzer-sys") && fuzzing.len() > 50, "fuzz/Cargo.lock lists {} crates", fuzzing.len());
    expect_none(&other, "crates that only fuzz/Cargo.lock has; is their licence allowed? Then name them here:");
}

#[test]
fn every_test_that_the_list_of_advisories_names_exists() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let list = std::fs::read_to_string(top.join("tests/cves.md")).expect("tests/cves.md");
    let words = list
        .split('`')
        .filter(|word| ["cve_", "ghsa_", "conmon_", "containerd_"].iter().any(|start| word.starts_with(start)));
    let named: Vec<&str> = words.collect();
    assert!(named.len() > 30, "tests/cves.md names {} tests only", named.len());
    let all = sources();
    let exists = |name: &str| {
        // A name that ends in `_` stands for all tests that begin so.
        let function = format!("fn {name}");
        let whole = |rest: &str| name.ends_with('_') || rest.starts_with('(');
        all.iter().any(|source| {
            source.text.match_indices(&function).any(|(at, _)| whole(&source.text[at + function.len()..]))
        })
    };
    let missing: Vec<String> = named.iter().filter(|name| !exists(name)).map(|name| (*name).to_owned()).collect();
    expect_none(&missing, "tests/cves.md names tests that do not exist:");
}
