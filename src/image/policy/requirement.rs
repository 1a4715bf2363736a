//! One requirement of a policy.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;

use super::super::reference::{Reference, Version};
use super::signature::{Key, Named};

/// Most keys of one requirement.
const MAX_KEYS: usize = 64;

/// What must hold for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement {
    /// `insecureAcceptAnything`
    Accept,
    /// `reject`
    Reject,
    /// `sigstoreSigned` by one of the keys, for a name that the identity takes.
    Signed { keys: Vec<Key>, identity: Identity },
    /// Something that is not done here: no image can meet it.
    Unsupported(&'static str),
}

/// `signedIdentity`: for which name the signature must have been made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Identity {
    /// The repository for a name by digest, the very name for one by tag.
    #[default]
    MatchRepoDigestOrExact,
    MatchExact,
    MatchRepository,
    ExactReference(Named),
    ExactRepository(String),
    /// As the first, with the beginning of the name put in place of another.
    Remap {
        prefix: String,
        signed_prefix: String,
    },
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accepted unsigned"),
            Self::Reject => f.write_str("rejected"),
            Self::Unsupported(what) => write!(f, "refused ({what})"),
            Self::Signed { keys, identity } => {
                let keys: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
                write!(f, "signed by {} ({identity:?})", keys.join(" or "))
            }
        }
    }
}

/// All members that any kind of requirement has.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawRequirement {
    #[serde(rename = "type")]
    kind: String,
    key_type: Option<String>,
    key_path: Option<PathBuf>,
    key_paths: Option<Vec<PathBuf>>,
    key_data: Option<String>,
    key_datas: Option<Vec<String>>,
    signed_identity: Option<RawIdentity>,
    base_layer_identity: Option<Value>,
    fulcio: Option<Value>,
    pki: Option<Value>,
    rekor_public_key_path: Option<Value>,
    rekor_public_key_paths: Option<Value>,
    rekor_public_key_data: Option<Value>,
    rekor_public_key_datas: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawIdentity {
    #[serde(rename = "type")]
    kind: String,
    docker_reference: Option<String>,
    docker_repository: Option<String>,
    prefix: Option<String>,
    signed_prefix: Option<String>,
}

type ReadKey<'a> = dyn FnMut(&Path) -> io::Result<Vec<u8>> + 'a;

impl RawRequirement {
    pub(super) fn check(self, read: &mut ReadKey<'_>) -> Result<Requirement, String> {
        match self.kind.as_str() {
            "insecureAcceptAnything" => self.bare().map(|()| Requirement::Accept),
            "reject" => self.bare().map(|()| Requirement::Reject),
            "sigstoreSigned" => self.signed(read),
            "signedBy" => Ok(Requirement::Unsupported("signedBy: signatures made with GPG are not verified")),
            "signedBaseLayer" => Ok(Requirement::Unsupported("signedBaseLayer: base layers are not verified")),
            other => Err(format!("type {other:?} is not a kind of requirement")),
        }
    }

    fn bare(&self) -> Result<(), String> {
        let more = self.key_type.is_some()
            || self.has_keys()
            || self.signed_identity.is_some()
            || self.base_layer_identity.is_some()
            || self.fulcio.is_some()
            || self.pki.is_some()
            || self.asks_rekor();
        if more { Err(format!("{} has no further members", self.kind)) } else { Ok(()) }
    }

    fn has_keys(&self) -> bool {
        self.key_path.is_some() || self.key_paths.is_some() || self.key_data.is_some() || self.key_datas.is_some()
    }

    fn asks_rekor(&self) -> bool {
        self.rekor_public_key_path.is_some()
            || self.rekor_public_key_paths.is_some()
            || self.rekor_public_key_data.is_some()
            || self.rekor_public_key_datas.is_some()
    }

