//! Real runtimes through a real keeper: crun and runc, as Debian has them.
#![allow(clippy::unwrap_used)] // a test

use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cricket::config;
use cricket::keeper::ExitStatus;
use cricket::runtime::{CreateRequest, ExecRequest, Handlers, HandlersOptions, OciRuntime, RuntimeError, Stdio};
use serde_json::{Value, json};

use node::{LONG, Node, is_gone, null, until};

#[path = "keeper/node.rs"]
mod node;

struct Place {
    node: Node,
    handlers: Handlers,
    /// A cgroup that no other test uses.
    cgroup: String,
}

impl Place {
    async fn new(name: &str) -> Self {
        let node = Node::start().await;
        let options = HandlersOptions { state: node.dir.path().to_owned(), systemd_cgroup: false };
        let handlers = Handlers::load(&config::Runtime::default(), &options).await.unwrap();
        Self { node, handlers, cgroup: format!("/cricket-test-{}-{name}", std::process::id()) }
    }

    fn runtime(&self, name: &str) -> Arc<OciRuntime> {
        self.handlers.lookup(name).unwrap()
    }

    fn bundle(&self, id: &str, script: &str, terminal: bool) -> PathBuf {
        let bundle = self.node.dir.path().join(id);
        std::fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let bind = |source: &str, at: &str| json!({"destination": at, "source": source, "options": ["rbind", "ro"]});
        let config = json!({
            "ociVersion": "1.0.0",
            "process": process(script, terminal),
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts"},
                bind("/usr", "/usr"), bind("/usr/bin", "/bin"), bind("/usr/lib", "/lib"), bind("/usr/lib64", "/lib64"),
            ],
            "linux": {
                "cgroupsPath": format!("{}/{id}", self.cgroup),
                "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}],
            },
        });
        std::fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        bundle
    }

    fn create(&self, id: &str, script: &str, stdout: Arc<OwnedFd>) -> CreateRequest {
        CreateRequest {
            mounts: None,
            id: id.into(),
            bundle: self.bundle(id, script, false),
            stdio: Stdio::Fds([null(), Arc::clone(&stdout), stdout]),
            timeout: LONG,
            hold: Vec::new(),
        }
    }

    fn exec(&self, id: &str, exec_id: &str, script: &str, stdout: Arc<OwnedFd>) -> ExecRequest {
        let process_json = self.node.dir.path().join(format!("{exec_id}.json"));
        std::fs::write(&process_json, process(script, false).to_string()).unwrap();
        ExecRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
            process_json,
            dir: self.node.dir.path().to_owned(),
            stdio: Stdio::Fds([null(), Arc::clone(&stdout), stdout]),
            timeout: LONG,
            hold: Vec::new(),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let _ = std::fs::remove_dir(hierarchy.path().join(self.cgroup.trim_start_matches('/')));
        }
    }
}

fn process(script: &str, terminal: bool) -> Value {
    json!({
        "terminal": terminal, "user": {"uid": 0, "gid": 0}, "cwd": "/", "noNewPrivileges": true,
        "env": ["PATH=/bin"], "args": script.split(' ').next().filter(|first| first.starts_with('/'))
            .map_or_else(|| json!(["/bin/sh", "-c", script]), |program| json!([program])),
    })
}

fn pipe() -> (std::fs::File, Arc<OwnedFd>) {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    (read.into(), Arc::new(write))
}

