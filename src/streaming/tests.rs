//! The whole server against clients, with a target of the test's own in place of containers and pods.

mod exec;
mod forward;
mod http;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use ::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;
use crate::container::ContainerError;
use crate::container::session::SessionStreams;
use crate::pod::PodError;

/// Longest wait for something that ought to happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// Commands by name, and one port that is open.
#[derive(Default)]
struct Fake {
    /// Where port 80 leads.
    port_80: Option<SocketAddr>,
    /// Sessions under way.
    running: Arc<AtomicUsize>,
}

struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Fake {
    fn begin(&self) -> Running {
        self.running.fetch_add(1, Ordering::SeqCst);
        Running(self.running.clone())
    }
}

impl Target for Fake {
    fn exec<'a>(&'a self, id: &'a str, command: Vec<String>, tty: bool, streams: SessionStreams) -> Outcome<'a, i32> {
        let running = self.begin();
        Box::pin(async move {
            let _running = running;
            perform(id, &command, tty, streams).await.map_err(TargetError::from)
        })
    }

    fn attach<'a>(&'a self, _: &'a str, mut streams: SessionStreams) -> Outcome<'a, ()> {
        let running = self.begin();
        Box::pin(async move {
            let _running = running;
            if let Some(stdout) = &mut streams.stdout {
                let _ = stdout.write_all(b"attached").await;
                let _ = stdout.shutdown().await;
            }
            Ok(())
        })
    }

    fn port_forward<'a>(&'a self, sandbox: &'a str, port: u16) -> Outcome<'a, TcpStream> {
        Box::pin(async move {
            match self.port_80 {
                Some(address) if port == 80 => Ok(TcpStream::connect(address).await.expect("the test listens")),
                _ => Err(PodError::PortRefused { id: sandbox.to_owned(), port }.into()),
            }
        })
    }
}

/// What the commands of a [`Fake`] do.
async fn perform(id: &str, command: &[String], tty: bool, streams: SessionStreams) -> Result<i32, ContainerError> {
    let SessionStreams { mut stdin, mut stdout, mut stderr, mut resize } = streams;
    match command[0].as_str() {
        // Gives back its input, then ends with the code that it was given.
        "cat" => {
            let (stdin, stdout) = (stdin.as_mut().unwrap(), stdout.as_mut().unwrap());
            let copied = tokio::io::copy(stdin, stdout).await;
            copied.map_err(|_| ContainerError::ExecCancelled)?;
            stdout.shutdown().await.map_err(|_| ContainerError::ExecCancelled)?;
            Ok(command[1].parse().unwrap())
        }
        "both" => {
            assert!(!tty);
            let _ = stdout.as_mut().unwrap().write_all(b"to stdout").await;
            let _ = stderr.as_mut().unwrap().write_all(b"to stderr").await;
            // The ends are dropped without being shut down: the session has to do it.
            Ok(command[1].parse().unwrap())
        }
        "sizes" => {
            let mut text = String::new();
            for _ in 0..3 {
                let size = resize.recv().await.unwrap();
                text.push_str(&format!("{}x{} ", size.width, size.height));
            }
            let _ = stdout.as_mut().unwrap().write_all(text.as_bytes()).await;
            Ok(0)
        }
        // Writes for as long as somebody listens.
        "flood" => {
            let chunk = vec![b'x'; 64 * 1024];
            while stdout.as_mut().unwrap().write_all(&chunk).await.is_ok() {}
            Err(ContainerError::ExecCancelled)
        }
        "hang" => std::future::pending().await,
        _ => Err(ContainerError::NotFound { id: id.to_owned() }),
    }
}

/// A server, and how many sessions are under way in it.
struct Server {
    streaming: Streaming,
    running: Arc<AtomicUsize>,
}

impl Server {
    async fn new() -> Self {
        Self::with(Fake::default(), |_| {}).await
    }

    async fn with(fake: Fake, change: impl FnOnce(&mut StreamingOptions)) -> Self {
        let mut options = StreamingOptions {
            listen: "127.0.0.1:0".parse().unwrap(),
            advertise: String::new(),
            tls: None,
            idle_timeout: Duration::from_secs(3600),
            creation_timeout: PATIENCE,
            token_ttl: TOKEN_TTL,
        };
        change(&mut options);
        let running = fake.running.clone();
        Self { streaming: Streaming::start(options, Arc::new(fake)).await.unwrap(), running }
    }

    /// The path of a URL for a command; the letters of `streams` say which there are: `i`, `o`, `e`, `t`.
    fn exec(&self, command: &[&str], streams: &str) -> String {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let request = ExecRequest { container_id: "c".to_owned(), command, streams: asked(streams) };
        self.path(self.streaming.exec(request).unwrap())
    }

    fn forward(&self, ports: &[u16]) -> String {
        let request = PortForwardRequest { sandbox_id: "p".to_owned(), ports: ports.to_vec() };
        self.path(self.streaming.port_forward(request).unwrap())
    }

    fn path(&self, url: String) -> String {
        let base = format!("http://{}", self.streaming.address());
        url.strip_prefix(&base).unwrap().to_owned()
    }

    /// Sends a request's head and reads that of the answer; the connection is left where the body or the upgrade begins.
    async fn request(&self, head: &str) -> (StatusCode, HeaderMap, TcpStream) {
        let mut stream = TcpStream::connect(self.streaming.address()).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let (status, headers) = read_head(&mut stream).await;
        (status, headers, stream)
    }

    async fn spdy(&self, path: &str, version: &str) -> (spdy::Session, spdy::Incoming) {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: {version}\r\nContent-Length: 0\r\n\r\n"
        );
        let (status, headers, stream) = self.request(&head).await;
        assert_eq!(status, StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(headers["x-stream-protocol-version"], version);
        spdy::client(stream, spdy::Limits::default())
    }

    async fn websocket(&self, path: &str, protocol: &str) -> WebSocketStream<TcpStream> {
        let (status, headers, stream) = self.request(&websocket_head(path, protocol)).await;
        assert_eq!(status, StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(headers["sec-websocket-protocol"], protocol);
        WebSocketStream::from_raw_socket(stream, Role::Client, None).await
    }

    /// Waits until no session is under way.
    async fn at_rest(&self) {
        let rest = async {
            while self.running.load(Ordering::SeqCst) > 0
                || self.streaming.shared.sessions.available_permits() < MAX_SESSIONS
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, rest).await.expect("a session stays");
    }
}

fn websocket_head(path: &str, protocol: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
    )
}

fn asked(streams: &str) -> Streams {
    let has = |letter| streams.contains(letter);
    Streams { stdin: has('i'), stdout: has('o'), stderr: has('e'), tty: has('t') }
}

async fn read_head(stream: &mut TcpStream) -> (StatusCode, HeaderMap) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = tokio::time::timeout(PATIENCE, stream.read_u8()).await.expect("no answer");
        head.push(byte.expect("an answer's head"));
        assert!(head.len() < 64 * 1024);
    }
    let text = String::from_utf8(head).unwrap();
    let mut lines = text.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap()));
    (status, headers.collect())
}

/// Everything to the end of a stream.
async fn rest(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut text = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut text)).await.expect("the stream does not end");
    read.expect("the stream ends well");
    String::from_utf8(text).unwrap()
}
