//! A registry that does whatever a test wants: minimal HTTP/1.1, one request a connection.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use crate::image::document::{DOCKER_CONFIG, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};
use crate::image::platform::Platform;
use crate::storage::Digest;

#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub method: String,
    /// With the query.
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
    /// How many requests came before it.
    pub number: usize,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What to do with a request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Send only so many bytes of the body, then do `then`.
    pub cut: Option<(usize, Then)>,
    /// Wait for a permit before answering, or with [`Then::Wait`] in the middle of it.
    pub gate: Option<Arc<Semaphore>>,
    /// The `Content-Length` to claim.
    pub length: Option<usize>,
    /// Send the body again and again without a length, until the client goes.
    pub endless: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Then {
    Close,
    /// As a machine that fell over and came back: the connection is reset.
    Reset,
    Hang,
    /// Wait for a permit of the gate, then send the rest.
    Wait,
    /// A byte at a time, with pauses.
    Drip,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into(), ..Self::default() }
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// A running server; it stops when dropped.
pub(crate) struct Registry {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    task: AbortHandle,
}

impl Registry {
    pub(crate) async fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen: Arc<Mutex<Vec<Request>>> = Arc::default();
        let log = seen.clone();
        let answer = Arc::new(answer);
        let task = crate::task::spawn("test-registry", async move {
            while let Ok((stream, _)) = listener.accept().await {
                crate::task::spawn("test-connection", serve(stream, answer.clone(), log.clone()));
            }
        });
        Self { address, seen, task: task.abort_handle() }
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    pub(crate) fn seen(&self) -> Vec<Request> {
        self.seen.lock().expect("no panic").clone()
    }

    pub(crate) fn count(&self, part: &str) -> usize {
        self.seen().iter().filter(|request| format!("{} {}", request.method, request.path).contains(part)).count()
    }

