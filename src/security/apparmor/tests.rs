//! Tests of the room `security/apparmor`, on trees that look like the kernel's.

use std::path::Path;

use super::*;

/// A machine with AppArmor whose parser is a script that knows how the kernel's list is written.
struct Machine {
    dir: tempfile::TempDir,
    profiles: Profiles,
}

fn machine(parser: &str) -> Machine {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::create_dir(path("securityfs")).unwrap();
    std::fs::write(path("enabled"), "Y\n").unwrap();
    std::fs::write(path("securityfs/profiles"), "docker-default (enforce)\n").unwrap();
    let script = parser.replace("DIR", dir.path().to_str().unwrap());
    std::fs::write(path("parser"), format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(path("parser"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let profiles = Profiles {
        enabled: path("enabled"),
        securityfs: path("securityfs"),
        policy: path("policy"),
        parser: path("parser"),
        loading: tokio::sync::Mutex::new(()),
    };
    Machine { dir, profiles }
}

const LOADS: &str =
    "cat > DIR/text; echo \"$@\" >> DIR/calls; echo 'cricket-default (enforce)' >> DIR/securityfs/profiles";

#[test]
fn the_kernels_list_is_read_and_off_is_off() {
    let machine = machine(LOADS);
    let write = |name: &str, text: &str| std::fs::write(machine.dir.path().join(name), text).unwrap();
    write("securityfs/profiles", "docker-default (enforce)\na b (c) (complain)\n");
    let loaded = machine.profiles.state().unwrap().unwrap().loaded;
    assert_eq!(loaded.into_iter().collect::<Vec<_>>(), ["a b (c)", "docker-default"]);
    std::fs::remove_file(machine.dir.path().join("securityfs/profiles")).unwrap();
    assert!(machine.profiles.state().is_err(), "on, but unreadable, is not off");
    write("enabled", "N\n");
    assert_eq!(machine.profiles.state().unwrap(), None);
    write("enabled", "Y\n");
    std::fs::remove_dir_all(machine.dir.path().join("securityfs")).unwrap();
    assert_eq!(machine.profiles.state().unwrap(), None, "without securityfs nothing can be enforced");
    std::fs::remove_file(machine.dir.path().join("enabled")).unwrap();
    assert_eq!(machine.profiles.state().unwrap(), None);
}

#[tokio::test]
async fn the_default_profile_is_loaded_once_and_again_when_it_is_gone() {
    let machine = machine(LOADS);
    let calls = || std::fs::read_to_string(machine.dir.path().join("calls")).unwrap_or_default();
    let all = futures_util::future::join_all((0..8).map(|_| machine.profiles.with_default())).await;
    for state in all {
        assert!(state.unwrap().unwrap().loaded.contains(DEFAULT_PROFILE));
    }
    assert_eq!(calls(), "-Kr\n");
    let text = std::fs::read_to_string(machine.dir.path().join("text")).unwrap();
    assert!(text.starts_with("@{PROC}=/proc/\n") && text.contains("profile cricket-default "), "{text}");
    // The distribution's policy was reloaded.
    std::fs::write(machine.dir.path().join("securityfs/profiles"), "docker-default (enforce)\n").unwrap();
    assert!(machine.profiles.with_default().await.unwrap().unwrap().loaded.contains(DEFAULT_PROFILE));
    assert_eq!(calls(), "-Kr\n-Kr\n");
    std::fs::write(machine.dir.path().join("enabled"), "N\n").unwrap();
    assert_eq!(machine.profiles.with_default().await.unwrap(), None);
    assert_eq!(calls(), "-Kr\n-Kr\n", "nothing is loaded where AppArmor is off");
}

#[tokio::test]
async fn a_parser_that_fails_is_told_with_what_it_said() {
    let broken = machine("cat > /dev/null; echo 'syntax error in line 3' >&2; exit 1");
    let error = broken.profiles.with_default().await.expect_err("loaded").to_string();
    assert!(error.contains("syntax error in line 3"), "{error}");
    let missing = machine(LOADS);
    std::fs::remove_file(missing.dir.path().join("parser")).unwrap();
    assert!(matches!(missing.profiles.with_default().await, Err(AppArmorError::Run { .. })));
    // A parser that says it did and did not.
    let idle = machine("cat > /dev/null");
    assert!(!idle.profiles.with_default().await.unwrap().unwrap().loaded.contains(DEFAULT_PROFILE));
}

#[test]
fn the_profile_builds_on_what_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let bare = Ground::of(dir.path(), "unconfined\n");
    assert_eq!(bare, Ground::default());
    for (folder, file) in [("tunables", "global"), ("abstractions", "base")] {
        std::fs::create_dir(dir.path().join(folder)).unwrap();
        std::fs::write(dir.path().join(folder).join(file), "").unwrap();
    }
    let full = Ground::of(dir.path(), "/usr/bin/cricket (enforce)\n");
    assert_eq!(full, Ground { tunables: true, base: true, daemon: Some("/usr/bin/cricket".into()) });
    assert_eq!(Ground::of(dir.path(), "a\" b (enforce)").daemon, None);
    for (ground, includes) in [(bare, 0), (full, 2)] {
        let text = profile::text(&ground);
        assert_eq!(text.matches('{').count(), text.matches('}').count());
        assert_eq!(text.matches("#include").count(), includes, "{text}");
        assert_eq!(text.contains("peer=\"/usr/bin/cricket\""), includes == 2);
    }
}

/// The distribution's own parser, which compiles without a kernel that has AppArmor.
#[tokio::test]
#[ignore = "needs apparmor_parser, of the package apparmor"]
async fn the_parser_takes_both_forms_of_the_profile() {
    let policy = Path::new("/etc/apparmor.d");
    for ground in [Ground::default(), Ground::of(policy, "some-daemon (enforce)\n")] {
        let output = exec::run(Exec {
            program: "apparmor_parser".into(),
            args: ["-Q", "-K", "-T", "--warn=all", "--policy-features"]
                .into_iter()
                .map(Into::into)
                .chain(std::iter::once(policy.join("abi/3.0").into()))
                .collect(),
            env: vec![("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into())],
            stdin: profile::text(&ground).into_bytes(),
            timeout: Duration::from_secs(60),
            output_cap: 64 * 1024,
        })
        .await
        .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{ground:?}: {stderr}");
    }
}
