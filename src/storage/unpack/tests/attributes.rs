//! Extended attributes: what is described twice has those of its last entry, and nothing has any that no entry gave it.

use super::model::{CAPABILITY, access_list, in_memory};
use super::*;
use std::path::Path;

/// Names of the attributes at a path of the layer, in order, with `=` and the value where that is short text.
fn attributes(bench: &Bench, path: &str) -> Vec<String> {
    let tree = scan(&bench.diff()).expect("it can be read");
    let shown = |(name, value): (&Vec<u8>, &Vec<u8>)| {
        let (name, value) = (String::from_utf8_lossy(name), String::from_utf8_lossy(value));
        if value.len() < 5 { format!("{name}={value}") } else { name.into_owned() }
    };
    tree[Path::new(path)].xattrs.iter().map(shown).collect()
}

fn with(layer: Layer, attributes: &[(&str, &[u8])]) -> Layer {
    let named: Vec<_> = attributes.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), *value)).collect();
    layer.pax(&named.iter().map(|(name, value)| (name.as_str(), *value)).collect::<Vec<_>>())
}

#[test]
fn a_directory_described_twice_has_the_attributes_of_the_last_entry() {
    let bench = taken(|_| {
        let layer = with(Layer::new(), &[("user.root", b"1")]).dir("./");
        let layer = with(layer, &[("user.a", b"1"), ("user.b", b"1")]).dir("d").file("d/f", "");
        let layer = with(layer, &[("user.a", b"1")]).dir("bare").dir("bare");
        // One that was implied, and one that is named through a link.
        let layer = with(layer.file("i/f", ""), &[("user.c", b"1")]).dir("i").symlink("l", "i");
        let layer = with(layer, &[("user.d", b"1")]).dir("l/../i");
        let layer = with(layer, &[("user.b", b"2"), ("user.e", b"2")]).dir("d/");
        with(layer, &[("user.top", b"2")]).dir(".").done()
    });
    assert_eq!(attributes(&bench, ""), ["user.top=2"]);
    assert_eq!(attributes(&bench, "d"), ["user.b=2", "user.e=2"]);
    assert_eq!(attributes(&bench, "bare"), [""; 0]);
    assert_eq!(attributes(&bench, "i"), ["user.d=1"]);
}

/// What only root may set; and what whiteouts said of a directory, which no later entry takes back.
#[test]
#[ignore = "needs root"]
fn capabilities_and_access_lists_go_with_their_entry_and_opacity_stays() -> anyhow::Result<()> {
    in_memory(|| {
        let list = access_list(0o755);
        let all: [(&str, &[u8]); 4] = [
            ("security.capability", CAPABILITY),
            ("trusted.some", b"1"),
            ("system.posix_acl_access", &list),
            ("system.posix_acl_default", &list),
        ];
        let bench = taken(|_| {
            let layer = with(Layer::new(), &all).dir("d");
            let layer = with(layer, &all).dir("whole").file("d/.wh..wh..opq", "");
            let layer = with(layer, &all[..1]).dir("part");
            with(layer.dir("d"), &all[1..2]).dir("part").done()
        });
        assert_eq!(attributes(&bench, "d"), ["trusted.overlay.opaque=y"]);
        assert_eq!(attributes(&bench, "part"), ["trusted.some=1"]);
        assert_eq!(attributes(&bench, "whole").len(), 4);
        assert_eq!(scan(&bench.diff())?[Path::new("d")].mode, 0o755);
        Ok(())
    })
}

/// The kernel gives what is made in a directory the access list that this one has for it. No entry says so.
#[test]
#[ignore = "needs root"]
fn no_access_list_is_inherited() -> anyhow::Result<()> {
    in_memory(|| {
        let list = access_list(0o750);
        let bench = taken(|_| {
            let layer = with(Layer::new(), &[("system.posix_acl_default", &list)]).dir("d");
            let layer = with(
                layer.file("d/file", "x").dir("d/dir").entry(b'6', "d/fifo", "").file("d/im/plied", ""),
                &[("system.posix_acl_access", &access_list(0o644))],
            );
            layer.file("d/own", "").dir("d").file("d/later", "").done()
        });
        let tree = scan(&bench.diff())?;
        for (path, mode) in
            [("file", 0o644), ("dir", 0o755), ("fifo", 0o644), ("im", 0o755), ("im/plied", 0o644), ("later", 0o644)]
        {
            let facts = &tree[&Path::new("d").join(path)];
            assert!(facts.xattrs.is_empty() && facts.mode == mode, "{path}: {facts:?}");
        }
        assert_eq!(attributes(&bench, "d/own"), ["system.posix_acl_access"]);
        assert_eq!(attributes(&bench, "d"), [""; 0]);
        Ok(())
    })
}
