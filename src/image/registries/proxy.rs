//! Proxies: the way to hosts that are not to be reached directly.
//!
//! The `proxy` of `hosts.toml` is for one place and for what that sends us on to, whatever the environment says. Every other
//! host is reached by `HTTPS_PROXY` or `HTTP_PROXY` of the daemon's environment, unless `NO_PROXY` has it. These are read as Go's
//! programs read them (golang.org/x/net/http/httpproxy), since a unit's environment is written for those: in capital letters
//! or small ones, a loopback address never goes by a proxy, and an entry of `NO_PROXY` is a name with its subdomains, a name
//! with a leading dot or `*.` for the subdomains alone, an address, a subnet, any of them but the subnet with a port, or `*`.
//! (docs/decisions/044)

use std::fmt;
use std::net::IpAddr;

use reqwest::Url;

use super::conf::scrub;
use crate::config::subnet::Subnet;

/// Most entries of `NO_PROXY`: far above any that people write.
const MAX_EXCEPTIONS: usize = 4096;

/// A proxy that speaks HTTP, itself reached with or without TLS.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Proxy {
    /// As configured, with the user and password that the proxy is shown and nobody else.
    whole: String,
    /// `scheme://host:port`
    shown: String,
    /// Who says so, for people.
    source: String,
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.shown, self.source)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("url", &self.shown).field("source", &self.source).finish_non_exhaustive()
    }
}

impl Proxy {
    /// Reads the URL of a proxy. What is after its port has to be nothing.
    ///
    /// # Errors
    /// What is wrong, without a user or a password.
    pub(super) fn read(text: &str, source: &str) -> Result<Self, String> {
        let bad = |why: &str| format!("proxy {:?}: {why}", scrub(text));
        let url = Url::parse(text).map_err(|_| bad("it is not a URL"))?;
        match url.scheme() {
            "http" | "https" => {}
            "socks5" | "socks5h" => return Err(bad("proxies that speak SOCKS are not supported")),
            _ => return Err(bad("its scheme is neither http nor https")),
        }
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| bad("it has no host"))?;
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(bad("it has a path, a query or a fragment"));
        }
        let port = url.port_or_known_default().ok_or_else(|| bad("it has no port"))?;
        let shown = format!("{}://{host}:{port}", url.scheme());
        Ok(Self { whole: url.into(), shown, source: source.to_owned() })
    }

    /// The URL with its user and password: only for the HTTP client.
    pub(in crate::image) fn whole(&self) -> &str {
        &self.whole
    }
}

/// A proxy, or why the one that was asked for cannot be used.
type Wanted = Option<Result<Proxy, String>>;

/// What the daemon's environment says of proxies.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    https: Wanted,
    http: Wanted,
    exceptions: Vec<Exception>,
}

/// An entry of `NO_PROXY`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Exception {
    hosts: Hosts,
    /// Only to this port.
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    All,
    Address(IpAddr),
    Subnet(Subnet),
    /// `.example.com`, and whether `example.com` is one as well.
    Domain {
        dotted: String,
        itself: bool,
    },
}

impl Environment {
    /// That of this process.
    #[must_use]
    pub fn of_this_process() -> Self {
        Self::read(|name| std::env::var(name).ok())
    }

    /// Reads the variables; one that is empty is none.
    #[must_use]
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: [&'static str; 2]| {
            names.into_iter().find_map(|name| Some((name, variable(name).filter(|text| !text.is_empty())?)))
        };
        let proxy = |names| {
            let (name, text) = first(names)?;
            let whole = if text.contains("://") { text } else { format!("http://{text}") };
            Some(Proxy::read(&whole, name).map_err(|why| format!("{name} of the daemon's environment: {why}")))
        };
        let exceptions = first(["NO_PROXY", "no_proxy"]).map(|(_, text)| text).unwrap_or_default();
        Self {
            https: proxy(["HTTPS_PROXY", "https_proxy"]),
            http: proxy(["HTTP_PROXY", "http_proxy"]),
            exceptions: exceptions.split(',').filter_map(Exception::read).take(MAX_EXCEPTIONS).collect(),
        }
    }

    /// The proxy on the way to a host (`host[:port]`), if one is to be used.
    ///
    /// # Errors
    /// Why the one that is to be used cannot be: going there directly would be what the operator forbade.
    pub fn proxy(&self, scheme: &str, authority: &str) -> Result<Option<&Proxy>, String> {
        let (wanted, usual) = if scheme == "https" { (&self.https, 443) } else { (&self.http, 80) };
        let Some(wanted) = wanted else { return Ok(None) };
        let (host, port) = split(authority);
        let host = host.to_ascii_lowercase();
        let address = host.parse::<IpAddr>().ok();
        let own = host == "localhost" || address.is_some_and(|address| address.is_loopback());
        if own || self.exceptions.iter().any(|except| except.has(&host, address, port.unwrap_or(usual))) {
            return Ok(None);
        }
        wanted.as_ref().map(Some).map_err(Clone::clone)
    }

    /// A sentence for each variable that cannot be used.
    pub(in crate::image) fn bad(&self) -> impl Iterator<Item = String> {
        [&self.https, &self.http].into_iter().flatten().filter_map(|wanted| {
            let why = wanted.as_ref().err()?;
            Some(format!("{why}; nothing is pulled by way of it"))
        })
    }
}

