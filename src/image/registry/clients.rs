//! HTTP clients, one per host: each host may have its own certificate authority and client certificate.
//!
//! Certificates are looked for in `<certs_d>/<host[:port]>/`, as containers and Docker have them: `*.crt` are authorities
//! added to those of the system, a `*.cert` with the `*.key` of the same name is the client's own. `hosts.toml` may name
//! others for one place ([`Tls`]).

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use reqwest::{Certificate, Client, Identity, redirect};

use crate::image::error::Failure;
use crate::image::reference::{DOCKER_HUB, DOCKER_HUB_REGISTRY};
use crate::image::registries::proxy::{Environment, Proxy};
use crate::image::registries::{Registries, Tls};

/// How long a connection may take to stand, unless `hosts.toml` says otherwise (`dial_timeout`): looking the host's name up,
/// TCP and TLS together, as a host that takes connections and never shakes hands is as far away as one that takes none.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection that nobody uses is kept for the next pull. The pool looks that often only, so up to twice as long.
/// The requests of one pull follow one another faster, and middleboxes forget connections that idle for longer.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// Largest certificate or key file, in bytes.
const MAX_PEM: u64 = 1024 * 1024;
/// Hosts remembered; past that, all are forgotten and met anew.
const MAX_CLIENTS: usize = 256;

/// What a client is made for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Wanted {
    /// `host[:port]` that is connected to.
    pub host: String,
    /// `host[:port]` as in the name or the configuration: what its folder of certificates is called.
    pub named: String,
    pub tls: Tls,
    /// How long a connection may take to stand.
    pub dial: Duration,
    /// In place of what the environment says.
    pub proxy: Option<Proxy>,
}

/// A client, and what to tell when it gets no answer.
#[derive(Debug, Clone)]
pub(super) struct Made {
    pub client: Client,
    /// The file of the certificate that it shows.
    pub identity: Option<Arc<Path>>,
    /// Certificates count: nothing was said that allows less.
    pub strict: bool,
    https: Way,
    http: Way,
}

/// The proxy on the way, if there is one, or why it cannot be used.
type Way = Result<Option<Proxy>, String>;

impl Made {
    /// The proxy on the way by a scheme.
    ///
    /// # Errors
    /// [`Failure::Proxy`]: nothing may be sent.
    pub(super) fn proxy(&self, scheme: &str) -> Result<Option<&Proxy>, Failure> {
        let way = if scheme == "https" { &self.https } else { &self.http };
        way.as_ref().map(Option::as_ref).map_err(|why| Failure::Proxy(why.clone()))
    }
}

/// The clients of all hosts met so far.
#[derive(Debug)]
pub struct Clients {
    certs_d: ArcSwap<Vec<PathBuf>>,
    registries: ArcSwap<Registries>,
    /// Proxies of the daemon's environment.
    environment: ArcSwap<Environment>,
    made: Mutex<HashMap<Wanted, Made>>,
}

impl Clients {
    /// No client yet.
    #[must_use]
    pub fn new(certs_d: Vec<PathBuf>, registries: Registries) -> Self {
        Self {
            certs_d: ArcSwap::from_pointee(certs_d),
            registries: ArcSwap::from_pointee(registries),
            environment: ArcSwap::from_pointee(Environment::of_this_process()),
            made: Mutex::default(),
        }
    }

    /// The rules in force.
    #[must_use]
    pub fn registries(&self) -> Arc<Registries> {
        self.registries.load_full()
    }

    /// Puts new rules in force; certificates are read anew too.
    pub fn reload(&self, certs_d: Vec<PathBuf>, registries: Registries) {
        self.certs_d.store(Arc::new(certs_d));
        self.registries.store(Arc::new(registries));
        self.locked().clear();
    }

    /// Whether the operator marked a host insecure.
    #[must_use]
    pub fn is_insecure(&self, host: &str) -> bool {
        self.registries.load().is_insecure_host(host)
    }

    /// The proxies of the daemon's environment.
    pub(in crate::image) fn environment(&self) -> Arc<Environment> {
        self.environment.load_full()
    }

    /// Takes other proxies than those of this process.
    #[cfg(test)]
    pub(in crate::image) fn set_environment(&self, environment: Environment) {
        self.environment.store(Arc::new(environment));
        self.locked().clear();
    }

