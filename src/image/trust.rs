//! Whether the policy lets an image in, decided on digests before a layer of it is fetched.
//!
//! Signatures are looked for as cosign stores them: below the tag `sha256-<digest>.sig` of the image's own repository, at
//! the places that serve the image. One on the digest of the manifest that runs counts, and so does one on the index that
//! was asked for, which names that manifest by its digest. Where a signature comes from does not matter, as it vouches for
//! itself; a place that has none, or a bad one, is passed over for the next.

use std::path::Path;
use std::sync::Arc;

use super::document::{self, ContentError, Descriptor, Document};
use super::error::{Attempt, Failure, ImageError};
use super::policy::signature::{self, Key, MAX_PAYLOAD};
use super::policy::{Identity, Requirement};
use super::reference::{Reference, Version};
use super::registry::Session;
use super::rules::Policies;
use crate::storage::Digest;

/// Most signatures of one digest that are looked at, at each place.
const MAX_SIGNATURES: usize = 64;
const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// What the policies say of one pull.
#[derive(Debug, Clone)]
pub(super) struct Trust {
    policies: Arc<Policies>,
    namespace: Option<String>,
}

/// A signature that was found.
struct Attachment {
    payload: Vec<u8>,
    signature: Vec<u8>,
}

impl Trust {
    pub(super) fn new(policies: Arc<Policies>, namespace: Option<String>) -> Self {
        Self { policies, namespace }
    }

    /// Refuses a name that no image of could be let in, before anybody is asked for it.
    ///
    /// # Errors
    /// [`ImageError::Signature`], [`ImageError::Policy`].
    pub(super) fn admits_some(&self, reference: &Reference) -> Result<(), ImageError> {
        let Some((path, policy)) = self.policies.of(self.namespace.as_deref())? else { return Ok(()) };
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
        let Some((path, policy)) = self.policies.of(self.namespace.as_deref())? else { return Ok(()) };
        let (scope, requirements) = policy.of(reference);
        for requirement in requirements {
            if let Requirement::Signed { keys, identity } = requirement {
                let mut search = Search { keys, identity, reference, attempts: Vec::new(), bad: Vec::new() };
                if search.is_met(digests, sessions).await {
                    continue;
                }
                if search.bad.is_empty() && search.attempts.iter().any(|attempt| attempt.failure != Failure::NotFound) {
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
                match attachments(session, digest).await {
                    Ok(found) => {
                        if found.iter().any(|attachment| self.counts(attachment, digest)) {
                            return true;
                        }
                    }
                    Err(failure) => self.attempts.push(Attempt { host: session.host().to_owned(), failure }),
                }
            }
        }
        false
    }

    fn counts(&mut self, attachment: &Attachment, digest: &Digest) -> bool {
        let reason = match signature::read(self.keys, &attachment.payload, &attachment.signature) {
            Err(reason) => reason.to_owned(),
            Ok(payload) if payload.digest != *digest => format!("it is for {}, not {digest}", payload.digest),
            Ok(payload) if !self.identity.takes(self.reference, &payload.name) => {
                format!("it is for {}", payload.name.whole())
            }
            Ok(_) => return true,
        };
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

/// The signatures of a digest at one place.
async fn attachments(session: &Session, digest: &Digest) -> Result<Vec<Attachment>, Failure> {
    let tag = Version::Tag(format!("sha256-{}.sig", digest.hex()));
    let fetched = match session.manifest(&tag).await {
        Ok(fetched) => fetched,
        Err(Failure::NotFound) => return Ok(Vec::new()),
        Err(failure) => return Err(failure),
    };
    let Document::Manifest { layers, .. } = document::parse(&fetched.bytes, &fetched.media_type)? else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for layer in layers.iter().filter(|layer| layer.media_type == SIMPLE_SIGNING).take(MAX_SIGNATURES) {
        if let Some(signature) = signature_of(layer) {
            let cap = ContentError::TooLarge { what: "a signed text", limit: MAX_PAYLOAD as u64 };
            let size = usize::try_from(layer.size).ok().filter(|size| *size <= MAX_PAYLOAD).ok_or(cap)?;
            let payload = session.small_blob("a signed text", &layer.digest()?, size).await?;
            layer.verify("a signed text", &payload)?;
            found.push(Attachment { payload, signature });
        }
    }
    Ok(found)
}

fn signature_of(layer: &Descriptor) -> Option<Vec<u8>> {
    use base64::Engine as _;
    let text = layer.annotations.as_ref()?.get(SIGNATURE)?;
    base64::engine::general_purpose::STANDARD.decode(text.trim()).ok()
}
