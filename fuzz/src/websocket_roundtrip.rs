//! A sound client of a WebSocket connection and the server's code, in any order: each byte that arrives is the next one that
//! was sent, in both directions and on every channel, and both sides end in good order. Over the channels of each version,
//! in base64, and through the tunnel of SPDY.

use arbitrary::{Arbitrary, Unstructured};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf as _, BytesMut};
use cricket::fuzzing::websocket::{ChannelReader, ChannelWriter, Handle, Layout, Tunnel, open};
use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::task::yield_now;

use super::client::{Answer, masked, take_answer};
use super::{SOON, run};

#[derive(Debug, Arbitrary)]
struct Plan {
    kind: Kind,
    pipe: u16,
    steps: Vec<Step>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Arbitrary)]
enum Kind {
    V4,
    V5,
    Base64,
    Tunnel,
}

#[derive(Debug, Arbitrary)]
enum Step {
    /// The client sends a message in frames of so many bytes.
    Send {
        channel: u8,
        length: u16,
        piece: u16,
        mask: [u8; 4],
        between: Option<u8>,
    },
    Ping(u8),
    Pong(u8),
    CloseChannel(u8),
    /// The connection carries so many bytes from the client at most.
    Pass(u16),
    Take(u16),
    Read {
        channel: u8,
        length: u16,
    },
    Write {
        channel: u8,
        length: u16,
    },
    Wait(u8),
}

/// Channels on which the client sends, and those on which we do.
const INPUTS: [bool; 5] = [true, false, false, false, true];
const CHANNELS: usize = 5;

/// Bytes on one channel and in one direction at most.
const MOST: usize = 512 * 1024;

/// Bytes in the pipe at least: with less, many small steps make an input take seconds.
const LEAST: usize = 100;

/// Plays an input.
pub fn check(input: &[u8]) {
    let Ok(plan) = Plan::arbitrary_take_rest(Unstructured::new(input)) else { return };
    run(async {
        let (near, far) = duplex(usize::from(plan.pipe).max(LEAST));
        if plan.kind == Kind::Tunnel {
            let (reader, writer) = tokio::io::split(Tunnel::new(far));
            let ends = Ends { readers: vec![Some(reader)], writers: vec![writer], handle: None };
            Play::new(plan.kind, near, ends).play(plan.steps).await;
        } else {
            let layout =
                Layout { inputs: INPUTS.to_vec(), base64: plan.kind == Kind::Base64, closes: plan.kind == Kind::V5 };
            let (readers, handle) = open(far, &layout);
            let writers = (0..5).map(|channel| handle.writer(channel)).collect();
            let ends: Ends<ChannelReader, ChannelWriter> = Ends { readers, writers, handle: Some(handle) };
            Play::new(plan.kind, near, ends).play(plan.steps).await;
        }
    });
}

/// The server's ends. A tunnel has one reader, one writer and no handle.
struct Ends<R, W> {
    readers: Vec<Option<R>>,
    writers: Vec<W>,
    handle: Option<Handle>,
}

/// How much went one way on a channel.
#[derive(Debug, Default, Clone, Copy)]
struct Count {
    sent: usize,
    arrived: usize,
}

struct Play<R, W> {
    kind: Kind,
    io: DuplexStream,
    /// What the client has yet to send, and what it has heard and not understood.
    outbox: BytesMut,
    heard: Vec<u8>,
    ends: Ends<R, W>,
    up: [Count; CHANNELS],
    down: [Count; CHANNELS],
    /// The client has closed the channel.
    shut: [bool; CHANNELS],
    pings: Vec<Vec<u8>>,
    pinged: u32,
    closed: Option<u16>,
}

/// The byte at a place of what one direction of a channel carries.
fn byte(direction: usize, channel: usize, at: usize) -> u8 {
    (at ^ (at >> 8) ^ (at >> 16)).wrapping_mul(31).wrapping_add(channel * 7 + direction * 101) as u8
}

