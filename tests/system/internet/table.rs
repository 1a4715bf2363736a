//! Who must reach whom, and as whom they are seen.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::mode::Mode;
use super::probe::{MANY, Place, To};
use super::topology::{Internet, NODE_A, NODE_B, OUTSIDE};
use super::{HOST_TCP, HOST_UDP, Pod, Pods};
use crate::world::eventually;

/// How long a packet's way may take to open: addresses of version 6 are tentative at first.
const OPENING: Duration = Duration::from_secs(15);

const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];
/// A transport, the servers' port and the host port that leads to it.
const TRANSPORTS: [(&str, u16, u16); 2] = [("tcp", 8080, HOST_TCP), ("udp", 5353, HOST_UDP)];

/// What came out of the checks.
pub struct Report<'a> {
    mode: &'a Mode,
    checks: usize,
    failures: Vec<String>,
    /// Those of the mode's exceptions that were met.
    met: Vec<&'static str>,
}

impl<'a> Report<'a> {
    pub fn new(mode: &'a Mode) -> Self {
        Self { mode, checks: 0, failures: Vec::new(), met: Vec::new() }
    }

    /// The reason for which the mode is excused from a check.
    pub fn excuse(&self, check: &str) -> Option<&'static str> {
        self.mode.exceptions.iter().find(|(name, _)| check.starts_with(name)).map(|(_, reason)| *reason)
    }

    /// Notes what came out of a check.
    pub fn note(&mut self, check: &str, outcome: Result<()>) {
        self.checks += 1;
        // Shown by the test runner only where the test failed.
        eprintln!("{check}: {}", outcome.as_ref().map_or_else(|error| format!("{error:#}"), |()| "yes".to_owned()));
        let excused = self.mode.exceptions.iter().find(|(name, _)| check.starts_with(name));
        match (outcome, excused) {
            (Ok(()), None) => {}
            (Err(_), Some((name, _))) => self.met.push(name),
            (Err(error), None) => self.failures.push(format!("  {check}: {error:#}")),
            (Ok(()), Some((_, reason))) => {
                self.failures.push(format!("  {check}: works, but is listed as impossible: {reason}"));
            }
        }
    }

    /// The number of checks, and those that failed.
    pub fn end(mut self) -> (usize, Vec<String>) {
        for (name, _) in self.mode.exceptions {
            if !self.met.contains(name) {
                self.failures.push(format!("  {name}: an exception that no check has met"));
            }
        }
        (self.checks, self.failures)
    }

    /// The answer must begin so: with the name of who answers, and where it matters with who asked. An address is followed
    /// by a blank, so that none is taken for the beginning of another.
    async fn answers(&mut self, check: &str, from: &Place<'_>, to: To<'_>, want: &str) {
        // What cannot work need not be waited for.
        let limit = if self.excuse(check).is_some() { Duration::ZERO } else { OPENING };
        let outcome = eventually("an answer", limit, async || {
            let said = from.ask(to, "hello").await?;
            ensure!(said.starts_with(want) && said.ends_with(" hello"), "{to:?} answered {said:?}, want {want:?}");
            Ok(())
        })
        .await;
        self.note(check, outcome);
    }

    /// Big transfers both ways. They are not tried again: packets that are too large for a link must be found out.
    async fn carries_much(&mut self, check: &str, from: &Place<'_>, to: To<'_>) -> Result<()> {
        for (way, said) in [("there", from.give(to).await?), ("back", from.take(to).await?)] {
            let outcome = if said == MANY.to_string() {
                Ok(())
            } else {
                Err(anyhow::anyhow!("{to:?}: {said:?} of {MANY} bytes went {way}"))
            };
            self.note(check, outcome);
        }
        Ok(())
    }
}

