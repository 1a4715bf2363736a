//! Base64 of messages that arrive in pieces.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

/// Decodes one message after the other.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// The beginning of a group of four, up to three characters.
    rest: Vec<u8>,
    /// The padding was read: nothing may follow.
    ended: bool,
}

impl Decoder {
    /// The bytes of the whole groups so far; `None` when it is not base64.
    pub(super) fn decode(&mut self, piece: &[u8]) -> Option<Bytes> {
        let mut text = std::mem::take(&mut self.rest);
        text.extend_from_slice(piece);
        self.rest = text.split_off(text.len() / 4 * 4);
        if text.is_empty() {
            return Some(Bytes::new());
        }
        if self.ended {
            return None;
        }
        self.ended = text.ends_with(b"=");
        STANDARD.decode(text).ok().map(Bytes::from)
    }

    /// At the end of a message: whether it was whole.
    pub(super) fn finish(&mut self) -> bool {
        self.ended = false;
        std::mem::take(&mut self.rest).is_empty()
    }
}

/// The text of a piece.
pub(super) fn encode(data: &[u8]) -> String {
    STANDARD.encode(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_joined_and_nonsense_is_refused() {
        for (pieces, want) in [
            (&["aGVsbG8="][..], Some("hello")),
            (&["a", "GV", "sbG", "8="], Some("hello")),
            (&["", "aGVs", ""], Some("hel")),
            (&["aGVsb"], None),
            (&["aGVsbG8=", "aGVs"], None),
            (&["a!Vs"], None),
            (&["===="], None),
        ] {
            let mut decoder = Decoder::default();
            let decoded: Option<Vec<Bytes>> = pieces.iter().map(|piece| decoder.decode(piece.as_bytes())).collect();
            let decoded = decoded.filter(|_| decoder.finish()).map(|parts| parts.concat());
            assert_eq!(decoded.as_deref(), want.map(str::as_bytes), "{pieces:?}");
        }
    }
}
