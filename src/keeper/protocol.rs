//! The wire: one JSON object per datagram, descriptors beside it in the order that the object names them.
//!
//! Version 1. Operations, answers and fields are only added, never changed; both sides skip what they do not know.

use serde::{Deserialize, Serialize};

/// The version that this side speaks.
pub const VERSION: u32 = 1;
/// The name under which the descriptor of a registered process is held.
pub const PIDFD: &str = "pidfd";
/// Longest id and longest descriptor name, in bytes.
pub const MAX_NAME: usize = 256;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    Code(i32),
    Signal(i32),
    /// Nobody could tell any more.
    Unknown,
}

impl ExitStatus {
    /// From a wait status in the form of wait(2).
    #[must_use]
    pub fn from_wait(status: i32) -> Self {
        if libc::WIFEXITED(status) {
            Self::Code(libc::WEXITSTATUS(status))
        } else if libc::WIFSIGNALED(status) {
            Self::Signal(libc::WTERMSIG(status))
        } else {
            Self::Unknown
        }
    }

    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }

    /// The one number of the CRI: 128 and the signal for a process that was killed, 255 when nobody can tell.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
            Self::Unknown => 255,
        }
    }
}

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub status: ExitStatus,
    /// Nanoseconds since 1970, taken when it was reaped.
    pub finished_at_ns: i64,
}

/// What every request starts with; it is read on its own, so that an unknown operation can be answered.
#[derive(Debug, Clone, Deserialize)]
pub struct Header {
    #[serde(default)]
    pub v: u32,
    pub seq: u64,
    #[serde(default)]
    pub op: String,
}

/// A request as it is sent.
#[derive(Debug, Clone, Serialize)]
pub struct Request<'a> {
    pub v: u32,
    pub seq: u64,
    #[serde(flatten)]
    pub op: &'a Op,
}

/// What the daemon asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    Hello,
    /// Descriptors: stdin, stdout, stderr, one for each of `hold`, then with `mount_namespace` that one.
    Spawn(SpawnOp),
    /// Descriptors: one for each of `namespaces`.
    ForkInit(InitOp),
    /// Descriptors: one for each of `names`.
    Hold(HoldOp),
    List,
    Forget {
        id: String,
    },
    Quit,
}

/// Runs a program, and registers the process that it leaves behind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpawnOp {
    pub argv: Vec<String>,
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Where `hold` and the process named by the pid-file are kept.
    #[serde(default)]
    pub id: Option<String>,
    #[serde(default)]
    pub pid_file: Option<String>,
    #[serde(default)]
    pub hold: Vec<String>,
    /// The program runs in a mount namespace that is handed over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mount_namespace: bool,
    pub timeout_ms: u64,
}

/// Forks the first process of a pid namespace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InitOp {
    pub id: String,
    /// What the descriptors beside it are: `user` is entered first, whatever its place; any other is entered as it comes.
    #[serde(default)]
    pub namespaces: Vec<String>,
}

/// Keeps descriptors; with `pid` it also takes over a process that another keeper had registered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HoldOp {
    pub id: String,
    pub names: Vec<String>,
    #[serde(default)]
    pub pid: Option<i32>,
    #[serde(default)]
    pub exit: Option<Exit>,
}

/// An answer or an event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The request's; 0 in events.
    pub seq: u64,
    #[serde(flatten)]
    pub body: Body,
}

/// What the keeper says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Body {
    Hello {
        version: u32,
        pid: i32,
        /// Tells one keeper from the next.
        instance: String,
        boot_id: String,
        /// It knows [`SpawnOp::mount_namespace`].
        #[serde(default)]
        mount_namespaces: bool,
    },
    /// The program has ended. Descriptor, when `pid` is there: the pidfd.
    Spawned {
        status: ExitStatus,
        #[serde(default)]
        pid: Option<i32>,
        /// The keeper is, or will be, the parent: its exit event will come.
        #[serde(default)]
        own: bool,
    },
    /// Descriptor: the pidfd.
    Forked {
        pid: i32,
    },
    /// One of the answers to `list`; an id with many descriptors comes in several. Descriptors: one for each of `names`.
    Entry(EntryBody),
    Done,
    Error {
        code: ErrorCode,
        message: String,
    },
    /// Event: a registered process has ended.
    Exit {
        id: String,
        pid: i32,
        #[serde(flatten)]
        exit: Exit,
    },
    /// Event: another daemon has connected; this connection is closed.
    Replaced,
    #[serde(other)]
    Unknown,
}

