//! Requests: tokens, refusals, floods.

use super::*;

async fn status_of(server: &Server, head: &str) -> StatusCode {
    let (status, headers, _stream) = server.request(head).await;
    assert!(!status.is_redirection() && !headers.contains_key("location"), "{head}");
    status
}

fn spdy_head(path: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n"
    )
}

#[tokio::test]
async fn cve_2020_8559_no_redirect() {
    let server = Server::new().await;
    let plain = |method: &str, path: &str| format!("{method} {path} HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    let path = server.exec(&["both", "0"], "oe");
    for (head, want) in [
        (plain("GET", "/"), 404),
        (plain("GET", "/exec"), 404),
        (plain("GET", "//evil.example/exec/aa"), 404),
        (plain("GET", "http://evil.example/exec/aa"), 404),
        (plain("GET", "/exec/../exec/aa"), 404),
        (plain("GET", "/exec/aa?redirect=http://evil.example"), 404),
        (plain("PUT", &path), 405),
        (plain("OPTIONS", "*"), 405),
        (plain("GET", &path.replace("/exec/", "/attach/")), 404),
        (plain("GET", &path), 400),
    ] {
        assert_eq!(status_of(&server, &head).await.as_u16(), want, "{head}");
    }
}

#[tokio::test]
async fn a_token_is_good_once_for_its_own_kind() {
    let server = Server::new().await;
    let path = server.exec(&["both", "0"], "oe");
    for wrong in [path.replace("/exec/", "/attach/"), path.replace("/exec/", "/portforward/"), format!("{path}a")] {
        assert_eq!(status_of(&server, &spdy_head(&wrong)).await, StatusCode::NOT_FOUND);
    }
    assert_eq!(status_of(&server, &spdy_head(&path)).await, StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(status_of(&server, &spdy_head(&path)).await, StatusCode::NOT_FOUND, "it was spent");
    let spent = server.exec(&["both", "0"], "oe");
    assert_eq!(status_of(&server, &format!("GET {spent} HTTP/1.1\r\nHost: x\r\n\r\n")).await, StatusCode::BAD_REQUEST);
    assert_eq!(status_of(&server, &spdy_head(&spent)).await, StatusCode::NOT_FOUND, "a bad request spends it too");
}

#[tokio::test]
async fn a_token_that_has_ended_is_unknown() {
    let server = Server::with(Fake::default(), |options| options.token_ttl = Duration::ZERO).await;
    let path = server.exec(&["both", "0"], "oe");
    assert_eq!(status_of(&server, &spdy_head(&path)).await, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn tokens_are_bounded() {
    let server = Server::new().await;
    for _ in 0..MAX_TOKENS {
        server.exec(&["both", "0"], "oe");
    }
    let streams = asked("o");
    let request = ExecRequest { container_id: "c".to_owned(), command: vec!["x".to_owned()], streams };
    let error = server.streaming.exec(request).unwrap_err();
    assert!(matches!(error, StreamingError::TooManyTokens(_)) && error.to_string().contains("1000"), "{error}");
}

#[tokio::test]
async fn a_session_past_the_cap_is_refused_and_its_token_stays_good() {
    let server = Server::new().await;
    let all = u32::try_from(MAX_SESSIONS).unwrap();
    let taken = server.streaming.shared.sessions.clone().try_acquire_many_owned(all).unwrap();
    let path = server.exec(&["both", "0"], "oe");
    assert_eq!(status_of(&server, &spdy_head(&path)).await, StatusCode::TOO_MANY_REQUESTS);
    drop(taken);
    assert_eq!(status_of(&server, &spdy_head(&path)).await, StatusCode::SWITCHING_PROTOCOLS);
}

#[tokio::test]
async fn a_protocol_that_nobody_speaks_is_refused_by_name() {
    let server = Server::new().await;
    let head = spdy_head(&server.exec(&["both", "0"], "oe")).replace("v4.", "v9.");
    let (status, headers, mut stream) = server.request(&head).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert_eq!(headers.get_all("x-accepted-stream-protocol-versions").iter().count(), 5);
    let mut body = String::new();
    stream.read_to_string(&mut body).await.unwrap();
    assert!(body.contains("v9.channel.k8s.io") && body.contains("v4.channel.k8s.io"), "{body}");
}

#[tokio::test]
async fn cve_2020_8551_silent_connections_keep_nobody_out() {
    let server = Server::new().await;
    let mut silent = Vec::new();
    for n in 0..2 * MAX_PENDING {
        let mut stream = TcpStream::connect(server.streaming.address()).await.unwrap();
        if n % 2 == 0 {
            stream.write_all(b"POST /exec/aa HTTP/1.1\r\nHost: x\r\nX-Slow: ").await.unwrap();
        }
        silent.push(stream);
    }
    let path = server.exec(&["both", "0"], "oe");
    assert_eq!(status_of(&server, &spdy_head(&path)).await, StatusCode::SWITCHING_PROTOCOLS);
    // However many come, no more than the cap are open: with the one that has begun a session, all before them are closed.
    for (n, stream) in silent.iter_mut().take(MAX_PENDING).enumerate() {
        let closed = tokio::time::timeout(PATIENCE, stream.read(&mut [0])).await;
        assert!(matches!(closed, Ok(Ok(0) | Err(_))), "number {n} is still open: {closed:?}");
    }
}

#[tokio::test]
async fn a_head_is_bounded() {
    let server = Server::new().await;
    let path = server.exec(&["both", "0"], "oe");
    let long = format!("GET {path} HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "x".repeat(64 * 1024));
    let many = format!("GET {path} HTTP/1.1\r\n{}\r\n", "X-Many: x\r\n".repeat(200));
    for head in [long, many] {
        let mut stream = TcpStream::connect(server.streaming.address()).await.unwrap();
        // The server may close while we still write.
        let _ = stream.write_all(head.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
    assert_eq!(status_of(&server, &spdy_head(&path)).await, StatusCode::SWITCHING_PROTOCOLS, "the token is unspent");
}

#[tokio::test]
async fn cve_2023_44487_http_2_is_not_spoken() {
    let server = Server::new().await;
    let mut stream = TcpStream::connect(server.streaming.address()).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the connection ends");
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{answer:?}");
}
