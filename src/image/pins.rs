//! Which images the kubelet is to leave alone: names, or globs with `*`.

use super::record::ImageRecord;
use super::reference::Reference;

/// The patterns of the configuration.
#[derive(Debug, Clone, Default)]
pub(super) struct Pins {
    patterns: Vec<String>,
}

impl Pins {
    /// A pattern without `*` is a name and is normalised like one.
    pub(super) fn new(patterns: &[String]) -> Self {
        let full = |pattern: &String| {
            if pattern.contains('*') {
                return pattern.clone();
            }
            Reference::parse(pattern).map_or_else(|_| pattern.clone(), |reference| reference.to_string())
        };
        Self { patterns: patterns.iter().map(full).collect() }
    }

    /// Whether one of the image's names is pinned.
    pub(super) fn hold(&self, record: &ImageRecord) -> bool {
        let mut names = record.repo_tags.iter().chain(&record.repo_digests);
        names.any(|name| self.patterns.iter().any(|pattern| matches(pattern, name)))
    }
}

/// `*` stands for any text, also across slashes.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, text, good) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "anything", true),
            ("a*", "a/b:c", true),
            ("*b", "ab", true),
            ("*b*", "abc", true),
            ("a*c", "ac", true),
            ("a*b*c", "a-b-c", true),
            ("a*bc*c", "abc", false),
            ("ab*ba", "aba", false),
        ] {
            assert_eq!(matches(pattern, text), good, "{pattern} {text}");
        }
        assert_eq!(Pins::new(&["busybox".to_owned()]).patterns, ["docker.io/library/busybox:latest"]);
    }
}
