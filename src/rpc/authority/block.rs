//! Header blocks (HPACK, RFC 7541): decoded with the client's table, and written anew without one.
//!
//! The decoder is given one field at a time, each measured beforehand: it panics on a size update that is cut off, and it
//! cannot be stopped within a block that unpacks to a multiple of its size.

use fluke_hpack::Decoder;

/// The header table that h2 offers its clients; nothing here or in tonic changes it.
const TABLE: usize = 4096;

/// The largest block that is decoded, each field counted with the table's overhead of 32 bytes.
pub(super) const MAX_DECODED: usize = 256 << 10;

/// The longest integer: as long as the decoder takes, which is beyond every length that fits in a block.
const MAX_INTEGER: usize = 5;

const NAME: &[u8] = b":authority";
const LOCAL: &[u8] = b"localhost";

pub(super) enum Verdict {
    /// h2 takes all of it.
    Legal,
    /// It has an authority that h2 would refuse.
    Replaced,
}

/// Broken, or larger than is followed.
#[derive(Debug)]
pub(super) struct Undecodable;

/// The client's header table, and the last block decoded with it.
pub(super) struct Blocks {
    decoder: Decoder<'static>,
    anew: Vec<u8>,
}

impl Blocks {
    pub(super) fn new() -> Self {
        let mut decoder = Decoder::new();
        decoder.set_max_allowed_table_size(TABLE);
        Self { decoder, anew: Vec::new() }
    }

    /// The last block, every field as a literal that is not to be indexed, with the authority replaced.
    pub(super) fn written_anew(&self) -> &[u8] {
        &self.anew
    }

    pub(super) fn decode(&mut self, mut block: &[u8]) -> Result<Verdict, Undecodable> {
        self.anew.clear();
        let mut verdict = Verdict::Legal;
        let mut decoded = 0;
        let mut fields_seen = false;
        while !block.is_empty() {
            let (field, rest) = block.split_at(measure(block).ok_or(Undecodable)?);
            block = rest;
            if field[0] & 0xe0 == 0x20 {
                // Only allowed at the start of a block (section 4.2).
                if fields_seen {
                    return Err(Undecodable);
                }
                self.resize(field)?;
                continue;
            }
            fields_seen = true;
            // "Never indexed" marks a secret, and h2 hands the mark on.
            let mark = if field[0] & 0xf0 == 0x10 { 0x10 } else { 0 };
            let anew = &mut self.anew;
            let done = self.decoder.decode_with_cb(field, |name, value| {
                decoded += name.len() + value.len() + 32;
                if decoded > MAX_DECODED {
                    return;
                }
                let refused = &*name == NAME && http::uri::Authority::try_from(&*value).is_err();
                if refused {
                    verdict = Verdict::Replaced;
                }
                anew.push(mark);
                write_string(&name, anew);
                write_string(if refused { LOCAL } else { &value }, anew);
            });
            if done.is_err() || decoded > MAX_DECODED {
                return Err(Undecodable);
            }
        }
        Ok(verdict)
    }

    /// A change of the table's size. By itself it is "at the end of a block" to the decoder, which has then applied it.
    fn resize(&mut self, field: &[u8]) -> Result<(), Undecodable> {
        match self.decoder.decode_with_cb(field, |_, _| {}) {
            Ok(()) | Err(fluke_hpack::decoder::DecoderError::SizeUpdateAtEnd) => Ok(()),
            Err(_) => Err(Undecodable),
        }
    }
}

/// The length of the first field, if it is all there (section 6).
fn measure(block: &[u8]) -> Option<usize> {
    let first = *block.first()?;
    let (prefix, is_literal) = match first {
        0x80.. => (7, false),
        0x40.. => (6, true),
        0x20.. => (5, false),
        _ => (4, true),
    };
    let (index, mut length) = integer(block, prefix)?;
    if is_literal {
        for _ in 0..if index == 0 { 2 } else { 1 } {
            let (text, digits) = integer(block.get(length..)?, 7)?;
            length = length.checked_add(digits)?.checked_add(text)?;
        }
    }
    (length <= block.len()).then_some(length)
}

/// An integer with so many bits in its first byte, and the bytes that it takes (section 5.1).
fn integer(bytes: &[u8], prefix: u32) -> Option<(usize, usize)> {
    let most = (1_usize << prefix) - 1;
    let first = usize::from(*bytes.first()?) & most;
    if first < most {
        return Some((first, 1));
    }
    let mut value = first;
    for (at, byte) in bytes.iter().enumerate().take(MAX_INTEGER).skip(1) {
        value += usize::from(byte & 0x7f) << (7 * (at - 1));
        if byte & 0x80 == 0 {
            return Some((value, at + 1));
        }
    }
    None
}

/// A plain string literal (section 5.2).
fn write_string(text: &[u8], into: &mut Vec<u8>) {
    let mut rest = text.len();
    if rest < 0x7f {
        into.push(u8::try_from(rest).expect("below 127"));
    } else {
        into.push(0x7f);
        rest -= 0x7f;
        while rest >= 0x80 {
            into.push(u8::try_from(rest % 0x80).expect("below 128") | 0x80);
            rest /= 0x80;
        }
        into.push(u8::try_from(rest).expect("below 128"));
    }
    into.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_off_and_garbage_blocks_are_undecodable_and_do_not_panic() {
        let bad: &[&[u8]] = &[
            &[0x3f],                               // a size update without its digits: the decoder would panic
            &[0x3f, 0xff, 0xff, 0xff, 0xff, 0x0f], // a size beyond the table
            &[0x3f, 0xe2, 0x1f],                   // 4097
            &[0x80],                               // index 0
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff], // an endless integer
            &[0xbe],                               // an empty dynamic table
            &[0x40, 0x01],                         // a name that does not come
            &[0x00, 0x01, b'a', 0x7f, 0xff],       // a value's length that does not come
            &[0x00, 0x81, 0x00, 0x00],             // Huffman padding of zeros
            &[0x82, 0x20],                         // a size update behind a field
        ];
        for block in bad {
            assert!(Blocks::new().decode(block).is_err(), "{block:02x?}");
        }
        assert!(Blocks::new().decode(&[0x20, 0x3f, 0xe1, 0x1f, 0x82]).is_ok(), "0, then 4096, then a field");
        assert!(Blocks::new().decode(&[]).is_ok());
    }

    #[test]
    fn a_bomb_is_undecodable() {
        // One entry of 4000 bytes, then a thousand references to it in a byte each.
        let mut block = vec![0x40, 0x01, b'a'];
        let value = vec![b'x'; 4000];
        write_string(&value, &mut block);
        block.extend(std::iter::repeat_n(0xbe, 1000));
        let mut blocks = Blocks::new();
        assert!(blocks.decode(&block).is_err());
        assert!(blocks.anew.len() <= MAX_DECODED);
    }

    #[test]
    fn strings_of_every_length_come_back() {
        for length in [0, 1, 126, 127, 128, 254, 255, 300, 16_384, 20_000] {
            let mut block = vec![0x00];
            write_string(b"n", &mut block);
            write_string(&vec![b'v'; length], &mut block);
            let mut blocks = Blocks::new();
            assert!(blocks.decode(&block).is_ok(), "{length}");
            assert_eq!(blocks.written_anew(), block);
        }
    }

    #[test]
    fn the_mark_of_a_secret_stays() {
        let mut block = vec![0x10];
        write_string(b"authorization", &mut block);
        write_string(b"s", &mut block);
        let mut blocks = Blocks::new();
        assert!(blocks.decode(&block).is_ok());
        assert_eq!(blocks.written_anew(), block);
    }
}
