//! SELinux: is it on with a policy for containers, the category pair of each pod, and labels of files.

mod relabel;

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

pub use relabel::{RelabelError, label, relabel};

/// Where the kernel shows the state of SELinux (`selinuxfs`).
const SELINUXFS: &str = "/sys/fs/selinux";

/// A context that every policy for containers knows.
const PROBE: &str = "system_u:system_r:container_t:s0";

/// Categories of a level: c0 to c1023.
const CATEGORIES: u32 = 1024;

/// Pairs of two different categories.
const PAIRS: u32 = CATEGORIES * (CATEGORIES - 1) / 2;

/// What SELinux is on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not in the kernel, or switched off.
    Off,
    /// On, but its policy has no `container_t`: containers could not be given labels, and are given none.
    NoPolicy,
    On,
}

/// Asks the kernel.
#[must_use]
pub fn probe() -> State {
    probe_at(Path::new(SELINUXFS))
}

fn probe_at(root: &Path) -> State {
    if !root.join("enforce").exists() {
        return State::Off;
    }
    // The kernel refuses to be written a context that its policy does not have.
    let written = std::fs::OpenOptions::new().write(true).open(root.join("context"));
    match written.and_then(|mut file| std::io::Write::write_all(&mut file, PROBE.as_bytes())) {
        Ok(()) => State::On,
        Err(_) => State::NoPolicy,
    }
}

/// Gives each pod a pair of categories of its own, so that no pod's files are another's.
#[derive(Debug)]
pub struct Levels {
    next: AtomicU32,
}

impl Levels {
    /// `seed` makes the levels of two lives of the daemon differ, so that most look-ups of what is taken end at once.
    #[must_use]
    pub fn new(seed: u32) -> Self {
        Self { next: AtomicU32::new(seed % PAIRS) }
    }

    /// A level that is not `taken`: none is given twice before all others were.
    ///
    /// With more than half a million pods every pair is taken, and one of them is shared.
    pub fn fresh(&self, taken: impl Fn(&str) -> bool) -> String {
        let mut level = String::new();
        for _ in 0..PAIRS {
            level = pair(self.next.fetch_add(1, Ordering::Relaxed) % PAIRS);
            if !taken(&level) {
                break;
            }
        }
        level
    }
}

/// The pair with this number: of two categories, the greater counts slowest.
fn pair(number: u32) -> String {
    let (mut high, mut low) = (1, number);
    while low >= high {
        low -= high;
        high += 1;
    }
    format!("s0:c{low},c{high}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_pair_is_given_once_and_what_is_taken_is_passed_by() {
        let all: BTreeSet<String> = (0..5000).chain(PAIRS - 5000..PAIRS).map(pair).collect();
        assert_eq!(all.len(), 10_000);
        assert_eq!((pair(0).as_str(), pair(1).as_str(), pair(2).as_str()), ("s0:c0,c1", "s0:c0,c2", "s0:c1,c2"));
        assert_eq!(pair(PAIRS - 1), "s0:c1022,c1023");
        let levels = Levels::new(PAIRS - 1);
        assert_eq!(levels.fresh(|level| level == "s0:c1022,c1023" || level == "s0:c0,c1"), "s0:c0,c2");
        assert_eq!(levels.fresh(|_| false), "s0:c1,c2");
    }

    #[test]
    fn the_state_is_what_the_kernels_files_say() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(probe_at(dir.path()), State::Off);
        std::fs::write(dir.path().join("enforce"), "1").unwrap();
        assert_eq!(probe_at(dir.path()), State::NoPolicy);
        std::fs::write(dir.path().join("context"), "").unwrap();
        assert_eq!(probe_at(dir.path()), State::On);
        assert_eq!(std::fs::read_to_string(dir.path().join("context")).unwrap(), PROBE);
    }
}
