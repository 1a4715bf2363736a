//! Pure parts, and calls of fake runtimes as our own children.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::cli::RuntimeSetup;
use super::*;
use crate::config;

#[test]
fn the_last_error_is_found_in_any_log() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let long = format!("{{\"level\":\"error\",\"msg\":\"{}\"}}\n", "x".repeat(100_000));
    let cases: [(&str, Option<&str>); 9] = [
        ("", None),
        ("\n \n", None),
        ("{\"level\":\"error\",\"msg\":\"a\"}\n{\"level\":\"warning\",\"msg\":\"b\"}\n", Some("a")),
        ("{\"msg\":\"first\",\"level\":\"error\"}\n{\"msg\":\"second\",\"level\":\"error\"}\n", Some("second")),
        ("{\"level\":\"debug\",\"msg\":\"only this\"}", Some("only this")),
        ("plain\nwords \u{1b}[2J\r\n", Some("words  [2J")),
        ("{\"level\":\"error\",\"msg\":\"a\"}\n{\"level\":\"err", Some("a")),
        ("{\"level\":\"ERROR\",\"message\":\"of youki\"}\n{\"level\":\"WARN\",\"message\":\"b\"}\n", Some("of youki")),
        (&long, Some("xxx")),
    ];
    for (text, expected) in cases {
        std::fs::write(&log, text).unwrap();
        let found = report::last_error(&log);
        match expected {
            Some("xxx") => assert!(found.unwrap().len() <= 64 * 1024),
            expected => assert_eq!(found.as_deref(), expected, "{text:?}"),
        }
    }
    assert_eq!(report::last_error(&dir.path().join("none")), None);
    assert_eq!(report::last_error(dir.path()), None, "not a file");
    assert_eq!(report::last_words(b" \n"), None);
    assert_eq!(report::last_words(b"a\nb\n").as_deref(), Some("a b"));
}

#[test]
fn features_are_taken_from_what_the_runtime_says() {
    let text = br#"{"ociVersionMin":"1.0.0","ociVersionMax":"1.2.0","mountOptions":["ro","rro"],
        "linux":{"namespaces":["pid","time"],"cgroup":{"v1":true,"v2":true,"systemd":true},"seccomp":{"enabled":true},
        "mountExtensions":{"idmap":{"enabled":true}},"future":{}},
        "annotations":{"run.oci.crun.version":"1.27"},"potentiallyUnsafeConfigAnnotations":["module.wasm.image/variant"]}"#;
    let features = RuntimeFeatures::parse("crun version 1.27\ncommit: x\n", Some(text));
    assert_eq!(features.version, "crun version 1.27");
    assert!(features.told && features.recursive_read_only && features.idmapped_mounts && features.seccomp);
    assert!(features.cgroup_v1 && features.cgroup_v2 && features.systemd_cgroup && !features.apparmor);
    assert_eq!(features.potentially_unsafe_annotations, ["module.wasm.image/variant"]);
    for untold in [None, Some(&b"unknown command features"[..]), Some(b"[]")] {
        let features = RuntimeFeatures::parse("runsc", untold);
        assert_eq!(features, RuntimeFeatures { version: "runsc".into(), ..RuntimeFeatures::default() });
    }
}

