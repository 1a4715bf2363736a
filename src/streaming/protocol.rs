//! Which protocol a client and we speak: a pure function of the request's headers.
//!
//! | request | with | what follows the upgrade |
//! |---|---|---|
//! | exec, attach | `Upgrade: SPDY/3.1`, `X-Stream-Protocol-Version: [v2.… v5.]channel.k8s.io` | a SPDY stream for each of stdin, stdout, stderr, error, resize |
//! | exec, attach | WebSocket, `[v4.\|v5.\|base64.\|v4.base64.]channel.k8s.io` or none | messages that begin with the number of a channel |
//! | port-forward | `Upgrade: SPDY/3.1`, `X-Stream-Protocol-Version: portforward.k8s.io` | a pair of SPDY streams for each connection |
//! | port-forward | WebSocket, `SPDY/3.1+portforward.k8s.io` | the same, in binary messages |
//! | port-forward | WebSocket, `v4.[base64.]channel.k8s.io` or none | two channels for each port of the request |
//!
//! The first of the client's that we know is taken. A request that fits nothing is refused; none is ever answered with a
//! redirect (CVE-2020-8559).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use sha1::{Digest as _, Sha1};

use super::url::Kind;

const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_VERSIONS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// RFC 6455, 1.3.
const WEBSOCKET_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

const PORT_FORWARD: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// Sub protocols read of a request at most.
const MAX_OFFERS: usize = 32;

/// A version of the protocol for commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    V1,
    V2,
    V3,
    V4,
    V5,
}

impl Version {
    /// The error stream carries a `Status`.
    #[must_use]
    pub fn has_status(self) -> bool {
        self >= Self::V4
    }

    /// There is a resize stream when there is a terminal.
    #[must_use]
    pub fn has_resize(self) -> bool {
        self >= Self::V3
    }
}

/// What is spoken after the upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Spdy(Version),
    SpdyForward,
    WebSocket { version: Version, base64: bool },
    WebSocketForward { base64: bool },
    Tunnel,
}

/// What both sides have agreed on, and the headers of the answer that say so.
#[derive(Debug)]
pub struct Agreement {
    pub mode: Mode,
    pub reply: Vec<(HeaderName, HeaderValue)>,
}

/// Why a request is refused.
#[derive(Debug)]
pub struct Refusal {
    pub status: StatusCode,
    pub message: String,
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl Refusal {
    /// Without more headers.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), headers: Vec::new() }
    }
}

const SPDY_REMOTE: &[(&str, Mode)] = &[
    ("v5.channel.k8s.io", Mode::Spdy(Version::V5)),
    ("v4.channel.k8s.io", Mode::Spdy(Version::V4)),
    ("v3.channel.k8s.io", Mode::Spdy(Version::V3)),
    ("v2.channel.k8s.io", Mode::Spdy(Version::V2)),
    ("channel.k8s.io", Mode::Spdy(Version::V1)),
];

const SPDY_FORWARD: &[(&str, Mode)] = &[(PORT_FORWARD, Mode::SpdyForward)];

const WEBSOCKET_REMOTE: &[(&str, Mode)] = &[
    ("v5.channel.k8s.io", Mode::WebSocket { version: Version::V5, base64: false }),
    ("v4.channel.k8s.io", Mode::WebSocket { version: Version::V4, base64: false }),
    ("v4.base64.channel.k8s.io", Mode::WebSocket { version: Version::V4, base64: true }),
    ("channel.k8s.io", Mode::WebSocket { version: Version::V1, base64: false }),
    ("base64.channel.k8s.io", Mode::WebSocket { version: Version::V1, base64: true }),
    ("", Mode::WebSocket { version: Version::V1, base64: false }),
];

const WEBSOCKET_FORWARD: &[(&str, Mode)] = &[
    (TUNNEL, Mode::Tunnel),
    ("v4.channel.k8s.io", Mode::WebSocketForward { base64: false }),
    ("v4.base64.channel.k8s.io", Mode::WebSocketForward { base64: true }),
    ("", Mode::WebSocketForward { base64: false }),
];

