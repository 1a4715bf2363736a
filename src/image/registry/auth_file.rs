//! Files with logins: `containers-auth.json(5)` and Docker's `config.json`. Bytes in, entries out; nothing is run.
//!
//! `credHelpers` and `credsStore` name programs. A daemon of root's does not run programs that a file of logins names; an
//! entry that only a helper has is none, and the error of a refused pull says so.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::auth::{Credentials, Secret, canonical};
use crate::image::reference::Reference;

/// Most entries of one file.
const MAX_ENTRIES: usize = 4096;

/// What a file says.
#[derive(Default)]
pub struct AuthFile {
    entries: Vec<(Key, Secret)>,
    helpers: Vec<Key>,
    /// `credsStore`: a helper for everything.
    store: bool,
}

/// What a file has for a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// Where it is, for people, and what it holds.
    Entry(String, Credentials),
    /// Only a helper program has it; what names the program, for people.
    Helper(String),
    Nothing,
}

/// `host[:port][/path]`, in its normal form and as written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    name: String,
    written: String,
    /// How well the key says that it is for this host: 2 for a name, 1 for the URL of a registry, which is an old form, and 0 for
    /// any other URL. `docker login` writes tokens for itself below that of Docker Hub.
    rank: u8,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawFile {
    // A member may be null, which those who write these files with Go read as absent.
    auths: Option<BTreeMap<String, Option<RawEntry>>>,
    cred_helpers: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// Reads a file.
///
/// # Errors
/// What is wrong; never a word of the file's values.
pub fn parse(bytes: &[u8]) -> Result<AuthFile, String> {
    // The library's text may quote a value, which may be a password.
    let raw: RawFile = serde_json::from_slice(bytes)
        .map_err(|error| format!("line {} column {}: not a file of logins", error.line(), error.column()))?;
    let (auths, helpers) = (raw.auths.unwrap_or_default(), raw.cred_helpers.unwrap_or_default());
    if auths.len() + helpers.len() > MAX_ENTRIES {
        return Err(format!("it has more than {MAX_ENTRIES} entries"));
    }
    let store = raw.creds_store.is_some_and(|store| !store.is_empty());
    let mut file = AuthFile { store, ..AuthFile::default() };
    for (written, entry) in auths {
        let key = Key::read(written);
        if let Some(secret) =
            entry.unwrap_or_default().secret().map_err(|why| format!("auths: {:?}: {why}", key.written))?
        {
            file.entries.push((key, secret));
        }
    }
    file.helpers = helpers.into_keys().map(Key::read).collect();
    Ok(file)
}

impl RawEntry {
    fn secret(self) -> Result<Option<Secret>, &'static str> {
        let given = |field: Option<String>| field.filter(|text| !text.is_empty());
        if let Some(token) = given(self.registrytoken) {
            return Ok(Some(Secret::Registry(token)));
        }
        if let Some(token) = given(self.identitytoken) {
            return Ok(Some(Secret::Identity(token)));
        }
        if let Some(auth) = given(self.auth) {
            let (user, password) = super::auth::decode(&auth)?;
            return Ok(Some(Secret::Password { user, password }));
        }
        Ok(match (given(self.username), given(self.password)) {
            (None, None) => None,
            (user, password) => {
                Some(Secret::Password { user: user.unwrap_or_default(), password: password.unwrap_or_default() })
            }
        })
    }
}

impl Key {
    fn read(written: String) -> Self {
        let text = written.trim();
        let rest = text.split_once("://").map(|(_, rest)| rest);
        let plain = rest.unwrap_or(text);
        let (host, path) = plain.split_once('/').unwrap_or((plain, ""));
        let path = path.trim_matches('/');
        // "index.docker.io/v1/" is what `docker login` writes for Docker Hub.
        let old = rest.is_some() || matches!(path, "v1" | "v2");
        let host = canonical(host).to_ascii_lowercase();
        let name = if path.is_empty() || old { host } else { format!("{host}/{path}") };
        let rank = match (old, path) {
            (false, _) => 2,
            (true, "" | "v1" | "v2") => 1,
            (true, _) => 0,
        };
        // Shown to people; a user in it may have a password.
        let written = written.rsplit('@').next().unwrap_or_default().to_owned();
        Self { name, rank, written }
    }

