//! What a registry, a client or an operator's file says about images, one format by the first byte: nothing panics, memory is
//! in proportion to the text, and what was understood means the same when it is written down and read again.

use std::io;
use std::path::Path;

use cricket::fuzzing::image::document::Document;
use cricket::fuzzing::image::reference::{Reference, Version};
use cricket::fuzzing::image::{challenges, config, document, policy, registries, registry};

use super::heap;

/// Plays an input.
pub fn check(input: &[u8]) {
    let Some((kind, bytes)) = input.split_first() else { return };
    let text = str::from_utf8(bytes);
    let watch = heap::Watch::begin();
    match (kind % 8, text) {
        (0, Ok(text)) => check_reference(text),
        (1, _) => check_registries(bytes),
        (2, _) => drop(registries::hosts::parse(bytes, Path::new("/etc/certs.d/example.com"))),
        (3, Ok(text)) => check_challenges(text),
        (4, _) => drop(registry::auth_file::parse(bytes)),
        (5, _) => check_policy(bytes),
        (6, _) => check_manifest(bytes),
        (7, _) => check_config(bytes),
        _ => {}
    }
    watch.expect_below(bound(bytes.len()));
}

/// A parser of TOML keeps some hundred bytes for each key or table, which may be two bytes of text.
fn bound(length: usize) -> usize {
    512 * length + 256 * 1024
}

fn check_reference(text: &str) {
    let Ok(reference) = Reference::parse(text) else { return };
    let shown = reference.to_string();
    assert_eq!(Reference::parse(&shown).as_ref(), Ok(&reference), "{shown:?}");
    // It becomes a part of URLs and of paths.
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_graphic());
    assert!(plain(reference.host()) && plain(reference.repository()), "{shown:?}");
    assert!(!reference.host().contains(['/', '@', '?', '#', '\\']), "{shown:?}");
    assert!(!reference.repository().contains(['@', '?', '#', '%', '\\', ':']), "{shown:?}");
    assert!(reference.repository().split('/').all(|part| !matches!(part, "" | "." | "..")), "{shown:?}");
    if let Version::Tag(tag) = reference.version() {
        assert!(plain(tag) && !tag.contains(['/', '@', '?', '#', '%']), "{shown:?}");
    }
}

fn check_registries(bytes: &[u8]) {
    let Ok(read) = registries::conf::parse(bytes) else { return };
    let lines = bytes.split(|byte| *byte == b'\n').count();
    for (prefix, rule) in &read.rules {
        assert!(!prefix.is_empty() && (1..=lines).contains(&rule.line), "{prefix:?}: {rule:?}");
        assert!(rule.mirrors.iter().all(|mirror| (1..=lines).contains(&mirror.line)), "{rule:?}");
    }
    // A remark at its end changes nothing.
    let again = registries::conf::parse(&[bytes, b"\n# end\n"].concat());
    assert_eq!(again.as_ref(), Ok(&read));
}

fn check_challenges(text: &str) {
    let found = challenges(text);
    let held: usize = found.iter().flat_map(|(_, params)| params).map(|(name, value)| name.len() + value.len()).sum();
    assert!(found.len() <= 16 && held <= text.len(), "{found:?}");
    // Written as the standard says (RFC 9110, 11.6.1), they are the same again.
    let word = |text: &String| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if found.iter().all(|(scheme, params)| word(scheme) && params.iter().all(|(name, _)| word(name))) {
        let quoted = |text: &str| text.replace('\\', r"\\").replace('"', r#"\""#);
        let params = |params: &[(String, String)]| {
            let all: Vec<String> = params.iter().map(|(name, value)| format!("{name}=\"{}\"", quoted(value))).collect();
            all.join(", ")
        };
        let all: Vec<String> = found.iter().map(|(scheme, list)| format!("{scheme} {}", params(list))).collect();
        assert_eq!(challenges(&all.join(", ")), found, "{all:?}");
    }
}

fn check_policy(bytes: &[u8]) {
    let mut asked = 0;
    let mut read = |path: &Path| {
        asked += 1;
        assert!(path.is_absolute(), "{}", path.display());
        Err(io::ErrorKind::NotFound.into())
    };
    drop(policy::parse(bytes, &mut read));
    assert!(asked <= bytes.len());
}

fn check_manifest(bytes: &[u8]) {
    for stated in ["", "application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json"] {
        let Ok(read) = document::parse(bytes, stated) else { continue };
        match &read {
            Document::Index(list) => assert!(list.len() <= bytes.len()),
            Document::Manifest { config, layers } => {
                // What a pull fetches has a digest, since that is what it becomes a part of a path by.
                for part in layers.iter().chain([config]) {
                    if let Ok(digest) = part.digest() {
                        assert!(digest.hex().len() >= 64 && digest.hex().bytes().all(|byte| byte.is_ascii_hexdigit()));
                    }
                }
            }
        }
        // The same bytes mean the same (CVE-2021-41190: no two readers may disagree).
        assert_eq!(document::parse(bytes, stated).ok(), Some(read));
    }
}

fn check_config(bytes: &[u8]) {
    let Ok(read) = config::parse(bytes) else { return };
    assert!(read.diff_ids.iter().all(|id| id.hex().len() >= 64));
    let _ = config::ImageUser::parse(&String::from_utf8_lossy(bytes));
}
