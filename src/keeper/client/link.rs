//! The task that owns the connection and the table of requests, and replaces a keeper that has died.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::mirror::{Listed, Mirror};
use super::start::{self, Connected};
use super::{HeldProcess, KeeperOptions};
use crate::keeper::KeeperError;
use crate::keeper::protocol::{Body, HoldOp, Op, PIDFD, Reply, Request, VERSION};
use crate::sys::seqpacket::{Datagram, MAX_BYTES, MAX_FDS};

/// What a caller wants.
#[derive(Debug)]
pub struct Command {
    pub operation: &'static str,
    pub op: Op,
    pub fds: Vec<Arc<OwnedFd>>,
    pub on_loss: OnLoss,
    pub reply: oneshot::Sender<Result<Answer, KeeperError>>,
}

/// What becomes of a request that is unanswered when the keeper dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnLoss {
    /// Its caller is told.
    Fail,
    /// The next keeper is asked: the request may be repeated without harm.
    Again,
    /// Its caller is told, and no other keeper is started for it.
    Stop,
}

/// What the keeper answered.
#[derive(Debug)]
pub struct Answer {
    pub body: Body,
    /// The process that the answer names; it is in the mirror already.
    pub process: Option<HeldProcess>,
    /// For a list.
    pub listed: Listed,
}

struct Pending {
    command: Command,
    listed: Listed,
}

/// Requests that are written but not taken by the socket, at most; then callers wait.
const BACKLOG: usize = 64;

/// The task.
pub struct Link {
    options: KeeperOptions,
    mirror: Arc<Mirror>,
    inbox: mpsc::Receiver<Command>,
    connected: Connected,
    outbox: VecDeque<(Vec<u8>, Vec<Arc<OwnedFd>>)>,
    pending: HashMap<u64, Pending>,
    next_seq: u64,
    /// The keeper was asked to end and agreed: another is started only for the next request.
    quit: bool,
}

enum Next {
    Sent,
    Received(Datagram),
    Command(Command),
}

/// Why the connection is no more.
enum End {
    Lost,
    /// No handle is left.
    Unused,
    TakenOver,
}

impl Link {
    pub fn new(
        options: KeeperOptions,
        mirror: Arc<Mirror>,
        inbox: mpsc::Receiver<Command>,
        connected: Connected,
    ) -> Self {
        mirror.greet(&connected);
        // 1 was the greeting's.
        Self {
            options,
            mirror,
            inbox,
            connected,
            outbox: VecDeque::new(),
            pending: HashMap::new(),
            next_seq: 2,
            quit: false,
        }
    }

    /// Serves callers until no handle is left, or another daemon has taken the keeper over.
    pub async fn run(mut self) {
        loop {
            match self.serve().await {
                End::Unused => return,
                End::TakenOver => {
                    tracing::error!("another daemon has taken the keeper over; this one can start nothing any more");
                    // Dropping the table tells every caller.
                    return;
                }
                End::Lost => {
                    let mut again = self.fail_pending();
                    if std::mem::take(&mut self.quit) && again.is_empty() {
                        let Some(command) = self.inbox.recv().await else { return };
                        again.push(command);
                    }
                    if self.inbox.is_closed() && again.is_empty() {
                        return;
                    }
                    tracing::warn!(pid = self.connected.pid, "the connection to the keeper is lost");
                    self.reconnect().await;
                    for command in again {
                        self.request(command);
                    }
                }
            }
        }
    }

    async fn serve(&mut self) -> End {
        loop {
            let front = self.outbox.front();
            let next = tokio::select! {
                received = self.connected.socket.receive() => match received {
                    Ok(Some(datagram)) => Next::Received(datagram),
                    Ok(None) | Err(_) => return End::Lost,
                },
                sent = async {
                    match front {
                        Some((bytes, fds)) => self.connected.socket.send(bytes, fds).await,
                        None => std::future::pending().await,
                    }
                } => match sent {
                    Ok(()) => Next::Sent,
                    Err(_) => return End::Lost,
                },
                command = self.inbox.recv(), if self.outbox.len() < BACKLOG => match command {
                    Some(command) => Next::Command(command),
                    None => return End::Unused,
                },
            };
            match next {
                Next::Sent => drop(self.outbox.pop_front()),
                Next::Command(command) => self.request(command),
                Next::Received(datagram) => {
                    if !self.received(datagram) {
                        return End::TakenOver;
                    }
                }
            }
        }
    }

