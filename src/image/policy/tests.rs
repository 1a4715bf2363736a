//! Which requirement counts for which name, and which signature meets it.

use std::path::Path;

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

use super::signature::{Key, Named};
use super::*;
use crate::storage::Digest;

fn no_key(_: &Path) -> io::Result<Vec<u8>> {
    Err(io::ErrorKind::NotFound.into())
}

fn policy(text: &str) -> Result<Policy, String> {
    parse(text.as_bytes(), &mut no_key)
}

/// A key pair of cosign's default kind.
pub(crate) struct Signer(EcdsaKeyPair);

impl Signer {
    pub(crate) fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).expect("a key"))
    }

    pub(crate) fn pem(&self) -> String {
        let der: PublicKeyX509Der<'_> = self.0.public_key().as_der().expect("an SPKI");
        pem(der.as_ref())
    }

    pub(crate) fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        self.0.sign(&SystemRandom::new(), bytes).expect("a signature").as_ref().to_vec()
    }
}

fn pem(der: &[u8]) -> String {
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
}

/// A simple signing text.
pub(crate) fn payload(name: &str, digest: &Digest) -> Vec<u8> {
    serde_json::json!({"critical": {"type": "cosign container image signature",
        "image": {"docker-manifest-digest": digest}, "identity": {"docker-reference": name}}, "optional": null})
    .to_string()
    .into_bytes()
}

