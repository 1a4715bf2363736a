//! The little formats of kernel files.

use super::{Pressure, Stall};

/// The value of a line `key value`.
pub(super) fn key(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    value.trim().parse().ok()
}

/// The pairs `name=value` of a line.
pub(super) fn pairs(line: &str) -> impl Iterator<Item = (&str, &str)> {
    line.split(' ').filter_map(|pair| pair.split_once('='))
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=166`, and the same for `full`, which older kernels leave out for the
/// processor. The file's total is in microseconds.
pub(super) fn pressure(text: &str) -> Option<Pressure> {
    let stall = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
        let field = |name: &str| pairs(line).find(|(own, _)| *own == name).map(|(_, value)| value);
        let average = |name: &str| field(name).and_then(|value| value.parse().ok()).filter(|a: &f64| a.is_finite());
        Some(Stall {
            avg10: average("avg10")?,
            avg60: average("avg60")?,
            avg300: average("avg300")?,
            total_ns: field("total")?.trim().parse::<u64>().ok()?.saturating_mul(1000),
        })
    };
    Some(Pressure { some: stall("some")?, full: stall("full").unwrap_or_default() })
}