fn read_all(mut file: std::fs::File) -> String {
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

async fn life_of_a_container(name: &str) {
    let place = Place::new(name).await;
    let (runtime, keeper) = (place.runtime(name), &place.node.keeper);
    assert!(runtime.features.version.contains(name), "{:?}", runtime.features);
    let go = "while [ ! -e /dev/go ]; do sleep 0.01; done";
    let script = format!("echo started; grep -E 'Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd; {go}; exit 7");
    let (out, into) = pipe();
    let init = runtime.create(keeper, place.create("c1", &script, into)).await.unwrap();
    assert_eq!(runtime.state("c1").await.unwrap().unwrap().status, "created");
    assert_eq!(node::status(init.pid, "PPid"), keeper.pid().to_string());
    runtime.start("c1").await.unwrap();
    let state = runtime.state("c1").await.unwrap().unwrap();
    assert_eq!((state.status.as_str(), state.pid), ("running", init.pid));

    let (exec_out, into) = pipe();
    let process = runtime.exec(keeper, place.exec("c1", "e1", "echo hello; exit 3", into)).await.unwrap();
    let exit = tokio::time::timeout(LONG, keeper.wait_exit("e1", &process.pidfd)).await.unwrap();
    assert_eq!((exit.status, read_all(exec_out).as_str()), (ExitStatus::Code(3), "hello\n"));
    keeper.forget("e1").await.unwrap();
    assert!(!place.node.dir.path().join("e1.pid").exists() && !place.node.dir.path().join("e1.log").exists());
    let failed = runtime.exec(keeper, place.exec("c1", "e2", "/no/such/command", null())).await.unwrap_err();
    assert!(
        matches!(failed, RuntimeError::Failed { .. }) && failed.to_string().contains("/no/such/command"),
        "{failed}"
    );

    runtime.pause("c1").await.unwrap();
    assert_eq!(runtime.state("c1").await.unwrap().unwrap().status, "paused");
    runtime.resume("c1").await.unwrap();
    runtime.exec(keeper, place.exec("c1", "e3", ": > /dev/go", null())).await.unwrap();
    let exit = tokio::time::timeout(LONG, keeper.wait_exit("c1", &init.pidfd)).await.unwrap();
    assert_eq!(exit.status, ExitStatus::Code(7));
    let text = read_all(out);
    assert!(text.starts_with("started\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n0\n1\n2\n3\n"), "{text}");
    runtime.delete("c1", false).await.unwrap();
    runtime.delete("c1", false).await.unwrap();
    runtime.delete("c1", true).await.unwrap();
    assert_eq!(runtime.state("c1").await.unwrap(), None);

    // Killed while it runs, and deleted while it runs.
    let init = runtime.create(keeper, place.create("c2", "exec sleep 1000", null())).await.unwrap();
    runtime.start("c2").await.unwrap();
    runtime.kill("c2", 9).await.unwrap();
    let exit = tokio::time::timeout(LONG, keeper.wait_exit("c2", &init.pidfd)).await.unwrap();
    assert_eq!(exit.status, ExitStatus::Signal(9));
    runtime.delete("c2", true).await.unwrap();
    let init = runtime.create(keeper, place.create("c3", "exec sleep 1000", null())).await.unwrap();
    runtime.delete("c3", true).await.unwrap();
    until("the end of what was deleted", || is_gone(init.pid)).await;
}

async fn a_failed_create(name: &str) {
    let place = Place::new(&format!("{name}-failed")).await;
    let (runtime, keeper) = (place.runtime(name), &place.node.keeper);
    let mut request = place.create("c1", "/no/such/command", null());
    request.hold = vec![("stdout".into(), null())];
    let created = runtime.create(keeper, request).await;
    // crun finds out only at start.
    let failed = match created {
        Ok(_) => runtime.start("c1").await.unwrap_err(),
        Err(failed) => failed,
    };
    assert!(failed.to_string().contains("/no/such/command"), "{failed}");
    runtime.delete("c1", true).await.unwrap();
    keeper.forget("c1").await.unwrap();
    assert!(keeper.held().await.unwrap().is_empty());
    let request = place.create("c2", "exit 0", null());
    std::fs::write(request.bundle.join("config.json"), "{").unwrap();
    let failed = runtime.create(keeper, request).await.unwrap_err();
    assert!(matches!(failed, RuntimeError::Failed { .. }), "{failed:?}");
    assert!(!failed.to_string().contains("said nothing"), "{failed}");
    assert_eq!(runtime.state("c2").await.unwrap(), None);
    assert!(keeper.held().await.unwrap().is_empty());
}

async fn a_terminal(name: &str) {
    let place = Place::new(&format!("{name}-tty")).await;
    let (runtime, keeper) = (place.runtime(name), &place.node.keeper);
    let socket = place.node.dir.path().join("console.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let request = CreateRequest {
        mounts: None,
        id: "c1".into(),
        bundle: place.bundle("c1", "test -t 0 && test -t 1 && echo terminal; exit 4", true),
        stdio: Stdio::Console(socket),
        timeout: LONG,
        hold: Vec::new(),
    };
    let (created, accepted) = tokio::join!(runtime.create(keeper, request), listener.accept());
    let (init, (stream, _)) = (created.unwrap(), accepted.unwrap());
    let mut master = None;
    until("the master of the terminal", || {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; 256];
        let mut into = [std::io::IoSliceMut::new(&mut bytes)];
        let flags = rustix::net::RecvFlags::CMSG_CLOEXEC;
        if rustix::net::recvmsg(stream.as_fd(), &mut into, &mut control, flags).is_ok() {
            for part in control.drain() {
                if let rustix::net::RecvAncillaryMessage::ScmRights(mut fds) = part {
                    master = fds.next();
                }
            }
        }
        master.is_some()
    })
    .await;
    runtime.start("c1").await.unwrap();
    let exit = tokio::time::timeout(LONG, keeper.wait_exit("c1", &init.pidfd)).await.unwrap();
    assert_eq!(exit.status, ExitStatus::Code(4));
    let mut text = [0; 64];
    let n = std::fs::File::from(master.unwrap()).read(&mut text).unwrap();
    assert_eq!(String::from_utf8_lossy(&text[..n]).trim(), "terminal");
    runtime.delete("c1", true).await.unwrap();
    // Without a listener: its words are had although the descriptors are a terminal's.
    let request = CreateRequest {
        mounts: None,
        id: "c2".into(),
        bundle: place.bundle("c2", "exit 0", true),
        stdio: Stdio::Console(place.node.dir.path().join("nobody.sock")),
        timeout: LONG,
        hold: Vec::new(),
    };
    let failed = runtime.create(keeper, request).await.unwrap_err();
    assert!(failed.to_string().contains("nobody.sock") || failed.to_string().contains("connect"), "{failed}");
}

