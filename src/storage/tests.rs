//! Tests of the store, and what the tests of its parts share.

pub(crate) mod builder;
pub(crate) mod scan;

mod large;
mod layers;
mod reading;
mod reuse;
mod rootfs;
mod whiteouts;

use super::{Compression, Digest, Limits, Storage, StorageOptions};

/// A store in a temporary directory.
pub(super) struct Fixture {
    pub temp: tempfile::TempDir,
    pub storage: Storage,
}

impl Fixture {
    pub(super) fn new() -> anyhow::Result<Self> {
        let temp = tempfile::tempdir()?;
        let storage = Storage::open(Self::options(temp.path()))?;
        Ok(Self { temp, storage })
    }

    pub(super) fn options(base: &std::path::Path) -> StorageOptions {
        StorageOptions { images: base.join("images"), containers: base.join("containers") }
    }

    /// The store as the next daemon finds it.
    pub(super) fn reopened(&self) -> anyhow::Result<Storage> {
        Ok(Storage::open(Self::options(self.temp.path()))?)
    }

    /// Puts uncompressed layers into the store, each upon the one before; gives their chain ids, base first.
    pub(super) fn add(&self, layers: &[Vec<u8>]) -> anyhow::Result<Vec<Digest>> {
        let mut chains: Vec<Digest> = Vec::new();
        let mut staged = Vec::new();
        for layer in layers {
            let diff_id = Digest::of(layer);
            let chain = Digest::chain(chains.last(), &diff_id);
            let limits = Limits::default();
            staged.push(self.storage.stage_layer(&chain, &diff_id, Compression::None, &layer[..], &limits)?);
            chains.push(chain);
        }
        self.storage.commit_layers(staged)?;
        Ok(chains)
    }

    pub(super) fn staging_is_empty(&self) -> bool {
        std::fs::read_dir(self.temp.path().join("images/staging")).is_ok_and(|mut entries| entries.next().is_none())
    }

    pub(super) fn diff(&self, chain: &Digest) -> std::path::PathBuf {
        self.temp.path().join("images/layers").join(chain.hex()).join("diff")
    }
}

/// Runs in a mount namespace of its own, with nothing left behind. Threads that it starts share it.
pub(crate) fn private(work: impl FnOnce() -> anyhow::Result<()> + Send + 'static) -> anyhow::Result<()> {
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
        crate::sys::mount::make_private(std::path::Path::new("/"), true)?;
        work()
    })
    .join()
    .expect("the thread ends")
}
