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

/// What a client is made for: host, TLS settings, and how long a connection may take to stand.
type Key = (String, Tls, Duration);

/// A client, and the file of the certificate that it shows.
#[derive(Debug, Clone)]
pub(super) struct Made {
    pub client: Client,
    pub identity: Option<Arc<Path>>,
}

/// The clients of all hosts met so far.
#[derive(Debug)]
pub struct Clients {
    certs_d: ArcSwap<Vec<PathBuf>>,
    registries: ArcSwap<Registries>,
    made: Mutex<HashMap<Key, Made>>,
}

impl Clients {
    /// No client yet.
    #[must_use]
    pub fn new(certs_d: Vec<PathBuf>, registries: Registries) -> Self {
        Self {
            certs_d: ArcSwap::from_pointee(certs_d),
            registries: ArcSwap::from_pointee(registries),
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

    /// The client for a host. It follows no redirect and retries nothing by itself.
    ///
    /// # Errors
    /// [`Failure::Tls`] when the host's certificates cannot be used.
    pub(super) async fn for_host(self: &Arc<Self>, host: &str, tls: &Tls, dial: Duration) -> Result<Made, Failure> {
        let key = (host.to_owned(), tls.clone(), dial);
        if let Some(made) = self.locked().get(&key) {
            return Ok(made.clone());
        }
        // Reads the certificates of the system and of the host.
        let (clients, wanted) = (self.clone(), key.clone());
        let made = crate::task::blocking(move || clients.build(&wanted)).await?;
        let mut all = self.locked();
        if all.len() >= MAX_CLIENTS {
            all.clear();
        }
        Ok(all.entry(key).or_insert(made).clone())
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<Key, Made>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn build(&self, (host, tls, dial): &Key) -> Result<Made, Failure> {
        let mut builder = Client::builder()
            .user_agent(concat!("cricket/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(*dial)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .tcp_keepalive(Duration::from_secs(30));
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
            for name in folder_names(host) {
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
        Ok(Made { client, identity: shown })
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

/// The names that a host's folder may have: `host:port`, and `host_port_` as containerd also has it.
fn folder_names(host: &str) -> impl Iterator<Item = String> {
    let other = host.rsplit_once(':').map(|(name, port)| format!("{name}_{port}_"));
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
