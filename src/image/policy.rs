//! `policy.json` (containers-policy.json(5)): which images may be pulled. Bytes and keys in, requirements out.
//!
//! Unlike other shared formats this one is strict, as it is meant to be: a member that is not known is an error, since it
//! may be the one that forbids. What the format has and cricket does not do (GPG signatures, Fulcio, Rekor, BYO PKI) is
//! read, and refuses the images that it is asked for, with its name.

pub mod bundle;
mod requirement;
pub mod signature;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

pub use requirement::{Identity, Requirement};

use super::reference::{Reference, Version};
use requirement::RawRequirement;

/// Most scopes of a policy.
const MAX_SCOPES: usize = 4096;

/// What must hold for an image, by scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    default: Vec<Requirement>,
    /// Of the transport `docker`: a name with its version, a repository, a namespace, a host, `*.domain`, or nothing.
    scopes: BTreeMap<String, Vec<Requirement>>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    default: Vec<RawRequirement>,
    #[serde(default)]
    transports: RawTransports,
}

/// Images only come from registries here; what is said of other transports has no image to be said of.
#[derive(Default, serde::Deserialize)]
struct RawTransports {
    docker: Option<Unique<Vec<RawRequirement>>>,
}

/// Members that are there once each: of two of one name nobody can tell which is meant.
struct Unique<V>(BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Members<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Members<V> {
            type Value = Unique<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Unique<V>, A::Error> {
                let mut all = BTreeMap::new();
                while let Some(name) = members.next_key::<String>()? {
                    let value = members.next_value()?;
                    if let Some(_twice) = all.insert(name.clone(), value) {
                        return Err(serde::de::Error::custom(format!("{name:?} is there twice")));
                    }
                }
                Ok(Unique(all))
            }
        }
        from.deserialize_map(Members(PhantomData))
    }
}

/// Reads a policy. `read` gives the content of the key files that it names.
///
/// # Errors
/// What is wrong and where.
pub fn parse(bytes: &[u8], read: &mut dyn FnMut(&Path) -> io::Result<Vec<u8>>) -> Result<Policy, String> {
    let raw: RawPolicy = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let default = list(raw.default, read).map_err(|why| format!("default: {why}"))?;
    let mut scopes = BTreeMap::new();
    if let Some(Unique(docker)) = raw.transports.docker {
        if docker.len() > MAX_SCOPES {
            return Err(format!("transports.docker: more than {MAX_SCOPES} scopes"));
        }
        for (scope, requirements) in docker {
            check_scope(&scope)?;
            let requirements =
                list(requirements, read).map_err(|why| format!("transports.docker: {scope:?}: {why}"))?;
            scopes.insert(scope, requirements);
        }
    }
    Ok(Policy { default, scopes })
}

fn list(
    raw: Vec<RawRequirement>,
    read: &mut dyn FnMut(&Path) -> io::Result<Vec<u8>>,
) -> Result<Vec<Requirement>, String> {
    if raw.is_empty() {
        return Err("an empty list of requirements says nothing; write insecureAcceptAnything or reject".into());
    }
    raw.into_iter().map(|one| one.check(read)).collect()
}

fn check_scope(scope: &str) -> Result<(), String> {
    let bad = |why: &str| Err(format!("transports.docker: {scope:?}: {why}"));
    if let Some(domain) = scope.strip_prefix("*.") {
        return if domain.is_empty() || domain.contains(['*', '/', '@']) {
            bad("a wildcard is a leading \"*.\" of a host name only")
        } else {
            Ok(())
        };
    }
    if scope.contains('*') {
        return bad("a wildcard is a leading \"*.\" of a host name only");
    }
    if scope.contains("://") || scope.ends_with('/') || scope.starts_with('/') {
        return bad("not host[:port][/path][:tag or @digest]");
    }
    Ok(())
}

impl Policy {
    /// The requirements for a name, all of which must hold, and the scope that they are from (`default` for the default).
    #[must_use]
    pub fn of(&self, reference: &Reference) -> (&str, &[Requirement]) {
        let found = scopes_of(reference).into_iter().find_map(|scope| self.scopes.get_key_value(&scope));
        found.map_or(("default", &self.default), |(scope, list)| (scope, list))
    }
}

/// From the most special to the widest.
fn scopes_of(reference: &Reference) -> Vec<String> {
    let name = reference.name();
    let whole = match reference.version() {
        Version::Tag(tag) => format!("{name}:{tag}"),
        Version::Digest(digest) => format!("{name}@{digest}"),
    };
    let mut scopes = vec![whole, name.clone()];
    let mut rest = name.as_str();
    while let Some((above, _)) = rest.rsplit_once('/') {
        scopes.push(above.to_owned());
        rest = above;
    }
    let mut domain = reference.host().split(':').next().unwrap_or_default();
    while let Some((_, above)) = domain.split_once('.') {
        scopes.push(format!("*.{above}"));
        domain = above;
    }
    scopes.push(String::new());
    scopes
}

#[cfg(test)]
pub(crate) mod tests;