    fn encode(seq: u64, op: &Op) -> Option<Vec<u8>> {
        let bytes = serde_json::to_vec(&Request { v: VERSION, seq, op }).ok()?;
        (bytes.len() <= MAX_BYTES).then_some(bytes)
    }

    /// Puts a request into the table and on its way. What it hands over is in the mirror from here on.
    fn request(&mut self, command: Command) {
        let seq = self.next_seq;
        self.next_seq += 1;
        let Some(bytes) = Self::encode(seq, &command.op) else {
            let operation = command.operation;
            // The caller may have gone.
            let _ = command.reply.send(Err(KeeperError::TooLarge { operation }));
            return;
        };
        match &command.op {
            Op::Spawn(op) => {
                if let Some(id) = &op.id {
                    let held = command.fds.iter().skip(3).map(Arc::clone);
                    self.mirror.hold(id, op.hold.iter().cloned().zip(held));
                }
            }
            Op::Hold(op) => self.mirror.hold(&op.id, op.names.iter().cloned().zip(command.fds.iter().map(Arc::clone))),
            Op::Forget { id } => self.mirror.forget(id),
            Op::Hello | Op::ForkInit(_) | Op::List | Op::Quit => {}
        }
        self.outbox.push_back((bytes, command.fds.clone()));
        self.pending.insert(seq, Pending { command, listed: Vec::new() });
    }

    /// Takes an answer or an event; false when another daemon has taken over.
    fn received(&mut self, datagram: Datagram) -> bool {
        let Ok(reply) = serde_json::from_slice::<Reply>(&datagram.bytes) else {
            tracing::warn!(bytes = datagram.bytes.len(), "the keeper sent something that cannot be read");
            return true;
        };
        if datagram.fds_lost {
            tracing::error!("descriptors from the keeper were lost: this process may open no more");
        }
        match reply.body {
            Body::Replaced => return false,
            Body::Exit { id, pid, exit } => self.mirror.ended(&id, pid, exit),
            Body::Entry(body) => {
                if let Some(pending) = self.pending.get_mut(&reply.seq) {
                    pending.listed.push((body, datagram.fds));
                }
            }
            body => self.answer(reply.seq, body, datagram.fds),
        }
        true
    }

    fn answer(&mut self, seq: u64, body: Body, fds: Vec<OwnedFd>) {
        let Some(Pending { command, listed }) = self.pending.remove(&seq) else {
            tracing::warn!(seq, ?body, "the keeper answered what nobody asked");
            return;
        };
        self.quit |= command.op == Op::Quit && body == Body::Done;
        let process = self.settle(&command.op, &body, fds);
        let lacks_process =
            process.is_none() && matches!(body, Body::Spawned { pid: Some(_), .. } | Body::Forked { .. });
        let operation = command.operation;
        let answer = if lacks_process {
            // The process is held by the keeper, but without its descriptor there is no safe way to speak of it.
            Err(KeeperError::WrongAnswer { operation })
        } else {
            Ok(Answer { body, process, listed })
        };
        // The caller may have gone: what was done stays done, and is listed.
        let _ = command.reply.send(answer);
    }

    /// Brings the mirror up to date with an answer.
    fn settle(&self, op: &Op, body: &Body, fds: Vec<OwnedFd>) -> Option<HeldProcess> {
        let (pid, own) = match body {
            Body::Spawned { pid: Some(pid), own, .. } => (*pid, *own),
            Body::Forked { pid } => (*pid, true),
            Body::Spawned { status, pid: None, .. } if status.success() && !names_process(op) => return None,
            Body::Spawned { .. } | Body::Error { .. } => {
                self.withdraw(op);
                return None;
            }
            _ => return None,
        };
        let id = match op {
            Op::Spawn(op) => op.id.as_deref()?,
            Op::ForkInit(op) => &op.id,
            _ => return None,
        };
        let pidfd = Arc::new(fds.into_iter().next()?);
        self.mirror.register(id, pid, Arc::clone(&pidfd), own);
        Some(HeldProcess { pid, pidfd })
    }

    fn withdraw(&self, op: &Op) {
        if let Op::Spawn(op) = op
            && let Some(id) = &op.id
        {
            self.mirror.withdraw(id, &op.hold);
        }
    }