impl Exception {
    fn read(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        let all = |hosts| Some(Self { hosts, port: None });
        if text.is_empty() {
            return None;
        }
        if text == "*" {
            return all(Hosts::All);
        }
        if let Some((address, prefix)) = text.split_once('/') {
            let address = address.parse::<IpAddr>().ok()?;
            let bits = if address.is_ipv4() { 32 } else { 128 };
            let prefix = prefix.parse::<u8>().ok().filter(|prefix| *prefix <= bits)?;
            return all(Hosts::Subnet(Subnet::around(address, prefix)));
        }
        let (host, port) = split(&text);
        if let Ok(address) = host.parse() {
            return Some(Self { hosts: Hosts::Address(address), port });
        }
        let host = host.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(host);
        let itself = !host.starts_with('.');
        let dotted = if itself { format!(".{host}") } else { host.to_owned() };
        (dotted.len() > 1).then_some(Self { hosts: Hosts::Domain { dotted, itself }, port })
    }

    fn has(&self, host: &str, address: Option<IpAddr>, port: u16) -> bool {
        let here = match &self.hosts {
            Hosts::All => true,
            Hosts::Address(own) => address == Some(*own),
            Hosts::Subnet(subnet) => address.is_some_and(|address| subnet.contains(address)),
            Hosts::Domain { dotted, itself } => host.ends_with(dotted) || (*itself && host == &dotted[1..]),
        };
        here && self.port.is_none_or(|own| own == port)
    }
}

/// Host without brackets, and port, if there is one.
fn split(authority: &str) -> (&str, Option<u16>) {
    if let Some((host, after)) = authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return (host, after.strip_prefix(':').and_then(|port| port.parse().ok()));
    }
    match authority.split_once(':') {
        Some((host, port)) if !port.contains(':') => (host, port.parse().ok()),
        // Without brackets more than one colon is an address of IPv6.
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment::read(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn exceptions_are_those_of_go() {
        let except = "a.lan, .b.lan,*.c.lan,192.0.2.7,198.51.100.0/24,d.lan:5000,[2001:db8::1]:5000,2001:db8:1::/48,E.lan,,bad/1";
        let all = environment(&[("HTTPS_PROXY", "http://p.lan:3128"), ("NO_PROXY", except)]);
        for (host, direct) in [
            ("a.lan", true),
            ("A.lan:5000", true),
            ("x.a.lan", true),
            ("xa.lan", false),
            ("b.lan", false),
            ("x.b.lan", true),
            ("c.lan", false),
            ("x.y.c.lan", true),
            ("192.0.2.7", true),
            ("192.0.2.7:5000", true),
            ("192.0.2.8", false),
            ("198.51.100.9:5000", true),
            ("198.51.101.9", false),
            ("d.lan:5000", true),
            ("d.lan", false),
            ("[2001:db8::1]:5000", true),
            ("[2001:db8::1]", false),
            ("[2001:db8:1::2]:5000", true),
            ("e.lan", true),
            // Never by a proxy, whatever NO_PROXY says.
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("127.9.9.9", true),
            ("[::1]:5000", true),
            ("registry.example", false),
        ] {
            let found = all.proxy("https", host).expect("a good proxy").map(ToString::to_string);
            let want = (!direct).then(|| "http://p.lan:3128 (HTTPS_PROXY)".to_owned());
            assert_eq!(found, want, "{host}");
            assert_eq!(all.proxy("http", host), Ok(None), "{host}");
        }
        let none = environment(&[("HTTPS_PROXY", "http://p.lan:3128"), ("no_proxy", "*")]);
        assert_eq!(none.proxy("https", "registry.example"), Ok(None));
        let ported = environment(&[("https_proxy", "http://p.lan:3128"), ("NO_PROXY", "a.lan:443")]);
        assert_eq!(ported.proxy("https", "a.lan"), Ok(None));
        assert!(ported.proxy("https", "a.lan:5000").is_ok_and(|proxy| proxy.is_some()));
    }

    #[test]
    fn each_scheme_has_its_own_and_an_empty_one_is_none() {
        let both =
            environment(&[("HTTPS_PROXY", ""), ("https_proxy", "s.lan"), ("HTTP_PROXY", "http://u:p%40q@h.lan:1/")]);
        let of = |scheme| both.proxy(scheme, "a.lan").expect("a good proxy").expect("there is one").clone();
        assert_eq!(of("https").to_string(), "http://s.lan:80 (https_proxy)");
        assert_eq!(of("http").to_string(), "http://h.lan:1 (HTTP_PROXY)");
        assert_eq!(of("http").whole(), "http://u:p%40q@h.lan:1/");
        assert!(!format!("{:?}", of("http")).contains("p%40q"));
        assert_eq!(both.bad().count(), 0);
        assert_eq!(environment(&[("ALL_PROXY", "http://p.lan")]).proxy("http", "a.lan"), Ok(None));
    }

    #[test]
    fn one_that_cannot_be_used_is_no_leave_to_go_directly() {
        for (url, why) in [
            ("socks5://p.lan:1080", "SOCKS"),
            ("ftp://p.lan", "neither http nor https"),
            ("http://canary:canary@p.lan/path", "a path"),
            ("http://", "not a URL"),
            ("http://canary:canary@p.lan:99999", "not a URL"),
        ] {
            let all = environment(&[("HTTPS_PROXY", url), ("NO_PROXY", "a.lan")]);
            let error = all.proxy("https", "b.lan").expect_err(url);
            assert!(error.contains(why) && error.contains("HTTPS_PROXY"), "{error}");
            assert_eq!(all.bad().count(), 1);
            let told = format!("{error} {:?}", all.bad().next());
            assert!(!told.contains("canary"), "{told}");
            assert_eq!(all.proxy("https", "a.lan"), Ok(None));
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_refused_or_read(text in "\\PC{0,60}", host in "[a-z0-9.:\\[\\]]{0,20}") {
            let all = environment(&[("HTTPS_PROXY", &text), ("NO_PROXY", &text)]);
            let _ = all.proxy("https", &host);
        }
    }
}
