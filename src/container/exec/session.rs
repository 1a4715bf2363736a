//! A command with a client at its streams: what Exec serves.
//!
//! ```text
//!   client ──stdin──▶ pipe or terminal ──▶ command ──▶ pipes or terminal ──stdout, stderr──▶ client
//!          ──sizes──▶ terminal                 └─ exit ─▶ what is left in the pipes ─▶ exit code
//! ```
//!
//! It is the client's command: a client that reads slowly slows it, and nothing is kept but one read per stream. When the
//! client goes away the command hears SIGHUP, and after [`HANG_UP_GRACE`] all of it is killed (decision 013).

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::super::console::Console;
use super::super::pipes::{self, Sink, Source};
use super::super::session::{Reader, SessionStreams, WindowSize, Writer, feed};
use super::super::{ContainerError, Containers, Resources};
use super::command::{self, Running, Wanted};
use super::{DRAIN_LIMIT, running};
use crate::runtime::Stdio;
use crate::state::ContainerRecord;

/// How long a command may go on after its client has gone and it was told so by SIGHUP; then all of it is killed.
const HANG_UP_GRACE: Duration = Duration::from_secs(10);

/// What one read takes at most, in bytes: the default capacity of a pipe. It is all that a stream keeps in memory.
const CHUNK: usize = 64 * 1024;

impl Containers {
    /// Runs a command in a running container with a client's streams, and gives its exit code, 128 + n when signal n ended
    /// it. All that it had written when it ended is with the client by then; what it left in the background is not waited
    /// for beyond two seconds.
    ///
    /// Dropping the future is the client going away: the command gets SIGHUP, and is killed with its whole tree when it is
    /// not gone 10 s later.
    ///
    /// # Errors
    /// [`ContainerError::TooManySessions`]; an error of the runtime when the command cannot be started;
    /// [`ContainerError::ExecCancelled`] when a client's terminal takes no more output.
    pub async fn exec_session(
        &self,
        id: &str,
        command: Vec<String>,
        tty: bool,
        streams: SessionStreams,
    ) -> Result<i32, ContainerError> {
        let container = self.find(id)?;
        let record = running(&container, &command)?;
        let place = container.session()?;
        let resources = self.resources().clone();
        let (mut caller, answer) = oneshot::channel();
        crate::task::spawn("exec-session", async move {
            let result = if tty {
                Box::pin(with_terminal(&resources, &record, &command, streams, &mut caller)).await
            } else {
                Box::pin(with_pipes(&resources, &record, &command, streams, &mut caller)).await
            };
            drop(place);
            // A caller that went away made the session end.
            let _ = caller.send(result);
        });
        answer.await.map_err(|_| ContainerError::ExecCancelled)?
    }
}

type Caller = oneshot::Sender<Result<i32, ContainerError>>;

/// Our ends of a command's streams; one that the client did not ask for is `None`.
#[derive(Default)]
struct Ends {
    input: Option<Sink>,
    stdout: Option<Source>,
    stderr: Option<Source>,
    terminal: Option<Window>,
    /// The pipes by their inodes: whoever holds one of them belongs to the command.
    held: Vec<u64>,
}

async fn with_pipes(
    resources: &Arc<Resources>,
    record: &Arc<ContainerRecord>,
    command: &[String],
    streams: SessionStreams,
    caller: &mut Caller,
) -> Result<i32, ContainerError> {
    let mut ends = Ends::default();
    let theirs = ends.open(&streams).map_err(|source| ContainerError::Pipe { source })?;
    let stdio = Stdio::Fds(theirs.map(Arc::new));
    let process = Running::start(resources, record, Wanted { command, stdio, tty: false, size: None }).await?;
    attend(process, ends, streams, caller).await
}

async fn with_terminal(
    resources: &Arc<Resources>,
    record: &Arc<ContainerRecord>,
    command: &[String],
    mut streams: SessionStreams,
    caller: &mut Caller,
) -> Result<i32, ContainerError> {
    let failed = |source| ContainerError::Pipe { source };
    let console = Console::listen(&resources.state_dir).map_err(failed)?;
    let window = Window::default();
    while let Ok(size) = streams.resize.try_recv() {
        window.resize(size);
    }
    let wanted = Wanted { command, stdio: Stdio::Console(console.path().to_owned()), tty: true, size: window.latest() };
    let (process, master) = {
        let call = console.during(Running::start(resources, record, wanted), |master| window.open(master));
        tokio::pin!(call);
        let mut sizes = true;
        loop {
            tokio::select! {
                started = &mut call => break started?,
                size = streams.resize.recv(), if sizes => match size {
                    Some(size) => window.resize(size),
                    None => sizes = false,
                },
            }
        }
    };
    match master.and_then(|master| Ends::of_terminal(&master, streams.stdin.is_some())) {
        Ok(ends) => attend(process, Ends { terminal: Some(window), ..ends }, streams, caller).await,
        Err(source) => {
            process.kill(Vec::new()).await;
            process.exit().await;
            process.forget().await?;
            Err(failed(source))
        }
    }
}

