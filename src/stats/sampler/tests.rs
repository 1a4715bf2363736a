//! Freshness, and reads that hang. A FIFO in the place of a counter hangs whoever opens it until somebody writes.

use std::fs;
use std::path::Path;

use super::*;
use crate::sys::cgroup::{CgroupLayout, CgroupPath};

const V2: &str = "25 30 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";

struct Machine {
    root: tempfile::TempDir,
    layout: CgroupLayout,
}

impl Machine {
    fn new(names: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/self")).unwrap();
        fs::write(root.path().join("proc/self/mountinfo"), V2).unwrap();
        fs::create_dir_all(root.path().join("sys/fs/cgroup")).unwrap();
        let layout = CgroupLayout::detect(root.path()).unwrap();
        let machine = Self { root, layout };
        for name in names {
            fs::create_dir_all(machine.folder(name)).unwrap();
            machine.use_cpu(name, 5);
        }
        machine
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.root.path().join("sys/fs/cgroup").join(name)
    }

    fn use_cpu(&self, name: &str, us: u64) {
        fs::write(self.folder(name).join("cpu.stat"), format!("usage_usec {us}\n")).unwrap();
    }

    /// Its counter hangs from now on; the FIFO is returned.
    fn hang(&self, name: &str) -> PathBuf {
        let fifo = self.folder(name).join("cpu.stat");
        fs::remove_file(&fifo).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        fifo
    }

    fn watch(&self, sampler: &Sampler, name: &str) {
        let cgroup = self.layout.cgroup(&CgroupPath::new(&format!("/{name}")).unwrap());
        sampler.watch(name, || Source { cgroup: Some(cgroup), ..Source::default() });
    }
}

/// Opens and closes the other end: the reader gets an empty file.
fn release(fifo: &Path) {
    fs::OpenOptions::new().write(true).open(fifo).unwrap();
}

fn cpu(sampler: &Sampler, id: &str) -> Option<u64> {
    Some(sampler.sample(id)?.usage.cpu.as_ref()?.usage_ns)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_is_taken_when_asked_for_and_given_again_while_fresh() {
    let machine = Machine::new(&["a", "b"]);
    let sampler = Sampler::new();
    machine.watch(&sampler, "a");
    machine.watch(&sampler, "b");
    assert_eq!(sampler.sample("a"), None, "nothing is read before a question");
    sampler.refresh(&["a"]).await;
    assert_eq!((cpu(&sampler, "a"), cpu(&sampler, "b")), (Some(5000), None));
    machine.use_cpu("a", 7);
    let before = sampler.sample("a");
    sampler.refresh(&["a", "b", "unknown"]).await;
    // Unless this machine stood still for a second between the two.
    if before.as_ref().is_some_and(|sample| now_ns() - sample.timestamp < 1_000_000_000) {
        assert_eq!((cpu(&sampler, "a"), cpu(&sampler, "b")), (Some(5000), Some(5000)));
    }
    while before.as_ref().is_some_and(|sample| now_ns() - sample.timestamp < 1_100_000_000) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    sampler.refresh(&["a"]).await;
    assert_eq!(cpu(&sampler, "a"), Some(7000));
    fs::remove_dir_all(machine.folder("b")).unwrap();
    while sampler.sample("b").is_some() {
        sampler.refresh(&["b"]).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    sampler.forget("a");
    assert_eq!(sampler.sample("a"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_hangs_holds_up_only_itself() {
    let names: Vec<_> = (0..40).map(|n| format!("c{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let machine = Machine::new(&names);
    let sampler = Sampler::new();
    for name in &names {
        machine.watch(&sampler, name);
    }
    let fifos: Vec<_> = ["c3", "c20"].iter().map(|name| machine.hang(name)).collect();
    sampler.refresh(&names).await;
    let known: Vec<_> = names.iter().filter(|name| cpu(&sampler, name).is_some()).collect();
    assert_eq!(known.len(), 38, "{known:?}");
    assert_eq!(sampler.queue().hanging(), 2);
    // What hangs is not waited for a second time, and gets no second thread.
    sampler.refresh(&["c3", "c20"]).await;
    assert!(sampler.queue().threads <= 3, "{} threads", sampler.queue().threads);
    // The log hears of them when they have hung for long, and not before; then nobody watches any more.
    while sampler.queue().watched {
        assert!(sampler.queue().reading.iter().all(|reading| !reading.told || reading.since.elapsed() >= TELL));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(sampler.queue().reading.iter().all(|reading| reading.told));
    for fifo in &fifos {
        release(fifo);
    }
    while sampler.queue().threads > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(sampler.queue().reading.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn when_every_thread_hangs_answers_come_all_the_same() {
    let names: Vec<_> = (0..20).map(|n| format!("c{n:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let machine = Machine::new(&names);
    let sampler = Sampler::new();
    for name in &names {
        machine.watch(&sampler, name);
    }
    let fifos: Vec<_> = names.iter().map(|name| machine.hang(name)).collect();
    // Within its patience a question is answered, though nothing can be read.
    for _ in 0..4 {
        sampler.refresh(&names).await;
    }
    assert!(sampler.queue().threads <= MAX_THREADS);
    assert_eq!(names.iter().filter(|name| cpu(&sampler, name).is_some()).count(), 0);
    sampler.refresh(&["c00"]).await;
    // Each FIFO without a reader would refuse a writer that does not wait: those are passed over.
    while sampler.queue().threads > 0 {
        for fifo in &fifos {
            let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
            drop(rustix::fs::open(fifo, flags, rustix::fs::Mode::empty()));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