fn bytes(direction: usize, channel: usize, from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(|at| byte(direction, channel, at)).collect()
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Play<R, W> {
    fn new(kind: Kind, io: DuplexStream, ends: Ends<R, W>) -> Self {
        Self {
            kind,
            io,
            outbox: BytesMut::new(),
            heard: Vec::new(),
            ends,
            up: Default::default(),
            down: Default::default(),
            shut: [false; CHANNELS],
            pings: Vec::new(),
            pinged: 0,
            closed: None,
        }
    }

    async fn play(mut self, steps: Vec<Step>) {
        for step in &steps {
            self.step(step).await;
        }
        self.settle().await;
        self.end().await;
    }

    async fn step(&mut self, step: &Step) {
        match *step {
            Step::Send { channel, length, piece, mask, between } => {
                self.send(self.input(channel), usize::from(length), usize::from(piece).max(1), mask, between);
            }
            Step::Ping(length) => self.ping(length),
            Step::Pong(length) => self.outbox.extend(masked(0x8a, [3; 4], &vec![b'o'; usize::from(length % 126)])),
            Step::CloseChannel(channel) => {
                let channel = self.input(channel);
                if self.kind == Kind::V5 && !std::mem::replace(&mut self.shut[channel], true) {
                    self.outbox.extend(masked(0x82, [9; 4], &[255, channel as u8]));
                }
            }
            Step::Pass(count) => {
                self.pass(usize::from(count));
            }
            Step::Take(count) => {
                self.take(usize::from(count));
            }
            Step::Read { channel, length } => {
                self.read(self.input(channel), usize::from(length));
            }
            Step::Write { channel, length } => self.write(usize::from(channel), usize::from(length)),
            Step::Wait(turns) => {
                for _ in 0..turns {
                    yield_now().await;
                }
            }
        }
    }

    /// A channel on which the client may send.
    fn input(&self, channel: u8) -> usize {
        if self.kind == Kind::Tunnel { 0 } else { [0, 4][usize::from(channel) % 2] }
    }

    fn send(&mut self, channel: usize, length: usize, piece: usize, mask: [u8; 4], between: Option<u8>) {
        // Not on a channel that was closed; and frames cost more than what is in them.
        if self.shut[channel] || self.up[channel].sent > MOST || self.outbox.len() > MOST || length / piece > 2000 {
            return;
        }
        let data = bytes(0, channel, self.up[channel].sent, length);
        self.up[channel].sent += length;
        let payload = match self.kind {
            Kind::Base64 => format!("{channel}{}", STANDARD.encode(data)).into_bytes(),
            Kind::Tunnel => data,
            Kind::V4 | Kind::V5 => [&[channel as u8][..], &data].concat(),
        };
        let first = if self.kind == Kind::Base64 { 1 } else { 2 };
        if payload.is_empty() {
            self.outbox.extend(masked(0x80 | first, mask, b""));
        }
        let count = payload.len().div_ceil(piece);
        for (at, piece) in payload.chunks(piece).enumerate() {
            let kind = if at == 0 { first } else { 0 };
            let last = if at + 1 == count { 0x80 } else { 0 };
            self.outbox.extend(masked(kind | last, mask, piece));
            if let Some(length) = between
                && last == 0
            {
                self.ping(length);
            }
        }
    }

    fn ping(&mut self, length: u8) {
        // No two alike, since one pong may stand for several pings: it must be known which was the last.
        self.pinged += 1;
        let fill = bytes(2, 0, 0, usize::from(length % 122));
        let payload = [&self.pinged.to_be_bytes()[..], &fill].concat();
        self.outbox.extend(masked(0x89, [7, 0, 7, 0], &payload));
        self.pings.push(payload);
    }

    /// Whether anything moved.
    fn pass(&mut self, most: usize) -> bool {
        let most = most.min(self.outbox.len());
        if most == 0 {
            return false;
        }
        let Some(passed) = self.io.write(&self.outbox[..most]).now_or_never() else { return false };
        self.outbox.advance(passed.expect("the server has not gone"));
        true
    }

    /// The client hears so many bytes at most.
    fn take(&mut self, most: usize) -> bool {
        let mut heard = vec![0; most.max(1)];
        let Some(count) = self.io.read(&mut heard).now_or_never() else { return false };
        let count = count.expect("reading from a pipe");
        self.heard.extend_from_slice(&heard[..count]);
        let mut rest = &self.heard[..];
        let mut answers = Vec::new();
        while let Some(answer) = take_answer(&mut rest) {
            answers.push(answer);
        }
        self.heard = rest.to_vec();
        for answer in answers {
            self.hear(answer);
        }
        count > 0
    }

    fn hear(&mut self, answer: Answer) {
        assert_eq!(self.closed, None, "{answer:?} after a close frame");
        match answer {
            Answer::Close(code) => self.closed = Some(code),
            Answer::Pong(payload) => {
                // One may stand for several pings.
                let at = self.pings.iter().position(|ping| *ping == payload).expect("a pong has its ping");
                self.pings.drain(..=at);
            }
            Answer::Message { .. } => {
                let (channel, data) = if self.kind == Kind::Tunnel {
                    let Answer::Message { text: false, payload } = answer else { panic!("a text in a tunnel") };
                    (0, payload)
                } else {
                    answer.channel(self.kind == Kind::Base64)
                };
                let channel = usize::from(channel);
                let count = &mut self.down[channel];
                assert!(data == bytes(1, channel, count.arrived, data.len()), "other bytes at {}", count.arrived);
                count.arrived += data.len();
                assert!(count.arrived <= count.sent);
            }
        }
    }

    fn read(&mut self, channel: usize, most: usize) -> bool {
        let Some(reader) = &mut self.ends.readers[channel] else { return false };
        let mut data = vec![0; most.max(1)];
        let Some(count) = reader.read(&mut data).now_or_never() else { return false };
        let count = count.expect("the client keeps to the rules");
        let up = &mut self.up[channel];
        assert!(data[..count] == bytes(0, channel, up.arrived, count), "other bytes at {}", up.arrived);
        up.arrived += count;
        if count == 0 {
            assert!(self.shut[channel] || self.closed.is_some(), "an end that nobody asked for");
            assert_eq!(up.arrived, up.sent, "an end before it");
            self.ends.readers[channel] = None;
        }
        true
    }

    fn write(&mut self, channel: usize, length: usize) {
        let channel = channel % self.ends.writers.len();
        let down = &mut self.down[channel];
        if down.sent > MOST || length == 0 {
            return;
        }
        let data = bytes(1, channel, down.sent, length);
        if let Some(count) = self.ends.writers[channel].write(&data).now_or_never() {
            let count = count.expect("the client is there");
            assert!(count > 0 && count <= length);
            down.sent += count;
        }
    }

    /// Until all that was sent has arrived.
    async fn settle(&mut self) {
        let mut idle = 0;
        let rest = |play: &Self| {
            let whole = |counts: &[Count]| counts.iter().all(|count| count.sent == count.arrived);
            !(whole(&play.up) && whole(&play.down) && play.outbox.is_empty() && play.pings.is_empty())
        };
        while rest(self) {
            // A tunnel has no task of its own: what it holds back is sent when its user asks.
            let mut moved = false;
            if self.kind == Kind::Tunnel {
                let _ = self.ends.writers[0].flush().now_or_never();
            }
            moved |= self.pass(usize::MAX);
            moved |= self.take(64 * 1024);
            for channel in 0..self.ends.readers.len() {
                moved |= self.read(channel, 64 * 1024);
            }
            idle = if moved { 0 } else { idle + 1 };
            assert!(
                idle < 100,
                "it does not arrive: up {:?}, down {:?}, {} pings",
                self.up,
                self.down,
                self.pings.len()
            );
            yield_now().await;
        }
    }

    /// The server closes, the client answers, and all readers hear of it.
    async fn end(mut self) {
        let handle = self.ends.handle.take();
        let mut writer = if handle.is_none() { self.ends.writers.pop() } else { None };
        // Some were left in the middle of a write.
        self.ends.writers.clear();
        let closing = async {
            match (handle, &mut writer) {
                (Some(handle), _) => handle.close().await,
                (None, Some(writer)) => writer.shutdown().await.expect("the client is there"),
                (None, None) => {}
            }
        };
        let answering = async {
            while self.closed.is_none() {
                self.take(1024);
                yield_now().await;
            }
            assert_eq!(self.closed, Some(1000));
            let _ = self.io.write_all(&masked(0x88, [1; 4], &1000_u16.to_be_bytes())).await;
            self.io.shutdown().await.expect("closing a pipe");
            for reader in self.ends.readers.iter_mut().flatten() {
                assert_eq!(reader.read(&mut [0; 10]).await.expect("the end is no error"), 0);
            }
        };
        let all = async { tokio::join!(closing, answering) };
        assert!(tokio::time::timeout(SOON, all).await.is_ok(), "the connection did not end");
    }
}
