//! A request: the header, a family's own header, and attributes, which may be nested.

use super::{HEADER, NLM_F_ACK};

const NESTED: u16 = 0x8000;

/// A request that is being written. Attributes that do not fit into one (65,535 bytes) are a bug of the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    bytes: Vec<u8>,
    kind: u16,
    flags: u16,
}

impl Message {
    /// `header` is what the family puts before the attributes (ifinfomsg, rtmsg, nfgenmsg, …).
    #[must_use]
    pub fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes.extend_from_slice(header);
        Self { bytes, kind, flags }.padded()
    }

    /// Asks for an acknowledgement within a transaction.
    #[must_use]
    pub fn acknowledged(mut self) -> Self {
        self.flags |= NLM_F_ACK;
        self
    }

    pub(super) fn asks_for_answer(&self) -> bool {
        self.flags & NLM_F_ACK != 0
    }

    #[must_use]
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        self.head(kind, value.len());
        self.bytes.extend_from_slice(value);
        self.padded()
    }

    #[must_use]
    pub fn u8(self, kind: u16, value: u8) -> Self {
        self.bytes(kind, &[value])
    }

    /// In the machine's byte order, as rtnetlink has it.
    #[must_use]
    pub fn ne16(self, kind: u16, value: u16) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// In the machine's byte order.
    #[must_use]
    pub fn ne32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// In the machine's byte order.
    #[must_use]
    pub fn ne64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// In the network's byte order, as netfilter has it.
    #[must_use]
    pub fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A string with its closing zero.
    #[must_use]
    pub fn string(mut self, kind: u16, value: &str) -> Self {
        self.head(kind, value.len() + 1);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.padded()
    }

    /// Attributes within one.
    #[must_use]
    pub fn nest(self, kind: u16, inside: impl FnOnce(Self) -> Self) -> Self {
        self.nest_with(kind, &[], inside)
    }

    /// Attributes within one that begins with a header of its own.
    #[must_use]
    pub fn nest_with(mut self, kind: u16, header: &[u8], inside: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.head(kind | NESTED, header.len());
        self.bytes.extend_from_slice(header);
        let mut whole = inside(self.padded());
        let length = u16::try_from(whole.bytes.len() - start).expect("an attribute is below 64 KiB");
        whole.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        whole
    }

    /// Its size so far, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    fn head(&mut self, kind: u16, length: usize) {
        let length = u16::try_from(length + 4).expect("an attribute is below 64 KiB");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
    }

    fn padded(mut self) -> Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn finish(mut self, flags: u16, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).expect("a message is below 4 GiB");
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[4..6].copy_from_slice(&self.kind.to_ne_bytes());
        self.bytes[6..8].copy_from_slice(&(self.flags | flags).to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::super::{attributes, find};
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested() {
        let message = Message::new(1, 2, &[9; 4]).u8(1, 5).nest(2, |inner| inner.string(3, "ab").ne16(4, 7));
        let bytes = message.finish(4, 1);
        assert_eq!(bytes.len() % 4, 0);
        let rest = &bytes[20..];
        let kinds: Vec<u16> = attributes(rest).map(|(kind, _)| kind).collect();
        assert_eq!(kinds, [1, 2]);
        assert_eq!(find(rest, 1), Some(&[5][..]));
        let inner = find(rest, 2).unwrap();
        assert_eq!(find(inner, 3), Some(&b"ab\0"[..]));
        assert_eq!(find(inner, 4), Some(&7_u16.to_ne_bytes()[..]));
    }
}
