//! The tree's Rust files, and their text without comments and literals.

use std::path::{Path, PathBuf};

/// One file.
pub struct Source {
    /// Relative to the repository.
    pub name: String,
    pub text: String,
    /// The text with comments and what is inside literals blanked out, line by line as before.
    code: String,
}

/// Every file of the daemon, its tests, the fuzzing targets and the contract, but for generated code.
pub fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for dir in ["src", "tests", "proto/src", "proto/tests", "benches", "fuzz/src", "fuzz/fuzz_targets"] {
        collect(&root.join(dir), &mut files);
    }
    assert!(files.len() > 20, "only {} files were found", files.len());
    files.sort();
    files
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("a source file is UTF-8");
            let name = path.strip_prefix(root).expect("it was found below the root").display().to_string();
            let code = code_only(&text);
            Source { name, text, code }
        })
        .collect()
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries {
        let path = entry.expect("the tree is readable").path();
        if path.is_dir() {
            // Generated code is checked by its own test.
            if !path.ends_with("src/gen") {
                collect(&path, files);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The modules that `src/lib.rs` declares.
pub fn rooms() -> Vec<String> {
    let all = sources();
    let root = all.iter().find(|source| source.name == "src/lib.rs").expect("src/lib.rs is there");
    let declared = root.code.lines().filter_map(|line| line.trim().strip_suffix(';')?.strip_prefix("pub mod "));
    declared.map(str::to_owned).collect()
}

impl Source {
    pub fn is_src(&self) -> bool {
        self.name.starts_with("src/")
    }

    /// The first part of a path below `src`; `None` for the crate's root.
    pub fn room(&self) -> Option<&str> {
        let first = self.name.strip_prefix("src/")?.split('/').next()?;
        let room = first.strip_suffix(".rs").unwrap_or(first);
        (room != "lib").then_some(room)
    }

    /// What follows `crate::` anywhere in the code; each branch of a group by itself.
    pub fn crate_paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        for (at, matched) in self.code.match_indices("crate::") {
            let before = self.code[..at].chars().next_back();
            if before.is_none_or(|c| !is_word(c) && c != '$') {
                branches(&self.code[at + matched.len()..], "", &mut paths);
            }
        }
        paths
    }

    /// Lines that name something in a crate, as `name::…` or `use name`.
    pub fn lines_with_path(&self, name: &str) -> Vec<String> {
        self.words(name, |rest| {
            rest.trim_start().starts_with("::") || rest.starts_with(';') || rest.starts_with(" as ")
        })
    }

    pub fn lines_with_word(&self, word: &str) -> Vec<String> {
        self.words(word, |_| true)
    }

    pub fn macro_calls(&self, name: &str) -> Vec<String> {
        self.words(name, |rest| rest.starts_with("!("))
    }

    /// Lines of code that contain a text, as (place, the line as it is written).
    pub fn lines_with(&self, text: &str) -> Vec<(String, String)> {
        let lines = self.code.lines().zip(self.text.lines()).enumerate();
        lines
            .filter(|(_, (code, _))| code.contains(text))
            .map(|(at, (_, line))| (format!("{}:{}", self.name, at + 1), line.to_owned()))
            .collect()
    }

    fn words(&self, word: &str, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let mut found = Vec::new();
        for (number, line) in self.code.lines().enumerate() {
            let is_found = line.match_indices(word).any(|(at, _)| {
                let (before, rest) = (line[..at].chars().next_back(), &line[at + word.len()..]);
                before.is_none_or(|c| !is_word(c)) && rest.chars().next().is_none_or(|c| !is_word(c)) && wanted(rest)
            });
            if is_found {
                found.push(format!("{}:{}: {}", self.name, number + 1, line.trim()));
            }
        }
        found
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// `a::b`, or `{a::b, c::{d, e}}`, to full paths; the rest of the text is not looked at.
fn branches<'a>(text: &'a str, prefix: &str, paths: &mut Vec<String>) -> &'a str {
    let mut path = prefix.to_owned();
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        if let Some(mut inner) = rest.strip_prefix('{') {
            loop {
                inner = inner.trim_start().trim_start_matches(',').trim_start();
                match inner.strip_prefix('}') {
                    Some(after) => return after,
                    None if inner.is_empty() => return inner,
                    None => {}
                }
                let after = branches(inner, &path, paths);
                // Something that is no path at all (a glob, a renaming) is skipped up to the next branch.
                inner = &after[after.find([',', '}']).unwrap_or(after.len())..];
            }
        }
        let end = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
        if end > 0 {
            if !path.is_empty() {
                path.push_str("::");
            }
            path.push_str(&rest[..end]);
        }
        match rest[end..].strip_prefix("::") {
            Some(after) if !after.starts_with('<') => rest = after,
            _ => {
                paths.push(path);
                return &rest[end..];
            }
        }
    }
}

/// Blanks comments and the insides of strings and characters; line breaks stay.
fn code_only(text: &str) -> String {
    let bytes: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = match (bytes[at], bytes.get(at + 1)) {
            ('/', Some('/')) => line_end(&bytes, at),
            ('/', Some('*')) => comment_end(&bytes, at),
            ('"', _) => string_end(&bytes, at + 1),
            ('r', Some('"' | '#')) if at == 0 || !is_word(bytes[at - 1]) || bytes[at - 1] == 'b' => raw_end(&bytes, at),
            ('\'', _) => char_end(&bytes, at),
            _ => at,
        };
        if end == at {
            out.push(bytes[at]);
            at += 1;
            continue;
        }
        // A literal keeps its first quote, so that `#[ignore = "` can still be told from `#[ignore]`.
        let kept = if bytes[at] == '/' { ' ' } else { bytes[at] };
        out.push(kept);
        out.extend(bytes[at + 1..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
        at = end;
    }
    out
}

fn line_end(text: &[char], at: usize) -> usize {
    text[at..].iter().position(|c| *c == '\n').map_or(text.len(), |length| at + length)
}

fn comment_end(text: &[char], mut at: usize) -> usize {
    let mut depth = 0;
    while at < text.len() {
        match (text[at], text.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) if depth == 1 => return at + 2,
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    at
}

fn string_end(text: &[char], mut at: usize) -> usize {
    while at < text.len() {
        match text[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// `r"…"`, `r#"…"#`; an identifier such as `r#type` is no literal.
fn raw_end(text: &[char], at: usize) -> usize {
    let hashes = text[at + 1..].iter().take_while(|c| **c == '#').count();
    let open = at + 1 + hashes;
    if text.get(open) != Some(&'"') {
        return at;
    }
    let mut end = open + 1;
    while end < text.len() {
        if text[end] == '"' && text[end + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes {
            return end + 1 + hashes;
        }
        end += 1;
    }
    end
}

/// A character, or a lifetime, which is left alone.
fn char_end(text: &[char], at: usize) -> usize {
    match (text.get(at + 1), text.get(at + 2)) {
        (Some('\\'), _) => {
            let close = text[at + 3..].iter().position(|c| *c == '\'');
            close.map_or(at, |length| at + 3 + length + 1)
        }
        (Some(_), Some('\'')) => at + 3,
        _ => at,
    }
}

#[test]
fn comments_and_literals_are_blanked() {
    let text = "a // unsafe\n\"un\\\"safe\" 'x' 'a r#\"unsafe\"# /* un /* safe */ unsafe */ b '\\'' r#type";
    let code = code_only(text);
    assert!(!code.contains("safe"), "{code}");
    assert!(code.contains("'a ") && code.contains(" b ") && code.ends_with("r#type"), "{code}");
    assert_eq!(code.lines().count(), 2);
}

#[test]
fn groups_are_spelled_out() {
    let text = "use crate::{a::{B, c::D}, e, f::*};\nlet x = crate::g::h();\n// crate::no\nmycrate::i; $crate::j;";
    let source = Source { name: "src/x.rs".to_owned(), text: text.to_owned(), code: code_only(text) };
    assert_eq!(source.crate_paths(), ["a::B", "a::c::D", "e", "f", "g::h"]);
}
