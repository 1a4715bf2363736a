//! A real keeper process, and what becomes of it, of its daemon and of its children when one of them dies.
#![allow(clippy::unwrap_used)] // a test

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use cricket::keeper::{Exit, ExitStatus, Keeper, KeeperError, ProcessFile, SpawnRequest};
use futures_util::future::join_all;

use node::{LONG, Node, is_gone, kill, null, options, runtime, shell, status, until};

#[path = "keeper/node.rs"]
mod node;

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

async fn exit_of(keeper: &Keeper, id: &str, pidfd: &Arc<OwnedFd>) -> ExitStatus {
    let exit: Exit = tokio::time::timeout(LONG, keeper.wait_exit(id, pidfd)).await.expect("an exit in time");
    assert!(exit.finished_at_ns > 1_600_000_000_000_000_000);
    exit.status
}

#[tokio::test]
async fn a_program_gets_nothing_but_what_is_asked_for() {
    let node = Node::start().await;
    let (mut out, into) = pipe_files();
    let script =
        "pwd -P; echo code; env; ls /proc/self/fd; cat /proc/self/oom_score_adj; exec grep '^Sig' /proc/self/status";
    let request = SpawnRequest { stdio: [null(), into, null()], ..shell(script) };
    let spawned = node.keeper.spawn(request).await.unwrap();
    assert!(spawned.status.success() && spawned.process.is_none());
    let mut text = String::new();
    out.read_to_string(&mut text).unwrap();
    // The fourth is the directory that is being listed.
    let score = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let expected = format!("/\ncode\nPATH=/usr/bin:/bin\nPWD=/\n0\n1\n2\n3\n{score}");
    assert!(text.starts_with(&expected), "{text}");
    assert!(text.contains("SigBlk:\t0000000000000000") && text.contains("SigIgn:\t0000000000000000"), "{text}");
    assert_eq!(node.keeper.spawn(shell("exit 3")).await.unwrap().status, ExitStatus::Code(3));
}

fn pipe_files() -> (std::fs::File, Arc<OwnedFd>) {
    let (read, write) = pipe();
    (read.into(), Arc::new(write))
}

#[tokio::test]
async fn an_exit_is_told_and_kept_until_it_is_forgotten() {
    let node = Node::start().await;
    let process = node.left("a", "exit 42").await;
    assert_eq!(exit_of(&node.keeper, "a", &process.pidfd).await, ExitStatus::Code(42));
    let held = node.keeper.held().await.unwrap();
    assert_eq!((held.len(), held[0].pid), (1, Some(process.pid)));
    assert_eq!(held[0].exit.unwrap().status, ExitStatus::Code(42));
    assert!(held[0].fds.contains_key("pidfd"));
    node.keeper.forget("a").await.unwrap();
    node.keeper.forget("a").await.unwrap();
    assert!(node.keeper.held().await.unwrap().is_empty());
    let process = node.left("b", "kill -TERM $$").await;
    assert_eq!(exit_of(&node.keeper, "b", &process.pidfd).await, ExitStatus::Signal(15));
    let real_time = node.left("c", "kill -37 $$").await;
    assert_eq!(exit_of(&node.keeper, "c", &real_time.pidfd).await, ExitStatus::Signal(37));
}

#[tokio::test]
async fn a_process_that_dies_before_its_pid_file_is_read_is_not_lost() {
    let node = Node::start().await;
    for n in 0..200 {
        let id = format!("race{n}");
        // The number is written only once the process is dead, or just about then.
        let wait = "1 while (-e \"/proc/$p/exe\" && readlink(\"/proc/$p/exe\"))";
        let file = node.pid_file(&id);
        let request = runtime(&format!("exit {}", n % 100), &file, if n % 2 == 0 { wait } else { "" });
        let process = ProcessFile { id: id.clone(), pid_file: file, hold: Vec::new() };
        let spawned = node.keeper.spawn(SpawnRequest { process: Some(process), ..request }).await.unwrap();
        let process = spawned.process.unwrap();
        assert_eq!(exit_of(&node.keeper, &id, &process.pidfd).await, ExitStatus::Code(n % 100), "{id}");
        node.keeper.forget(&id).await.unwrap();
    }
}

