//! Clients of the streaming server: crictl, our own SPDY, and another maker's WebSocket.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use cri_proto::runtime::v1 as cri;
use cricket::streaming::spdy;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::client::Client;
use crate::node::Node;
use crate::world::{Finished, PATIENCE, top};

/// crictl on this node, in the world's namespaces. More words are to be added.
pub fn crictl(node: &Node) -> tokio::process::Command {
    let mut command = node.world.program(&top().join("critest/bin/crictl").to_string_lossy());
    let socket = format!("unix://{}", node.path("state/cricket.sock").display());
    command.args(["--runtime-endpoint", &socket, "--timeout", "60s"]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    command
}

/// Runs crictl to its end, with this input or none.
pub async fn run_crictl(node: &Node, words: &[&str], input: Option<&[u8]>) -> Result<Finished> {
    let mut command = crictl(node);
    command.args(words);
    if input.is_some() {
        command.stdin(std::process::Stdio::piped());
    }
    let mut child = command.spawn().context("crictl")?;
    let stdin = child.stdin.take();
    let feed = async {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // A command that ends before it has read everything is no fault.
            let _ = stdin.write_all(input).await;
        }
    };
    let both = async { tokio::join!(child.wait_with_output(), feed).0 };
    let output = tokio::time::timeout(PATIENCE, both).await.with_context(|| format!("crictl {words:?} hangs"))??;
    Ok(Finished {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Kills every crictl of this world. (The child that a test has started is `nsenter`, which waits for it.)
pub async fn kill_crictl(node: &Node) -> Result<()> {
    let is_crictl = |words: &[String]| words.first().is_some_and(|word| word.ends_with("/crictl"));
    let found: Vec<_> = node.world.processes().into_iter().filter(|(_, words)| is_crictl(words)).collect();
    ensure!(!found.is_empty(), "crictl does not run");
    for (pid, _) in found {
        node.world.must("kill", &["-KILL", &pid.to_string()]).await?;
    }
    Ok(())
}

/// A request for a command; the letters say which streams there are: `i`, `o`, `e`, `t`.
pub fn exec_request(id: &str, command: &[&str], streams: &str) -> cri::ExecRequest {
    let has = |letter| streams.contains(letter);
    cri::ExecRequest {
        container_id: id.to_owned(),
        cmd: command.iter().map(|word| (*word).to_owned()).collect(),
        tty: has('t'),
        stdin: has('i'),
        stdout: has('o'),
        stderr: has('e'),
    }
}

/// The URL for a command.
pub async fn exec_url(client: &Client, id: &str, command: &[&str], streams: &str) -> Result<String, tonic::Status> {
    Ok(client.runtime.clone().exec(exec_request(id, command, streams)).await?.into_inner().url)
}

/// The URL for attaching.
pub async fn attach_url(client: &Client, id: &str, streams: &str) -> Result<String, tonic::Status> {
    let cri::ExecRequest { container_id, tty, stdin, stdout, stderr, .. } = exec_request(id, &[], streams);
    let request = cri::AttachRequest { container_id, tty, stdin, stdout, stderr };
    Ok(client.runtime.clone().attach(request).await?.into_inner().url)
}

/// The URL for forwarding ports of a pod.
pub async fn forward_url(client: &Client, pod: &str, ports: &[i32]) -> Result<String, tonic::Status> {
    let request = cri::PortForwardRequest { pod_sandbox_id: pod.to_owned(), port: ports.to_vec() };
    Ok(client.runtime.clone().port_forward(request).await?.into_inner().url)
}

/// The address and the path of a URL.
pub fn parts(url: &str) -> Result<(SocketAddr, &str)> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url} is not http"))?;
    let (host, path) = rest.split_at(rest.find('/').context("no path")?);
    Ok((host.parse()?, path))
}

/// A connection made inside of the node's network namespace.
pub async fn connect(node: &Node, address: SocketAddr) -> Result<TcpStream> {
    let namespace = std::fs::File::open(node.world.network_namespace())?;
    // A socket stays in the namespace that it was made in; only a thread of its own may visit that.
    let connected = std::thread::spawn(move || -> std::io::Result<std::net::TcpStream> {
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network))?;
        std::net::TcpStream::connect(address)
    });
    let stream = connected.join().ok().context("the connecting thread panicked")??;
    stream.set_nonblocking(true)?;
    Ok(TcpStream::from_std(stream)?)
}

