//! `registries.conf` (version 2): which places serve a name, in order.
//!
//! The format is shared with other tools on the node, so members that mean nothing here are passed over; a member that
//! does mean something and has the wrong type is an error. `unqualified-search-registries` and short-name modes are not
//! used: a short name is always `docker.io/library/…`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::reference::{Reference, Version, check_host};

/// Largest file read, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// The rules of all files together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registries {
    /// By prefix; a later file replaces the rule of an earlier one.
    rules: BTreeMap<String, Rule>,
}

/// A place that may serve a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `host[:port]`, as in the name or the configuration.
    pub host: String,
    pub repository: String,
    /// Plain HTTP and unverified certificates are taken.
    pub insecure: bool,
    pub mirror: bool,
}

/// `registries.conf` cannot be used, or forbids a name.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistriesError {
    #[error("{}: cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: Arc<io::Error> },
    #[error("{}: {reason}", path.display())]
    Parse { path: PathBuf, reason: String },
    #[error("{reference}: blocked by the rule for {prefix} in registries.conf")]
    Blocked { reference: String, prefix: String },
    #[error(
        "{reference}: the rule for {prefix} in registries.conf leads to {location:?}, which is not a registry and path"
    )]
    Location { reference: String, prefix: String, location: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    location: String,
    insecure: bool,
    blocked: bool,
    digest_only: bool,
    mirrors: Vec<Mirror>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    pull_from_mirror: PullFrom,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PullFrom {
    #[default]
    #[serde(alias = "")]
    All,
    DigestOnly,
    TagOnly,
}

#[derive(Deserialize)]
struct RawFile {
    #[serde(default)]
    registry: Vec<RawRegistry>,
    /// Version 1 of the format.
    registries: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawRegistry {
    prefix: Option<String>,
    location: Option<String>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<Mirror>,
}

impl Registries {
    /// Reads a file and the `*.conf` files of a folder, in the order of their names. What is absent is empty.
    ///
    /// # Errors
    /// [`RegistriesError::Read`] and [`RegistriesError::Parse`], with the file.
    pub fn load(file: &Path, folder: &Path) -> Result<Self, RegistriesError> {
        let mut all = Self::default();
        let mut files = vec![file.to_owned()];
        match std::fs::read_dir(folder) {
            Ok(entries) => {
                let mut dropped = Vec::new();
                for entry in entries {
                    let path = entry.map_err(|error| unreadable(folder, error))?.path();
                    if path.extension().is_some_and(|extension| extension == "conf") {
                        dropped.push(path);
                    }
                }
                dropped.sort();
                files.extend(dropped);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(unreadable(folder, error)),
        }
        for path in files {
            match read_file(&path) {
                Ok(text) => all.add(&text).map_err(|reason| RegistriesError::Parse { path: path.clone(), reason })?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(unreadable(&path, error)),
            }
        }
        Ok(all)
    }

    fn add(&mut self, text: &str) -> Result<(), String> {
        let raw: RawFile = toml::from_str(text).map_err(|error| {
            // The library's own text shows the line, which may hold a password.
            let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].lines().count().max(1));
            format!("line {line}: {}", error.message())
        })?;
        if raw.registries.is_some() {
            return Err(
                "it is of version 1 of the format ([registries.search] and the like); write [[registry]] tables".into(),
            );
        }
        for entry in raw.registry {
            let (prefix, rule) = entry.check()?;
            self.rules.insert(prefix, rule);
        }
        Ok(())
    }

    /// The places for a name: mirrors in order, then the registry itself.
    ///
    /// # Errors
    /// [`RegistriesError::Blocked`] and [`RegistriesError::Location`].
    pub fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>, RegistriesError> {
        let name = reference.name();
        let own = Endpoint {
            host: reference.host().to_owned(),
            repository: reference.repository().to_owned(),
            insecure: false,
            mirror: false,
        };
        let Some((matched, prefix, rule)) = self.rule(&name) else { return Ok(vec![own]) };
        if rule.blocked {
            return Err(RegistriesError::Blocked { reference: reference.to_string(), prefix: prefix.to_owned() });
        }
        let place = |location: &str, insecure: bool, mirror: bool| {
            let bad = || RegistriesError::Location {
                reference: reference.to_string(),
                prefix: prefix.to_owned(),
                location: location.to_owned(),
            };
            let whole = format!("{location}{}", &name[matched..]);
            let (host, path) = whole.split_once('/').ok_or_else(bad)?;
            let safe = Reference::parse(&format!("x.invalid/{path}")).is_ok_and(|r| r.repository() == path);
            if check_host(host).is_err() || !safe {
                return Err(bad());
            }
            Ok(Endpoint { host: host.to_owned(), repository: path.to_owned(), insecure, mirror })
        };
        let by_digest = matches!(reference.version(), Version::Digest(_));
        let mut places = Vec::new();
        for mirror in &rule.mirrors {
            let wanted = match mirror.pull_from_mirror {
                PullFrom::All => by_digest || !rule.digest_only,
                PullFrom::DigestOnly => by_digest,
                PullFrom::TagOnly => !by_digest,
            };
            if wanted {
                places.push(place(&mirror.location, mirror.insecure, true)?);
            }
        }
        let last = if rule.location.is_empty() {
            Endpoint { insecure: rule.insecure, ..own }
        } else {
            place(&rule.location, rule.insecure, false)?
        };
        places.push(last);
        Ok(places)
    }

    /// Whether a host (of a redirect or a token service) is one that the operator marked insecure.
    #[must_use]
    pub fn is_insecure_host(&self, host: &str) -> bool {
        self.rules.values().any(|rule| {
            let of = |location: &str| location.split('/').next() == Some(host);
            (rule.insecure && of(&rule.location)) || rule.mirrors.iter().any(|m| m.insecure && of(&m.location))
        })
    }

    /// The rule of the longest prefix that matches, with the length of the match.
    fn rule(&self, name: &str) -> Option<(usize, &str, &Rule)> {
        self.rules
            .iter()
            .filter_map(|(prefix, rule)| matching(prefix, name).map(|matched| (matched, prefix.as_str(), rule)))
            .max_by_key(|(matched, prefix, _)| (prefix.len(), *matched))
    }
}

impl RawRegistry {
    fn check(self) -> Result<(String, Rule), String> {
        let prefix = self.prefix.filter(|prefix| !prefix.is_empty());
        let location = self.location.unwrap_or_default();
        let prefix = prefix.unwrap_or_else(|| location.clone());
        if prefix.is_empty() {
            return Err("a [[registry]] has neither prefix nor location".into());
        }
        let wild = prefix.strip_prefix("*.");
        if wild.unwrap_or(&prefix).contains('*') || wild.is_some_and(|rest| rest.contains('/')) {
            return Err(format!("prefix {prefix:?}: a wildcard is a leading \"*.\" of a host name only"));
        }
        for location in std::iter::once(&location).chain(self.mirror.iter().map(|mirror| &mirror.location)) {
            if location.contains("://") {
                return Err(format!("location {:?}: write a host and path, without a scheme", scrub(location)));
            }
            if location.contains('@') {
                return Err("a location has user information in it".into());
            }
        }
        if self.mirror.iter().any(|mirror| mirror.location.is_empty()) {
            return Err(format!("prefix {prefix:?}: a mirror has no location"));
        }
        let trim = |text: &str| text.trim_end_matches('/').to_owned();
        let mirrors = self.mirror.into_iter().map(|m| Mirror { location: trim(&m.location), ..m }).collect();
        let rule = Rule {
            location: trim(&location),
            insecure: self.insecure,
            blocked: self.blocked,
            digest_only: self.mirror_by_digest_only,
            mirrors,
        };
        Ok((trim(&prefix), rule))
    }
}

/// The text without what may be a user and password.
fn scrub(location: &str) -> &str {
    location.rsplit('@').next().unwrap_or_default()
}

/// How many bytes of the name a prefix covers, if it matches at the end of a component.
fn matching(prefix: &str, name: &str) -> Option<usize> {
    let ends = |matched: usize| matches!(name.as_bytes().get(matched), None | Some(b'/' | b':')).then_some(matched);
    match prefix.strip_prefix('*') {
        None => name.starts_with(prefix).then_some(prefix.len()).and_then(ends),
        Some(suffix) => {
            // Only within the host: the port may follow.
            let host = name.split('/').next().unwrap_or_default();
            let at = host.find(suffix).filter(|at| *at > 0)?;
            ends(at + suffix.len())
        }
    }
}

fn unreadable(path: &Path, source: io::Error) -> RegistriesError {
    RegistriesError::Read { path: path.to_owned(), source: Arc::new(source) }
}

fn read_file(path: &Path) -> io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    file.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
