//! What a request does.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::process::Signal;

use super::init::{InitFlight, Namespaces};
use super::spawn::{Flight, Given, Kin, kin, read_pid_file};
use super::table::{Held, is_name};
use super::{Server, share};
use crate::keeper::protocol::{Body, ErrorCode, Exit, ExitStatus, Header, HoldOp, InitOp, Op, PIDFD, SpawnOp, VERSION};
use crate::sys::pidfd;
use crate::sys::seqpacket::{Datagram, MAX_BYTES, MAX_FDS};

/// The kinds of namespaces that a pod's init enters; it always gets a pid and a mount namespace of its own.
const NAMESPACES: [&str; 4] = ["net", "ipc", "uts", "user"];

/// Why a request is refused.
type Refusal = (ErrorCode, String);

fn bad(message: impl Into<String>) -> Refusal {
    (ErrorCode::BadRequest, message.into())
}

impl Server {
    /// Carries out one request. Every one is answered once, now or when its process has ended. A seq that cannot be
    /// read is answered as 0.
    pub(super) fn request(&mut self, datagram: Datagram) {
        if datagram.cut {
            return self.refuse(0, ErrorCode::BadRequest, format!("the datagram is larger than {MAX_BYTES} bytes"));
        }
        let header: Header = match serde_json::from_slice(&datagram.bytes) {
            Ok(header) => header,
            Err(error) => return self.refuse(0, ErrorCode::BadRequest, format!("not a request: {error}")),
        };
        let seq = header.seq;
        match self.carry_out(&header, datagram) {
            Ok(Some(body)) => self.send(seq, body, Vec::new()),
            Ok(None) => {}
            Err((code, message)) => self.refuse(seq, code, message),
        }
    }

    fn carry_out(&mut self, header: &Header, datagram: Datagram) -> Result<Option<Body>, Refusal> {
        if datagram.fds_lost {
            return Err(bad(format!("more than {MAX_FDS} descriptors, or the keeper's table of descriptors is full")));
        }
        if header.v != VERSION {
            return Err(bad(format!("version {} is not spoken here, {VERSION} is", header.v)));
        }
        let op = serde_json::from_slice(&datagram.bytes).map_err(|error| bad(format!("{:?}: {error}", header.op)))?;
        let fds = datagram.fds;
        match op {
            Op::Hello => Ok(Some(Body::Hello {
                version: VERSION,
                pid: rustix::process::getpid().as_raw_pid(),
                instance: self.instance.clone(),
                boot_id: self.boot_id.clone(),
                mount_namespaces: true,
            })),
            Op::Spawn(op) => self.spawn(header.seq, op, fds).map(|()| None),
            Op::ForkInit(op) => self.fork_init(header.seq, op, fds).map(|()| None),
            Op::Hold(op) => self.hold(op, fds).map(Some),
            Op::List => {
                for (body, fds) in self.table.list() {
                    self.send(header.seq, Body::Entry(body), fds);
                }
                Ok(Some(Body::Done))
            }
            Op::Forget { id } => {
                self.table.forget(&id);
                Ok(Some(Body::Done))
            }
            Op::Quit if self.is_idle() => {
                self.quitting = true;
                Ok(Some(Body::Done))
            }
            Op::Quit => Err((ErrorCode::Busy, "processes or descriptors are still held".into())),
        }
    }

    fn spawn(&mut self, seq: u64, op: SpawnOp, fds: Vec<OwnedFd>) -> Result<(), Refusal> {
        if fds.len() != 3 + op.hold.len() + usize::from(op.mount_namespace) {
            return Err(bad(format!("{} descriptors for 3 and {} names", fds.len(), op.hold.len())));
        }
        match &op.id {
            Some(id) => self.check_new(id, &op.hold)?,
            None if op.pid_file.is_some() || !op.hold.is_empty() => {
                return Err(bad("a pid-file, and descriptors to hold, need an id"));
            }
            None => {}
        }
        let mut fds = fds;
        let mounts = if op.mount_namespace { fds.pop() } else { None };
        let mut fds = fds.into_iter();
        let stdio: Vec<OwnedFd> = fds.by_ref().take(3).collect();
        let Ok(stdio) = <[OwnedFd; 3]>::try_from(stdio) else { return Err(bad("three descriptors are needed")) };
        // Held before the program runs: from its first byte on its output has a reader that outlives the daemon.
        if let Some(id) = &op.id {
            let held = share(fds.collect());
            let entry = self.table.entry(id);
            entry.in_flight = op.pid_file.is_some();
            entry.fds.extend(op.hold.iter().cloned().zip(held));
        }
        match Flight::start(&self.single, &self.settings, seq, op.clone(), &Given { stdio, mounts }) {
            Ok(flight) => {
                self.flights.push(flight);
                Ok(())
            }
            Err(error) => {
                self.withdraw(&op);
                Err((ErrorCode::Exec, error.to_string()))
            }
        }
    }

