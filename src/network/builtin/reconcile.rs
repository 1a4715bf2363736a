//! Bringing the node and the records together: at start, and when somebody else changed the tables.

use std::collections::HashSet;

use crate::sys::netlink::{Event, Family, Monitor, NetlinkError};
use crate::sys::netns::enter_net;

use super::error::BuiltinError;
use super::lease::Lease;
use super::link::{self, BRIDGE, GROUP, Links};
use super::{Builtin, Pod, is_pinned, locked, node, queue_name, rules};

/// The group of notifications about nftables (`NFNLGRP_NFTABLES` is 7), as a mask.
const NFTABLES: u32 = 1 << 6;

impl Builtin {
    /// Notes a pod that an earlier life of the daemon attached. `recorded` is the lease in the pod's record.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn adopt(&self, pod: &Pod, recorded: Option<Lease>) -> Result<(), BuiltinError> {
        let lease = self.holdings(|holdings| match (holdings.lease(&pod.sandbox_id), recorded) {
            (Some(lease), _) => Ok(Some(lease.clone())),
            (None, Some(lease)) => {
                tracing::warn!(pod = pod.name, "the lease of a pod is missing and is written again");
                holdings.restore(lease.clone())?;
                Ok(Some(lease))
            }
            (None, None) => Ok(None),
        })?;
        if let Some(lease) = lease {
            locked(&self.tables).note(&pod.sandbox_id, rules::pod(&lease, &pod.ports));
            locked(&self.live).insert(pod.sandbox_id.clone(), pod.clone());
        }
        Ok(())
    }

    /// Removes links, leases and elements that are no live pod's, and puts back what live pods miss. Pods must have been
    /// adopted before.
    ///
    /// # Errors
    /// The first; everything was tried.
    pub fn reconcile(&self) -> Result<(), BuiltinError> {
        let mut first = Ok(());
        let mut note = |step: Result<(), BuiltinError>| {
            if first.is_ok() {
                first = step;
            }
        };
        let live: HashSet<String> = locked(&self.live).keys().cloned().collect();
        let leases: Vec<Lease> = self.holdings(|holdings| Ok(holdings.leases().cloned().collect()))?;
        for lease in leases.iter().filter(|lease| !live.contains(&lease.sandbox_id)) {
            tracing::info!(
                sandbox = lease.sandbox_id,
                pod = lease.pod,
                "addresses of a pod that is gone are given back"
            );
            note(self.release(&lease.sandbox_id));
        }
        note(self.reap());
        let mut links = Links::open()?;
        if live.is_empty() && links.find(BRIDGE)?.is_none() {
            return first;
        }
        let (node, clear) = self.put_in_order()?;
        note(clear);
        let kept: Vec<&Lease> = leases.iter().filter(|lease| live.contains(&lease.sandbox_id)).collect();
        note(remove_strangers(&mut links, &kept));
        for lease in kept {
            let pod = locked(&self.live).get(&lease.sandbox_id).cloned();
            if let Some(pod) = pod {
                note(self.mend(node, lease, &pod, &mut links));
            }
        }
        note(locked(&self.tables).install().map_err(BuiltinError::from));
        first
    }

    /// Puts back what a live pod misses of its links.
    fn mend(&self, node: node::Prepared, lease: &Lease, pod: &Pod, links: &mut Links) -> Result<(), BuiltinError> {
        if !is_pinned(&pod.netns) {
            // Nothing to put it into. The pod is not READY, and its stop gives the lease back.
            return Ok(());
        }
        match links.find(&lease.link)? {
            Some(found) if found.master == node.bridge && found.up => return Ok(()),
            Some(_) => {
                tracing::warn!(pod = pod.name, link = lease.link, "a pod's link is put back on the bridge");
                links.join(&lease.link, node.bridge)?;
                return Ok(links.dress_port(&lease.link, &pod.name)?);
            }
            None => {}
        }
        if enter_net(&pod.netns, link::is_inside)?? {
            tracing::warn!(pod = pod.name, "the pod has an eth0 that is not of the builtin network; it is left alone");
            return Ok(());
        }
        tracing::warn!(pod = pod.name, link = lease.link, "a pod's link is missing and is made again");
        links.remove(&queue_name(&lease.sandbox_id))?;
        self.plug(node, lease, pod)
    }

    /// Makes the tables anew after somebody else changed them.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn repair(&self) -> Result<(), BuiltinError> {
        Ok(locked(&self.tables).install()?)
    }

    /// What these changes may have touched.
    #[must_use]
    pub fn touched(&self, events: &[Event]) -> Touched {
        let tables = locked(&self.tables);
        Touched {
            ours: events.iter().any(|event| tables.concerns(event)),
            others: events.iter().any(|event| tables.is_of_others(event)),
        }
    }
}

/// What changes of others in nftables may have touched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Touched {
    /// Our tables.
    pub ours: bool,
    /// Rules that forwarded packets have to pass beside ours.
    pub others: bool,
}

/// Hears of changes in nftables.
///
/// # Errors
/// When the kernel has no nftables.
pub fn listen() -> Result<Monitor, NetlinkError> {
    Monitor::open(Family::Netfilter, NFTABLES)
}

/// Links of ours that belong to no pod.
fn remove_strangers(links: &mut Links, kept: &[&Lease]) -> Result<(), BuiltinError> {
    let names: HashSet<String> =
        kept.iter().flat_map(|lease| [lease.link.clone(), queue_name(&lease.sandbox_id)]).collect();
    for link in links.all()? {
        if link.group == GROUP && link.name != BRIDGE && !names.contains(&link.name) {
            tracing::info!(link = link.name, "a link of no pod is removed");
            links.let_go(&link.name)?;
        }
    }
    Ok(links.remove_going()?)
}
