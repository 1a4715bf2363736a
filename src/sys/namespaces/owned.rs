//! A pod's namespaces below a user namespace of the pod's own.
//!
//! A process with threads cannot make a user namespace for itself, and what is to belong to it must be made from inside. So
//! the daemon runs its own binary (`cricket namespaces`), which has one thread: it forks a child into the new namespaces,
//! writes the maps of ids, pins, and lets the child furnish them as their root. The child holds nothing and ends with it.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use super::{NamespaceError, NamespaceKind, NamespaceRequest, furnish, pin, prepare, undo};
use crate::sys::clone::{Child, Fresh, SingleThread};
use crate::sys::exec::{self, Exec};
use crate::sys::{pidfd, process};

/// It makes a dozen system calls.
const CLOCK: Duration = Duration::from_secs(20);

/// Largest request that the program reads, in bytes: sysctls are the most of it.
const MAX_REQUEST: u64 = 1 << 20;

/// Bytes kept of what the program says.
const OUTPUT: usize = 4096;

/// What the child says when the namespaces are as they should be.
const READY: &str = "ready";

/// The ids 0 to `length` − 1 of a user namespace, as the host's `host` to `host` + `length` − 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    pub host: u32,
    pub length: u32,
}

/// Whose the ids of a user namespace are on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owners {
    pub uids: IdRange,
    pub gids: IdRange,
}

impl Owners {
    /// The host's ids of the user namespace's root.
    #[must_use]
    pub fn root(&self) -> (u32, u32) {
        (self.uids.host, self.gids.host)
    }
}

/// The request as the program reads it.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    /// The daemon: with it the program ends.
    parent: i32,
    dir: PathBuf,
    net: bool,
    ipc: bool,
    uts: bool,
    hostname: String,
    sysctls: std::collections::BTreeMap<String, String>,
    owners: Owners,
}

/// As [`super::create`], with a user namespace that the others belong to, and that is pinned as `user` beside them.
///
/// # Errors
/// When the request is not legal, when `request.dir` exists, or when the kernel refuses a step; everything that was made
/// is then gone, unless the error is [`NamespaceError::Undo`].
pub async fn create_owned(request: &NamespaceRequest<'_>, owners: Owners) -> Result<(), NamespaceError> {
    prepare(request)?;
    let order = Order {
        parent: rustix::process::getpid().as_raw_pid(),
        dir: request.dir.to_owned(),
        net: request.net,
        ipc: request.ipc,
        uts: request.uts,
        hostname: request.hostname.to_owned(),
        sysctls: request.sysctls.clone(),
        owners,
    };
    let dir = || request.dir.to_owned();
    let made = match serde_json::to_vec(&order) {
        Ok(stdin) => run(stdin).await.map_err(|said| NamespaceError::Program { dir: dir(), said }),
        Err(error) => Err(NamespaceError::Program { dir: dir(), said: error.to_string() }),
    };
    made.map_err(|failed| undo(request.dir, failed))
}

async fn run(stdin: Vec<u8>) -> Result<(), String> {
    let program = PathBuf::from("/proc/self/exe");
    let args = vec!["namespaces".into()];
    let exec = Exec { program, args, env: Vec::new(), stdin, timeout: CLOCK, output_cap: OUTPUT };
    let output = exec::run(exec).await.map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().trim_start_matches("cricket: ");
    Err(if said.is_empty() { format!("it ended with {}", output.status) } else { said.to_owned() })
}