    /// The id may get a process, and the names descriptors that it does not have.
    fn check_new(&self, id: &str, names: &[String]) -> Result<(), Refusal> {
        self.check_names(id, names)?;
        if self.table.is_taken(id) {
            return Err((ErrorCode::Taken, format!("{id:?} has a process")));
        }
        let entry = self.table.get(id);
        match names.iter().find(|name| entry.is_some_and(|entry| entry.fds.contains_key(*name))) {
            Some(name) => Err((ErrorCode::Taken, format!("{id:?} holds a descriptor {name:?}"))),
            None if names.iter().any(|name| name == PIDFD) => Err(bad(format!("{PIDFD:?} is the keeper's own name"))),
            None => Ok(()),
        }
    }

    fn check_names(&self, id: &str, names: &[String]) -> Result<(), Refusal> {
        if let Some(name) = names.iter().map(String::as_str).chain([id]).find(|name| !is_name(name)) {
            return Err(bad(format!("{name:?} is not a name")));
        }
        if names.iter().collect::<BTreeSet<_>>().len() != names.len() {
            return Err(bad("a name comes twice"));
        }
        Ok(())
    }

    pub(super) fn withdraw(&mut self, op: &SpawnOp) {
        if let Some(id) = &op.id {
            self.table.withdraw(id, &op.hold);
        }
    }

    /// Answers for a program that has been reaped.
    pub(super) fn finish(&mut self, mut flight: Flight) {
        let status = ExitStatus::from_wait(flight.status.unwrap_or_default());
        let seq = flight.seq;
        if seq == 0 {
            // Its caller was told that it does not die.
            return;
        }
        let refusal = if let Some(text) = flight.failure() {
            Some((ErrorCode::Exec, text))
        } else if flight.timed_out {
            Some((ErrorCode::TimedOut, "killed with its process group".into()))
        } else {
            None
        };
        if let Some((code, message)) = refusal {
            self.withdraw(&flight.op);
            return self.refuse(seq, code, message);
        }
        let (Some(id), Some(path), true) = (&flight.op.id, &flight.op.pid_file, status.success()) else {
            if flight.op.pid_file.is_some() || !status.success() {
                self.withdraw(&flight.op);
            }
            return self.send(seq, Body::Spawned { status, pid: None, own: false }, Vec::new());
        };
        match self.adopt(id, Path::new(path), &flight) {
            Ok((pid, held, own, exit)) => {
                self.send(seq, Body::Spawned { status, pid: Some(pid), own }, vec![held]);
                if let Some(exit) = exit {
                    self.send(0, Body::Exit { id: id.clone(), pid, exit }, Vec::new());
                }
            }
            Err(message) => {
                self.withdraw(&flight.op);
                self.refuse(seq, ErrorCode::NoPid, message);
            }
        }
    }

    /// Registers the process that a pid-file names: a living child of ours, or one that has ended since the runtime was
    /// started, or a descendant that will become a child.
    fn adopt(&mut self, id: &str, path: &Path, flight: &Flight) -> Result<(i32, Held, bool, Option<Exit>), String> {
        let pid = read_pid_file(path)?;
        let ours = self.table.is_child(pid) || self.flights.iter().any(|other| other.pid == pid);
        let relation = if ours { Kin::Stranger } else { kin(pid) };
        let stray = self.strays.iter().rposition(|stray| stray.pid == pid && stray.at >= flight.started);
        match (relation, stray) {
            (Kin::Child, _) => {
                // Not reaped, since nobody but us can: the number is its own.
                let held = Rc::new(pidfd::open(pid).map_err(|error| format!("process {pid}: {error}"))?);
                self.table.register(id, pid, Rc::clone(&held), true);
                Ok((pid, held, true, None))
            }
            (_, Some(at)) => {
                let stray = self.strays.swap_remove(at);
                self.table.register(id, pid, Rc::clone(&stray.pidfd), true);
                self.table.ended(pid, stray.exit);
                Ok((pid, stray.pidfd, true, Some(stray.exit)))
            }
            (Kin::Descendant, None) => {
                let held = Rc::new(pidfd::open(pid).map_err(|error| format!("process {pid}: {error}"))?);
                if kin(pid) == Kin::Stranger {
                    return Err(format!("process {pid}, which its pid-file names, has gone"));
                }
                // Its parent may reap it, so the daemon must look at the pidfd.
                self.table.register(id, pid, Rc::clone(&held), false);
                Ok((pid, held, false, None))
            }
            (Kin::Stranger, None) => Err(format!("its pid-file names process {pid}, which it did not start")),
        }
    }