    /// Tells those who cannot be served again; gives back the others.
    fn fail_pending(&mut self) -> Vec<Command> {
        self.outbox.clear();
        let mut pending: Vec<_> = self.pending.drain().collect();
        // In the order in which they were asked.
        pending.sort_by_key(|(seq, _)| *seq);
        let mut again = Vec::new();
        for (_, Pending { command, .. }) in pending {
            if command.on_loss == OnLoss::Again && !command.reply.is_closed() {
                again.push(command);
                continue;
            }
            self.withdraw(&command.op);
            let operation = command.operation;
            let _ = command.reply.send(Err(KeeperError::Died { operation }));
        }
        again
    }

    /// Tries until there is a keeper again that holds what the mirror holds. Callers wait meanwhile, by their own clocks.
    async fn reconnect(&mut self) {
        let mut pause = Duration::from_millis(20);
        loop {
            match self.try_reconnect().await {
                Ok(()) => return,
                Err(error) => tracing::error!(%error, cause = ?std::error::Error::source(&error), "no keeper"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    async fn try_reconnect(&mut self) -> Result<(), KeeperError> {
        let connected = match start::connect(&self.options.socket).await {
            Err(error) if start::is_absent(&error) => {
                // From here on the pidfds tell how processes end.
                self.mirror.orphan_all();
                start::connect_or_start(&self.options).await?
            }
            other => other?,
        };
        let same = connected.instance == self.connected.instance;
        let pid = connected.pid;
        if same {
            resync(&connected, &self.mirror).await?;
        } else {
            self.mirror.orphan_all();
            hand_over(&connected, &self.mirror).await?;
        }
        self.mirror.greet(&connected);
        self.connected = connected;
        tracing::info!(pid, same, "connected to the keeper");
        Ok(())
    }
}

fn names_process(op: &Op) -> bool {
    matches!(op, Op::Spawn(op) if op.pid_file.is_some())
}

/// Asks one thing on a connection that is not in use yet, and collects what comes before the last answer.
async fn exchange(
    connected: &Connected,
    seq: u64,
    op: &Op,
    fds: &[Arc<OwnedFd>],
) -> Result<(Body, Listed), KeeperError> {
    let operation = "handing over";
    let lost = |_| KeeperError::Died { operation };
    let bytes = Link::encode(seq, op).ok_or(KeeperError::TooLarge { operation })?;
    let asked = async {
        connected.socket.send(&bytes, fds).await.map_err(lost)?;
        let mut listed = Vec::new();
        loop {
            let datagram = connected.socket.receive().await.map_err(lost)?.ok_or(KeeperError::Died { operation })?;
            let reply = serde_json::from_slice::<Reply>(&datagram.bytes);
            match reply.map_err(|_| KeeperError::WrongAnswer { operation })? {
                Reply { body: Body::Entry(body), .. } => listed.push((body, datagram.fds)),
                Reply { body: Body::Replaced, .. } => return Err(KeeperError::TakenOver),
                Reply { seq: at, body } if at == seq => return Ok((body, listed)),
                // Exits: the list that follows names them too.
                _ => {}
            }
        }
    };
    let late = |_| Err(KeeperError::NoAnswer { operation, after: super::AT_ONCE });
    tokio::time::timeout(super::AT_ONCE, asked).await.unwrap_or_else(late)
}

/// Learns what happened while the connection was lost, from the keeper that holds everything still.
async fn resync(connected: &Connected, mirror: &Mirror) -> Result<(), KeeperError> {
    let (_, listed) = exchange(connected, 2, &Op::List, &[]).await?;
    mirror.held(listed);
    Ok(())
}

/// Gives a new keeper everything.
async fn hand_over(connected: &Connected, mirror: &Mirror) -> Result<(), KeeperError> {
    let mut seq = 2;
    for mut handover in mirror.handovers() {
        // The process's own comes in the datagram that registers it.
        handover.fds.sort_by_key(|(name, _)| name != PIDFD);
        let parts = handover.fds.chunks(MAX_FDS);
        for part in parts {
            let (names, fds): (Vec<_>, Vec<_>) = part.iter().cloned().unzip();
            let op = HoldOp { id: handover.id.clone(), names, pid: handover.pid, exit: handover.exit };
            let (body, _) = exchange(connected, seq, &Op::Hold(op), &fds).await?;
            seq += 1;
            if let Body::Error { message, .. } = body {
                // One id that cannot be kept must not keep the others from it.
                tracing::error!(id = handover.id, message, "the new keeper does not take this over");
            }
        }
    }
    Ok(())
}
