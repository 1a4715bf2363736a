//! Reading files out of an image: what the overlay would show, and never the host.

use std::os::fd::AsFd as _;
use std::path::Path;

use super::builder::{Layer, Seeded};
use super::*;
use crate::storage::{PathKind, StorageError};

const CAP: u64 = 1 << 20;

#[test]
fn files_are_read_through_symlinks_inside_the_image() -> anyhow::Result<()> {
    let fixture = Fixture::new()?;
    let base = Layer::new().dir("etc").file("etc/passwd", "base").file("etc/group", "group").symlink("lib", "usr/lib");
    let top =
        Layer::new().file("etc/passwd", "top").file("usr/lib/os-release", "os").symlink("etc/os", "../lib/os-release");
    let top = top.symlink("abs", "/etc/group").symlink("up", "../../../../etc/group").symlink("gone", "nowhere");
    let chains = fixture.add(&[base.done(), top.symlink("one", "two").symlink("two", "one").done()])?;
    let read = |path: &str| fixture.storage.read_file(&chains, path, CAP);
    for (path, want) in [
        ("/etc/passwd", Some("top")),
        ("etc/../etc/./passwd", Some("top")),
        ("/etc/group", Some("group")),
        ("/etc/os", Some("os")),
        ("/abs", Some("group")),
        ("/up", Some("group")),
        ("/../../etc/group", Some("group")),
        ("/gone", None),
        ("/missing/file", None),
        ("/etc/passwd/x", None),
    ] {
        assert_eq!(read(path)?.as_deref(), want.map(str::as_bytes), "{path}");
    }
    assert!(matches!(read("/one"), Err(StorageError::Links { .. })));
    assert!(matches!(read("/etc"), Err(StorageError::NotAFile { .. })));
    assert!(matches!(read("/"), Err(StorageError::NotAFile { .. })));
    let order = [chains[1].clone(), chains[0].clone()];
    assert!(matches!(fixture.storage.read_file(&order, "/x", CAP), Err(StorageError::Order { .. })));
    let unknown = [Digest::of(b"unknown")];
    assert!(matches!(fixture.storage.read_file(&unknown, "/x", CAP), Err(StorageError::Missing { .. })));
    Ok(())
}

#[test]
fn a_path_is_resolved_as_far_as_the_image_goes() -> anyhow::Result<()> {
    let fixture = Fixture::new()?;
    let base = Layer::new().dir("var").dir("run").file("file", "").symlink("var/run", "../run").symlink("p", "/proc");
    let top = Layer::new().symlink("two", "var/run/gone/../x").symlink("ring", "ring").symlink("up", "../../../p/self");
    let chains = fixture.add(&[base.done(), top.done()])?;
    for (path, want) in [
        ("/", "/"),
        ("/var/run/secrets/x", "/run/secrets/x"),
        ("/p", "/proc"),
        ("/p/self/attr", "/proc/self/attr"),
        ("/up", "/proc/self"),
        ("/two", "/run/x"),
        ("/none/../p", "/proc"),
        ("/none/./a//b", "/none/a/b"),
        ("/file/below", "/file/below"),
        ("/../../var", "/var"),
    ] {
        assert_eq!(fixture.storage.resolve(&chains, path)?, Path::new(want), "{path}");
    }
    assert!(matches!(fixture.storage.resolve(&chains, "/ring/x"), Err(StorageError::Links { .. })));
    Ok(())
}

#[test]
fn cve_2024_9676_a_symlinked_passwd_reaches_neither_host_nor_device() -> anyhow::Result<()> {
    let fixture = Fixture::new()?;
    let host = fixture.temp.path().join("host-secret");
    std::fs::write(&host, "secret")?;
    let target = host.display().to_string();
    let climbing = format!("../../../../../../../../../../..{target}");
    let image = Layer::new()
        .symlink("plain", &target)
        .symlink("climbing", &climbing)
        .symlink("magic", "/proc/self/root/etc/passwd")
        .symlink("zero", "/dev/zero")
        .entry(b'6', "fifo", "")
        .symlink("to-fifo", "fifo");
    let chains = fixture.add(&[image.done()])?;
    for path in ["plain", "climbing", "magic", "zero", &target] {
        assert_eq!(fixture.storage.read_file(&chains, path, CAP)?, None, "{path}");
    }
    for path in ["fifo", "to-fifo"] {
        assert!(matches!(fixture.storage.read_file(&chains, path, CAP), Err(StorageError::NotAFile { .. })), "{path}");
    }
    Ok(())
}

#[test]
fn cve_2025_4437_and_cve_2026_47262_a_large_file_is_refused_by_size() -> anyhow::Result<()> {
    let fixture = Fixture::new()?;
    let chains =
        fixture.add(&[Layer::new().file("etc/passwd", vec![b'x'; 2 << 20]).file("just", vec![b'y'; 100]).done()])?;
    let error = fixture.storage.read_file(&chains, "/etc/passwd", CAP).expect_err("too large");
    assert_eq!(error.to_string(), "\"/etc/passwd\" in the image is larger than 1048576 bytes");
    assert_eq!(fixture.storage.read_file(&chains, "just", 100)?.map(|bytes| bytes.len()), Some(100));
    assert!(fixture.storage.read_file(&chains, "just", 99).is_err());
    // A sparse file of a terabyte would be as large to its reader.
    let file = std::fs::File::options().write(true).open(fixture.diff(&chains[0]).join("just"))?;
    file.set_len(1 << 40)?;
    assert!(matches!(fixture.storage.read_file(&chains, "just", CAP), Err(StorageError::TooLarge { .. })));
    Ok(())
}

