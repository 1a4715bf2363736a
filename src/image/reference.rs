//! Image names: the grammar, the Docker Hub defaults, and nothing that is not in the grammar.
//!
//! The grammar is that of the distribution project: `[host[:port]/]path[:tag][@digest]`. A first component that has a dot,
//! a colon, an upper-case letter or is `localhost` is a host; everything else is a path on `docker.io`, and a path of one
//! component there is below `library/`. Where else a name without a registry is
//! looked for is said by `registries.conf`, see [`super::registries`].

use std::fmt;

use crate::storage::Digest;

/// The registry of names without a host.
pub const DOCKER_HUB: &str = "docker.io";
/// The host of that registry, which has another name than its images.
pub const DOCKER_HUB_REGISTRY: &str = "registry-1.docker.io";
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A full, normalised image name. Made only by parsing, so that it is safe in a URL.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    host: String,
    repository: String,
    version: Version,
}

/// Which image of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Version {
    Tag(String),
    /// A digest decides, whatever tag stood before it.
    Digest(Digest),
}

/// The text is not an image name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an image name: {reason}")]
pub struct ReferenceError {
    /// The text, cut to 128 characters.
    pub text: String,
    pub reason: &'static str,
}

impl Reference {
    /// Parses and normalises a name.
    ///
    /// # Errors
    /// [`ReferenceError`] says which part is outside the grammar.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|reason| ReferenceError { text: text.chars().take(128).collect(), reason })
    }

    /// The registry as named, `host` or `host:port`.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The path on the registry.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Which image of the repository.
    #[must_use]
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// `host/path`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// `host/path:tag`, for a name that is not by digest.
    #[must_use]
    pub fn tagged(&self) -> Option<String> {
        match &self.version {
            Version::Tag(tag) => Some(format!("{}:{tag}", self.name())),
            Version::Digest(_) => None,
        }
    }

    /// `host/path@digest` for a digest of this repository.
    #[must_use]
    pub fn digested(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Version::Tag(tag) => write!(f, "{}/{}:{tag}", self.host, self.repository),
            Version::Digest(digest) => write!(f, "{}/{}@{digest}", self.host, self.repository),
        }
    }
}

impl fmt::Display for Version {
    /// The last component of a manifest's URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => f.write_str(digest.as_str()),
        }
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    // A bound before any work; the longest legal text is name, tag and digest.
    if text.len() > MAX_NAME + MAX_TAG + 80 {
        return Err("it is too long");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            (rest, Some(digest.parse::<Digest>().map_err(|_| "its digest is not sha256 and 64 lower-case hex digits")?))
        }
        None => (text, None),
    };
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (host, repository) = split_name(name)?;
    let version = match (digest, tag) {
        (Some(digest), _) => Version::Digest(digest),
        (None, Some(tag)) => Version::Tag(tag.to_owned()),
        (None, None) => Version::Tag("latest".to_owned()),
    };
    Ok(Reference { host, repository, version })
}

/// Splits `[host/]path`, with the defaults of Docker Hub filled in.
pub(super) fn split_name(name: &str) -> Result<(String, String), &'static str> {
    if name.is_empty() {
        return Err("it has no name");
    }
    let (host, path) = match name.split_once('/') {
        Some((first, rest)) if is_host(first) => (first, rest),
        _ => (DOCKER_HUB, name),
    };
    check_host(host)?;
    check_path(path)?;
    if host == DOCKER_HUB && path.len() == 64 && path.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    {
        return Err("64 hexadecimal digits are an image id, not a name");
    }
    let host = if host == "index.docker.io" { DOCKER_HUB } else { host };
    let path = if host == DOCKER_HUB && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
    if host.len() + 1 + path.len() > MAX_NAME {
        return Err("its name is longer than 255 bytes");
    }
    Ok((host.to_owned(), path))
}

/// A name without a registry, cut into its path and its version (`:tag`, `@digest`, both or nothing).
pub(super) fn short_name(text: &str) -> Option<(&str, &str)> {
    if text.split_once('/').is_some_and(|(first, _)| is_host(first)) {
        return None;
    }
    let name = text.split('@').next().unwrap_or_default();
    let path = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => path,
        _ => name,
    };
    Some((path, &text[path.len()..]))
}

fn is_host(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase())
}

/// `host[:port]`, the host a DNS name, an IPv4 address or an IPv6 address in brackets.
pub(super) fn check_host(host: &str) -> Result<(), &'static str> {
    const BAD: &str = "its registry is not a host name with an optional port";
    let (name, port) = if let Some(rest) = host.strip_prefix('[') {
        let (address, after) = rest.split_once(']').ok_or(BAD)?;
        address.parse::<std::net::Ipv6Addr>().map_err(|_| BAD)?;
        let port = if after.is_empty() { None } else { Some(after.strip_prefix(':').ok_or(BAD)?) };
        (None, port)
    } else {
        match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        }
    };
    if let Some(name) = name {
        let label = |label: &str| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if !name.split('.').all(label) {
            return Err(BAD);
        }
    }
    match port {
        Some(port) if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) || port.parse::<u16>().is_err() => {
            Err(BAD)
        }
        _ => Ok(()),
    }
}

