//! nftables by netlink: tables, chains, sets, elements and rules as messages of a transaction, and the few expressions that
//! our rules are made of. Names of constants are those of `linux/netfilter/nf_tables.h`.

use crate::sys::netlink::Message;

/// `NFPROTO_INET`: IPv4 and IPv6 in one table.
pub const INET: u8 = 1;
/// `NFPROTO_BRIDGE`: frames between the ports of a bridge.
pub const FRAMES: u8 = 7;
const UNSPECIFIED: u8 = 0;
pub const IPV4: u8 = 2;
pub const IPV6: u8 = 10;

const SUBSYSTEM: u16 = 10 << 8;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
pub const NFT_MSG_NEWTABLE: u16 = SUBSYSTEM;
pub const NFT_MSG_DELTABLE: u16 = SUBSYSTEM | 2;
const NFT_MSG_NEWCHAIN: u16 = SUBSYSTEM | 3;
const NFT_MSG_GETCHAIN: u16 = SUBSYSTEM | 4;
pub const NFT_MSG_NEWRULE: u16 = SUBSYSTEM | 6;
const NFT_MSG_GETRULE: u16 = SUBSYSTEM | 7;
const NFT_MSG_NEWSET: u16 = SUBSYSTEM | 9;
pub const NFT_MSG_NEWSETELEM: u16 = SUBSYSTEM | 12;
pub const NFT_MSG_DELSETELEM: u16 = SUBSYSTEM | 14;
pub const NFT_MSG_NEWGEN: u16 = SUBSYSTEM | 15;

const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

/// Whether a message is about a table, a chain or a rule: those that are made, and those that go.
#[must_use]
pub fn is_of_rules(kind: u16) -> bool {
    (NFT_MSG_NEWTABLE..NFT_MSG_NEWSET).contains(&kind)
}

/// Elements of one message, in bytes: the attribute that holds them has 16 bits for its length.
const ELEMENTS_MAX: usize = 48 * 1024;

pub const SET_INTERVAL: u32 = 4;
pub const SET_MAP: u32 = 8;

/// Where a chain is called (`NF_INET_*`, `NF_BR_*`).
#[derive(Debug, Clone, Copy)]
pub struct Hook {
    pub kind: &'static str,
    pub number: u32,
    pub priority: i32,
}

/// A set, or a map when its elements have data. Lengths are in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Set {
    pub name: &'static str,
    pub flags: u32,
    /// How `nft list` is to show keys and data; the kernel does not read it.
    pub key_type: u32,
    pub key: u32,
    pub data_type: u32,
    pub data: u32,
}

/// An element: a key, and data where the set is a map.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Element {
    pub key: Vec<u8>,
    pub data: Vec<u8>,
    /// The first key that is not in an interval any more.
    pub ends: bool,
}

