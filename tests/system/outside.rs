//! A neighbour of the node: a network namespace at the other end of the lane's uplink, and clients anywhere.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::node::Node;
use crate::world::{Finished, eventually};

/// The node's addresses on the uplink.
pub const NODE: &str = "192.0.2.2";
pub const NODE_6: &str = "2001:db8::2";

/// How long a client waits for an answer, in seconds, before it counts as none.
const CLOCK: &str = "2";

/// Where a client is.
#[derive(Debug, Clone, Copy)]
pub enum From {
    Node,
    Outside,
}

/// Makes the neighbour: 192.0.2.1 and 2001:db8::1, which is what the node's default route leads to.
pub async fn neighbour(node: &Node) -> Result<()> {
    let script = "
        ip netns add outside
        ip link set uplink1 netns outside
        ip -n outside link set lo up
        ip -n outside address add 192.0.2.1/24 dev uplink1
        ip -n outside -6 address add 2001:db8::1/64 dev uplink1 nodad
        ip -n outside link set uplink1 up
        ip -6 address add 2001:db8::2/64 dev uplink0 nodad
        ip -6 route add default via 2001:db8::1
    ";
    node.world.must("sh", &["-ec", script]).await?;
    Ok(())
}

async fn bash(node: &Node, from: From, script: &str, args: &[&str]) -> Result<Finished> {
    let mut words = match from {
        From::Node => vec!["timeout", CLOCK],
        From::Outside => vec!["ip", "netns", "exec", "outside", "timeout", CLOCK],
    };
    words.extend(["bash", "-c", script]);
    words.extend(args);
    node.world.run(words[0], &words[1..]).await
}

/// One line sent, and one line of the answer.
pub async fn ask(node: &Node, from: From, transport: &str, host: &str, port: u16) -> Result<Finished> {
    let script = "exec 3<>/dev/$0/$1/$2 && echo hello >&3 && head -n 1 <&3";
    bash(node, from, script, &[transport, host, &port.to_string()]).await
}

/// Asks until the answer is the expected line.
pub async fn answers(node: &Node, from: From, to: (&str, &str, u16), want: &str) -> Result<()> {
    let (transport, host, port) = to;
    eventually(&format!("{transport} {host}:{port} {from:?}"), Duration::from_secs(30), async || {
        let said = ask(node, from, transport, host, port).await?;
        ensure!(said.stdout.trim_end() == want, "{transport} {host}:{port} {from:?}: {said:?}");
        Ok(())
    })
    .await
}

/// Nobody is there: no answer within the clock.
pub async fn is_silent(node: &Node, from: From, to: (&str, &str, u16)) -> Result<()> {
    let (transport, host, port) = to;
    let said = ask(node, from, transport, host, port).await?;
    ensure!(said.stdout.is_empty(), "{transport} {host}:{port} {from:?} answered {:?}", said.stdout);
    Ok(())
}

/// A program for a container: answers each line on TCP port 8080 and each datagram on UDP port 5353 of both families with
/// its name, the line and where it came from. It needs [`perl`]'s mounts.
pub fn echo_server(name: &str) -> Vec<String> {
    let script = r#"
        use strict; use Socket qw(:all);
        my $name = shift; $SIG{PIPE} = "IGNORE"; $SIG{TERM} = sub { exit 0 };
        sub bound { my ($type, $port) = @_; socket(my $s, AF_INET6, $type, 0) or die $!;
            setsockopt($s, SOL_SOCKET, SO_REUSEADDR, 1); setsockopt($s, IPPROTO_IPV6, IPV6_V6ONLY, 0);
            bind($s, pack_sockaddr_in6($port, IN6ADDR_ANY)) or die $!; $s }
        my $udp = bound(SOCK_DGRAM, 5353); my $tcp = bound(SOCK_STREAM, 8080); listen($tcp, 16) or die $!;
        while (1) {
            my $set = ""; vec($set, fileno($udp), 1) = 1; vec($set, fileno($tcp), 1) = 1;
            next if select($set, undef, undef, undef) < 1;
            if (vec($set, fileno($udp), 1)) {
                my $peer = recv($udp, my $line, 512, 0); send($udp, "$name udp $line", 0, $peer) if $peer;
            }
            if (vec($set, fileno($tcp), 1) && accept(my $c, $tcp)) {
                my $line = <$c>; syswrite($c, "$name tcp $line"); close($c);
            }
        }
    "#;
    ["/usr/bin/perl", "-e", script, name].map(str::to_owned).to_vec()
}

/// Mounts that make the machine's perl run in an image that has none.
pub fn perl() -> Vec<cri_proto::runtime::v1::Mount> {
    ["/usr", "/lib", "/lib64"]
        .map(|path| cri_proto::runtime::v1::Mount { readonly: true, ..crate::requests::bind(path, path) })
        .to_vec()
}
