//! Tests of the room `devices/cdi`: files in folders, and what comes of them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::*;
use crate::devices::DeviceKind;

/// Folders with files, as `name: text`.
struct Node {
    dir: tempfile::TempDir,
    cdi: Cdi,
}

fn node(files: &[(&str, &str)]) -> Node {
    let dir = tempfile::tempdir().unwrap();
    let node = Node { cdi: Cdi::new(vec![dir.path().join("etc"), dir.path().join("run")]), dir };
    std::fs::create_dir(node.path("etc")).unwrap();
    for (name, text) in files {
        node.write(name, text);
    }
    node
}

impl Node {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    }

    fn resolve(&self, names: &[&str]) -> Result<Injection, CdiError> {
        let names: Vec<_> = names.iter().map(|name| QualifiedName::parse("name", name).unwrap()).collect();
        self.cdi.resolve(&names)
    }

    fn env(&self, names: &[&str]) -> Vec<String> {
        self.resolve(names).unwrap().env
    }

    /// Why the last look passed this file over.
    fn complaint(&self, name: &str) -> Option<String> {
        let path = self.path(name);
        self.cdi.report().bad.iter().find(|(bad, _)| *bad == path).map(|(_, why)| why.clone())
    }
}

fn simple(kind: &str, device: &str, value: &str) -> String {
    format!(
        r#"{{"cdiVersion":"0.5.0","kind":"{kind}","containerEdits":{{"env":["SHARED={value}"]}},
            "devices":[{{"name":"{device}","containerEdits":{{"env":["OWN={value}"]}}}}]}}"#
    )
}

/// Everything that the format has, as a vendor writes it.
const WHOLE: &str = r"---
cdiVersion: '0.7.0'
kind: vendor.example/gpu.x
annotations: {note: text}
containerEdits:
  env: [ALL=devices]
  hooks:
  - hookName: createContainer
    path: /usr/bin/vendor-hook
    args: [vendor-hook, update-ldcache, '']
    env: [NO_PIVOT=1]
    timeout: 5
  mounts:
  - hostPath: /usr/lib/vendor
    containerPath: /usr/lib/vendor
    options: [ro, nosuid, nodev, rbind, rprivate]
devices:
- name: 007
  annotations: {note: text}
  containerEdits:
    env: [CARD=7]
    deviceNodes:
    - path: /dev/card7
      hostPath: /dev/null
      fileMode: 0660
      uid: 0
      gid: 44
      permissions: rw
    - {path: /dev/made, type: b, major: 240, minor: 0x10, permissions: none}
    - {path: /dev/pipe, type: p}
    additionalGids: [44, 0, 44]
    intelRdt: {closID: gold, l3CacheSchema: 'L3:0=f', enableCMT: true}
";

#[test]
fn everything_that_a_file_can_say_arrives() {
    let node = node(&[("run/vendor.yaml", WHOLE)]);
    let got = node.resolve(&["vendor.example/gpu.x=007"]).unwrap();
    assert_eq!(got.env, ["ALL=devices", "CARD=7"]);
    let made = |path: &str, kind, major, minor, access: &str| InjectedNode {
        path: path.into(),
        kind,
        major,
        minor,
        mode: None,
        uid: None,
        gid: None,
        access: access.into(),
    };
    let card = InjectedNode {
        mode: Some(0o660),
        uid: Some(0),
        gid: Some(44),
        ..made("/dev/card7", DeviceKind::Char, 1, 3, "rw")
    };
    let block = made("/dev/made", DeviceKind::Block, 240, 16, "");
    assert_eq!(got.nodes, [card, block, made("/dev/pipe", DeviceKind::Fifo, 0, 0, "rwm")]);
    assert_eq!((got.mounts.len(), got.mounts[0].target.as_path()), (1, Path::new("/usr/lib/vendor")));
    let hook = &got.hooks[0];
    assert_eq!((hook.point, hook.path.as_path()), (HookPoint::CreateContainer, Path::new("/usr/bin/vendor-hook")));
    assert_eq!((hook.args.len(), hook.env.as_slice(), hook.timeout), (3, &["NO_PIVOT=1".to_owned()][..], Some(5)));
    assert_eq!(got.additional_gids, [44]);
    let rdt = got.rdt.unwrap();
    assert_eq!((rdt.clos_id.as_deref(), rdt.enable_cmt), (Some("gold"), Some(true)));
    assert!(node.cdi.report().bad.is_empty(), "{:?}", node.cdi.report());
}

#[test]
fn what_a_file_wants_for_all_its_devices_comes_once_and_first() {
    let two = r#"{"cdiVersion":"0.5.0","kind":"v/c","containerEdits":{"env":["ALL=1"]},"devices":[
        {"name":"0","containerEdits":{"env":["A=0"]}},{"name":"1","containerEdits":{"env":["A=1"]}}]}"#;
    let node = node(&[("etc/a.json", two), ("etc/b.json", &simple("v/d", "0", "b"))]);
    assert_eq!(node.env(&["v/c=1", "v/d=0", "v/c=0"]), ["ALL=1", "A=1", "SHARED=b", "OWN=b", "A=0"]);
    assert_eq!(node.resolve(&[]).unwrap(), Injection::default());
}