fn header(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

fn batch(kind: u16) -> Message {
    // The id of the subsystem, in the network's byte order.
    Message::new(kind, 0, &[UNSPECIFIED, 0, 0, 10])
}

/// The messages between the brackets of a transaction, the last of which asks for the answer.
#[must_use]
pub fn transaction(mut messages: Vec<Message>) -> Vec<Message> {
    if let Some(last) = messages.pop() {
        messages.push(last.acknowledged());
    }
    messages.insert(0, batch(NFNL_MSG_BATCH_BEGIN));
    messages.push(batch(NFNL_MSG_BATCH_END));
    messages
}

/// Makes a table; fine when it is there.
#[must_use]
pub fn add_table(family: u8, table: &str) -> Message {
    Message::new(NFT_MSG_NEWTABLE, NLM_F_CREATE, &header(family)).string(1, table)
}

/// Removes a table with all that is in it.
#[must_use]
pub fn delete_table(family: u8, table: &str) -> Message {
    Message::new(NFT_MSG_DELTABLE, 0, &header(family)).string(1, table)
}

/// A chain that the kernel calls, with the policy "accept".
#[must_use]
pub fn add_chain(family: u8, table: &str, chain: &str, hook: Hook) -> Message {
    Message::new(NFT_MSG_NEWCHAIN, NLM_F_CREATE, &header(family))
        .string(1, table)
        .string(3, chain)
        .nest(4, |at| at.be32(1, hook.number).bytes(2, &hook.priority.to_be_bytes()))
        .be32(5, 1)
        .string(7, hook.kind)
}

/// Asks for the chains of a family.
#[must_use]
pub fn chains(family: u8) -> Message {
    Message::new(NFT_MSG_GETCHAIN, 0, &header(family))
}

/// Asks for the rules of a chain. Kernels before 4.20 list those of the whole table.
#[must_use]
pub fn rules(family: u8, table: &str, chain: &str) -> Message {
    Message::new(NFT_MSG_GETRULE, 0, &header(family)).string(1, table).string(2, chain)
}

/// A set. `number` must differ from that of the other sets of the transaction.
#[must_use]
pub fn add_set(family: u8, table: &str, set: &Set, number: u32) -> Message {
    let message = Message::new(NFT_MSG_NEWSET, NLM_F_CREATE, &header(family))
        .string(1, table)
        .string(2, set.name)
        .be32(3, set.flags)
        .be32(4, set.key_type)
        .be32(5, set.key)
        .be32(10, number);
    if set.flags & SET_MAP == 0 { message } else { message.be32(6, set.data_type).be32(7, set.data) }
}

/// Puts elements into a set (`NFT_MSG_NEWSETELEM`; one that is there with the same data is fine) or takes them out
/// (`NFT_MSG_DELSETELEM`; a missing one fails the transaction).
#[must_use]
pub fn elements(kind: u16, family: u8, table: &str, set: &str, elements: &[&Element]) -> Vec<Message> {
    let flags = if kind == NFT_MSG_NEWSETELEM { NLM_F_CREATE } else { 0 };
    let mut messages = Vec::new();
    let mut rest = elements;
    while !rest.is_empty() {
        let message = Message::new(kind, flags, &header(family)).string(1, table).string(2, set);
        let mut taken = 0;
        messages.push(message.nest(3, |mut list| {
            while let Some(element) = rest.get(taken).filter(|_| list.size() < ELEMENTS_MAX) {
                list = list.nest(1, |one| write_element(one, element));
                taken += 1;
            }
            list
        }));
        rest = &rest[taken..];
    }
    messages
}

fn write_element(message: Message, element: &Element) -> Message {
    let mut message = message.nest(1, |key| key.bytes(1, &element.key));
    if !element.data.is_empty() {
        message = message.nest(2, |data| data.bytes(1, &element.data));
    }
    if element.ends { message.be32(3, 1) } else { message }
}

/// Asks for the elements of a set.
#[cfg(test)]
#[must_use]
pub fn listing(family: u8, table: &str, set: &str) -> Message {
    Message::new(SUBSYSTEM | 13, 0, &header(family)).string(1, table).string(2, set)
}

/// A rule at the end of a chain.
#[must_use]
pub fn add_rule(family: u8, table: &str, chain: &str, expressions: &[Expression<'_>]) -> Message {
    Message::new(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, &header(family)).string(1, table).string(2, chain).nest(
        4,
        |mut list| {
            for expression in expressions {
                list = expression.write(list);
            }
            list
        },
    )
}

/// Where a payload is read (`nft_payload_bases`).
pub const LINK_LAYER: u32 = 0;
pub const NETWORK: u32 = 1;
pub const TRANSPORT: u32 = 2;

/// Keys of meta (`nft_meta_keys`).
pub const PROTOCOL: u32 = 1;
pub const IIFNAME: u32 = 6;
pub const OIFNAME: u32 = 7;
pub const NFPROTO: u32 = 15;
pub const L4PROTO: u32 = 16;

/// The first 4-byte register; there are 16, which expressions name by a number from 0 on here.
const NFT_REG32_00: u32 = 8;
const NFT_REG_VERDICT: u32 = 0;

const NFT_CMP_EQ: u32 = 0;
const NFT_CMP_NEQ: u32 = 1;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const NFT_CT_STATUS: u32 = 2;
/// The connection's destination was changed.
const IPS_DST_NAT: u32 = 1 << 5;
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const NFTA_FIB_F_DADDR: u32 = 2;
/// An address of this host.
const RTN_LOCAL: u32 = 2;
const NFT_NAT_DNAT: u32 = 1;
/// Source ports are drawn by lot, so that two connections at the same moment do not get the same.
const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 1 << 4;

/// A step of a rule. The registers named hold 4 bytes each; a longer value runs on into the next ones.
#[derive(Debug, Clone)]
pub enum Expression<'a> {
    /// Loads a fact about the packet.
    Meta {
        key: u32,
        to: u32,
    },
    /// Loads bytes of the packet; the rule ends when it is too short.
    Payload {
        base: u32,
        offset: u32,
        length: u32,
        to: u32,
    },
    /// The rule ends unless the register holds this.
    Equal {
        from: u32,
        value: &'a [u8],
    },
    /// The rule ends unless the set has the key (or unless it has it not).
    InSet {
        set: &'a str,
        from: u32,
        not: bool,
    },
    /// Loads what a map has for the key; the rule ends when it has nothing.
    Map {
        map: &'a str,
        from: u32,
        to: u32,
    },
    /// The rule ends unless the packet goes to an address of this host. Register 0 is overwritten.
    ToThisHost,
    /// The rule ends unless the connection's destination was changed. Register 0 is overwritten.
    Redirected,
    /// Changes the destination to the address and the port of two registers.
    Redirect {
        family: u8,
        address: u32,
        port: u32,
    },
    /// Changes the source to the node's address.
    Masquerade,
    Accept,
    Drop,
}

impl Expression<'_> {
    /// Appends the kernel's expressions, of which one of ours may be several.
    fn write(&self, list: Message) -> Message {
        match *self {
            Self::Meta { key, to } => one(list, "meta", |data| data.be32(1, register(to)).be32(2, key)),
            Self::Payload { base, offset, length, to } => {
                one(list, "payload", |data| data.be32(1, register(to)).be32(2, base).be32(3, offset).be32(4, length))
            }
            Self::Equal { from, value } => compare(list, from, NFT_CMP_EQ, value),
            Self::InSet { set, from, not } => {
                one(list, "lookup", |data| data.string(1, set).be32(2, register(from)).be32(5, u32::from(not)))
            }
            Self::Map { map, from, to } => {
                one(list, "lookup", |data| data.string(1, map).be32(2, register(from)).be32(3, register(to)))
            }
            Self::ToThisHost => {
                let kind = |data: Message| {
                    data.be32(1, register(0)).be32(2, NFT_FIB_RESULT_ADDRTYPE).be32(3, NFTA_FIB_F_DADDR)
                };
                compare(one(list, "fib", kind), 0, NFT_CMP_EQ, &RTN_LOCAL.to_ne_bytes())
            }
            Self::Redirected => {
                let list = one(list, "ct", |data| data.be32(1, register(0)).be32(2, NFT_CT_STATUS));
                let list = one(list, "bitwise", |data| {
                    data.be32(1, register(0))
                        .be32(2, register(0))
                        .be32(3, 4)
                        .nest(4, |mask| mask.bytes(1, &IPS_DST_NAT.to_ne_bytes()))
                        .nest(5, |xor| xor.bytes(1, &[0; 4]))
                });
                compare(list, 0, NFT_CMP_NEQ, &[0; 4])
            }
            Self::Redirect { family, address, port } => one(list, "nat", |data| {
                data.be32(1, NFT_NAT_DNAT).be32(2, family.into()).be32(3, register(address)).be32(5, register(port))
            }),
            Self::Masquerade => one(list, "masq", |data| data.be32(1, NF_NAT_RANGE_PROTO_RANDOM_FULLY)),
            Self::Accept => verdict(list, NF_ACCEPT),
            Self::Drop => verdict(list, NF_DROP),
        }
    }
}

fn register(number: u32) -> u32 {
    NFT_REG32_00 + number
}

fn one(list: Message, name: &str, data: impl FnOnce(Message) -> Message) -> Message {
    list.nest(1, |expression| expression.string(1, name).nest(2, data))
}

fn compare(list: Message, from: u32, operation: u32, value: &[u8]) -> Message {
    one(list, "cmp", |data| data.be32(1, register(from)).be32(2, operation).nest(3, |wanted| wanted.bytes(1, value)))
}

fn verdict(list: Message, code: u32) -> Message {
    one(list, "immediate", |data| {
        data.be32(1, NFT_REG_VERDICT).nest(2, |value| value.nest(2, |verdict| verdict.be32(1, code)))
    })
}
