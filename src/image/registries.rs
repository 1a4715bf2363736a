//! Which places serve a name, in order: `registries.conf` (version 2) with its drop-ins, and `hosts.toml` of containerd.
//!
//! A rule of `registries.conf` that has the name decides, and `hosts.toml` is then not looked at. A name without a rule is
//! led by the `hosts.toml` of its host, else by that of `_default`; a name that has neither goes to its own registry.
//! Both formats are shared with other tools on the node, so keys that mean nothing here are passed over, and told
//! (`unknown.rs`); one that does mean something and has the wrong type is an error.

pub mod conf;
mod duration;
pub mod hosts;
mod load;
pub mod proxy;
mod unknown;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::HeaderMap;

pub use load::{Notes, Sources};

use self::conf::{Mirror, PullFrom, Rule, ShortNameMode};
use self::hosts::HostsFile;
use self::proxy::Proxy;
use super::reference::{
    DOCKER_HUB, DOCKER_HUB_REGISTRY, Reference, ReferenceError, Version, check_host, short_name, split_name,
};

/// The rules of all files together.
#[derive(Debug, Clone, Default)]
pub struct Registries {
    /// By prefix; a later file replaces the rule of an earlier one.
    rules: BTreeMap<String, (Arc<Path>, Rule)>,
    /// Where names without a registry are looked for; empty: Docker Hub.
    search: Vec<String>,
    mode: ShortNameMode,
    aliases: BTreeMap<String, String>,
    /// Programs that the files name for credentials; none is ever run.
    helpers: Vec<String>,
    /// `hosts.toml` by host (or `_default`), or why it cannot be used.
    hosts: HashMap<String, (Arc<Path>, Result<HostsFile, String>)>,
}

/// Where in which file something is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: Arc<Path>,
    /// From 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// How a place is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Https,
    Http,
    /// Https first, then http: `insecure` of `registries.conf`.
    Either,
}

/// What a connection to a host is made with, beyond what `certs_d` has for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Tls {
    /// Certificates are not verified.
    pub unverified: bool,
    /// PEM files of authorities, added to those of the system.
    pub authorities: Vec<PathBuf>,
    /// PEM files of the client's certificate and, if apart, its key.
    pub client: Option<(PathBuf, Option<PathBuf>)>,
}

/// A place that may serve a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `host[:port]`, as in the name or the configuration.
    pub host: String,
    pub repository: String,
    pub scheme: Scheme,
    /// Path that repositories are below, without a slash at its end; `/v2` by the distribution specification.
    pub api: String,
    pub tls: Tls,
    /// Sent with every request to this place, and to no other.
    pub headers: HeaderMap,
    /// How long a connection may take to stand, where `hosts.toml` says so: looking the name up, TCP and TLS together.
    pub dial_timeout: Option<Duration>,
    /// The way to it and to what it sends us on to, where `hosts.toml` says so.
    pub proxy: Option<Proxy>,
    /// Registry of the name, told to a mirror that serves several (`?ns=`).
    pub namespace: Option<String>,
    pub mirror: bool,
    /// Tags may be asked for here, not only digests.
    pub resolves: bool,
    /// Content may be fetched here.
    pub serves: bool,
    /// Where it is configured; none for the registry of the name itself.
    pub place: Option<Place>,
}

/// A file cannot be used, or forbids a name.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistriesError {
    #[error("{}: cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: Arc<io::Error> },
    #[error("{}: {reason}", path.display())]
    Parse { path: PathBuf, reason: String },
    #[error("{reference}: the file that leads it cannot be used: {}: {reason}", path.display())]
    Hosts { reference: String, path: PathBuf, reason: String },
    #[error("{reference}: blocked by the rule for {prefix} in {place}")]
    Blocked { reference: String, prefix: String, place: Place },
    #[error("{reference}: the rule for {prefix} in {place} leads to {location:?}, which is not a registry and path")]
    Location { reference: String, prefix: String, place: Place, location: String },
    #[error("{name:?} has no registry, and several are to be searched with short-name-mode enforcing; write one of {}", full.join(", "))]
    ShortName { name: String, full: Vec<String> },
    #[error("{reference}: no place may be asked for it: {place} gives none the capability to resolve or to pull")]
    NoPlace { reference: String, place: String },
}

impl Endpoint {
    /// The registry of a name, as nobody said anything about it.
    fn own(reference: &Reference) -> Self {
        Self {
            host: reference.host().to_owned(),
            repository: reference.repository().to_owned(),
            scheme: Scheme::Https,
            api: "/v2".to_owned(),
            tls: Tls::default(),
            headers: HeaderMap::new(),
            dial_timeout: None,
            proxy: None,
            namespace: None,
            mirror: false,
            resolves: true,
            serves: true,
            place: None,
        }
    }

