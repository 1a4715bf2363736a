//! The key that somebody who mistyped it most likely meant.

use super::keys::{self, KEYS};

/// The full name of the nearest key or section, if one is near at all: first among those at the same place, then, for a
/// key in the wrong section, anywhere by its last part.
pub(super) fn nearest(path: &[&str]) -> Option<String> {
    let (typed, section) = path.split_last()?;
    let limit = (typed.chars().count() / 3).max(1) + 1;
    let at_place = keys::sections().chain(KEYS.iter().map(|key| key.name)).filter_map(|name| {
        let parts: Vec<&str> = name.split('.').collect();
        let (leaf, parents) = parts.split_last()?;
        let same =
            parents.len() == section.len() && parents.iter().zip(section).all(|(want, is)| *want == "*" || want == is);
        (same && *leaf != "*").then(|| (distance(typed, leaf), *leaf))
    });
    if let Some((_, leaf)) = at_place.filter(|(far, _)| *far <= limit).min() {
        let mut full = section.to_vec();
        full.push(leaf);
        return Some(full.join("."));
    }
    let anywhere = KEYS.iter().map(|key| (distance(typed, key.leaf()), key.name)).filter(|(far, _)| *far <= limit / 2);
    anywhere.min().map(|(_, name)| name.to_owned())
}

/// That of some words which a mistyped one most likely meant, if one is near at all.
pub fn nearest_word<'a>(typed: &str, words: &[&'a str]) -> Option<&'a str> {
    let limit = (typed.chars().count() / 3).max(1);
    let all = words.iter().map(|word| (distance(typed, word), *word)).filter(|(far, _)| *far <= limit);
    all.min().map(|(_, word)| word)
}

/// The number of single-character edits between two words (Levenshtein). Only the first 64 characters count.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_are_guessed_and_nonsense_is_not() {
        for (typed, meant) in [
            ("server.listne", Some("server.listen")),
            ("servr", Some("server")),
            ("sever.listen", Some("server.listen")),
            ("listen", Some("server.listen")),
            ("image.plugin_timeout", Some("network.plugin_timeout")),
            ("runtime.handlers.kata.typ", Some("runtime.handlers.kata.type")),
            ("runtime.handler", Some("runtime.handlers")),
            ("image.max_concurent_download", Some("image.max_concurrent_downloads")),
            ("log.quux_frobnicator", None),
            ("", None),
        ] {
            let path: Vec<&str> = typed.split('.').collect();
            assert_eq!(nearest(&path).as_deref(), meant, "{typed}");
        }
    }

    #[test]
    fn distances() {
        for (a, b, far) in [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2)] {
            assert_eq!((distance(a, b), distance(b, a)), (far, far));
        }
    }
}
