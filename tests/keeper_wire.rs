//! The keeper against a client that does not behave, and the pod inits that it forks.
#![allow(clippy::unwrap_used)] // a test

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use cricket::keeper::{ExitStatus, Keeper, KeeperError};
use cricket::sys::seqpacket::{self, MAX_BYTES, MAX_FDS};
use serde_json::{Value, json};

use node::{LONG, Node, is_gone, null, options, status, until};

#[path = "keeper/node.rs"]
mod node;

async fn say(socket: &OwnedFd, bytes: &[u8], fds: &[Arc<OwnedFd>]) -> Value {
    let fds = seqpacket::borrowed(fds.iter().map(AsRef::as_ref));
    seqpacket::send(socket.as_fd(), bytes, &fds).unwrap();
    hear(socket).await
}

async fn hear(socket: &OwnedFd) -> Value {
    let mut answer = Value::Null;
    until("an answer", || match seqpacket::receive(socket.as_fd(), &mut vec![0; MAX_BYTES]) {
        Ok(Some(datagram)) => {
            answer = serde_json::from_slice(&datagram.bytes).unwrap();
            true
        }
        Ok(None) => panic!("the keeper hung up"),
        Err(_) => false,
    })
    .await;
    answer
}

/// More than the library would send.
fn send_raw(socket: &OwnedFd, bytes: &[u8]) {
    let sent = rustix::net::send(socket, bytes, rustix::net::SendFlags::NOSIGNAL).unwrap();
    assert_eq!(sent, bytes.len());
}

