//! Credentials and the answer to a registry's challenge.
//!
//! Who gets what: the challenge is taken only from the registry itself, never from a host that it redirected to. A token
//! service on another host gets the credentials when it is reached over https, as the registry that names it could ask
//! for the very same credentials by a Basic challenge; a token service over plain http is refused for a registry that was
//! reached over https, unless the operator marked the registry insecure. A mirror under another name does not get the
//! credentials of the registry; it may have its own in a file of logins ([`super::auth_file`]).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cri_proto::runtime::v1::AuthConfig;
use reqwest::Url;
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::auth_file::Login;
use super::failure::{about, from_send_error, from_status, retry_after};
use super::{Session, authority};
use crate::image::error::Failure;
use crate::image::reference::DOCKER_HUB;
use crate::image::registries::Endpoint;

/// Largest answer of a token service, in bytes.
const MAX_TOKEN: usize = 256 * 1024;
const MAX_CREDENTIAL: usize = 64 * 1024;

/// What the kubelet gave for one registry. Never printed.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credentials {
    host: String,
    secret: Secret,
}

/// What is shown to a registry.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Secret {
    Password {
        user: String,
        password: String,
    },
    /// An OAuth2 refresh token.
    Identity(String),
    /// A bearer token for the registry itself.
    Registry(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("host", &self.host).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads what the CRI gives. They are for the host of `server_address`, else for the host of the image's name.
    ///
    /// # Errors
    /// A reason, when `auth` is not the base64 of `user:password`.
    pub fn from_cri(auth: &AuthConfig, image_host: &str) -> Result<Option<Self>, &'static str> {
        let fields = [&auth.username, &auth.password, &auth.auth, &auth.identity_token, &auth.registry_token];
        if fields.iter().any(|field| field.len() > MAX_CREDENTIAL) {
            return Err("they are too long");
        }
        let host = match server_host(&auth.server_address) {
            "" => canonical(image_host),
            host => canonical(host),
        }
        .to_owned();
        let secret = if !auth.registry_token.is_empty() {
            Secret::Registry(auth.registry_token.clone())
        } else if !auth.identity_token.is_empty() {
            Secret::Identity(auth.identity_token.clone())
        } else if !auth.username.is_empty() || !auth.password.is_empty() {
            Secret::Password { user: auth.username.clone(), password: auth.password.clone() }
        } else if !auth.auth.is_empty() {
            let (user, password) = decode(&auth.auth)?;
            Secret::Password { user, password }
        } else {
            return Ok(None);
        };
        Ok(Some(Self { host, secret }))
    }

    /// Those of a file's entry, for the host that it was found for.
    pub(super) fn of(host: &str, secret: Secret) -> Self {
        Self { host: canonical(host).to_owned(), secret }
    }

    /// Whether a host may see them.
    #[must_use]
    pub fn are_for(&self, host: &str) -> bool {
        self.host.eq_ignore_ascii_case(canonical(host))
    }
}

/// User and password out of their usual base64 form.
pub(super) fn decode(auth: &str) -> Result<(String, String), &'static str> {
    let bad = "the auth field is not base64 of user:password";
    let bytes = STANDARD.decode(auth.trim()).map_err(|_| bad)?;
    let text = String::from_utf8(bytes).map_err(|_| bad)?;
    let (user, password) = text.split_once(':').ok_or(bad)?;
    Ok((user.to_owned(), password.trim_end_matches('\0').to_owned()))
}

/// The host of a `server_address`, which may be a whole URL (`https://index.docker.io/v1/`).
fn server_host(address: &str) -> &str {
    let address = address.trim();
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}

pub(super) fn canonical(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => DOCKER_HUB,
        other => other,
    }
}

/// The authorization of one session.
#[derive(Debug)]
pub(super) struct Authorizer {
    repository: String,
    credentials: Option<Credentials>,
    /// Where the credentials are from; without any, the file that names a helper program for them.
    source: String,
    current: Mutex<Option<HeaderValue>>,
}

impl Authorizer {
    pub(super) fn new(endpoint: &Endpoint, login: Login) -> Self {
        let (source, credentials) = match login {
            Login::Entry(source, credentials) => (source, Some(credentials)),
            Login::Helper(source) => (source, None),
            Login::Nothing => (String::new(), None),
        };
        let credentials = credentials.filter(|credentials| credentials.are_for(&endpoint.host));
        let ready = credentials.as_ref().and_then(|credentials| match &credentials.secret {
            Secret::Registry(token) => bearer(token),
            _ => None,
        });
        Self { repository: endpoint.repository.clone(), credentials, source, current: Mutex::new(ready) }
    }

    pub(super) async fn current(&self) -> Option<HeaderValue> {
        self.current.lock().await.clone()
    }

    /// What a 401 means that is not followed by another try. Some registries answer it for what they do not have, so that
    /// nobody learns what there is.
    pub(super) fn refused(&self) -> Failure {
        let source = &self.source;
        Failure::Unauthorized(if self.credentials.is_some() {
            format!("the registry refuses the credentials of {source}, or has no such repository")
        } else if source.is_empty() {
            "the registry asks for credentials, and there are none for it here; or it has no such repository".to_owned()
        } else {
            format!("the registry asks for credentials; {source} names a helper program for them, which is not run")
        })
    }

