//! A small internet: an outside host, a router, and two nodes with one cricket each, whose pods reach each other by routes.
//!
//! ```text
//!   node a 192.0.2.2, 2001:db8:a::2            pods 10.89.1.0/24, fd00:89:1::/64
//!        │ MTU 1400
//!     router ───── outside 203.0.113.2, 2001:db8:c::2
//!        │ MTU 1400
//!   node b 198.51.100.2, 2001:db8:b::2         pods 10.89.2.0/24, fd00:89:2::/64
//! ```
//!
//! Who reaches whom is one table for every way of making the pods' network ([`mode::Mode`]). Each mode brings the list of
//! what it cannot do, with reasons; a line of that list that no longer holds fails the test like any other.

mod hostile;
mod mode;
mod probe;
mod table;
mod topology;

use anyhow::{Context as _, Result, ensure};
use cri_proto::runtime::v1 as cri;

use crate::client::Client;
use crate::ledger::Ledger;
use crate::node::Node;
use crate::requests::pod;
use mode::Mode;
use probe::{Place, Server};
use table::Report;
use topology::Internet;

crate::once!(builtin, debian_s_plugins, current_plugins, current_plugins_with_nftables);

async fn builtin() -> Result<()> {
    Box::pin(everybody_reaches_whom_they_should(mode::builtin())).await
}

async fn debian_s_plugins() -> Result<()> {
    Box::pin(everybody_reaches_whom_they_should(mode::debian())).await
}

async fn current_plugins() -> Result<()> {
    Box::pin(everybody_reaches_whom_they_should(mode::current())).await
}

async fn current_plugins_with_nftables() -> Result<()> {
    Box::pin(everybody_reaches_whom_they_should(mode::current_with_nftables())).await
}

/// Host ports of the pod `web`.
const HOST_TCP: u16 = 18080;
const HOST_UDP: u16 = 15353;

/// The pods of every table: `web`, which has host ports, and `near` are on node a, `far` is on node b.
pub struct Pods {
    pub web: Pod,
    pub near: Pod,
    pub far: Pod,
}

/// A pod, and the server in its network.
pub struct Pod {
    pub id: String,
    pub name: &'static str,
    /// Its address of each family: IPv4, IPv6.
    pub addresses: [String; 2],
    pub server: Server,
}

impl Pod {
    async fn run(node: &Node, client: &Client, name: &'static str, ports: Vec<cri::PortMapping>) -> Result<Self> {
        let mut sandbox = pod(node, name);
        sandbox.port_mappings = ports;
        let id = Box::pin(client.run_pod(&sandbox)).await?;
        let network = client.pod_status(&id).await?.network.context("no network status")?;
        let all: Vec<String> =
            std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip)).collect();
        let of = |six: bool| all.iter().find(|ip| ip.contains(':') == six).cloned();
        let addresses = [of(false).context("no IPv4 address")?, of(true).context("no IPv6 address")?];
        let server = Place::pod(node, &id).serve(name).await?;
        Ok(Self { id, name, addresses, server })
    }

    async fn remove(self, client: &Client) -> Result<()> {
        // The server first: a process in the pod's network keeps that alive.
        self.server.end().await?;
        client.stop_pod(&self.id).await?;
        client.remove_pod(&self.id).await?;
        Ok(())
    }
}

fn host_ports() -> Vec<cri::PortMapping> {
    let port = |protocol: cri::Protocol, host: u16, container_port| cri::PortMapping {
        protocol: protocol.into(),
        host_port: host.into(),
        container_port,
        host_ip: String::new(),
    };
    vec![port(cri::Protocol::Tcp, HOST_TCP, 8080), port(cri::Protocol::Udp, HOST_UDP, 5353)]
}

async fn everybody_reaches_whom_they_should(mode: Mode) -> Result<()> {
    let mut net = Box::pin(Internet::new(&mode)).await?;
    let (a, b) = (net.a.client().await?, net.b.client().await?);
    // What is made once for a node is there before the ledgers are opened.
    for (node, client) in [(&net.a, &a), (&net.b, &b)] {
        let first = Box::pin(Pod::run(node, client, "first", host_ports())).await?;
        first.remove(client).await?;
    }
    let before = (Ledger::take(&net.a).await?, Ledger::take(&net.b).await?);

    let pods = Pods {
        web: Box::pin(Pod::run(&net.a, &a, "web", host_ports())).await?,
        near: Box::pin(Pod::run(&net.a, &a, "near", Vec::new())).await?,
        far: Box::pin(Pod::run(&net.b, &b, "far", Vec::new())).await?,
    };
    let mut report = Report::new(&mode);
    table::walk(&net, &pods, &mut report).await?;
    hostile::walk(&net, &pods, &mut report).await?;

    let Pods { web, near, far } = pods;
    web.remove(&a).await?;
    table::nobody_answers(&net, &near, &mut report).await?;
    near.remove(&a).await?;
    far.remove(&b).await?;
    let (checks, failures) = report.end();
    ensure!(failures.is_empty(), "{} of {checks} checks of {}:\n{}", failures.len(), mode.name, failures.join("\n"));
    ensure!(checks > 100, "the table has shrunk: {checks} checks");
    before.0.assert_same(&net.a).await?;
    before.1.assert_same(&net.b).await
}
