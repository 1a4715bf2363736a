//! A keeper of a test's own, in a directory of its own; both are gone when the test ends.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cricket::keeper::{HeldProcess, Keeper, KeeperOptions, ProcessFile, SpawnRequest};
use rustix::process::{Pid, Signal, kill_process};

/// Long enough for a loaded machine; nothing waits for it when all is well.
pub const LONG: Duration = Duration::from_secs(30);

pub struct Node {
    pub dir: tempfile::TempDir,
    pub keeper: Keeper,
}

pub fn options(dir: &std::path::Path) -> KeeperOptions {
    KeeperOptions {
        socket: dir.join("keeper.sock"),
        exe: PathBuf::from(env!("CARGO_BIN_EXE_cricket")),
        cgroup_dirs: Vec::new(),
    }
}

impl Node {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keeper = Keeper::connect_or_start(options(dir.path())).await.unwrap();
        Self { dir, keeper }
    }

    /// A second daemon's handle, or the next one's.
    pub async fn reconnect(&self) -> Keeper {
        Keeper::connect_or_start(options(self.dir.path())).await.unwrap()
    }

    pub fn pid_file(&self, id: &str) -> PathBuf {
        self.dir.path().join(format!("{id}.pid"))
    }

    /// A runtime that leaves `script` behind as the process `id`.
    pub fn leave(&self, id: &str, script: &str) -> SpawnRequest {
        let pid_file = self.pid_file(id);
        let request = runtime(script, &pid_file, "");
        let process = ProcessFile { id: id.into(), pid_file, hold: Vec::new() };
        SpawnRequest { process: Some(process), ..request }
    }

    pub async fn left(&self, id: &str, script: &str) -> HeldProcess {
        let spawned = self.keeper.spawn(self.leave(id, script)).await.unwrap();
        assert!(spawned.status.success());
        spawned.process.unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        kill(self.keeper.pid());
    }
}

pub fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

pub fn null() -> Arc<OwnedFd> {
    Arc::new(std::fs::File::options().read(true).write(true).open("/dev/null").unwrap().into())
}

pub fn shell(script: &str) -> SpawnRequest {
    SpawnRequest {
        mounts: None,
        argv: ["/bin/sh", "-c", script].map(String::from).to_vec(),
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        stdio: [null(), null(), null()],
        process: None,
        timeout: LONG,
    }
}

/// A program that forks `script` off, runs `before` in Perl, writes the pid-file and ends without reaping. (A shell would reap.)
pub fn runtime(script: &str, pid_file: &Path, before: &str) -> SpawnRequest {
    let text = format!(
        "my $p = fork; if (!$p) {{ exec 'sh', '-c', $ARGV[0] }} {before}; open F, '>', $ARGV[1]; print F $p; close F;"
    );
    let argv = ["/usr/bin/perl", "-e", &text, script, &pid_file.display().to_string()].map(String::from).to_vec();
    SpawnRequest { argv, ..shell("") }
}

/// The text after `key:` in a process's status.
pub fn status(pid: i32, key: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{pid} has no {key}: {text}")).trim().to_owned()
}

/// Looks until something holds; panics after a long time.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} never came true");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The process has ended; a zombie counts, since in a container nobody may reap it.
pub fn is_gone(pid: i32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z") || rest.starts_with(" X")),
        Err(_) => true,
    }
}
