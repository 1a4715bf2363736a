//! No damage, no full disk and no failed write ends the table of images.

use super::*;
use crate::storage::tests::builder::Seeded;
use std::collections::BTreeSet;

use anyhow::Context as _;

fn record(n: u8) -> (Digest, StoredRecord) {
    let record = StoredRecord {
        manifest: Digest::of(&[n]),
        documents: BTreeSet::from([Digest::of(&[n, 1])]),
        chain: vec![Digest::of(&[n, 2])],
        repo_tags: BTreeSet::from([format!("registry.example/app:v{n}")]),
        repo_digests: BTreeSet::new(),
        size: u64::from(n),
    };
    (Digest::of(&[n, 3]), record)
}

/// For commits that come after none that failed.
fn none() -> Records {
    unreachable!("the file is open")
}

#[test]
fn no_damage_to_the_file_stops_the_daemon() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("db.redb");
    let (database, _) = Database::open(dir.path())?;
    for n in 0..40 {
        database.commit(&[record(n)], &[], none)?;
    }
    drop(database);
    let (database, found) = Database::open(dir.path())?;
    assert_eq!((found.records.len(), found.unreadable.len(), found.note), (40, 0, None));
    drop(database);
    let whole = std::fs::read(&path)?;
    for bytes in damaged(&whole) {
        std::fs::write(&path, &bytes)?;
        let (database, found) = Database::open(dir.path())?;
        // Whatever the file has lost, the copies have.
        for n in 0..40 {
            let (id, stored) = record(n);
            assert_eq!(found.records.get(&id), Some(&stored), "{:?}", found.note);
        }
        assert!(found.records.len() <= 41 && found.unreadable.is_empty());
        database.commit(&[record(50)], &[], none)?;
    }
    Ok(())
}

/// The file cut off, with single bits turned, with whole pages of noise, and with random bytes at random places.
fn damaged(whole: &[u8]) -> Vec<Vec<u8>> {
    let mut random = Seeded(40);
    let mut damaged: Vec<Vec<u8>> = vec![Vec::new(), whole[..whole.len() - 1].to_vec()];
    for page in (0..whole.len()).step_by(4096) {
        damaged.push(whole[..page].to_vec());
        let mut noise = whole.to_vec();
        let end = (page + 4096).min(whole.len());
        noise[page..end].fill_with(|| random.next().to_le_bytes()[0]);
        damaged.push(noise);
    }
    for at in (0..whole.len()).step_by(whole.len() / 100).chain(0..300) {
        let mut bytes = whole.to_vec();
        bytes[at] ^= 0x5a;
        damaged.push(bytes);
    }
    for _ in 0..200 {
        let mut bytes = whole.to_vec();
        for _ in 0..=random.below(40) {
            let at = usize::try_from(random.below(whole.len() as u64)).expect("an index");
            bytes[at] = random.next().to_le_bytes()[0];
        }
        damaged.push(bytes);
    }
    damaged
}

#[test]
fn copies_are_asked_only_when_the_file_is_at_fault() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (database, _) = Database::open(dir.path())?;
    database.commit(&[record(1), record(2)], &[], none)?;
    let folder = dir.path().join("records");
    let kept = std::fs::read(folder.join(record(2).0.hex()))?;
    database.commit(&[], &[record(2).0.to_string()], none)?;
    assert_eq!(std::fs::read_dir(&folder)?.count(), 1);
    drop(database);
    // A copy that a power cut brought back, one that is half written, and one that is missing.
    std::fs::write(folder.join(record(2).0.hex()), &kept)?;
    std::fs::write(folder.join(record(3).0.hex()), &kept[..kept.len() / 2])?;
    std::fs::remove_file(folder.join(record(1).0.hex()))?;
    let (database, found) = Database::open(dir.path())?;
    assert_eq!((found.records.into_keys().collect::<Vec<_>>(), found.recalled), (vec![record(1).0], 0));
    assert_eq!(std::fs::read_dir(&folder)?.count(), 1);
    drop(database);
    // Half a copy, and one under the name of another, are none.
    std::fs::write(folder.join(record(3).0.hex()), &kept[..kept.len() / 2])?;
    std::fs::write(folder.join(record(4).0.hex()), &kept)?;
    std::fs::write(dir.path().join("db.redb"), "no database")?;
    let (_database, found) = Database::open(dir.path())?;
    assert_eq!((found.records.into_keys().collect::<Vec<_>>(), found.recalled), (vec![record(1).0], 1));
    assert!(found.note.is_some());
    Ok(())
}

