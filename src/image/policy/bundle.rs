//! A signature as cosign 3 makes it with a key: a sigstore bundle whose DSSE envelope holds an in-toto statement about a digest.
//!
//! What counts is a statement that says "signed" and nothing else: the same key may also have signed where an image was built
//! or what is in it, which is no word for running it. The envelope is read to find out what was signed; what is inside is not
//! looked at before the signature over it is known to be good.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::signature::{Key, Named};
use crate::storage::Digest;

/// Largest bundle read, in bytes.
pub const MAX_BUNDLE: usize = 256 * 1024;
/// How the media type of every version of the format begins.
pub const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle";
/// `predicateType` of a statement that an image is signed, and nothing more.
pub const SIGNED: &str = "https://sigstore.dev/cosign/sign/v1";
const IN_TOTO: &str = "application/vnd.in-toto+json";
const STATEMENTS: [&str; 2] = ["https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"];
/// Most signatures of one envelope, and most subjects of one statement.
const MAX_PARTS: usize = 16;

/// What a statement is about: digests, each with the name that is given to it, if any.
pub type Subjects = Vec<(Digest, Option<Named>)>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawBundle {
    media_type: String,
    dsse_envelope: Option<RawEnvelope>,
    message_signature: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEnvelope {
    payload: String,
    payload_type: String,
    signatures: Vec<RawSignature>,
}

#[derive(Deserialize)]
struct RawSignature {
    sig: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawStatement {
    #[serde(rename = "_type")]
    kind: String,
    predicate_type: String,
    subject: Vec<RawSubject>,
}

#[derive(Deserialize)]
struct RawSubject {
    #[serde(default)]
    name: Option<String>,
    digest: RawDigests,
}

#[derive(Deserialize)]
struct RawDigests {
    #[serde(default)]
    sha256: Option<String>,
}

/// Reads a bundle whose signature is good.
///
/// # Errors
/// A reason; the bundle is not what it must be.
pub fn read(keys: &[Key], bundle: &[u8]) -> Result<Subjects, &'static str> {
    if bundle.len() > MAX_BUNDLE {
        return Err("its bundle is too large");
    }
    let raw: RawBundle = serde_json::from_slice(bundle).map_err(|_| "it is not a sigstore bundle")?;
    if !raw.media_type.starts_with(MEDIA_TYPE) {
        return Err("it is not a sigstore bundle");
    }
    let envelope = match (raw.dsse_envelope, raw.message_signature) {
        (Some(envelope), None) => envelope,
        _ => return Err("its bundle holds no statement"),
    };
    if envelope.payload_type != IN_TOTO {
        return Err("what it signs is not an in-toto statement");
    }
    let payload = STANDARD.decode(&envelope.payload).map_err(|_| "its bundle is not valid")?;
    let signed = authenticated(&envelope.payload_type, &payload);
    let good = envelope.signatures.iter().take(MAX_PARTS).any(|signature| {
        let signature = STANDARD.decode(&signature.sig).unwrap_or_default();
        keys.iter().any(|key| key.verifies(&signed, &signature))
    });
    if !good {
        return Err("it is not made with a key of the policy");
    }
    let statement: RawStatement =
        serde_json::from_slice(&payload).map_err(|_| "what it signs is not an in-toto statement")?;
    if !STATEMENTS.contains(&&*statement.kind) {
        return Err("what it signs is not an in-toto statement");
    }
    if statement.predicate_type != SIGNED {
        return Err("it is a statement of another kind");
    }
    subjects(statement.subject)
}

/// The bytes that a signature of an envelope is over (DSSE, "PAE").
fn authenticated(kind: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

fn subjects(raw: Vec<RawSubject>) -> Result<Subjects, &'static str> {
    if raw.is_empty() || raw.len() > MAX_PARTS {
        return Err("its statement has no subject, or too many");
    }
    let subject = |raw: RawSubject| {
        let hex = raw.digest.sha256.ok_or("it signs a digest that is not of SHA-256")?;
        let digest = format!("sha256:{hex}").parse().map_err(|_| "it signs a digest that is none")?;
        let name = raw.name.filter(|name| !name.is_empty());
        let name = name.map(|name| Named::read(&name).ok_or("it signs a name that is none")).transpose()?;
        Ok((digest, name))
    };
    raw.into_iter().map(subject).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::tests::Signer;
    use super::*;
    use serde_json::json;

    /// A statement as cosign makes it, with or without a name.
    pub(crate) fn statement(name: Option<&str>, digest: &Digest) -> Vec<u8> {
        let mut subject = json!({"digest": {"sha256": digest.hex()}, "annotations": {}});
        if let Some(name) = name {
            subject["name"] = json!(name);
        }
        json!({"_type": STATEMENTS[0], "subject": [subject], "predicateType": SIGNED, "predicate": {}})
            .to_string()
            .into_bytes()
    }

    /// A bundle around a statement.
    pub(crate) fn bundle(signer: &Signer, statement: &[u8]) -> Vec<u8> {
        let signature = signer.sign(&authenticated(IN_TOTO, statement));
        json!({"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"publicKey": {"hint": "x"}, "tlogEntries": []},
            "dsseEnvelope": {"payload": STANDARD.encode(statement), "payloadType": IN_TOTO,
                "signatures": [{"sig": STANDARD.encode(signature)}]}})
        .to_string()
        .into_bytes()
    }

    #[test]
    fn the_signed_bytes_are_those_of_the_standard() {
        // The example of the DSSE protocol.
        let bytes = authenticated("http://example.com/HelloWorld", b"hello world");
        assert_eq!(bytes, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    }

    /// What cosign 3.0.2 made of an image, with a key that was made for this test.
    #[test]
    fn a_bundle_of_cosign_3_is_understood() -> anyhow::Result<()> {
        let pem = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEUSHRCu2Xs8y7BVi+cpN/3iMtQdiW\njpSUXax1xBUlTOGP6e2SAqO4/GEJIT/KYkbk+VwdENwHg7ZbC+1XZZPGig==\n-----END PUBLIC KEY-----\n";
        let payload = concat!(
            "eyJfdHlwZSI6Imh0dHBzOi8vaW4tdG90by5pby9TdGF0ZW1lbnQvdjEiLCAic3ViamVjdCI6W3siZGlnZXN0Ijp7InNo",
            "YTI1NiI6IjgwZjE4Yzg0MTZlZDBhMzM1ZWE1NTI2ZWRjMWQ4YWI3MTMxY2JlZTJjNTlhOWNkMTM1YTU2MzFjNzY5ZWYx",
            "NWIifX1dLCAicHJlZGljYXRlVHlwZSI6Imh0dHBzOi8vc2lnc3RvcmUuZGV2L2Nvc2lnbi9zaWduL3YxIn0="
        );
        let signature =
            "MEQCICWrFxKcyXRijVvJEZSz/ZZidH9IJiTuqodhNbvck3L4AiBtlSCeyVGj+T4Fxm/f6X+lEGJ88//59ruPxnR5pEEA/g==";
        let bundle = format!(
            r#"{{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json", "verificationMaterial":{{"publicKey":{{"hint":"seMIauqkU2l8c9e0NsXn+BvhBk+3uQtRWziuKdnejzs="}}}}, "dsseEnvelope":{{"payload":"{payload}", "payloadType":"application/vnd.in-toto+json", "signatures":[{{"sig":"{signature}"}}]}}}}"#
        );
        let keys = [Key::from_pem(pem.as_bytes()).map_err(anyhow::Error::msg)?];
        let digest = "sha256:80f18c8416ed0a335ea5526edc1d8ab7131cbee2c59a9cd135a5631c769ef15b".parse()?;
        assert_eq!(read(&keys, bundle.as_bytes()), Ok(vec![(digest, None)]));
        Ok(())
    }

    #[test]
    fn only_a_statement_that_says_signed_counts() -> anyhow::Result<()> {
        let (ours, theirs) = (Signer::new(), Signer::new());
        let keys = [Key::from_pem(ours.pem().as_bytes()).map_err(anyhow::Error::msg)?];
        let digest = Digest::of(b"image");
        let plain = statement(None, &digest);
        assert_eq!(read(&keys, &bundle(&ours, &plain)), Ok(vec![(digest.clone(), None)]));
        let named = read(&keys, &bundle(&ours, &statement(Some("images.example/app"), &digest)));
        assert_eq!(
            named.map(|all| all[0].1.as_ref().map(|n| n.name().to_owned())),
            Ok(Some("images.example/app".into()))
        );
        let key = "it is not made with a key of the policy";
        assert_eq!(read(&keys, &bundle(&theirs, &plain)), Err(key));
        let text = String::from_utf8(plain.clone())?;
        for (from, to, why) in [
            (SIGNED, "https://slsa.dev/provenance/v1", "it is a statement of another kind"),
            (STATEMENTS[0], "https://in-toto.io/Statement/v9", "what it signs is not an in-toto statement"),
            ("sha256", "sha512", "it signs a digest that is not of SHA-256"),
            (digest.hex(), "../x", "it signs a digest that is none"),
            ("\"annotations\"", "\"name\":\"A B\",\"annotations\"", "it signs a name that is none"),
        ] {
            let bytes = bundle(&ours, text.replacen(from, to, 1).as_bytes());
            assert_eq!(read(&keys, &bytes), Err(why), "{to}");
        }
        let whole = String::from_utf8(bundle(&ours, &plain))?;
        let (payload, other) = (STANDARD.encode(&plain), STANDARD.encode(statement(None, &Digest::of(b"other"))));
        for (from, to, why) in [
            // The signature is over something else.
            (payload.as_str(), other.as_str(), key),
            (IN_TOTO, "application/json", "what it signs is not an in-toto statement"),
            ("\"dsseEnvelope\"", "\"other\"", "its bundle holds no statement"),
            ("\"dsseEnvelope\"", "\"messageSignature\":{},\"dsseEnvelope\"", "its bundle holds no statement"),
            (".sigstore.bundle", ".something", "it is not a sigstore bundle"),
            ("{", "", "it is not a sigstore bundle"),
        ] {
            assert_eq!(read(&keys, whole.replacen(from, to, 1).as_bytes()), Err(why), "{to}");
        }
        assert_eq!(read(&keys, &vec![b' '; MAX_BUNDLE + 1]), Err("its bundle is too large"));
        assert_eq!(read(&[], whole.as_bytes()), Err(key));
        Ok(())
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_refused(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            assert!(read(&[], &bytes).is_err());
        }
    }
}
