//! Tests of a session: against itself in the other role, and against a peer whose every byte a test chooses.

mod blocks;
mod endings;
mod flow;
mod frames;
mod hostile;
mod interleaved;
mod raw;

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

use super::{Incoming, Limits, Session, Stream, client, server};

/// How long a thing may take that comes about by itself, on the slowest machine. Only a failing test waits this long.
const SOON: Duration = Duration::from_secs(30);

/// Waits for something that comes about by itself.
async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("{what} did not come about within {SOON:?}"))
}

/// Waits until the state of a session's streams is such.
async fn until(what: &str, session: &Session, holds: impl Fn(&super::table::Table) -> bool) {
    let checking = async {
        while !session.0.with(|table| holds(table)) {
            tokio::task::yield_now().await;
        }
    };
    soon(what, checking).await;
}

/// A client's session and a server's, with `size` bytes between them.
fn pair(size: usize, limits: &Limits) -> ((Session, Incoming), (Session, Incoming)) {
    let (near, far) = duplex(size);
    (client(near, limits.clone()), server(far, limits.clone()))
}

/// A stream, opened by the client and accepted by the server.
async fn opened(client: &Session, incoming: &mut Incoming) -> (Stream, Stream) {
    let accepting = async { incoming.next().await.expect("a stream comes").accept() };
    let (near, far) = soon("a stream", async { tokio::join!(client.open([("streamtype", "data")]), accepting) }).await;
    (near.expect("the stream is accepted"), far)
}

/// Bytes that differ from their neighbours, and from those of another seed.
fn pattern(seed: usize, length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| ((at ^ (at >> 8) ^ (at >> 16)).wrapping_mul(31).wrapping_add(seed * 7)).to_le_bytes()[0])
        .collect()
}

#[tokio::test]
async fn a_stream_carries_bytes_both_ways_and_ends() {
    let ((session, _other), (served, mut incoming)) = pair(1000, &Limits::default());
    let serving = crate::task::spawn("echo", async move {
        let stream = incoming.next().await.unwrap();
        assert_eq!(stream.header("StreamType"), Some("stdin"));
        assert_eq!(stream.header("port"), None);
        let mut stream = stream.accept();
        let (mut reader, mut writer) = tokio::io::split(&mut stream);
        tokio::io::copy(&mut reader, &mut writer).await.unwrap();
        writer.shutdown().await.unwrap();
        assert!(incoming.next().await.is_none());
        served.closed().await;
    });
    let stream = session.open([("streamType", "stdin")]).await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let sent = pattern(1, 3_000_000);
    let expected = sent.clone();
    let writing = crate::task::spawn("write", async move {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
        writer
    });
    let mut got = Vec::new();
    reader.read_to_end(&mut got).await.unwrap();
    assert!(got == expected, "{} bytes came back", got.len());
    drop((writing.await.unwrap(), reader));
    session.close();
    soon("the end", session.closed()).await;
    soon("the server's end", serving).await.unwrap();
}

#[tokio::test]
async fn a_refused_stream_is_an_error_and_the_next_one_is_not() {
    let ((session, _other), (_served, mut incoming)) = pair(1000, &Limits::default());
    let refusing = async { incoming.next().await.unwrap().refuse() };
    let (refused, ()) = tokio::join!(session.open([("a", "b")]), refusing);
    assert_eq!(refused.unwrap_err().to_string(), "the peer reset the stream: REFUSED_STREAM");
    let dropping = async { drop(incoming.next().await.unwrap()) };
    let (refused, ()) = tokio::join!(session.open([("a", "b")]), dropping);
    assert_eq!(refused.unwrap_err().to_string(), "the peer reset the stream: REFUSED_STREAM");
    opened(&session, &mut incoming).await;
    drop(incoming);
    let refused = soon("a refusal", session.open([("a", "b")])).await;
    assert_eq!(refused.unwrap_err().to_string(), "the peer reset the stream: REFUSED_STREAM");
}

#[tokio::test]
async fn an_open_that_is_given_up_takes_its_stream_back() {
    let ((session, _other), (served, mut incoming)) = pair(1000, &Limits::default());
    {
        let opening = session.open([("a", "b")]);
        tokio::select! {
            biased;
            stream = incoming.next() => assert!(stream.is_some()),
            _ = opening => panic!("nobody has accepted it"),
        }
    }
    until("both sides to forget the stream", &session, |table| table.is_empty()).await;
    until("both sides to forget the stream", &served, |table| table.is_empty()).await;
}

#[tokio::test]
async fn a_stream_that_was_shut_down_cannot_be_written() {
    let ((session, _other), (_served, mut incoming)) = pair(1000, &Limits::default());
    let (mut near, mut far) = opened(&session, &mut incoming).await;
    near.write_all(b"end").await.unwrap();
    near.shutdown().await.unwrap();
    assert_eq!(near.write(b"x").await.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    let mut got = Vec::new();
    far.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"end");
    far.write_all(b"still open").await.unwrap();
    far.shutdown().await.unwrap();
    got.clear();
    near.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"still open");
}