#[test]
fn a_file_that_ends_the_daemon_is_set_aside() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (database, _) = Database::open(dir.path())?;
    database.commit(&[record(1)], &[], none)?;
    drop(database);
    std::fs::write(dir.path().join("db.opening"), "1")?;
    let (database, found) = Database::open(dir.path())?;
    assert_eq!((found.records.len(), found.note), (1, None));
    drop(database);
    std::fs::write(dir.path().join("db.opening"), "2")?;
    let (_database, found) = Database::open(dir.path())?;
    assert_eq!((found.records.len(), found.recalled, found.note.is_some()), (1, 1, true));
    assert!(!dir.path().join("db.opening").exists());
    Ok(())
}

#[test]
fn a_folder_in_place_of_the_file_is_set_aside() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (database, _) = Database::open(dir.path())?;
    database.commit(&[record(1)], &[], none)?;
    drop(database);
    for name in ["db.redb", "db.redb.new", "db.redb.broken-7"] {
        let path = dir.path().join(name);
        let _ = std::fs::remove_file(&path);
        std::fs::create_dir(&path)?;
        std::fs::write(path.join("x"), "")?;
    }
    let (_database, found) = Database::open(dir.path())?;
    assert_eq!((found.records.len(), found.recalled, found.note.is_some()), (1, 1, true));
    assert!(dir.path().join("db.redb.broken-0/x").exists());
    Ok(())
}

/// A disk that damages the file again and again does not fill up with what was set aside.
#[test]
fn what_is_set_aside_has_an_end() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    for round in 0..20 {
        std::fs::write(dir.path().join("db.redb"), format!("no database {round}"))?;
        let (_database, found) = Database::open(dir.path())?;
        assert!(found.note.is_some());
    }
    let aside = |n: usize| std::fs::read_to_string(dir.path().join(format!("db.redb.broken-{n}")));
    let kept: Vec<String> = (0..8).map(aside).collect::<Result<_, _>>()?;
    assert_eq!((&*kept[0], &*kept[7]), ("no database 0", "no database 19"));
    assert!(aside(8).is_err());
    Ok(())
}

/// A file system of `size` bytes, filled and freed at will. tmpfs has no spare blocks for what was asked for before.
struct Small(tempfile::TempDir);

impl Small {
    fn new(size: u64) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        crate::sys::mount::tmpfs(dir.path(), size, 0o700, (0, 0))?;
        Ok(Self(dir))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    /// Leaves not one block.
    fn fill(&self) -> anyhow::Result<()> {
        use std::io::Write as _;
        let mut file = std::fs::File::options().create(true).append(true).open(self.filler())?;
        while file.write_all(&[1; 4096]).is_ok() {}
        Ok(())
    }

    fn free(&self) -> anyhow::Result<()> {
        Ok(std::fs::remove_file(self.filler())?)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = crate::sys::mount::detach(self.path());
    }
}

/// So large a record that fifty of them fit no small disk.
fn large(n: u8) -> (Digest, StoredRecord) {
    let (id, stored) = record(n);
    let tags = (0..4000).map(|tag| format!("registry.example/{}:{n}-{tag}", "x".repeat(100)));
    (id, StoredRecord { repo_tags: tags.collect(), ..stored })
}

