//! One `hosts.toml` of containerd: bytes in, hosts out. Reads nothing else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use toml::Spanned;

use super::super::reference::{Reference, check_host};
use super::conf::{line_of, scrub, toml_error};
use super::proxy::Proxy;
use super::unknown::{Shape, unknown};
use super::{Endpoint, Place, Scheme, Tls, duration};

/// Most hosts of one file.
const MAX_HOSTS: usize = 64;
/// Most headers of one host.
const MAX_HEADERS: usize = 32;
/// What `dial_timeout` may be. The progress clock ends an attempt that is allowed longer than that.
const DIAL: std::ops::RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);

/// The keys of a file, and those of a host in it.
const FILE: Shape = Shape { keys: &KEYS, below: &[("host", &HOST)] };
const HOST: Shape = Shape { keys: KEYS.split_at(2).1, below: &[] };
const KEYS: [&str; 10] = [
    "server",
    "host",
    "capabilities",
    "ca",
    "client",
    "skip_verify",
    "override_path",
    "header",
    "dial_timeout",
    "proxy",
];

/// What one file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostsFile {
    /// In the order of the file.
    hosts: Vec<Host>,
    /// Asked last; without an address it is the registry of the name.
    server: Host,
    /// A sentence for each key that is not known.
    unknown: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Host {
    address: Option<Address>,
    resolves: bool,
    serves: bool,
    tls: Tls,
    headers: HeaderMap,
    dial_timeout: Option<Duration>,
    proxy: Option<Proxy>,
    line: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Address {
    scheme: Scheme,
    host: String,
    api: String,
    /// Written with the port 80, which a parsed URL does not tell from none.
    port_80: bool,
}

#[derive(Deserialize)]
struct RawFile {
    server: Option<Spanned<String>>,
    #[serde(default)]
    host: BTreeMap<String, Spanned<RawHost>>,
    #[serde(flatten)]
    own: RawHost,
}

#[derive(Deserialize)]
struct RawHost {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<RawClient>,
    skip_verify: Option<bool>,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany>,
    dial_timeout: Option<String>,
    proxy: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawClient {
    One(String),
    Many(Vec<OneOrMany>),
}

impl OneOrMany {
    fn list(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(list) => list,
        }
    }
}

/// Reads a file; relative paths in it are below `folder`.
///
/// # Errors
/// What is wrong, with its line. Never the text of the line: headers hold secrets.
pub fn parse(bytes: &[u8], folder: &Path) -> Result<HostsFile, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    let raw: RawFile = toml::from_str(text).map_err(|error| toml_error(text, &error))?;
    if raw.host.len() > MAX_HOSTS {
        return Err(format!("it has more than {MAX_HOSTS} hosts"));
    }
    let (server, line) = match raw.server {
        Some(server) => {
            let line = line_of(text, server.span().start);
            (Some(server.into_inner()).filter(|server| !server.is_empty()), line)
        }
        None => (None, 1),
    };
    let server = raw.own.check(server.as_deref(), folder, line)?;
    let mut hosts = Vec::new();
    for (address, host) in raw.host {
        let line = line_of(text, host.span().start);
        hosts.push(host.into_inner().check(Some(&address), folder, line)?);
    }
    // The format's order is that of the file.
    hosts.sort_by_key(|host| host.line);
    Ok(HostsFile { hosts, server, unknown: unknown(text, &FILE) })
}

impl RawHost {
    fn check(self, address: Option<&str>, folder: &Path, line: usize) -> Result<Host, String> {
        let bad = |why: String| format!("line {line}: {why}");
        // In any case of letters, and an empty list takes none away, as its makers read it.
        let words = self.capabilities.unwrap_or_default();
        let words: Vec<String> = words.iter().map(|word| word.to_ascii_lowercase()).collect();
        let has = |word: &str| words.is_empty() || words.iter().any(|one| one == word);
        let (resolves, serves) = (has("resolve"), has("pull"));
        for word in &words {
            if !matches!(word.as_str(), "pull" | "resolve" | "push" | "referrers") {
                return Err(bad(format!("capability {word:?} is not pull, resolve or push")));
            }
        }
        let path = |text: String| folder.join(text);
        let about_tls = self.skip_verify.is_some() || self.ca.is_some() || self.client.is_some();
        let tls = Tls {
            unverified: self.skip_verify.unwrap_or(false),
            authorities: self.ca.map(OneOrMany::list).unwrap_or_default().into_iter().map(path).collect(),
            client: client(self.client, folder).map_err(bad)?,
        };
        let mut address = address.map(|text| read_address(text, self.override_path)).transpose().map_err(bad)?;
        // As its makers read it: who says something about TLS is asked that way first, unless the port is that of HTTP.
        if let Some(address) = address.as_mut().filter(|address| address.scheme == Scheme::Http)
            && about_tls
            && !address.port_80
        {
            address.scheme = Scheme::Either;
        }
        let proxy = self.proxy.filter(|text| !text.is_empty());
        let proxy = proxy.map(|text| Proxy::read(&text, &format!("{}:{line}", folder.join("hosts.toml").display())));
        let proxy = proxy.transpose().map_err(bad)?;
        let dial_timeout = self.dial_timeout.filter(|text| !text.is_empty());
        let dial_timeout = dial_timeout.map(|text| read_dial_timeout(&text)).transpose().map_err(bad)?;
        let headers = headers(self.header).map_err(bad)?;
        Ok(Host { address, resolves, serves, tls, headers, dial_timeout, proxy, line })
    }
}