    /// The host that is connected to.
    #[must_use]
    pub fn address(&self) -> &str {
        if self.host == DOCKER_HUB { DOCKER_HUB_REGISTRY } else { &self.host }
    }

    /// The operator allows this place to be less than https with a verified certificate.
    #[must_use]
    pub fn is_insecure(&self) -> bool {
        self.scheme != Scheme::Https || self.tls.unverified
    }

    /// For people: where the repository is.
    #[must_use]
    pub fn shown(&self) -> String {
        let scheme = if self.scheme == Scheme::Http { "http" } else { "https" };
        format!("{scheme}://{}{}/{}", self.address(), self.api, self.repository)
    }
}

impl Registries {
    /// Adds what one `registries.conf` says; it replaces what an earlier file says of the same.
    fn add(&mut self, file: &Arc<Path>, conf: conf::ConfFile) {
        self.rules.extend(conf.rules.into_iter().map(|(prefix, rule)| (prefix, (file.clone(), rule))));
        if let Some(search) = conf.search {
            self.search = search;
        }
        self.mode = conf.mode.unwrap_or(self.mode);
        for (name, target) in conf.aliases {
            // An empty alias takes one of an earlier file away.
            match target {
                Some(target) => self.aliases.insert(name, target),
                None => self.aliases.remove(&name),
            };
        }
        self.helpers.extend(conf.helpers);
    }

    /// Programs that `registries.conf` names for credentials and that are not run.
    #[must_use]
    pub fn helpers(&self) -> &[String] {
        &self.helpers
    }

    /// Every full name that a text may stand for, the likeliest first. A name with a registry stands for itself. A short
    /// name is an alias, else below each of the `unqualified-search-registries`, else on Docker Hub.
    ///
    /// # Errors
    /// [`ReferenceError`] when it is outside the grammar.
    pub fn names(&self, text: &str) -> Result<Vec<Reference>, ReferenceError> {
        let plain = Reference::parse(text)?;
        let Some((name, version)) = short_name(text) else { return Ok(vec![plain]) };
        if self.mode != ShortNameMode::Disabled
            && let Some(target) = self.aliases.get(name)
        {
            return Ok(vec![Reference::parse(&format!("{target}{version}"))?]);
        }
        if self.search.is_empty() {
            return Ok(vec![plain]);
        }
        self.search.iter().map(|host| Reference::parse(&format!("{host}/{text}"))).collect()
    }

    /// The names to pull for a text, to be tried in order.
    ///
    /// # Errors
    /// As [`Registries::names`]; [`RegistriesError::ShortName`] when the mode forbids to guess.
    pub fn names_to_pull(&self, text: &str) -> Result<Vec<Reference>, super::ImageError> {
        let names = self.names(text)?;
        if names.len() > 1 && self.mode == ShortNameMode::Enforcing {
            let full = names.iter().map(ToString::to_string).collect();
            return Err(RegistriesError::ShortName { name: text.chars().take(128).collect(), full }.into());
        }
        Ok(names)
    }

    /// The places for a name: mirrors in order, then the registry itself.
    ///
    /// # Errors
    /// [`RegistriesError::Blocked`], [`RegistriesError::Location`], [`RegistriesError::NoPlace`], or
    /// [`RegistriesError::Hosts`] for a `hosts.toml` that cannot be used.
    pub fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>, RegistriesError> {
        if let Some(found) = self.rule(reference) {
            return by_rule(reference, found);
        }
        let own = Endpoint::own(reference);
        let Some((file, hosts)) = self.hosts.get(reference.host()).or_else(|| self.hosts.get("_default")) else {
            return Ok(vec![own]);
        };
        let hosts = hosts.as_ref().map_err(|reason| RegistriesError::Hosts {
            reference: reference.to_string(),
            path: file.to_path_buf(),
            reason: reason.clone(),
        })?;
        let places = hosts.endpoints(reference, file, &own);
        let by_tag = matches!(reference.version(), Version::Tag(_));
        if !places.iter().any(|place| place.resolves || (place.serves && !by_tag)) {
            let place = file.display().to_string();
            return Err(RegistriesError::NoPlace { reference: reference.to_string(), place });
        }
        Ok(places)
    }

    /// The prefix and place of the rule that decides over a name.
    #[must_use]
    pub fn decided_by(&self, reference: &Reference) -> Option<(&str, Place)> {
        self.rule(reference).map(|found| (found.prefix, found.place()))
    }

