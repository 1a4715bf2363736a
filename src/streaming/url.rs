//! The URLs that an RPC answers with, and reading their paths again.

use std::net::SocketAddr;

/// What a URL is for; the first part of its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Exec,
    Attach,
    PortForward,
}

impl Kind {
    /// The word in the path, and in the log.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
        }
    }
}

/// What every URL of a server begins with: `http://host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base(String);

impl Base {
    /// The beginning of the URLs of a server that listens on `address`. A host that the operator advertises takes the
    /// place of the address, whose port stays.
    #[must_use]
    pub fn new(address: SocketAddr, advertise: &str, tls: bool) -> Self {
        let scheme = if tls { "https" } else { "http" };
        let host = match (advertise, address) {
            ("", SocketAddr::V4(address)) => address.ip().to_string(),
            ("", SocketAddr::V6(address)) => format!("[{}]", address.ip()),
            // An IPv6 address needs brackets beside a port.
            (name, _) if name.contains(':') && !name.starts_with('[') => format!("[{name}]"),
            (name, _) => name.to_owned(),
        };
        Self(format!("{scheme}://{host}:{}", address.port()))
    }

    /// The URL of one session.
    #[must_use]
    pub fn session(&self, kind: Kind, token: &str) -> String {
        format!("{}/{}/{token}", self.0, kind.word())
    }
}

/// The kind and the token in a request's path; anything else is `None`.
#[must_use]
pub fn parse_path(path: &str) -> Option<(Kind, &str)> {
    let (word, token) = path.strip_prefix('/')?.split_once('/')?;
    let kind = [Kind::Exec, Kind::Attach, Kind::PortForward].into_iter().find(|kind| kind.word() == word)?;
    (!token.is_empty() && token.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some((kind, token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_the_address_or_what_is_advertised() {
        for (address, advertise, tls, want) in [
            ("127.0.0.1:34567", "", false, "http://127.0.0.1:34567/exec/ab"),
            ("[::1]:80", "", true, "https://[::1]:80/exec/ab"),
            ("0.0.0.0:1234", "node-1.example", true, "https://node-1.example:1234/exec/ab"),
            ("[::]:1234", "2001:db8::1", false, "http://[2001:db8::1]:1234/exec/ab"),
            ("[::]:1234", "[2001:db8::1]", false, "http://[2001:db8::1]:1234/exec/ab"),
        ] {
            let base = Base::new(address.parse().unwrap(), advertise, tls);
            assert_eq!(base.session(Kind::Exec, "ab"), want);
        }
    }

    #[test]
    fn only_our_own_paths_are_read() {
        for (path, want) in [
            ("/exec/0af", Some((Kind::Exec, "0af"))),
            ("/attach/0af", Some((Kind::Attach, "0af"))),
            ("/portforward/0af", Some((Kind::PortForward, "0af"))),
            ("/exec/", None),
            ("/exec", None),
            ("/", None),
            ("", None),
            ("exec/0af", None),
            ("//exec/0af", None),
            ("/exec/0af/", None),
            ("/exec/0af/b", None),
            ("/exec/../attach/0af", None),
            ("/exec/%30af", None),
            ("/exec/0af\u{0}", None),
            ("/EXEC/0af", None),
            ("/port-forward/0af", None),
        ] {
            assert_eq!(parse_path(path), want, "{path:?}");
        }
    }
}