#[tokio::test]
async fn many_at_once_do_not_wait_for_each_other() {
    let node = Node::start().await;
    // Each waits for a later one, so in a queue the first would wait for ever.
    let dir = node.dir.path().display().to_string();
    let spawn = |n: usize| {
        let wait = format!("1 while (!-e '{dir}/{}' && select(undef, undef, undef, 0.01) == 0)", n + 1);
        let done = format!("{}; open G, '>', '{dir}/{n}'", if n < 19 { wait } else { String::new() });
        let file = node.pid_file(&format!("m{n}"));
        let request = runtime(&format!("exit {n}"), &file, &done);
        let process = ProcessFile { id: format!("m{n}"), pid_file: file, hold: Vec::new() };
        node.keeper.spawn(SpawnRequest { process: Some(process), ..request })
    };
    let all = join_all((0..20).map(spawn)).await;
    for (n, spawned) in all.into_iter().enumerate() {
        let process = spawned.unwrap().process.unwrap();
        let code = i32::try_from(n).unwrap();
        assert_eq!(exit_of(&node.keeper, &format!("m{n}"), &process.pidfd).await, ExitStatus::Code(code));
    }
}

#[tokio::test]
async fn a_program_that_hangs_is_killed_with_its_group() {
    let node = Node::start().await;
    let (mut out, into) = pipe_files();
    let mut request = SpawnRequest { stdio: [null(), into, null()], ..shell("sleep 1000 & echo $!; sleep 1001") };
    request.timeout = Duration::from_millis(300);
    let failed = node.keeper.spawn(request).await;
    assert!(matches!(failed, Err(KeeperError::TimedOut { .. })), "{failed:?}");
    let mut text = String::new();
    // The end comes only when every process that has the pipe is dead.
    out.read_to_string(&mut text).unwrap();
    let child: i32 = text.trim().parse().unwrap();
    until("the child's death", || is_gone(child)).await;
    assert!(node.keeper.held().await.unwrap().is_empty());
}

#[tokio::test]
async fn errors_name_the_program() {
    let node = Node::start().await;
    let mut request = shell("");
    request.argv = vec!["/no/such/runtime".into()];
    let failed = node.keeper.spawn(request).await.unwrap_err();
    assert!(matches!(failed, KeeperError::Exec { .. }), "{failed:?}");
    let text = failed.to_string();
    assert!(text.contains("/no/such/runtime") && text.contains("No such file"), "{text}");
    // A pid-file that is missing, garbage, or names a stranger.
    for (n, script) in ["", "echo abc > F", "echo 1 > F", "echo -5 > F", "echo $PPID > F"].iter().enumerate() {
        let pid_file = node.pid_file(&n.to_string());
        let text = script.replace('F', &pid_file.display().to_string());
        let process = ProcessFile { id: "x".into(), pid_file, hold: vec![("out".into(), null())] };
        let failed = node.keeper.spawn(SpawnRequest { process: Some(process), ..shell(&text) }).await;
        assert!(matches!(failed, Err(KeeperError::NoPid { .. })), "{script}: {failed:?}");
    }
    assert!(node.keeper.held().await.unwrap().is_empty(), "a failed spawn leaves nothing");
    // A stale pid-file is not taken for this run's.
    std::fs::write(node.pid_file("stale"), std::process::id().to_string()).unwrap();
    let process = ProcessFile { id: "x".into(), pid_file: node.pid_file("stale"), hold: Vec::new() };
    let failed = node.keeper.spawn(SpawnRequest { process: Some(process), ..shell("") }).await.unwrap_err();
    assert!(failed.to_string().contains("No such file"), "{failed}");
    // A second process under one id.
    node.left("x", "exec sleep 1000").await;
    let failed = node.keeper.spawn(node.leave("x", "exec sleep 1000")).await;
    assert!(matches!(failed, Err(KeeperError::Refused { .. })), "{failed:?}");
    assert_eq!(node.keeper.held().await.unwrap().len(), 1);
    kill(node.keeper.held().await.unwrap()[0].pid.unwrap());
}

