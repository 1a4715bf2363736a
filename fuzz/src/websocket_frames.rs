//! A hostile client of a WebSocket connection. Its frames mean the same however they are cut, and what a decoder of another
//! make says that they mean; the channels carry what that decoder says, and the answers are sound; and when nobody reads,
//! memory stays bounded and the connection still ends with its client.

use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use cricket::fuzzing::websocket::{ChannelReader, ChannelWriter, Decoder, Event, FrameError, Handle, Layout, open};
use futures_util::FutureExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::task::yield_now;

use super::client::{Answer, answers, masked};
use super::{SOON, cuts, elapse, heap, run, send};

#[derive(Debug, Arbitrary)]
struct Plan<'a> {
    inputs: [bool; 5],
    base64: bool,
    closes: bool,
    steps: Vec<Step<'a>>,
}

/// What the client or the server's code does next.
#[derive(Debug, Arbitrary)]
enum Step<'a> {
    /// Any bytes.
    Bytes(&'a [u8]),
    /// A frame whose length may be a lie.
    Frame {
        first: u8,
        mask: [u8; 4],
        length: Option<Length>,
        payload: &'a [u8],
    },
    /// A sound message, with a ping between its pieces.
    Message(Message<'a>),
    /// One in base64.
    Encoded {
        channel: u8,
        mask: [u8; 4],
        piece: u8,
        payload: &'a [u8],
    },
    Long {
        channel: u8,
        kibibytes: u8,
    },
    CloseChannel {
        channel: u8,
    },
    Ping(&'a [u8]),
    Close {
        code: Option<u16>,
        mask: [u8; 4],
    },
    Repeat {
        frame: &'a [u8],
        times: u8,
    },
    /// The client reads.
    Take(u16),
    Wait(u8),
    Read {
        channel: u8,
        length: u16,
    },
    Write {
        channel: u8,
        length: u16,
    },
    DropReader {
        channel: u8,
    },
    Elapse {
        seconds: u8,
    },
}

#[derive(Debug, Clone, Copy, Arbitrary)]
struct Message<'a> {
    text: bool,
    channel: u8,
    mask: [u8; 4],
    /// Bytes in a frame.
    piece: u8,
    ping: bool,
    payload: &'a [u8],
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Length {
    Byte(u8),
    Two(u16),
    Eight(u64),
}

/// Bytes of a client that are looked at and played once more.
const MAX_COMPARED: usize = 64 * 1024;

const PIPE: usize = 16 * 1024;

/// What a connection may hold: for each of five channels three pieces that may each keep the 32 KiB alive that were read
/// with them, what is being read, what waits to be written, the test's two pipes, and its largest step.
const BOUND: usize = (5 * 3 + 2) * 32 * 1024 + 2 * (64 + 2 * 32) * 1024 + 2 * PIPE + STEP + 16 * 1024;
const STEP: usize = 2 * 256 * 1024;

/// Plays an input.
pub fn check(input: &[u8]) {
    let Ok(plan) = Plan::arbitrary_take_rest(Unstructured::new(input)) else { return };
    let layout = Layout { inputs: plan.inputs.to_vec(), base64: plan.base64, closes: plan.closes };
    let mut sent = Vec::new();
    for step in &plan.steps {
        if sent.len() <= MAX_COMPARED {
            sent.extend(step.bytes());
        }
    }
    sent.truncate(MAX_COMPARED);
    let (events, error) = model(&sent);
    assert_eq!(decoded(std::iter::once(&sent[..])), (events.clone(), error));
    assert_eq!(decoded(cuts(&sent)), (events.clone(), error));
    run(converse(&layout, &sent, &Meaning::of(&layout, &events, error)));
    run(attack(&layout, &plan.steps));
}

impl Step<'_> {
    /// What the client sends.
    fn bytes(&self) -> Vec<u8> {
        match *self {
            Self::Bytes(bytes) => bytes.to_vec(),
            Self::Frame { first, mask, length, payload } => frame(first, mask, length, payload),
            Self::Message(Message { text, channel, mask, piece, ping, payload }) => {
                let payload = [&[channel][..], payload].concat();
                message(text, &payload, usize::from(piece), mask, ping)
            }
            Self::Encoded { channel, mask, piece, payload } => {
                let text = format!("{}{}", channel % 8, STANDARD.encode(payload));
                message(true, text.as_bytes(), usize::from(piece), mask, false)
            }
            Self::Long { channel, kibibytes } => {
                let mut payload = vec![b'l'; usize::from(kibibytes % 128) * 1024];
                payload.insert(0, channel);
                masked(0x82, [1, 2, 3, 4], &payload)
            }
            Self::CloseChannel { channel } => masked(0x82, [5; 4], &[255, channel]),
            Self::Ping(payload) => masked(0x89, [6; 4], &payload[..payload.len().min(125)]),
            Self::Close { code, mask } => masked(0x88, mask, &code.map(u16::to_be_bytes).unwrap_or_default()[..]),
            Self::Repeat { frame, times } => frame.repeat(usize::from(times % 32)),
            _ => Vec::new(),
        }
    }
}

fn frame(first: u8, mask: [u8; 4], length: Option<Length>, payload: &[u8]) -> Vec<u8> {
    let mut bytes = masked(first, mask, payload);
    if let Some(length) = length {
        bytes.splice(
            1..bytes.len() - 4 - payload.len(),
            match length {
                Length::Byte(byte) => vec![byte],
                Length::Two(length) => [&[0x80 | 126][..], &length.to_be_bytes()].concat(),
                Length::Eight(length) => [&[0x80 | 127][..], &length.to_be_bytes()].concat(),
            },
        );
    }
    bytes
}

fn message(text: bool, payload: &[u8], piece: usize, mask: [u8; 4], ping: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let pieces: Vec<&[u8]> = payload.chunks(piece.max(1)).collect();
    for (at, piece) in pieces.iter().enumerate() {
        let kind = if at > 0 {
            0
        } else if text {
            1
        } else {
            2
        };
        let last = if at + 1 == pieces.len() { 0x80 } else { 0 };
        bytes.extend(masked(kind | last, mask, piece));
        if ping && last == 0 {
            bytes.extend(masked(0x89, mask, b"between"));
        }
    }
    bytes
}

/// What a client's bytes mean, up to the first error or the first frame that is not whole: a decoder that sees all of them
/// at once and holds nothing back.
fn model(mut bytes: &[u8]) -> (Vec<Event>, Option<FrameError>) {
    let (mut events, mut inside) = (Vec::new(), false);
    loop {
        match model_frame(&mut bytes, &mut inside, &mut events) {
            Ok(true) => {}
            Ok(false) => return (joined(events), None),
            Err(error) => return (joined(events), Some(error)),
        }
    }
}

/// One frame; `Ok(false)` when there is none, or not all of it.
fn model_frame(bytes: &mut &[u8], inside: &mut bool, events: &mut Vec<Event>) -> Result<bool, FrameError> {
    let &[first, second, ref rest @ ..] = *bytes else { return Ok(false) };
    let (last, kind) = (first >= 0x80, first & 15);
    match (first & 0x70, kind) {
        (1.., _) => return Err(FrameError::ReservedBit),
        (0, 0..=2 | 8..=10) => {}
        (0, _) => return Err(FrameError::Opcode(kind)),
    }
    if second < 0x80 {
        return Err(FrameError::Unmasked);
    }
    let short = u64::from(second - 0x80);
    if kind >= 8 && (!last || short > 125) {
        return Err(FrameError::Control);
    }
    let wide = if short == 126 { 2 } else { 8 * usize::from(short == 127) };
    if rest.len() < wide + 4 {
        return Ok(false);
    }
    let (wide, rest) = rest.split_at(wide);
    let length = if wide.is_empty() { short } else { wide.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)) };
    if (wide.len() == 2 && length < 126) || (wide.len() == 8 && !(65_536..1 << 63).contains(&length)) {
        return Err(FrameError::Length);
    }
    if kind < 8 && *inside != (kind == 0) {
        return Err(FrameError::Fragment);
    }
    let (mask, rest) = rest.split_at(4);
    let there = usize::try_from(length).map_or(rest.len(), |length| length.min(rest.len()));
    let payload: Vec<u8> = rest[..there].iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]).collect();
    let whole = there as u64 == length;
    *bytes = &rest[there..];
    match kind {
        0..=2 => {
            if kind > 0 {
                events.push(Event::Begin { text: kind == 1 });
            }
            events.push(Event::Data(payload.into()));
            if whole && last {
                events.push(Event::End);
            }
            *inside = !(whole && last);
        }
        8 if whole => match payload[..] {
            [] => events.push(Event::Close(None)),
            [_] => return Err(FrameError::CloseCode),
            [high, low, ..] => events.push(Event::Close(Some(u16::from(high) << 8 | u16::from(low)))),
        },
        9 if whole => events.push(Event::Ping(payload.into())),
        10 if whole => events.push(Event::Pong),
        _ => {}
    }
    Ok(whole)
}