    /// Gets the authorization that a challenge asks for. `used` is what the refused request had.
    pub(super) async fn answer(
        &self,
        challenges: &[String],
        secure: bool,
        used: Option<HeaderValue>,
        session: &Session,
    ) -> Result<(), Failure> {
        let mut current = self.current.lock().await;
        if *current != used {
            // Another request of this session was faster.
            return Ok(());
        }
        if matches!(self.credentials.as_ref().map(|c| &c.secret), Some(Secret::Registry(_))) {
            return Err(self.refused());
        }
        let parsed: Vec<Challenge> = challenges.iter().flat_map(|text| parse_challenges(text)).collect();
        let named = |name: &str| parsed.iter().find(|challenge| challenge.scheme.eq_ignore_ascii_case(name));
        *current = if let Some(challenge) = named("bearer") {
            let token = self.token(challenge, secure, session).await?;
            Some(bearer(&token).ok_or_else(|| unusable("the token service's token is no token"))?)
        } else if named("basic").is_some() {
            match self.credentials.as_ref().map(|credentials| &credentials.secret) {
                Some(Secret::Password { user, password }) if used.is_none() => basic(user, password),
                _ => return Err(self.refused()),
            }
        } else if parsed.is_empty() {
            return Err(unusable("the registry does not say how to log in (it sends no WWW-Authenticate)"));
        } else {
            return Err(unusable("the registry asks for a kind of login that is not known: neither Basic nor Bearer"));
        };
        Ok(())
    }

    async fn token(&self, challenge: &Challenge, secure: bool, session: &Session) -> Result<String, Failure> {
        let realm = check_realm(challenge.get("realm"), secure, session.endpoint.is_insecure())?;
        let scope = self.scope(challenge.get("scope"));
        let service = challenge.get("service");
        let host = authority(&realm);
        let own = session.is_own(&realm);
        if !own && self.credentials.is_some() {
            tracing::info!(
                registry = session.endpoint.host,
                token_service = host,
                "the login of a registry goes to a token service on another host"
            );
        }
        let made = session.client(&realm, own).await?;
        made.proxy(realm.scheme())?;
        let client = &made.client;
        let mut tried = 0;
        loop {
            let request = match self.credentials.as_ref().map(|credentials| &credentials.secret) {
                Some(Secret::Identity(token)) => {
                    let form = query(&[
                        ("grant_type", "refresh_token"),
                        ("service", service),
                        ("scope", &scope),
                        ("client_id", "cricket"),
                        ("refresh_token", token),
                    ]);
                    client.post(realm.clone()).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form)
                }
                secret => {
                    let mut url = realm.clone();
                    url.query_pairs_mut().append_pair("scope", &scope);
                    if !service.is_empty() {
                        url.query_pairs_mut().append_pair("service", service);
                    }
                    let request = client.get(url);
                    match secret {
                        Some(Secret::Password { user, password }) => match basic(user, password) {
                            Some(value) => request.header(AUTHORIZATION, value),
                            None => request,
                        },
                        _ => request,
                    }
                }
            };
            // As for what a registry serves: nothing here unpacks an answer.
            let request = request.header(ACCEPT_ENCODING, "identity");
            let (failure, asked) = match tokio::time::timeout(session.patience.progress, request.send()).await {
                Ok(Ok(response)) if response.status().is_success() => {
                    let body = session.body(response, "the token", MAX_TOKEN).await?;
                    return read_token(&body).ok_or_else(|| unusable("the token service's answer has no token"));
                }
                Ok(Ok(response)) => {
                    let (status, asked) = (response.status(), retry_after(response.headers()));
                    match status.as_u16() {
                        // Services differ in what they say to wrong credentials.
                        400..=403 => return Err(self.refused()),
                        300..=399 => return Err(Failure::Realm("it answers with a redirect")),
                        _ => (from_status(None, (!own).then(|| host.clone()), status, asked), asked),
                    }
                }
                Ok(Err(error)) => (from_send_error(&error, session.dial(own), &made, realm.scheme()), None),
                Err(_) => (Failure::Stalled { after: session.patience.progress }, None),
            };
            session
                .pause(failure, &mut tried, asked)
                .await
                .map_err(|failure| if own { failure } else { about(&format!("its token service {host}"), failure) })?;
        }
    }

    /// The scope asked for: what the registry names when it is to pull one repository, else our own words.
    fn scope(&self, named: &str) -> String {
        let pull_only = named.starts_with("repository:") && named.ends_with(":pull") && !named.contains([' ', ',']);
        if pull_only && named.len() <= 512 { named.to_owned() } else { format!("repository:{}:pull", self.repository) }
    }
}

fn unusable(what: &str) -> Failure {
    Failure::Unauthorized(what.to_owned())
}

