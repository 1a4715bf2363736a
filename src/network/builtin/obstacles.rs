//! Rules of others that keep forwarded packets from pods.
//!
//! In nftables a packet passes only when every base chain of its hook accepts it (nft(8)), and the old packet filter is asked
//! beside all of them: no "accept" of ours undoes a "drop" of theirs, and we write into no table of others. So they are named.
//!
//! A chain is in the way when its policy is to drop, or a rule drops all that comes to it, unless one of its rules compares
//! a link's name with that of the bridge: then somebody made it with pods in mind. Links that are named in a set are not seen.

use std::collections::{HashSet, VecDeque};

use crate::sys::netlink::{Family, NetlinkError, Socket, attributes, be32, find, text};
use crate::sys::xtables::{self, Forward};

use super::link::BRIDGE;
use super::nft;

/// Chains that are followed from one that drops, itself included.
const CHAINS_MAX: usize = 32;

/// `NF_INET_FORWARD`.
const FORWARD: u32 = 2;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
/// `NFT_JUMP` and `NFT_GOTO` are negative numbers.
const NFT_JUMP: u32 = u32::MAX - 2;
const NFT_GOTO: u32 = u32::MAX - 3;

const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_TARGET_NAME: u16 = 1;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;

/// Everything that is in the way, in words.
///
/// # Errors
/// When the kernel does not list its chains.
pub fn look() -> Result<Vec<String>, NetlinkError> {
    let mut found = of_nftables(&mut Socket::open(Family::Netfilter)?)?;
    for (family, program) in [(xtables::Family::Ipv4, "iptables"), (xtables::Family::Ipv6, "ip6tables")] {
        let place = format!("chain FORWARD of {program}-legacy");
        match xtables::forward(family, BRIDGE) {
            Ok(Forward::Passes) => {}
            Ok(Forward::DropsByPolicy) => found.push(by_policy(&place)),
            Ok(Forward::DropsByRule(number)) => found.push(by_rule(&format!("rule {number}"), &place)),
            Err(error) => tracing::debug!(%error, program, "the old packet filter cannot be read"),
        }
    }
    Ok(found)
}

fn by_policy(place: &str) -> String {
    format!("{place} has the policy drop: it must accept packets from and to {BRIDGE}")
}

fn by_rule(rule: &str, place: &str) -> String {
    format!("{rule} of {place} drops all that comes to it: before it, packets from and to {BRIDGE} must be accepted")
}

/// A chain at the hook "forward".
#[derive(Debug)]
struct Chain {
    table: String,
    name: String,
    policy_drops: bool,
}

/// What one rule does, as far as it matters here.
#[derive(Debug, Default)]
struct Rule {
    chain: String,
    handle: u64,
    /// What it does with every packet.
    always: Option<Verdict>,
    names_bridge: bool,
    leads_to: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Accept,
    Drop,
}

fn of_nftables(socket: &mut Socket) -> Result<Vec<String>, NetlinkError> {
    let mut said = Vec::new();
    for (family, word) in [(nft::INET, "inet"), (nft::IPV4, "ip"), (nft::IPV6, "ip6")] {
        let chains =
            socket.dump("chains of nftables", &nft::chains(family), |found: &mut Vec<Chain>, _, payload| {
                found.extend(forwarding(payload));
            })?;
        for chain in chains {
            let own = rules(socket, family, &chain.table, &chain.name)?;
            let place = format!("chain {word} {} {} of nftables", chain.table, chain.name);
            let obstacle = match own.iter().find_map(|rule| rule.always.map(|verdict| (verdict, rule.handle))) {
                Some((Verdict::Accept, _)) => continue,
                Some((Verdict::Drop, handle)) => by_rule(&format!("the rule with handle {handle}"), &place),
                None if chain.policy_drops => by_policy(&place),
                None => continue,
            };
            if !names_bridge(socket, family, &chain, own)? {
                said.push(obstacle);
            }
        }
    }
    Ok(said)
}