/// The same with the parts of each message joined, as long as nothing comes between them.
fn joined(events: Vec<Event>) -> Vec<Event> {
    let mut joined: Vec<Event> = Vec::new();
    for event in events {
        match (joined.last_mut(), &event) {
            (_, Event::Data(data)) if data.is_empty() => {}
            (Some(Event::Data(last)), Event::Data(next)) => *last = [&last[..], &next[..]].concat().into(),
            _ => joined.push(event),
        }
    }
    joined
}

fn decoded<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Event>, Option<FrameError>) {
    let (mut decoder, mut buffer, mut events) = (Decoder::default(), BytesMut::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(Event::Data(data))) if data.is_empty() => panic!("a part without bytes"),
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(error) => return (joined(events), Some(error)),
            }
        }
    }
    assert!(buffer.len() < 14 + 125, "{} bytes are held back", buffer.len());
    (joined(events), None)
}

/// What the events mean for the channels.
struct Meaning {
    /// What the reader of each channel gets.
    channels: Vec<Vec<u8>>,
    /// The client broke the rules of base64 somewhere in a message: how much of it had arrived is a matter of cuts.
    torn: bool,
    pings: Vec<Vec<u8>>,
    /// The close frame that we send.
    close: Option<u16>,
}

impl Meaning {
    fn of(layout: &Layout, events: &[Event], error: Option<FrameError>) -> Self {
        let mut meaning = Self {
            channels: vec![Vec::new(); layout.inputs.len()],
            torn: false,
            pings: Vec::new(),
            close: error.map(|_| 1002),
        };
        let mut open = layout.inputs.clone();
        let mut message = Vec::new();
        for event in events {
            let sound = match event {
                Event::Begin { .. } => {
                    message.clear();
                    true
                }
                Event::Data(data) => {
                    message.extend_from_slice(data);
                    meaning.goes_on(layout, &mut open, &message, data.len())
                }
                Event::End => meaning.ends(layout, &open, &message),
                Event::Ping(payload) => {
                    meaning.pings.push(payload.to_vec());
                    true
                }
                Event::Pong => true,
                Event::Close(code) => {
                    meaning.close = Some(code.filter(|code| (1000..5000).contains(code)).unwrap_or(1000));
                    return meaning;
                }
            };
            if !sound {
                meaning.close = Some(1002);
                return meaning;
            }
        }
        meaning
    }