impl Ends {
    /// Ends of a terminal: each a duplicate, since the reactor takes each number once.
    fn of_terminal(master: &OwnedFd, input: bool) -> io::Result<Self> {
        pipes::non_blocking(master.as_fd())?;
        let input = input.then(|| master.try_clone().and_then(Sink::new)).transpose()?;
        Ok(Self { input, stdout: Some(Source::new(master.try_clone()?)?), ..Self::default() })
    }

    /// Makes the pipes for the streams that are asked for. Gives the command's ends, `/dev/null` for the others.
    fn open(&mut self, streams: &SessionStreams) -> io::Result<[OwnedFd; 3]> {
        let null = crate::sys::host::dev_null;
        let mut theirs = [null()?, null()?, null()?];
        if streams.stdin.is_some() {
            let (ours, end) = pipes::input()?;
            self.held.extend(command::inodes([ours.as_fd()]));
            (self.input, theirs[0]) = (Some(Sink::new(ours)?), end);
        }
        let outputs = [(&mut self.stdout, streams.stdout.is_some()), (&mut self.stderr, streams.stderr.is_some())];
        for ((source, asked), place) in outputs.into_iter().zip(&mut theirs[1..]) {
            if asked {
                let (ours, end) = pipes::output()?;
                self.held.extend(command::inodes([ours.as_fd()]));
                (*source, *place) = (Some(Source::new(ours)?), end);
            }
        }
        Ok(theirs)
    }
}

/// The client has gone.
struct Gone;

/// Serves the client until the command has ended and all of its output is delivered, or until the client has gone.
async fn attend(
    process: Running,
    mut ends: Ends,
    streams: SessionStreams,
    caller: &mut Caller,
) -> Result<i32, ContainerError> {
    let has_terminal = ends.terminal.is_some();
    let held = std::mem::take(&mut ends.held);
    // Our ends are closed when this returns; that of a terminal is a hang-up, which the kernel tells its processes.
    let result = match serve(&process, ends, streams, caller).await {
        Ok(code) => Ok(code),
        Err(Gone) => {
            if !has_terminal {
                process.hang_up();
            }
            // Whether it ended or not: what is left of it would run on with nobody to hear of it.
            let _ = tokio::time::timeout(HANG_UP_GRACE, process.exit()).await;
            process.kill(held).await;
            process.exit().await;
            Err(ContainerError::ExecCancelled)
        }
    };
    process.forget().await?;
    result
}

async fn serve(process: &Running, ends: Ends, streams: SessionStreams, caller: &mut Caller) -> Result<i32, Gone> {
    let Ends { input, stdout, stderr, terminal, .. } = ends;
    let mut resize = streams.resize;
    let (tell, ended) = watch::channel(false);
    let mut output = std::pin::pin!(async {
        tokio::join!(pump(stdout, streams.stdout, ended.clone()), pump(stderr, streams.stderr, ended.clone()))
    });
    let mut input = std::pin::pin!(stdin(streams.stdin, input));
    let mut exit = std::pin::pin!(process.exit());
    let (mut reading, mut feeding, mut sizes, mut code) = (true, true, true, None);
    loop {
        tokio::select! {
            done = &mut output, if reading => match (done, &terminal) {
                // A pipe that we let go of tells the command by itself that nobody reads; a terminal only hangs up.
                ((Err(_), _), Some(_)) => return Err(Gone),
                _ => reading = false,
            },
            status = &mut exit, if code.is_none() => {
                code = Some(status);
                tell.send_replace(true);
            }
            () = &mut input, if feeding => feeding = false,
            size = resize.recv(), if sizes => match (size, &terminal) {
                (Some(size), Some(window)) => window.resize(size),
                (Some(_), None) => {}
                (None, _) => sizes = false,
            },
            () = caller.closed() => return Err(Gone),
        }
        if let (Some(code), false) = (code, reading) {
            return Ok(code);
        }
    }
}

async fn stdin(client: Option<Reader>, end: Option<Sink>) {
    if let (Some(client), Some(end)) = (client, end) {
        // Its end is dropped with it. For a pipe that is the end of the input; a terminal stays, there is more of it.
        feed(client, end).await;
    }
}

/// What is still owed to the client after the command's end.
struct Owed {
    /// Bytes that were in the pipe then: they are delivered however slowly the client reads.
    bytes: u64,
    /// What comes later is of a process in the background, and is taken until then.
    until: Instant,
}

