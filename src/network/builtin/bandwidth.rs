//! Bandwidth of a pod, by queues of the kernel (tc-tbf(8)): what goes to the pod waits at the host's end of its link, and
//! what comes from it is led through a link of its own (an intermediate functional block), where it waits.

use crate::sys::netlink::{Family, Message, NetlinkError, Socket};

use super::link::Links;

const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TC_H_ROOT: u32 = 0xffff_ffff;
const TC_H_INGRESS: u32 = 0xffff_fff1;
const INGRESS_HANDLE: u32 = 0xffff_0000;
const ROOT_HANDLE: u32 = 0x0001_0000;

const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TC_LINKLAYER_ETHERNET: u8 = 1;

const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TCA_EGRESS_REDIR: u32 = 1;
const TC_ACT_STOLEN: u32 = 4;
const ETH_P_ALL: u16 = 3;

/// The bucket: what may be sent at once after a pause. A hundredth of a second of the rate, but never less than one frame
/// that the network card is to cut into pieces (64 KiB), without which such a frame would be dropped.
const BURST_PART: u64 = 100;
const BURST_LEAST: u64 = 80 * 1024;
const BURST_MOST: u64 = 64 * 1024 * 1024;
/// How long a packet may wait, as a part of a second: 1/20.
const WAIT_PART: u64 = 20;

/// Limits in bits per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// To the pod.
    pub ingress: Option<u64>,
    /// From the pod.
    pub egress: Option<u64>,
}

/// Applies the limits to a pod's link. `queue` is the name of the link that is made for what comes from the pod.
///
/// # Errors
/// When the kernel refuses, for lack of a kind of queue perhaps. What was made goes with the links.
pub fn limit(links: &mut Links, name: &str, queue: &str, limits: Limits) -> Result<(), NetlinkError> {
    let mut socket = Socket::open(Family::Route)?;
    let index = |links: &mut Links, name: &str| {
        let missing = || NetlinkError::Malformed { what: format!("link {name}") };
        links.find(name)?.map(|link| link.index).ok_or_else(missing)
    };
    if let Some(bits) = limits.ingress {
        let link = index(links, name)?;
        socket.request(&format!("bandwidth to the pod on {name}"), token_bucket(link, bits))?;
    }
    if let Some(bits) = limits.egress {
        links.make_queue(queue)?;
        let (link, queue_link) = (index(links, name)?, index(links, queue)?);
        socket.request(&format!("bandwidth from the pod on {queue}"), token_bucket(queue_link, bits))?;
        let ingress = Message::new(RTM_NEWQDISC, NLM_F_CREATE, &header(link, INGRESS_HANDLE, TC_H_INGRESS, 0))
            .string(TCA_KIND, "ingress");
        socket.request(&format!("ingress queue of {name}"), ingress)?;
        socket.request(&format!("redirection of {name} to {queue}"), redirection(link, queue_link))?;
    }
    Ok(())
}

/// A queue that lets `bits` per second through.
fn token_bucket(link: u32, bits: u64) -> Message {
    let rate = bits.div_ceil(8).max(1);
    let burst = burst(rate);
    let waiting = u32::try_from(rate / WAIT_PART + burst).unwrap_or(u32::MAX);
    // tc_tbf_qopt: two tc_ratespec (rate and peak), then limit, buffer and mtu. The kernel takes the bucket in bytes from
    // an attribute of its own, and rates of 4 GiB/s and more too.
    let mut options = [0; 36];
    options[1] = TC_LINKLAYER_ETHERNET;
    options[8..12].copy_from_slice(&u32::try_from(rate).unwrap_or(u32::MAX).to_ne_bytes());
    options[24..28].copy_from_slice(&waiting.to_ne_bytes());
    let burst = u32::try_from(burst).unwrap_or(u32::MAX);
    Message::new(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, &header(link, ROOT_HANDLE, TC_H_ROOT, 0))
        .string(TCA_KIND, "tbf")
        .nest(TCA_OPTIONS, |tbf| {
            let tbf = tbf.bytes(TCA_TBF_PARMS, &options).ne32(TCA_TBF_BURST, burst);
            if rate > u32::MAX.into() { tbf.ne64(TCA_TBF_RATE64, rate) } else { tbf }
        })
}

/// The bucket for a rate; both in bytes.
pub(super) fn burst(rate: u64) -> u64 {
    (rate / BURST_PART).clamp(BURST_LEAST, BURST_MOST)
}

/// A filter that matches every packet (u32 with an empty mask) and leads it to another link.
fn redirection(link: u32, to: u32) -> Message {
    let info = u32::from(ETH_P_ALL.to_be()) | (1 << 16);
    // tc_u32_sel: flags "terminal", one key; then the key: mask, value, offset and offset mask, all zero.
    let mut selector = [0; 32];
    selector[0] = 1;
    selector[2] = 1;
    // tc_mirred: index, capab, action, refcnt, bindcnt, eaction, ifindex.
    let mut mirred = [0; 28];
    mirred[8..12].copy_from_slice(&TC_ACT_STOLEN.to_ne_bytes());
    mirred[20..24].copy_from_slice(&TCA_EGRESS_REDIR.to_ne_bytes());
    mirred[24..28].copy_from_slice(&to.to_ne_bytes());
    Message::new(RTM_NEWTFILTER, NLM_F_CREATE, &header(link, 0, INGRESS_HANDLE, info)).string(TCA_KIND, "u32").nest(
        TCA_OPTIONS,
        |filter| {
            filter
                .nest(TCA_U32_ACT, |actions| {
                    actions.nest(1, |action| {
                        action
                            .string(TCA_ACT_KIND, "mirred")
                            .nest(TCA_ACT_OPTIONS, |options| options.bytes(TCA_MIRRED_PARMS, &mirred))
                    })
                })
                .bytes(TCA_U32_SEL, &selector)
        },
    )
}

/// tcmsg.
fn header(link: u32, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    let mut header = [0; 20];
    for (at, word) in [(4, link), (8, handle), (12, parent), (16, info)] {
        header[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }
    header
}