/// What `cricket namespaces` does: carries out the order on its standard input.
///
/// # Errors
/// Names the step that failed. What was pinned is left to whoever gave the order.
pub fn carry_out() -> Result<(), NamespaceError> {
    let mut text = Vec::new();
    let unread = |said: String| NamespaceError::Program { dir: PathBuf::new(), said };
    io::stdin().take(MAX_REQUEST).read_to_end(&mut text).map_err(|error| unread(error.to_string()))?;
    let order: Order = serde_json::from_slice(&text).map_err(|error| unread(error.to_string()))?;
    let failed = |step: &'static str| {
        let dir = order.dir.clone();
        move |source: io::Error| NamespaceError::Step { dir, step, source }
    };
    end_with(order.parent).map_err(failed("the daemon is gone"))?;
    let single = SingleThread::prove().map_err(failed("one thread"))?;
    let (report, say) = pipe().map_err(failed("a pipe"))?;
    let (wait, go) = pipe().map_err(failed("a pipe"))?;
    let me = rustix::process::getpid().as_raw_pid();
    let fresh = Fresh::User { net: order.net, ipc: order.ipc, uts: order.uts };
    let child = single.fork(fresh, || live_inside(&order, me, wait, say)).map_err(failed("the user namespace"))?;
    let done = map_and_pin(&order, &child).and_then(|()| {
        (&go).write_all(b"g").map_err(failed("the child is gone"))?;
        let mut said = String::new();
        (&report).take(4096).read_to_string(&mut said).map_err(failed("the child's report"))?;
        if said.trim_end() == READY {
            return Ok(());
        }
        let said = if said.is_empty() { "the child died".to_owned() } else { said };
        Err(NamespaceError::Program { dir: order.dir.clone(), said })
    });
    // It may be dead, which is the aim; pinned namespaces do without it.
    let _ = pidfd::signal(child.pidfd.as_fd(), Signal::KILL);
    let _ = process::wait(child.pid);
    done
}

fn pipe() -> io::Result<(File, File)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok((read.into(), write.into()))
}

/// This process is killed when its parent ends. One that has ended already is noticed.
fn end_with(parent: i32) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let now = rustix::process::getppid().map_or(0, Pid::as_raw_pid);
    if now == parent { Ok(()) } else { Err(io::Error::other(format!("the parent is {now}, not {parent}"))) }
}

fn map_and_pin(order: &Order, child: &Child) -> Result<(), NamespaceError> {
    for (name, range) in [("uid_map", order.owners.uids), ("gid_map", order.owners.gids)] {
        let path = format!("/proc/{}/{name}", child.pid);
        // One write: a map takes its text whole or not at all.
        let written = File::options()
            .write(true)
            .open(&path)
            .and_then(|mut file| file.write_all(format!("0 {} {}\n", range.host, range.length).as_bytes()));
        written.map_err(|source| NamespaceError::Map { name, host: range.host, length: range.length, source })?;
    }
    let pid = Pid::from_raw(child.pid).ok_or_else(|| NamespaceError::Step {
        dir: order.dir.clone(),
        step: "the child's number",
        source: io::ErrorKind::InvalidData.into(),
    })?;
    let kinds = [
        (true, NamespaceKind::User),
        (order.net, NamespaceKind::Net),
        (order.ipc, NamespaceKind::Ipc),
        (order.uts, NamespaceKind::Uts),
    ];
    for (_, kind) in kinds.iter().filter(|(made, _)| *made) {
        pin(pid, *kind, Path::new(&order.dir))?;
    }
    Ok(())
}

/// The child: becomes the root of its user namespace once that has ids, furnishes the namespaces, and says how it went.
fn live_inside(order: &Order, parent: i32, mut wait: File, mut say: File) -> i32 {
    let step = |step: &'static str| move |source: io::Error| format!("{step}: {source}");
    let mut furnished = || -> Result<(), String> {
        end_with(parent).map_err(step("the program is gone"))?;
        wait.read_exact(&mut [0]).map_err(step("the word to go on"))?;
        let root = (rustix::fs::Uid::ROOT, rustix::fs::Gid::ROOT);
        rustix::thread::set_thread_groups(&[]).map_err(|error| step("setgroups")(error.into()))?;
        rustix::thread::set_thread_res_gid(root.1, root.1, root.1).map_err(|error| step("setresgid")(error.into()))?;
        rustix::thread::set_thread_res_uid(root.0, root.0, root.0).map_err(|error| step("setresuid")(error.into()))?;
        // Other credentials forget the signal.
        end_with(parent).map_err(step("the program is gone"))?;
        let request = NamespaceRequest {
            dir: &order.dir,
            net: order.net,
            ipc: order.ipc,
            uts: order.uts,
            hostname: &order.hostname,
            sysctls: &order.sysctls,
        };
        furnish(&request).map_err(|error| chain(&error))
    };
    let text = furnished().map_or_else(|said| said, |()| READY.to_owned());
    // Without a reader the program is gone, and this process with it.
    let _ = say.write_all(text.as_bytes());
    0
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