/// Carries one stream to the client until its end. An error is the client's: it takes no more of this stream.
async fn pump(source: Option<Source>, client: Option<Writer>, mut ended: watch::Receiver<bool>) -> io::Result<()> {
    let Some(source) = source else { return Ok(()) };
    // A terminal that nobody asked to see is read all the same, or its command would stand still.
    let mut client = client.unwrap_or_else(|| Box::new(tokio::io::sink()));
    let mut chunk = vec![0_u8; CHUNK];
    let mut owed: Option<Owed> = None;
    loop {
        let limit = owed.as_ref().map(|owed| owed.until);
        let n = tokio::select! {
            biased;
            // Without a sender the session is over, and this with it.
            _ = ended.wait_for(|ended| *ended), if owed.is_none() => {
                owed = Some(Owed { bytes: source.waiting(), until: Instant::now() + DRAIN_LIMIT });
                continue;
            }
            read = source.read(&mut chunk) => read.unwrap_or(0),
            () = sleep_until(limit) => 0,
        };
        if n == 0 {
            break;
        }
        client.write_all(&chunk[..n]).await?;
        client.flush().await?;
        if let Some(owed) = &mut owed {
            owed.bytes = owed.bytes.saturating_sub(n as u64);
            if owed.bytes == 0 && Instant::now() >= owed.until {
                break;
            }
        }
    }
    // The command is told first, the client may take its time.
    drop(source);
    client.shutdown().await
}

async fn sleep_until(limit: Option<Instant>) {
    match limit {
        Some(limit) => tokio::time::sleep_until(limit).await,
        None => std::future::pending().await,
    }
}

/// A terminal's size, which may be known before there is a terminal.
#[derive(Default)]
struct Window {
    master: OnceLock<Arc<OwnedFd>>,
    latest: Mutex<Option<WindowSize>>,
}

impl Window {
    fn latest(&self) -> Option<WindowSize> {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the master; it gets the latest size at once, before the command draws.
    fn open(&self, master: &Arc<OwnedFd>) {
        let master = self.master.get_or_init(|| master.clone());
        if let Some(size) = self.latest() {
            pipes::resize(master, size);
        }
    }

    fn resize(&self, size: WindowSize) {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(size);
        if let Some(master) = self.master.get() {
            pipes::resize(master, size);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    const TEXT: usize = 60_000;

    /// A pipe with some text in it, the process's end of it, and a client that reads through a narrow way.
    fn full_pipe() -> (Source, OwnedFd, Writer, tokio::io::DuplexStream) {
        let (ours, theirs) = pipes::output().unwrap();
        assert_eq!(rustix::io::write(&theirs, &vec![b'x'; TEXT]).unwrap(), TEXT);
        let (client, server) = tokio::io::duplex(100);
        (Source::new(ours).unwrap(), theirs, Box::new(server), client)
    }

    #[tokio::test]
    async fn what_was_there_at_the_end_is_delivered_and_what_holds_the_pipe_does_not_hold_the_session() {
        let (source, theirs, writer, mut client) = full_pipe();
        let (tell, ended) = watch::channel(false);
        tell.send_replace(true);
        let since = Instant::now();
        let pumping = crate::task::spawn("pump", pump(Some(source), Some(writer), ended));
        // The client reads nothing until the time of whoever holds the pipe is over.
        tokio::time::sleep_until(since + DRAIN_LIMIT + Duration::from_millis(100)).await;
        assert!(!pumping.is_finished());
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert_eq!(got.len(), TEXT);
        pumping.await.unwrap().unwrap();
        // The pipe is closed on our side, however long the other one is kept.
        assert_eq!(rustix::io::write(&theirs, b"x"), Err(rustix::io::Errno::PIPE));
    }

    #[tokio::test]
    async fn one_that_writes_without_end_does_not_hold_the_session() {
        let (source, theirs, writer, mut client) = full_pipe();
        let (tell, ended) = watch::channel(false);
        tell.send_replace(true);
        let writing = crate::task::blocking(move || while rustix::io::write(&theirs, &[b'y'; 4096]).is_ok() {});
        let writing = crate::task::spawn("child", writing);
        let pumping = crate::task::spawn("pump", pump(Some(source), Some(writer), ended));
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert!(got.len() > TEXT && got[..TEXT].iter().all(|byte| *byte == b'x'));
        pumping.await.unwrap().unwrap();
        writing.await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_takes_no_more_is_an_error_and_closes_the_pipe() {
        let (source, theirs, writer, client) = full_pipe();
        let (_tell, ended) = watch::channel(false);
        drop(client);
        assert!(pump(Some(source), Some(writer), ended).await.is_err());
        assert_eq!(rustix::io::write(&theirs, b"x"), Err(rustix::io::Errno::PIPE));
    }

    #[test]
    fn a_size_that_comes_before_the_terminal_is_kept_for_it() {
        let terminal = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
        let (window, master) = (Window::default(), Arc::new(terminal));
        let size = || rustix::termios::tcgetwinsize(&*master).map(|size| (size.ws_col, size.ws_row)).unwrap();
        window.resize(WindowSize { width: 1, height: 2 });
        window.resize(WindowSize { width: 3, height: 4 });
        window.open(&master);
        assert_eq!(size(), (3, 4));
        window.resize(WindowSize { width: 65_535, height: 0 });
        assert_eq!(size(), (65_535, 0));
    }
}
