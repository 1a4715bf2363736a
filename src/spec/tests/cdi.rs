//! What CDI devices make of a spec.

use super::*;
use crate::devices::cdi::{Hook, HookPoint, InjectedNode, Injection, Mount};

fn case(injection: Injection) -> Case {
    let mut case = Case { cdi: injection, ..Case::default() };
    case.security().run_as_user = Some(cri::Int64Value { value: 1000 });
    case
}

fn node(path: &str, kind: DeviceKind, access: &str) -> InjectedNode {
    let (major, minor) = if kind == DeviceKind::Fifo { (0, 0) } else { (195, 7) };
    InjectedNode { path: path.into(), kind, major, minor, mode: None, uid: None, gid: None, access: access.into() }
}

#[test]
fn nodes_belong_to_the_user_and_are_allowed_as_the_file_says() {
    let owned =
        InjectedNode { mode: Some(0o640), uid: Some(0), gid: Some(44), ..node("/dev/b", DeviceKind::Block, "r") };
    let nodes = vec![
        node("/dev/a", DeviceKind::Char, "rw"),
        owned,
        node("/dev/none", DeviceKind::Char, ""),
        node("/dev/pipe", DeviceKind::Fifo, "rwm"),
    ];
    let mut case = case(Injection { nodes, ..Injection::default() });
    let fuse = super::node("/dev/a", DeviceKind::Char, 10, 229);
    case.devices = vec![ResolvedDevice { node: fuse, access: "m".into() }];
    let built = case.built();
    let seen: Vec<_> = linux(&built)
        .devices()
        .iter()
        .flatten()
        .map(|d| (d.path().display().to_string(), d.typ().as_str().to_owned(), d.file_mode(), d.uid(), d.gid()))
        .collect();
    let want =
        |path: &str, kind: &str, mode, uid, gid| (path.to_owned(), kind.to_owned(), Some(mode), Some(uid), Some(gid));
    assert_eq!(
        seen,
        [
            want("/dev/a", "c", 0o666, 1000, 1000),
            want("/dev/b", "b", 0o640, 0, 44),
            want("/dev/none", "c", 0o666, 1000, 1000),
            want("/dev/pipe", "p", 0o666, 1000, 1000),
        ]
    );
    let rules = linux(&built).resources().as_ref().unwrap().devices().clone().unwrap();
    let rules: Vec<_> = rules.iter().map(|r| (r.allow(), r.major(), r.access().clone().unwrap())).collect();
    let rule = |allow, major, access: &str| (allow, major, access.to_owned());
    let want =
        [rule(false, None, "rwm"), rule(true, Some(10), "m"), rule(true, Some(195), "rw"), rule(true, Some(195), "r")];
    assert_eq!(rules, want);
}

#[test]
fn cve_2025_23266_a_hook_has_an_environment_of_its_own() {
    let hook = |point, env: &[&str]| Hook {
        point,
        path: "/usr/bin/hook".into(),
        args: vec!["hook".into()],
        env: env.iter().map(|entry| (*entry).to_owned()).collect(),
        timeout: Some(5),
    };
    let points = [
        HookPoint::Prestart,
        HookPoint::CreateRuntime,
        HookPoint::CreateContainer,
        HookPoint::StartContainer,
        HookPoint::Poststart,
        HookPoint::Poststop,
    ];
    let mut hooks: Vec<Hook> = points.iter().map(|point| hook(*point, &[])).collect();
    hooks.push(hook(HookPoint::Poststop, &["PATH=/vendor", "A=1"]));
    let mut case = case(Injection { hooks, ..Injection::default() });
    case.image_env = vec!["LD_PRELOAD=/evil.so".into()];
    let built = case.built();
    let json = serde_json::to_value(built.spec.hooks().as_ref().unwrap()).unwrap();
    for name in ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"] {
        let env = json[name][0]["env"].as_array().unwrap_or_else(|| panic!("{name}: {json}"));
        assert_eq!(env, &["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "{name}");
    }
    assert_eq!(json["poststop"][1]["env"], serde_json::json!(["PATH=/vendor", "A=1"]));
    assert!(!json.to_string().contains("LD_PRELOAD"));
    assert!(
        process(&built).env().as_ref().unwrap().contains(&"LD_PRELOAD=/evil.so".to_owned()),
        "it is the container's"
    );
}

#[test]
fn variables_groups_and_mounts_replace_those_of_the_same_name() {
    let mount = |source: &str, target: &str| Mount {
        source: source.into(),
        target: target.into(),
        kind: String::new(),
        options: vec!["rbind".into(), "ro".into()],
    };
    let mut case = case(Injection {
        env: vec!["ASKED=by the device".into(), "NEW=1=2".into()],
        mounts: vec![mount("/vendor", "/data"), mount("/lib", "/data/deep/lib"), mount("/x", "/proc/driver/x")],
        additional_gids: vec![44, 7, 44],
        ..Injection::default()
    });
    case.config.envs = vec![pair("ASKED", b"by the request")];
    case.security().supplemental_groups = vec![7];
    case.mount("/data");
    let built = case.built();
    let env = process(&built).env().clone().unwrap();
    assert!(env.contains(&"ASKED=by the device".to_owned()) && env.contains(&"NEW=1=2".to_owned()), "{env:?}");
    assert!(!env.contains(&"ASKED=by the request".to_owned()), "{env:?}");
    assert_eq!(process(&built).user().additional_gids(), &Some(vec![1000, 7, 50_000, 44]));
    assert_eq!(built.user.supplemental_groups, [1000, 7, 50_000, 44], "the status says what is");
    let mounts = built.spec.mounts().clone().unwrap();
    let at = |target: &str| mounts.iter().filter(|m| m.destination() == Path::new(target)).collect::<Vec<_>>();
    assert_eq!(at("/data").len(), 1);
    assert_eq!(at("/data")[0].source().as_deref(), Some(Path::new("/vendor")));
    assert_eq!(at("/data")[0].typ().as_deref(), Some("bind"));
    let place = |target: &str| mounts.iter().position(|m| m.destination() == Path::new(target)).unwrap();
    assert!(place("/data") < place("/data/deep/lib"));
    assert!(built.spec.hooks().is_none());
}