    /// A message up to here, of which `new` bytes are new.
    fn goes_on(&mut self, layout: &Layout, open: &mut [bool], message: &[u8], new: usize) -> bool {
        if layout.closes && message[0] == 255 {
            // The byte after the first closes a channel, and a third is one too many.
            let Some(&channel) = message.get(1) else { return true };
            let Some(open) = open.get_mut(usize::from(channel)) else { return false };
            *open = false;
            return message.len() == 2;
        }
        let channel = usize::from(message[0].wrapping_sub(if layout.base64 { b'0' } else { 0 }));
        if open.get(channel) != Some(&true) {
            return true;
        }
        let text = &message[1..];
        if !layout.base64 {
            self.channels[channel].extend_from_slice(&text[text.len() - new.min(text.len())..]);
            return true;
        }
        // What the message has added so far is added anew.
        let whole = |text: &[u8]| text.len() / 4 * 4;
        let old = text.len() - new.min(text.len());
        let before = STANDARD.decode(&text[..whole(&text[..old])]).map_or(0, |bytes| bytes.len());
        match STANDARD.decode(&text[..whole(text)]) {
            Ok(bytes) => {
                self.channels[channel].extend_from_slice(&bytes[before..]);
                true
            }
            Err(_) => {
                self.torn = true;
                // The most that may have arrived: the whole groups before the first that is none.
                let groups = text.chunks_exact(4).map_while(|group| STANDARD.decode(group).ok());
                let sound: Vec<u8> = groups.flatten().collect();
                self.channels[channel].extend_from_slice(sound.get(before..).unwrap_or_default());
                false
            }
        }
    }

    fn ends(&mut self, layout: &Layout, open: &[bool], message: &[u8]) -> bool {
        let Some(&first) = message.first() else { return true };
        if layout.closes && first == 255 {
            return message.len() == 2;
        }
        let channel = usize::from(first.wrapping_sub(b'0'));
        !layout.base64 || open.get(channel) != Some(&true) || (message.len() - 1).is_multiple_of(4)
    }
}

