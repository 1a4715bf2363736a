//! Which texts are network configurations, and what is read from them.

use super::*;

fn list(text: &str) -> Result<NetworkList, ConfError> {
    parse_list(text.as_bytes(), &|_| Ok(Vec::new()))
}

#[test]
fn a_list_with_everything() {
    let parsed = list(
        r#"{"name": "pods", "cniVersion": "0.4.0", "cniVersions": ["0.3.1", "1.1.0", "9.9.9"], "disableGC": "true", "disableCheck": true,
            "plugins": [{"type": "bridge"}, {"type": "portmap", "capabilities": {"portMappings": true, "dns": false}}]}"#,
    )
    .unwrap();
    assert_eq!((parsed.name.as_str(), parsed.version, parsed.disable_gc), ("pods", Version::V1_1_0, true));
    assert_eq!(parsed.offered, [Version::V0_3_1, Version::V0_4_0, Version::V1_1_0]);
    assert!(parsed.disable_check);
    assert_eq!(parsed.plugins[0].kind, "bridge");
    assert_eq!(parsed.plugins[1].capabilities, BTreeSet::from(["portMappings".to_owned()]));
}

#[test]
fn versions_are_negotiated() {
    for (keys, version) in [
        (r#""cniVersion": "0.3.1""#, Some(Version::V0_3_1)),
        (r#""cniVersion": "1.0.0""#, Some(Version::V1_0_0)),
        (r#""cniVersions": ["1.0.0", "0.4.0"]"#, Some(Version::V1_0_0)),
        (r#""cniVersion": "1.2.0", "cniVersions": ["1.1.0"]"#, Some(Version::V1_1_0)),
        (r#""cniVersion": "0.4.0", "cniVersions": ["1.2.0", "2.0.0"]"#, Some(Version::V0_4_0)),
        (r#""cniVersion": "0.2.0""#, None),
        (r#""cniVersion": "1.2.0""#, None),
        (r#""cniVersion": """#, None),
        (r#""cniVersion": 1"#, None),
        (r#""cniVersions": [1]"#, None),
        (r#""cniVersions": []"#, None),
        (r#""disableCheck": true"#, None),
    ] {
        let text = format!(r#"{{"name": "a", {keys}, "plugins": [{{"type": "bridge"}}]}}"#);
        assert_eq!(list(&text).ok().map(|list| list.version), version, "{keys}");
    }
}

#[test]
fn a_list_that_is_spoken_of_in_one_version_stays_in_it() {
    let text = r#"{"name": "a", "cniVersions": ["0.4.0", "1.1.0"], "x": {"y": [1]}, "plugins": [{"type": "bridge"}]}"#;
    let parsed = list(text).unwrap();
    assert_eq!(parsed.clone().at(Version::V1_1_0), parsed);
    let older = parsed.at(Version::V0_4_0);
    let again = parse_list(&older.bytes, &|_| Ok(Vec::new())).unwrap();
    assert_eq!((again.version, again.offered.len()), (Version::V0_4_0, 1));
    let object: Value = serde_json::from_slice(&older.bytes).unwrap();
    assert_eq!(object["x"], json!({"y": [1]}));
}

#[test]
fn nested_without_end() {
    let deep =
        format!(r#"{{"name": "a", "cniVersion": "1.0.0", "plugins": [{{"type": "a", "x": {}"#, "[".repeat(100_000));
    assert!(matches!(list(&deep), Err(ConfError::Json(_))));
}

#[test]
fn what_is_not_legal_is_refused_with_its_reason() {
    for (text, reason) in [
        ("", "not JSON"),
        ("[]", "not a JSON object"),
        (r#"{"cniVersion": "1.0.0", "plugins": [{"type": "a"}]}"#, r#"no "name""#),
        (r#"{"name": "../a", "cniVersion": "1.0.0", "plugins": [{"type": "a"}]}"#, "name \"../a\""),
        (r#"{"name": 1, "cniVersion": "1.0.0", "plugins": [{"type": "a"}]}"#, "\"name\" has the wrong type"),
        (r#"{"name": "a", "cniVersion": "1.0.0"}"#, "no plugins"),
        (r#"{"name": "a", "cniVersion": "1.0.0", "loadOnlyInlinedPlugins": true}"#, "no \"plugins\""),
        (r#"{"name": "a", "cniVersion": "1.0.0", "plugins": []}"#, "no plugins"),
        (r#"{"name": "a", "cniVersion": "1.0.0", "plugins": {}}"#, "\"plugins\" has the wrong type"),
        (r#"{"name": "a", "cniVersion": "1.0.0", "plugins": ["a"]}"#, "not a JSON object"),
        (r#"{"name": "a", "cniVersion": "1.0.0", "plugins": [{}]}"#, "no \"type\""),
        (r#"{"name": "a", "cniVersion": "1.0.0", "plugins": [{"type": "loopback"}]}"#, "only the loopback plugin"),
        (r#"{"name": "a", "cniVersion": "1.0.0", "disableGC": 1, "plugins": [{"type": "a"}]}"#, "\"disableGC\""),
        (r#"{"name": "a", "cniVersion": "1.0.0", "disableCheck": 1, "plugins": [{"type": "a"}]}"#, "\"disableCheck\""),
        (r#"{"name": "a", "cniVersion": "1.0.0", "plugins": [{"type": "a", "ipam": {"type": 5}}]}"#, "\"ipam.type\""),
        (
            r#"{"name": "a", "cniVersion": "1.0.0", "plugins": [{"type": "a", "ipam": {"type": "a"}}]}"#,
            "plugin \"a\" is its own ipam",
        ),
        (
            r#"{"name": "a", "cniVersion": "1.0.0", "plugins": [{"type": "a", "capabilities": {"x": 1}}]}"#,
            "\"capabilities\"",
        ),
    ] {
        let error = list(text).unwrap_err().to_string();
        assert!(error.starts_with(reason), "{text}: {error}");
    }
    let many = vec![r#"{"type": "a"}"#; PLUGINS_MAX + 1].join(",");
    let many = format!(r#"{{"name": "a", "cniVersion": "1.0.0", "plugins": [{many}]}}"#);
    assert!(matches!(list(&many), Err(ConfError::TooManyPlugins)));
}

#[test]
fn cve_2021_20206_a_plugin_is_a_program_s_name_and_never_a_path() {
    for kind in ["", ".", "..", "/bin/sh", "../../bin/sh", "a/b", "a\\\\b", "a\\u0000", "a\\n"] {
        let text = format!(r#"{{"name": "a", "cniVersion": "1.0.0", "plugins": [{{"type": "{kind}"}}]}}"#);
        assert!(matches!(list(&text), Err(ConfError::PluginType(_))), "{kind:?} was taken");
        let text =
            text.replace(&format!(r#""type": "{kind}""#), &format!(r#""type": "a", "ipam": {{"type": "{kind}"}}"#));
        // Without a name there is no ipam.
        assert!(kind.is_empty() || matches!(list(&text), Err(ConfError::PluginType(_))), "ipam {kind:?} was taken");
    }
}

#[test]
fn a_single_plugin_is_a_list_of_one() {
    let text = br#"{"name": "a", "cniVersion": "0.3.1", "type": "bridge", "ipam": {"type": "host-local"}}"#;
    let single = parse_single(text).unwrap();
    assert_eq!((single.name.as_str(), single.version, single.plugins.len()), ("a", Version::V0_3_1, 1));
    // What goes to the cache is a list that reads back as the same.
    let again = parse_list(&single.bytes, &|_| panic!("everything is inlined")).unwrap();
    assert_eq!(again.plugins, single.plugins);
    assert!(parse_single(br#"{"name": "a", "cniVersion": "0.3.1", "plugins": [{"type": "bridge"}]}"#).is_ok());
    assert!(parse_single(br#"{"name": "a", "cniVersion": "0.3.1"}"#).is_err());
    assert!(parse_single(br#"{"name": "a", "type": "bridge"}"#).is_err());
}

#[test]
fn plugins_of_their_own_files_follow_the_inlined_ones() {
    let extra = || plugin(&json!({"type": "firewall"})).unwrap();
    let text = br#"{"name": "a", "cniVersion": "1.1.0", "plugins": [{"type": "bridge"}]}"#;
    let merged = parse_list(text, &|name| {
        assert_eq!(name, "a");
        Ok(vec![extra()])
    })
    .unwrap();
    let kinds = |list: &NetworkList| list.plugins.iter().map(|p| p.kind.clone()).collect::<Vec<_>>();
    assert_eq!(kinds(&merged), ["bridge", "firewall"]);
    let again = parse_list(&merged.bytes, &|_| panic!("everything is inlined")).unwrap();
    assert_eq!(kinds(&again), ["bridge", "firewall"]);
    let none = parse_list(br#"{"name": "a", "cniVersion": "1.1.0"}"#, &|_| Ok(vec![extra()])).unwrap();
    assert_eq!(kinds(&none), ["firewall"]);
}