/// One held id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EntryBody {
    pub id: String,
    #[serde(default)]
    pub pid: Option<i32>,
    #[serde(default)]
    pub own: bool,
    #[serde(default)]
    pub exit: Option<Exit>,
    /// Its runtime has not answered yet.
    #[serde(default)]
    pub in_flight: bool,
    #[serde(default)]
    pub names: Vec<String>,
}

/// What kind of error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// Not understood: garbage, too large, an unknown operation or version.
    BadRequest,
    /// The id has a process already.
    Taken,
    /// The program could not be run.
    Exec,
    /// The program's clock ran out.
    TimedOut,
    /// The program succeeded but left no usable pid-file.
    NoPid,
    /// Something is still held.
    Busy,
    /// The kernel refused.
    Failed,
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_side_reads_what_a_new_side_adds() {
        let header: Header = serde_json::from_str(r#"{"v":9,"seq":4,"op":"dance","to":"tune"}"#).unwrap();
        assert_eq!((header.v, header.seq, header.op.as_str()), (9, 4, "dance"));
        let op: Op = serde_json::from_str(r#"{"v":1,"seq":4,"op":"forget","id":"a","why":"new"}"#).unwrap();
        assert_eq!(op, Op::Forget { id: "a".into() });
        let reply: Reply = serde_json::from_str(r#"{"seq":0,"kind":"party","id":"a"}"#).unwrap();
        assert_eq!(reply.body, Body::Unknown);
        let text = r#"{"seq":3,"kind":"error","code":"moon","message":"m"}"#;
        let reply: Reply = serde_json::from_str(text).unwrap();
        assert_eq!(reply.body, Body::Error { code: ErrorCode::Unknown, message: "m".into() });
    }

    #[test]
    fn both_directions_round_trip() {
        let exit = Exit { status: ExitStatus::Signal(9), finished_at_ns: -1 };
        let hold = HoldOp { id: "a".into(), names: vec!["stdout".into()], pid: Some(3), exit: Some(exit) };
        let init = InitOp { id: "i".into(), namespaces: vec!["net".into()] };
        for op in [Op::Hello, Op::List, Op::Quit, Op::Hold(hold), Op::ForkInit(init)] {
            let text = serde_json::to_string(&Request { v: VERSION, seq: 1, op: &op }).unwrap();
            assert_eq!(serde_json::from_str::<Op>(&text).unwrap(), op, "{text}");
        }
        let reply = Reply { seq: 0, body: Body::Exit { id: "a".into(), pid: 3, exit } };
        let text = serde_json::to_string(&reply).unwrap();
        assert_eq!(serde_json::from_str::<Reply>(&text).unwrap(), reply, "{text}");
    }

    #[test]
    fn a_status_becomes_one_number() {
        let cases = [(0, ExitStatus::Code(0), 0), (3 << 8, ExitStatus::Code(3), 3), (9, ExitStatus::Signal(9), 137)];
        for (wait, status, code) in cases {
            assert_eq!(ExitStatus::from_wait(wait), status);
            assert_eq!(status.code(), code);
        }
        // A core dump is flagged in the status, and a real-time signal has no name.
        assert_eq!(ExitStatus::from_wait(11 | 0x80), ExitStatus::Signal(11));
        assert_eq!(ExitStatus::from_wait(37), ExitStatus::Signal(37));
        assert_eq!(ExitStatus::Unknown.code(), 255);
    }
}