#[tokio::test]
#[ignore = "needs root, crun"]
async fn crun_runs_a_container() {
    life_of_a_container("crun").await;
}

#[tokio::test]
#[ignore = "needs root, runc"]
async fn runc_runs_a_container() {
    life_of_a_container("runc").await;
}

#[tokio::test]
#[ignore = "needs root, crun, runc"]
async fn a_create_that_fails_leaves_nothing() {
    a_failed_create("crun").await;
    a_failed_create("runc").await;
}

#[tokio::test]
#[ignore = "needs root, crun, runc"]
async fn a_terminal_s_master_is_sent_to_its_socket() {
    a_terminal("crun").await;
    a_terminal("runc").await;
}

#[tokio::test]
#[ignore = "needs root, runc, cgroup v1"]
async fn limits_are_updated() {
    let place = Place::new("update").await;
    let (runtime, keeper) = (place.runtime("runc"), &place.node.keeper);
    let init = runtime.create(keeper, place.create("c1", "exec sleep 1000", null())).await.unwrap();
    runtime.start("c1").await.unwrap();
    let updated = runtime.update("c1", br#"{"pids":{"limit":77},"cpu":{"shares":512}}"#).await;
    let file = format!("/sys/fs/cgroup/pids{}/c1/pids.max", place.cgroup);
    let set = std::fs::read_to_string(Path::new(&file));
    runtime.delete("c1", true).await.unwrap();
    until("its end", || is_gone(init.pid)).await;
    updated.unwrap();
    assert_eq!(set.unwrap().trim(), "77");
}

#[tokio::test]
async fn a_runtime_that_hangs_is_killed_and_its_leftovers_deleted() {
    use std::os::unix::fs::PermissionsExt as _;
    let node = Node::start().await;
    let program = node.dir.path().join("hang");
    let seen = node.dir.path().join("seen");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *create*) mkdir {1}; echo $$ > {0}.pid; sleep 1000;; \
         *delete*) rmdir {1}; echo \"$@\" >> {0};; esac\n",
        seen.display(),
        // What a runtime knows of a container is a folder of its root.
        node.dir.path().join("runtime/hang/c1").display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let handler = config::Handler { path: program, ..config::Handler::default() };
    let config = config::Runtime {
        default: "hang".into(),
        handlers: [("hang".to_owned(), handler)].into(),
        ..config::Runtime::default()
    };
    let options = HandlersOptions { state: node.dir.path().to_owned(), systemd_cgroup: false };
    let runtime = Handlers::load(&config, &options).await.unwrap().lookup("").unwrap();
    let request = CreateRequest {
        mounts: None,
        id: "c1".into(),
        bundle: node.dir.path().to_owned(),
        stdio: Stdio::Fds([null(), null(), null()]),
        timeout: Duration::from_millis(500),
        hold: vec![("stdout".into(), null())],
    };
    let failed = runtime.create(&node.keeper, request).await.unwrap_err();
    assert!(matches!(failed, RuntimeError::TimedOut { .. }), "{failed:?}");
    assert!(failed.to_string().starts_with("hang create c1: killed after 500 ms"), "{failed}");
    let pid = std::fs::read_to_string(seen.with_extension("pid")).unwrap().trim().parse().unwrap();
    assert!(is_gone(pid));
    assert!(std::fs::read_to_string(&seen).unwrap().contains("delete --force -- c1"));
    assert!(node.keeper.held().await.unwrap().is_empty());
}