#[tokio::test]
async fn garbage_is_answered_and_harms_nobody() {
    let node = Node::start().await;
    node.keeper.hold("a", vec![("x".into(), null())]).await.unwrap();
    let socket = seqpacket::dial(&node.dir.path().join("keeper.sock")).unwrap();
    let cases: [(&[u8], u64, &str); 9] = [
        (b"\x00\xff garbage", 0, "not a request"),
        (b"{}", 0, "not a request"),
        (br#"{"v":1,"seq":7}"#, 7, "missing field"),
        (br#"{"v":1,"seq":8,"op":"dance"}"#, 8, "unknown variant"),
        (br#"{"v":2,"seq":9,"op":"list"}"#, 9, "version 2"),
        (br#"{"v":1,"seq":10,"op":"forget"}"#, 10, "missing field"),
        (br#"{"v":1,"seq":11,"op":"hold","id":"../\u0000","names":[]}"#, 11, "is not a name"),
        (br#"{"v":1,"seq":12,"op":"hold","id":"b","names":["x"]}"#, 12, "0 descriptors for 1"),
        (br#"{"v":1,"seq":13,"op":"spawn","argv":["/bin/true"],"timeout_ms":1}"#, 13, "0 descriptors for 3"),
    ];
    for (bytes, seq, expected) in cases {
        let answer = say(&socket, bytes, &[]).await;
        assert_eq!((&answer["seq"], &answer["kind"]), (&json!(seq), &json!("error")), "{answer}");
        assert!(answer["message"].as_str().unwrap().contains(expected), "{answer}");
    }
    let mut large = br#"{"v":1,"seq":20,"op":"list","pad":""#.to_vec();
    large.resize(MAX_BYTES + 100, b' ');
    send_raw(&socket, &large);
    let answer = hear(&socket).await;
    assert!(answer["message"].as_str().unwrap().contains("larger than"), "{answer}");
    // Unknown fields are skipped, and what was held before is held still.
    let fds: Vec<_> = (0..MAX_FDS).map(|_| null()).collect();
    let names: Vec<_> = (0..MAX_FDS).map(|n| format!("n{n}")).collect();
    let text = json!({"v": 1, "seq": 21, "op": "hold", "id": "b", "names": names, "new": {"a": 1}}).to_string();
    assert_eq!(say(&socket, text.as_bytes(), &fds).await, json!({"seq": 21, "kind": "done"}));
    let listed = say(&socket, br#"{"v":1,"seq":22,"op":"list"}"#, &[]).await;
    assert_eq!((&listed["id"], &listed["names"]), (&json!("a"), &json!(["x"])));
}

#[tokio::test]
async fn too_many_descriptors_are_refused_and_closed() {
    let node = Node::start().await;
    let socket = seqpacket::dial(&node.dir.path().join("keeper.sock")).unwrap();
    say(&socket, br#"{"v":1,"seq":1,"op":"hello"}"#, &[]).await;
    let count = || std::fs::read_dir(format!("/proc/{}/fd", node.keeper.pid())).unwrap().count();
    let before = count();
    let nulls: Vec<_> = (0..=MAX_FDS).map(|_| null()).collect();
    let borrowed = seqpacket::borrowed(nulls.iter().map(AsRef::as_ref));
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS + 1))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&borrowed)));
    let text = std::io::IoSlice::new(br#"{"v":1,"seq":2,"op":"hold","id":"a","names":[]}"#);
    rustix::net::sendmsg(&socket, &[text], &mut control, rustix::net::SendFlags::NOSIGNAL).unwrap();
    let answer = hear(&socket).await;
    assert_eq!((&answer["seq"], &answer["kind"]), (&json!(2), &json!("error")), "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("more than 16"), "{answer}");
    assert_eq!(count(), before);
}

#[tokio::test]
async fn there_is_one_keeper_and_its_socket_is_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let node = Node::start().await;
    let socket = node.dir.path().join("keeper.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    // With its socket gone nobody can reach it, and nobody can take its place unseen either.
    std::fs::remove_file(&socket).unwrap();
    let failed = Keeper::connect_or_start(options(node.dir.path())).await.unwrap_err();
    assert!(matches!(&failed, KeeperError::NotReady { said, .. } if said.contains("another one holds")), "{failed:?}");
    let mut wrong = options(node.dir.path());
    wrong.cgroup_dirs = vec!["/proc/cricket-test".into()];
    let failed = Keeper::connect_or_start(wrong).await.unwrap_err();
    assert!(matches!(&failed, KeeperError::NotReady { said, .. } if said.contains("/proc/cricket-test")), "{failed:?}");
    let long = tempfile::Builder::new().prefix(&"l".repeat(120)).tempdir().unwrap();
    let failed = Keeper::connect_or_start(options(long.path())).await.unwrap_err();
    assert!(matches!(failed, KeeperError::Connect { .. }), "{failed:?}");
}

fn namespace(of: &str, kind: &str) -> OwnedFd {
    std::fs::File::open(format!("/proc/{of}/ns/{kind}")).unwrap().into()
}

fn inode(path: impl AsRef<Path>) -> String {
    std::fs::read_link(path).unwrap().display().to_string()
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_pod_init_has_nothing_and_reaps() {
    let node = Node::start().await;
    let net = vec![("net".to_owned(), Arc::new(namespace("self", "net")))];
    let init = node.keeper.fork_init("init", net).await.unwrap();
    let pid = init.pid;
    let proc = format!("/proc/{pid}");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(pid, set), "0000000000000000", "{set}");
    }
    assert_eq!(status(pid, "Uid"), "65534\t65534\t65534\t65534");
    assert_eq!(status(pid, "Gid"), "65534\t65534\t65534\t65534");
    assert_eq!(status(pid, "Groups"), "");
    assert_eq!((status(pid, "NoNewPrivs"), status(pid, "Name")), ("1".into(), "cricket-init".into()));
    assert_eq!((status(pid, "NSpid"), status(pid, "PPid")), (format!("{pid}\t1"), node.keeper.pid().to_string()));
    let command_line = std::fs::read(format!("{proc}/cmdline")).unwrap();
    let shown = String::from_utf8(command_line).unwrap();
    assert_eq!(shown.trim_end_matches('\0'), "cricket-init");
    assert_eq!(std::fs::read(format!("{proc}/environ")).unwrap(), b"");
    assert_eq!(std::fs::read_dir(format!("{proc}/fd")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(format!("{proc}/root/")).unwrap().count(), 0);
    assert!(std::fs::write(format!("{proc}/root/x"), "").is_err());
    let mounts = std::fs::read_to_string(format!("{proc}/mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(mounts.contains(" / / ro,nosuid,nodev,noexec") && mounts.contains("tmpfs"), "{mounts}");
    assert_ne!(inode(format!("{proc}/ns/pid")), inode("/proc/self/ns/pid"));
    assert_eq!(inode(format!("{proc}/ns/net")), inode("/proc/self/ns/net"));
    // A process that joins the namespace and leaves an orphan behind: the init becomes its parent and reaps it.
    let enter = format!("nsenter --pid=/proc/{pid}/ns/pid sh -c '(sleep 0.05; exit 3) & kill -TERM 1'");
    assert!(node.keeper.spawn(node::shell(&enter)).await.unwrap().status.success());
    let children = || std::fs::read_to_string(format!("{proc}/task/{pid}/children")).unwrap();
    until("the orphan's reaping", || children().trim().is_empty()).await;
    assert!(!is_gone(pid), "a SIGTERM from inside the pod is ignored");
    let outside = rustix::process::Signal::TERM;
    rustix::process::pidfd_send_signal(&init.pidfd, outside).unwrap();
    let exit = tokio::time::timeout(LONG, node.keeper.wait_exit("init", &init.pidfd)).await.unwrap();
    assert_eq!(exit.status, ExitStatus::Code(0));
    // A second one may have the id only after that is acknowledged.
    assert!(node.keeper.fork_init("init", Vec::new()).await.is_err());
    node.keeper.forget("init").await.unwrap();
    let init = node.keeper.fork_init("init", Vec::new()).await.unwrap();
    rustix::process::pidfd_send_signal(&init.pidfd, rustix::process::Signal::KILL).unwrap();
    let exit = tokio::time::timeout(LONG, node.keeper.wait_exit("init", &init.pidfd)).await.unwrap();
    assert_eq!(exit.status, ExitStatus::Signal(9));
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_pod_init_that_cannot_be_made_says_why() {
    let node = Node::start().await;
    let failed = node.keeper.fork_init("init", vec![("net".into(), null())]).await.unwrap_err();
    let text = failed.to_string();
    assert!(text.contains("entering the net namespace: Invalid argument"), "{text}");
    assert!(node.keeper.held().await.unwrap().is_empty());
}

#[tokio::test]
#[ignore = "needs root"]
#[allow(clippy::disallowed_methods)] // a process that owns a user namespace
async fn a_pod_init_can_belong_to_a_user_namespace() {
    let node = Node::start().await;
    let mut owner = std::process::Command::new("unshare")
        .args(["--user", "--net", "sleep", "1000"])
        .stdin(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let of = owner.id().to_string();
    let own = inode("/proc/self/ns/net");
    until("the user namespace", || inode(format!("/proc/{of}/ns/net")) != own).await;
    std::fs::write(format!("/proc/{of}/uid_map"), "0 200000 65536").unwrap();
    std::fs::write(format!("/proc/{of}/gid_map"), "0 200000 65536").unwrap();
    let namespaces = ["net", "user"].map(|kind| (kind.to_owned(), Arc::new(namespace(&of, kind))));
    let made = node.keeper.fork_init("init", namespaces.to_vec()).await;
    let shown = made.as_ref().map(|init| {
        let proc = format!("/proc/{}", init.pid);
        let kinds = ["net", "user"].map(|kind| inode(format!("{proc}/ns/{kind}")));
        let mounts = std::fs::read_to_string(format!("{proc}/mountinfo")).unwrap();
        (kinds, status(init.pid, "Uid"), status(init.pid, "PPid"), status(init.pid, "CapEff"), mounts.lines().count())
    });
    let expected = ["net", "user"].map(|kind| inode(format!("/proc/{of}/ns/{kind}")));
    owner.kill().unwrap();
    owner.wait().unwrap();
    let (kinds, uid, parent, caps, mounts) = shown.unwrap();
    assert_eq!(kinds, expected);
    assert_eq!(uid, "265534\t265534\t265534\t265534");
    assert_eq!((parent, caps, mounts), (node.keeper.pid().to_string(), "0000000000000000".into(), 1));
    let init = made.unwrap();
    rustix::process::pidfd_send_signal(&init.pidfd, rustix::process::Signal::KILL).unwrap();
    let exit = tokio::time::timeout(LONG, node.keeper.wait_exit("init", &init.pidfd)).await.unwrap();
    assert_eq!(exit.status, ExitStatus::Signal(9));
}

#[tokio::test]
#[ignore = "needs root"]
async fn the_keeper_moves_into_its_cgroups() {
    let hierarchy = ["/sys/fs/cgroup/cpuset", "/sys/fs/cgroup"]
        .map(Path::new)
        .into_iter()
        .find(|dir| dir.join("cgroup.procs").exists());
    let top = hierarchy.expect("a cgroup hierarchy").join(format!("cricket-test-{}", std::process::id()));
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path());
    options.cgroup_dirs = vec![top.join("keeper")];
    let node = Node { keeper: Keeper::connect_or_start(options).await.unwrap(), dir };
    let procs = std::fs::read_to_string(top.join("keeper/cgroup.procs")).unwrap();
    let pid = node.keeper.pid();
    drop(node);
    until("the keeper's end", || is_gone(pid)).await;
    until("the cgroup's end", || std::fs::remove_dir(top.join("keeper")).is_ok()).await;
    std::fs::remove_dir(&top).unwrap();
    assert_eq!(procs.trim(), pid.to_string());
}
