//! Trees of real processes. Each test passes all of its own descendants as the candidates, and a bystander among them.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

/// A process, and a session of its own, as a runtime makes for an exec.
fn start(script: &str) -> (Child, OwnedFd, std::fs::File, u64) {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let inode = inode(read.as_fd()).unwrap();
    let child = Command::new("setsid").args(["sh", "-c", script]).stdout(Stdio::from(write)).spawn().unwrap();
    let pidfd = pidfd::open(i32::try_from(child.id()).unwrap()).unwrap();
    (child, pidfd, read.into(), inode)
}

fn pid_of(child: &Child) -> i32 {
    i32::try_from(child.id()).unwrap()
}

fn read_line(file: &mut std::fs::File) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while file.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

fn is_dead(pid: i32) -> bool {
    Stat::of(pid).map_or(true, |stat| stat.is_dead())
}

fn wait_dead(pid: i32) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_dead(pid) {
        assert!(Instant::now() < deadline, "{pid} lives on");
        std::thread::yield_now();
    }
}

fn pids(line: &str) -> Vec<i32> {
    line.split_ascii_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn a_tree_is_killed_and_a_bystander_is_not() {
    // A child, a grandchild in a session of its own, and one that keeps nothing but the pipe.
    let script = "sleep 1000 & a=$!; setsid sleep 1001 & b=$!; echo $a $b; wait";
    let (mut root, pidfd, mut out, _) = start(script);
    let (mut other, _other_fd, ..) = start("exec sleep 1002");
    let mut members = pids(&read_line(&mut out));
    members.push(pid_of(&root));
    let mut candidates = members.clone();
    candidates.push(pid_of(&other));
    let killed = kill_tree(pid_of(&root), pidfd.as_fd(), &[], || candidates.clone());
    assert!(!killed.gave_up && killed.processes >= 3, "{killed:?}");
    for pid in members {
        wait_dead(pid);
    }
    assert!(!is_dead(pid_of(&other)), "a bystander died");
    root.wait().unwrap();
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn what_outlives_the_first_process_is_found_by_its_session_and_its_pipe() {
    // Neither has a living parent in the tree: one is in the session, the other in none but has the pipe.
    let script = "sleep 1000 >/dev/null & a=$!; setsid sh -c 'echo $0 $$; exec sleep 1001' $a & wait $!x 2>/dev/null";
    let (mut root, pidfd, mut out, inode) = start(script);
    let members = pids(&read_line(&mut out));
    root.wait().unwrap();
    let root_pid = pid_of(&root);
    let killed = kill_tree(root_pid, pidfd.as_fd(), &[inode], || members.clone());
    assert_eq!(killed, Killed { processes: 2, gave_up: false });
    for pid in members {
        wait_dead(pid);
    }
}

#[test]
fn nobody_outside_of_the_candidates_is_touched() {
    let (mut root, pidfd, mut out, _) = start("sleep 1000 & echo $!; wait");
    let child = pids(&read_line(&mut out))[0];
    let killed = kill_tree(pid_of(&root), pidfd.as_fd(), &[], Vec::new);
    assert_eq!(killed, Killed { processes: 1, gave_up: false }, "the first process is named by its pidfd");
    root.wait().unwrap();
    assert!(!is_dead(child));
    let fd = pidfd::open(child).unwrap();
    pidfd::signal(fd.as_fd(), Signal::KILL).unwrap();
    wait_dead(child);
}

#[test]
fn something_that_forks_all_the_time_is_caught() {
    let script = "echo go; i=0; \
                  while :; do sleep 0.001 & i=$((i+1)); [ $((i % 20)) = 0 ] && wait; done";
    let (mut root, pidfd, mut out, _) = start(script);
    assert_eq!(read_line(&mut out), "go");
    let session = pid_of(&root);
    let all = || {
        let dirs = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = dirs.filter_map(|dir| dir.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| Stat::of(*pid).is_ok_and(|stat| stat.session == session)).collect::<Vec<_>>()
    };
    let killed = kill_tree(session, pidfd.as_fd(), &[], all);
    assert!(!killed.gave_up, "{killed:?}");
    root.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while all().iter().any(|pid| !is_dead(*pid)) {
        assert!(Instant::now() < deadline, "some live on");
    }
}

#[test]
fn a_name_cannot_forge_the_fields_after_it() {
    let text = "42 (a) R 1 2 (b)) S 7 8 9 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 12345 1 1";
    let stat = Stat::parse(text).unwrap();
    assert_eq!((stat.pid, stat.state, stat.parent, stat.group, stat.session), (42, 'S', 7, 8, 9));
    assert_eq!(stat.start, 12345);
    for bad in ["", "42", "42 (a)", "42 (a) S", "42 (a) S 7 8 9 0", "x (a) S 7 8 9"] {
        assert_eq!(Stat::parse(bad), None, "{bad:?}");
    }
}

#[test]
fn the_kernel_keeps_an_exit_for_whoever_holds_the_pidfd() {
    let mut child = Command::new("sh").args(["-c", "exit 42"]).spawn().unwrap();
    let fd = pidfd::open(pid_of(&child)).unwrap();
    assert_eq!(pidfd::pid(fd.as_fd()).unwrap(), pid_of(&child));
    child.wait().unwrap();
    assert!(pidfd::has_ended(fd.as_fd()));
    assert!(pidfd::signal_zero(fd.as_fd()).is_err());
    match pidfd::exit_status(fd.as_fd()) {
        Ok(status) => assert_eq!(status, Some(42 << 8)),
        // Before Linux 6.15 the answer must be an error, and not a wrong number.
        Err(error) => {
            let code = error.raw_os_error().unwrap();
            assert!([libc::ENOTTY, libc::EINVAL, libc::ESRCH].contains(&code), "{error}");
        }
    }
}