#[test]
fn user_namespaces_are_offered_where_they_were_seen_to_work() {
    let with = br#"{"linux":{"namespaces":["pid","user"]}}"#.as_slice();
    for (version, features, wanted) in [
        ("runc version 1.3.0", Some(with), true),
        ("runc version 1.3.0", Some(br#"{"linux":{"namespaces":["pid"]}}"#.as_slice()), false),
        ("youki version: 0.7.0", Some(with), false),
        ("crun version 1.8.1", None, true),
        ("crun version 1.8", None, false),
        ("runsc", None, false),
    ] {
        assert_eq!(RuntimeFeatures::parse(version, features).user_namespaces(), wanted, "{version}");
    }
}

fn write_program(path: &Path, script: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

async fn fake(dir: &Path, script: &str) -> OciRuntime {
    let program = dir.join("runtime");
    write_program(&program, script);
    let setup = RuntimeSetup { handler: "fake".into(), program, root: dir.join("root"), systemd_cgroup: false };
    OciRuntime::load(setup).await
}

#[tokio::test]
async fn a_runtime_s_own_words_are_in_the_error() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = fake(dir.path(), "echo starting; echo 'cannot do that' >&2; exit 1").await;
    let failed = runtime.start("c1").await.unwrap_err();
    assert_eq!(failed.to_string(), "fake start c1: cannot do that");
    let runtime = fake(dir.path(), "kill -9 $$").await;
    assert!(runtime.start("c1").await.unwrap_err().to_string().contains("signal: 9"));
    let runtime = fake(dir.path(), "echo '{\"status\":\"running\",\"pid\":7,\"extra\":{}}'").await;
    let state = RuntimeState { status: "running".into(), pid: 7 };
    assert_eq!(runtime.state("c1").await.unwrap(), Some(state));
    let runtime = fake(dir.path(), "echo '['").await;
    assert!(matches!(runtime.state("c1").await, Err(RuntimeError::Answer { .. })));
    let runtime = fake(dir.path(), "echo 'container does not exist' >&2; exit 1").await;
    assert_eq!(runtime.state("c1").await.unwrap(), None);
    runtime.delete("c1", false).await.unwrap();
    std::fs::remove_file(runtime.program()).unwrap();
    let failed = runtime.start("c1").await.unwrap_err();
    assert!(matches!(&failed, RuntimeError::Exec { .. }), "{failed:?}");
}

#[tokio::test]
async fn a_runtime_gets_nothing_of_the_daemon_s_environment() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = fake(dir.path(), "{ env; ls /proc/self/fd; } >&2; exit 1").await;
    let text = runtime.start("c1").await.unwrap_err().to_string();
    let expected = format!("fake start c1: PATH={} PWD=/ 0 1 2 3", PATH);
    assert_eq!(text, expected);
}

fn handlers(entries: &[(&str, &Path)], default: &str) -> config::Runtime {
    let handler = |path: &Path| config::Handler { path: path.to_owned(), ..config::Handler::default() };
    let handlers = entries.iter().map(|(name, path)| ((*name).to_owned(), handler(path))).collect();
    config::Runtime { default: default.into(), handlers, ..config::Runtime::default() }
}

#[tokio::test]
async fn handlers_are_resolved_from_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let options = HandlersOptions { state: dir.path().join("state"), systemd_cgroup: false };
    let program = dir.path().join("special");
    write_program(&program, "echo special 1.0");
    let loaded = Handlers::load(&handlers(&[("mine", &program)], "mine"), &options).await.unwrap();
    assert_eq!(loaded.default_name(), "mine");
    let mine = loaded.lookup("").unwrap();
    assert_eq!((mine.handler(), mine.features.version.as_str()), ("mine", "special 1.0"));
    let unknown = loaded.lookup("kata").unwrap_err().to_string();
    assert!(unknown.contains("\"kata\"") && unknown.contains("mine"), "{unknown}");
    let mode = std::fs::metadata(dir.path().join("state/runtime/mine")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);

    let plain = dir.path().join("plain");
    std::fs::write(&plain, "").unwrap();
    let errors = [
        (handlers(&[("a", Path::new("/no/such"))], ""), "runtime.handlers.a.path: /no/such is not"),
        (handlers(&[("a", &plain)], ""), "is not an executable"),
        (handlers(&[("no-such-runtime", Path::new(""))], ""), "runtime.handlers.no-such-runtime.path"),
        (handlers(&[("a", Path::new("bin/sh"))], ""), "runtime.handlers.a.path"),
        (handlers(&[("../a", &program)], ""), "cannot be the name"),
        (handlers(&[("a", &program)], "b"), "runtime.default: \"b\""),
    ];
    for (config, expected) in errors {
        let failed = Handlers::load(&config, &options).await.unwrap_err().to_string();
        assert!(failed.contains(expected), "{failed}");
    }
    let mut shim = handlers(&[("kata", &program)], "");
    shim.handlers.get_mut("kata").unwrap().kind = config::HandlerKind::Shim;
    assert!(matches!(Handlers::load(&shim, &options).await, Err(HandlersError::Shim { .. })));
}

/// Drivers spawn these, so they must be able to move between threads.
#[test]
fn the_futures_can_be_spawned() {
    fn spawnable<F: std::future::Future + Send>(_: impl Fn(&'static OciRuntime, &'static crate::keeper::Keeper) -> F) {}
    spawnable(|runtime, _| runtime.start("c"));
    spawnable(|runtime, _| runtime.delete("c", true));
    spawnable(|runtime, keeper| async move {
        let stdio = Stdio::Console("s".into());
        let (id, bundle) = (String::new(), std::path::PathBuf::new());
        runtime
            .create(
                keeper,
                CreateRequest { id, bundle, stdio, timeout: Duration::ZERO, hold: Vec::new(), mounts: None },
            )
            .await
    });
    spawnable(|_, keeper| keeper.held());
    spawnable(|_, keeper| keeper.fork_init("i", Vec::new()));
    spawnable(|_, keeper| async move {
        let pidfd = std::sync::Arc::new(crate::sys::pidfd::open(1).expect("there is always a first process"));
        keeper.wait_exit("c", &pidfd).await
    });
}
