//! One file of `registries.conf(5)`, version 2: bytes in, rules out. Reads nothing else.

use serde::Deserialize;
use toml::Spanned;

use super::super::reference::{DOCKER_HUB, Reference, check_host, short_name};
use super::unknown::{Shape, unknown};

/// Most rules and mirrors of one file: far above any that people write.
const MAX_ENTRIES: usize = 4096;

/// The keys of a file, of a registry in it, and of a mirror in that.
const FILE: Shape = Shape {
    keys: &[
        "registry",
        "unqualified-search-registries",
        "short-name-mode",
        "credential-helpers",
        "aliases",
        "registries",
    ],
    below: &[("registry", &REGISTRY)],
};
const REGISTRY: Shape = Shape {
    keys: &["prefix", "location", "insecure", "blocked", "mirror-by-digest-only", "mirror"],
    below: &[("mirror", &MIRROR)],
};
const MIRROR: Shape = Shape { keys: &["location", "insecure", "pull-from-mirror"], below: &[] };

/// What one file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfFile {
    /// By prefix, in the order of the file.
    pub rules: Vec<(String, Rule)>,
    /// `unqualified-search-registries`, when it is there.
    pub search: Option<Vec<String>>,
    pub mode: Option<ShortNameMode>,
    /// `[aliases]`; none for one that is to be taken away.
    pub aliases: Vec<(String, Option<String>)>,
    /// `credential-helpers` but for the word that means the auth files.
    pub helpers: Vec<String>,
    /// A sentence for each key that is not known.
    pub unknown: Vec<String>,
}

/// A `[[registry]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Takes the place of the prefix; empty: the name stays as it is.
    pub location: String,
    pub insecure: bool,
    pub blocked: bool,
    /// `mirror-by-digest-only`
    pub digest_only: bool,
    pub mirrors: Vec<Mirror>,
    /// From 1.
    pub line: usize,
}

/// A `[[registry.mirror]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    pub location: String,
    pub insecure: bool,
    pub pull_from: PullFrom,
    /// From 1.
    pub line: usize,
}

/// `pull-from-mirror`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullFrom {
    #[default]
    #[serde(alias = "")]
    All,
    DigestOnly,
    TagOnly,
}

/// `short-name-mode`. Nobody sits at a daemon to be asked, so a mode only says whether it may guess.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShortNameMode {
    /// Several registries to search are an error.
    Enforcing,
    /// They are searched in order.
    #[default]
    Permissive,
    /// As permissive, and aliases do not count.
    Disabled,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawFile {
    #[serde(default)]
    registry: Vec<Spanned<RawRegistry>>,
    unqualified_search_registries: Option<Vec<String>>,
    #[serde(default)]
    short_name_mode: String,
    #[serde(default)]
    credential_helpers: Vec<String>,
    #[serde(default)]
    aliases: std::collections::BTreeMap<String, String>,
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
    mirror: Vec<Spanned<RawMirror>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawMirror {
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    pull_from_mirror: Option<PullFrom>,
}

/// Reads a file.
///
/// # Errors
/// What is wrong, with its line. Never the text of the line: it may hold a password.
pub fn parse(bytes: &[u8]) -> Result<ConfFile, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    let raw: RawFile = toml::from_str(text).map_err(|error| toml_error(text, &error))?;
    if raw.registries.is_some() {
        return Err(
            "it is of version 1 of the format ([registries.search] and the like); write [[registry]] tables".into()
        );
    }
    if raw.registry.iter().map(|entry| 1 + entry.get_ref().mirror.len()).sum::<usize>() > MAX_ENTRIES {
        return Err(format!("it has more than {MAX_ENTRIES} registries and mirrors"));
    }
    let mode = mode(&raw.short_name_mode)?;
    let mut file = ConfFile { mode, unknown: unknown(text, &FILE), ..ConfFile::default() };
    for entry in raw.registry {
        let line = line_of(text, entry.span().start);
        let (prefix, rule) = entry.into_inner().check(text, line).map_err(|why| format!("line {line}: {why}"))?;
        file.add(prefix, rule)?;
    }
    if let Some(search) = raw.unqualified_search_registries {
        let search: Vec<String> = search.iter().map(|host| host.trim_end_matches('/').to_owned()).collect();
        if search.len() > 64 {
            return Err("unqualified-search-registries: more than 64".into());
        }
        if let Some(bad) = search.iter().find(|host| check_host(host).is_err()) {
            return Err(format!("unqualified-search-registries: {:?} is not host[:port]", scrub(bad)));
        }
        file.search = Some(search);
    }
    for (name, target) in raw.aliases {
        let whole = |text: &str| short_name(text).is_none_or(|(_, version)| version.is_empty());
        if short_name(&name).is_none() || !whole(&name) {
            return Err(format!("aliases: {:?} is not a name without registry, tag and digest", scrub(&name)));
        }
        let target = (!target.is_empty()).then_some(target).map(|target| alias(&name, &target)).transpose()?;
        file.aliases.push((name, target));
    }
    file.helpers = raw.credential_helpers.into_iter().filter(|name| name != "containers-auth.json").collect();
    Ok(file)
}