/// Whether a rule of a chain, or of one that it leads to, names the bridge.
fn names_bridge(socket: &mut Socket, family: u8, base: &Chain, own: Vec<Rule>) -> Result<bool, NetlinkError> {
    let mut seen = HashSet::from([base.name.clone()]);
    let mut next = VecDeque::from([own]);
    while let Some(rules_of_one) = next.pop_front() {
        if rules_of_one.iter().any(|rule| rule.names_bridge) {
            return Ok(true);
        }
        for chain in rules_of_one.into_iter().filter_map(|rule| rule.leads_to) {
            if seen.len() < CHAINS_MAX && seen.insert(chain.clone()) {
                next.push_back(rules(socket, family, &base.table, &chain)?);
            }
        }
    }
    Ok(false)
}

fn rules(socket: &mut Socket, family: u8, table: &str, chain: &str) -> Result<Vec<Rule>, NetlinkError> {
    let listed =
        socket.dump("rules of nftables", &nft::rules(family, table, chain), |found: &mut Vec<Rule>, _, payload| {
            found.extend(payload.get(4..).map(read_rule));
        });
    match listed {
        // Somebody removed it since.
        Err(error) if error.is_missing() => Ok(Vec::new()),
        // Older kernels list the whole table.
        listed => listed.map(|rules| rules.into_iter().filter(|rule| rule.chain == chain).collect()),
    }
}

fn forwarding(payload: &[u8]) -> Option<Chain> {
    let chain = payload.get(4..)?;
    let hook = find(chain, NFTA_CHAIN_HOOK).and_then(|hook| find(hook, NFTA_HOOK_HOOKNUM)).and_then(be32)?;
    let name = |kind| find(chain, kind).map(text).unwrap_or_default();
    let policy_drops = find(chain, NFTA_CHAIN_POLICY).and_then(be32) == Some(NF_DROP);
    (hook == FORWARD).then(|| Chain { table: name(NFTA_CHAIN_TABLE), name: name(NFTA_CHAIN_NAME), policy_drops })
}

fn read_rule(rule: &[u8]) -> Rule {
    let handle = find(rule, NFTA_RULE_HANDLE).and_then(|value| value.try_into().ok()).map_or(0, u64::from_be_bytes);
    let mut read = Rule { chain: find(rule, NFTA_RULE_CHAIN).map(text).unwrap_or_default(), handle, ..Rule::default() };
    let mut unconditional = true;
    let mut verdict = None;
    for (_, expression) in attributes(find(rule, NFTA_RULE_EXPRESSIONS).unwrap_or_default()) {
        let name = find(expression, NFTA_EXPR_NAME).map(text).unwrap_or_default();
        let data = find(expression, NFTA_EXPR_DATA).unwrap_or_default();
        match name.as_str() {
            "counter" | "log" => {}
            "reject" => verdict = Some(Verdict::Drop),
            "target" if find(data, NFTA_TARGET_NAME).map(text).as_deref() == Some("REJECT") => {
                verdict = Some(Verdict::Drop);
            }
            "immediate" => match immediate(data) {
                Some((NF_DROP, _)) => verdict = Some(Verdict::Drop),
                Some((NF_ACCEPT, _)) => verdict = Some(Verdict::Accept),
                Some((NFT_JUMP | NFT_GOTO, chain)) => read.leads_to = Some(chain),
                _ => unconditional = false,
            },
            "cmp" => {
                unconditional = false;
                let value = find(data, NFTA_CMP_DATA).and_then(|data| find(data, NFTA_DATA_VALUE));
                read.names_bridge |= value.is_some_and(|value| text(value) == BRIDGE);
            }
            _ => unconditional = false,
        }
    }
    read.always = verdict.filter(|_| unconditional);
    read
}

/// The code of a verdict, and the chain that it leads to.
fn immediate(data: &[u8]) -> Option<(u32, String)> {
    let verdict = find(find(data, NFTA_IMMEDIATE_DATA)?, NFTA_DATA_VERDICT)?;
    let chain = find(verdict, NFTA_VERDICT_CHAIN).map(text).unwrap_or_default();
    Some((find(verdict, NFTA_VERDICT_CODE).and_then(be32)?, chain))
}
