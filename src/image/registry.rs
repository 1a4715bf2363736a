//! One registry, spoken to over the distribution API: HTTP with redirects, retries, clocks and authorization of our own.
//!
//! Rules about secrets, all held here and in [`auth`]:
//! * credentials go to the registry that they are for (the host of the image's name, their `server_address`, or the
//!   key of their entry in a file of logins), never to a mirror under another name;
//! * an `Authorization` header goes to the origin it was made for; a redirect elsewhere goes without it;
//! * an https registry is never followed to http, by redirect or by token service (CVE-2019-10214);
//! * no URL, header or body of a server ends up in an error: only the host, the status and well-known error codes do.

pub mod auth;
pub mod auth_file;
mod blob;
mod clients;
mod failure;
mod referrers;

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE, WWW_AUTHENTICATE,
};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::sync::Mutex;

pub use blob::{Download, Progress};
pub use clients::Clients;
pub use prost::bytes::Bytes;

use self::auth::Authorizer;
use self::auth_file::Login;
use super::document::{self, ContentError};
use super::error::Failure;
use super::reference::Version;
use super::registries::{Endpoint, Scheme, Tls};
use crate::storage::Digest;
use failure::{about, from_body_error, from_send_error, from_status, retry_after};

/// Hops that a request may be sent on.
const MAX_REDIRECTS: usize = 5;
const MAX_HEADER: usize = 8 * 1024;

/// How patient a session is.
#[derive(Debug, Clone)]
pub struct Patience {
    /// Without a byte for this long, a request is given up.
    pub progress: Duration,
    /// Bytes per second that a layer must come with, taken over the length of the progress clock; 0: any speed will do.
    pub least_rate: u64,
    /// Further tries of a request that failed in passing.
    pub retries: u32,
    /// Wait before the first of them; doubles each time.
    pub backoff: Duration,
    /// The longest wait that a server may ask for.
    pub max_wait: Duration,
}

impl Patience {
    /// The defaults around the configured progress clock.
    #[must_use]
    pub fn new(progress: Duration) -> Self {
        let (backoff, max_wait) = (Duration::from_millis(300), Duration::from_secs(30));
        Self { progress, least_rate: 0, retries: 3, backoff, max_wait }
    }

    /// The wait before retry number `tried`, and no less than the server asks for. Up to half of our own comes on top at random,
    /// so that nodes do not come in step, least of all when all of them were told the same time.
    pub(super) fn wait(&self, tried: u32, asked: Duration) -> Duration {
        use std::hash::{BuildHasher as _, Hasher as _};
        let base = self.backoff.saturating_mul(1 << tried.min(6));
        let random = std::hash::RandomState::new().build_hasher().finish() % 512;
        let extra = base.saturating_mul(u32::try_from(random).unwrap_or(0)) / 1024;
        (base.min(self.max_wait).max(asked)) + extra.min(self.max_wait)
    }
}

/// One repository on one registry, for the length of one pull.
#[derive(Debug)]
pub struct Session {
    endpoint: Endpoint,
    clients: Arc<Clients>,
    patience: Patience,
    /// The origin once it is known: an insecure registry is asked over https first.
    base: Mutex<Option<Url>>,
    authorizer: Authorizer,
}

/// A manifest or index as served.
#[derive(Debug, Clone)]
pub struct Fetched {
    pub bytes: Vec<u8>,
    /// The `Content-Type`, empty when the server states none.
    pub media_type: String,
}

impl Session {
    /// A session; nothing is sent yet. `login` is what is known for this endpoint.
    #[must_use]
    pub fn new(endpoint: Endpoint, login: Login, clients: Arc<Clients>, patience: Patience) -> Self {
        let authorizer = Authorizer::new(&endpoint, login);
        Self { endpoint, clients, patience, base: Mutex::new(None), authorizer }
    }