/// A token service that may be asked.
fn check_realm(realm: &str, secure: bool, insecure_allowed: bool) -> Result<Url, Failure> {
    let url = Url::parse(realm).map_err(|_| Failure::Realm("its address is not a URL"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Failure::Realm("its address has user information in it"));
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if !secure || insecure_allowed => Ok(url),
        "http" => Err(Failure::Realm("it is reached over plain http, the registry over https")),
        _ => Err(Failure::Realm("its address is not of HTTP")),
    }
}

#[derive(Deserialize)]
struct TokenBody {
    token: Option<String>,
    access_token: Option<String>,
}

fn read_token(body: &[u8]) -> Option<String> {
    let body: TokenBody = serde_json::from_slice(body).ok()?;
    body.token.filter(|t| !t.is_empty()).or(body.access_token.filter(|t| !t.is_empty()))
}

fn bearer(token: &str) -> Option<HeaderValue> {
    secret_header(&format!("Bearer {token}"))
}

fn basic(user: &str, password: &str) -> Option<HeaderValue> {
    secret_header(&format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
}

/// Marked so that the HTTP library neither prints nor indexes it.
fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn query(pairs: &[(&str, &str)]) -> String {
    let mut url = Url::parse("http://form.invalid/").expect("a constant URL");
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}

#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    scheme: String,
    params: Vec<(String, String)>,
}

impl Challenge {
    fn get(&self, name: &str) -> &str {
        self.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }
}

/// The schemes of one `WWW-Authenticate` header, each with its parameters, for the fuzzing target.
#[doc(hidden)]
#[must_use]
pub fn challenges(text: &str) -> Vec<(String, Vec<(String, String)>)> {
    parse_challenges(text).into_iter().map(|challenge| (challenge.scheme, challenge.params)).collect()
}

/// The challenges of one `WWW-Authenticate` header. What does not parse ends the list.
fn parse_challenges(text: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() || found.len() > 8 {
            return found;
        }
        let after = after.trim_start_matches([' ', '\t']);
        match (after.strip_prefix('='), found.last_mut()) {
            (Some(value), Some(challenge)) => {
                let (value, tail) = parameter(value.trim_start_matches([' ', '\t']));
                challenge.params.push((word.to_owned(), value));
                rest = tail;
            }
            (Some(_), None) => return found,
            (None, _) => {
                found.push(Challenge { scheme: word.to_owned(), params: Vec::new() });
                rest = after;
            }
        }
    }
}

/// A token or a quoted string, and what follows it.
fn parameter(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let all = parse_challenges(
            r#"Basic realm="x, y", Bearer realm="https://a/t?q=\"1",service=s , scope="repository:a:pull""#,
        );
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].get("realm"), "x, y");
        assert_eq!(all[1].get("realm"), "https://a/t?q=\"1");
        assert_eq!((all[1].get("Service"), all[1].get("scope"), all[1].get("no")), ("s", "repository:a:pull", ""));
        for odd in ["", ",,,", "=x", "Bearer", "Bearer realm=\"unclosed", "Bearer a=b=c,=", "\u{e9}"] {
            let _ = parse_challenges(odd);
        }
    }

    #[test]
    fn cve_2019_10214_a_token_service_must_be_as_safe_as_its_registry() {
        for (realm, secure, insecure, good) in [
            ("https://auth.lan/token", true, false, true),
            ("http://auth.lan/token", true, false, false),
            ("http://auth.lan/token", true, true, true),
            ("http://auth.lan/token", false, true, true),
            ("https://u:p@auth.lan/token", true, false, false),
            ("ftp://auth.lan/token", false, true, false),
            ("/token", true, false, false),
            ("", true, false, false),
        ] {
            assert_eq!(check_realm(realm, secure, insecure).is_ok(), good, "{realm} {secure} {insecure}");
        }
    }

    #[test]
    fn credentials_are_for_one_host() {
        let auth =
            |server: &str| AuthConfig { username: "u".into(), server_address: server.into(), ..AuthConfig::default() };
        for (server, image, host, good) in [
            ("", "a.lan:5000", "a.lan:5000", true),
            ("", "a.lan:5000", "a.lan", false),
            ("", "a.lan", "mirror.lan", false),
            ("https://index.docker.io/v1/", "docker.io", "docker.io", true),
            ("", "docker.io", "registry-1.docker.io", true),
            ("b.lan", "a.lan", "a.lan", false),
            ("https://b.lan/v2", "a.lan", "b.lan", true),
            ("A.lan", "a.lan", "a.lan", true),
        ] {
            let found = Credentials::from_cri(&auth(server), image).ok().flatten().expect("credentials");
            assert_eq!(found.are_for(host), good, "{server} {image} {host}");
        }
        assert_eq!(Credentials::from_cri(&AuthConfig::default(), "a.lan"), Ok(None));
        let encoded = AuthConfig { auth: STANDARD.encode("canary:secret\0"), ..AuthConfig::default() };
        let found = Credentials::from_cri(&encoded, "a.lan").ok().flatten().expect("credentials");
        assert!(found.secret == Secret::Password { user: "canary".into(), password: "secret".into() });
        assert!(!format!("{found:?}").contains("canary"));
        let bad = AuthConfig { auth: "no base64!".into(), ..AuthConfig::default() };
        assert!(Credentials::from_cri(&bad, "a.lan").is_err());
    }
}
