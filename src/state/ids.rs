//! Ids of sandboxes and containers, and what stands for one: people and scripts give a beginning that is unique.

use std::collections::BTreeMap;

/// What an id, or the beginning of one, stands for.
#[derive(Debug, PartialEq, Eq)]
pub enum Match<T> {
    None,
    One(T),
    /// So many ids begin so.
    Many(usize),
}

/// A fresh id: 32 random bytes as 64 hexadecimal digits.
#[must_use]
pub fn fresh_id() -> String {
    crate::sys::host::random_hex::<32>()
}

/// Looks an id up: a whole id is itself, whatever else begins so; an empty text stands for nothing.
#[must_use]
pub fn find<T: Clone>(index: &BTreeMap<String, T>, id: &str) -> Match<T> {
    if let Some(found) = index.get(id) {
        return Match::One(found.clone());
    }
    let mut matching = index.range(id.to_owned()..).take_while(|(known, _)| !id.is_empty() && known.starts_with(id));
    match (matching.next(), matching.count()) {
        (None, _) => Match::None,
        (Some((_, found)), 0) => Match::One(found.clone()),
        (Some(_), more) => Match::Many(more + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unique_beginning_is_enough() {
        let index: BTreeMap<String, u32> =
            [("ab12", 1), ("ab34", 2), ("ab", 3), ("cd", 4)].map(|(k, v)| (k.into(), v)).into();
        for (id, want) in [
            ("ab12", Match::One(1)),
            ("ab1", Match::One(1)),
            ("ab", Match::One(3)),
            ("a", Match::Many(3)),
            ("c", Match::One(4)),
            ("x", Match::None),
            ("", Match::None),
        ] {
            assert_eq!(find(&index, id), want, "{id:?}");
        }
        assert_eq!(fresh_id().len(), 64);
    }
}