#[tokio::test]
async fn held_descriptors_outlive_the_daemon() {
    let node = Node::start().await;
    let (read, write) = pipe();
    let (read, write) = (Arc::new(read), Arc::new(write));
    let mut request = node.leave("a", "exec sleep 1000");
    if let Some(process) = &mut request.process {
        process.hold = vec![("stdout".into(), Arc::clone(&read))];
    }
    node.keeper.spawn(request).await.unwrap();
    let many: Vec<_> = (0..40).map(|n| (format!("extra{n}"), null())).collect();
    node.keeper.hold("a", many).await.unwrap();
    drop(read);
    let next = node.reconnect().await;
    let held = next.held().await.unwrap();
    assert_eq!((held.len(), held[0].fds.len()), (1, 42));
    // The pipe still has a reader, and it is the same pipe.
    std::fs::File::from(write.as_fd().try_clone_to_owned().unwrap()).write_all(b"kept").unwrap();
    let mut got = [0; 4];
    let read = held[0].fds["stdout"].as_fd().try_clone_to_owned().unwrap();
    std::fs::File::from(read).read_exact(&mut got).unwrap();
    assert_eq!(&got, b"kept");
    // The one that was replaced says so, and does not fight for the keeper.
    let failed = node.keeper.held().await;
    assert!(matches!(failed, Err(KeeperError::TakenOver)), "{failed:?}");
    assert_eq!(next.held().await.unwrap().len(), 1);
    kill(held[0].pid.unwrap());
}

/// Runs only as another process of `the_daemon_is_killed`.
#[tokio::test]
#[ignore = "the other process of a test"]
async fn client_process() {
    let dir = std::path::PathBuf::from(std::env::var_os("CRICKET_TEST_DIR").expect("run by the_daemon_is_killed"));
    let keeper = Keeper::connect_or_start(options(&dir)).await.unwrap();
    let pid_file = dir.join("a.pid");
    let go = dir.join("go");
    let script = format!("while [ ! -e {} ]; do sleep 0.01; done; exit 77", go.display());
    let request = runtime(&script, &pid_file, "");
    let process = ProcessFile { id: "a".into(), pid_file, hold: Vec::new() };
    keeper.spawn(SpawnRequest { process: Some(process), ..request }).await.unwrap();
    std::fs::write(dir.join("keeper.pid.new"), keeper.pid().to_string()).unwrap();
    std::fs::rename(dir.join("keeper.pid.new"), dir.join("keeper.pid")).unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
#[allow(clippy::disallowed_methods)] // the other process is this test binary itself
async fn the_daemon_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "client_process", "--ignored"])
        .env("CRICKET_TEST_DIR", dir.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    until("the first daemon's spawn", || dir.path().join("keeper.pid").exists()).await;
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    std::fs::write(dir.path().join("go"), "").unwrap();
    let first: i32 = std::fs::read_to_string(dir.path().join("keeper.pid")).unwrap().parse().unwrap();
    let keeper = Keeper::connect_or_start(options(dir.path())).await.unwrap();
    let node = Node { dir, keeper };
    assert_eq!(node.keeper.pid(), first, "the keeper survives its daemon");
    let held = node.keeper.held().await.unwrap();
    assert_eq!(held.len(), 1);
    assert_eq!(exit_of(&node.keeper, "a", &held[0].fds["pidfd"]).await, ExitStatus::Code(77));
}