impl ConfFile {
    /// Adds a rule. Of two for one prefix the first counts, as its makers have it, unless one forbids or loosens what the other
    /// does not: then nobody can tell what is meant.
    fn add(&mut self, prefix: String, rule: Rule) -> Result<(), String> {
        let Some((_, first)) = self.rules.iter().find(|(known, _)| *known == prefix) else {
            self.rules.push((prefix, rule));
            return Ok(());
        };
        let (line, at) = (rule.line, first.line);
        if (rule.blocked, rule.insecure) != (first.blocked, first.insecure) {
            return Err(format!(
                "line {line}: prefix {prefix:?} has a [[registry]] in line {at} already, with another blocked or insecure"
            ));
        }
        if rule != (Rule { line, ..first.clone() }) {
            self.unknown.push(format!(
                "line {line}: this [[registry]] has no effect: the one in line {at} is for the prefix {prefix:?} too"
            ));
        }
        Ok(())
    }
}

/// The name that an alias stands for: with a registry, and without a version.
fn alias(name: &str, target: &str) -> Result<String, String> {
    let bad = || format!("aliases: {name:?}: {:?} is not registry/path without a tag", scrub(target));
    let versioned = target.contains('@') || target.rsplit('/').next().is_some_and(|last| last.contains(':'));
    let full = Reference::parse(target).ok().filter(|_| !versioned && short_name(target).is_none());
    full.map(|full| full.name()).ok_or_else(bad)
}

fn mode(text: &str) -> Result<Option<ShortNameMode>, String> {
    match text {
        "" => Ok(None),
        "enforcing" => Ok(Some(ShortNameMode::Enforcing)),
        "permissive" => Ok(Some(ShortNameMode::Permissive)),
        "disabled" => Ok(Some(ShortNameMode::Disabled)),
        other => Err(format!("short-name-mode: {other:?} is not enforcing, permissive or disabled")),
    }
}

impl RawRegistry {
    fn check(self, text: &str, line: usize) -> Result<(String, Rule), String> {
        let prefix = self.prefix.filter(|prefix| !prefix.is_empty());
        // First, as what it refuses may hold a password and is not to be quoted whole below.
        let location = check_location(&self.location.unwrap_or_default())?;
        let prefix = prefix.unwrap_or_else(|| location.clone());
        if prefix.contains("://") {
            return Err(format!("prefix {:?}: write a host and path, without a scheme", scrub(&prefix)));
        }
        if prefix.is_empty() {
            return Err("a [[registry]] has neither prefix nor location".into());
        }
        let wild = prefix.strip_prefix("*.");
        if wild.unwrap_or(&prefix).contains('*') || wild.is_some_and(|rest| rest.contains('/')) {
            return Err(format!("prefix {prefix:?}: a wildcard is a leading \"*.\" of a host name only"));
        }
        let versioned = prefix.contains('@') || prefix.rsplit('/').next().is_some_and(|last| last.contains(':'));
        if versioned && prefix.contains('/') && !(location.is_empty() && self.mirror.is_empty()) {
            return Err(format!("prefix {prefix:?}: one with a tag or digest can block, but not lead elsewhere"));
        }
        let mut mirrors = Vec::new();
        for mirror in self.mirror {
            let line = line_of(text, mirror.span().start);
            let mirror = mirror.into_inner();
            if mirror.location.is_empty() {
                return Err(format!("prefix {prefix:?}: a mirror has no location"));
            }
            if self.mirror_by_digest_only && mirror.pull_from_mirror.is_some() {
                return Err(format!(
                    "prefix {prefix:?}: mirror-by-digest-only and pull-from-mirror exclude each other"
                ));
            }
            let location = check_location(&mirror.location)?;
            let pull_from = mirror.pull_from_mirror.unwrap_or_default();
            mirrors.push(Mirror { location, insecure: mirror.insecure, pull_from, line });
        }
        let rule = Rule {
            location,
            insecure: self.insecure,
            blocked: self.blocked,
            digest_only: self.mirror_by_digest_only,
            mirrors,
            line,
        };
        // Names of Docker Hub are compared in their normal form; a rule that blocks must not miss them by its spelling.
        let prefix = match prefix.strip_prefix("index.docker.io") {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{DOCKER_HUB}{rest}"),
            _ => prefix,
        };
        Ok((prefix.trim_end_matches('/').to_owned(), rule))
    }
}

fn check_location(location: &str) -> Result<String, String> {
    if location.contains("://") {
        return Err(format!("location {:?}: write a host and path, without a scheme", scrub(location)));
    }
    if location.contains('@') {
        return Err("a location has user information in it".into());
    }
    Ok(location.trim_end_matches('/').to_owned())
}

/// The text without what may be a user and password, and without a query, which may hold a token.
pub(super) fn scrub(location: &str) -> String {
    let plain = location.rsplit('@').next().unwrap_or_default();
    plain.split(['?', '#']).next().unwrap_or_default().chars().take(128).collect()
}

/// The library's own text shows the line, which may hold a password; this one does not.
pub(super) fn toml_error(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map_or(1, |span| line_of(text, span.start));
    format!("line {line}: {}", error.message())
}

/// The line of a byte, from 1.
pub(super) fn line_of(text: &str, at: usize) -> usize {
    let before = text.get(..at).unwrap_or(text);
    1 + before.bytes().filter(|byte| *byte == b'\n').count()
}
