//! How much memory a zstd stream asks for, and who may have it.
//!
//! A frame names the window that its decoder must keep. All but the highest levels stay at or below 8 MiB, which every decoder
//! has to offer (RFC 8878, 3.1.1.1.2). Larger ones are legal up to 128 MiB here, what the reference tool takes without being
//! told more; layers that ask for them are decoded one at a time, so that no number of images can multiply that.

use std::io::{self, BufRead, Cursor, Read};
use std::sync::{Mutex, PoisonError};

/// Windows up to this, as a power of two, are for all.
const USUAL: u32 = 23;
/// Larger ones are refused.
const LARGEST: u32 = 27;
/// The longest header of a frame that matters here: magic, descriptor, window, dictionary id, content size.
const HEADER: usize = 18;

/// Held while a layer with a large window is decoded.
static LARGE: Mutex<()> = Mutex::new(());

/// Runs `consume` on the decoded stream. The first frame tells of the window; a later one may not ask for more than that, or
/// than the usual.
pub(super) fn decoded<T>(
    mut input: impl BufRead,
    consume: impl FnOnce(&mut dyn Read) -> io::Result<T>,
) -> io::Result<T> {
    let mut head = Vec::with_capacity(HEADER);
    let limit = u64::try_from(HEADER).expect("a small number");
    input.by_ref().take(limit).read_to_end(&mut head)?;
    let window = window_log(&head).unwrap_or(USUAL);
    let _alone = (window > USUAL && window <= LARGEST).then(|| LARGE.lock().unwrap_or_else(PoisonError::into_inner));
    let mut decoder = zstd::Decoder::with_buffer(Cursor::new(head).chain(input))?;
    decoder.window_log_max(window.clamp(USUAL, LARGEST))?;
    consume(&mut decoder)
}

/// The window of the frame that begins here, rounded up to a power of two; `None` for what is no such frame (RFC 8878,
/// 3.1.1.1).
fn window_log(head: &[u8]) -> Option<u32> {
    let rest = head.strip_prefix(&[0x28, 0xb5, 0x2f, 0xfd])?;
    let (descriptor, rest) = rest.split_first()?;
    let window = if descriptor & 0x20 == 0 {
        let window = u64::from(*rest.first()?);
        let base = 1_u64 << (10 + (window >> 3));
        base + base / 8 * (window & 7)
    } else {
        // One segment: the window is the content.
        let identity = [0, 1, 2, 4][usize::from(descriptor & 3)];
        let field = [1, 2, 4, 8][usize::from(descriptor >> 6)];
        let mut size = [0; 8];
        size[..field].copy_from_slice(rest.get(identity..identity + field)?);
        u64::from_le_bytes(size) + if field == 2 { 256 } else { 0 }
    };
    Some(window.checked_next_power_of_two().map_or(u64::BITS, u64::trailing_zeros))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(content: &[u8], level: i32, window: u32, pledged: bool) -> Vec<u8> {
        use std::io::Write as _;
        let mut encoder = zstd::Encoder::new(Vec::new(), level).expect("memory");
        encoder.window_log(window).expect("legal");
        if pledged {
            encoder.set_pledged_src_size(Some(content.len() as u64)).expect("not begun");
        }
        encoder.write_all(content).expect("memory");
        encoder.finish().expect("memory")
    }

    #[test]
    fn the_window_is_read_as_the_library_has_it() {
        let content = vec![1; 3 << 20];
        for window in [10, 17, 23, 24, 27, 28] {
            let log = window_log(&packed(&content, 3, window, false));
            assert_eq!(log, Some(window));
        }
        // A content that is known and smaller than the window is one segment.
        assert_eq!(window_log(&packed(&content, 3, 27, true)), Some(22));
        assert_eq!(window_log(&packed(&[1; 300], 3, 20, true)), Some(9));
        assert_eq!(window_log(b"\x50\x2a\x4d\x18\0\0\0\0"), None);
        assert_eq!(window_log(b"\x28\xb5\x2f\xfd\xe0\xff\xff\xff\xff\xff\xff\xff\xff"), Some(64));
        assert_eq!(window_log(b"\x28\xb5\x2f\xfd"), None);
    }

    #[test]
    fn large_windows_are_taken_and_huge_ones_refused() {
        let content: Vec<u8> = (0_u32..1 << 20).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let read = |packed: &[u8]| {
            decoded(packed, |decoder| {
                let mut all = Vec::new();
                decoder.read_to_end(&mut all).map(|_| all)
            })
        };
        for window in [10, 23, 24, 27] {
            assert!(read(&packed(&content, 1, window, false)).is_ok_and(|all| all == content), "{window}");
        }
        assert!(read(&packed(&content, 1, 28, false)).is_err());
        // A small frame first does not open the door to a large one.
        let two = [packed(b"x", 1, 10, false), packed(&content, 1, 27, false)].concat();
        assert!(read(&two).is_err());
        assert!(read(b"").is_err());
        assert!(read(b"\x28\xb5").is_err());
    }
}
