//! Why the builtin network could not be set up, or a pod not be put on it.

use crate::config::subnet::Subnet;
use crate::sys::netlink::NetlinkError;
use crate::sys::netns::NetnsError;

use super::lease::LeaseError;
use super::sysctl::SysctlError;

/// Why the builtin network could not be set up, or a pod not be put on it.
#[derive(Debug, thiserror::Error)]
pub enum BuiltinError {
    #[error("netlink")]
    Netlink(#[from] NetlinkError),
    #[error("the pod's network namespace")]
    Netns(#[from] NetnsError),
    #[error("the pod's network namespace {path} cannot be opened")]
    OpenNetns { path: String, source: std::io::Error },
    #[error("a setting of the kernel")]
    Sysctl(#[from] SysctlError),
    #[error("records of the pod network")]
    Lease(#[from] LeaseError),
    #[error("{what} {text:?}: {why}")]
    Subnet { what: &'static str, text: String, why: &'static str },
    #[error(
        "subnet {subnet} of pods overlaps {route}, which the host has a route to through {link}: set network.builtin_subnets"
    )]
    Overlap { subnet: Subnet, route: Subnet, link: String },
    #[error("link {name} is there and was not made by cricket: remove it, or use another pod network")]
    ForeignBridge { name: &'static str },
    #[error("the addresses of {subnets} are used up: {held} are held by {pods} pods")]
    UsedUp { subnets: String, held: usize, pods: usize },
    #[error("pod_cidr {new}: {pods} pods have addresses of {old}; another range can come once they are gone")]
    PodCidrHeld { new: String, old: String, pods: usize },
    #[error("sandbox {0} has a lease already")]
    Leased(String),
    #[error("{failed}; and it could not be undone: {undo}")]
    Undo {
        #[source]
        failed: Box<BuiltinError>,
        undo: String,
    },
    /// Tests stop an attach or a detach in its midst, as a crash would.
    #[cfg(test)]
    #[error("stopped by the test")]
    Stopped,
}

impl BuiltinError {
    /// Whether an attach that failed with this left nothing behind.
    #[must_use]
    pub fn left_nothing(&self) -> bool {
        #[cfg(test)]
        if matches!(self, Self::Stopped) {
            return false;
        }
        !matches!(self, Self::Undo { .. } | Self::Leased(_))
    }
}
