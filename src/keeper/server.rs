//! The keeper's process: one thread around `poll`. It waits for nothing but `poll`, and never reads what it holds.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::connection::Connection;
use self::init::InitFlight;
use self::setup::{Place, note};
use self::spawn::{ChildSettings, Due, Flight};
use self::table::{Held, Table};
use super::KeeperError;
use super::protocol::{Body, ErrorCode, Exit, ExitStatus};
use crate::sys::clone::SingleThread;
use crate::sys::{host, pidfd, process, seqpacket};

mod connection;
mod init;
mod requests;
mod setup;
mod spawn;
mod table;

/// How to run.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Where to listen; at most 107 bytes. `<socket>.lock` is the lock.
    pub socket: PathBuf,
    /// Cgroups to move into before serving, one of each hierarchy; missing ones are made.
    pub cgroup_dirs: Vec<PathBuf>,
}

/// Children of ours that ended while a runtime was running: one of them may be the container that it is about to name.
#[derive(Debug)]
struct Stray {
    pid: i32,
    pidfd: Held,
    exit: Exit,
    at: Instant,
}

/// Strays remembered at most. A runtime leaves a handful.
const MAX_STRAYS: usize = 1024;
/// Datagrams taken from the connection between two looks at everything else.
const BATCH: usize = 32;

struct Server {
    single: SingleThread,
    settings: ChildSettings,
    signals: SignalFd,
    place: Place,
    instance: String,
    boot_id: String,
    connection: Option<Connection>,
    table: Table,
    flights: Vec<Flight>,
    inits: Vec<InitFlight>,
    strays: Vec<Stray>,
    /// A place in the table of descriptors. When that is full a daemon must still be able to connect, and let go of some.
    spare: Option<OwnedFd>,
    /// A request or a signal has asked for the end.
    quitting: bool,
}

/// Runs the keeper in this process, until it is asked to quit while it holds nothing. Must be called before the process
/// has opened a descriptor or started a thread. Writes `ready` to standard output when it can be connected to.
///
/// # Errors
/// When it cannot be set up; later only when `poll` fails.
pub fn run(options: ServerOptions) -> Result<(), KeeperError> {
    let mut server = match Server::new(&options) {
        Ok(server) => server,
        Err(error) => {
            setup::report_failure(&error);
            return Err(error);
        }
    };
    server.serve()
}

impl Server {
    fn new(options: &ServerOptions) -> Result<Self, KeeperError> {
        setup::detach()?;
        let single = SingleThread::prove();
        let single = single.map_err(|source| KeeperError::Setup { what: "counting threads", source })?;
        let signals = setup::signals()?;
        let settings = setup::limits()?;
        setup::join_cgroups(&options.cgroup_dirs)?;
        let place = setup::take_place(&options.socket)?;
        setup::report_ready()?;
        let read = |path| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        Ok(Self {
            single,
            settings,
            signals,
            place,
            instance: format!("{}-{}", rustix::process::getpid().as_raw_pid(), host::now_ns()),
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            connection: None,
            table: Table::default(),
            flights: Vec::new(),
            inits: Vec::new(),
            strays: Vec::new(),
            spare: spare(),
            quitting: false,
        })
    }

    fn serve(&mut self) -> Result<(), KeeperError> {
        // Lives on the heap and is touched only as far as datagrams are long.
        let mut scratch = vec![0; seqpacket::MAX_BYTES];
        while !self.quitting {
            self.wait()?;
            self.read_signals();
            self.reap();
            self.finish_inits();
            self.check_clocks(Instant::now());
            self.accept();
            self.read_requests(&mut scratch);
            if let Some(connection) = &mut self.connection {
                connection.flush();
                if connection.is_broken() {
                    self.connection = None;
                }
            }
        }
        // Nobody must find a socket that leads nowhere.
        let _ = std::fs::remove_file(&self.place.socket);
        Ok(())
    }

