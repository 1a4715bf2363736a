//! Whether the policy lets an image in, decided on digests before a layer of it is fetched.
//!
//! Signatures are looked for as cosign stores them, in the image's own repository at the places that serve the image: below the
//! tag `sha256-<digest>.sig`, and among what refers to the digest (OCI 1.1), as cosign 3 does. One on the digest of the manifest
//! that runs counts, and so does one on the index that was asked for, which names that manifest by its digest. Where a signature
//! comes from does not matter, as it vouches for itself; a place that has none, or a bad one, is passed over for the next.

use std::path::Path;
use std::sync::Arc;

use super::document::{self, ContentError, Descriptor, Document};
use super::error::{Attempt, Failure, ImageError};
use super::policy::bundle;
use super::policy::signature::{self, Key, MAX_PAYLOAD, Named};
use super::policy::{Identity, Requirement};
use super::reference::{Reference, Version};
use super::registry::Session;
use super::rules::Policies;
use crate::storage::Digest;

/// Most signatures of one digest that are looked at, at each place, of each kind.
const MAX_SIGNATURES: usize = 64;
const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// `artifactType` of a referrer that is what lies below the tag elsewhere.
const SIMPLE_REFERRER: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
/// What older clients put in place of an artifact's type: that of its empty config.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// What a referrer that is a bundle may say of its statement.
const PREDICATE: &str = "dev.sigstore.bundle.predicateType";

/// What the policies say of one pull.
#[derive(Debug, Clone)]
pub(super) struct Trust {
    policies: Arc<Policies>,
    namespace: Option<String>,
    /// `image.unnamed_signatures`
    unnamed: bool,
}

/// A signature that was found.
enum Attachment {
    /// A simple signing text and the signature over it.
    Simple {
        payload: Vec<u8>,
        signature: Vec<u8>,
    },
    Bundle(Vec<u8>),
    /// Why it cannot be one: there may be better ones beside it.
    Unusable(String),
}

impl Trust {
    pub(super) fn new(policies: Arc<Policies>, namespace: Option<String>, unnamed: bool) -> Self {
        Self { policies, namespace, unnamed }
    }

    /// Refuses a name that no image of could be let in, before anybody is asked for it.
    ///
    /// # Errors
    /// [`ImageError::Signature`], [`ImageError::Policy`].
    pub(super) fn admits_some(&self, reference: &Reference) -> Result<(), ImageError> {
        let Some((path, policy)) = self.policies.of(self.namespace.as_deref(), reference)? else { return Ok(()) };
        let (scope, requirements) = policy.of(reference);
        for requirement in requirements {
            let reason = match requirement {
                Requirement::Accept | Requirement::Signed { .. } => continue,
                Requirement::Reject => "the policy rejects it".to_owned(),
                Requirement::Unsupported(what) => format!("the policy asks for {what}"),
            };
            return Err(refused(reference, path, scope, reason));
        }
        Ok(())
    }

    /// Checks an image by its digests (the one that the name stands for and the manifest's) against every requirement.
    ///
    /// # Errors
    /// [`ImageError::Signature`] when one does not hold, [`ImageError::Unavailable`] when no place could be asked.
    pub(super) async fn check(
        &self,
        reference: &Reference,
        digests: &[&Digest],
        sessions: &[Arc<Session>],
    ) -> Result<(), ImageError> {
        self.admits_some(reference)?;
        let Some((path, policy)) = self.policies.of(self.namespace.as_deref(), reference)? else { return Ok(()) };
        let (scope, requirements) = policy.of(reference);
        for requirement in requirements {
            if let Requirement::Signed { keys, identity } = requirement {
                let mut search =
                    Search { keys, identity, reference, unnamed: self.unnamed, attempts: Vec::new(), bad: Vec::new() };
                if search.is_met(digests, sessions).await {
                    continue;
                }
                if search.bad.is_empty()
                    && search.attempts.iter().any(|attempt| !matches!(attempt.failure, Failure::NotFound(_)))
                {
                    return Err(ImageError::from_attempts(&reference.to_string(), "the signatures", search.attempts));
                }
                return Err(refused(reference, path, scope, search.reason(digests)));
            }
        }
        Ok(())
    }
}

fn refused(reference: &Reference, path: &Arc<Path>, scope: &str, reason: String) -> ImageError {
    let scope = if scope.is_empty() { "every registry" } else { scope };
    let policy = format!("{}: {scope}", path.display());
    ImageError::Signature { reference: reference.to_string(), policy, reason }
}

/// The search for one signature that meets one requirement.
struct Search<'a> {
    keys: &'a [Key],
    identity: &'a Identity,
    reference: &'a Reference,
    unnamed: bool,
    attempts: Vec<Attempt>,
    /// Why signatures that were found do not count.
    bad: Vec<String>,
}

