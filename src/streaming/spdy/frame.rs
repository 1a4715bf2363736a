//! Frames on the wire (SPDY protocol, draft 3.1, sections 2.2 and 2.6): pure functions between bytes and values. Header blocks
//! stay compressed here; [`super::headers`] reads them.

use std::fmt;

use super::error::SpdyError;

/// Bytes of a frame's head.
pub const HEAD: usize = 8;
/// The largest payload that a frame's 24-bit length can state.
pub const MAX_PAYLOAD: usize = (1 << 24) - 1;
/// The largest window that exists, in bytes.
pub const MAX_WINDOW: u32 = 0x7fff_ffff;
/// The window of a new stream and of a new session until a SETTINGS or WINDOW_UPDATE says otherwise, in bytes.
pub const INITIAL_WINDOW: u32 = 64 * 1024;
/// Ids of streams have 31 bits.
pub const MAX_STREAM: u32 = 0x7fff_ffff;

const CONTROL: u32 = 0x8000_0000;
const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;
const FLAG_UNIDIRECTIONAL: u8 = 2;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// SETTINGS entry: how many streams the peer may open.
pub const MAX_CONCURRENT_STREAMS: u32 = 4;
/// SETTINGS entry: the window with which new streams begin.
pub const INITIAL_WINDOW_SIZE: u32 = 7;

/// Why a stream was reset; numbers that we do not know are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u32);

impl Status {
    pub const PROTOCOL_ERROR: Self = Self(1);
    pub const REFUSED_STREAM: Self = Self(3);
    pub const CANCEL: Self = Self(5);
    pub const FLOW_CONTROL_ERROR: Self = Self(7);
    pub const STREAM_ALREADY_CLOSED: Self = Self(9);
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            1 => "PROTOCOL_ERROR",
            2 => "INVALID_STREAM",
            3 => "REFUSED_STREAM",
            4 => "UNSUPPORTED_VERSION",
            5 => "CANCEL",
            6 => "INTERNAL_ERROR",
            7 => "FLOW_CONTROL_ERROR",
            8 => "STREAM_IN_USE",
            9 => "STREAM_ALREADY_CLOSED",
            11 => "FRAME_TOO_LARGE",
            other => return write!(f, "status {other}"),
        };
        f.write_str(name)
    }
}

/// Why a session ends, for a GOAWAY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Farewell {
    Ok,
    ProtocolError,
}

/// The first eight bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    Control { version: u16, kind: u16, flags: u8, length: u32 },
    Data { stream: u32, fin: bool, length: u32 },
}

/// Reads a head. Every eight bytes are one.
pub fn head(bytes: [u8; HEAD]) -> Head {
    let [a, b, c, d, flags, x, y, z] = bytes;
    let word = u32::from_be_bytes([a, b, c, d]);
    let length = u32::from_be_bytes([0, x, y, z]);
    if word & CONTROL == 0 {
        return Head::Data { stream: word, fin: flags & FLAG_FIN != 0, length };
    }
    let version = u16::from_be_bytes([a, b]) & 0x7fff;
    Head::Control { version, kind: u16::from_be_bytes([c, d]), flags, length }
}

/// A control frame. `block` is a compressed header block.
#[derive(Debug, PartialEq, Eq)]
pub enum Control<'a> {
    SynStream {
        stream: u32,
        fin: bool,
        unidirectional: bool,
        block: &'a [u8],
    },
    SynReply {
        stream: u32,
        fin: bool,
        block: &'a [u8],
    },
    RstStream {
        stream: u32,
        status: Status,
    },
    /// Pairs of id and value.
    Settings {
        entries: &'a [[u8; 8]],
    },
    Ping {
        id: u32,
    },
    GoAway {
        last: u32,
    },
    Headers {
        stream: u32,
        fin: bool,
        block: &'a [u8],
    },
    WindowUpdate {
        stream: u32,
        delta: u32,
    },
    /// A kind that this version does not know; it is skipped (section 2.2.1).
    Unknown,
}

