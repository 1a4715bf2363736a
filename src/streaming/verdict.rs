//! How a session ended, in the words of each version of the protocol.
//!
//! From version 4 on the error stream carries a `Status` object of Kubernetes' API as JSON: `Success`, or `Failure` with the
//! reason `NonZeroExitCode` and the code among its causes, or `Failure` with the reason `InternalError`. Before that it
//! carries plain text, and nothing at all when all went well.

use serde::Serialize;

use super::protocol::Version;

/// Longest text that is sent, in bytes: an error of a runtime may hold what a container wrote.
const MAX_TEXT: usize = 6 * 1024;

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Success,
    /// The command ended with this code, which is not 0.
    ExitCode(i32),
    /// It could not be begun or was cut off, and why.
    Failed(String),
}

#[derive(Serialize)]
struct Status<'a> {
    metadata: Empty,
    status: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
struct Details<'a> {
    causes: [Cause<'a>; 1],
}

#[derive(Serialize)]
struct Cause<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    message: &'a str,
}

impl Verdict {
    /// From what a command's session returned. Clients take codes of 0 to 255 only.
    pub fn of_exit(code: i32) -> Self {
        match code {
            0 => Self::Success,
            1..=255 => Self::ExitCode(code),
            _ => Self::Failed(format!("the command ended with the impossible exit code {code}")),
        }
    }

    /// What goes onto the error stream; nothing when there is nothing to say.
    pub fn encode(&self, version: Version) -> Vec<u8> {
        if version.has_status() { self.json() } else { self.text().into_bytes() }
    }

    fn text(&self) -> String {
        match self {
            Self::Success => String::new(),
            Self::ExitCode(code) => format!("command terminated with non-zero exit code: exit status {code}"),
            Self::Failed(why) => bounded(why).to_owned(),
        }
    }

    fn json(&self) -> Vec<u8> {
        let plain =
            Status { metadata: Empty {}, status: "Success", message: "", reason: None, details: None, code: None };
        let status = match self {
            Self::Success => serde_json::to_vec(&plain),
            Self::ExitCode(code) => serde_json::to_vec(&Status {
                status: "Failure",
                message: &self.text(),
                reason: Some("NonZeroExitCode"),
                details: Some(Details { causes: [Cause { reason: Some("ExitCode"), message: &code.to_string() }] }),
                ..plain
            }),
            Self::Failed(why) => serde_json::to_vec(&Status {
                status: "Failure",
                message: &format!("Internal error occurred: {}", bounded(why)),
                reason: Some("InternalError"),
                details: Some(Details { causes: [Cause { reason: None, message: bounded(why) }] }),
                code: Some(500),
                ..plain
            }),
        };
        status.expect("a status is JSON")
    }
}

fn bounded(text: &str) -> &str {
    let end = text.char_indices().map(|(at, char)| at + char.len_utf8()).take_while(|end| *end <= MAX_TEXT).last();
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_4_sends_a_status() {
        let encoded = |verdict: Verdict| String::from_utf8(verdict.encode(Version::V4)).unwrap();
        assert_eq!(encoded(Verdict::of_exit(0)), r#"{"metadata":{},"status":"Success"}"#);
        assert_eq!(
            encoded(Verdict::of_exit(3)),
            concat!(
                r#"{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: exit status 3","#,
                r#""reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#
            )
        );
        assert_eq!(
            encoded(Verdict::Failed("no \"such\" file".to_owned())),
            concat!(
                r#"{"metadata":{},"status":"Failure","message":"Internal error occurred: no \"such\" file","#,
                r#""reason":"InternalError","details":{"causes":[{"message":"no \"such\" file"}]},"code":500}"#
            )
        );
    }

    #[test]
    fn older_versions_send_text_or_nothing() {
        for version in [Version::V1, Version::V2, Version::V3] {
            assert!(Verdict::Success.encode(version).is_empty());
            assert_eq!(Verdict::Failed("why".to_owned()).encode(version), b"why");
            assert!(Verdict::ExitCode(7).encode(version).ends_with(b"exit status 7"));
        }
    }

    #[test]
    fn codes_that_no_client_reads_are_an_error() {
        for code in [-1, 256, i32::MIN] {
            assert!(matches!(Verdict::of_exit(code), Verdict::Failed(_)));
        }
        assert_eq!(Verdict::of_exit(255), Verdict::ExitCode(255));
    }

    #[test]
    fn what_is_sent_is_bounded() {
        let verdict = Verdict::Failed("ä".repeat(100_000));
        assert!(verdict.encode(Version::V3).len() <= MAX_TEXT);
        assert!(verdict.encode(Version::V5).len() <= 2 * MAX_TEXT + 300);
    }
}
