//! Places in the small internet, servers in them, and questions from one to the other.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use super::topology::{Internet, OUTSIDE_NAMESPACE};
use crate::node::Node;
use crate::world::{Finished, PATIENCE, World, eventually};

/// How long a client waits for an answer, in seconds, before it counts as none.
const CLOCK: &str = "2";
/// The same for a transfer of [`MANY`] bytes.
const LONG_CLOCK: &str = "20";
/// What is meant by a big transfer, in bytes.
pub const MANY: usize = 1024 * 1024;

/// A network namespace in which programs can be run.
#[derive(Clone)]
pub struct Place<'a> {
    pub name: String,
    world: &'a World,
    /// The words before a program.
    enter: Vec<String>,
    /// Where a server here notes what it hears.
    notes: PathBuf,
    /// Addresses that a server here listens at. A datagram's answer comes from the address that the way back is known by,
    /// so it is all of them only where that is the one that was asked.
    listen: Vec<&'static str>,
}

/// A server: what it is asked for on TCP port 8080 and UDP port 5353 of both families, see [`SERVER`].
pub struct Server {
    child: tokio::process::Child,
    /// Its pid as the world sees it.
    pid_file: PathBuf,
    notes: PathBuf,
}

/// Where a question goes.
#[derive(Debug, Clone, Copy)]
pub struct To<'a> {
    pub transport: &'static str,
    pub host: &'a str,
    pub port: u16,
}

impl<'a> Place<'a> {
    pub fn pod(node: &'a Node, id: &str) -> Self {
        let net = node.path(&format!("state/ns/{id}/net"));
        let enter = vec!["nsenter".to_owned(), format!("--net={}", net.display()), "--".to_owned()];
        let notes = node.world.folder().join(&id[..12]);
        Self { name: "pod".to_owned(), world: &node.world, enter, notes, listen: vec!["::"] }
    }

    pub fn node(node: &'a Node, addresses: [&'static str; 2]) -> Self {
        let notes = node.world.folder().join("own");
        Self { name: "node".to_owned(), world: &node.world, enter: Vec::new(), notes, listen: addresses.to_vec() }
    }

    pub fn outside(net: &'a Internet) -> Self {
        let enter = ["ip", "netns", "exec", OUTSIDE_NAMESPACE].map(str::to_owned).to_vec();
        let notes = net.router.folder().join("outside");
        Self { name: "outside".to_owned(), world: &net.router, enter, notes, listen: vec!["::"] }
    }

    /// Starts a server that calls itself `name`, and waits until it listens.
    pub async fn serve(&self, name: &str) -> Result<Server> {
        let (notes, pid_file) = (self.notes.with_extension("notes"), self.notes.with_extension("pid"));
        let words = ["/usr/bin/perl", "-e", SERVER, name].map(str::to_owned);
        let words: Vec<_> = self.enter.iter().cloned().chain(words).collect();
        let child =
            self.world.program(&words[0]).args(&words[1..]).arg(&notes).arg(&pid_file).args(&self.listen).spawn()?;
        eventually("the server listens", PATIENCE, async || {
            ensure!(pid_file.exists(), "{} is not there", pid_file.display());
            Ok(())
        })
        .await?;
        Ok(Server { child, pid_file, notes })
    }

    /// Runs a program here to its end.
    pub async fn run(&self, words: &[&str]) -> Result<Finished> {
        let all: Vec<&str> = self.enter.iter().map(String::as_str).chain(words.iter().copied()).collect();
        self.world.run(all[0], &all[1..]).await
    }

    pub async fn must(&self, words: &[&str]) -> Result<String> {
        let done = self.run(words).await?;
        ensure!(done.status.success(), "{}: {}: {}", words.join(" "), done.status, done.stderr.trim());
        Ok(done.stdout)
    }

    /// What one line is answered with: `NAME PEER LINE`, where PEER is how the server sees who asks.
    pub async fn ask(&self, to: To<'_>, line: &str) -> Result<String> {
        let script = "exec 3<>/dev/$0/$1/$2 && echo \"$3\" >&3 && head -n 1 <&3";
        self.bash(CLOCK, script, to, line).await
    }

    /// Sends [`MANY`] bytes, and is told how many came.
    pub async fn give(&self, to: To<'_>) -> Result<String> {
        let script = "exec 3<>/dev/$0/$1/$2 && { echo take $3; head -c $3 /dev/zero; } >&3 && head -n 1 <&3";
        self.bash(LONG_CLOCK, script, to, &MANY.to_string()).await
    }

    /// Asks for [`MANY`] bytes, and counts them.
    pub async fn take(&self, to: To<'_>) -> Result<String> {
        let script = "exec 3<>/dev/$0/$1/$2 && echo give $3 >&3 && wc -c <&3";
        self.bash(LONG_CLOCK, script, to, &MANY.to_string()).await
    }

    async fn bash(&self, clock: &str, script: &str, to: To<'_>, last: &str) -> Result<String> {
        let port = to.port.to_string();
        let done = self.run(&["timeout", clock, "bash", "-c", script, to.transport, to.host, &port, last]).await?;
        Ok(done.stdout.trim_end().to_owned())
    }
}

