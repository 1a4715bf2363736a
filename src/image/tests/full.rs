//! A file system that runs out of blocks or of inodes at any moment of a pull and of an import.
//!
//! Whenever that is: the error says so, no part of the image shows, what it took is given back, and with room again the same
//! store takes the image. And an image can be removed while there is no room at all, since that is how there gets to be some.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use nix::mount::{MsFlags, mount};

use super::power_cut::archive;
use super::*;
use crate::image::tests::server::gzip;
use crate::storage::tests::builder::{Layer, Seeded};
use crate::storage::{Storage, StorageOptions};

/// Blocks are taken away down to none in steps of so many.
const STEP: u64 = 24;

/// A node on a small tmpfs.
struct Small {
    dir: tempfile::TempDir,
    registry: Registry,
    images: Images,
    saved: PathBuf,
    /// Blocks and inodes that are free while there is no image.
    rest: (u64, u64),
}

/// Some hundred files in two layers, two thirds of them small.
fn image() -> TestImage {
    let mut random = Seeded(11);
    let plain: Vec<Vec<u8>> = ["one", "two"]
        .iter()
        .map(|name| {
            let mut layer = Layer::new();
            for number in 0..60 {
                let size = *random.pick(&[100, 3000, 30_000]);
                let content: Vec<u8> = (0..size).map(|_| random.next().to_le_bytes()[0]).collect();
                layer = layer.dir(&format!("{name}{number}")).file(&format!("{name}{number}/file"), content);
            }
            layer.file(&format!(".wh.{name}"), "").done()
        })
        .collect();
    let diff_ids: Vec<Digest> = plain.iter().map(|bytes| Digest::of(bytes)).collect();
    let config = serde_json::json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).to_string().into_bytes();
    TestImage::assemble(plain.iter().map(|bytes| gzip(bytes)).collect(), diff_ids, config)
}

impl Small {
    async fn new() -> anyhow::Result<Self> {
        let image = image();
        let (dir, served) = (tempfile::tempdir()?, image.clone());
        let registry = Registry::start(move |request| served.answer(request, "app", &["v1"])).await;
        std::fs::write(dir.path().join("registries.conf"), insecure(&[&registry]))?;
        let config = settings(dir.path(), &[]);
        std::fs::write(&config.signature_policy, ANYTHING)?;
        let saved = dir.path().join("saved.tar");
        archive(&image, &saved)?;
        let disk = dir.path().join("disk");
        std::fs::create_dir(&disk)?;
        let options = "size=8m,nr_inodes=2000,mode=700";
        mount(Some("cricket-test-small"), &disk, Some("tmpfs"), MsFlags::empty(), Some(options))?;
        let options = StorageOptions { images: disk.join("images"), containers: disk.join("containers") };
        let storage = Storage::open(options)?;
        let options = ImagesOptions { root: disk.join("images"), config };
        let images = Images::open(options, Arc::new(storage)).await?;
        let mut small = Self { dir, registry, images, saved, rest: (0, 0) };
        // The database has its size from here on.
        small.bring(true).await?;
        small.remove().await?;
        small.rest = small.free();
        Ok(small)
    }

    fn disk(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn filler(&self) -> PathBuf {
        self.disk().join("filler")
    }

    /// Blocks of 4 KiB and inodes that are free.
    fn free(&self) -> (u64, u64) {
        let found = rustix::fs::statvfs(self.disk()).expect("it is mounted");
        (found.f_bfree, found.f_ffree)
    }

    /// Leaves so many blocks, and so many inodes. By what is free at rest: an attempt that failed may still make a folder in
    /// staging for a layer that nobody waits for, and removes it again.
    async fn leave(&self, blocks: u64, inodes: u64) -> anyhow::Result<()> {
        std::fs::create_dir(self.filler())?;
        let file = std::fs::File::create(self.filler().join("blocks"))?;
        for number in 2..self.rest.1 - inodes {
            std::fs::write(self.filler().join(number.to_string()), "")?;
        }
        let taken = (self.rest.0 - blocks) * 4096;
        let take = || taken == 0 || rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, taken).is_ok();
        until(|| take() && self.free() == (blocks, inodes)).await;
        Ok(())
    }

    fn refill(&self) -> anyhow::Result<()> {
        Ok(std::fs::remove_dir_all(self.filler())?)
    }

    async fn bring(&self, by_pull: bool) -> Result<(), ImageError> {
        if by_pull {
            let reference = self.registry.name("app:v1");
            self.images.pull(PullRequest { reference, auth: None, namespace: None }).await.map(drop)
        } else {
            self.images.import(&self.saved, None).await.map(drop)
        }
    }

    fn count(&self, folder: &str) -> usize {
        std::fs::read_dir(self.disk().join("images").join(folder)).map_or(0, Iterator::count)
    }

    async fn gone(&self) {
        until(|| ["layers", "staging", "blobs/sha256", "records"].iter().all(|folder| self.count(folder) == 0)).await;
        until(|| self.images.fs_usage().inodes == 0).await;
    }

    /// Removes the only image.
    async fn remove(&self) -> anyhow::Result<()> {
        let record = self.images.list(None).pop().context("no image")?;
        self.images.remove(record.id.as_str()).await?;
        self.gone().await;
        Ok(())
    }

    /// Tries with so much room; says whether it was enough.
    async fn with(&self, by_pull: bool, blocks: u64, inodes: u64) -> anyhow::Result<bool> {
        self.leave(blocks, inodes).await?;
        let brought = self.bring(by_pull).await;
        let fits = brought.is_ok();
        match brought {
            Ok(()) => {
                ensure!(self.images.list(None).len() == 1);
                // What is left of the room goes as well: a removal needs none.
                let rest = vec![1; usize::try_from(self.free().0 * 4096)?];
                let _ = std::fs::write(self.filler().join("blocks-too"), rest);
                self.remove().await.context("on a full disk")?;
            }
            Err(error) => {
                let text = error.to_string();
                ensure!(text.contains("No space left on device"), "{text}");
                ensure!(self.images.list(None).is_empty(), "a part of an image shows");
                self.gone().await;
                until(|| self.free() == (blocks, inodes)).await;
            }
        }
        self.refill()?;
        Ok(fits)
    }
}

async fn at_any_moment() -> anyhow::Result<()> {
    for by_pull in [true, false] {
        let small = Small::new().await?;
        let (all, inodes) = small.rest;
        let enough = (0..all / STEP).map(|step| step * STEP);
        let mut refused = 0;
        for blocks in enough {
            if small.with(by_pull, blocks, inodes - 4).await.with_context(|| format!("{by_pull}, {blocks} blocks"))? {
                break;
            }
            refused += 1;
        }
        ensure!(refused > 10, "{refused} steps were too small");
        let mut refused = 0;
        for left in (0..inodes - 4).step_by(7) {
            if small.with(by_pull, all - 200, left).await.with_context(|| format!("{by_pull}, {left} inodes"))? {
                break;
            }
            refused += 1;
        }
        ensure!(refused > 10, "{refused} steps were too few inodes");
        small.bring(by_pull).await?;
        let disk: &Path = &small.disk();
        let listed = small.images.list(None);
        drop(small.images);
        ensure!(listed.len() == 1);
        crate::sys::mount::detach(disk)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_disk_that_fills_up_at_any_moment_gets_its_room_back() -> anyhow::Result<()> {
    crate::storage::tests::private(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(at_any_moment())
    })
}
