//! Attach: a client at the streams of a container's first process.
//!
//! Output comes from the monitor's outlets, from now on; input goes straight to the container's one stdin pipe or terminal,
//! of which the keeper holds a duplicate, so that it stays open from one session to the next and over restarts of the
//! daemon. With `stdin_once` and without a terminal it is closed for good when the first session that had it ends
//! (decision 014).

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::AsyncWriteExt as _;
use tokio::sync::{oneshot, watch};

use crate::monitor::log::Stream;
use crate::monitor::{Monitor, Outlet, OutletError, Wants};
use crate::state::{ContainerPhase, ContainerRecord};

use super::pipes::{self, Sink};
use super::session::{Reader, SessionStreams, Writer, feed};
use super::{Container, ContainerError, Containers, driver};

/// What sessions need of a living container.
#[derive(Debug)]
pub(super) struct Attaching {
    monitor: Monitor,
    /// Write end of stdin, or the terminal's master; `None` once it is closed, or when there never was one.
    input: Mutex<Option<Arc<OwnedFd>>>,
    /// True from when the input is closed for good: sessions let go of their duplicates.
    closed: watch::Sender<bool>,
}

impl Attaching {
    pub(super) fn new(monitor: Monitor, input: Option<Arc<OwnedFd>>) -> Self {
        Self { monitor, input: Mutex::new(input), closed: watch::Sender::new(false) }
    }

    fn input(&self) -> Option<Arc<OwnedFd>> {
        self.input.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets go of the input, here and in all sessions. The keeper has another duplicate.
    pub(super) fn close_input(&self) {
        *self.input.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.closed.send_replace(true);
    }
}

/// What the keeper holds as stdin is the pipe still, and not what takes its place when it is closed for good.
pub(super) fn is_open_stdin(fd: &OwnedFd) -> bool {
    let kind = rustix::fs::fstat(fd).map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode));
    kind.is_ok_and(|kind| kind == rustix::fs::FileType::Fifo)
}

impl Containers {
    /// Attaches a client to a container that is created or runs, from now on. Returns when the container's output has
    /// ended and the client has it all; when the client takes no more; and, as in the field, when the client's input ends
    /// and the container's is to stay open for other sessions (neither `stdin_once` nor a terminal).
    ///
    /// The terminal, or its absence, is the container's; what the request says of it does not count. Dropping the future
    /// detaches, and never ends the container.
    ///
    /// # Errors
    /// [`ContainerError::WrongState`]; [`ContainerError::NoStdin`] and [`ContainerError::StdinClosed`] when stdin is asked
    /// for and cannot be had; [`ContainerError::TooManySessions`]; [`ContainerError::Attach`] when the client was too
    /// slow for a part of the output that cannot be read again.
    pub async fn attach(&self, id: &str, streams: SessionStreams) -> Result<(), ContainerError> {
        let container = self.find(id)?;
        let session = Session::open(&container, streams)?;
        let place = container.session()?;
        let (mut caller, answer) = oneshot::channel::<Result<(), ContainerError>>();
        crate::task::spawn("attach", async move {
            let result = session.run(&container, &mut caller).await;
            drop(place);
            // A caller that went away made the session end.
            let _ = caller.send(result);
        });
        answer.await.map_err(|_| ContainerError::Monitor(crate::monitor::MonitorError::Ended))?
    }
}

struct Session {
    record: Arc<ContainerRecord>,
    attaching: Arc<Attaching>,
    outlet: Outlet,
    input: Option<(Reader, Sink)>,
    terminal: Option<Arc<OwnedFd>>,
    client: Client,
    resize: tokio::sync::mpsc::Receiver<super::session::WindowSize>,
}

/// The client's ends for output.
struct Client {
    stdout: Option<Writer>,
    stderr: Option<Writer>,
}