/// Reads a control frame whose payload is here in full.
///
/// # Errors
/// A version other than 3, a length that the kind cannot have, or more than `max_settings` settings.
pub fn control<'a>(head: Head, payload: &'a [u8], max_settings: u32) -> Result<Control<'a>, SpdyError> {
    let Head::Control { version, kind, flags, .. } = head else { return Ok(Control::Unknown) };
    if version != VERSION {
        return Err(SpdyError::Version { version });
    }
    let wrong = || SpdyError::FrameLength { kind, length: payload.len() };
    let fin = flags & FLAG_FIN != 0;
    let pair = || match payload {
        [a, b, c, d, e, f, g, h] => Ok((id([*a, *b, *c, *d]), u32::from_be_bytes([*e, *f, *g, *h]))),
        _ => Err(wrong()),
    };
    Ok(match kind {
        SYN_STREAM => {
            // Stream, associated stream, priority and slot; the latter three mean nothing to a session of ours.
            let (fixed, block) = payload.split_first_chunk::<10>().ok_or_else(wrong)?;
            let stream = id([fixed[0], fixed[1], fixed[2], fixed[3]]);
            Control::SynStream { stream, fin, unidirectional: flags & FLAG_UNIDIRECTIONAL != 0, block }
        }
        SYN_REPLY | HEADERS => {
            let (fixed, block) = payload.split_first_chunk::<4>().ok_or_else(wrong)?;
            let stream = id(*fixed);
            if kind == SYN_REPLY {
                Control::SynReply { stream, fin, block }
            } else {
                Control::Headers { stream, fin, block }
            }
        }
        RST_STREAM => {
            let (stream, status) = pair()?;
            Control::RstStream { stream, status: Status(status) }
        }
        SETTINGS => {
            let (count, rest) = payload.split_first_chunk::<4>().ok_or_else(wrong)?;
            let count = u32::from_be_bytes(*count);
            // The count is compared with what is there before it is believed (CVE-2026-35469).
            let (entries, odd) = rest.as_chunks::<8>();
            if count > max_settings {
                return Err(SpdyError::TooManySettings { count, limit: max_settings });
            }
            if !odd.is_empty() || usize::try_from(count) != Ok(entries.len()) {
                return Err(wrong());
            }
            Control::Settings { entries }
        }
        PING => {
            let bytes: [u8; 4] = payload.try_into().map_err(|_| wrong())?;
            Control::Ping { id: u32::from_be_bytes(bytes) }
        }
        GOAWAY => Control::GoAway { last: pair()?.0 },
        WINDOW_UPDATE => {
            let (stream, delta) = pair()?;
            Control::WindowUpdate { stream, delta: delta & MAX_WINDOW }
        }
        _ => Control::Unknown,
    })
}

/// One entry of a SETTINGS frame: its id, without the flags, and its value.
pub fn setting(entry: [u8; 8]) -> (u32, u32) {
    let [_, a, b, c, d, e, f, g] = entry;
    (u32::from_be_bytes([0, a, b, c]), u32::from_be_bytes([d, e, f, g]))
}

fn id(bytes: [u8; 4]) -> u32 {
    u32::from_be_bytes(bytes) & MAX_STREAM
}

fn put_head(out: &mut Vec<u8>, kind: u16, flags: u8, length: usize) {
    let word = CONTROL | u32::from(VERSION) << 16 | u32::from(kind);
    put_words(out, &[word, flags_and_length(flags, length)]);
}

fn flags_and_length(flags: u8, length: usize) -> u32 {
    debug_assert!(length <= MAX_PAYLOAD, "the callers bound what they write");
    let length = u32::try_from(length.min(MAX_PAYLOAD)).unwrap_or_default();
    u32::from(flags) << 24 | length
}

fn put_words(out: &mut Vec<u8>, words: &[u32]) {
    for word in words {
        out.extend_from_slice(&word.to_be_bytes());
    }
}

/// Appends a SYN_STREAM.
pub fn put_syn_stream(out: &mut Vec<u8>, stream: u32, block: &[u8]) {
    put_head(out, SYN_STREAM, 0, 10 + block.len());
    put_words(out, &[stream, 0]);
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(block);
}

/// Appends a SYN_REPLY.
pub fn put_syn_reply(out: &mut Vec<u8>, stream: u32, block: &[u8]) {
    put_head(out, SYN_REPLY, 0, 4 + block.len());
    put_words(out, &[stream]);
    out.extend_from_slice(block);
}

/// Appends a RST_STREAM.
pub fn put_rst_stream(out: &mut Vec<u8>, stream: u32, status: Status) {
    put_head(out, RST_STREAM, 0, 8);
    put_words(out, &[stream, status.0]);
}

/// Appends a SETTINGS frame; none of the values is asked to be kept over connections.
pub fn put_settings(out: &mut Vec<u8>, entries: &[(u32, u32)]) {
    put_head(out, SETTINGS, 0, 4 + 8 * entries.len());
    put_words(out, &[u32::try_from(entries.len()).unwrap_or_default()]);
    for (id, value) in entries {
        put_words(out, &[*id, *value]);
    }
}

/// Appends a PING.
pub fn put_ping(out: &mut Vec<u8>, id: u32) {
    put_head(out, PING, 0, 4);
    put_words(out, &[id]);
}

/// Appends a GOAWAY; `last` is the last stream of the peer that was taken.
pub fn put_goaway(out: &mut Vec<u8>, last: u32, farewell: Farewell) {
    put_head(out, GOAWAY, 0, 8);
    put_words(out, &[last, u32::from(farewell == Farewell::ProtocolError)]);
}

/// Appends a WINDOW_UPDATE; stream 0 is the session.
pub fn put_window_update(out: &mut Vec<u8>, stream: u32, delta: u32) {
    put_head(out, WINDOW_UPDATE, 0, 8);
    put_words(out, &[stream, delta]);
}

/// Appends the head of a DATA frame of `length` bytes.
pub fn put_data_head(out: &mut Vec<u8>, stream: u32, fin: bool, length: usize) {
    put_words(out, &[stream & MAX_STREAM, flags_and_length(if fin { FLAG_FIN } else { 0 }, length)]);
}