/// The library takes no write any more after one that failed. Images could not be removed then until the next start, and
/// that is what a node with a full disk has to do.
#[test]
#[ignore = "needs root"]
fn a_write_that_failed_fails_no_other() -> anyhow::Result<()> {
    crate::storage::tests::private(|| {
        let disk = Small::new(16 << 20)?;
        let (database, _) = Database::open(disk.path())?;
        let mut known = Records::new();
        let both = [record(1), record(2)];
        database.commit(&both, &[], none)?;
        known.extend(both);
        disk.fill()?;
        let many: Vec<_> = (10..60).map(large).collect();
        for gone in [1, 2] {
            match database.commit(&many, &[], || known.clone()) {
                Err(ImageError::Database { source, .. }) => anyhow::ensure!(file::is_full(&source), "{source}"),
                done => anyhow::bail!("25 MB in 16: {done:?}"),
            }
            // The disk is still full.
            let gone = record(gone).0;
            database.commit(&[], &[gone.to_string()], || known.clone()).with_context(|| format!("removing {gone}"))?;
            known.remove(&gone);
        }
        drop(database);
        let (database, found) = Database::open(disk.path())?;
        anyhow::ensure!(found.records == known && found.note.is_none(), "{:?}", found.note);
        disk.free()?;
        for record in many.into_iter().take(12) {
            database.commit(std::slice::from_ref(&record), &[], || known.clone())?;
            known.extend([record]);
        }
        drop(database);
        let (_database, found) = Database::open(disk.path())?;
        anyhow::ensure!(found.records == known && known.len() == 12, "{} records", found.records.len());
        Ok(())
    })
}

/// Whatever is on a full disk, a start reads what can be read, and the first write that has room sets all right.
#[test]
#[ignore = "needs root"]
fn a_start_needs_no_room() -> anyhow::Result<()> {
    crate::storage::tests::private(|| {
        type Damage = fn(&Path) -> std::io::Result<()>;
        let ways: [(&str, Damage); 4] = [
            ("whole", |_| Ok(())),
            ("with holes, as versions before made it", |path| {
                let bytes = std::fs::read(path)?;
                let file = std::fs::File::create(path)?;
                for (at, page) in bytes.chunks(4096).enumerate().filter(|(_, page)| page.iter().any(|byte| *byte != 0))
                {
                    std::os::unix::fs::FileExt::write_all_at(&file, page, at as u64 * 4096)?;
                }
                file.set_len(bytes.len() as u64)
            }),
            ("damaged", |path| std::fs::write(path, "no database")),
            ("missing", |path| std::fs::remove_file(path)),
        ];
        for (way, damage) in ways {
            let disk = Small::new(8 << 20)?;
            let (database, _) = Database::open(disk.path())?;
            database.commit(&[record(1), record(2)], &[], none)?;
            drop(database);
            damage(&disk.path().join("db.redb"))?;
            disk.fill()?;
            let (database, found) = Database::open(disk.path())?;
            let known = Records::from([record(1), record(2)]);
            anyhow::ensure!(found.records == known, "{way}: {:?}", found.note);
            // There may or may not be room for this; if there is none, it is said.
            let removed = database.commit(&[], &[record(1).0.to_string()], || known.clone());
            anyhow::ensure!(removed.is_ok() || way != "whole", "{way}: {removed:?}");
            disk.free()?;
            database.commit(&[record(3)], &[record(1).0.to_string()], || known.clone())?;
            drop(database);
            let (_database, found) = Database::open(disk.path())?;
            let ids: Vec<Digest> = Records::from([record(2), record(3)]).into_keys().collect();
            anyhow::ensure!(found.records.into_keys().collect::<Vec<_>>() == ids, "{way}: after a write");
        }
        Ok(())
    })
}

#[test]
fn a_place_that_cannot_be_read_is_damage_and_a_full_disk_is_none() {
    for (errno, broken) in [
        (libc::EIO, true),
        (libc::EUCLEAN, true),
        (libc::EBADMSG, true),
        (libc::EISDIR, true),
        (libc::ENOSPC, false),
        (libc::EDQUOT, false),
        (libc::EROFS, false),
        (libc::EACCES, false),
        (libc::EMFILE, false),
        (libc::ENOMEM, false),
    ] {
        let error = redb::Error::Io(std::io::Error::from_raw_os_error(errno));
        assert_eq!(file::is_broken(&error), broken, "{error}");
    }
}
