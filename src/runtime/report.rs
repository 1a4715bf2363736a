//! What a runtime says went wrong: the last error of its log, else the end of its standard error. All of it is bounded,
//! since a container's own text may be quoted in it.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// Bytes read from the end of a log.
const TAIL: u64 = 64 * 1024;
/// Bytes of a message that go into an error.
const MESSAGE: usize = 4096;

/// The levels of what ended an operation.
const SEVERE: [&str; 3] = ["error", "fatal", "panic"];

#[derive(serde::Deserialize)]
struct Line {
    #[serde(default)]
    level: String,
    // crun and runc say `msg`, youki `message` (and its levels in capitals).
    #[serde(default, alias = "message")]
    msg: String,
}

/// The last error in a log of JSON lines, or its last line of any other form. `None` when there is no text in it.
pub fn last_error(log: &Path) -> Option<String> {
    let mut file = std::fs::File::open(log).ok()?;
    let length = file.metadata().ok().filter(std::fs::Metadata::is_file)?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL))).ok()?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let lines = || text.lines().rev().filter(|line| !line.trim().is_empty());
    let parsed =
        || lines().filter_map(|line| serde_json::from_str::<Line>(line).ok()).filter(|line| !line.msg.is_empty());
    let error = parsed().find(|line| SEVERE.iter().any(|level| line.level.eq_ignore_ascii_case(level)));
    let message = error.or_else(|| parsed().next()).map(|line| line.msg);
    message.or_else(|| lines().next().map(str::to_owned)).map(|text| cut(&text))
}

/// The end of what was written to standard error. `None` when that is nothing.
pub fn last_words(stderr: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(&stderr[stderr.len().saturating_sub(MESSAGE)..]);
    let text = text.trim();
    (!text.is_empty()).then(|| cut(text))
}

/// One line of a bounded length, without control characters.
fn cut(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    text.trim().chars().take(MESSAGE).map(clean).collect()
}
