//! What the old packet filter of the kernel (`iptables-legacy`, `ip6tables-legacy`) does with forwarded packets. Read only.
//!
//! Layouts are those of `linux/netfilter_ipv4/ip_tables.h`, `linux/netfilter_ipv6/ip6_tables.h` and `linux/netfilter/x_tables.h`.
#![allow(unsafe_code)] // two socket options that no crate wraps

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto};

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
const GET_INFO: libc::c_int = 64;
/// `IPT_SO_GET_ENTRIES` and `IP6T_SO_GET_ENTRIES`.
const GET_ENTRIES: libc::c_int = 65;
/// `NF_INET_FORWARD`.
const FORWARD: usize = 2;
const NAME: usize = 32;
/// `struct ipt_getinfo`: a name, the valid hooks, five entries, five underflows, the number of entries and their size.
const INFO: usize = NAME + 4 + 20 + 20 + 4 + 4;
/// `struct ipt_get_entries` without the entries, which begin at a multiple of eight.
const HEAD: usize = 40;
/// Largest table that is read, in bytes; about 100,000 rules.
const TABLE_MAX: usize = 32 << 20;
/// The table is read anew so often when it changes between asking for its size and asking for it.
const TRIES: usize = 4;
/// `-NF_DROP - 1`.
const DROP: i32 = -1;
/// `struct xt_entry_target`: a length, a name and a revision.
const TARGET: usize = 32;

/// A family of the filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Ipv4,
    Ipv6,
}

/// Where the parts of an entry are, and which option speaks of them.
struct Layout {
    tables: &'static str,
    address: AddressFamily,
    level: libc::c_int,
    /// What an entry compares: `struct ipt_ip`, `struct ip6t_ip6`. All of it is zero when it compares nothing.
    compared: usize,
    /// Names of the links within that, 16 bytes each.
    links: usize,
    target_offset: usize,
    /// The whole entry without its matches and its target.
    entry: usize,
}

impl Family {
    const fn layout(self) -> Layout {
        match self {
            Self::Ipv4 => Layout {
                tables: "/proc/thread-self/net/ip_tables_names",
                address: AddressFamily::INET,
                level: libc::IPPROTO_IP,
                compared: 84,
                links: 16,
                target_offset: 88,
                entry: 112,
            },
            Self::Ipv6 => Layout {
                tables: "/proc/thread-self/net/ip6_tables_names",
                address: AddressFamily::INET6,
                level: libc::IPPROTO_IPV6,
                compared: 136,
                links: 64,
                target_offset: 140,
                entry: 168,
            },
        }
    }
}

/// What the chain FORWARD does at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forward {
    /// What no rule decides is let through; or a rule of the table names the link, and so has been made with it in mind.
    Passes,
    /// The policy is to drop.
    DropsByPolicy,
    /// Its rule with this number, from 1 on as `iptables -L --line-numbers` counts, drops or rejects all that comes to it.
    DropsByRule(usize),
}

