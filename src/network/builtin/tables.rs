//! The nftables of the node as they ought to be, and the one socket through which they become so.

use std::collections::HashMap;

use crate::config::subnet::Subnet;
use crate::sys::netlink::{Event, Family, NetlinkError, Socket, find, text};

use super::nft;
use super::rules::{self, Placed, TABLE};

/// What ought to be in the kernel. It is changed and carried out under one lock, so that both are in the same order.
#[derive(Debug, Default)]
pub struct Tables {
    socket: Option<Socket>,
    /// The tables are in the kernel, as far as this process knows.
    installed: bool,
    subnets: Vec<Subnet>,
    cluster: Vec<Subnet>,
    pods: HashMap<String, Vec<Placed>>,
}

impl Tables {
    /// The node's subnets and those of the cluster, from the next installation on.
    pub fn set_subnets(&mut self, subnets: &[Subnet], cluster: &[Subnet]) {
        self.installed &= self.subnets == subnets && self.cluster == cluster;
        self.subnets = subnets.to_vec();
        self.cluster = cluster.to_vec();
    }

    #[must_use]
    pub fn is_installed(&self) -> bool {
        self.installed
    }

    /// Notes a pod that stands in the tables already, or will with the next installation.
    pub fn note(&mut self, sandbox_id: &str, placed: Vec<Placed>) {
        self.pods.insert(sandbox_id.to_owned(), placed);
    }

    /// Makes both tables anew, with all pods in them, in one transaction.
    ///
    /// # Errors
    /// When the kernel refuses; what was there stays.
    pub fn install(&mut self) -> Result<(), NetlinkError> {
        self.installed = false;
        let messages = rules::whole(&self.subnets, &self.cluster, self.pods.values().flatten());
        self.socket()?.transaction("the tables of pods in nftables", nft::transaction(messages))?;
        self.installed = true;
        Ok(())
    }

    /// # Errors
    /// When the kernel refuses; the pod stands in no table then.
    pub fn add(&mut self, sandbox_id: &str, placed: Vec<Placed>) -> Result<(), NetlinkError> {
        let messages = rules::changes(nft::NFT_MSG_NEWSETELEM, placed.iter());
        self.pods.insert(sandbox_id.to_owned(), placed);
        self.change(messages).inspect_err(|_| drop(self.pods.remove(sandbox_id)))
    }

    /// Closes a pod's ports and lets no frame of it through any more; fine when it is not there. Its link stays noted, since
    /// frames of a link that is not would go through.
    ///
    /// # Errors
    /// When the kernel refuses; the pod then is in as it was.
    pub fn close(&mut self, sandbox_id: &str) -> Result<(), NetlinkError> {
        let Some(placed) = self.pods.remove(sandbox_id) else { return Ok(()) };
        let (kept, gone): (Vec<Placed>, Vec<Placed>) = placed.iter().cloned().partition(rules::is_link);
        self.pods.insert(sandbox_id.to_owned(), kept);
        self.take_out(&gone).inspect_err(|_| drop(self.pods.insert(sandbox_id.to_owned(), placed)))
    }

    /// Forgets pods whose links are gone.
    ///
    /// # Errors
    /// When the kernel refuses; the next installation leaves them out.
    pub fn forget<'a>(&mut self, sandbox_ids: impl Iterator<Item = &'a str>) -> Result<(), NetlinkError> {
        let gone: Vec<Placed> = sandbox_ids.filter_map(|id| self.pods.remove(id)).flatten().collect();
        self.take_out(&gone)
    }

    fn take_out(&mut self, gone: &[Placed]) -> Result<(), NetlinkError> {
        if !self.installed || gone.is_empty() {
            // What the next installation leaves out is gone with it.
            return Ok(());
        }
        self.change(rules::changes(nft::NFT_MSG_DELSETELEM, gone.iter()))
    }

    /// Carries out a change that is noted already. Where the tables are not as they ought to be, they are made anew.
    fn change(&mut self, messages: Vec<crate::sys::netlink::Message>) -> Result<(), NetlinkError> {
        if !self.installed {
            return self.install();
        }
        match self.socket()?.transaction("a pod's elements in nftables", nft::transaction(messages)) {
            Err(error) if error.errno().is_some() => {
                tracing::debug!(%error, "the tables of pods in nftables are made anew");
                self.install()
            }
            done => done,
        }
    }

    fn socket(&mut self) -> Result<&mut Socket, NetlinkError> {
        if self.socket.is_none() {
            self.socket = Some(Socket::open(Family::Netfilter)?);
        }
        Ok(self.socket.as_mut().expect("it was just opened"))
    }

    /// Whether a change that somebody else made may have touched our tables.
    #[must_use]
    pub fn concerns(&self, event: &Event) -> bool {
        let Event::Changed { kind, port, payload } = event else { return self.installed };
        let own = self.socket.as_ref().map(Socket::port) == Some(*port);
        let named = payload.get(4..).and_then(|rest| find(rest, 1)).is_some_and(|name| text(name) == TABLE);
        self.installed && !own && named && *kind != nft::NFT_MSG_NEWGEN && *kind != nft::NFT_MSG_NEWTABLE
    }

    /// Whether somebody else changed tables, chains or rules, of whomever.
    #[must_use]
    pub fn is_of_others(&self, event: &Event) -> bool {
        let Event::Changed { kind, port, .. } = event else { return true };
        nft::is_of_rules(*kind) && self.socket.as_ref().map(Socket::port) != Some(*port)
    }

    /// How many elements the kernel has in one of our sets.
    #[cfg(test)]
    pub(super) fn listed(&mut self, set: &str) -> Result<usize, NetlinkError> {
        let family = if set.starts_with("ports") { nft::INET } else { nft::FRAMES };
        let message = nft::listing(family, TABLE, set);
        let listed = self.socket()?.dump("elements of nftables", &message, |found: &mut usize, _, payload| {
            let list = payload.get(4..).and_then(|rest| find(rest, 3)).unwrap_or_default();
            *found += crate::sys::netlink::attributes(list).count();
        });
        match listed {
            Err(error) if error.is_missing() => Ok(0),
            listed => listed,
        }
    }
}