impl Search<'_> {
    async fn is_met(&mut self, digests: &[&Digest], sessions: &[Arc<Session>]) -> bool {
        for (at, digest) in digests.iter().enumerate() {
            // An image without an index has one digest, given twice.
            if digests[..at].contains(digest) {
                continue;
            }
            for session in sessions {
                let tagged = tagged(session, digest).await;
                if self.any(tagged, session, digest) || self.any(referring(session, digest).await, session, digest) {
                    return true;
                }
            }
        }
        false
    }

    fn any(&mut self, found: Result<Vec<Attachment>, Failure>, session: &Session, digest: &Digest) -> bool {
        match found {
            Ok(found) => found.iter().any(|attachment| self.counts(attachment, digest)),
            Err(failure) => {
                self.attempts.push(Attempt { host: session.host().to_owned(), failure });
                false
            }
        }
    }

    /// Why a signed pair of digest and name is not for this image.
    fn objection(&self, signed: &Digest, name: Option<&Named>, digest: &Digest) -> Option<String> {
        match name {
            _ if signed != digest => Some(format!("it is for {signed}, not {digest}")),
            Some(name) if !self.identity.takes(self.reference, name) => Some(format!("it is for {}", name.whole())),
            None if !self.unnamed => {
                Some("it names no repository, and image.unnamed_signatures does not let such a one count".to_owned())
            }
            _ => None,
        }
    }

    fn counts(&mut self, attachment: &Attachment, digest: &Digest) -> bool {
        let objection = match attachment {
            Attachment::Unusable(reason) => Some(reason.clone()),
            Attachment::Simple { payload, signature } => match signature::read(self.keys, payload, signature) {
                Err(reason) => Some(reason.to_owned()),
                Ok(payload) => self.objection(&payload.digest, Some(&payload.name), digest),
            },
            Attachment::Bundle(bytes) => match bundle::read(self.keys, bytes) {
                Err(reason) => Some(reason.to_owned()),
                // One of its subjects is enough; that of the first tells why none is.
                Ok(subjects) => {
                    let mut objections =
                        subjects.iter().map(|(signed, name)| self.objection(signed, name.as_ref(), digest));
                    let first = objections.next().flatten();
                    first.filter(|_| !objections.any(|objection| objection.is_none()))
                }
            },
        };
        let Some(reason) = objection else { return true };
        if !self.bad.contains(&reason) && self.bad.len() < 8 {
            self.bad.push(reason);
        }
        false
    }

    fn reason(&self, digests: &[&Digest]) -> String {
        if self.bad.is_empty() {
            let digest = digests.first().map(ToString::to_string).unwrap_or_default();
            return format!("there is no signature for {digest}");
        }
        format!("no signature counts: {}", self.bad.join("; "))
    }
}

/// The signatures below the tag of a digest, at one place.
async fn tagged(session: &Session, digest: &Digest) -> Result<Vec<Attachment>, Failure> {
    let tag = Version::Tag(format!("sha256-{}.sig", digest.hex()));
    let fetched = match session.manifest(&tag).await {
        Ok(fetched) => fetched,
        Err(Failure::NotFound(_)) => return Ok(Vec::new()),
        Err(failure) => return Err(failure),
    };
    let mut found = Vec::new();
    attached(session, &fetched.bytes, &fetched.media_type, &mut found).await?;
    Ok(found)
}

/// The signatures among what refers to a digest, at one place.
async fn referring(session: &Session, digest: &Digest) -> Result<Vec<Attachment>, Failure> {
    let mut found = Vec::new();
    for entry in session.referrers(digest).await?.iter().filter(|entry| may_sign(entry)).take(MAX_SIGNATURES) {
        let attached = async {
            let fetched = session.manifest(&Version::Digest(entry.digest()?)).await?;
            entry.verify("a referrer", &fetched.bytes)?;
            attached(session, &fetched.bytes, &entry.media_type, &mut found).await
        };
        match Box::pin(attached).await {
            // Anybody who may push can refer to an image; what is no signature must not be in the way of one.
            Err(failure @ (Failure::Content(_) | Failure::NotFound(_))) => {
                found.push(Attachment::Unusable(format!("a referrer cannot be read: {failure}")));
            }
            result => result?,
        }
        if found.len() >= MAX_SIGNATURES {
            break;
        }
    }
    Ok(found)
}

/// Whether it is worth looking at. What an entry says of itself can only keep it from being looked at.
fn may_sign(entry: &Descriptor) -> bool {
    let kind = entry.artifact_type.as_deref().unwrap_or_default();
    let said = entry.annotations.as_ref().and_then(|all| all.get(PREDICATE));
    (matches!(kind, "" | EMPTY | SIMPLE_REFERRER) || kind.starts_with(bundle::MEDIA_TYPE))
        && said.is_none_or(|said| said == bundle::SIGNED)
}

/// The signatures that a manifest has as its layers.
async fn attached(session: &Session, manifest: &[u8], kind: &str, found: &mut Vec<Attachment>) -> Result<(), Failure> {
    let Document::Manifest { layers, .. } = document::parse(manifest, kind)? else { return Ok(()) };
    for layer in layers.iter().take(MAX_SIGNATURES) {
        if layer.media_type.starts_with(bundle::MEDIA_TYPE) {
            found.push(Attachment::Bundle(small(session, layer, bundle::MAX_BUNDLE).await?));
        } else if layer.media_type == SIMPLE_SIGNING
            && let Some(signature) = signature_of(layer)
        {
            found.push(Attachment::Simple { payload: small(session, layer, MAX_PAYLOAD).await?, signature });
        }
    }
    Ok(())
}

async fn small(session: &Session, layer: &Descriptor, limit: usize) -> Result<Vec<u8>, Failure> {
    let cap = ContentError::TooLarge { what: "a signed text", limit: u64::try_from(limit).unwrap_or(u64::MAX) };
    let size = usize::try_from(layer.size).ok().filter(|size| *size <= limit).ok_or(cap)?;
    let bytes = session.small_blob("a signed text", &layer.digest()?, size).await?;
    layer.verify("a signed text", &bytes)?;
    Ok(bytes)
}

fn signature_of(layer: &Descriptor) -> Option<Vec<u8>> {
    use base64::Engine as _;
    let text = layer.annotations.as_ref()?.get(SIGNATURE)?;
    base64::engine::general_purpose::STANDARD.decode(text.trim()).ok()
}