    fn signed(self, read: &mut ReadKey<'_>) -> Result<Requirement, String> {
        if self.key_type.is_some() || self.base_layer_identity.is_some() {
            return Err("sigstoreSigned has neither keyType nor baseLayerIdentity".into());
        }
        let identity = self.signed_identity.map_or(Ok(Identity::default()), RawIdentity::check)?;
        if self.fulcio.is_some() {
            return Ok(Requirement::Unsupported("sigstoreSigned with fulcio: certificates of Fulcio are not verified"));
        }
        if self.pki.is_some() {
            return Ok(Requirement::Unsupported("sigstoreSigned with pki: certificates are not verified"));
        }
        let rekor = self.rekor_public_key_path.is_some()
            || self.rekor_public_key_paths.is_some()
            || self.rekor_public_key_data.is_some()
            || self.rekor_public_key_datas.is_some();
        if rekor {
            return Ok(Requirement::Unsupported("sigstoreSigned with Rekor keys: its log is not verified"));
        }
        let (paths, datas) = match (self.key_path, self.key_paths, self.key_data, self.key_datas) {
            (Some(path), None, None, None) => (vec![path], Vec::new()),
            (None, Some(paths), None, None) => (paths, Vec::new()),
            (None, None, Some(data), None) => (Vec::new(), vec![data]),
            (None, None, None, Some(datas)) => (Vec::new(), datas),
            _ => return Err("sigstoreSigned wants one of keyPath, keyPaths, keyData and keyDatas".into()),
        };
        if paths.len() + datas.len() == 0 || paths.len() + datas.len() > MAX_KEYS {
            return Err(format!("sigstoreSigned wants 1 to {MAX_KEYS} keys"));
        }
        let mut keys = Vec::new();
        for path in paths {
            if !path.is_absolute() {
                return Err(format!("key {}: an absolute path is wanted", path.display()));
            }
            let pem = read(&path).map_err(|error| format!("key {}: cannot be read: {error}", path.display()))?;
            keys.push(Key::from_pem(&pem).map_err(|why| format!("key {}: {why}", path.display()))?);
        }
        for data in datas {
            let pem = STANDARD.decode(data.trim()).map_err(|_| "keyData is not base64 of a PEM file".to_owned())?;
            keys.push(Key::from_pem(&pem).map_err(|why| format!("keyData: {why}"))?);
        }
        Ok(Requirement::Signed { keys, identity })
    }
}

impl RawIdentity {
    fn check(self) -> Result<Identity, String> {
        let members = [&self.docker_reference, &self.docker_repository, &self.prefix, &self.signed_prefix];
        let given = members.map(Option::is_some);
        let wants = |want: [bool; 4]| {
            if given == want { Ok(()) } else { Err(format!("signedIdentity {}: wrong members", self.kind)) }
        };
        let plain = |name: &Option<String>| {
            let text = name.as_deref().unwrap_or_default();
            let named = Named::read(text).filter(|named| !named.has_version());
            named
                .map(|named| named.name().to_owned())
                .ok_or_else(|| format!("signedIdentity: {text:?} is not a repository"))
        };
        let prefix = |text: &Option<String>| {
            let text = text.clone().unwrap_or_default();
            let plain = !text.is_empty() && !text.contains(['@', '*']) && !text.ends_with('/') && !text.contains("://");
            if plain { Ok(text) } else { Err(format!("signedIdentity: prefix {text:?}: not host[:port][/path]")) }
        };
        match self.kind.as_str() {
            "matchRepoDigestOrExact" => wants([false; 4]).map(|()| Identity::MatchRepoDigestOrExact),
            "matchExact" => wants([false; 4]).map(|()| Identity::MatchExact),
            "matchRepository" => wants([false; 4]).map(|()| Identity::MatchRepository),
            "exactReference" => {
                wants([true, false, false, false])?;
                let text = self.docker_reference.unwrap_or_default();
                let named = Named::read(&text).filter(Named::has_version);
                let named =
                    named.ok_or_else(|| format!("signedIdentity: {text:?} is not a name with a tag or digest"))?;
                Ok(Identity::ExactReference(named))
            }
            "exactRepository" => {
                wants([false, true, false, false])?;
                Ok(Identity::ExactRepository(plain(&self.docker_repository)?))
            }
            "remapIdentity" => {
                wants([false, false, true, true])?;
                Ok(Identity::Remap { prefix: prefix(&self.prefix)?, signed_prefix: prefix(&self.signed_prefix)? })
            }
            other => Err(format!("signedIdentity: type {other:?} is not known")),
        }
    }
}

impl Identity {
    /// Whether a signature for `signed` is one for the image that was asked for as `wanted`.
    #[must_use]
    pub fn takes(&self, wanted: &Reference, signed: &Named) -> bool {
        let whole = wanted.to_string();
        match self {
            Self::MatchRepoDigestOrExact => digest_or_exact(wanted.version(), &wanted.name(), signed),
            Self::MatchExact => signed.has_version() && signed.whole() == whole,
            Self::MatchRepository => signed.name() == wanted.name(),
            Self::ExactReference(exact) => signed.has_version() && signed.whole() == exact.whole(),
            Self::ExactRepository(repository) => signed.name() == repository,
            Self::Remap { prefix, signed_prefix } => {
                let name = wanted.name();
                let rest = name.strip_prefix(prefix.as_str()).filter(|rest| rest.is_empty() || rest.starts_with('/'));
                let name = rest.map_or(name.clone(), |rest| format!("{signed_prefix}{rest}"));
                digest_or_exact(wanted.version(), &name, signed)
            }
        }
    }
}

fn digest_or_exact(version: &Version, name: &str, signed: &Named) -> bool {
    match version {
        Version::Digest(_) => signed.name() == name,
        Version::Tag(tag) => signed.has_version() && signed.whole() == format!("{name}:{tag}"),
    }
}