#[tokio::test]
async fn the_keeper_is_killed() {
    let node = Node::start().await;
    let first = node.keeper.pid();
    let go = node.dir.path().join("go");
    let script = format!("while [ ! -e {} ]; do sleep 0.01; done; exit 55", go.display());
    let process = node.left("a", &script).await;
    let ended = node.left("b", "exit 5").await;
    assert_eq!(exit_of(&node.keeper, "b", &ended.pidfd).await, ExitStatus::Code(5));
    let (read, write) = pipe();
    node.keeper.hold("a", vec![("stdout".into(), Arc::new(read))]).await.unwrap();
    let keeper = node.keeper.clone();
    let in_flight = cricket::task::spawn("in-flight", async move { keeper.spawn(shell("exec sleep 1000")).await });
    until("the program's start", || children(first).len() >= 2).await;
    let running = children(first);
    kill(first);
    let failed = in_flight.await.unwrap();
    assert!(matches!(failed, Err(KeeperError::Died { .. })), "{failed:?}");
    until("the death of the runtime in flight", || running.iter().any(|pid| *pid != process.pid && is_gone(*pid)))
        .await;
    // Any request waits for the next keeper.
    let held = node.keeper.held().await.unwrap();
    assert_ne!(node.keeper.pid(), first);
    assert_eq!(held.iter().map(|held| held.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!((held[0].pid, held[0].exit), (Some(process.pid), None));
    assert_eq!(held[1].exit.unwrap().status, ExitStatus::Code(5), "an exit that was told is handed over too");
    // The new keeper holds the pipe's reader: this process drops its own with the client.
    let second = node.reconnect().await;
    assert!(second.held().await.unwrap()[0].fds.contains_key("stdout"));
    std::fs::File::from(write).write_all(b"x").unwrap();
    std::fs::write(go, "").unwrap();
    assert_eq!(exit_of(&second, "a", &process.pidfd).await, ExitStatus::Code(55), "told by the kernel");
    // And it goes on as the parent of what comes.
    let pid_file = node.pid_file("c");
    let request = runtime("exit 6", &pid_file, "");
    let process = ProcessFile { id: "c".into(), pid_file, hold: Vec::new() };
    let spawned = second.spawn(SpawnRequest { process: Some(process), ..request }).await.unwrap();
    assert_eq!(exit_of(&second, "c", &spawned.process.unwrap().pidfd).await, ExitStatus::Code(6));
}

fn children(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_ascii_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

#[tokio::test]
async fn it_quits_only_when_it_holds_nothing() {
    let node = Node::start().await;
    let pid = node.keeper.pid();
    let busy = node.keeper.clone();
    // Always a request in the socket, so that signals come between two that are read in one go.
    let flood = cricket::task::spawn("flood", async move {
        loop {
            join_all((0..8).map(|_| busy.held())).await;
        }
    });
    let keeper = rustix::process::Pid::from_raw(pid).unwrap();
    for _ in 0..200 {
        node.keeper.hold("a", vec![("x".into(), null())]).await.unwrap();
        node.keeper.quit_if_idle().await;
        assert_eq!(node.keeper.held().await.unwrap().len(), 1);
        rustix::process::kill_process(keeper, rustix::process::Signal::TERM).unwrap();
        rustix::process::kill_process(keeper, rustix::process::Signal::HUP).unwrap();
        // A signal counts for the moment at which it was sent: before this request, when something was held.
        node.keeper.forget("a").await.unwrap();
        assert_eq!(node.keeper.pid(), pid, "SIGTERM and SIGHUP are survived while something is held");
        assert_eq!(node.keeper.held().await.unwrap().len(), 0);
        assert_eq!(node.keeper.pid(), pid, "and are forgotten then");
    }
    flood.abort();
    assert!(flood.await.unwrap_err().is_cancelled());
    node.keeper.quit_if_idle().await;
    until("its end", || is_gone(pid)).await;
    assert!(!node.dir.path().join("keeper.sock").exists());
}

#[tokio::test]
async fn nothing_leaks_in_a_thousand_cycles() {
    let node = Node::start().await;
    let fds = || std::fs::read_dir(format!("/proc/{}/fd", node.keeper.pid())).unwrap().count();
    node.left("warm", "exit 0").await;
    node.keeper.forget("warm").await.unwrap();
    let before = fds();
    for round in 0..50 {
        let one = |n: usize| {
            let node = &node;
            async move {
                let id = format!("c{}", round * 20 + n);
                let mut request = node.leave(&id, "exit 1");
                if let Some(process) = &mut request.process {
                    process.hold = vec![("out".into(), null()), ("err".into(), null())];
                }
                let process = node.keeper.spawn(request).await.unwrap().process.unwrap();
                assert_eq!(exit_of(&node.keeper, &id, &process.pidfd).await, ExitStatus::Code(1));
                node.keeper.forget(&id).await.unwrap();
            }
        };
        join_all((0..20).map(one)).await;
    }
    assert_eq!(fds(), before);
    assert_eq!(children(node.keeper.pid()), Vec::<i32>::new(), "no zombie is left");
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", node.keeper.pid())).unwrap();
    println!("{rollup}");
    // Not what is dirty: of a program that was built a moment ago, that counts the pages that are not on the disk yet.
    let own = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")?.split_ascii_whitespace().next());
    let own: u64 = own.expect("the kernel counts them").parse().unwrap();
    assert!(own < 4096, "the keeper has {own} KiB of its own");
    assert_eq!(status(node.keeper.pid(), "Name"), "cricket-keeper");
}
