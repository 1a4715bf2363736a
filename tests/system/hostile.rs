//! A registry that does as it is told: wrong digests, endless answers, errors and silence, on a loopback port of a world.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::archive::{Image, digest};
use crate::world::World;

/// One answer.
#[derive(Debug, Clone)]
pub enum Answer {
    /// A body with its media type.
    Body(String, Vec<u8>),
    /// A body that is made as it is sent: a beginning, a part that comes many times, and an end.
    Repeated { head: Vec<u8>, part: Vec<u8>, times: usize, tail: Vec<u8> },
    /// A status with headers and a text.
    Error(u16, Vec<(String, String)>, String),
    /// The headers promise all of the body, then only this many bytes of it come and the connection stays open.
    Stall(String, Vec<u8>, usize),
    /// As [`Answer::Stall`], but the connection is reset.
    Reset(String, Vec<u8>, usize),
    /// The connection is taken and nothing is ever said.
    Silence,
    /// For those with this `Authorization`; the others get a 401 with this challenge.
    Private(String, String, Box<Self>),
}

type Routes = Arc<Mutex<HashMap<String, Answer>>>;

/// A running server. Paths that it was not told about answer 404.
pub struct Hostile {
    address: String,
    routes: Routes,
    /// The head of every request, in order.
    requests: Arc<Mutex<Vec<String>>>,
    server: tokio::task::JoinHandle<()>,
}

impl Hostile {
    /// Listens on a free loopback port of the world's network namespace.
    pub async fn start(world: &World) -> Result<Self> {
        let namespace = std::fs::File::open(world.network_namespace())?;
        // A socket stays in the namespace that it was made in; only a thread of its own may visit that.
        let bound = std::thread::spawn(move || -> std::io::Result<std::net::TcpListener> {
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network))?;
            std::net::TcpListener::bind("127.0.0.1:0")
        });
        let listener = bound.join().ok().context("the binding thread panicked")??;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?.to_string();
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let routes = Routes::default();
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let (known, seen) = (Arc::clone(&routes), Arc::clone(&requests));
        let server = cricket::task::spawn("hostile registry", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (known, seen) = (Arc::clone(&known), Arc::clone(&seen));
                cricket::task::spawn("hostile connection", async move {
                    // A client that gives up on us is what most tests want to see.
                    let _ = converse(stream, &known, &seen).await;
                });
            }
        });
        Ok(Self { address, routes, requests, server })
    }

    /// The part of registries.conf that leads `hostile.example` here.
    pub fn conf(&self) -> String {
        format!("[[registry]]\nprefix = \"hostile.example\"\nlocation = \"{}\"\ninsecure = true\n\n", self.address)
    }

    /// Answers a path.
    pub fn set(&self, path: impl Into<String>, answer: Answer) {
        self.routes.lock().expect("no holder panics").insert(path.into(), answer);
    }

    /// Serves a whole image under `hostile.example/<repository>:latest`, `/v2/` included.
    pub fn serve(&self, repository: &str, image: &Image) {
        self.set("/v2/", Answer::Body("application/json".into(), b"{}".to_vec()));
        for (stated, body) in image.blobs() {
            self.set(blob(repository, &stated), Answer::Body("application/octet-stream".into(), body));
        }
        let manifest = image.manifest();
        self.set(
            format!("/v2/{repository}/manifests/{}", digest(&manifest)),
            Answer::Body(image.manifest_type().into(), manifest.clone()),
        );
        self.set(format!("/v2/{repository}/manifests/latest"), Answer::Body(image.manifest_type().into(), manifest));
    }

    /// `host:port`, in the network namespace of the world.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Every value of a header, over all requests.
    pub fn headers(&self, name: &str) -> Vec<String> {
        let requests = self.requests.lock().expect("no holder panics");
        requests.iter().filter_map(|head| header(head, name)).collect()
    }

    /// How often a path was asked for, by any method.
    pub fn asked(&self, path: &str) -> usize {
        let requests = self.requests.lock().expect("no holder panics");
        let of = |head: &String| head.split(' ').nth(1)?.split('?').next().map(str::to_owned);
        requests.iter().filter(|head| of(head).as_deref() == Some(path)).count()
    }
}

/// The path of a blob.
pub fn blob(repository: &str, digest: &str) -> String {
    format!("/v2/{repository}/blobs/{digest}")
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn converse(
    mut stream: tokio::net::TcpStream,
    routes: &Routes,
    seen: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        // Requests to a registry have no body that we care for, and heads are small.
        head.push(stream.read_u8().await?);
        // As servers of plain HTTP do, a TLS handshake (an insecure registry is first tried that way) is hung up on.
        if head == [0x16] {
            return Ok(());
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut words = head.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let path = target.split('?').next().unwrap_or_default().to_owned();
    seen.lock().expect("no holder panics").push(head.clone());
    let answer = routes.lock().expect("no holder panics").get(&path).cloned();
    let answer = match answer {
        Some(Answer::Private(wanted, _, answer)) if header(&head, "authorization") == Some(wanted.clone()) => {
            Some(*answer)
        }
        Some(Answer::Private(_, challenge, _)) => {
            Some(Answer::Error(401, vec![("WWW-Authenticate".into(), challenge)], String::new()))
        }
        answer => answer,
    };
    let answer = answer.unwrap_or_else(|| {
        Answer::Error(404, Vec::new(), r#"{"errors":[{"code":"NAME_UNKNOWN","message":"not here"}]}"#.into())
    });
    let silent = method == "HEAD";
    match answer {
        Answer::Silence | Answer::Private(..) => pause_for_ever().await,
        Answer::Body(kind, body) => {
            let headers = [("Content-Type".to_owned(), kind), ("Docker-Content-Digest".to_owned(), digest(&body))];
            stream.write_all(response(200, &headers, body.len()).as_bytes()).await?;
            if !silent {
                stream.write_all(&body).await?;
            }
        }
        Answer::Repeated { head, part, times, tail } => {
            let length = head.len() + part.len() * times + tail.len();
            stream.write_all(response(200, &[], length).as_bytes()).await?;
            if !silent {
                stream.write_all(&head).await?;
                for _ in 0..times {
                    stream.write_all(&part).await?;
                }
                stream.write_all(&tail).await?;
            }
        }
        Answer::Error(code, headers, text) => {
            stream.write_all(response(code, &headers, text.len()).as_bytes()).await?;
            if !silent {
                stream.write_all(text.as_bytes()).await?;
            }
        }
        Answer::Stall(kind, body, some) => {
            stream.write_all(response(200, &[("Content-Type".to_owned(), kind)], body.len()).as_bytes()).await?;
            stream.write_all(&body[..some]).await?;
            stream.flush().await?;
            pause_for_ever().await;
        }
        Answer::Reset(kind, body, some) => {
            stream.write_all(response(200, &[("Content-Type".to_owned(), kind)], body.len()).as_bytes()).await?;
            stream.write_all(&body[..some]).await?;
            return stream.set_zero_linger();
        }
    }
    stream.shutdown().await
}

/// A header of a request's head.
fn header(head: &str, name: &str) -> Option<String> {
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    lines.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned())
}

async fn pause_for_ever() {
    // Ends with the test's runtime.
    loop {
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
}

fn response(code: u16, headers: &[(String, String)], length: usize) -> String {
    let mut text = format!("HTTP/1.1 {code} As Told\r\nConnection: close\r\nContent-Length: {length}\r\n");
    for (name, value) in headers {
        let _ = write!(text, "{name}: {value}\r\n");
    }
    text.push_str("\r\n");
    text
}
