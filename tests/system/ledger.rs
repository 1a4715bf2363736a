//! The leak ledger: one line for each thing that a pod, a container or a pull could leave behind.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::node::Node;
use crate::world::{PATIENCE, World, eventually};

/// A snapshot. Lines may occur more than once; they are counted.
#[derive(Debug, PartialEq, Eq)]
pub struct Ledger {
    lines: BTreeMap<String, usize>,
}

impl Ledger {
    /// Writes down what there is, once nothing changes any more: a daemon may tidy up after its answer.
    pub async fn take(node: &Node) -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        let mut last = Self::now(node).await?;
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = Self::now(node).await?;
            let difference = last.difference(&now);
            if difference.is_empty() {
                return Ok(now);
            }
            ensure!(Instant::now() < deadline, "the ledger does not come to rest:\n{difference}");
            last = now;
        }
    }

    async fn now(node: &Node) -> Result<Self> {
        let mut ledger = Self { lines: BTreeMap::new() };
        let daemon = node.daemon_pid()?;
        ledger.mounts(&node.world, daemon)?;
        ledger.processes(&node.world);
        ledger.namespaces(&node.world);
        for cgroup in node.world.cgroups() {
            ledger.add("cgroup", cgroup.display());
        }
        ledger.network(&node.world).await?;
        ledger.descriptors(&node.world, "daemon", daemon)?;
        for keeper in node.keeper_pids() {
            ledger.descriptors(&node.world, "keeper", keeper)?;
        }
        for folder in ["root", "state", "cni-cache", "leases"] {
            let path = node.path(folder);
            ledger.files(&node.world, &path);
        }
        ledger.files(&node.world, Path::new("/run"));
        Ok(ledger)
    }

    /// The node must come back to this snapshot; what is left after fifteen seconds is printed.
    pub async fn assert_same(&self, node: &Node) -> Result<()> {
        self.assert_same_but(node, "nothing").await
    }

    /// The same, without the lines that start with `but`.
    pub async fn assert_same_but(&self, node: &Node, but: &str) -> Result<()> {
        // A closed connection, a finished plugin or a lazy unmount may take a moment to go.
        eventually("the ledger is as before", Duration::from_secs(15), async || {
            let mut now = Self::now(node).await?;
            now.lines.retain(|line, _| !line.starts_with(but));
            let kept = self.lines.iter().filter(|(line, _)| !line.starts_with(but));
            let before = Self { lines: kept.map(|(line, count)| (line.clone(), *count)).collect() };
            let difference = before.difference(&now);
            ensure!(difference.is_empty(), "the ledger differs:\n{difference}");
            Ok(())
        })
        .await
    }

    /// What is there and was not, or was there and is not.
    fn difference(&self, now: &Self) -> String {
        let mut text = String::new();
        let keys: std::collections::BTreeSet<_> = self.lines.keys().chain(now.lines.keys()).collect();
        for key in keys {
            let count = |ledger: &Self| ledger.lines.get(key).copied().unwrap_or(0);
            let (before, after) = (count(self), count(now));
            // Fewer descriptors are no leak: idle connections are closed at some time.
            if before != after && !(after < before && key.starts_with("fd ")) {
                let word = if after > before { "left" } else { "gone" };
                let _ = writeln!(text, "  {word}: {key} ({before} before, {after} now)");
            }
        }
        text
    }

    fn add(&mut self, kind: &str, line: impl std::fmt::Display) {
        *self.lines.entry(format!("{kind} {line}")).or_default() += 1;
    }

    fn mounts(&mut self, world: &World, daemon: u32) -> Result<()> {
        for (who, pid) in [("lane", "1".to_owned()), ("daemon", daemon.to_string())] {
            let file = world.seen(format!("/proc/{pid}/mountinfo"));
            let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            for line in text.lines() {
                let target = line.split(' ').nth(4).unwrap_or(line);
                let kind = line.split(" - ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or("?");
                self.add("mount", format_args!("{who} {target} {kind}"));
            }
        }
        Ok(())
    }

    fn processes(&mut self, world: &World) {
        for (pid, words) in world.processes() {
            let name = if words.is_empty() {
                // A zombie, or a process that ended between two reads.
                let status = std::fs::read_to_string(world.seen(format!("/proc/{pid}/comm")));
                let Ok(comm) = status else { continue };
                format!("[{}]", comm.trim())
            } else {
                words.join(" ")
            };
            self.add("process", name);
        }
    }

    fn namespaces(&mut self, world: &World) {
        let mut found = std::collections::BTreeSet::new();
        for (pid, _) in world.processes() {
            let Ok(entries) = std::fs::read_dir(world.seen(format!("/proc/{pid}/ns"))) else { continue };
            found.extend(entries.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok()));
        }
        for namespace in found {
            self.add("namespace", namespace.display());
        }
    }

    async fn network(&mut self, world: &World) -> Result<()> {
        for line in world.must("ip", &["-br", "address"]).await?.lines() {
            // A host's end of a pod's link has a random name and index, and may have a link-local address for a while.
            let words = line.split_whitespace().filter(|word| !word.starts_with("fe80"));
            let shown: Vec<_> = words.map(|word| word.split('@').next().unwrap_or(word)).collect();
            // The state of the bridge follows whether a pod is on it.
            self.add(
                "link",
                shown.iter().filter(|word| !["UP", "DOWN"].contains(*word)).copied().collect::<Vec<_>>().join(" "),
            );
        }
        for program in ["iptables-save", "ip6tables-save"] {
            for line in world.must(program, &[]).await?.lines().filter(|line| !line.starts_with('#')) {
                // A chain's line ends with its counters.
                self.add(program, line.split(" [").next().unwrap_or(line));
            }
        }
        // Those of iptables are above: it has its tables made by being asked for them.
        let mut above = false;
        for line in world.must("nft", &["--stateless", "list", "ruleset"]).await?.lines() {
            if let Some(table) = line.strip_prefix("table ") {
                above = ["filter", "nat", "mangle", "raw", "security"].map(Some).contains(&table.split(' ').nth(1));
            }
            if !above {
                self.add("nft", line.trim());
            }
        }
        for line in world.must("ip", &["route"]).await?.lines() {
            self.add("route", line.replace(" linkdown", "").trim());
        }
        Ok(())
    }

    fn descriptors(&mut self, world: &World, who: &str, pid: u32) -> Result<()> {
        let folder = world.seen(format!("/proc/{pid}/fd"));
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?.flatten() {
            let Ok(target) = std::fs::read_link(entry.path()) else { continue };
            let target = target.to_string_lossy();
            // `socket:[1234]` and its like: the number is of no interest.
            let kind =
                target.split_once(":[").filter(|_| !target.starts_with("anon_inode")).map_or(&*target, |pair| pair.0);
            self.add("fd", format_args!("{who} {kind}"));
        }
        Ok(())
    }

    fn files(&mut self, world: &World, folder: &Path) {
        let Ok(entries) = std::fs::read_dir(world.seen(folder)) else { return };
        for entry in entries.flatten() {
            let path = folder.join(entry.file_name());
            let Ok(kind) = entry.file_type() else { continue };
            let word = if kind.is_dir() { "folder" } else { "file" };
            self.add(word, path.display());
            if kind.is_dir() {
                self.files(world, &path);
            }
        }
    }
}