    /// The client for a host. It follows no redirect and retries nothing by itself.
    ///
    /// # Errors
    /// [`Failure::Tls`] when a certificate of the host cannot be used.
    pub(super) async fn client(self: &Arc<Self>, wanted: Wanted) -> Result<Made, Failure> {
        if let Some(made) = self.locked().get(&wanted) {
            return Ok(made.clone());
        }
        // Reads the certificates of the system and of the host.
        let clients = self.clone();
        let (wanted, made) = crate::task::blocking(move || {
            let made = clients.build(&wanted);
            (wanted, made)
        })
        .await;
        let made = made?;
        let mut all = self.locked();
        if all.len() >= MAX_CLIENTS {
            all.clear();
        }
        Ok(all.entry(wanted).or_insert(made).clone())
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<Wanted, Made>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn way(&self, wanted: &Wanted, scheme: &str) -> Way {
        match &wanted.proxy {
            Some(proxy) => Ok(Some(proxy.clone())),
            None => self.environment.load().proxy(scheme, &wanted.host).map(Option::<&Proxy>::cloned),
        }
    }

    fn build(&self, wanted: &Wanted) -> Result<Made, Failure> {
        let Wanted { host, named: folder_name, tls, dial, .. } = wanted;
        let (https, http) = (self.way(wanted, "https"), self.way(wanted, "http"));
        let mut builder = Client::builder()
            .user_agent(concat!("cricket/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(*dial)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .tcp_keepalive(Duration::from_secs(30))
            // Its own reading of the environment has loopback addresses go by a proxy.
            .no_proxy();
        let unusable = |_| Failure::Proxy("the HTTP library refuses its URL".to_owned());
        if let Ok(Some(proxy)) = &https {
            builder = builder.proxy(reqwest::Proxy::https(proxy.whole()).map_err(unusable)?);
        }
        if let Ok(Some(proxy)) = &http {
            builder = builder.proxy(reqwest::Proxy::http(proxy.whole()).map_err(unusable)?);
        }
        let named = |path: &Path, error: io::Error| Failure::Tls(format!("{}: {error}", path.display()));
        let mut all = Vec::new();
        // What hosts.toml names counts before what lies in folders.
        for path in &tls.authorities {
            all.push((path.clone(), Found::authority(read_pem(path).map_err(|error| named(path, error))?)));
        }
        if let Some((cert, key)) = &tls.client {
            all.push((cert.clone(), Found::identity(cert, key.as_deref()).map_err(|error| named(cert, error))?));
        }
        for folder in self.certs_d.load().iter() {
            for name in folder_names(folder_name) {
                let folder = folder.join(name);
                let found = read_folder(&folder).map_err(|error| named(&folder, error))?;
                all.push((folder, found));
            }
        }
        let mut shown: Option<Arc<Path>> = None;
        for (path, found) in all {
            let bad = |what: &str| Failure::Tls(format!("{}: a {what} for {host} is not valid PEM", path.display()));
            let mut authorities = Vec::new();
            for pem in &found.authorities {
                let read = Certificate::from_pem_bundle(pem).ok().filter(|read| !read.is_empty());
                authorities.extend(read.ok_or_else(|| bad("certificate authority"))?);
            }
            if !authorities.is_empty() {
                builder = builder.tls_certs_merge(authorities);
            }
            if let Some(pem) = found.identity.filter(|_| shown.is_none()) {
                builder = builder.identity(Identity::from_pem(&pem).map_err(|_| bad("client certificate or key"))?);
                shown = Some(path.as_path().into());
            }
        }
        if tls.unverified {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        let refused = |_| match &shown {
            Some(path) => format!("{}: the client certificate for {host} and its key do not fit", path.display()),
            None => "the TLS library refuses its settings".to_owned(),
        };
        let client = builder.build().map_err(|error| Failure::Tls(refused(error)))?;
        Ok(Made { client, identity: shown, strict: !tls.unverified, https, http })
    }
}

#[derive(Default)]
struct Found {
    authorities: Vec<Vec<u8>>,
    /// Certificate and key, one after the other.
    identity: Option<Vec<u8>>,
}

impl Found {
    fn authority(pem: Vec<u8>) -> Self {
        Self { authorities: vec![pem], identity: None }
    }

    /// A certificate and its key, which may be in one file.
    fn identity(cert: &Path, key: Option<&Path>) -> io::Result<Self> {
        let mut pem = read_pem(cert)?;
        pem.push(b'\n');
        if let Some(key) = key {
            pem.extend(read_pem(key)?);
        }
        Ok(Self { authorities: Vec::new(), identity: Some(pem) })
    }
}

/// The names that a host's folder may have: `host:port`, and `host_port_` as containerd also has it. Docker Hub's is that of its
/// images, as in every tool that has such folders, or that of its registry.
fn folder_names(host: &str) -> impl Iterator<Item = String> {
    let other = match host.rsplit_once(':') {
        _ if host == DOCKER_HUB => Some(DOCKER_HUB_REGISTRY.to_owned()),
        Some((name, port)) => Some(format!("{name}_{port}_")),
        None => None,
    };
    std::iter::once(host.to_owned()).chain(other)
}

fn read_folder(folder: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(found);
        }
        Err(error) => return Err(error),
    };
    let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => found.authorities.push(read_pem(&path)?),
            Some("cert") if found.identity.is_none() => {
                found.identity = Found::identity(&path, Some(&path.with_extension("key")))?.identity;
            }
            _ => {}
        }
    }
    Ok(found)
}

fn read_pem(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_PEM).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_certificates_may_be_called_as_with_others() {
        for (host, want) in [
            ("a.lan", vec!["a.lan"]),
            ("a.lan:5000", vec!["a.lan:5000", "a.lan_5000_"]),
            ("docker.io", vec!["docker.io", "registry-1.docker.io"]),
        ] {
            assert_eq!(folder_names(host).collect::<Vec<_>>(), want);
        }
    }
}
