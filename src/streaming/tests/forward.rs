//! Port-forwards: many connections in one session, each with its own fate.

use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;

use super::*;

/// A listener that gives back what it gets, and sends `bye` at the end of it.
async fn echo() -> Fake {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    crate::task::spawn("echo", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            crate::task::spawn("echo connection", async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.write_all(b"bye").await;
            });
        }
    });
    Fake { port_80: Some(address), ..Fake::default() }
}

async fn pair(session: &spdy::Session, id: &str, port: &str) -> (spdy::Stream, spdy::Stream) {
    let headers = |kind| [("streamType", kind), ("port", port), ("requestID", id)];
    let mut error = session.open(headers("error")).await.unwrap();
    error.shutdown().await.unwrap();
    (session.open(headers("data")).await.unwrap(), error)
}

#[tokio::test]
async fn connections_are_independent() {
    let server = Server::with(echo().await, |_| {}).await;
    let (session, _incoming) = server.spdy(&server.forward(&[]), "portforward.k8s.io").await;
    let one = async |n: usize| {
        let (mut data, mut error) = pair(&session, &n.to_string(), if n.is_multiple_of(5) { "81" } else { "80" }).await;
        if n.is_multiple_of(5) {
            let text = rest(&mut error).await;
            assert!(text.contains("port 81") && text.contains("refused"), "{text}");
            return;
        }
        let sent = format!("{n} ").repeat(10_000);
        let (mut read, mut write) = tokio::io::split(&mut data);
        let (text, ()) = tokio::join!(rest(&mut read), async {
            write.write_all(sent.as_bytes()).await.unwrap();
            write.shutdown().await.unwrap();
        });
        assert!(text == format!("{sent}bye"), "connection {n}");
        assert_eq!(rest(&mut error).await, "");
    };
    futures_util::future::join_all((0..50).map(one)).await;
    drop(session);
    server.at_rest().await;
}

#[tokio::test]
async fn aborted_connections_do_not_end_the_session() {
    let server = Server::with(echo().await, |_| {}).await;
    let (session, _incoming) = server.spdy(&server.forward(&[]), "portforward.k8s.io").await;
    for n in 0..500 {
        let (mut data, mut error) = pair(&session, &n.to_string(), "80").await;
        data.write_all(b"something").await.unwrap();
        drop(data);
        assert_eq!(rest(&mut error).await, "", "no text: clients would give up the session");
    }
    let (mut data, _error) = pair(&session, "last", "80").await;
    data.write_all(b"still here, ").await.unwrap();
    data.shutdown().await.unwrap();
    assert_eq!(rest(&mut data).await, "still here, bye");
    drop((session, data));
    server.at_rest().await;
}

#[tokio::test]
async fn halves_that_do_not_fit_are_refused() {
    let server = Server::with(echo().await, |options| options.creation_timeout = Duration::from_millis(100)).await;
    let (session, _incoming) = server.spdy(&server.forward(&[]), "portforward.k8s.io").await;
    for headers in [
        [("streamType", "stdin"), ("port", "80"), ("requestID", "1")],
        [("streamType", "data"), ("port", "0"), ("requestID", "1")],
        [("streamType", "data"), ("port", "65536"), ("requestID", "1")],
        [("streamType", "data"), ("port", "-1"), ("requestID", "1")],
        [("streamType", "data"), ("port", "80"), ("requestID", "")],
        [("streamType", "data"), ("port", "80"), ("other", "1")],
    ] {
        assert!(session.open(headers).await.is_err(), "{headers:?}");
    }
    let data = [("streamType", "data"), ("port", "80"), ("requestID", "1")];
    let mut half = session.open(data).await.unwrap();
    assert!(session.open(data).await.is_err(), "a second data stream");
    assert!(session.open([("streamType", "error"), ("port", "81"), ("requestID", "1")]).await.is_err(), "another port");
    let mut byte = [0];
    let reset = tokio::time::timeout(PATIENCE, half.read(&mut byte)).await.expect("a lone half is reset");
    assert!(reset.is_err(), "{reset:?}");
    let (mut data, _error) = pair(&session, "1", "80").await;
    data.shutdown().await.unwrap();
    assert_eq!(rest(&mut data).await, "bye");
    drop((session, data));
    server.at_rest().await;
}

#[tokio::test]
async fn connections_are_bounded() {
    let server = Server::with(echo().await, |_| {}).await;
    let (session, _incoming) = server.spdy(&server.forward(&[]), "portforward.k8s.io").await;
    let mut kept = Vec::new();
    for n in 0..256 {
        kept.push(pair(&session, &n.to_string(), "80").await);
    }
    let headers = [("streamType", "error"), ("port", "80"), ("requestID", "more")];
    assert!(session.open(headers).await.is_err());
    drop((session, kept));
    server.at_rest().await;
}

#[tokio::test]
async fn through_a_websocket() {
    let server = Server::with(echo().await, |_| {}).await;
    let head = websocket_head(&server.forward(&[]), "SPDY/3.1+portforward.k8s.io");
    let (status, headers, stream) = server.request(&head).await;
    assert_eq!(status, StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(headers["sec-websocket-protocol"], "SPDY/3.1+portforward.k8s.io");
    // Our own SPDY in another maker's WebSocket.
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
    let bridge = crate::task::spawn("bridge", async move {
        let mut chunk = vec![0; 1000];
        loop {
            tokio::select! {
                read = theirs.read(&mut chunk) => match read {
                    Ok(count) if count > 0 => {
                        socket.send(Message::Binary(chunk[..count].to_vec().into())).await.unwrap();
                    }
                    _ => {
                        socket.close(None).await.unwrap();
                        while socket.next().await.is_some() {}
                        return;
                    }
                },
                message = socket.next() => match message {
                    Some(Ok(Message::Binary(data))) => theirs.write_all(&data).await.unwrap(),
                    Some(Ok(Message::Close(_))) | None => return,
                    other => panic!("{other:?}"),
                },
            }
        }
    });
    let (session, _incoming) = spdy::client(ours, spdy::Limits::default());
    let (mut data, mut error) = pair(&session, "1", "80").await;
    let sent = "tunnelled ".repeat(50_000);
    let (mut read, mut write) = tokio::io::split(&mut data);
    let (text, ()) = tokio::join!(rest(&mut read), async {
        write.write_all(sent.as_bytes()).await.unwrap();
        write.shutdown().await.unwrap();
    });
    assert!(text == format!("{sent}bye"));
    assert_eq!(rest(&mut error).await, "");
    session.close();
    bridge.await.unwrap();
    server.at_rest().await;
}

#[tokio::test]
async fn plain_websocket_has_two_channels_for_each_port() {
    let server = Server::with(echo().await, |_| {}).await;
    let mut socket = server.websocket(&server.forward(&[80, 81]), "v4.channel.k8s.io").await;
    socket.send(Message::Binary(b"\0hello"[..].into())).await.unwrap();
    let mut channels: [Vec<u8>; 4] = Default::default();
    while channels[0].len() < 7 || channels[3].len() < 20 {
        if let Message::Binary(data) = socket.next().await.unwrap().unwrap() {
            channels[usize::from(data[0])].extend_from_slice(&data[1..]);
        }
    }
    assert_eq!(channels[0], b"\x50\0hello");
    assert_eq!(channels[1], b"\x50\0");
    assert_eq!(channels[2], b"\x51\0");
    assert!(channels[3].starts_with(b"\x51\0") && String::from_utf8_lossy(&channels[3]).contains("refused"));
    socket.close(None).await.unwrap();
    while socket.next().await.is_some() {}
    server.at_rest().await;
}