fn check_path(path: &str) -> Result<(), &'static str> {
    if path.split('/').all(is_component) {
        Ok(())
    } else {
        Err("its path is not of lower-case letters and digits with single separators (. _ __ -)")
    }
}

/// Lower-case letters and digits, in runs parted by one dot, one or two underscores, or any number of dashes.
fn is_component(component: &str) -> bool {
    let word = |b: u8| b.is_ascii_digit() || b.is_ascii_lowercase();
    let bytes = component.as_bytes();
    let ends = bytes.first().copied().is_some_and(word) && bytes.last().copied().is_some_and(word);
    ends && component
        .split(|c: char| c.is_ascii_digit() || c.is_ascii_lowercase())
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

pub(super) fn check_tag(tag: &str) -> Result<(), &'static str> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let first = tag.as_bytes().first().copied().is_some_and(word);
    if first && tag.len() <= MAX_TAG && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-') {
        Ok(())
    } else {
        Err("its tag is not 1 to 128 letters, digits, dots, dashes and underscores")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_normalised() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (text, want) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.36", "docker.io/library/busybox:1.36".to_owned()),
            ("docker.io/busybox", "docker.io/library/busybox:latest".to_owned()),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest".to_owned()),
            ("foo/bar", "docker.io/foo/bar:latest".to_owned()),
            ("localhost/bar", "localhost/bar:latest".to_owned()),
            ("localhost:5000/bar:v1", "localhost:5000/bar:v1".to_owned()),
            ("127.0.0.1:5000/a/b__c/d-e.f", "127.0.0.1:5000/a/b__c/d-e.f:latest".to_owned()),
            ("[::1]:5000/a", "[::1]:5000/a:latest".to_owned()),
            ("quay.io/a/b--c:V_1.0-x", "quay.io/a/b--c:V_1.0-x".to_owned()),
            (&format!("quay.io/a/b:tag@{digest}"), format!("quay.io/a/b@{digest}")),
            (&format!("busybox@{digest}"), format!("docker.io/library/busybox@{digest}")),
        ] {
            assert_eq!(Reference::parse(text).map(|r| r.to_string()), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_is_outside_the_grammar_is_refused() {
        let hex = "ab".repeat(32);
        for text in [
            "",
            ":tag",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a b",
            "A",
            "quay.io/A",
            "quay.io/../../etc",
            "quay.io/a/..",
            "quay.io/a___b",
            "quay.io/a..b",
            "quay.io/-a",
            "quay.io/a?x=1",
            "quay.io/a#f",
            "quay.io/a%2e",
            "user:pass@quay.io/a",
            "quay.io:99999/a",
            "quay.io:x/a",
            "-quay.io/a",
            "quay..io/a",
            "https://quay.io/a",
            "quay.io/a:tag with space",
            "quay.io/a:.tag",
            "[::1/a",
            "[zz]:1/a",
            &hex,
            &format!("a@sha256:{}", "AB".repeat(32)),
            &format!("a@sha256:{}", "ab".repeat(31)),
            "a@md5:d41d8cd98f00b204e9800998ecf8427e",
            "a@sha256:../../x",
            &format!("a@sha256:{hex}@sha256:{hex}"),
            &format!("a:{}", "t".repeat(129)),
            &"a".repeat(300),
        ] {
            assert!(Reference::parse(text).is_err(), "{text:?} was taken");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_safe(text in "[a-zA-Z0-9._:/@\\-\\[\\] %?#\\\\~\u{e9}]{0,80}") {
            if let Ok(reference) = Reference::parse(&text) {
                let shown = reference.to_string();
                prop_assert!(shown.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:/@-[]".contains(&b)));
                prop_assert!(!reference.repository().split('/').any(|part| part.is_empty() || part == ".." || part == "."));
                // A normalised name is a fixed point.
                prop_assert_eq!(Reference::parse(&shown), Ok(reference));
            }
        }

        #[test]
        fn every_name_of_the_grammar_is_taken(
            host in proptest::option::of("[a-z][a-z0-9]{0,5}(-[a-z0-9]{1,4})?\\.[a-z]{2,4}(:[1-9][0-9]{0,3})?"),
            path in "[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,4})?(/[a-z0-9]{1,6}){0,3}",
            tag in proptest::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
        ) {
            // Without a host, a first component with a dot would be one.
            prop_assume!(host.is_some() || !path.split_once('/').is_some_and(|(first, _)| is_host(first)));
            let name = host.as_ref().map_or(path.clone(), |host| format!("{host}/{path}"));
            let text = tag.as_ref().map_or(name.clone(), |tag| format!("{name}:{tag}"));
            let reference = Reference::parse(&text).map_err(|e| TestCaseError::fail(e.to_string()))?;
            prop_assert_eq!(reference.host(), host.as_deref().unwrap_or(DOCKER_HUB));
            prop_assert!(reference.repository().ends_with(&path));
            prop_assert_eq!(reference.tagged(), Some(format!("{}:{}", reference.name(), tag.unwrap_or("latest".into()))));
        }
    }
}
