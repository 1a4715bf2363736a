//! The log that a runtime writes for one call (`--log FILE --log-format json`): its words on what went wrong.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// What is read of a log, from its end, in bytes.
const TAIL: u64 = 32 * 1024;

/// Longest message that is passed on, in characters.
const MAX_WORDS: usize = 2_000;

/// A log file that does not exist before the call.
#[derive(Debug)]
pub(super) struct RuntimeLog(PathBuf);

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
}

impl RuntimeLog {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The last error in it; without one, its last line.
    pub(super) fn last_error(&self) -> Option<String> {
        last_error(&self.tail()?)
    }

    pub(super) fn remove(&self) {
        // A call that went well may have written none.
        let _ = std::fs::remove_file(&self.0);
    }

    fn tail(&self) -> Option<String> {
        let mut file = File::open(&self.0).ok()?;
        let length = file.metadata().ok()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL))).ok()?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn last_error(text: &str) -> Option<String> {
    let lines: Vec<Line> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let error = lines.iter().rev().find(|line| matches!(line.level.as_str(), "error" | "fatal" | "panic"));
    let words = match error.or(lines.last()) {
        Some(line) => line.msg.clone(),
        // A runtime that does not know the format writes plain text.
        None => text.lines().last()?.to_owned(),
    };
    Some(words.trim().chars().take(MAX_WORDS).collect()).filter(|words: &String| !words.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_is_found() {
        let log = r#"{"msg":"cannot x","level":"error","time":"t"}
{"msg":"exec failed: \"no such file\"","level":"error","time":"t"}
{"msg":"bye","level":"info","time":"t"}
"#;
        assert_eq!(last_error(log).as_deref(), Some("exec failed: \"no such file\""));
        assert_eq!(last_error("plain text\n").as_deref(), Some("plain text"));
        assert_eq!(last_error(""), None);
    }
}
