//! A WebSocket client's frames: masked ones to send, and what a server answers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A client's frame that begins with this byte.
pub(super) fn masked(first: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        short @ ..126 => bytes.push(0x80 | short as u8),
        medium @ ..65_536 => {
            bytes.push(0x80 | 126);
            bytes.extend((medium as u16).to_be_bytes());
        }
        long => {
            bytes.push(0x80 | 127);
            bytes.extend((long as u64).to_be_bytes());
        }
    }
    bytes.extend(mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// A frame of the server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Message { text: bool, payload: Vec<u8> },
    Pong(Vec<u8>),
    Close(u16),
}

impl Answer {
    /// The channel of a message and what it carries.
    pub(super) fn channel(self, base64: bool) -> (u8, Vec<u8>) {
        let Self::Message { text, payload } = self else { panic!("no message: {self:?}") };
        assert_eq!(text, base64);
        let (channel, data) = payload.split_first().expect("a message has a channel");
        if base64 { (*channel - b'0', STANDARD.decode(data).expect("it is base64")) } else { (*channel, data.to_vec()) }
    }
}

/// The next frame of the server, taken off the bytes; `None` while it is not whole. Fails for one that a client would refuse.
pub(super) fn take_answer(bytes: &mut &[u8]) -> Option<Answer> {
    let [first, second, rest @ ..] = *bytes else { return None };
    let (wide, least) = match second {
        126 => (2, 126),
        127 => (8, 65_536),
        _ => (0, 0),
    };
    let (length, rest) = rest.split_at_checked(wide)?;
    let length = length.iter().fold(0, |all, byte| all << 8 | usize::from(*byte));
    let length = if wide == 0 { usize::from(*second) } else { length };
    assert!(*second < 0x80 && length >= least, "a masked frame, or a length that is not the shortest");
    let (payload, rest) = rest.split_at_checked(length)?;
    *bytes = rest;
    let payload = payload.to_vec();
    assert!(*first < 0x88 || payload.len() <= 125, "a long control frame");
    Some(match first {
        0x81 => Answer::Message { text: true, payload },
        0x82 => Answer::Message { text: false, payload },
        0x88 => Answer::Close(u16::from_be_bytes(payload[..2].try_into().expect("two bytes"))),
        0x8a => Answer::Pong(payload),
        _ => panic!("a frame that begins with {first:#x}"),
    })
}

/// All of them. None may be cut off.
pub(super) fn answers(mut bytes: &[u8]) -> Vec<Answer> {
    let all = std::iter::from_fn(|| take_answer(&mut bytes)).collect();
    assert!(bytes.is_empty(), "{} bytes are no frame", bytes.len());
    all
}
