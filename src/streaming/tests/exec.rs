//! Sessions of exec and attach over both protocols.

use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;

use super::*;

const SUCCESS: &str = r#"{"metadata":{},"status":"Success"}"#;

async fn open(session: &spdy::Session, kind: &str) -> spdy::Stream {
    session.open([("streamType", kind)]).await.unwrap()
}

#[tokio::test]
async fn spdy_delivers_output_then_verdict_then_end() {
    let server = Server::new().await;
    for (version, verdict) in [
        ("v5.channel.k8s.io", r#""message":"3""#),
        ("v4.channel.k8s.io", r#""reason":"NonZeroExitCode""#),
        ("v3.channel.k8s.io", "exit status 3"),
        ("v2.channel.k8s.io", "exit status 3"),
        ("channel.k8s.io", "exit status 3"),
    ] {
        let path = server.exec(&["both", "3"], "oe");
        let (session, _incoming) = server.spdy(&path, version).await;
        let mut error = open(&session, "error").await;
        let mut stdout = open(&session, "stdout").await;
        let mut stderr = open(&session, "stderr").await;
        assert_eq!(rest(&mut stdout).await, "to stdout");
        assert_eq!(rest(&mut stderr).await, "to stderr");
        let text = rest(&mut error).await;
        assert!(text.contains(verdict), "{version}: {text}");
        session.closed().await;
    }
    server.at_rest().await;
}

#[tokio::test]
async fn the_end_of_stdin_is_handed_on() {
    let server = Server::new().await;
    let (session, _incoming) = server.spdy(&server.exec(&["cat", "0"], "io"), "v4.channel.k8s.io").await;
    let mut error = open(&session, "error").await;
    let mut stdin = open(&session, "stdin").await;
    let mut stdout = open(&session, "stdout").await;
    let sent = "0123456789abcdef".repeat(100_000);
    let (text, ()) = tokio::join!(rest(&mut stdout), async {
        stdin.write_all(sent.as_bytes()).await.unwrap();
        stdin.shutdown().await.unwrap();
    });
    assert!(text == sent);
    assert_eq!(rest(&mut error).await, SUCCESS);
    assert_eq!(rest(&mut stdin).await, "", "our side of stdin ends too");
    session.closed().await;
    server.at_rest().await;
}

#[tokio::test]
async fn streams_that_were_not_asked_for_are_refused() {
    let server = Server::new().await;
    let (session, _incoming) = server.spdy(&server.exec(&["both", "0"], "oe"), "v4.channel.k8s.io").await;
    let mut error = open(&session, "error").await;
    for kind in ["stdin", "resize", "error", "nonsense", ""] {
        assert!(session.open([("streamType", kind)]).await.is_err(), "{kind}");
    }
    assert!(session.open([("no-type", "stdout")]).await.is_err());
    let _stdout = open(&session, "stdout").await;
    let _stderr = open(&session, "stderr").await;
    assert_eq!(rest(&mut error).await, SUCCESS);
    server.at_rest().await;
}

#[tokio::test]
async fn a_client_that_does_not_open_its_streams_is_left() {
    let server = Server::with(Fake::default(), |options| options.creation_timeout = Duration::from_millis(50)).await;
    let (session, _incoming) = server.spdy(&server.exec(&["both", "0"], "oe"), "v4.channel.k8s.io").await;
    let _error = open(&session, "error").await;
    tokio::time::timeout(PATIENCE, session.closed()).await.expect("the session ends");
    server.at_rest().await;
}

#[tokio::test]
async fn an_error_is_the_verdict() {
    let server = Server::new().await;
    let (session, _incoming) = server.spdy(&server.exec(&["missing"], "oe"), "v4.channel.k8s.io").await;
    let mut error = open(&session, "error").await;
    let mut stdout = open(&session, "stdout").await;
    let _stderr = open(&session, "stderr").await;
    assert_eq!(rest(&mut stdout).await, "");
    let text = rest(&mut error).await;
    assert!(text.contains("InternalError") && text.contains("not found"), "{text}");
    server.at_rest().await;
}

#[tokio::test]
async fn sizes_of_the_window_arrive() {
    let server = Server::new().await;
    let (session, _incoming) = server.spdy(&server.exec(&["sizes"], "iot"), "v4.channel.k8s.io").await;
    let mut error = open(&session, "error").await;
    let _stdin = open(&session, "stdin").await;
    let mut stdout = open(&session, "stdout").await;
    let mut resize = open(&session, "resize").await;
    resize.write_all(b"{\"Width\":80,\"Height\":24}\n{\"Width\":81,").await.unwrap();
    resize.write_all(b"\"Height\":25}\n{\"Width\":82,\"Height\":26}").await.unwrap();
    assert_eq!(rest(&mut stdout).await, "80x24 81x25 82x26 ");
    assert_eq!(rest(&mut error).await, SUCCESS, "although stdin is still open");
    server.at_rest().await;
}

#[tokio::test]
async fn a_client_that_goes_ends_the_command() {
    let server = Server::new().await;
    for command in ["hang", "flood"] {
        let (session, incoming) = server.spdy(&server.exec(&[command], "o"), "v4.channel.k8s.io").await;
        let error = open(&session, "error").await;
        let stdout = open(&session, "stdout").await;
        while server.running.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop((session, incoming, error, stdout));
        server.at_rest().await;
        let socket = server.websocket(&server.exec(&[command], "o"), "v5.channel.k8s.io").await;
        while server.running.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(socket);
        server.at_rest().await;
    }
}

#[tokio::test]
async fn an_idle_session_ends_and_says_why() {
    let server = Server::with(Fake::default(), |options| options.idle_timeout = Duration::from_millis(100)).await;
    let (session, _incoming) = server.spdy(&server.exec(&["hang"], "o"), "v4.channel.k8s.io").await;
    let mut error = open(&session, "error").await;
    let _stdout = open(&session, "stdout").await;
    let text = rest(&mut error).await;
    assert!(text.contains("idle_timeout"), "{text}");
    server.at_rest().await;
}

/// All messages up to the close frame, joined by channel.
async fn messages(socket: &mut WebSocketStream<TcpStream>) -> [Vec<u8>; 4] {
    let mut channels: [Vec<u8>; 4] = Default::default();
    while let Some(message) = tokio::time::timeout(PATIENCE, socket.next()).await.expect("no message") {
        match message.expect("a sound message") {
            Message::Binary(data) => channels[usize::from(data[0])].extend_from_slice(&data[1..]),
            Message::Close(frame) => assert_eq!(u16::from(frame.expect("a code").code), 1000),
            other => panic!("unexpected: {other:?}"),
        }
    }
    channels
}

#[tokio::test]
async fn websocket_delivers_output_then_verdict_then_a_close_frame() {
    let server = Server::new().await;
    for (protocol, verdict) in [
        ("v5.channel.k8s.io", r#""message":"7""#),
        ("v4.channel.k8s.io", "NonZeroExitCode"),
        ("channel.k8s.io", "exit status 7"),
    ] {
        let mut socket = server.websocket(&server.exec(&["both", "7"], "oe"), protocol).await;
        let [_, stdout, stderr, error] = messages(&mut socket).await;
        assert_eq!((&stdout[..], &stderr[..]), (&b"to stdout"[..], &b"to stderr"[..]));
        let error = String::from_utf8(error).unwrap();
        assert!(error.contains(verdict), "{protocol}: {error}");
    }
    server.at_rest().await;
}

#[tokio::test]
async fn websocket_version_5_closes_stdin() {
    let server = Server::new().await;
    let mut socket = server.websocket(&server.exec(&["cat", "0"], "io"), "v5.channel.k8s.io").await;
    socket.send(Message::Binary(b"\0hello"[..].into())).await.unwrap();
    socket.send(Message::Binary(b"\xff\0"[..].into())).await.unwrap();
    let [_, stdout, _, error] = messages(&mut socket).await;
    assert_eq!(stdout, b"hello");
    assert_eq!(error, SUCCESS.as_bytes());
    server.at_rest().await;
}

#[tokio::test]
async fn websocket_in_base64() {
    let server = Server::new().await;
    let mut socket = server.websocket(&server.exec(&["both", "0"], "oe"), "v4.base64.channel.k8s.io").await;
    let mut texts = Vec::new();
    while let Some(message) = socket.next().await {
        if let Message::Text(text) = message.unwrap() {
            texts.push(text.to_string());
        }
    }
    assert_eq!(texts[0], "1", "the empty message at the start");
    assert!(texts.contains(&"1dG8gc3Rkb3V0".to_owned()) && texts.contains(&"2dG8gc3RkZXJy".to_owned()), "{texts:?}");
    server.at_rest().await;
}

#[tokio::test]
async fn attach_ends_with_success() {
    let server = Server::new().await;
    let request = AttachRequest { container_id: "c".to_owned(), streams: asked("o") };
    let path = server.path(server.streaming.attach(request).unwrap());
    let mut socket = server.websocket(&path, "v5.channel.k8s.io").await;
    let [_, stdout, _, error] = messages(&mut socket).await;
    assert_eq!((&stdout[..], &error[..]), (&b"attached"[..], SUCCESS.as_bytes()));
    server.at_rest().await;
}

#[tokio::test]
async fn unread_input_does_not_cost_the_verdict() {
    let server = Server::new().await;
    for _ in 0..20 {
        let mut socket = server.websocket(&server.exec(&["both", "0"], "ioe"), "v5.channel.k8s.io").await;
        // The command reads nothing of it. A close with unread input would reset the connection.
        let _ = socket.send(Message::Binary(vec![0; 512 * 1024].into())).await;
        let [_, stdout, _, error] = messages(&mut socket).await;
        assert_eq!((&stdout[..], &error[..]), (&b"to stdout"[..], SUCCESS.as_bytes()));
    }
    server.at_rest().await;
}
