//! Running a helper program (an OCI runtime, a CNI plugin) with a clock, a cap on its output and nothing inherited.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};

/// A program that has ended is not waited for any longer than this because something it left behind holds its output open.
const DRAIN: Duration = Duration::from_millis(500);

/// What to run. The child gets exactly `env`, the working directory `/`, descriptors 0 to 2, and a process group of its own.
#[derive(Debug, Clone)]
pub struct Exec {
    pub program: PathBuf,
    pub args: Vec<OsString>,
    pub env: Vec<(OsString, OsString)>,
    /// Written to the child's standard input, which is then closed.
    pub stdin: Vec<u8>,
    /// After this long the child's whole process group is killed.
    pub timeout: Duration,
    /// Bytes kept of each of stdout and stderr; the rest is read and dropped.
    pub output_cap: usize,
}

/// How it ended and what it printed.
#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// Why no exit status was had.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error("{}: cannot be started", program.display())]
    Spawn { program: PathBuf, source: io::Error },
    #[error("{}: killed after {} ms without an answer{}", program.display(), after.as_millis(), tail(stderr))]
    TimedOut { program: PathBuf, after: Duration, stderr: Vec<u8> },
    #[error("{}: its exit status could not be read", program.display())]
    Wait { program: PathBuf, source: io::Error },
}

fn tail(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let text = text.trim();
    if text.is_empty() { String::new() } else { format!("; stderr: {text}") }
}

/// Runs a program to its end.
///
/// # Errors
/// [`ExecError::Spawn`] when it cannot be started, [`ExecError::TimedOut`] when its clock ran out (its process group is
/// then dead), [`ExecError::Wait`] when the kernel refuses its status. A non-zero exit is not an error here.
pub async fn run(exec: Exec) -> Result<Output, ExecError> {
    run_with(exec, false).await
}

/// As [`run`], and whatever the program left in its process group is killed when it has ended.
///
/// # Errors
/// As for [`run`].
pub async fn run_alone(exec: Exec) -> Result<Output, ExecError> {
    run_with(exec, true).await
}

