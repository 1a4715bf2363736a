//! Mounting, measuring and removing the root file systems of containers.

use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use super::builder::{Attributes, Layer};
use super::*;
use crate::storage::StorageError;

#[test]
#[ignore = "needs root"]
fn a_root_file_system_shows_the_layers_and_keeps_set_uid() -> anyhow::Result<()> {
    private(|| {
        let fixture = Fixture::new()?;
        let suid = Attributes { mode: 0o4755, ..Attributes::default() };
        let base =
            Layer::new().raw(b'0', (b"su", b""), 0, b"", suid).file("etc/a", "base").file("etc/b", "base").dir("d/e");
        let top = Layer::new().file("etc/a", "top").file("etc/.wh.b", "").file("d/.wh..wh..opq", "").file("d/new", "");
        let chains = fixture.add(&[base.done(), top.done()])?;
        let target = fixture.temp.path().join("run/c1/rootfs");
        fixture.storage.mount_rootfs("c1", &chains, &target, None)?;
        fixture.storage.mount_rootfs("c1", &chains, &target, None)?;
        assert_eq!(crate::sys::mount::mount_points_below(&target)?.len(), 1, "the second call mounted nothing");
        assert_eq!(std::fs::read(target.join("etc/a"))?, b"top");
        assert!(!target.join("etc/b").exists() && !target.join("d/e").exists() && target.join("d/new").exists());
        assert_eq!(std::fs::metadata(&target)?.mode() & 0o7777, 0o755);
        assert_eq!(std::fs::metadata(target.join("su"))?.mode() & 0o7777, 0o4755);
        let flags = rustix::fs::statvfs(&target)?.f_flag;
        assert!(!flags.intersects(rustix::fs::StatVfsMountFlags::NOSUID | rustix::fs::StatVfsMountFlags::NODEV));
        std::fs::write(target.join("etc/written"), vec![b'x'; 100_000])?;
        let usage = fixture.storage.container_usage("c1")?;
        assert_eq!(usage.inodes, 2);
        assert!(usage.bytes >= 100_000, "{usage:?}");
        assert!(!fixture.diff(&chains[1]).join("etc/written").exists(), "a layer never changes");
        assert_eq!(fixture.storage.known_containers()?, ["c1"]);
        fixture.storage.unmount_rootfs(&target)?;
        fixture.storage.unmount_rootfs(&target)?;
        fixture.storage.unmount_rootfs(&target.join("missing"))?;
        assert!(!target.join("etc").exists());
        fixture.storage.remove_container("c1")?;
        fixture.storage.remove_container("c1")?;
        assert_eq!(fixture.storage.known_containers()?, Vec::<String>::new());
        assert!(fixture.storage.container_usage("c1").is_err());
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn an_image_of_no_layers_and_one_of_two_hundred_mount() -> anyhow::Result<()> {
    private(|| {
        let fixture = Fixture::new()?;
        let target = fixture.temp.path().join("scratch");
        fixture.storage.mount_rootfs("none", &[], &target, None)?;
        std::fs::write(target.join("file"), "x")?;
        fixture.storage.unmount_rootfs(&target)?;
        let layers: Vec<_> =
            (0..200).map(|n| Layer::new().file("top", n.to_string()).file(&format!("own-{n}"), "").done()).collect();
        let chains = fixture.add(&layers)?;
        let target = fixture.temp.path().join("many");
        fixture.storage.mount_rootfs("many", &chains, &target, None)?;
        assert_eq!(std::fs::read(target.join("top"))?, b"199");
        assert_eq!(fixture.storage.read_file(&chains, "top", 10)?.as_deref(), Some(&b"199"[..]));
        assert_eq!(std::fs::read_dir(&target)?.count(), 201);
        fixture.storage.unmount_rootfs(&target)?;
        Ok(())
    })
}

/// The kernel takes no notice of an opaque layer root, so the store leaves the layers below it out.
#[test]
#[ignore = "needs root"]
fn an_opaque_root_hides_all_layers_below() -> anyhow::Result<()> {
    private(|| {
        let fixture = Fixture::new()?;
        let base = Layer::new().file("hidden", "x").done();
        let middle = Layer::new().file(".wh..wh..opq", "").file("shown", "y").done();
        let chains = fixture.add(&[base, middle, Layer::new().file("top", "").done()])?;
        for storage in [fixture.storage.clone(), fixture.reopened()?] {
            assert_eq!(storage.read_file(&chains, "hidden", 10)?, None);
            assert_eq!(storage.read_file(&chains, "shown", 10)?.as_deref(), Some(&b"y"[..]));
        }
        let target = fixture.temp.path().join("rootfs");
        fixture.storage.mount_rootfs("c", &chains, &target, None)?;
        assert!(!target.join("hidden").exists() && target.join("shown").exists() && target.join("top").exists());
        fixture.storage.unmount_rootfs(&target)?;
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn another_mount_on_the_target_is_not_mistaken_for_ours() -> anyhow::Result<()> {
    private(|| {
        let fixture = Fixture::new()?;
        let target = fixture.temp.path().join("rootfs");
        std::fs::create_dir(&target)?;
        crate::sys::mount::tmpfs(&target, 1 << 20, 0o700, (0, 0))?;
        let mounted = fixture.storage.mount_rootfs("c", &[], &target, None);
        assert!(matches!(mounted, Err(StorageError::Busy { .. })), "{mounted:?}");
        crate::sys::mount::detach(&target)?;
        Ok(())
    })
}

#[test]
fn ids_that_are_no_plain_names_are_refused() -> anyhow::Result<()> {
    let fixture = Fixture::new()?;
    for id in ["", ".", "..", "../images", "a/b", "a\0b", ".hidden", &"x".repeat(201)] {
        assert!(matches!(fixture.storage.remove_container(id), Err(StorageError::ContainerId { .. })), "{id:?}");
        assert!(fixture.storage.mount_rootfs(id, &[], Path::new("/nonexistent"), None).is_err());
    }
    assert!(fixture.temp.path().join("images/layers").exists());
    let mode = std::fs::metadata(fixture.temp.path().join("containers"))?.permissions().mode();
    assert_eq!(mode & 0o7777, 0o700);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_volume_is_read_only_and_ends_at_the_image() -> anyhow::Result<()> {
    private(|| {
        let fixture = Fixture::new()?;
        let base = Layer::new().file("a/one", "one").file("a/gone", "").symlink("out", "/etc").entry(b'6', "fifo", "");
        let top = Layer::new().file("a/two", "two").file("a/.wh.gone", "");
        let chains = fixture.add(&[base.done(), top.done()])?;
        let target = fixture.temp.path().join("target");
        std::fs::create_dir(&target)?;
        for (chains, sub_path, want) in [
            (&chains[..], "", "a out fifo"),
            (&chains[..], "a", "one two"),
            (&chains[..1], "a/", "gone one"),
            (&chains[..0], "", ""),
        ] {
            let volume = fixture.storage.volume(chains, sub_path, None)?;
            assert!(volume.directory);
            crate::sys::mount::attach(volume.mount.as_fd(), &target)?;
            let mut found: Vec<_> = std::fs::read_dir(&target)?.flatten().map(|entry| entry.file_name()).collect();
            let mut want: Vec<_> = want.split_whitespace().collect();
            found.sort();
            want.sort_unstable();
            assert_eq!(found, want, "{sub_path:?}");
            if chains.len() > 1 {
                assert!(std::fs::write(target.join("x"), "").is_err(), "{sub_path:?} is writable");
            }
            assert!(crate::sys::mount::detach(&target)?);
        }
        for sub_path in ["none", "out", "../etc", "fifo", "a/one/x"] {
            let refused = fixture.storage.volume(&chains, sub_path, None);
            assert!(matches!(refused, Err(StorageError::VolumePath { .. })), "{sub_path}: {refused:?}");
        }
        assert!(!fixture.storage.volume(&chains, "a/one", None)?.directory);
        Ok(())
    })
}
