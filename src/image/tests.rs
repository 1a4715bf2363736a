//! The image store against registries of our own making, on loopback.

mod access;
mod advisories;
mod artifacts;
mod challenges;
mod clocks;
mod collector;
mod disk;
mod full;
mod hostile;
mod lifecycle;
mod night;
mod places;
mod power_cut;
mod proxies;
mod real;
mod referrers;
mod resume;
mod reuse;
pub(crate) mod server;
mod sharing;
mod stored;
mod trust;
mod writeback;

use std::sync::Arc;
use std::time::Duration;

use super::layers::fake::FakeLayers;
use super::*;
use server::{Registry, TestImage};

/// A policy that lets everything in.
pub(crate) const ANYTHING: &str = r#"{"default":[{"type":"insecureAcceptAnything"}]}"#;

/// An image store in a folder of its own.
pub(crate) struct Room {
    pub dir: tempfile::TempDir,
    pub layers: Arc<FakeLayers>,
    pub images: Images,
}

impl Room {
    /// A store under a `registries.conf`. Its clocks are short.
    pub(crate) async fn new(conf: &str) -> anyhow::Result<Self> {
        Self::with(conf, &[]).await
    }

    pub(crate) async fn with(conf: &str, pinned: &[&str]) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("registries.conf"), conf)?;
        let layers = Arc::new(FakeLayers::default());
        let images = Self::open(dir.path(), layers.clone(), pinned).await?;
        Ok(Self { dir, layers, images })
    }

    /// A store in which these registries are insecure, as all of ours speak plain HTTP.
    pub(crate) async fn trusting(registries: &[&Registry]) -> anyhow::Result<Self> {
        Self::new(&insecure(registries)).await
    }

    async fn open(path: &std::path::Path, layers: Arc<FakeLayers>, pinned: &[&str]) -> anyhow::Result<Images> {
        let config = settings(path, pinned);
        if !config.signature_policy.exists() {
            std::fs::write(&config.signature_policy, ANYTHING)?;
        }
        let options = ImagesOptions { root: path.join("images"), config: config.clone() };
        let images = Images::open(options, layers).await?;
        let patience = Patience {
            progress: Duration::from_millis(500),
            least_rate: 0,
            retries: 2,
            backoff: Duration::from_millis(1),
            max_wait: Duration::from_secs(2),
        };
        images.0.settings.store(Arc::new(Settings { patience, ..Settings::of(&config) }));
        Ok(images)
    }

    /// The same folder after a restart of the daemon.
    pub(crate) async fn reopen(self) -> anyhow::Result<Self> {
        let Self { dir, layers, images } = self;
        // Released leases run in tasks of their own; the database is free when the last clone is gone.
        let weak = Arc::downgrade(&images.0);
        drop(images);
        until(|| weak.strong_count() == 0).await;
        for _ in 0..1000 {
            // The count falls to zero just before the file is closed.
            match Self::open(dir.path(), layers.clone(), &[]).await {
                Ok(images) => return Ok(Self { dir, layers, images }),
                Err(error) if error.to_string().contains("already open") => tokio::task::yield_now().await,
                Err(error) => return Err(error),
            }
        }
        anyhow::bail!("the database stays locked")
    }

    pub(crate) async fn pull(&self, name: &str) -> Result<Arc<ImageRecord>, ImageError> {
        self.pull_as(name, None).await
    }

    pub(crate) async fn pull_as(&self, name: &str, auth: Option<AuthConfig>) -> Result<Arc<ImageRecord>, ImageError> {
        self.images.pull(PullRequest { reference: name.to_owned(), auth, namespace: None }).await
    }

    /// The text of the error that a pull must end in.
    pub(crate) async fn refused(&self, name: &str) -> String {
        match self.pull(name).await {
            Ok(_) => panic!("{name} was pulled"),
            Err(error) => error.to_string(),
        }
    }

    /// Nothing is half done: no image, no staged layer, no lease, no document, no flight.
    pub(crate) async fn assert_clean(&self) {
        until(|| self.layers.staged() == 0 && self.layers.leases() == 0).await;
        assert!(self.images.list(None).is_empty());
        assert_eq!(self.layers.count(), 0);
        let documents = std::fs::read_dir(self.dir.path().join("images/blobs/sha256")).expect("the folder").count();
        assert_eq!(documents, 0);
    }
}

pub(crate) fn settings(path: &std::path::Path, pinned: &[&str]) -> ImageSettings {
    ImageSettings {
        registries_conf: path.join("registries.conf"),
        registries_conf_dir: path.join("registries.conf.d"),
        certs_d: vec![path.join("certs.d")],
        auth_file: path.join("auth.json"),
        auth_dir: path.join("auth"),
        signature_policy: path.join("policy.json"),
        signature_policy_dir: path.join("policies"),
        pinned: pinned.iter().map(|pattern| (*pattern).to_owned()).collect(),
        ..ImageSettings::default()
    }
}

pub(crate) fn insecure(registries: &[&Registry]) -> String {
    registries.iter().map(|r| format!("[[registry]]\nlocation = \"{}\"\ninsecure = true\n", r.host())).collect()
}

/// Polls until something holds, for up to ten seconds.
pub(crate) async fn until(holds: impl Fn() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it did not come to hold");
}

/// A registry that serves one image as it should, under `app:v1`.
pub(crate) async fn good(seed: &str) -> (Registry, TestImage) {
    let image = TestImage::new(seed);
    let served = image.clone();
    let registry = Registry::start(move |request| served.answer(request, "app", &["v1"])).await;
    (registry, image)
}