/// Sends a request with these headers; the status, the head of the answer and the connection behind it.
pub async fn request(node: &Node, url: &str, method: &str, headers: &str) -> Result<(u16, String, TcpStream)> {
    let (address, path) = parts(url)?;
    let mut stream = connect(node, address).await?;
    stream.set_nodelay(true)?;
    stream.write_all(format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n").as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tokio::time::timeout(PATIENCE, stream.read_u8()).await.context("no answer")??);
        ensure!(head.len() < 64 * 1024, "an answer without end");
    }
    let head = String::from_utf8(head)?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, head, stream))
}

/// A SPDY session at this URL.
pub async fn over_spdy(node: &Node, url: &str, version: &str) -> Result<(spdy::Session, spdy::Incoming)> {
    let headers = format!(
        "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {version}\r\nContent-Length: 0\r\n"
    );
    let (status, head, stream) = request(node, url, "POST", &headers).await?;
    ensure!(status == 101, "{head}");
    Ok(spdy::client(stream, spdy::Limits::default()))
}

/// A WebSocket at this URL.
pub async fn over_websocket(node: &Node, url: &str, protocol: &str) -> Result<WebSocketStream<TcpStream>> {
    let headers = format!(
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n"
    );
    let (status, head, stream) = request(node, url, "GET", &headers).await?;
    ensure!(status == 101, "{head}");
    Ok(WebSocketStream::from_raw_socket(stream, Role::Client, None).await)
}

/// The client's streams of a command or an attached container.
pub struct Session {
    pub session: spdy::Session,
    pub error: spdy::Stream,
    pub stdout: Option<spdy::Stream>,
    pub resize: Option<spdy::Stream>,
    /// Nobody uses these, but they have to stay.
    _stdin: Option<spdy::Stream>,
    _stderr: Option<spdy::Stream>,
    _incoming: spdy::Incoming,
}

impl Session {
    /// Opens all streams of a session over SPDY, version 4.
    pub async fn open(node: &Node, url: &str, streams: &str) -> Result<Self> {
        let (session, incoming) = over_spdy(node, url, "v4.channel.k8s.io").await?;
        let error = session.open([("streamType", "error")]).await?;
        let mut opened = [None, None, None, None];
        for (letter, (name, stream)) in
            "ioet".chars().zip(["stdin", "stdout", "stderr", "resize"].iter().zip(&mut opened))
        {
            if streams.contains(letter) {
                *stream = Some(session.open([("streamType", *name)]).await?);
            }
        }
        let [stdin, stdout, stderr, resize] = opened;
        Ok(Self { session, error, _stdin: stdin, stdout, resize, _stderr: stderr, _incoming: incoming })
    }

    /// All of the output, and then the verdict. The input is left open.
    pub async fn finish(mut self) -> Result<(String, String)> {
        let all = async {
            let mut out = Vec::new();
            if let Some(stdout) = &mut self.stdout {
                stdout.read_to_end(&mut out).await?;
            }
            let mut verdict = Vec::new();
            self.error.read_to_end(&mut verdict).await?;
            anyhow::Ok((String::from_utf8_lossy(&out).into_owned(), String::from_utf8_lossy(&verdict).into_owned()))
        };
        tokio::time::timeout(PATIENCE, all).await.context("the session does not end")?
    }
}

/// A file of this many bytes that do not compress, made inside of the node's folder.
pub async fn noise(node: &Node, name: &str, megabytes: u32) -> Result<String> {
    let path = node.path(name).to_string_lossy().into_owned();
    let script = "head -c \"$2\"M /dev/urandom > \"$1\"";
    node.world.must("bash", &["-c", script, "noise", &path, &megabytes.to_string()]).await?;
    ensure!(Path::new(&path).metadata()?.len() == u64::from(megabytes) << 20);
    Ok(path)
}