#[test]
fn later_folders_win_and_one_folder_may_not_contradict_itself() {
    let node = node(&[
        ("etc/a.json", &simple("v/c", "0", "etc-a")),
        ("etc/b.json", &simple("v/c", "0", "etc-b")),
        ("etc/c.json", &simple("v/c", "1", "etc-c")),
    ]);
    let error = node.resolve(&["v/c=0"]).expect_err("ambiguous").to_string();
    assert!(error.contains("etc/a.json") && error.contains("etc/b.json") && error.contains("v/c=0"), "{error}");
    assert!(node.complaint("etc/a.json").is_some_and(|why| why.contains("etc/b.json")));
    assert_eq!(node.env(&["v/c=1"]), ["SHARED=etc-c", "OWN=etc-c"]);
    node.write("run/x.json", &simple("v/c", "0", "run"));
    assert_eq!(node.env(&["v/c=0"]), ["SHARED=run", "OWN=run"]);
    assert!(node.cdi.report().bad.is_empty(), "{:?}", node.cdi.report());
}

#[test]
fn a_missing_device_is_told_with_the_folders_and_the_bad_files() {
    let node = node(&[("etc/bad.json", "{"), ("etc/good.json", &simple("v/c", "0", "x"))]);
    let error = node.resolve(&["v/c=0", "v/c=gone"]).expect_err("it is not there").to_string();
    for part in ["v/c=gone", "/etc, ", "/run", "bad.json"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(node.env(&["v/c=0"]).len(), 2, "a bad file takes no other down");
    let empty = Cdi::new(Vec::new());
    let error = empty.resolve(&[QualifiedName::parse("", "v/c=0").unwrap()]).expect_err("nothing").to_string();
    assert!(error.contains("no folder"), "{error}");
}

#[test]
fn a_file_that_changes_is_read_again_and_one_that_goes_is_forgotten() {
    let node = node(&[("etc/a.json", &simple("v/c", "0", "first"))]);
    assert_eq!(node.env(&["v/c=0"])[1], "OWN=first");
    node.write("etc/a.json", &simple("v/c", "0", "other"));
    assert_eq!(node.env(&["v/c=0"])[1], "OWN=other");
    std::fs::remove_file(node.path("etc/a.json")).unwrap();
    assert!(node.resolve(&["v/c=0"]).is_err());
    node.write("more/a.json", &simple("v/c", "0", "more"));
    node.cdi.set_dirs(vec![node.path("more")]);
    assert_eq!(node.env(&["v/c=0"])[1], "OWN=more");
}

#[test]
fn only_the_administrators_regular_files_of_bounded_size_are_read() {
    let node = node(&[("etc/open.json", &simple("v/open", "0", "x")), ("etc/.hidden.txt", "{"), ("etc/d.json/x", "")]);
    std::fs::set_permissions(node.path("etc/open.json"), std::fs::Permissions::from_mode(0o646)).unwrap();
    node.write("etc/large.json", &" ".repeat(4 * 1024 * 1024 + 1));
    rustix::fs::mkfifoat(rustix::fs::CWD, node.path("etc/fifo.yaml"), 0o600.into()).unwrap();
    std::os::unix::fs::symlink("/dev/zero", node.path("etc/zero.json")).unwrap();
    std::os::unix::fs::symlink("/nowhere", node.path("etc/dangling.json")).unwrap();
    assert!(node.resolve(&["v/open=0"]).is_err());
    for (name, why) in [
        ("open.json", "0646"),
        ("large.json", "bytes"),
        ("fifo.yaml", "regular"),
        ("zero.json", "regular"),
        ("dangling.json", "No such file"),
    ] {
        let complaint = node.complaint(&format!("etc/{name}")).unwrap_or_default();
        assert!(complaint.contains(why), "{name}: {complaint:?}");
    }
    assert_eq!(node.cdi.report().bad.len(), 5, "{:?}", node.cdi.report());
}

#[test]
fn cve_2025_23266_and_its_kin_files_that_are_wrong_are_refused_whole() {
    let file = |version: &str, edits: &str| {
        format!(r#"{{"cdiVersion":"{version}","kind":"v/c","devices":[{{"name":"d","containerEdits":{{{edits}}}}}]}}"#)
    };
    let cases = [
        (file("2.0.0", r#""env":["A=1"]"#), "cdiVersion"),
        (file("", r#""env":["A=1"]"#), "cdiVersion"),
        (file("0.3.0", r#""deviceNodes":[{"path":"/dev/x","hostPath":"/dev/null"}]"#), "0.5.0"),
        (file("0.3.0", r#""mounts":[{"hostPath":"/a","containerPath":"/a","type":"bind"}]"#), "0.4.0"),
        (file("0.6.0", r#""additionalGids":[1]"#), "0.7.0"),
        (file("1.0.0", r#""netDevices":[]"#), "1.1.0"),
        (file("1.1.0", r#""intelRdt":{"enableCMT":true}"#), "enableCMT"),
        (file("0.7.0", r#""intelRdt":{"closID":"../x"}"#), "closID"),
        (file("0.7.0", ""), "no containerEdits"),
        (file("0.7.0", r#""evn":["A=1"]"#), "evn"),
        (file("0.7.0", r#""env":["A"]"#), "NAME=value"),
        (file("0.7.0", r#""env":["=A"]"#), "NAME=value"),
        (file("0.7.0", r#""env":["A=\u0000"]"#), "NUL"),
        (file("0.7.0", r#""deviceNodes":[{"path":"dev/x"}]"#), "dev/x"),
        (file("0.7.0", r#""deviceNodes":[{"path":"/dev/../x"}]"#), ".."),
        (file("0.7.0", r#""deviceNodes":[{"path":"/dev/x","type":"d"}]"#), "type"),
        (file("0.7.0", r#""deviceNodes":[{"path":"/dev/x","permissions":"rx"}]"#), "rx"),
        (file("0.7.0", r#""deviceNodes":[{"path":"/dev/x","fileMode":33188}]"#), "fileMode"),
        (file("0.7.0", r#""deviceNodes":[{"path":"/dev/x","major":4294967296}]"#), "major"),
        (file("0.7.0", r#""deviceNodes":[{"path":"/dev/x","uid":-1}]"#), "uid"),
        (file("0.7.0", r#""mounts":[{"hostPath":"/a","containerPath":"/"}]"#), "containerPath"),
        (file("0.7.0", r#""mounts":[{"hostPath":"/a","containerPath":"/proc/."}]"#), "containerPath"),
        (file("0.7.0", r#""hooks":[{"hookName":"onStart","path":"/x"}]"#), "onStart"),
        (file("0.7.0", r#""hooks":[{"hookName":"poststop","path":"x"}]"#), "absolute"),
        (file("0.7.0", r#""hooks":[{"hookName":"poststop","path":"/x","timeout":0}]"#), "timeout"),
        (file("0.7.0", r#""hooks":[{"hookName":"poststop","path":"/x","env":["LD_PRELOAD"]}]"#), "NAME=value"),
        (simple("v", "d", "x"), "kind"),
        (simple("v/c.d", "d", "x"), "0.6.0"),
        (simple("v/c", "d/e", "x"), "d/e"),
        (r#"{"cdiVersion":"0.5.0","kind":"v/c","devices":[]}"#.to_owned(), "devices"),
        ("[]".to_owned(), ""),
    ];
    for (text, part) in cases {
        let node = node(&[("etc/a.json", &text)]);
        node.cdi.refresh();
        let complaint = node.complaint("etc/a.json").unwrap_or_else(|| panic!("taken: {text}"));
        assert!(complaint.contains(part), "{text}: {complaint}");
    }
    let twice = r#"{"cdiVersion":"0.5.0","kind":"v/c","devices":[
        {"name":"a","containerEdits":{"env":["A=0"]}},{"name":"a","containerEdits":{"env":["A=1"]}}]}"#;
    let node = node(&[("etc/a.json", twice)]);
    node.cdi.refresh();
    assert!(node.complaint("etc/a.json").is_some_and(|why| why.contains("twice")));
}

#[test]
fn what_the_runtime_would_pass_over_in_silence_is_refused_by_name() {
    let edits = r#""netDevices":[{"hostInterfaceName":"eth1","name":"net1"}]"#;
    let text =
        format!(r#"{{"cdiVersion":"1.1.0","kind":"v/c","devices":[{{"name":"d","containerEdits":{{{edits}}}}}]}}"#);
    let node = node(&[("etc/a.json", &text)]);
    let error = node.resolve(&["v/c=d"]).expect_err("given").to_string();
    assert!(error.contains("netDevices") && error.contains("v/c=d"), "{error}");
}

#[test]
fn a_node_that_the_host_lacks_is_named() {
    let edits = |node: &str| {
        format!(
            r#"{{"cdiVersion":"0.5.0","kind":"v/c","devices":[{{"name":"d","containerEdits":{{"deviceNodes":[{node}]}}}}]}}"#
        )
    };
    for (text, part) in [
        (edits(r#"{"path":"/dev/x","hostPath":"/dev/no-such-node"}"#), "/dev/no-such-node"),
        (edits(r#"{"path":"/dev/x","hostPath":"/dev/null","type":"b"}"#), "type"),
        (edits(r#"{"path":"/dev/x","hostPath":"/etc/passwd"}"#), "/etc/passwd"),
    ] {
        let node = node(&[("etc/a.json", &text)]);
        let error = node.resolve(&["v/c=d"]).expect_err("given");
        let error = crate::telemetry::chain(&error).to_string();
        assert!(error.contains(part) && error.contains("v/c=d"), "{error}");
    }
    // Numbers that the file gives are taken without a look at the host.
    let node = node(&[("etc/a.json", &edits(r#"{"path":"/dev/x","type":"c","major":10}"#))]);
    assert_eq!(node.resolve(&["v/c=d"]).unwrap().nodes[0].major, 10);
}