impl Server {
    /// Lines that came by UDP, with who sent them: `PEER LINE`.
    pub fn heard(&self) -> Vec<String> {
        std::fs::read_to_string(&self.notes).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// Waits until a line with these words has come by UDP.
    pub async fn hears(&self, words: &str) -> Result<()> {
        eventually(&format!("{words:?} is heard"), PATIENCE, async || {
            ensure!(self.heard().iter().any(|line| line.contains(words)), "heard {:?}", self.heard());
            Ok(())
        })
        .await
    }

    /// Ends the server, and waits until it is gone.
    pub async fn end(mut self) -> Result<()> {
        // It is asked by its name in the file system, since the pid that is known here is the wrapper's.
        std::fs::remove_file(&self.pid_file).context("the server has not come up")?;
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        ended.context("the server does not end")??;
        std::fs::remove_file(&self.notes).context("the server's notes")
    }
}

/// Answers `take N` by reading N bytes and saying so, `give N` with N bytes, and any other line with its name, who asked,
/// and the line. Datagrams are answered like lines, and noted. It ends when its pid file is removed.
const SERVER: &str = r#"
    use strict; use Socket qw(:all);
    my ($name, $notes, $pid, @listen) = @ARGV; $SIG{PIPE} = "IGNORE"; $SIG{CHLD} = "IGNORE";
    sub bound { my ($type, $port, $ip) = @_; my $six = $ip =~ /:/; my $family = $six ? AF_INET6 : AF_INET;
        socket(my $s, $family, $type, 0) or die $!; setsockopt($s, SOL_SOCKET, SO_REUSEADDR, 1);
        setsockopt($s, IPPROTO_IPV6, IPV6_V6ONLY, 0) if $six; my $raw = inet_pton($family, $ip);
        bind($s, $six ? pack_sockaddr_in6($port, $raw) : pack_sockaddr_in($port, $raw)) or die "$ip $port: $!"; $s }
    sub peer { my $six = sockaddr_family($_[0]) == AF_INET6;
        my ($port, $ip) = $six ? unpack_sockaddr_in6($_[0]) : unpack_sockaddr_in($_[0]);
        my $text = inet_ntop($six ? AF_INET6 : AF_INET, $ip); $text =~ s/^::ffff://; $text }
    my @udp = map { bound(SOCK_DGRAM, 5353, $_) } @listen; my @tcp = map { bound(SOCK_STREAM, 8080, $_) } @listen;
    listen($_, 16) or die $! for @tcp;
    open(my $log, ">>", $notes) or die $!; select((select($log), $| = 1)[0]);
    open(my $p, ">", $pid) or die $!; print $p "$$\n"; close $p;
    sub serve { my ($c, $who) = @_; alarm 60; my $line = <$c>;
        if ($line =~ /^take (\d+)/) { my $n = read($c, my $all, $1); syswrite($c, "$n\n") }
        elsif ($line =~ /^give (\d+)/) { my $left = $1; my $chunk = "x" x 65536;
            while ($left > 0) { my $n = syswrite($c, $chunk, $left < 65536 ? $left : 65536) or last; $left -= $n } }
        else { syswrite($c, "$name $who $line") } }
    while (-e $pid) {
        my $set = ""; vec($set, fileno($_), 1) = 1 for @udp, @tcp;
        next if select($set, undef, undef, 0.1) < 1;
        for my $s (grep { vec($set, fileno($_), 1) } @udp) {
            defined(my $from = recv($s, my $line, 2048, 0)) or next; my $who = peer($from);
            print $log "$who $line"; send($s, "$name $who $line", 0, $from);
        }
        for my $s (grep { vec($set, fileno($_), 1) } @tcp) {
            my $from = accept(my $c, $s) or next; next if fork;
            close $_ for @udp, @tcp; serve($c, peer($from)); close $c; exit;
        }
    }
"#;