impl Session {
    fn open(container: &Container, streams: SessionStreams) -> Result<Self, ContainerError> {
        let record = container.record();
        let ended = || ContainerError::wrong_state(&record, "CREATED or RUNNING");
        let alive = matches!(record.phase, ContainerPhase::Created | ContainerPhase::Running);
        let attaching = container.attaching.load_full().filter(|_| alive).ok_or_else(ended)?;
        let failed = |source| ContainerError::Pipe { source };
        let input = streams.stdin.map(|client| {
            if !record.config.stdin {
                return Err(ContainerError::NoStdin { id: record.id.clone() });
            }
            let input = attaching.input().ok_or_else(|| ContainerError::StdinClosed { id: record.id.clone() })?;
            let end = input.try_clone().map_err(failed)?;
            pipes::non_blocking(std::os::fd::AsFd::as_fd(&end)).map_err(failed)?;
            Ok((client, Sink::new(end).map_err(failed)?))
        });
        let input = input.transpose()?;
        let terminal = if record.config.tty { attaching.input() } else { None };
        let client = Client { stdout: streams.stdout, stderr: streams.stderr };
        let wants = Wants { stdout: client.stdout.is_some(), stderr: client.stderr.is_some() };
        let outlet = attaching.monitor.attach(wants)?;
        Ok(Self { record: record.clone(), attaching, outlet, input, terminal, client, resize: streams.resize })
    }

    async fn run(
        self,
        container: &Container,
        caller: &mut oneshot::Sender<Result<(), ContainerError>>,
    ) -> Result<(), ContainerError> {
        let Self { record, attaching, mut outlet, input, terminal, mut client, mut resize } = self;
        let had_input = input.is_some();
        let once = had_input && record.config.stdin_once && !record.config.tty;
        // With a terminal the end of the client's input means nothing; the output goes on.
        let ends_with_input = had_input && !once && !record.config.tty;
        let mut closed = attaching.closed.subscribe();
        let mut feeding = had_input;
        let mut input = std::pin::pin!(async {
            let Some((reader, end)) = input else { return };
            tokio::select! {
                () = feed(reader, end) => {}
                // Another session's end has closed it.
                _ = closed.wait_for(|closed| *closed) => {}
            }
            if once {
                close_input(container).await;
            }
        });
        let mut sizes = true;
        let result = {
            let mut output = std::pin::pin!(client.follow(&mut outlet));
            loop {
                tokio::select! {
                    done = &mut output => break done,
                    () = &mut input, if feeding => {
                        feeding = false;
                        if ends_with_input {
                            break Ok(());
                        }
                    }
                    size = resize.recv(), if sizes => match (size, &terminal) {
                        (Some(size), Some(master)) => pipes::resize(master, size),
                        (Some(_), None) => {}
                        (None, _) => sizes = false,
                    },
                    () = caller.closed() => break Ok(()),
                }
            }
        };
        if once && feeding {
            close_input(container).await;
        }
        result.map_err(|source| ContainerError::Attach { id: record.id.clone(), source })
    }
}

/// The driver does it, in its turn; a container that has ended has closed its input itself.
async fn close_input(container: &Container) {
    if let Some(Err(error)) = container.ask(|reply| driver::Command::CloseInput { reply }).await {
        tracing::warn!(id = %container.id, error = %crate::telemetry::chain(&error), "stdin of a container cannot be closed for good");
    }
}

impl Client {
    /// Carries output to the client until its end, or until the client takes no more.
    async fn follow(&mut self, outlet: &mut Outlet) -> Result<(), OutletError> {
        while let Some(piece) = outlet.next().await? {
            let writer = match piece.stream {
                Stream::Stdout => &mut self.stdout,
                Stream::Stderr => &mut self.stderr,
            };
            let Some(writer) = writer else { continue };
            if writer.write_all(&piece.bytes).await.is_err() || writer.flush().await.is_err() {
                return Ok(());
            }
        }
        for writer in [&mut self.stdout, &mut self.stderr].into_iter().flatten() {
            // A client that has gone needs no end of its output.
            let _ = writer.shutdown().await;
        }
        Ok(())
    }
}
