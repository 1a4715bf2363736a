//! WebSocket frames (RFC 6455, 5.2), the server's side: masked frames in, unmasked ones out.
//!
//! The payload of a data message is handed on as it arrives, so no message is ever held as a whole: neither a length that
//! is a lie nor a message of a gigabyte costs memory. A control frame is held until it is whole, which is 125 bytes.

use bytes::{Buf as _, Bytes, BytesMut};

/// A control frame's payload has at most so many bytes (RFC 6455, 5.5).
pub const MAX_CONTROL: usize = 125;

/// Two bytes, eight of length, four of mask.
const MAX_HEADER: usize = 14;

/// What a client sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A data message begins.
    Begin {
        text: bool,
    },
    /// The next part of it, never empty.
    Data(Bytes),
    /// It is whole.
    End,
    Ping(Bytes),
    Pong,
    /// The client closes, with this code if it gave one.
    Close(Option<u16>),
}

/// What a client may not send. The connection ends with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a reserved bit is set though no extension was agreed on")]
    ReservedBit,
    #[error("opcode {0} does not exist")]
    Opcode(u8),
    #[error("a frame of a client must be masked")]
    Unmasked,
    #[error("a control frame is longer than 125 bytes or in pieces")]
    Control,
    #[error("a message begins before the one before it has ended, or goes on without having begun")]
    Fragment,
    #[error("a frame's length is not written in its shortest form, or is beyond 2^63")]
    Length,
    #[error("a close frame with a payload of one byte")]
    CloseCode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// A frame whose payload is being read.
#[derive(Debug)]
struct Open {
    opcode: Opcode,
    last: bool,
    mask: [u8; 4],
    remaining: u64,
}

/// Reads frames off a buffer.
#[derive(Debug, Default)]
pub struct Decoder {
    open: Option<Open>,
    /// A data message has begun and not ended.
    in_message: bool,
}

impl Decoder {
    /// The next event, or `None` when the buffer does not hold it yet.
    ///
    /// # Errors
    /// [`FrameError`]; nothing is to be read after it.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Event>, FrameError> {
        loop {
            let Some(open) = &mut self.open else {
                let Some(open) = self.header(buffer)? else { return Ok(None) };
                let begins = matches!(open.opcode, Opcode::Text | Opcode::Binary);
                let text = open.opcode == Opcode::Text;
                self.open = Some(open);
                if begins {
                    return Ok(Some(Event::Begin { text }));
                }
                continue;
            };
            if open.opcode.is_control() {
                return self.control(buffer);
            }
            if open.remaining == 0 {
                let last = open.last;
                self.open = None;
                if last {
                    self.in_message = false;
                    return Ok(Some(Event::End));
                }
                continue;
            }
            if buffer.is_empty() {
                return Ok(None);
            }
            let count = usize::try_from(open.remaining).unwrap_or(usize::MAX).min(buffer.len());
            let mut data = buffer.split_to(count);
            unmask(&mut data, &mut open.mask);
            open.remaining -= count as u64;
            return Ok(Some(Event::Data(data.freeze())));
        }
    }

    fn header(&mut self, buffer: &mut BytesMut) -> Result<Option<Open>, FrameError> {
        let &[first, second, ..] = &buffer[..] else { return Ok(None) };
        if first & 0x70 != 0 {
            return Err(FrameError::ReservedBit);
        }
        let (last, opcode) = (first & 0x80 != 0, opcode(first & 0x0f)?);
        if second & 0x80 == 0 {
            return Err(FrameError::Unmasked);
        }
        let short = second & 0x7f;
        if opcode.is_control() && (!last || usize::from(short) > MAX_CONTROL) {
            return Err(FrameError::Control);
        }
        let extra = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let size = 2 + extra + 4;
        debug_assert!(size <= MAX_HEADER);
        if buffer.len() < size {
            return Ok(None);
        }
        let remaining = match extra {
            2 => u64::from(u16::from_be_bytes([buffer[2], buffer[3]])),
            8 => u64::from_be_bytes(buffer[2..10].try_into().expect("eight bytes")),
            _ => u64::from(short),
        };
        let shortest = match extra {
            2 => 126,
            8 => 1 << 16,
            _ => 0,
        };
        if remaining < shortest || remaining >> 63 != 0 {
            return Err(FrameError::Length);
        }
        match (opcode, self.in_message) {
            (Opcode::Continuation, false) | (Opcode::Text | Opcode::Binary, true) => return Err(FrameError::Fragment),
            (Opcode::Text | Opcode::Binary, false) => self.in_message = true,
            _ => {}
        }
        let mask = buffer[2 + extra..size].try_into().expect("four bytes");
        buffer.advance(size);
        Ok(Some(Open { opcode, last, mask, remaining }))
    }

    fn control(&mut self, buffer: &mut BytesMut) -> Result<Option<Event>, FrameError> {
        let Some(mut open) = self.open.take() else { return Ok(None) };
        let size = usize::try_from(open.remaining).unwrap_or(MAX_CONTROL);
        if buffer.len() < size {
            self.open = Some(open);
            return Ok(None);
        }
        let mut payload = buffer.split_to(size);
        unmask(&mut payload, &mut open.mask);
        match (open.opcode, &payload[..]) {
            (Opcode::Ping, _) => Ok(Some(Event::Ping(payload.freeze()))),
            (Opcode::Close, []) => Ok(Some(Event::Close(None))),
            (Opcode::Close, [_]) => Err(FrameError::CloseCode),
            (Opcode::Close, &[high, low, ..]) => Ok(Some(Event::Close(Some(u16::from_be_bytes([high, low]))))),
            _ => Ok(Some(Event::Pong)),
        }
    }
}

fn opcode(number: u8) -> Result<Opcode, FrameError> {
    Ok(match number {
        0 => Opcode::Continuation,
        1 => Opcode::Text,
        2 => Opcode::Binary,
        8 => Opcode::Close,
        9 => Opcode::Ping,
        10 => Opcode::Pong,
        other => return Err(FrameError::Opcode(other)),
    })
}

/// Takes the mask off, and turns it so that it fits the byte that comes next.
fn unmask(data: &mut [u8], mask: &mut [u8; 4]) {
    // Eight bytes at a time; the compiler makes vectors of it.
    let [a, b, c, d] = *mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, rest) = data.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    mask.rotate_left(rest.len() % 4);
}

/// A kind of frame that we send. Each is whole in one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    Text,
    Binary,
    Close,
    Pong,
}

/// Appends the header of a frame with a payload of this size.
pub fn put_header(out: &mut BytesMut, kind: Sent, size: usize) {
    let first = 0x80
        | match kind {
            Sent::Text => 1,
            Sent::Binary => 2,
            Sent::Close => 8,
            Sent::Pong => 10,
        };
    out.extend_from_slice(&[first]);
    match (u8::try_from(size), u16::try_from(size)) {
        (Ok(short @ ..126), _) => out.extend_from_slice(&[short]),
        (_, Ok(medium)) => {
            out.extend_from_slice(&[126]);
            out.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            out.extend_from_slice(&[127]);
            out.extend_from_slice(&(size as u64).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests;