    /// Whether a host (of a redirect or a token service) is one that the operator marked insecure.
    #[must_use]
    pub fn is_insecure_host(&self, host: &str) -> bool {
        let of = |location: &str| location.split('/').next() == Some(host);
        let by_rule = self.rules.iter().any(|(prefix, (_, rule))| {
            // Without a location it is where the prefix is.
            let location = if rule.location.is_empty() { prefix } else { &rule.location };
            (rule.insecure && of(location)) || rule.mirrors.iter().any(|m| m.insecure && of(&m.location))
        });
        by_rule || self.hosts.values().any(|(_, hosts)| hosts.as_ref().is_ok_and(|hosts| hosts.is_insecure(host)))
    }

    /// The rule of the longest prefix that matches.
    fn rule(&self, reference: &Reference) -> Option<Found<'_>> {
        let whole = reference.to_string();
        self.rules
            .iter()
            .filter_map(|(prefix, (file, rule))| {
                matching(prefix, &whole).map(|matched| Found { matched, prefix, file, rule })
            })
            .max_by_key(|found| (found.prefix.len(), found.matched))
    }
}

/// A rule that has a name.
struct Found<'a> {
    /// Bytes of the name that the prefix covers.
    matched: usize,
    prefix: &'a str,
    file: &'a Arc<Path>,
    rule: &'a Rule,
}

impl Found<'_> {
    fn place(&self) -> Place {
        Place { file: self.file.clone(), line: self.rule.line }
    }
}

fn by_rule(reference: &Reference, found: Found<'_>) -> Result<Vec<Endpoint>, RegistriesError> {
    let Found { rule, prefix, .. } = found;
    if rule.blocked {
        let (reference, prefix) = (reference.to_string(), prefix.to_owned());
        return Err(RegistriesError::Blocked { reference, prefix, place: found.place() });
    }
    let name = reference.name();
    // A prefix with a tag covers more than the name; such a rule leads nowhere else, see conf.rs.
    let rest = name.get(found.matched..).unwrap_or_default();
    let at = |location: &str, insecure: bool, line: usize| {
        let bad = || RegistriesError::Location {
            reference: reference.to_string(),
            prefix: prefix.to_owned(),
            place: found.place(),
            location: location.to_owned(),
        };
        let whole = format!("{location}{rest}");
        let (host, path) = whole.split_once('/').ok_or_else(bad)?;
        // Docker Hub has several names, and a name there may leave `library/` out.
        let hub = matches!(host, DOCKER_HUB | "index.docker.io").then(|| split_name(&whole));
        let hub = hub.transpose().map_err(|_| bad())?;
        let (host, path) = hub.as_ref().map_or((host, path), |(host, path)| (host.as_str(), path.as_str()));
        let safe = Reference::parse(&format!("x.invalid/{path}")).is_ok_and(|r| r.repository() == path);
        if check_host(host).is_err() || !safe {
            return Err(bad());
        }
        let own = Endpoint { host: host.to_owned(), repository: path.to_owned(), ..Endpoint::own(reference) };
        Ok(insecurely(own, insecure, Place { file: found.file.clone(), line }))
    };
    let by_digest = matches!(reference.version(), Version::Digest(_));
    let wanted = |mirror: &&Mirror| match mirror.pull_from {
        PullFrom::All => by_digest || !rule.digest_only,
        PullFrom::DigestOnly => by_digest,
        PullFrom::TagOnly => !by_digest,
    };
    let mut places = Vec::new();
    for mirror in rule.mirrors.iter().filter(wanted) {
        places.push(Endpoint { mirror: true, ..at(&mirror.location, mirror.insecure, mirror.line)? });
    }
    places.push(if rule.location.is_empty() {
        insecurely(Endpoint::own(reference), rule.insecure, found.place())
    } else {
        at(&rule.location, rule.insecure, rule.line)?
    });
    Ok(places)
}

fn insecurely(own: Endpoint, insecure: bool, place: Place) -> Endpoint {
    let scheme = if insecure { Scheme::Either } else { Scheme::Https };
    Endpoint { scheme, tls: Tls { unverified: insecure, ..Tls::default() }, place: Some(place), ..own }
}

/// How many bytes of a full name a prefix covers, if it matches at the end of a component.
fn matching(prefix: &str, name: &str) -> Option<usize> {
    let ends =
        |matched: usize| matches!(name.as_bytes().get(matched), None | Some(b'/' | b':' | b'@')).then_some(matched);
    match prefix.strip_prefix('*') {
        None => name.starts_with(prefix).then_some(prefix.len()).and_then(ends),
        Some(suffix) => {
            // Only within the host: the port may follow.
            let host = name.split('/').next().unwrap_or_default();
            let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
            let at = host.strip_suffix(suffix)?.len();
            (at > 0).then(|| ends(at + suffix.len())).flatten()
        }
    }
}

#[cfg(test)]
mod tests;
