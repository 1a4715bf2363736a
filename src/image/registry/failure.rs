//! What a server or the network did, in words that hold nothing of theirs but a status and well-known codes.

use std::error::Error as _;
use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use serde::Deserialize;

use super::clients::Made;
use crate::image::error::Failure;

/// The error codes of the distribution specification, and the one that Docker Hub adds. Only these are ever shown.
const CODES: [&str; 18] = [
    "BLOB_UNKNOWN",
    "BLOB_UPLOAD_INVALID",
    "BLOB_UPLOAD_UNKNOWN",
    "DENIED",
    "DIGEST_INVALID",
    "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID",
    "MANIFEST_UNKNOWN",
    "MANIFEST_UNVERIFIED",
    "NAME_INVALID",
    "NAME_UNKNOWN",
    "SIZE_INVALID",
    "TAG_INVALID",
    "TOOMANYREQUESTS",
    "UNAUTHORIZED",
    "UNAVAILABLE",
    "UNKNOWN",
    "UNSUPPORTED",
];

/// How rustls begins the text of an alert; the HTTP library hides its type.
const ALERT: &str = "received fatal alert";

/// What to do about an error of TLS, by words of its text.
const HINTS: [(&str, &str); 4] = [
    ("peer certificate: Expired", "; or the clock of this node is ahead"),
    ("peer certificate: NotValidYet", "; or the clock of this node is behind"),
    ("UnknownIssuer", "; authorities of its own belong in its folder of image.certs_d, as a file that ends in .crt"),
    (
        "InvalidContentType",
        "; it does not speak TLS: plain http has to be allowed by insecure in registries.conf or by http:// in hosts.toml",
    ),
];

#[derive(Deserialize)]
struct Body {
    errors: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    code: String,
}

/// The first well-known code of an error body.
pub(super) fn known_code(bytes: &[u8]) -> Option<&'static str> {
    let body: Body = serde_json::from_slice(bytes).ok()?;
    body.errors.iter().find_map(|entry| CODES.iter().find(|code| **code == entry.code).copied())
}

/// `code` is what else is known of the answer, and `elsewhere` the host that it is of, when the registry led there.
pub(super) fn from_status(
    code: Option<&'static str>,
    elsewhere: Option<String>,
    status: StatusCode,
    asked: Option<Duration>,
) -> Failure {
    if let (401, Some(host)) = (status.as_u16(), &elsewhere) {
        return Failure::Unauthorized(format!("{host}, where it leads, asks for credentials"));
    }
    let code = match (code, elsewhere) {
        (Some(code), Some(host)) => Some(format!("{code} of {host}, where it leads")),
        (None, Some(host)) => Some(format!("of {host}, where it leads")),
        (code, None) => code.map(str::to_owned),
    };
    match status.as_u16() {
        401 => Failure::Unauthorized("the registry asks for credentials".to_owned()),
        403 => Failure::Denied(code),
        404 => Failure::NotFound(code),
        407 => Failure::Status { status: 407, code: Some("the proxy on the way asks for a login".to_owned()) },
        408 => Failure::Connection("the registry gave the request up (HTTP 408)".to_owned()),
        429 => Failure::RateLimited { wait: asked.map(|wait| wait.as_secs()) },
        status => Failure::Status { status, code },
    }
}

/// `Retry-After`, as seconds or as a date (RFC 9110, 10.2.3); a date that is past asks for no wait.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// The same failure, with words on whom it is about: that is not the registry, whose name stands before it.
pub(super) fn about(whom: &str, failure: Failure) -> Failure {
    match failure {
        Failure::Connection(text) => Failure::Connection(format!("{whom}: {text}")),
        Failure::Unresolved(text) => Failure::Unresolved(format!("{whom}: {text}")),
        Failure::Unconnected { after, by } => Failure::Unconnected { after, by: format!("{by}, to {whom}") },
        failure => failure,
    }
}

/// `dial` is how long the connection was allowed to take, `scheme` that of the request.
pub(super) fn from_send_error(error: &reqwest::Error, dial: Duration, made: &Made, scheme: &str) -> Failure {
    let proxy = made.proxy(scheme).ok().flatten();
    if is_lookup(error) {
        let whose = proxy.map_or("its address".to_owned(), |proxy| format!("the address of its proxy {proxy}"));
        return Failure::Unresolved(with_cause(&format!("{whose} cannot be looked up: no address"), error));
    }
    let by = proxy.map(|proxy| format!(", by the proxy {proxy}")).unwrap_or_default();
    let doing = if error.is_connect() {
        if error.is_timeout() {
            return Failure::Unconnected { after: dial, by };
        }
        "no connection"
    } else {
        "the connection broke"
    };
    let mut text = with_cause(&format!("{doing}{by}"), error);
    // With TLS 1.3 a server refuses a certificate after the handshake, by an alert that the end of the connection may
    // overtake. Which certificate it means, only we know.
    if let Some(path) = made.identity.as_deref().filter(|_| !error.is_connect() || text.contains(ALERT)) {
        text.push_str(&format!("; the client certificate shown is {}", path.display()));
    }
    for (sign, hint) in HINTS {
        // Who is asked over plain http next is not told how to allow that.
        if made.strict && text.contains(sign) {
            text.push_str(hint);
        }
    }
    Failure::Connection(text)
}

pub(super) fn from_body_error(error: &reqwest::Error) -> Failure {
    Failure::Connection(with_cause("the connection broke", error))
}

/// Whether the name of the host could not be looked up; the HTTP library has no other sign of it than this text.
fn is_lookup(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if inner.to_string() == "dns error" {
            return true;
        }
        cause = inner.source();
    }
    false
}

/// The innermost cause is of the operating system, of TLS or of the HTTP framing and never holds the URL, which the
/// outer texts do.
fn with_cause(doing: &str, error: &reqwest::Error) -> String {
    let mut cause = error.source();
    while let Some(inner) = cause.and_then(std::error::Error::source) {
        cause = Some(inner);
    }
    match cause.map(ToString::to_string) {
        Some(cause) if !cause.contains("://") => format!("{doing}: {}", cause.chars().take(200).collect::<String>()),
        _ => doing.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_a_number_or_a_date() {
        let wait = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().expect("a header"));
            retry_after(&headers)
        };
        assert_eq!(wait("17"), Some(Duration::from_secs(17)));
        assert_eq!(wait("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        assert!(wait(&soon).is_some_and(|wait| (Duration::from_secs(50)..=Duration::from_secs(100)).contains(&wait)));
        for odd in ["soon", "-1", ""] {
            assert_eq!(wait(odd), None, "{odd}");
        }
    }

    #[test]
    fn only_well_known_codes_are_shown() {
        let code = |text: &str| known_code(text.as_bytes());
        assert_eq!(code(r#"{"errors":[{"code":"DENIED","message":"canary"}]}"#), Some("DENIED"));
        assert_eq!(code(r#"{"errors":[{"code":"canary"}]}"#), None);
        assert_eq!(code("<html>canary</html>"), None);
    }
}
