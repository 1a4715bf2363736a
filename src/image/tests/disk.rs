//! A disk in memory that remembers what was written in which order, and when it was told to flush.
//!
//! The kernel's loop device makes a disk of a file and a flush of that disk an `fsync` of the file. Here the file is the one
//! file of a FUSE file system that this process serves, so each write and each flush comes by. What a disk would hold
//! had the power gone at some moment can then be made from the record.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::storage::tests::builder::Seeded;
use crate::sys::exec::{Exec, run};

/// What happened to the disk.
#[derive(Debug)]
pub(super) enum Operation {
    Write { offset: usize, bytes: Vec<u8> },
    Flush,
}

#[derive(Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    log: Vec<Operation>,
    bad: Vec<u8>,
}

/// The block that holds the superblock of ext4, from byte 1024 on.
const SUPERBLOCK: std::ops::Range<usize> = 0..4096;

/// A disk that is being served.
#[derive(Debug)]
pub(super) struct Disk {
    content: Arc<Mutex<Content>>,
    folder: tempfile::TempDir,
    server: Option<JoinHandle<()>>,
}

/// A file system on a disk, mounted.
#[derive(Debug)]
pub(super) struct Mounted(PathBuf);

/// Runs a program to its good end.
pub(super) async fn must(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let exec = Exec {
        program: program.into(),
        args: args.iter().map(OsString::from).collect(),
        env: vec![("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into()), ("LC_ALL".into(), "C.UTF-8".into())],
        stdin: Vec::new(),
        timeout: Duration::from_secs(60),
        output_cap: 8192,
    };
    let output = run(exec).await?;
    anyhow::ensure!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl Disk {
    /// Serves a disk of this content. Its file, and what is mounted from it, is in the mount namespace of the caller.
    pub(super) fn serve(bytes: Vec<u8>) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("disk");
        File::create(&file)?;
        std::fs::create_dir(folder.path().join("mounted"))?;
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").context("/dev/fuse")?;
        let options = format!("fd={},rootmode=100600,user_id=0,group_id=0", device.as_raw_fd());
        mount(Some("cricket-test-disk"), &file, Some("fuse"), MsFlags::empty(), Some(options.as_str()))
            .context("FUSE cannot be mounted")?;
        let content = Arc::new(Mutex::new(Content { bytes, ..Content::default() }));
        let served = content.clone();
        let server = std::thread::spawn(move || serve(&device, &served));
        Ok(Self { content, folder, server: Some(server) })
    }

    /// Mounts the ext4 file system that the disk holds; the kernel replays its journal.
    pub(super) async fn mount(&self) -> anyhow::Result<Mounted> {
        let at = self.folder.path().join("mounted");
        let file = self.folder.path().join("disk");
        must("mount", &["-t", "ext4", "-o", "loop", &file.to_string_lossy(), &at.to_string_lossy()]).await?;
        Ok(Mounted(at))
    }

    /// How much has happened until now.
    pub(super) fn position(&self) -> usize {
        lock(&self.content).log.len()
    }

    /// Writes with these bytes in them fail from now on.
    pub(super) fn refuse(&self, bytes: &[u8]) {
        lock(&self.content).bad = bytes.to_vec();
    }

    /// Whether these bytes, on a place that is a multiple of their number, are on the disk.
    pub(super) fn holds(&self, bytes: &[u8]) -> bool {
        lock(&self.content).bytes.chunks(bytes.len()).any(|part| part == bytes)
    }

    /// What has happened; forgotten here.
    pub(super) fn take_log(&self) -> Vec<Operation> {
        std::mem::take(&mut lock(&self.content).log)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The server's thread ends with the last use of its file, which may be a file system of a test that failed.
        let gone = umount2(&self.folder.path().join("disk"), MntFlags::MNT_DETACH);
        if let (Ok(()), Some(server), false) = (gone, self.server.take(), std::thread::panicking()) {
            let _ = server.join();
        }
    }
}

impl Mounted {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Unmounts, once the last file of it is closed.
    pub(super) async fn unmount(self) -> anyhow::Result<()> {
        for _ in 0..2000 {
            match umount2(&self.0, MntFlags::empty()) {
                Err(nix::errno::Errno::EBUSY) => tokio::time::sleep(Duration::from_millis(5)).await,
                done => return Ok(done?),
            }
        }
        anyhow::bail!("{} stays busy", self.0.display())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Nothing to do when it is unmounted already.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// What the disk holds when the power goes after so many operations: all that was flushed. What was not is there as well,
/// or, with `lost`, a random part of it, in sectors, in blocks or in whole writes, but never a part of the superblock.
pub(super) fn cut(base: &[u8], log: &[Operation], at: usize, lost: Option<&mut Seeded>) -> Vec<u8> {
    let mut disk = base.to_vec();
    let flushed = log[..at].iter().rposition(|operation| matches!(operation, Operation::Flush)).unwrap_or(0);
    let settled = if lost.is_some() { flushed } else { at };
    let writes = |range: std::ops::Range<usize>| {
        log[range].iter().filter_map(|operation| match operation {
            Operation::Write { offset, bytes } => Some((*offset, bytes.as_slice())),
            Operation::Flush => None,
        })
    };
    for (offset, bytes) in writes(0..settled) {
        disk[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    if let Some(random) = lost {
        let piece = *random.pick(&[512, 4096, usize::MAX]);
        let kept = random.below(5);
        for (offset, bytes) in writes(settled..at) {
            let mut rest = bytes;
            while !rest.is_empty() {
                let from = offset + bytes.len() - rest.len();
                // Of half a superblock ext4 says that its checksum is wrong, and stays unmounted until e2fsck has taken
                // a copy: no store would be started on such a disk.
                let whole = if SUPERBLOCK.contains(&from) { SUPERBLOCK.end - from } else { 0 };
                let (part, after) = rest.split_at(piece.max(whole).min(rest.len()));
                if random.below(4) < kept {
                    disk[from..from + part.len()].copy_from_slice(part);
                }
                rest = after;
            }
        }
    }
    disk
}

fn lock(content: &Mutex<Content>) -> MutexGuard<'_, Content> {
    content.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sizes of the messages of `linux/fuse.h`.
const HEADER: usize = 40;
const WRITE_HEADER: usize = 40;
/// Most bytes in one write.
const MAX_WRITE: usize = 1 << 20;

fn number(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).map_or(0, |part| u64::from_le_bytes(part.try_into().expect("eight bytes")))
}

fn small(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |part| u32::from_le_bytes(part.try_into().expect("four bytes")))
}

/// Answers the kernel until the file system is unmounted.
fn serve(mut device: &File, content: &Mutex<Content>) {
    let mut request = vec![0; MAX_WRITE + 64 * 1024];
    loop {
        let length = match device.read(&mut request) {
            Ok(length) => length,
            // A request that was taken back, or a signal.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => continue,
            Err(_) => return,
        };
        let request = &request[..length];
        let (operation, unique) = (small(request, 4), number(request, 8));
        let Some(answer) = answer(operation, request, &mut lock(content)) else { continue };
        let (error, body) = answer.map_or_else(|error| (-error, Vec::new()), |body| (0, body));
        let length = u32::try_from(body.len() + 16).expect("at most a megabyte");
        let mut reply = [length.to_le_bytes().as_slice(), &error.to_le_bytes(), &unique.to_le_bytes()].concat();
        reply.extend(body);
        // Whoever asked may be gone.
        let _ = device.write(&reply);
    }
}

/// The body of an answer or an error number; `None` where none is expected.
fn answer(operation: u32, request: &[u8], content: &mut Content) -> Option<Result<Vec<u8>, i32>> {
    let body = &request[HEADER.min(request.len())..];
    let (offset, size) = (usize::try_from(number(body, 8)).ok()?, small(body, 16) as usize);
    Some(match operation {
        // FORGET, INTERRUPT, BATCH_FORGET.
        2 | 36 | 42 => return None,
        // INIT: version 7.31, big writes, as many pages as a write may have.
        26 => {
            let words =
                [7, 31, small(body, 8), (1 << 5) | (1 << 22), 0, u32::try_from(MAX_WRITE).expect("small"), 1, 256];
            let mut answer: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
            answer.resize(64, 0);
            Ok(answer)
        }
        // GETATTR.
        3 => {
            let size = content.bytes.len() as u64;
            let mut answer = vec![0; 16];
            answer.extend([1, size, size / 512, 0, 0, 0].iter().flat_map(|word: &u64| word.to_le_bytes()));
            answer.extend([0, 0, 0, 0o100_600, 1, 0, 0, 0, 4096, 0].iter().flat_map(|word: &u32| word.to_le_bytes()));
            Ok(answer)
        }
        // OPEN.
        14 => Ok(vec![0; 16]),
        // READ.
        15 => {
            let end = (offset + size).min(content.bytes.len());
            Ok(content.bytes.get(offset..end).unwrap_or_default().to_vec())
        }
        // WRITE.
        16 => {
            let bytes = body.get(WRITE_HEADER..WRITE_HEADER + size).unwrap_or_default();
            let bad = content.bad.len();
            if bad > 0 && bytes.chunks(bad).any(|part| part == content.bad) {
                return Some(Err(libc::EIO));
            }
            match content.bytes.get_mut(offset..offset + bytes.len()) {
                Some(place) => {
                    place.copy_from_slice(bytes);
                    content.log.push(Operation::Write { offset, bytes: bytes.to_vec() });
                    Ok([small(body, 16).to_le_bytes(), [0; 4]].concat())
                }
                None => Err(libc::ENOSPC),
            }
        }
        // FSYNC.
        20 => {
            content.log.push(Operation::Flush);
            Ok(Vec::new())
        }
        // RELEASE, FLUSH.
        18 | 25 => Ok(Vec::new()),
        _ => Err(libc::ENOSYS),
    })
}

#[test]
fn a_cut_takes_sectors_but_no_half_of_the_superblock() {
    let log =
        [Operation::Write { offset: 0, bytes: vec![1; 16384] }, Operation::Write { offset: 512, bytes: vec![2; 4096] }];
    let mut torn = 0;
    for seed in 0..200 {
        let disk = cut(&[0; 16384], &log, 2, Some(&mut Seeded(seed)));
        assert!(disk[1024..2048].iter().all(|byte| *byte == disk[1024]), "seed {seed}");
        torn += usize::from(disk[8192..12288].iter().any(|byte| *byte != disk[8192]));
    }
    assert!(torn > 20, "elsewhere {torn} of 200 are torn");
}