/// One way of the table.
struct Way<'a> {
    name: &'static str,
    from: &'a Place<'a>,
    /// Where to, by family; servers' ports, or those that are mapped on the node.
    to: [&'a str; 2],
    mapped: bool,
    /// Who answers, and who must be seen as the one that asks; `None` where it does not matter.
    server: &'static str,
    source: Option<[&'a str; 2]>,
}

/// Walks the table.
pub async fn walk(net: &Internet, pods: &Pods, report: &mut Report<'_>) -> Result<()> {
    let (web, near, far) = (place(net, &pods.web), place(net, &pods.near), Place::pod(&net.b, &pods.far.id));
    let (node_a, node_b, outside) = (Place::node(&net.a, NODE_A), Place::node(&net.b, NODE_B), Place::outside(net));
    let of = |pod: &'_ Pod| [pod.addresses[0].clone(), pod.addresses[1].clone()];
    let (web_is, near_is, far_is) = (of(&pods.web), of(&pods.near), of(&pods.far));
    let (web_is, near_is, far_is) = (text(&web_is), text(&near_is), text(&far_is));
    let way = |name, from, to, server, source| Way { name, from, to, mapped: false, server, source };
    let port = |name, from, to| Way { name, from, to, mapped: true, server: "web", source: None };
    let ways = [
        way("pod to pod of the same node", &near, web_is, "web", Some(near_is)),
        way("pod to pod of another node", &near, far_is, "far", None),
        way("source kept, pod to pod of another node", &near, far_is, "far", Some(near_is)),
        way("pod of another node to pod", &far, web_is, "web", None),
        way("pod to itself", &web, web_is, "web", Some(web_is)),
        way("pod to outside, masqueraded", &near, OUTSIDE, "outside", Some(NODE_A)),
        way("pod of another node to outside, masqueraded", &far, OUTSIDE, "outside", Some(NODE_B)),
        way("pod to its node", &near, NODE_A, "node-a", None),
        way("pod to another node", &near, NODE_B, "node-b", None),
        way("node to its pod", &node_a, web_is, "web", None),
        way("node to a pod of another node", &node_b, web_is, "web", None),
        way("node to outside", &node_a, OUTSIDE, "outside", Some(NODE_A)),
        port("outside to a host port", &outside, NODE_A),
        port("another node to a host port", &node_b, NODE_A),
        port("node a to its own host port", &node_a, NODE_A),
        port("pod to a host port of its node", &near, NODE_A),
        port("pod of another node to a host port", &far, NODE_A),
        port("pod to its own host port", &web, NODE_A),
    ];
    for way in &ways {
        for (family, family_name) in FAMILIES.iter().enumerate() {
            for (transport, plain, mapped) in TRANSPORTS {
                let to = To { transport, host: way.to[family], port: if way.mapped { mapped } else { plain } };
                let check = format!("{}, {family_name}, {transport}", way.name);
                let want = match way.source {
                    Some(source) => format!("{} {} ", way.server, source[family]),
                    None => format!("{} ", way.server),
                };
                report.answers(&check, way.from, to, &want).await;
            }
        }
    }
    for (host, name) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1")] {
        for (transport, _, port) in TRANSPORTS {
            let to = To { transport, host, port };
            let check = format!("node a to its own host port by {name}, {transport}");
            report.answers(&check, &node_a, to, "web ").await;
        }
    }
    for (name, from, host, port) in [
        ("much, pod to pod of the same node", &near, web_is, 8080),
        ("much, pod to pod of another node", &near, far_is, 8080),
        ("much, pod to outside", &near, OUTSIDE, 8080),
        ("much, pod to another node", &near, NODE_B, 8080),
        ("much, outside to a host port", &outside, NODE_A, HOST_TCP),
        ("much, pod of another node to a host port", &far, NODE_A, HOST_TCP),
    ] {
        for (family, family_name) in FAMILIES.iter().enumerate() {
            let to = To { transport: "tcp", host: host[family], port };
            report.carries_much(&format!("{name}, {family_name}"), from, to).await?;
        }
    }
    Ok(())
}

/// The host ports of a pod that was removed.
pub async fn nobody_answers(net: &Internet, near: &Pod, report: &mut Report<'_>) -> Result<()> {
    let (outside, node_a, near) = (Place::outside(net), Place::node(&net.a, NODE_A), place(net, near));
    for (from, hosts) in
        [(&outside, &NODE_A[..]), (&node_a, &["127.0.0.1", NODE_A[0], NODE_A[1]]), (&near, &NODE_A[..])]
    {
        for host in hosts {
            for (transport, _, port) in TRANSPORTS {
                let said = from.ask(To { transport, host, port }, "hello").await?;
                let outcome =
                    if said.is_empty() { Ok(()) } else { Err(anyhow::anyhow!("{host} {port} answered {said:?}")) };
                report.note(&format!("host port of a removed pod, {} to {host}, {transport}", from.name), outcome);
            }
        }
    }
    Ok(())
}

/// A pod of node a.
fn place<'a>(net: &'a Internet, pod: &Pod) -> Place<'a> {
    Place::pod(&net.a, &pod.id)
}

fn text(addresses: &[String; 2]) -> [&str; 2] {
    [&addresses[0], &addresses[1]]
}
