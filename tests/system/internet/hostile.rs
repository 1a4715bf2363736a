//! What a pod must not be able to do to others: send as somebody else, and call itself their router.

use anyhow::{Result, ensure};

use super::probe::{Place, To};
use super::table::Report;
use super::topology::{Internet, NODE_A};
use super::{Pod, Pods};

pub async fn walk(net: &Internet, pods: &Pods, report: &mut Report<'_>) -> Result<()> {
    let near = Place::pod(&net.a, &pods.near.id);
    // Addresses of the pods' own network that nobody has.
    let foreign = ["10.89.1.250", "fd00:89:1::250"];
    for address in foreign {
        // Not preferred: else what is sent honestly would come from it too, since a whole address matches best (RFC 6724).
        let (address, lifetimes) = (host_route(address), ["valid_lft", "forever", "preferred_lft", "0"]);
        near.must(&[&["ip", "address", "add", &address, "dev", "eth0", "nodad"][..], &lifetimes].concat()).await?;
    }
    for (family, foreign) in foreign.into_iter().enumerate() {
        for (name, target) in [("pod of the same node", &pods.web), ("pod of another node", &pods.far)] {
            let outcome = spoofs(&near, target, foreign, family).await?;
            report.note(&format!("spoofed source, to {name}, {foreign}"), outcome);
        }
    }
    for address in foreign {
        near.must(&["ip", "address", "del", &host_route(address), "dev", "eth0"]).await?;
    }
    let victim = Place::pod(&net.a, &pods.web.id);
    let node = Place::node(&net.a, NODE_A);
    let before = (routing(&victim).await?, routing(&node).await?);
    near.must(&["perl", "-e", ADVERTISE, "eth0"]).await?;
    // What is sent after it comes after it.
    tell(&near, &pods.web, &pods.near.addresses[1], 1, "after the advertisement").await?;
    pods.web.server.hears("after the advertisement").await?;
    let now = (routing(&victim).await?, routing(&node).await?);
    for (who, before, now) in [("pod", before.0, now.0), ("node", before.1, now.1)] {
        let same = if before == now { Ok(()) } else { Err(anyhow::anyhow!("{before} became {now}")) };
        report.note(&format!("a pod's router advertisement changes no other {who}"), same);
    }
    Ok(())
}

fn host_route(address: &str) -> String {
    format!("{address}/{}", if address.contains(':') { 128 } else { 32 })
}

/// Sends a datagram as somebody else, then an honest one; `Err` inside when the former arrived.
async fn spoofs(from: &Place<'_>, target: &Pod, foreign: &str, family: usize) -> Result<Result<()>> {
    let to = To { transport: "udp", host: &target.addresses[family], port: 5353 };
    let line = format!("spoofed by {foreign}");
    for _ in 0..3 {
        // No answer can come back to it, wherever it goes.
        send(from, to, foreign, &line).await?;
    }
    let honest = format!("honest after {foreign}");
    let said = from.ask(to, &honest).await?;
    ensure!(said.ends_with(&honest), "no honest way to {}: {said:?}", target.name);
    target.server.hears(&honest).await?;
    let heard = target.server.heard();
    let spoofed = heard.iter().find(|note| note.ends_with(&line));
    Ok(spoofed.map_or(Ok(()), |note| Err(anyhow::anyhow!("{} heard {note:?}", target.name))))
}

async fn tell(from: &Place<'_>, to: &Pod, source: &str, family: usize, line: &str) -> Result<()> {
    send(from, To { transport: "udp", host: &to.addresses[family], port: 5353 }, source, line).await
}

/// One datagram from an address of the place, which is a datagram lost when the kernel refuses it.
async fn send(from: &Place<'_>, to: To<'_>, source: &str, line: &str) -> Result<()> {
    let script = r#"
        use strict; use Socket qw(:all); my ($source, $host, $port, $line) = @ARGV; my $six = $host =~ /:/;
        my $family = $six ? AF_INET6 : AF_INET; socket(my $s, $family, SOCK_DGRAM, 0) or die $!;
        my $at = sub { my ($h, $p) = @_; my $ip = inet_pton($family, $h); $six ? pack_sockaddr_in6($p, $ip) : pack_sockaddr_in($p, $ip) };
        bind($s, $at->($source, 0)) or die "$source: $!"; send($s, "$line\n", 0, $at->($host, $port));
    "#;
    from.must(&["perl", "-e", script, source, to.host, &to.port.to_string(), line]).await?;
    Ok(())
}

/// Addresses and routes of version 6, without what changes by itself.
async fn routing(place: &Place<'_>) -> Result<String> {
    let addresses = place.must(&["ip", "-6", "-o", "address", "show", "scope", "global"]).await?;
    let routes = place.must(&["ip", "-6", "route", "show"]).await?;
    let shown = addresses.lines().chain(routes.lines()).map(|line| {
        let words: Vec<_> =
            line.split_whitespace().take_while(|word| !["valid_lft", "expires"].contains(word)).collect();
        words.join(" ")
    });
    Ok(shown.collect::<Vec<_>>().join("\n"))
}

/// Three router advertisements to all nodes of the link: a default router for half an hour, and a prefix to make addresses of.
const ADVERTISE: &str = r#"
    use strict; use Socket qw(:all); my $link = shift;
    socket(my $s, AF_INET6, SOCK_RAW, 58) or die $!;
    open(my $f, "<", "/sys/class/net/$link/ifindex"); my $index = 0;
    open(my $all, "<", "/proc/net/if_inet6"); while (<$all>) { my @w = split; $index = hex $w[1] if $w[5] eq $link }
    die "no $link" unless $index;
    setsockopt($s, IPPROTO_IPV6, 17, pack("i", $index)) or die $!; # IPV6_MULTICAST_IF
    setsockopt($s, IPPROTO_IPV6, 18, pack("i", 255)) or die $!;    # IPV6_MULTICAST_HOPS
    my $prefix = pack("CCCCNNN", 3, 4, 64, 0xc0, 86400, 14400, 0) . inet_pton(AF_INET6, "2001:db8:bad::");
    my $message = pack("CCnCCnNN", 134, 0, 0, 64, 0, 1800, 0, 0) . $prefix;
    for (1..3) { send($s, $message, 0, pack_sockaddr_in6(0, inet_pton(AF_INET6, "ff02::1"), $index)) or die $! }
"#;