/// Agrees on a protocol for a request of this kind.
///
/// # Errors
/// [`Refusal`]: no upgrade that we know is asked for, or no sub protocol that we know.
pub fn negotiate(kind: Kind, method: &Method, headers: &HeaderMap) -> Result<Agreement, Refusal> {
    let upgrades = words(headers, &UPGRADE);
    let asks = words(headers, &CONNECTION).iter().any(|word| word.eq_ignore_ascii_case("upgrade"));
    if asks && upgrades.iter().any(|word| word.eq_ignore_ascii_case("websocket")) {
        websocket(kind, method, headers)
    } else if asks && upgrades.iter().any(|word| word.eq_ignore_ascii_case("spdy/3.1")) {
        spdy(kind, headers)
    } else {
        Err(Refusal::new(StatusCode::BAD_REQUEST, "an upgrade to SPDY/3.1 or to websocket is wanted"))
    }
}

fn spdy(kind: Kind, headers: &HeaderMap) -> Result<Agreement, Refusal> {
    let known = if kind == Kind::PortForward { SPDY_FORWARD } else { SPDY_REMOTE };
    let offers = words(headers, &PROTOCOL_VERSION);
    if offers.is_empty() {
        let message = "the header X-Stream-Protocol-Version is missing or empty";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, message));
    }
    let Some((name, mode)) = pick(&offers, known) else {
        let names = known.iter().map(|(name, _)| (ACCEPTED_VERSIONS, HeaderValue::from_static(name)));
        return Err(Refusal { headers: names.collect(), ..no_protocol(&offers, known) });
    };
    let reply = vec![
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static("SPDY/3.1")),
        (PROTOCOL_VERSION, HeaderValue::from_static(name)),
    ];
    Ok(Agreement { mode, reply })
}

fn websocket(kind: Kind, method: &Method, headers: &HeaderMap) -> Result<Agreement, Refusal> {
    let known = if kind == Kind::PortForward { WEBSOCKET_FORWARD } else { WEBSOCKET_REMOTE };
    if method != Method::GET {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "a WebSocket begins with GET"));
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        let version = (SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        let refusal = Refusal::new(StatusCode::UPGRADE_REQUIRED, "WebSocket version 13 is wanted");
        return Err(Refusal { headers: vec![version], ..refusal });
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).map_or(&b""[..], HeaderValue::as_bytes);
    if STANDARD.decode(key).map_or(0, |nonce| nonce.len()) != 16 {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "the header Sec-WebSocket-Key must hold 16 bytes in base64"));
    }
    let mut offers = words(headers, &SEC_WEBSOCKET_PROTOCOL);
    if offers.is_empty() {
        offers.push("");
    }
    let (name, mode) = pick(&offers, known).ok_or_else(|| no_protocol(&offers, known))?;
    let accept = HeaderValue::try_from(accept_key(key)).expect("base64 is a header's value");
    let mut reply = vec![
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static("websocket")),
        (SEC_WEBSOCKET_ACCEPT, accept),
    ];
    if !name.is_empty() {
        reply.push((SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name)));
    }
    Ok(Agreement { mode, reply })
}

fn accept_key(key: &[u8]) -> String {
    STANDARD.encode(Sha1::new().chain_update(key).chain_update(WEBSOCKET_GUID).finalize())
}

fn pick(offers: &[&str], known: &[(&'static str, Mode)]) -> Option<(&'static str, Mode)> {
    offers.iter().find_map(|offer| known.iter().find(|(name, _)| name == offer).copied())
}

fn no_protocol(offers: &[&str], known: &[(&'static str, Mode)]) -> Refusal {
    let names: Vec<_> = known.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect();
    let offers: String = offers.join(", ").chars().take(200).collect();
    let message = format!("no sub protocol in common: the client offers {offers:?}, there are {}", names.join(", "));
    Refusal::new(StatusCode::FORBIDDEN, message)
}

/// The words of a header that is a list, over all its lines.
fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|word| !word.is_empty()).take(MAX_OFFERS).collect()
}

#[cfg(test)]
mod tests;