    /// `host[:port]`, for messages.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.endpoint.host
    }

    /// The place that is spoken to.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The client for the registry itself, or for a host that it sent us to.
    async fn client(&self, url: &Url, own: bool) -> Result<clients::Made, Failure> {
        self.clients.client(self.wanted(url, own)).await
    }

    /// What a client for a URL is made for. The names of the registry itself are those of the configuration: a URL leaves the
    /// port of its scheme out, and a folder of certificates may have it in its name.
    fn wanted(&self, url: &Url, own: bool) -> clients::Wanted {
        let (dial, proxy) = (self.dial(own), self.endpoint.proxy.clone());
        if own {
            let (host, named) = (self.endpoint.address().to_owned(), self.endpoint.host.clone());
            clients::Wanted { host, named, tls: self.endpoint.tls.clone(), dial, proxy }
        } else {
            let host = authority(url);
            let tls = Tls { unverified: self.clients.is_insecure(&host), ..Tls::default() };
            clients::Wanted { named: host.clone(), host, tls, dial, proxy }
        }
    }

    /// Whether a URL is on the host of the registry itself, by the port that it has there.
    fn is_own(&self, url: &Url) -> bool {
        self.origin(url.scheme()).is_ok_and(|own| same_origin(&own, url))
    }

    /// How long a connection may take to stand, to the registry itself or to a host that it sent us to.
    fn dial(&self, own: bool) -> Duration {
        self.endpoint.dial_timeout.filter(|_| own).unwrap_or(clients::CONNECT_TIMEOUT)
    }

    /// The clocks and counts in force.
    #[must_use]
    pub fn patience(&self) -> &Patience {
        &self.patience
    }

    /// Asks for the digest that a tag stands for now, or whether a digest is there. `None`: the registry does not say.
    ///
    /// # Errors
    /// [`Failure`] when the registry does not serve it.
    pub async fn head(&self, version: &Version) -> Result<Option<Digest>, Failure> {
        let path = format!("manifests/{version}");
        let response = self.send(Method::HEAD, &path, Some(document::ACCEPT), None).await?;
        let stated = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        match version {
            Version::Digest(digest) => Ok(Some(digest.clone())),
            Version::Tag(_) => Ok(stated.and_then(|text| text.parse().ok())),
        }
    }

    /// Fetches a manifest or index; one that is asked for by digest has it.
    ///
    /// # Errors
    /// [`Failure`] when it is not served, too large, or not what was asked for.
    pub async fn manifest(&self, version: &Version) -> Result<Fetched, Failure> {
        let path = format!("manifests/{version}");
        let (headers, bytes) =
            self.fetch(&path, Some(document::ACCEPT), "the manifest", document::MAX_MANIFEST).await?;
        let media_type = header(&headers, CONTENT_TYPE.as_str());
        if let Version::Digest(want) = version {
            document::verify_digest("the manifest", &bytes, want)?;
        } else if let Ok(want) = header(&headers, "docker-content-digest").parse::<Digest>() {
            document::verify_digest("the manifest", &bytes, &want)?;
        }
        Ok(Fetched { bytes, media_type })
    }

    /// Fetches a small blob whole, with a cap; the caller verifies it.
    ///
    /// # Errors
    /// [`Failure`] when it is not served or too large.
    pub async fn small_blob(&self, what: &'static str, digest: &Digest, cap: usize) -> Result<Vec<u8>, Failure> {
        self.fetch(&format!("blobs/{digest}"), None, what, cap).await.map(|(_, bytes)| bytes)
    }

    /// Gets something small, again when its body broke.
    async fn fetch(
        &self,
        path: &str,
        accept: Option<&'static str>,
        what: &'static str,
        cap: usize,
    ) -> Result<(HeaderMap, Vec<u8>), Failure> {
        let mut tried = 0;
        loop {
            let response = self.send(Method::GET, path, accept, None).await?;
            let headers = response.headers().clone();
            match self.body(response, what, cap).await {
                Ok(bytes) => return Ok((headers, bytes)),
                Err(failure) => self.pause(failure, &mut tried, None).await?,
            }
        }
    }

    async fn body(&self, mut response: Response, what: &'static str, cap: usize) -> Result<Vec<u8>, Failure> {
        let too_large =
            || Failure::Content(ContentError::TooLarge { what, limit: u64::try_from(cap).unwrap_or(u64::MAX) });
        if response.content_length().is_some_and(|length| usize::try_from(length).is_ok_and(|length| length > cap)) {
            return Err(too_large());
        }
        // A body that drips one byte at a time makes progress for ever; a small document gets a clock as a whole too.
        let whole = self.patience.progress.saturating_mul(4);
        let mut bytes = Vec::new();
        let read = async {
            while let Some(chunk) = self.chunk(&mut response).await? {
                if bytes.len() + chunk.len() > cap {
                    return Err(too_large());
                }
                bytes.extend_from_slice(&chunk);
            }
            Ok(())
        };
        match tokio::time::timeout(whole, read).await {
            Ok(read) => read.map(|()| bytes),
            Err(_) => Err(Failure::Slow { got: u64::try_from(bytes.len()).unwrap_or(u64::MAX), over: whole }),
        }
    }

    /// Sends an idempotent request until it is answered with success, a final failure, or patience ends.
    async fn send(
        &self,
        method: Method,
        path: &str,
        accept: Option<&'static str>,
        range: Option<&str>,
    ) -> Result<Response, Failure> {
        let mut headers = HeaderMap::new();
        // Without it any encoding would be welcome (RFC 9110, 12.5.3), and a digest is one of the bytes as they are stored.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(accept) = accept {
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
        }
        if let Some(range) = range.and_then(|range| HeaderValue::from_str(range).ok()) {
            headers.insert(RANGE, range);
        }
        let mut tried = 0;
        let mut challenged = false;
        loop {
            let authorization = self.authorizer.current().await;
            let response = match self.once(&method, path, &headers, authorization.as_ref()).await {
                Ok(response) => response,
                Err(failure) => {
                    self.pause(failure, &mut tried, None).await?;
                    continue;
                }
            };
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if status == StatusCode::UNAUTHORIZED && self.is_from_registry(&response).await {
                // One round per request: a token may have run out meanwhile, a second refusal is final.
                if challenged {
                    return Err(self.authorizer.refused());
                }
                challenged = true;
                let challenges: Vec<String> = response
                    .headers()
                    .get_all(WWW_AUTHENTICATE)
                    .iter()
                    .filter_map(|v| v.to_str().ok())
                    .map(str::to_owned)
                    .collect();
                let secure = response.url().scheme() == "https";
                self.authorizer.answer(&challenges, secure, authorization, self).await?;
                continue;
            }
            let asked = retry_after(response.headers());
            let elsewhere = (!self.is_from_registry(&response).await).then(|| authority(response.url()));
            let plain = status == StatusCode::BAD_REQUEST && response.url().scheme() == "http";
            let code = self.read_code(response).await;
            let code = code.or(plain.then_some("servers of https answer so to plain http"));
            let failure = from_status(code, elsewhere, status, asked);
            self.pause(failure, &mut tried, asked).await?;
        }
    }

    async fn is_from_registry(&self, response: &Response) -> bool {
        self.base.lock().await.as_ref().is_some_and(|base| same_origin(base, response.url()))
    }

    /// The well-known code in an error body, read with a small cap. The rest of the body is never kept.
    async fn read_code(&self, response: Response) -> Option<&'static str> {
        let bytes = self.body(response, "the error", MAX_HEADER).await.ok()?;
        failure::known_code(&bytes)
    }

    /// Waits before another try, or gives the failure back when it is final. `asked` is the wait that the server wants
    /// (`Retry-After`): one that is too long is final too.
    pub(super) async fn pause(
        &self,
        failure: Failure,
        tried: &mut u32,
        asked: Option<Duration>,
    ) -> Result<(), Failure> {
        // A stall has had its clock already, a resolver has asked several times by itself, and content that is wrong stays
        // wrong.
        let had = matches!(
            failure,
            Failure::Unconnected { .. } | Failure::Stalled { .. } | Failure::Slow { .. } | Failure::Unresolved(_)
        );
        let too_long = asked.is_some_and(|wait| wait > self.patience.max_wait);
        let passing = failure.is_unavailability() && !had && !too_long;
        if !passing || *tried >= self.patience.retries {
            return Err(failure);
        }
        let wait = self.patience.wait(*tried, asked.unwrap_or_default());
        *tried += 1;
        tracing::debug!(host = self.host(), %failure, wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX), "trying again");
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// One request to the registry, on whichever scheme it speaks.
    async fn once(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Failure> {
        let known = self.base.lock().await.clone();
        if let Some(base) = known {
            return self.exchange(&base, method, path, headers, authorization).await;
        }
        if self.endpoint.scheme == Scheme::Http {
            let plain = self.origin("http")?;
            let response = self.exchange(&plain, method, path, headers, authorization).await?;
            // From here on it is known who may challenge.
            *self.base.lock().await = Some(plain);
            return Ok(response);
        }
        let secure = self.origin("https")?;
        match self.exchange(&secure, method, path, headers, authorization).await {
            Err(Failure::Connection(over_tls)) if self.endpoint.scheme == Scheme::Either => {
                let plain = self.origin("http")?;
                let answer = self.exchange(&plain, method, path, headers, authorization).await;
                match answer {
                    Ok(response) => {
                        *self.base.lock().await = Some(plain);
                        Ok(response)
                    }
                    Err(Failure::Connection(over_http)) if over_http != over_tls => {
                        Err(Failure::Connection(format!("{over_http}; over TLS: {over_tls}")))
                    }
                    Err(failure) => Err(failure),
                }
            }
            Err(failure) => Err(failure),
            Ok(response) => {
                *self.base.lock().await = Some(secure);
                Ok(response)
            }
        }
    }

    fn origin(&self, scheme: &str) -> Result<Url, Failure> {
        let Endpoint { api, repository, namespace, .. } = &self.endpoint;
        let text = format!("{scheme}://{}{api}/{repository}/", self.endpoint.address());
        let mut url = Url::parse(&text).map_err(|_| Failure::Connection("its name makes no URL".to_owned()))?;
        if let Some(namespace) = namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    /// One request and its redirects.
    async fn exchange(
        &self,
        base: &Url,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Failure> {
        let mut url = base.clone();
        // Beside the query that says for which registry a mirror is asked.
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        url.set_path(&format!("{}{path}", base.path()));
        if let Some(query) = query {
            let both = base.query().map_or_else(|| query.to_owned(), |own| format!("{own}&{query}"));
            url.set_query(Some(&both));
        }
        for _ in 0..=MAX_REDIRECTS {
            let own = same_origin(base, &url);
            let made = self.client(&url, own).await?;
            made.proxy(url.scheme())?;
            let mut all = if own { self.endpoint.headers.clone() } else { HeaderMap::new() };
            all.extend(headers.clone());
            if let Some(value) = authorization.filter(|_| own) {
                all.insert(AUTHORIZATION, value.clone());
            }
            let request = made.client.request(method.clone(), url.clone()).headers(all);
            let response = match tokio::time::timeout(self.patience.progress, request.send()).await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => {
                    let failure = from_send_error(&error, self.dial(own), &made, url.scheme());
                    return Err(if own {
                        failure
                    } else {
                        about(&format!("{}, where it leads", authority(&url)), failure)
                    });
                }
                Err(_) => return Err(Failure::Stalled { after: self.patience.progress }),
            };
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            url = redirect_target(&url, response.headers().get(LOCATION))?;
        }
        Err(Failure::Redirect("there are too many in a row"))
    }
}

fn redirect_target(from: &Url, location: Option<&HeaderValue>) -> Result<Url, Failure> {
    let text = location.and_then(|value| value.to_str().ok()).filter(|text| text.len() <= MAX_HEADER);
    let text = text.ok_or(Failure::Redirect("it has no usable location"))?;
    let to = from.join(text).map_err(|_| Failure::Redirect("its location is not a URL"))?;
    match (from.scheme(), to.scheme()) {
        (_, "https") | ("http", "http") => {}
        ("https", "http") => return Err(Failure::Redirect("it leads from https to http")),
        _ => return Err(Failure::Redirect("it leads to another protocol than HTTP")),
    }
    // The HTTP client would turn these into a header of their own.
    if !to.username().is_empty() || to.password().is_some() {
        return Err(Failure::Redirect("it has user information in it"));
    }
    Ok(to)
}

/// Scheme, host and port are equal.
pub(super) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme() && a.host_str() == b.host_str() && a.port_or_known_default() == b.port_or_known_default()
}