/// Sends the bytes in pieces to a server that reads all, and compares.
async fn converse(layout: &Layout, sent: &[u8], meaning: &Meaning) {
    let (near, far) = duplex(4 * MAX_COMPARED);
    let (readers, handle) = open(far, layout);
    let (mut receiving, mut sending) = tokio::io::split(near);
    let send = async {
        for piece in cuts(sent) {
            if sending.write_all(piece).await.is_err() {
                break;
            }
            yield_now().await;
        }
        let _ = sending.shutdown().await;
    };
    let hear = async {
        let mut heard = Vec::new();
        let _ = receiving.read_to_end(&mut heard).await;
        heard
    };
    let read = futures_util::future::join_all(readers.into_iter().map(|reader| async {
        let mut bytes = Vec::new();
        if let Some(mut reader) = reader {
            reader.read_to_end(&mut bytes).await.expect("a channel has no errors");
        }
        bytes
    }));
    let all = async { tokio::join!(send, hear, read) };
    let ended = tokio::time::timeout(SOON, all).await;
    let ((), heard, channels) = ended.expect("the connection did not end");
    handle.ended().await;
    for (channel, (got, want)) in channels.iter().zip(&meaning.channels).enumerate() {
        let same = got == want || (meaning.torn && want.starts_with(got));
        assert!(same, "channel {channel}: {} bytes arrived, not {}", got.len(), want.len());
    }
    let mut pings = meaning.pings.iter();
    let mut answers = answers(&heard).into_iter().peekable();
    while let Some(answer) = answers.next() {
        match &answer {
            // One pong may stand for several pings; it carries what one of them did, in their order.
            Answer::Pong(payload) => assert!(pings.any(|ping| ping == payload), "a pong without its ping"),
            Answer::Close(code) => assert!(Some(*code) == meaning.close && answers.peek().is_none(), "{code}"),
            Answer::Message { .. } => panic!("nobody sent a message"),
        }
        assert!(
            answers.peek().is_some() || meaning.close.is_none() || matches!(answer, Answer::Close(_)),
            "no close frame"
        );
    }
    assert!(meaning.close.is_none() || !heard.is_empty(), "no close frame");
}

/// The client and the server's code take their steps, and memory is watched.
async fn attack(layout: &Layout, steps: &[Step<'_>]) {
    let (mut io, far) = duplex(PIPE);
    let watch = heap::Watch::begin();
    let (mut readers, handle) = open(far, layout);
    let mut writers: Vec<ChannelWriter> = (0..5).map(|channel| handle.writer(channel)).collect();
    for step in steps {
        send(&mut io, &step.bytes()).await;
        use_connection(step, &mut readers, &mut writers);
        match step {
            Step::Take(count) => {
                let _ = io.read(&mut vec![0; usize::from(*count)]).now_or_never();
            }
            Step::Wait(turns) => {
                for _ in 0..*turns {
                    yield_now().await;
                }
            }
            Step::Elapse { seconds } => elapse(Duration::from_secs(u64::from(*seconds))).await,
            _ => {}
        }
    }
    watch.expect_below(BOUND);
    drop(io);
    if !cfg!(fuzzing) {
        // Otherwise a channel that nobody reads holds the end up for real seconds.
        readers.clear();
    }
    end(&handle).await;
    // A task that has done much is told to wait by tokio; not this one, then.
    yield_now().await;
    for reader in readers.iter_mut().flatten() {
        while reader.read(&mut [0; 4096]).now_or_never().expect("a reader waits").expect("no errors") > 0 {}
    }
    for writer in &mut writers {
        let refused = writer.write(b"x").now_or_never().expect("a writer waits");
        assert!(refused.is_err(), "the connection has ended");
    }
}

async fn end(handle: &Handle) {
    assert!(tokio::time::timeout(SOON, handle.ended()).await.is_ok(), "the connection did not end");
}

fn use_connection(step: &Step<'_>, readers: &mut [Option<ChannelReader>], writers: &mut [ChannelWriter]) {
    match *step {
        Step::Read { channel, length } => {
            if let Some(reader) = &mut readers[usize::from(channel) % 5] {
                let _ = reader.read(&mut vec![0; usize::from(length)]).now_or_never();
            }
        }
        Step::Write { channel, length } => {
            let _ = writers[usize::from(channel) % 5].write(&vec![b'w'; usize::from(length)]).now_or_never();
        }
        Step::DropReader { channel } => readers[usize::from(channel) % 5] = None,
        _ => {}
    }
}
