//! Reading attributes of the kernel's answers.

/// Kinds carry two flags in their upper bits.
const KIND: u16 = 0x3fff;

/// The attributes of a payload; a torn one ends the list.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & KIND;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of a kind.
#[must_use]
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A string up to its closing zero.
#[must_use]
pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// A number in the machine's byte order.
#[must_use]
pub fn ne32(value: &[u8]) -> Option<u32> {
    value.get(..4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// A number in the network's byte order.
#[must_use]
pub fn be32(value: &[u8]) -> Option<u32> {
    value.get(..4)?.try_into().ok().map(u32::from_be_bytes)
}

/// A number in the network's byte order.
#[must_use]
pub fn be16(value: &[u8]) -> Option<u16> {
    value.get(..2)?.try_into().ok().map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torn_attributes_end_the_list() {
        assert_eq!(attributes(&[]).count(), 0);
        assert_eq!(attributes(&[8, 0, 1, 0, 1, 2, 3]).count(), 0);
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
        let one = [5, 0, 1, 0, 9];
        assert_eq!(attributes(&one).collect::<Vec<_>>(), [(1, &[9][..])]);
    }
}