    /// Values of a header over all requests that had it.
    pub(crate) fn headers(&self, name: &str) -> Vec<String> {
        self.seen().iter().filter_map(|request| request.header(name).map(str::to_owned)).collect()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut stream: TcpStream,
    answer: Arc<impl Fn(&Request) -> Reply + Send + Sync + 'static>,
    log: Arc<Mutex<Vec<Request>>>,
) -> Option<()> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        // A TLS greeting: this port does not speak it.
        if bytes.first() == Some(&0x16) || stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ').map(str::to_owned);
    let pair = |line: &str| line.split_once(": ").map(|(k, v)| (k.to_ascii_lowercase(), v.to_owned()));
    let headers: BTreeMap<String, String> = lines.filter_map(pair).collect();
    let length = headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    while bytes.len() < end + length {
        stream.read_buf(&mut bytes).await.ok()?;
    }
    let body = String::from_utf8_lossy(&bytes[end..]).into_owned();
    let request = {
        let mut log = log.lock().expect("no panic");
        let request = Request { method: first.next()?, path: first.next()?, headers, body, number: log.len() };
        log.push(request.clone());
        request
    };
    let reply = answer(&request);
    let midway = matches!(reply.cut, Some((_, Then::Wait)));
    if let Some(gate) = reply.gate.as_ref().filter(|_| !midway) {
        gate.acquire().await.ok()?.forget();
    }
    let mut text = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", reply.status);
    if !reply.endless {
        text.push_str(&format!("content-length: {}\r\n", reply.length.unwrap_or(reply.body.len())));
    }
    for (name, value) in &reply.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{text}\r\n").as_bytes()).await.ok()?;
    if request.method == "HEAD" {
        return stream.shutdown().await.ok();
    }
    if reply.endless {
        loop {
            stream.write_all(&reply.body).await.ok()?;
        }
    }
    let (part, then) = reply.cut.unwrap_or((reply.body.len(), Then::Close));
    stream.write_all(&reply.body[..part.min(reply.body.len())]).await.ok()?;
    stream.flush().await.ok()?;
    if matches!(then, Then::Drip) {
        for byte in &reply.body[part.min(reply.body.len())..] {
            stream.write_all(std::slice::from_ref(byte)).await.ok()?;
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
    if let (Then::Wait, Some(gate)) = (then, &reply.gate) {
        gate.acquire().await.ok()?.forget();
        stream.write_all(&reply.body[part.min(reply.body.len())..]).await.ok()?;
    }
    if matches!(then, Then::Reset) {
        stream.set_zero_linger().ok()?;
        return None;
    }
    if matches!(then, Then::Hang) {
        // Until the client has had enough.
        let _ = stream.read(&mut [0]).await;
    }
    stream.shutdown().await.ok()
}

/// An image of two layers, made from a seed.
#[derive(Debug, Clone)]
pub(crate) struct TestImage {
    pub layers: Vec<Vec<u8>>,
    pub diff_ids: Vec<Digest>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
    pub index: Vec<u8>,
}

impl TestImage {
    pub(crate) fn new(seed: &str) -> Self {
        Self::of(&["the base that all share", seed], seed, "1002:5")
    }

    pub(crate) fn of(layers: &[&str], seed: &str, user: &str) -> Self {
        let plain: Vec<Vec<u8>> = layers.iter().map(|text| noise(text)).collect();
        let diff_ids: Vec<Digest> = plain.iter().map(|bytes| Digest::of(bytes)).collect();
        let host = Platform::host();
        let config = json!({"architecture": host.architecture, "os": "linux", "created": "2026-01-02T03:04:05Z",
            "config": {"User": user, "Env": ["A=b"], "Cmd": ["sh"], "Labels": {"seed": seed}},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        Self::assemble(plain.iter().map(|bytes| gzip(bytes)).collect(), diff_ids, config.to_string().into_bytes())
    }

    pub(crate) fn assemble(layers: Vec<Vec<u8>>, diff_ids: Vec<Digest>, config: Vec<u8>) -> Self {
        let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
        let described: Vec<_> = layers.iter().map(|blob| descriptor(kind, blob)).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, &config), "layers": described})
        .to_string()
        .into_bytes();
        let index = index_of(&manifest);
        Self { layers, diff_ids, config, manifest, index }
    }

    pub(crate) fn id(&self) -> Digest {
        Digest::of(&self.config)
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// Serves the manifest under its tags and digest, the index under `index`, and the blobs.
    pub(crate) fn answer(&self, request: &Request, repository: &str, tags: &[&str]) -> Reply {
        let path = request.path.split('?').next().unwrap_or_default();
        let Some(rest) = path.strip_prefix(&format!("/v2/{repository}/")) else { return Reply::new(404, "") };
        let manifest = |bytes: &[u8], kind: &str| {
            Reply::new(200, bytes)
                .with("content-type", kind)
                .with("docker-content-digest", Digest::of(bytes).to_string())
        };
        if let Some(version) = rest.strip_prefix("manifests/") {
            return if tags.contains(&version) || version == self.digest().as_str() {
                manifest(&self.manifest, OCI_MANIFEST)
            } else if version == "index" || version == Digest::of(&self.index).as_str() {
                manifest(&self.index, OCI_INDEX)
            } else {
                Reply::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#)
            };
        }
        let blob = self.layers.iter().chain([&self.config]).find(|blob| rest == format!("blobs/{}", Digest::of(blob)));
        let Some(blob) = blob else { return Reply::new(404, "") };
        match request.header("range").and_then(|text| text.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()) {
            Some(from) if from < blob.len() => Reply::new(206, &blob[from..])
                .with("content-range", format!("bytes {from}-{}/{}", blob.len() - 1, blob.len())),
            Some(_) => Reply::new(416, ""),
            None => Reply::new(200, blob.clone()),
        }
    }

    /// The URL path of a layer.
    pub(crate) fn blob(&self, layer: usize) -> String {
        format!("/blobs/{}", Digest::of(&self.layers[layer]))
    }
}

pub(crate) fn index_of(manifest: &[u8]) -> Vec<u8> {
    let host = Platform::host();
    let entry = |architecture: &str, bytes: &[u8]| {
        let mut entry = descriptor(OCI_MANIFEST, bytes);
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entry
    };
    json!({"schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [entry("mips", b"other"), entry(&host.architecture, manifest), entry("unknown", b"x")]})
    .to_string()
    .into_bytes()
}

pub(crate) fn descriptor(kind: &str, bytes: &[u8]) -> serde_json::Value {
    json!({"mediaType": kind, "digest": Digest::of(bytes), "size": bytes.len()})
}

/// The same config under Docker's media types.
pub(crate) fn docker_config() -> &'static str {
    DOCKER_CONFIG
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).expect("memory");
    out.finish().expect("memory")
}

/// Bytes that do not compress, so that a layer spans many reads.
fn noise(seed: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256 * 1024);
    let mut last = Digest::of(seed.as_bytes());
    while bytes.len() < 256 * 1024 {
        bytes.extend(hex::decode(last.hex()).expect("hex"));
        last = Digest::of(last.as_str().as_bytes());
    }
    bytes
}