    fn wait(&self) -> Result<(), KeeperError> {
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.place.listener, PollFlags::IN)];
        let connection = self.connection.as_ref().map(|connection| {
            let mut events = PollFlags::empty();
            events.set(PollFlags::IN, connection.may_read());
            events.set(PollFlags::OUT, connection.wants_to_write());
            (connection.fd(), events)
        });
        fds.extend(connection.map(|(fd, events)| PollFd::from_borrowed_fd(fd, events)));
        fds.extend(self.inits.iter().map(|init| PollFd::from_borrowed_fd(init.report(), PollFlags::IN)));
        let clocks = self.flights.iter().map(Flight::deadline).chain(self.inits.iter().map(|init| init.deadline));
        // A little late is better than a little early, which would only wake us again.
        let left = clocks.min().map(|at| at.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(KeeperError::Poll { source: error.into() }),
        }
    }

    fn read_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            let asks = [libc::SIGTERM, libc::SIGINT].iter().any(|n| u32::try_from(*n) == Ok(signal.ssi_signo));
            if !asks {
                continue;
            }
            if self.is_idle() {
                self.quitting = true;
            } else {
                note("told to end, but processes or descriptors are still held: staying");
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.table.is_empty() && self.flights.is_empty() && self.inits.is_empty()
    }

    /// Reaps every child that has ended, then answers for the runtimes among them.
    fn reap(&mut self) {
        while let Ok(Some(pid)) = process::peek_ended_child() {
            let is_runtime = self.flights.iter().any(|flight| flight.pid == pid);
            let may_be_named = !is_runtime
                && !self.table.is_child(pid)
                && self.flights.iter().any(|flight| flight.op.pid_file.is_some());
            // Only now: after the reaping the number means nothing.
            let pidfd = may_be_named.then(|| pidfd::open(pid).ok()).flatten();
            let Ok(ended) = process::reap(pid) else { return };
            let exit = Exit { status: ExitStatus::from_wait(ended.status), finished_at_ns: host::now_ns() };
            if let Some(flight) = self.flights.iter_mut().find(|flight| flight.pid == pid && flight.status.is_none()) {
                flight.status = Some(ended.status);
            } else if let Some(id) = self.table.ended(pid, exit) {
                self.send(0, Body::Exit { id, pid, exit }, Vec::new());
            } else if let Some(pidfd) = pidfd {
                if self.strays.len() >= MAX_STRAYS {
                    self.strays.remove(0);
                }
                self.strays.push(Stray { pid, pidfd: Rc::new(pidfd), exit, at: Instant::now() });
            }
        }
        while let Some(at) = self.flights.iter().position(|flight| flight.status.is_some()) {
            let flight = self.flights.swap_remove(at);
            self.finish(flight);
        }
        let oldest = self.flights.iter().map(|flight| flight.started).min();
        self.strays.retain(|stray| oldest.is_some_and(|oldest| stray.at >= oldest));
    }

    fn check_clocks(&mut self, now: Instant) {
        let mut given_up = Vec::new();
        for flight in &mut self.flights {
            if flight.check_clock(now) == Due::GiveUp {
                given_up.push((flight.seq, flight.op.clone()));
                // Answered; what is left is to reap it.
                flight.seq = 0;
            }
        }
        for (seq, op) in given_up {
            self.withdraw(&op);
            self.refuse(seq, ErrorCode::TimedOut, "killed, and it does not die");
        }
        let late = |init: &InitFlight| now >= init.deadline;
        while let Some(at) = self.inits.iter().position(late) {
            let init = self.inits.swap_remove(at);
            self.drop_init(&init, "the pod's init was not ready in time");
        }
    }

    fn accept(&mut self) {
        loop {
            let socket = match seqpacket::accept(self.place.listener.as_fd()) {
                Ok(socket) => socket,
                Err(error) => {
                    let full = matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
                    if full && self.spare.take().is_some() {
                        continue;
                    }
                    break;
                }
            };
            let own = rustix::process::geteuid().as_raw();
            match seqpacket::peer_uid(socket.as_fd()) {
                Ok(uid) if uid == own => {}
                _ => {
                    note("a connection by another user was refused");
                    continue;
                }
            }
            if let Some(mut old) = self.connection.replace(Connection::new(socket)) {
                old.send(0, Body::Replaced, Vec::new());
            }
        }
        self.spare = self.spare.take().or_else(spare);
    }

    fn read_requests(&mut self, scratch: &mut [u8]) {
        for _ in 0..BATCH {
            let Some(connection) = &mut self.connection else { return };
            if !connection.may_read() {
                return;
            }
            let Some(datagram) = connection.receive(scratch) else { return };
            // What was sent before a request comes before it, also in the middle of a batch: a signal is about what is
            // held at that moment, and an answer that names a process must find how it ended.
            self.read_signals();
            self.reap();
            if self.quitting {
                // Nothing may be started now, whoever asked for the end. Who asks for more sees the connection end.
                return;
            }
            self.request(datagram);
        }
    }

    fn send(&mut self, seq: u64, body: Body, fds: Vec<Held>) {
        if let Some(connection) = &mut self.connection {
            connection.send(seq, body, fds);
        }
    }

    fn refuse(&mut self, seq: u64, code: ErrorCode, message: impl Into<String>) {
        if let Some(connection) = &mut self.connection {
            connection.refuse(seq, code, message);
        }
    }
}

fn spare() -> Option<OwnedFd> {
    std::fs::File::open("/dev/null").ok().map(OwnedFd::from)
}

/// Shares descriptors that have just arrived.
fn share(fds: Vec<OwnedFd>) -> Vec<Held> {
    fds.into_iter().map(Rc::new).collect()
}