fn read_dial_timeout(text: &str) -> Result<Duration, String> {
    let parsed = duration::parse(text).filter(|timeout| DIAL.contains(timeout));
    parsed.ok_or_else(|| format!("dial_timeout {:?} is not a length of time from 1ms to 1h", scrub(text)))
}

/// `scheme://host[:port][/path]`; without a scheme it is https.
fn read_address(text: &str, as_it_is: bool) -> Result<Address, String> {
    let bad = |why: &str| format!("{:?}: {why}", scrub(text));
    let whole = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let url = Url::parse(&whole).map_err(|_| bad("it is not a URL"))?;
    let scheme = match url.scheme() {
        "https" => Scheme::Https,
        "http" => Scheme::Http,
        _ => return Err(bad("its scheme is neither http nor https")),
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("it has user information in it"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("it has a query or a fragment"));
    }
    let host = super::super::registry::authority(&url);
    check_host(&host).map_err(bad)?;
    let mut api = url.path().trim_end_matches('/').to_owned();
    if !as_it_is && !api.ends_with("/v2") {
        api.push_str("/v2");
    }
    let written = whole.split_once("://").and_then(|(_, rest)| rest.split('/').next()).unwrap_or_default();
    Ok(Address { scheme, host, api, port_80: written.ends_with(":80") })
}

/// A file, a list of one, or a pair of certificate and key in a list.
fn client(raw: Option<RawClient>, folder: &Path) -> Result<Option<(PathBuf, Option<PathBuf>)>, String> {
    let path = |text: &String| folder.join(text);
    let pairs: Vec<Vec<String>> = match raw {
        None => return Ok(None),
        Some(RawClient::One(file)) => vec![vec![file]],
        Some(RawClient::Many(list)) => list.into_iter().map(OneOrMany::list).collect(),
    };
    match pairs.as_slice() {
        [] => Ok(None),
        [pair] => match pair.as_slice() {
            [cert] => Ok(Some((path(cert), None))),
            [cert, key] => Ok(Some((path(cert), (!key.is_empty()).then(|| path(key))))),
            _ => Err("client: a pair of certificate and key is wanted".to_owned()),
        },
        _ => Err("client: more than one client certificate for a host cannot be used".to_owned()),
    }
}

fn headers(raw: BTreeMap<String, OneOrMany>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, values) in raw {
        let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("header {name:?}: not a header"))?;
        if matches!(parsed.as_str(), "host" | "content-length" | "transfer-encoding" | "range" | "accept") {
            return Err(format!("header {name:?}: it is made for each request and cannot be set"));
        }
        for value in values.list() {
            let mut value = HeaderValue::from_str(&value).map_err(|_| format!("header {name:?}: not a value"))?;
            value.set_sensitive(true);
            headers.append(parsed.clone(), value);
        }
    }
    if headers.len() > MAX_HEADERS {
        return Err(format!("more than {MAX_HEADERS} headers"));
    }
    Ok(headers)
}

impl HostsFile {
    /// The places for a name, in order; one that may neither resolve nor pull is none.
    pub(super) fn endpoints(&self, reference: &Reference, file: &Arc<Path>, own: &Endpoint) -> Vec<Endpoint> {
        let mut places: Vec<Endpoint> = Vec::new();
        let hosts = self.hosts.iter().map(|host| (host, true)).chain([(&self.server, false)]);
        for (host, mirror) in hosts.filter(|(host, _)| host.resolves || host.serves) {
            let mut place = Endpoint {
                tls: host.tls.clone(),
                headers: host.headers.clone(),
                mirror,
                resolves: host.resolves,
                serves: host.serves,
                dial_timeout: host.dial_timeout,
                proxy: host.proxy.clone(),
                place: Some(Place { file: file.clone(), line: host.line }),
                ..own.clone()
            };
            if let Some(address) = &host.address {
                (place.scheme, place.host, place.api) = (address.scheme, address.host.clone(), address.api.clone());
                let proxy = place.address() != own.address();
                place.namespace = proxy.then(|| reference.host().to_owned());
            }
            let same = |other: &Endpoint| other.shown() == place.shown();
            if !places.iter().any(same) {
                places.push(place);
            }
        }
        places
    }

    /// Whether a host of this file is spoken to without TLS or without verifying it.
    pub(super) fn is_insecure(&self, name: &str) -> bool {
        self.hosts.iter().chain([&self.server]).any(|host| {
            let address = host.address.as_ref().filter(|address| address.host == name);
            address.is_some_and(|address| host.tls.unverified || address.scheme != Scheme::Https)
        })
    }

    /// A sentence for each key that is not known here.
    pub(super) fn unknown(&self) -> &[String] {
        &self.unknown
    }

    /// Files that this one names.
    pub(super) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.hosts.iter().chain([&self.server]).flat_map(|host| {
            let client = host.tls.client.iter().flat_map(|(cert, key)| std::iter::once(cert).chain(key));
            host.tls.authorities.iter().chain(client)
        })
    }
}