    fn fork_init(&mut self, seq: u64, op: InitOp, fds: Vec<OwnedFd>) -> Result<(), Refusal> {
        if fds.len() != op.namespaces.len() {
            return Err(bad(format!("{} descriptors for {} names", fds.len(), op.namespaces.len())));
        }
        self.check_new(&op.id, &op.namespaces)?;
        if let Some(name) = op.namespaces.iter().find(|name| !NAMESPACES.contains(&name.as_str())) {
            return Err(bad(format!("a pod's init cannot be put into a {name:?} namespace")));
        }
        let namespaces = Namespaces::new(op.namespaces.into_iter().zip(fds).collect());
        let init = InitFlight::start(&self.single, seq, op.id, namespaces);
        let init = init.map_err(|error| (ErrorCode::Failed, format!("forking the pod's init: {error}")))?;
        self.table.entry(&init.id).in_flight = true;
        self.inits.push(init);
        Ok(())
    }

    /// Answers for the inits that have become ready or failed.
    pub(super) fn finish_inits(&mut self) {
        let mut at = 0;
        while let Some(init) = self.inits.get_mut(at) {
            let Some(report) = init.read() else {
                at += 1;
                continue;
            };
            let init = self.inits.swap_remove(at);
            match report.and_then(|forked| self.register_init(&init, forked)) {
                Ok((pid, held)) => self.send(init.seq, Body::Forked { pid }, vec![held]),
                Err(message) => self.drop_init(&init, &message),
            }
        }
    }

    fn register_init(&mut self, init: &InitFlight, forked: Option<i32>) -> Result<(i32, Held), String> {
        let (pid, fd) = match (&init.child, forked) {
            (Some(child), _) => (child.pid, child.pidfd.try_clone()),
            (None, Some(pid)) => (pid, pidfd::open(pid)),
            (None, None) => return Err("the pod's init did not tell its number".into()),
        };
        let held = Rc::new(fd.map_err(|error| format!("the pod's init: {error}"))?);
        if kin(pid) == Kin::Stranger {
            return Err("the pod's init died".into());
        }
        self.table.register(&init.id, pid, Rc::clone(&held), true);
        Ok((pid, held))
    }

    pub(super) fn drop_init(&mut self, init: &InitFlight, message: &str) {
        if let Some(child) = &init.child {
            // It may be dead, which is the aim.
            let _ = pidfd::signal(child.pidfd.as_fd(), Signal::KILL);
        }
        self.table.withdraw(&init.id, &[]);
        self.refuse(init.seq, ErrorCode::Failed, message);
    }

    fn hold(&mut self, op: HoldOp, fds: Vec<OwnedFd>) -> Result<Body, Refusal> {
        if fds.len() != op.names.len() {
            return Err(bad(format!("{} descriptors for {} names", fds.len(), op.names.len())));
        }
        self.check_names(&op.id, &op.names)?;
        let known = self.table.get(&op.id).and_then(|entry| entry.pid);
        let takes_over = op.pid.is_some() && op.pid != known;
        if takes_over && self.table.is_taken(&op.id) {
            return Err((ErrorCode::Taken, format!("{:?} has a process", op.id)));
        }
        if !takes_over && op.names.iter().any(|name| name == PIDFD) {
            return Err(bad(format!("{PIDFD:?} is the keeper's own name")));
        }
        let entry = self.table.entry(&op.id);
        entry.fds.extend(op.names.into_iter().zip(share(fds)));
        if takes_over {
            entry.pid = op.pid;
            entry.exit = op.exit;
        }
        Ok(Body::Done)
    }
}