/// Reads the table `filter` of the calling thread's network namespace. [`Forward::Passes`] where there is none: asking the kernel
/// for a table that nobody uses would make it.
///
/// # Errors
/// When there is one, and the kernel does not hand it out.
pub fn forward(family: Family, link: &str) -> io::Result<Forward> {
    let layout = family.layout();
    let tables = std::fs::read_to_string(layout.tables).unwrap_or_default();
    if !tables.lines().any(|table| table == "filter") {
        return Ok(Forward::Passes);
    }
    let protocol = Some(ipproto::RAW);
    let socket = rustix::net::socket_with(layout.address, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    for _ in 0..TRIES {
        let mut info = named(INFO);
        get_option(&socket, layout.level, GET_INFO, &mut info)?;
        let number = |at: usize| word(&info, at).and_then(|value| usize::try_from(value).ok()).unwrap_or(0);
        let (first, last, size) = (number(NAME + 4 + 4 * FORWARD), number(NAME + 24 + 4 * FORWARD), number(INFO - 4));
        if size > TABLE_MAX {
            return Err(io::Error::other(format!("the table has {size} bytes; at most {TABLE_MAX} are read")));
        }
        let mut table = named(HEAD + size);
        table[NAME..NAME + 4].copy_from_slice(&u32::try_from(size).unwrap_or(0).to_ne_bytes());
        match get_option(&socket, layout.level, GET_ENTRIES, &mut table) {
            Ok(()) => {
                let malformed = || io::Error::new(io::ErrorKind::InvalidData, "the table has not the kernel's form");
                return read(&layout, &table[HEAD..], (first, last), link).ok_or_else(malformed);
            }
            // It has another size by now.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("the table changed during each reading"))
}

/// What a table says; `None` when it has not the form that the kernel gives it. `first` and `last` are where the chain FORWARD
/// begins, and where the entry is that stands for its policy.
fn read(layout: &Layout, table: &[u8], (first, last): (usize, usize), link: &str) -> Option<Forward> {
    let mut name = [0; 16];
    name.get_mut(..link.len())?.copy_from_slice(link.as_bytes());
    let mut found = Forward::Passes;
    let (mut at, mut number) = (0, 0);
    while at < table.len() {
        let entry = table.get(at..)?;
        let target = usize::from(half(entry, layout.target_offset)?);
        let next = usize::from(half(entry, layout.target_offset + 2)?);
        if target < layout.entry || next < target + TARGET || next > entry.len() {
            return None;
        }
        let links = entry.get(layout.links..layout.links + 32)?;
        if links[..16] == name || links[16..] == name {
            return Some(Forward::Passes);
        }
        if (first..=last).contains(&at) {
            number += 1;
            let all = target == layout.entry && entry[..layout.compared].iter().all(|byte| *byte == 0);
            if all && found == Forward::Passes && drops(&entry[target..next]) {
                found = if at == last { Forward::DropsByPolicy } else { Forward::DropsByRule(number) };
            }
        }
        at += next;
    }
    Some(found)
}

fn drops(target: &[u8]) -> bool {
    let name = &target[2..TARGET - 1];
    let name = &name[..name.iter().position(|byte| *byte == 0).unwrap_or(name.len())];
    match name {
        b"" => word(target, TARGET).is_some_and(|verdict| i32::from_ne_bytes(verdict.to_ne_bytes()) == DROP),
        name => name == b"REJECT",
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

/// Room for an answer, with the name of the table at its beginning.
fn named(size: usize) -> Vec<u8> {
    let mut room = vec![0; size];
    room[..6].copy_from_slice(b"filter");
    room
}

fn get_option(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, room: &mut [u8]) -> io::Result<()> {
    let mut size = libc::socklen_t::try_from(room.len()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open; the kernel writes at most `size` bytes, which is how many there are.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, room.as_mut_ptr().cast(), &raw mut size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry with the target DROP, and what it compares.
    fn entry(layout: &Layout, compares: &[u8], verdict: i32) -> Vec<u8> {
        let mut entry = vec![0; layout.entry];
        entry[..compares.len()].copy_from_slice(compares);
        let target = u16::try_from(layout.entry).unwrap();
        entry[layout.target_offset..layout.target_offset + 2].copy_from_slice(&target.to_ne_bytes());
        entry[layout.target_offset + 2..layout.target_offset + 4].copy_from_slice(&(target + 40).to_ne_bytes());
        entry.extend([0; 32]);
        entry.extend(verdict.to_ne_bytes());
        entry.extend([0; 4]);
        entry
    }

    #[test]
    fn the_first_that_drops_everything_is_named() {
        for family in [Family::Ipv4, Family::Ipv6] {
            let layout = family.layout();
            let accept = entry(&layout, &[], -2);
            let drop = entry(&layout, &[], DROP);
            let some = entry(&layout, &[10], DROP);
            let mut named = entry(&layout, &[], -2);
            named[layout.links..layout.links + 3].copy_from_slice(b"br0");
            let one = accept.len();
            for (entries, wanted) in [
                ([&accept, &accept, &accept], Forward::Passes),
                ([&drop, &accept, &accept], Forward::Passes), // another chain's
                ([&accept, &some, &accept], Forward::Passes),
                ([&accept, &some, &drop], Forward::DropsByPolicy),
                ([&accept, &drop, &drop], Forward::DropsByRule(1)),
                ([&named, &some, &drop], Forward::Passes),
            ] {
                let table = entries.map(Vec::as_slice).concat();
                assert_eq!(read(&layout, &table, (one, 2 * one), "br0"), Some(wanted), "{family:?}");
            }
            for cut in 1..one {
                assert_eq!(read(&layout, &accept[..cut], (0, 0), "br0"), None);
            }
        }
    }
}
