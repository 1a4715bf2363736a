//! A signature as cosign makes it with a key: a small JSON text that names a digest, signed as it stands ("simple signing").

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, VerificationAlgorithm,
};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;

use super::super::reference::Reference;
use crate::storage::Digest;

/// Largest payload read, in bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// `critical.type` of a payload.
const KIND: &str = "cosign container image signature";

/// A public key that signatures are made for: ECDSA P-256 and RSA of 2048 bits and more (both with SHA-256), or Ed25519.
#[derive(Clone)]
pub struct Key {
    key: Arc<ParsedPublicKey>,
    der: Vec<u8>,
}

/// A name in a signature or in a policy: unlike the name of a pull it may have no version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    name: String,
    whole: String,
    versioned: bool,
}

/// What was signed, once its signature is known to be good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    pub digest: Digest,
    pub name: Named,
}

#[derive(Deserialize)]
struct RawPayload {
    critical: RawCritical,
}

#[derive(Deserialize)]
struct RawCritical {
    #[serde(rename = "type")]
    kind: String,
    image: RawImage,
    identity: RawIdentity,
}

#[derive(Deserialize)]
struct RawImage {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

#[derive(Deserialize)]
struct RawIdentity {
    #[serde(rename = "docker-reference")]
    reference: String,
}

impl Key {
    /// Reads a PEM file with one `PUBLIC KEY`.
    ///
    /// # Errors
    /// A reason, when it is none or of a kind that is not known.
    pub fn from_pem(pem: &[u8]) -> Result<Self, &'static str> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| "not a PEM file with a PUBLIC KEY")?;
        let der = der.as_ref().to_vec();
        let kinds: [&'static dyn VerificationAlgorithm; 3] =
            [&ECDSA_P256_SHA256_ASN1, &ED25519, &RSA_PKCS1_2048_8192_SHA256];
        let mut found = kinds.into_iter().filter_map(|kind| ParsedPublicKey::new(kind, &der).ok());
        let key = found.next().ok_or("neither ECDSA P-256, RSA of 2048 bits or more, nor Ed25519")?;
        Ok(Self { key: Arc::new(key), der })
    }

    /// Whether it made a signature over these bytes.
    #[must_use]
    pub fn verifies(&self, bytes: &[u8], signature: &[u8]) -> bool {
        self.key.verify_sig(bytes, signature).is_ok()
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Eq for Key {}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", &Digest::of(&self.der).hex()[..12])
    }
}

impl Named {
    /// Reads a name, with the defaults of Docker Hub filled in but no tag.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let reference = Reference::parse(text).ok()?;
        let last = text.rsplit('/').next().unwrap_or_default();
        let versioned = last.contains(':') || text.contains('@');
        let name = reference.name();
        // A name with tag and digest is whole with both; the reference of a pull only keeps the digest.
        let whole = if versioned { reference.to_string() } else { name.clone() };
        let both = versioned && text.contains('@') && last.split('@').next().is_some_and(|tag| tag.contains(':'));
        (!both).then_some(Self { name, whole, versioned })
    }

    /// `host/path`
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// With its version, if it has one.
    #[must_use]
    pub fn whole(&self) -> &str {
        &self.whole
    }

    /// Whether it has a tag or digest.
    #[must_use]
    pub fn has_version(&self) -> bool {
        self.versioned
    }
}

/// Reads a payload whose signature is good: what nobody vouches for is not even parsed.
///
/// # Errors
/// A reason; the payload is not what it must be.
pub fn read(keys: &[Key], payload: &[u8], signature: &[u8]) -> Result<Payload, &'static str> {
    if !keys.iter().any(|key| key.verifies(payload, signature)) {
        return Err("it is not made with a key of the policy");
    }
    let raw: RawPayload = serde_json::from_slice(payload).map_err(|_| "what it signs is not a simple signing text")?;
    if raw.critical.kind != KIND {
        return Err("what it signs is of another type");
    }
    let digest = raw.critical.image.digest.parse().map_err(|_| "it signs a digest that is none")?;
    let name = Named::read(&raw.critical.identity.reference).ok_or("it signs a name that is none")?;
    Ok(Payload { digest, name })
}
