//! Negotiation, case by case.

use super::*;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in lines {
        map.append(*name, HeaderValue::from_static(value));
    }
    map
}

fn spdy_request(versions: &[&'static str]) -> HeaderMap {
    let mut lines = vec![("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
    lines.extend(versions.iter().map(|version| ("x-stream-protocol-version", *version)));
    headers(&lines)
}

fn websocket_request(protocols: &[&'static str]) -> HeaderMap {
    let mut lines = vec![
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", KEY),
    ];
    lines.extend(protocols.iter().map(|protocol| ("sec-websocket-protocol", *protocol)));
    headers(&lines)
}

#[test]
fn the_clients_first_known_protocol_is_taken() {
    let spdy = |versions: &[&'static str]| spdy_request(versions);
    let ws = |protocols: &[&'static str]| websocket_request(protocols);
    let exec = |version| Mode::WebSocket { version, base64: false };
    for (kind, request, want) in [
        (Kind::Exec, spdy(&["v4.channel.k8s.io"]), Mode::Spdy(Version::V4)),
        (Kind::Exec, spdy(&["v5.channel.k8s.io", "v4.channel.k8s.io"]), Mode::Spdy(Version::V5)),
        (Kind::Attach, spdy(&["v9.channel.k8s.io,v3.channel.k8s.io , v4.channel.k8s.io"]), Mode::Spdy(Version::V3)),
        (Kind::Attach, spdy(&["v2.channel.k8s.io"]), Mode::Spdy(Version::V2)),
        (Kind::Attach, spdy(&["channel.k8s.io"]), Mode::Spdy(Version::V1)),
        (Kind::PortForward, spdy(&["portforward.k8s.io"]), Mode::SpdyForward),
        (Kind::Exec, ws(&["v5.channel.k8s.io"]), exec(Version::V5)),
        (Kind::Exec, ws(&["nothing", "v4.channel.k8s.io, v5.channel.k8s.io"]), exec(Version::V4)),
        (Kind::Exec, ws(&["channel.k8s.io"]), exec(Version::V1)),
        (Kind::Exec, ws(&[]), exec(Version::V1)),
        (Kind::Exec, ws(&["base64.channel.k8s.io"]), Mode::WebSocket { version: Version::V1, base64: true }),
        (Kind::Exec, ws(&["v4.base64.channel.k8s.io"]), Mode::WebSocket { version: Version::V4, base64: true }),
        (Kind::PortForward, ws(&["SPDY/3.1+portforward.k8s.io"]), Mode::Tunnel),
        (Kind::PortForward, ws(&["v4.channel.k8s.io"]), Mode::WebSocketForward { base64: false }),
        (Kind::PortForward, ws(&["v4.base64.channel.k8s.io"]), Mode::WebSocketForward { base64: true }),
        (Kind::PortForward, ws(&[]), Mode::WebSocketForward { base64: false }),
    ] {
        let agreed = negotiate(kind, &Method::GET, &request).unwrap();
        assert_eq!(agreed.mode, want, "{request:?}");
        assert!(agreed.reply.iter().any(|(name, value)| name == CONNECTION && value == "Upgrade"));
    }
}

#[test]
fn the_answer_names_what_was_agreed() {
    let agreed = negotiate(Kind::Exec, &Method::POST, &spdy_request(&["v4.channel.k8s.io"])).unwrap();
    assert!(agreed.reply.contains(&(UPGRADE, HeaderValue::from_static("SPDY/3.1"))));
    assert!(agreed.reply.contains(&(PROTOCOL_VERSION, HeaderValue::from_static("v4.channel.k8s.io"))));
    let agreed = negotiate(Kind::Exec, &Method::GET, &websocket_request(&["v5.channel.k8s.io"])).unwrap();
    // The sample of RFC 6455, 1.3.
    let accept = HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert!(agreed.reply.contains(&(SEC_WEBSOCKET_ACCEPT, accept)));
    assert!(agreed.reply.contains(&(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("v5.channel.k8s.io"))));
    let agreed = negotiate(Kind::Exec, &Method::GET, &websocket_request(&[])).unwrap();
    assert!(!agreed.reply.iter().any(|(name, _)| name == SEC_WEBSOCKET_PROTOCOL));
}

#[test]
fn the_rest_is_refused() {
    let with = |request: HeaderMap, name: &'static str, value: &'static str| {
        let mut request = request;
        request.insert(name, HeaderValue::from_static(value));
        request
    };
    let ws = || websocket_request(&["v4.channel.k8s.io"]);
    let (get, post) = (Method::GET, Method::POST);
    for (kind, method, request, status) in [
        (Kind::Exec, &get, headers(&[]), 400),
        (Kind::Exec, &get, headers(&[("upgrade", "websocket")]), 400),
        (Kind::Exec, &get, headers(&[("connection", "upgrade"), ("upgrade", "h2c")]), 400),
        (Kind::Exec, &get, headers(&[("connection", "upgrade"), ("upgrade", "SPDY/3")]), 400),
        (Kind::Exec, &post, spdy_request(&[]), 400),
        (Kind::Exec, &post, spdy_request(&[" , ,"]), 400),
        (Kind::Exec, &post, spdy_request(&["portforward.k8s.io"]), 403),
        (Kind::PortForward, &post, spdy_request(&["v4.channel.k8s.io"]), 403),
        (Kind::Exec, &post, ws(), 400),
        (Kind::Exec, &get, websocket_request(&["SPDY/3.1+portforward.k8s.io"]), 403),
        (Kind::PortForward, &get, websocket_request(&["v5.channel.k8s.io"]), 403),
        (Kind::Exec, &get, with(ws(), "sec-websocket-version", "12"), 426),
        (Kind::Exec, &get, with(ws(), "sec-websocket-key", "c2hvcnQ="), 400),
        (Kind::Exec, &get, with(ws(), "sec-websocket-key", "!!!!"), 400),
    ] {
        let refusal = negotiate(kind, method, &request).unwrap_err();
        assert_eq!(refusal.status.as_u16(), status, "{request:?}: {}", refusal.message);
        assert!(!refusal.status.is_redirection() && refusal.message.len() < 600);
    }
    let refusal = negotiate(Kind::Exec, &post, &spdy_request(&["v8.channel.k8s.io"])).unwrap_err();
    assert_eq!(refusal.headers.len(), SPDY_REMOTE.len(), "the versions that there are come along");
}

#[test]
fn a_long_list_of_offers_is_cut() {
    let mut request = spdy_request(&[]);
    for _ in 0..1000 {
        request.append(PROTOCOL_VERSION, HeaderValue::from_static("\"x\", y, z"));
    }
    assert_eq!(words(&request, &PROTOCOL_VERSION).len(), MAX_OFFERS);
    assert!(negotiate(Kind::Exec, &Method::POST, &request).is_err());
}