#[test]
fn the_most_special_scope_decides() -> anyhow::Result<()> {
    let accept = r#"[{"type":"insecureAcceptAnything"}]"#;
    let digest = format!("sha256:{}", "0".repeat(64));
    let scopes =
        ["a.lan/team/app:1", "a.lan/team", "a.lan", "*.lan", "*.deep.example", "b.example:5000", "docker.io/library"];
    let scopes: Vec<String> = scopes.iter().map(|scope| format!("{scope:?}:{accept}")).collect();
    let text = |more: &str| {
        format!(
            r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker":{{{}{more}}},"dir":{{"":[]}}}}}}"#,
            scopes.join(",")
        )
    };
    let without = policy(&text("")).map_err(anyhow::Error::msg)?;
    for (name, want) in [
        ("a.lan/team/app:1", "a.lan/team/app:1"),
        ("a.lan/team/app:2", "a.lan/team"),
        (&format!("a.lan/team/app@{digest}"), "a.lan/team"),
        ("a.lan/teams/app", "a.lan"),
        ("b.lan:80/x", "*.lan"),
        ("lan.example/x", "default"),
        ("x.y.deep.example/a", "*.deep.example"),
        ("deep.example/a", "default"),
        ("b.example:5000/x", "b.example:5000"),
        ("b.example/x", "default"),
        ("busybox", "docker.io/library"),
        ("me/busybox", "default"),
    ] {
        assert_eq!(without.of(&Reference::parse(name)?).0, want, "{name}");
    }
    let with = policy(&text(&format!(r#","":{accept}"#))).map_err(anyhow::Error::msg)?;
    assert_eq!(with.of(&Reference::parse("me/busybox")?), ("", &[Requirement::Accept][..]));
    Ok(())
}

#[test]
fn what_is_not_understood_is_refused() {
    let key = STANDARD.encode(Signer::new().pem());
    let one = |requirement: &str| policy(&format!(r#"{{"default":[{requirement}]}}"#)).map(|policy| policy.default);
    let signed = |more: &str| one(&format!(r#"{{"type":"sigstoreSigned","keyData":"{key}"{more}}}"#));
    assert!(signed("").is_ok_and(|list| matches!(&list[..], [Requirement::Signed { keys, .. }] if keys.len() == 1)));
    for bad in [
        "{}",
        r#"{"default":[]}"#,
        r#"{"default":[{"type":"accept"}]}"#,
        r#"{"default":[{"type":"reject"}],"more":1}"#,
        // Twice the same, of which the second may be the one that forbids.
        r#"{"default":[{"type":"reject"}],"default":[{"type":"insecureAcceptAnything"}]}"#,
        r#"{"default":[{"type":"reject"}],"transports":{"docker":{},"docker":{}}}"#,
        r#"{"default":[{"type":"reject"}],"transports":{"docker":{"a.lan":[{"type":"reject"}],"a.lan":[{"type":"insecureAcceptAnything"}]}}}"#,
        r#"{"default":[{"type":"reject","more":1}]}"#,
        r#"{"default":[{"type":"insecureAcceptAnything","keyPath":"/k"}]}"#,
        r#"{"default":[{"type":"sigstoreSigned"}]}"#,
        r#"{"default":[{"type":"sigstoreSigned","keyPath":"/absent"}]}"#,
        r#"{"default":[{"type":"sigstoreSigned","keyPath":"relative"}]}"#,
        r#"{"default":[{"type":"sigstoreSigned","keyPaths":[]}]}"#,
        r#"{"default":[{"type":"sigstoreSigned","keyData":"bm8ga2V5"}]}"#,
        r#"{"default":[{"type":"reject"}],"transports":{"docker":{"a.lan":[]}}}"#,
        r#"{"default":[{"type":"reject"}],"transports":{"docker":{"https://a.lan":[{"type":"reject"}]}}}"#,
        r#"{"default":[{"type":"reject"}],"transports":{"docker":{"a.*.lan":[{"type":"reject"}]}}}"#,
    ] {
        assert!(policy(bad).is_err(), "{bad}");
    }
    for bad in [
        r#","keyPath":"/k""#,
        r#","keyType":"GPGKeys""#,
        r#","signedIdentity":{"type":"matchMost"}"#,
        r#","signedIdentity":{"type":"matchExact","prefix":"a"}"#,
        r#","signedIdentity":{"type":"exactReference","dockerReference":"a.lan/x"}"#,
        r#","signedIdentity":{"type":"exactRepository","dockerRepository":"a.lan/x:1"}"#,
        r#","signedIdentity":{"type":"remapIdentity","prefix":"a.lan"}"#,
        r#","signedIdentity":{"type":"remapIdentity","prefix":"a.lan/","signedPrefix":"b.lan"}"#,
    ] {
        assert!(signed(bad).is_err(), "{bad}");
    }
    // These are of the format, and can never be met here.
    for (text, word) in [
        (r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}"#, "GPG"),
        (r#"{"type":"signedBaseLayer","baseLayerIdentity":{"type":"matchExact"}}"#, "base layers"),
        (r#"{"type":"sigstoreSigned","fulcio":{"caPath":"/c"}}"#, "Fulcio"),
        (r#"{"type":"sigstoreSigned","keyPath":"/k","rekorPublicKeyPath":"/r"}"#, "Rekor"),
        (r#"{"type":"sigstoreSigned","pki":{}}"#, "certificates"),
    ] {
        let found = one(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert!(matches!(&found[..], [Requirement::Unsupported(what)] if what.contains(word)), "{text}: {found:?}");
    }
}

#[test]
fn keys_of_each_kind_verify_their_own_signatures_only() -> anyhow::Result<()> {
    let text = payload("a.lan/app:1", &Digest::of(b"manifest"));
    let random = SystemRandom::new();
    let ecdsa = Signer::new();
    let edwards = Ed25519KeyPair::generate()?;
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048)?;
    let mut by_rsa = vec![0; rsa.public_modulus_len()];
    rsa.sign(&RSA_PKCS1_SHA256, &random, &text, &mut by_rsa)?;
    let spki = |der: PublicKeyX509Der<'_>| pem(der.as_ref());
    let pairs = [
        (ecdsa.pem(), ecdsa.sign(&text)),
        (spki(edwards.public_key().as_der()?), edwards.sign(&text).as_ref().to_vec()),
        (spki(rsa.public_key().as_der()?), by_rsa),
    ];
    let keys: Vec<Key> = pairs
        .iter()
        .map(|(pem, _)| Key::from_pem(pem.as_bytes()))
        .collect::<Result<_, _>>()
        .map_err(anyhow::Error::msg)?;
    for (at, key) in keys.iter().enumerate() {
        for (other, (_, signature)) in pairs.iter().enumerate() {
            assert_eq!(key.verifies(&text, signature), at == other, "{at} {other}");
        }
        assert!(!key.verifies(b"another text", &pairs[at].1));
        let mut broken = pairs[at].1.clone();
        broken[10] ^= 1;
        assert!(!key.verifies(&text, &broken));
        assert!(!key.verifies(&text, b""));
    }
    // One key of several is enough, and what no key vouches for is not read.
    assert!(signature::read(&keys, &text, &pairs[2].1).is_ok());
    assert_eq!(signature::read(&keys[..1], &text, &pairs[2].1), Err("it is not made with a key of the policy"));
    for odd in [
        "{}",
        "null",
        r#"{"critical":{"type":"other","image":{"docker-manifest-digest":"x"},"identity":{"docker-reference":"x"}}}"#,
    ] {
        assert!(signature::read(&keys, odd.as_bytes(), &ecdsa.sign(odd.as_bytes())).is_err(), "{odd}");
    }
    Ok(())
}

#[test]
fn a_private_key_or_a_weak_one_is_no_key() -> anyhow::Result<()> {
    for text in [
        "",
        "no pem",
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----",
    ] {
        assert!(Key::from_pem(text.as_bytes()).is_err(), "{text}");
    }
    Ok(())
}

#[test]
fn identities() -> anyhow::Result<()> {
    let digest = format!("sha256:{}", "0".repeat(64));
    let by_digest = format!("a.lan/app@{digest}");
    let named = |text: &str| Named::read(text).expect("a name");
    let remap = Identity::Remap { prefix: "a.lan".into(), signed_prefix: "up.example/team".into() };
    let exact = Identity::ExactReference(named("other.lan/x:9"));
    let repository = Identity::ExactRepository("other.lan/x".into());
    for (identity, wanted, signed, good) in [
        (&Identity::MatchRepoDigestOrExact, "a.lan/app:1", "a.lan/app:1", true),
        (&Identity::MatchRepoDigestOrExact, "a.lan/app:1", "a.lan/app:2", false),
        // As cosign signs: without a tag. The format says that this does not match a tag.
        (&Identity::MatchRepoDigestOrExact, "a.lan/app:1", "a.lan/app", false),
        (&Identity::MatchRepoDigestOrExact, "a.lan/app", "a.lan/app", false),
        (&Identity::MatchRepoDigestOrExact, &by_digest, "a.lan/app", true),
        (&Identity::MatchRepoDigestOrExact, &by_digest, "a.lan/app:7", true),
        (&Identity::MatchRepoDigestOrExact, &by_digest, "b.lan/app:7", false),
        (&Identity::MatchExact, "a.lan/app:1", "a.lan/app:1", true),
        (&Identity::MatchExact, &by_digest, &by_digest, true),
        (&Identity::MatchExact, &by_digest, "a.lan/app:1", false),
        (&Identity::MatchExact, "busybox:latest", "docker.io/library/busybox:latest", true),
        (&Identity::MatchRepository, "a.lan/app:1", "a.lan/app", true),
        (&Identity::MatchRepository, "a.lan/app:1", "a.lan/app:2", true),
        (&Identity::MatchRepository, "a.lan/app:1", "a.lan/app2:1", false),
        (&exact, "a.lan/app:1", "other.lan/x:9", true),
        (&exact, "a.lan/app:1", "other.lan/x:8", false),
        (&exact, "a.lan/app:1", "other.lan/x", false),
        (&repository, "a.lan/app:1", "other.lan/x:8", true),
        (&repository, "a.lan/app:1", "a.lan/app:1", false),
        (&remap, "a.lan/app:1", "up.example/team/app:1", true),
        (&remap, "a.lan/app:1", "a.lan/app:1", false),
        (&remap, "a.land/app:1", "a.land/app:1", true),
        (&remap, &by_digest, "up.example/team/app:5", true),
    ] {
        assert_eq!(identity.takes(&Reference::parse(wanted)?, &named(signed)), good, "{identity:?} {wanted} {signed}");
    }
    assert_eq!(Named::read(&format!("a.lan/app:1@{digest}")), None);
    assert_eq!(Named::read("https://a.lan/app"), None);
    Ok(())
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&bytes, &mut no_key);
        prop_assert!(Key::from_pem(&bytes).is_err());
        prop_assert!(signature::read(&[], &bytes, &bytes).is_err());
    }
}