async fn run_with(exec: Exec, alone: bool) -> Result<Output, ExecError> {
    let program = exec.program.clone();
    let spawn_error = |source| ExecError::Spawn { program: program.clone(), source };
    // Marked here and not in the child, whose way to the program then stays the short one (vfork).
    super::clone::close_on_exec_from(3).map_err(spawn_error)?;
    let mut command = std::process::Command::new(&exec.program);
    command
        .args(&exec.args)
        .env_clear()
        .envs(exec.env.iter().map(|(k, v)| (k, v)))
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    let mut child = command.spawn().map_err(spawn_error)?;
    // Also when the caller drops this future: a helper's own children must not go on without it.
    let group = Group(AtomicU32::new(child.id().unwrap_or(0)));
    let ending = child.id().filter(|_| alone).and_then(ending);
    let (mut stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let input = exec.stdin;
    let feed = async move {
        if let Some(pipe) = stdin.as_mut() {
            // A program that does not read its input is free to do so.
            let _ = pipe.write_all(&input).await;
        }
        drop(stdin);
    };
    let mut out = Vec::new();
    let mut err = Vec::new();
    let finished = tokio::time::timeout(exec.timeout, async {
        let talk = async {
            tokio::join!(
                feed,
                read_capped(stdout, &mut out, exec.output_cap),
                read_capped(stderr, &mut err, exec.output_cap)
            );
        };
        tokio::pin!(talk);
        tokio::select! {
            () = &mut talk => reap(&mut child, &group, ending.as_ref()).await,
            status = reap(&mut child, &group, ending.as_ref()) => {
                // What is in the pipes is had at once; a longer wait is for a process that does not end.
                let _ = tokio::time::timeout(DRAIN, talk).await;
                status
            }
        }
    })
    .await;
    match finished {
        Ok(status) => {
            let status = status.map_err(|source| ExecError::Wait { program, source })?;
            Ok(Output { status, stdout: out, stderr: err })
        }
        Err(_) => {
            group.kill();
            // A process that cannot die now (waiting for a dead disk) is reaped later, by tokio.
            let _ = tokio::time::timeout(Duration::from_secs(2), child.wait()).await;
            Err(ExecError::TimedOut { program, after: exec.timeout, stderr: err })
        }
    }
}

/// A descriptor that is readable from the end of a child on; `None` where the kernel has none to give.
fn ending(pid: u32) -> Option<AsyncFd<OwnedFd>> {
    let pidfd = super::pidfd::open(i32::try_from(pid).ok()?).ok()?;
    super::reactor::register(pidfd, Interest::READABLE).ok()
}

/// Waits for the end of a child. With `ending` the rest of its group is killed between its end and its reaping, while the
/// group's number can be nobody else's.
async fn reap(
    child: &mut tokio::process::Child,
    group: &Group,
    ending: Option<&AsyncFd<OwnedFd>>,
) -> io::Result<ExitStatus> {
    if let Some(ending) = ending
        && ending.readable().await.is_ok()
    {
        kill_group(group.0.load(Ordering::Relaxed));
    }
    let status = child.wait().await;
    // Reaped: the number may belong to somebody else from now on.
    group.0.store(0, Ordering::Relaxed);
    status
}

/// Killed when dropped; 0 is none.
struct Group(AtomicU32);

impl Group {
    fn kill(&self) {
        kill_group(self.0.swap(0, Ordering::Relaxed));
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A program that serves for longer than this process.
#[derive(Debug)]
pub struct Service {
    child: tokio::process::Child,
    pub readiness: Readiness,
}

/// What a service said first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// The first line that it wrote to standard output, without its end; empty if it wrote none.
    Line(String),
    /// It said nothing in time, and has been killed.
    TimedOut,
}

impl Service {
    /// Waits for its end, so that it leaves no zombie.
    pub async fn ended(mut self) {
        // There is nothing to be done about a failure, and nothing depends on it.
        let _ = self.child.wait().await;
    }
}

/// Starts a program that lives on when this process ends, under the name `name`, and waits for its first line of output.
/// It inherits standard error, and nothing else: no environment, no other descriptor.
///
/// # Errors
/// When it cannot be started.
pub async fn start_service(program: &Path, name: &str, args: &[OsString], clock: Duration) -> io::Result<Service> {
    super::clone::close_on_exec_from(3)?;
    let mut command = std::process::Command::new(program);
    command.arg0(name).args(args).env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = tokio::process::Command::from(command).spawn()?;
    let stdout = child.stdout.take();
    let readiness = match tokio::time::timeout(clock, first_line(stdout)).await {
        Ok(line) => Readiness::Line(line),
        Err(_) => {
            // Not ours to wait for: tokio reaps it when it is gone.
            let _ = child.start_kill();
            Readiness::TimedOut
        }
    };
    Ok(Service { child, readiness })
}

async fn first_line(pipe: Option<tokio::process::ChildStdout>) -> String {
    let mut line = Vec::new();
    if let Some(mut pipe) = pipe {
        while line.len() < 4096 {
            match pipe.read_u8().await {
                Ok(b'\n') | Err(_) => break,
                Ok(byte) => line.push(byte),
            }
        }
    }
    String::from_utf8_lossy(&line).into_owned()
}

fn kill_group(group: u32) {
    let pid = i32::try_from(group).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // The group may be gone already, which is what we want.
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    }
}

async fn read_capped<R: tokio::io::AsyncRead + Unpin>(pipe: Option<R>, into: &mut Vec<u8>, cap: usize) {
    let Some(mut pipe) = pipe else { return };
    let mut chunk = vec![0; 16 * 1024];
    while let Ok(n) = pipe.read(&mut chunk).await {
        if n == 0 {
            return;
        }
        let room = cap.saturating_sub(into.len());
        into.extend_from_slice(&chunk[..n.min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn shell(script: &str) -> Exec {
        Exec {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: Vec::new(),
            stdin: Vec::new(),
            timeout: Duration::from_secs(60),
            output_cap: 1024,
        }
    }

    fn is_dead(pid: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.map_or(true, |stat| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z")))
    }

    async fn until_dead(pid: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !is_dead(pid) {
            assert!(Instant::now() < deadline, "{pid} lives on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn what_a_program_leaves_behind_does_not_hold_its_caller_up() {
        let run = run(shell("sleep 1000 & echo $!; exit 5"));
        let output = tokio::time::timeout(Duration::from_secs(20), run).await.unwrap().unwrap();
        assert_eq!(output.status.code(), Some(5));
        let left = String::from_utf8(output.stdout).unwrap();
        let pid = rustix::process::Pid::from_raw(left.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }

    #[tokio::test]
    async fn a_program_that_runs_alone_leaves_nothing_of_its_group() {
        for script in ["sleep 1000 & echo $!; exit 5", "sleep 1000 >/dev/null 2>&1 & echo $!; exit 5"] {
            let mut exec = shell(script);
            exec.env = vec![("PATH".into(), "/usr/bin:/bin".into())];
            let output = run_alone(exec).await.unwrap();
            assert_eq!(output.status.code(), Some(5));
            until_dead(String::from_utf8(output.stdout).unwrap().trim()).await;
        }
    }

    #[tokio::test]
    async fn a_late_or_forgotten_program_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {0}.new; mv {0}.new {0}; echo late >&2; wait", file.display());
        let mut exec = shell(&script);
        exec.env = vec![("PATH".into(), "/usr/bin:/bin".into())];
        exec.timeout = Duration::from_millis(500);
        let failed = run(exec.clone()).await.unwrap_err();
        assert!(failed.to_string().contains("late"), "{failed}");
        until_dead(std::fs::read_to_string(&file).unwrap().trim()).await;
        std::fs::remove_file(&file).unwrap();
        exec.timeout = Duration::from_secs(60);
        let running = tokio::spawn(run(exec));
        while !file.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        running.abort();
        until_dead(std::fs::read_to_string(&file).unwrap().trim()).await;
    }

    #[tokio::test]
    async fn only_three_descriptors_are_inherited_and_output_is_bounded() {
        let open = std::fs::File::open("/dev/null").unwrap();
        rustix::io::fcntl_setfd(&open, rustix::io::FdFlags::empty()).unwrap();
        let mut exec = shell("ls /proc/self/fd");
        exec.env = vec![("PATH".into(), "/usr/bin:/bin".into())];
        let output = run(exec.clone()).await.unwrap();
        // The fourth is the directory that is being listed.
        assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n1\n2\n3\n");
        exec.args = vec!["-c".into(), "head -c 100000 /dev/zero; cat".into()];
        exec.stdin = b"input".to_vec();
        assert_eq!(run(exec).await.unwrap().stdout.len(), 1024);
    }
}
