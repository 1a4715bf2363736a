//! Ids: ours for each operation, and the client's trace.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// A new id for an operation: 8 letters and digits that tie its log lines together. It is no secret and names nothing.
#[must_use]
pub fn operation_id() -> String {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let mut bits = random();
    let mut text = String::with_capacity(8);
    for _ in 0..8 {
        let index = usize::try_from(bits & 31).expect("5 bits fit");
        text.push(char::from(ALPHABET[index]));
        bits >>= 5;
    }
    text
}

/// 64 bits that differ from call to call. The kernel's randomness, or should it have none yet, a count.
fn random() -> u64 {
    static FALLBACK: AtomicU64 = AtomicU64::new(1);
    let mut bytes = [0; 8];
    match rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::NONBLOCK) {
        Ok(8) => u64::from_ne_bytes(bytes),
        _ => FALLBACK.fetch_add(1, Ordering::Relaxed),
    }
}

/// The caller's place in a trace: the `traceparent` header (W3C Trace Context, section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    trace: u128,
    parent: u64,
    sampled: bool,
}

impl TraceParent {
    /// Parses `version-trace-parent-flags`. Anything that the recommendation does not allow is `None`, and the header then
    /// counts as absent: capital letters, ids of zeros, version `ff`, and more after the flags in version `00`.
    #[must_use]
    pub fn parse(header: &str) -> Option<Self> {
        let bytes = header.as_bytes();
        let dashes = bytes.len() >= 55 && [2, 35, 52].iter().all(|at| bytes[*at] == b'-');
        if !dashes || !header.is_ascii() {
            return None;
        }
        let version = hex(&header[..2])?;
        let more = &header[55..];
        let longer_is_legal = version != 0 && more.starts_with('-');
        if version == 0xff || !(more.is_empty() || longer_is_legal) {
            return None;
        }
        let trace = hex(&header[3..35])?;
        let parent = u64::try_from(hex(&header[36..52])?).ok()?;
        let flags = hex(&header[53..55])?;
        (trace != 0 && parent != 0).then_some(Self { trace, parent, sampled: flags & 1 == 1 })
    }

    /// The trace's id: 32 hexadecimal digits.
    #[must_use]
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace)
    }

    /// The calling span's id: 16 hexadecimal digits.
    #[must_use]
    pub fn parent_id(&self) -> String {
        format!("{:016x}", self.parent)
    }

    /// Whether the caller records this trace.
    #[must_use]
    pub fn sampled(&self) -> bool {
        self.sampled
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.parent, u8::from(self.sampled))
    }
}

/// The trace id of a `traceparent` header, if it is a legal one.
#[must_use]
pub fn trace_id(header: &str) -> Option<String> {
    TraceParent::parse(header).map(|parsed| parsed.trace_id())
}

/// Lower-case digits only.
fn hex(text: &str) -> Option<u128> {
    let legal = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    legal.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_legal_header_comes_back_as_it_was() {
        let parsed = TraceParent::parse(GOOD).unwrap();
        assert_eq!(parsed.to_string(), GOOD);
        assert_eq!(parsed.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(parsed.parent_id(), "00f067aa0ba902b7");
        assert!(parsed.sampled() && !TraceParent::parse(&GOOD.replace("-01", "-00")).unwrap().sampled());
        assert!(TraceParent::parse(&format!("cc{}-extra", &GOOD[2..])).is_some(), "a later version may be longer");
    }

    #[test]
    fn illegal_headers_count_as_absent() {
        let zeros = |from: usize, to: usize| format!("{}{}{}", &GOOD[..from], "0".repeat(to - from), &GOOD[to..]);
        for bad in [
            "",
            "00",
            &GOOD[..54],
            &format!("{GOOD}0"),
            &format!("{GOOD}-extra"),
            &format!("ff{}", &GOOD[2..]),
            &format!("cc{}extra", &GOOD[2..]),
            &GOOD.to_uppercase(),
            &GOOD.replace('-', "_"),
            &GOOD.replace('f', "g"),
            &GOOD.replace("00f0", "+0f0"),
            &zeros(3, 35),
            &zeros(36, 52),
            "00-4bf92f3577b34da6a3ce929d0e0e47é-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceParent::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn operations_have_short_ids_of_their_own() {
        let ids: std::collections::BTreeSet<String> = (0..1000).map(|_| operation_id()).collect();
        assert!(ids.len() > 990 && ids.iter().all(|id| id.len() == 8), "{}", ids.len());
    }
}