    /// Whether it has a repository: it is the name, or a whole number of its leading components.
    fn has(&self, repository: &str) -> bool {
        repository.strip_prefix(self.name.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl AuthFile {
    /// The entry for a repository on a host: the one with the longest key, and of a host's two the one that is no URL.
    #[must_use]
    pub fn login(&self, host: &str, repository: &str) -> Login {
        let name = format!("{}/{repository}", canonical(host).to_ascii_lowercase());
        let fitting = self.entries.iter().filter(|(key, _)| key.has(&name));
        if let Some((key, secret)) = fitting.max_by_key(|(key, _)| (key.name.len(), key.rank)) {
            return Login::Entry(key.written.clone(), Credentials::of(host, secret.clone()));
        }
        let helper = self.helpers.iter().filter(|key| key.has(&name)).max_by_key(|key| key.name.len());
        match helper {
            Some(key) => Login::Helper(format!("credHelpers: {}", key.written)),
            None if self.store => Login::Helper("credsStore".to_owned()),
            None => Login::Nothing,
        }
    }
}

/// The names of the files that hold a namespace's logins, the most special first: by the name of the image without its
/// version (`<namespace>-<sha256 of it>.json`, as CRI-O's credential provider writes them), and for the whole namespace.
#[must_use]
pub fn names_for(namespace: &str, reference: &Reference) -> [String; 2] {
    let image = crate::storage::Digest::of(reference.name().as_bytes());
    [format!("{namespace}-{}.json", image.hex()), format!("{namespace}.json")]
}

impl std::fmt::Debug for AuthFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthFile").field("entries", &self.entries.len()).finish_non_exhaustive()
    }
}

/// The base64 of `user:password`, for tests of other rooms' files.
#[cfg(test)]
pub(crate) fn encoded(user: &str, password: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(text: &str) -> AuthFile {
        parse(text.as_bytes()).expect("a good file")
    }

    #[test]
    fn the_longest_key_has_it() {
        let entry = |user: &str| format!(r#"{{"auth":"{}"}}"#, encoded(user, "p:q"));
        let text = format!(
            r#"{{"auths":{{"a.lan":{},"a.lan/team":{},"a.lan/team/app":{},"https://index.docker.io/v1/":{},
                "https://index.docker.io/v1/access-token":{},"https://index.docker.io/v1/refresh-token":{},
                "docker.io/me":{},"https://b.lan:5000/v2/":{},"b.lan:5000":{},"empty.lan":{{}}}},
               "credHelpers":{{"h.lan":"program"}},"HttpHeaders":{{"x":"y"}}}}"#,
            entry("host"),
            entry("team"),
            entry("app"),
            entry("hub"),
            entry("access"),
            entry("refresh"),
            entry("me"),
            entry("url"),
            entry("plain")
        );
        let file = file(&text);
        for (host, repository, want) in [
            ("a.lan", "x", Some("host")),
            ("A.lan", "x", Some("host")),
            ("a.lan", "team/other", Some("team")),
            ("a.lan", "teams/other", Some("host")),
            ("a.lan", "team/app", Some("app")),
            ("a.lan", "team/app/x", Some("app")),
            ("a.lan:5000", "x", None),
            ("docker.io", "library/busybox", Some("hub")),
            ("docker.io", "me/app", Some("me")),
            ("b.lan:5000", "x", Some("plain")),
            ("evil.a.lan", "x", None),
            ("empty.lan", "x", None),
        ] {
            let found = file.login(host, repository);
            match want {
                Some(user) => {
                    let want = Secret::Password { user: user.into(), password: "p:q".into() };
                    assert!(
                        matches!(&found, Login::Entry(_, c) if *c == Credentials::of(host, want)),
                        "{host} {repository}"
                    );
                }
                None => assert_eq!(found, Login::Nothing, "{host} {repository}"),
            }
        }
        assert_eq!(file.login("h.lan", "x"), Login::Helper("credHelpers: h.lan".into()));
        assert!(!format!("{file:?}").contains("team"));
    }

    #[test]
    fn every_kind_of_login_is_read_and_no_error_quotes_one() {
        let file = file(
            r#"{"auths":{"i.lan":{"auth":"eDp5","identitytoken":"t"},"r.lan":{"registrytoken":"t"},
                "u.lan":{"username":"u","password":"p","auth":null},"n.lan":null},"credHelpers":null,"credsStore":"desktop"}"#,
        );
        let secret = |host: &str| match file.login(host, "x") {
            Login::Entry(_, credentials) => Some(credentials),
            _ => None,
        };
        assert_eq!(secret("i.lan"), Some(Credentials::of("i.lan", Secret::Identity("t".into()))));
        assert_eq!(secret("r.lan"), Some(Credentials::of("r.lan", Secret::Registry("t".into()))));
        let plain = Secret::Password { user: "u".into(), password: "p".into() };
        assert_eq!(secret("u.lan"), Some(Credentials::of("u.lan", plain)));
        assert_eq!(file.login("other.lan", "x"), Login::Helper("credsStore".into()));
        for bad in [
            r#"{"auths":{"a.lan":{"auth":"canary no base64"}}}"#,
            r#"{"auths":{"a.lan":{"password":["canary"]}}}"#,
            r#"{"auths":"canary"}"#,
            r#"canary"#,
        ] {
            let error = parse(bad.as_bytes()).expect_err(bad);
            assert!(!error.contains("canary"), "{error}");
        }
    }

    #[test]
    fn a_namespace_s_files_have_names_of_their_own() -> anyhow::Result<()> {
        let [image, whole] = names_for("team-a", &Reference::parse("busybox:1")?);
        assert_eq!(whole, "team-a.json");
        let sum = crate::storage::Digest::of(b"docker.io/library/busybox");
        assert_eq!(image, format!("team-a-{}.json", sum.hex()));
        Ok(())
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..200), host in "[a-z./:]{0,20}") {
            if let Ok(file) = parse(&bytes) {
                let _ = file.login(&host, "x");
            }
            let key = Key::read(host.clone());
            // A key never has what lies outside of its own host.
            let other = format!("x{}", key.name);
            prop_assert!(key.name.is_empty() || !key.has(&other));
        }
    }
}