#[test]
fn kinds_are_told_without_following() -> anyhow::Result<()> {
    let fixture = Fixture::new()?;
    let base = Layer::new().dir("etc").symlink("dev", "/etc").file("file", "").entry(b'6', "fifo", "");
    let chains = fixture.add(&[base.done(), Layer::new().file("etc/x", "").done()])?;
    for (path, want) in [
        ("/", PathKind::Directory),
        ("/etc", PathKind::Directory),
        ("/etc/", PathKind::Directory),
        ("/dev", PathKind::Symlink),
        ("/dev/x", PathKind::File),
        ("file", PathKind::File),
        ("fifo", PathKind::Other),
        ("proc", PathKind::Missing),
    ] {
        assert_eq!(fixture.storage.path_kind(&chains, path)?, want, "{path}");
    }
    assert_eq!(fixture.storage.path_kind(&[], "/")?, PathKind::Missing);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn cve_2024_9676_devices_in_the_image_are_not_opened() -> anyhow::Result<()> {
    let fixture = Fixture::new()?;
    let chains = fixture.add(&[Layer::new().device("zero", (1, 5)).done()])?;
    assert!(matches!(fixture.storage.read_file(&chains, "/zero", CAP), Err(StorageError::NotAFile { .. })));
    Ok(())
}

/// The same questions to us and to the kernel's overlay of the same layers.
#[test]
#[ignore = "needs root"]
fn the_merged_view_is_that_of_the_overlay() -> anyhow::Result<()> {
    std::thread::spawn(|| -> anyhow::Result<()> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
        crate::sys::mount::make_private(std::path::Path::new("/"), true)?;
        (0..60).try_for_each(same_as_overlay)
    })
    .join()
    .expect("the thread ends")
}

const TARGETS: [&str; 5] = ["a", "/b", "../c", "b/../a", "../../../a/b"];

fn same_as_overlay(seed: u64) -> anyhow::Result<()> {
    let mut random = Seeded(seed);
    let names = ["a", "b", "c"];
    let path = |random: &mut Seeded| (0..=random.below(3)).map(|_| *random.pick(&names)).collect::<Vec<_>>().join("/");
    let fixture = Fixture::new()?;
    let layers: Vec<Vec<u8>> = (0..5)
        .map(|number| {
            // Of names within one layer, only those with directories above them.
            let mut layer = Layer::new();
            let mut kinds = std::collections::HashMap::new();
            for _ in 0..8 {
                let name = path(&mut random);
                let parents: Vec<&str> = name.match_indices('/').map(|(at, _)| &name[..at]).collect();
                if kinds.contains_key(&name) || parents.iter().any(|parent| kinds.get(*parent) == Some(&false)) {
                    continue;
                }
                for parent in parents {
                    kinds.insert(parent.to_owned(), true);
                }
                let (parent, base) = name.rsplit_once('/').map_or(("", &*name), |(parent, base)| (parent, base));
                let beside = |file: &str| if parent.is_empty() { file.to_owned() } else { format!("{parent}/{file}") };
                let kind = random.below(8);
                layer = match kind {
                    0..3 => layer.file(&name, format!("{number}{name}")),
                    3 => layer.dir(&name),
                    4 => layer.symlink(&name, random.pick::<&str>(&TARGETS)),
                    5 => layer.file(&beside(&format!(".wh.{base}")), ""),
                    6 => layer.file(&beside(".wh..wh..opq"), ""),
                    _ => layer.dir(&name).file(&format!("{name}/.wh..wh..opq"), ""),
                };
                if kind != 6 {
                    kinds.insert(name, kind == 3 || kind == 7);
                }
            }
            layer.done()
        })
        .collect();
    let chains = fixture.add(&layers)?;
    let target = fixture.temp.path().join("rootfs");
    fixture.storage.mount_rootfs("c", &chains, &target, None)?;
    let root = crate::sys::root::Root::open(&target)?;
    for question in 0..200 {
        let name = path(&mut random);
        let open = root.open_in_root(&name, rustix::fs::OFlags::RDONLY, 0);
        let want = open.ok().and_then(|fd| crate::sys::root::read_regular(fd, CAP).ok());
        let got = fixture.storage.read_file(&chains, &name, CAP).ok().flatten();
        assert_eq!(got, want, "seed {seed}, question {question}: {name}");
        if let Ok(fd) = root.open_in_root(&name, rustix::fs::OFlags::PATH, 0) {
            let led = std::fs::read_link(crate::sys::root::magic_path(fd.as_fd()))?;
            let want = Path::new("/").join(led.strip_prefix(&target)?);
            assert_eq!(fixture.storage.resolve(&chains, &name)?, want, "seed {seed}: {name}");
        }
        let want = match target.join(&name).symlink_metadata() {
            // Parents that are symlinks lead elsewhere on the host.
            _ if name.match_indices('/').any(|(at, _)| target.join(&name[..at]).is_symlink()) => continue,
            Err(_) => PathKind::Missing,
            Ok(meta) if meta.is_dir() => PathKind::Directory,
            Ok(meta) if meta.is_symlink() => PathKind::Symlink,
            Ok(_) => PathKind::File,
        };
        assert_eq!(fixture.storage.path_kind(&chains, &name)?, want, "seed {seed}: {name}");
    }
    drop(root);
    fixture.storage.unmount_rootfs(&target)?;
    Ok(())
}
