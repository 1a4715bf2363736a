//! What went over the links of a pod, without a process in it.
//!
//! `/proc/net/dev` is opened once by a thread in the pod's network namespace, and read at its beginning again and again:
//! the open file stays in that namespace. That is one system call for all links, and it takes no lock of the kernel's
//! that a busy node may hold for long, as a netlink request would. An open file keeps the namespace alive, so it must be
//! closed before the pod's network is taken down.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use super::StatsError;
use crate::sys::netns;

/// A line has some 120 bytes: several hundred links. What is beyond is not counted.
const FILE_CAP: usize = 64 << 10;

/// Links of one pod that are counted.
const MAX_INTERFACES: usize = 256;

/// Counters of one link, as seen from inside of the pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// Reads the links of one network namespace.
#[derive(Debug)]
pub(super) struct Links {
    netns: PathBuf,
    file: Option<File>,
}

impl Links {
    /// Of the namespace that is pinned at a path. Nothing is opened yet.
    pub(super) fn new(netns: PathBuf) -> Self {
        Self { netns, file: None }
    }

    /// The counters now, without the loopback.
    ///
    /// # Errors
    /// [`StatsError::Network`] when the namespace is gone, [`StatsError::Read`].
    pub(super) fn read(&mut self) -> Result<Vec<Interface>, StatsError> {
        let failed = |source| StatsError::Read { path: PathBuf::from("/proc/thread-self/net/dev"), source };
        let file = match &self.file {
            Some(file) => file,
            None => {
                let opened = netns::enter_net(&self.netns, || File::open("/proc/thread-self/net/dev"))?;
                self.file.insert(opened.map_err(failed)?)
            }
        };
        let mut buffer = vec![0; FILE_CAP];
        let mut length = 0;
        while length < FILE_CAP {
            match file.read_at(&mut buffer[length..], length as u64).map_err(failed)? {
                0 => break,
                n => length += n,
            }
        }
        Ok(parse(&String::from_utf8_lossy(&buffer[..length])))
    }
}

/// Two lines of headings, then `eth0: bytes packets errs drop fifo frame compressed multicast` and the same for what was
/// sent, with other last columns.
fn parse(text: &str) -> Vec<Interface> {
    let lines = text.lines().skip(2).filter_map(|line| {
        let (name, counts) = line.split_once(':')?;
        let counts: Vec<u64> = counts.split_ascii_whitespace().map_while(|count| count.parse().ok()).collect();
        let at = |n: usize| counts.get(n).copied();
        Some(Interface {
            name: name.trim().to_owned(),
            rx_bytes: at(0)?,
            rx_packets: at(1)?,
            rx_errors: at(2)?,
            rx_dropped: at(3)?,
            tx_bytes: at(8)?,
            tx_packets: at(9)?,
            tx_errors: at(10)?,
            tx_dropped: at(11)?,
        })
    });
    lines.filter(|interface| interface.name != "lo").take(MAX_INTERFACES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:    1234      12    0    0    0     0          0         0     1234      12    0    0    0     0       0          0
  eth0: 18446744073709551615  2    3    4    5     6          7         8        9      10   11   12   13    14      15         16
eth0:1: 1 2
net1:7 0 0 0 0 0 0 0 6 0 0 0 0 0 0 0
";

    #[test]
    fn columns_are_what_the_headings_say() {
        let found = parse(TEXT);
        assert_eq!(found.iter().map(|own| &*own.name).collect::<Vec<_>>(), ["eth0", "net1"], "no loopback, no garbage");
        let eth0 = &found[0];
        assert_eq!((eth0.rx_bytes, eth0.rx_packets, eth0.rx_errors, eth0.rx_dropped), (u64::MAX, 2, 3, 4));
        assert_eq!((eth0.tx_bytes, eth0.tx_packets, eth0.tx_errors, eth0.tx_dropped), (9, 10, 11, 12));
        assert_eq!((found[1].rx_bytes, found[1].tx_bytes), (7, 6));
        for text in ["", "one line", "a\nb\nno colon", "a\nb\neth0: 1 2 three 4 5 6 7 8 9 10 11 12"] {
            assert_eq!(parse(text), []);
        }
    }
}