/// `host[:port]` as in configuration: the port only when it is not the scheme's own.
pub(in crate::image) fn authority(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (host, _) => host.unwrap_or_default().to_owned(),
    }
}

fn header(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().chars().take(256).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::reference::Reference;
    use crate::image::registries::Registries;

    #[test]
    fn redirects_never_lose_tls_or_carry_users() {
        let from = Url::parse("https://a.lan/v2/x/blobs/y").expect("a URL");
        let to = |text: &str| redirect_target(&from, HeaderValue::from_str(text).ok().as_ref());
        assert_eq!(to("/other").map(|u| u.to_string()), Ok("https://a.lan/other".to_owned()));
        assert_eq!(to("https://b.lan:1/o?sig=1").map(|u| authority(&u)), Ok("b.lan:1".to_owned()));
        for bad in ["http://a.lan/x", "file:///etc/passwd", "https://u:p@b.lan/x", "https://[zz]/"] {
            assert!(to(bad).is_err(), "{bad}");
        }
        assert!(redirect_target(&from, None).is_err());
    }

    #[test]
    fn the_registry_itself_keeps_the_name_that_it_is_configured_by() -> anyhow::Result<()> {
        for (name, named, host, own, foreign) in [
            ("a.lan:443/x", "a.lan:443", "a.lan:443", "https://a.lan/token", "https://a.lan:444/token"),
            ("A.lan/x", "A.lan", "A.lan", "https://a.lan/token", "https://b.lan/token"),
            (
                "x",
                "docker.io",
                "registry-1.docker.io",
                "https://registry-1.docker.io/v2/",
                "https://auth.docker.io/token",
            ),
        ] {
            let endpoint = Registries::default().endpoints(&Reference::parse(name)?)?.remove(0);
            let clients = Arc::new(Clients::new(Vec::new(), Registries::default()));
            let session = Session::new(endpoint, Login::Nothing, clients, Patience::new(Duration::from_secs(1)));
            let (own, foreign) = (Url::parse(own)?, Url::parse(foreign)?);
            assert!(session.is_own(&own) && !session.is_own(&foreign), "{name}");
            let wanted = session.wanted(&own, true);
            assert_eq!((&*wanted.named, &*wanted.host), (named, host));
            let wanted = session.wanted(&foreign, false);
            assert_eq!(wanted.named, authority(&foreign));
        }
        Ok(())
    }

    #[test]
    fn a_wait_is_never_shorter_than_asked_for_nor_the_same_for_all() {
        let patience = Patience { backoff: Duration::from_secs(1), ..Patience::new(Duration::from_secs(60)) };
        let waits: Vec<Duration> = (0..64).map(|_| patience.wait(0, Duration::from_secs(20))).collect();
        assert!(waits.iter().all(|wait| (20_000..21_000).contains(&wait.as_millis())), "{waits:?}");
        assert!(waits.iter().any(|wait| *wait != waits[0]));
        let own = patience.wait(1, Duration::ZERO);
        assert!((2000..3000).contains(&own.as_millis()), "{own:?}");
        assert!(patience.wait(u32::MAX, Duration::ZERO) <= patience.max_wait * 2);
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same = |a: &str, b: &str| same_origin(&Url::parse(a).expect("a URL"), &Url::parse(b).expect("a URL"));
        assert!(same("https://a.lan/x", "https://A.lan:443/y"));
        for (a, b) in [
            ("https://a.lan", "http://a.lan"),
            ("https://a.lan", "https://a.lan:444"),
            ("https://a.lan", "https://b.a.lan"),
            ("http://127.0.0.1:5000", "http://localhost:5000"),
        ] {
            assert!(!same(a, b), "{a} {b}");
        }
    }
}
