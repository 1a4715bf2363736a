//! When what is unpacked reaches the disk, and what becomes of it if the disk refuses.

use anyhow::ensure;

use super::disk::Disk;
use super::power_cut::empty_disk;
use super::until;
use crate::storage::tests::builder::{Layer, Seeded};
use crate::storage::{Compression, Digest, Limits, StagedLayer, Storage, StorageOptions};

/// A block that is found again on the disk.
fn block(seed: u64) -> Vec<u8> {
    let mut random = Seeded(seed);
    (0..4096).map(|_| random.next().to_le_bytes()[0]).collect()
}

fn stage(storage: &Storage, content: &[u8]) -> anyhow::Result<StagedLayer> {
    let archive = Layer::new().file("file", content).done();
    let digest = Digest::of(&archive);
    Ok(storage.stage_layer(&digest, &digest, Compression::None, &archive[..], &Limits::default())?)
}

/// Runs `work` with a store on a disk of its own.
fn on_a_disk(work: impl AsyncFnOnce(&Storage, &Disk) -> anyhow::Result<()> + Send + 'static) -> anyhow::Result<()> {
    crate::storage::tests::private(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(async {
            let temp = tempfile::tempdir()?;
            let disk = Disk::serve(empty_disk(temp.path().join("disk")).await?)?;
            let mounted = disk.mount().await?;
            let (images, containers) = (mounted.path().join("images"), mounted.path().join("containers"));
            let storage = Storage::open(StorageOptions { images, containers })?;
            work(&storage, &disk).await?;
            drop(storage);
            mounted.unmount().await
        })
    })
}

#[test]
#[ignore = "needs root"]
fn unpacked_portions_reach_the_disk_before_the_commit() -> anyhow::Result<()> {
    on_a_disk(async |storage, disk| {
        storage.write_early_each(1 << 20);
        let small = stage(storage, &block(1))?;
        let first = block(2);
        // All of it comes in buffers of a quarter of a megabyte.
        let large = stage(storage, &[&first[..], &vec![0; 3 << 20]].concat())?;
        until(|| disk.holds(&first)).await;
        ensure!(disk.holds(&block(1)), "a portion is of all layers together");
        storage.commit_layers(vec![small, large])?;
        Ok(())
    })
}

/// The kernel tells each open file once of a write that failed. Two pulls that asked by the same file had one of them told.
#[test]
#[ignore = "needs root"]
fn a_write_that_failed_fails_every_commit_that_it_may_concern() -> anyhow::Result<()> {
    on_a_disk(async |storage, disk| {
        let bad = block(3);
        disk.refuse(&bad);
        let lost = stage(storage, &bad)?;
        let beside = stage(storage, &block(4))?;
        let (lost_id, beside_id) = (lost.chain().clone(), beside.chain().clone());
        ensure!(storage.commit_layers(vec![beside]).is_err(), "the disk did not refuse");
        ensure!(storage.commit_layers(vec![lost]).is_err(), "a layer that is not on the disk was committed");
        ensure!(!storage.has_layer(&lost_id) && !storage.has_layer(&beside_id));
        // Once the disk takes it, all is well again.
        disk.refuse(&[]);
        let again = stage(storage, &bad)?;
        storage.commit_layers(vec![again])?;
        ensure!(storage.has_layer(&lost_id) && disk.holds(&bad));
        Ok(())
    })
}
