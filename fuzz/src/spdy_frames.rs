//! A hostile peer against a server's session: whatever it sends, nothing panics, memory stays within the limits, and the
//! session ends when the peer does, leaving nothing. And however the same bytes are cut, the same comes of them.

use std::collections::BTreeMap;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use cricket::fuzzing::spdy::{Incoming, IncomingStream, Limits, Session, Stream, server};
use flate2::{Compress, Compression, FlushCompress};
use futures_util::FutureExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::task::yield_now;

use super::{SOON, cuts, elapse, heap, run, send};

/// Plays an input.
pub fn check(input: &[u8]) {
    let Ok(steps) = Vec::<Step<'_>>::arbitrary_take_rest(Unstructured::new(input)) else { return };
    let sent = run(attack(&steps));
    if !sent.is_empty() && sent.len() <= MAX_COMPARED {
        let whole = run(outcome(&sent, std::iter::once(&sent[..])));
        let cut = run(outcome(&sent, cuts(&sent)));
        whole.expect_like(&cut, &sent);
    }
}

/// What the peer or the server's code does next.
#[derive(Debug, Arbitrary)]
enum Step<'a> {
    /// Any bytes.
    Bytes(&'a [u8]),
    /// A frame with a length of its own choice.
    Control {
        kind: u8,
        flags: u8,
        length: Option<u32>,
        payload: &'a [u8],
    },
    Words {
        kind: u8,
        first: u32,
        second: u32,
    },
    /// A header block that inflates to these bytes, on a frame that has one.
    Block {
        kind: u8,
        stream: u32,
        flags: u8,
        plain: &'a [u8],
    },
    /// One that inflates to many bytes.
    Bomb {
        stream: u32,
        kibibytes: u8,
    },
    Open {
        flags: u8,
    },
    Data {
        stream: u8,
        fin: bool,
        length: u16,
    },
    Repeat {
        frame: &'a [u8],
        times: u8,
    },
    /// The peer reads.
    Take(u16),
    Wait(u8),
    Next {
        accept: bool,
    },
    Read {
        stream: u8,
        length: u16,
    },
    Write {
        stream: u8,
        length: u16,
    },
    Shutdown {
        stream: u8,
    },
    Drop {
        stream: u8,
    },
    Deafen,
    Close,
    Elapse {
        millis: u16,
    },
}

fn limits() -> Limits {
    Limits {
        streams: 16,
        control_frame: 4096,
        header_block: 2048,
        headers: 8,
        settings: 8,
        stream_window: 8 * 1024,
        session_window: 64 * 1024,
        send_buffer: 8 * 1024,
        session_send_buffer: 32 * 1024,
        replies: 2048,
        resets: 20,
        // Short, since the replay of a corpus waits for real.
        stall: Duration::from_millis(50),
        linger: Duration::from_millis(20),
        probe: Duration::from_millis(50),
        ..Limits::default()
    }
}

/// What such a session may hold: its windows and buffers (a deque may have twice what it needs), the connection's two
/// buffers, the inflater, headers; and the test's two pipes and what its compressor and its largest step hold.
const BOUND: usize = 2 * (64 + 32 + 16 * 4) * 1024 + 3 * 128 * 1024 + 64 * 1024 + 16 * 4096 + 2 * PIPE + STEP;
const PIPE: usize = 16 * 1024;
const STEP: usize = 512 * 1024;

/// Bytes of a peer that are played a second and a third time.
const MAX_COMPARED: usize = 64 * 1024;

struct Peer {
    io: DuplexStream,
    /// All that it meant to send, up to [`MAX_COMPARED`] and a step.
    sent: Vec<u8>,
    /// Made for the first block: it is most of what a peer costs.
    zlib: Option<Compress>,
    next: u32,
}

impl Peer {
    /// Sends as far as the session reads.
    async fn send(&mut self, bytes: &[u8]) {
        if self.sent.len() <= MAX_COMPARED {
            self.sent.extend_from_slice(bytes);
        }
        send(&mut self.io, bytes).await;
    }

    fn block(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut block = Vec::with_capacity(plain.len() / 2 + 1024);
        if self.zlib.is_none() {
            // The zlib header that asks for the dictionary of SPDY/3.
            block.extend_from_slice(&[0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2]);
        }
        let zlib = self.zlib.get_or_insert_with(|| Compress::new_with_window_bits(Compression::fast(), false, 9));
        let _ = zlib.compress_vec(plain, &mut block, FlushCompress::Sync);
        block
    }

    async fn step(&mut self, step: &Step<'_>) {
        match step {
            Step::Bytes(bytes) => self.send(bytes).await,
            Step::Control { kind, flags, length, payload } => {
                let length = length.unwrap_or(payload.len() as u32) & 0xff_ffff;
                self.send(&frame(u16::from(*kind), *flags, length, payload)).await;
            }
            Step::Words { kind, first, second } => {
                let payload = [first.to_be_bytes(), second.to_be_bytes()].concat();
                let payload = if *kind == 6 { &payload[..4] } else { &payload };
                self.send(&frame(u16::from(*kind), 0, payload.len() as u32, payload)).await;
            }
            Step::Block { kind, stream, flags, plain } => {
                let block = self.block(plain);
                self.send_block(u16::from(*kind), *stream, *flags, &block).await;
            }
            Step::Bomb { stream, kibibytes } => {
                let size = usize::from(*kibibytes % 64) * 1024;
                let mut plain = [0, 0, 0, 1, 0, 0, 0, 1, b'a'].to_vec();
                plain.extend_from_slice(&(size as u32).to_be_bytes());
                plain.resize(plain.len() + size, b'z');
                let block = self.block(&plain);
                self.send_block(1, *stream, 0, &block).await;
            }
            Step::Open { flags } => {
                let block = self.block(b"\0\0\0\x01\0\0\0\x0astreamtype\0\0\0\x05stdin");
                self.send_block(1, self.next, *flags, &block).await;
                self.next = self.next.wrapping_add(2);
            }
            Step::Data { stream, fin, length } => {
                let mut bytes = u32::from(*stream).to_be_bytes().to_vec();
                bytes.extend_from_slice(&(u32::from(*length) | u32::from(*fin) << 24).to_be_bytes());
                bytes.resize(8 + usize::from(*length), b'd');
                self.send(&bytes).await;
            }
            Step::Repeat { frame, times } => {
                for _ in 0..*times {
                    self.send(frame).await;
                }
            }
            Step::Take(count) => {
                let mut bytes = vec![0; usize::from(*count)];
                let _ = self.io.read(&mut bytes).now_or_never();
            }
            Step::Wait(turns) => {
                for _ in 0..*turns {
                    yield_now().await;
                }
            }
            Step::Elapse { millis } => elapse(Duration::from_millis(u64::from(*millis))).await,
            _ => {}
        }
    }

    async fn send_block(&mut self, kind: u16, stream: u32, flags: u8, block: &[u8]) {
        let mut payload = stream.to_be_bytes().to_vec();
        if kind == 1 {
            payload.extend_from_slice(&[0; 6]);
        }
        payload.extend_from_slice(block);
        self.send(&frame(kind, flags, payload.len() as u32 & 0xff_ffff, &payload)).await;
    }
}

fn frame(kind: u16, flags: u8, length: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x80, 3];
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&(length | u32::from(flags) << 24).to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The code that uses the session.
struct User {
    session: Session,
    incoming: Option<Incoming>,
    offered: Vec<IncomingStream>,
    streams: Vec<Stream>,
}

impl User {
    fn step(&mut self, step: &Step<'_>) {
        match step {
            Step::Next { accept } => {
                let Some(Some(stream)) = self.incoming.as_mut().and_then(|incoming| incoming.next().now_or_never())
                else {
                    return;
                };
                let _ = stream.header("streamtype");
                if *accept {
                    self.streams.push(stream.accept());
                } else {
                    self.offered.push(stream);
                }
            }
            Step::Read { stream, length } => {
                if let Some(stream) = self.stream(*stream) {
                    let mut bytes = vec![0; usize::from(*length)];
                    let _ = stream.read(&mut bytes).now_or_never();
                }
            }
            Step::Write { stream, length } => {
                if let Some(stream) = self.stream(*stream) {
                    let _ = stream.write(&vec![0; usize::from(*length)]).now_or_never();
                }
            }
            Step::Shutdown { stream } => {
                if let Some(stream) = self.stream(*stream) {
                    let _ = stream.shutdown().now_or_never();
                }
            }
            Step::Drop { stream } => {
                if self.streams.is_empty() {
                    if let Some(stream) = self.offered.pop() {
                        stream.refuse();
                    }
                } else {
                    let at = usize::from(*stream) % self.streams.len();
                    drop(self.streams.swap_remove(at));
                }
            }
            Step::Deafen => drop(self.incoming.take()),
            Step::Close => self.session.close(),
            _ => {}
        }
    }

    fn stream(&mut self, at: u8) -> Option<&mut Stream> {
        let count = self.streams.len();
        self.streams.get_mut(usize::from(at).checked_rem(count)?)
    }
}

/// Says what the peer sent.
async fn attack(steps: &[Step<'_>]) -> Vec<u8> {
    let (near, far) = duplex(PIPE);
    let mut peer = Peer { io: near, sent: Vec::with_capacity(2 * MAX_COMPARED), zlib: None, next: 1 };
    let watch = heap::Watch::begin();
    let (session, incoming) = server(far, limits());
    let mut user = User { session, incoming: Some(incoming), offered: Vec::new(), streams: Vec::new() };
    for step in steps {
        peer.step(step).await;
        user.step(step);
    }
    watch.expect_below(BOUND);
    let sent = peer.sent;
    drop(peer.io);
    // Held back or not, a session whose peer has gone ends within its clocks.
    let ended = tokio::time::timeout(SOON, user.session.closed()).await;
    assert!(ended.is_ok(), "the session did not end");
    for stream in &mut user.streams {
        // Nobody is left waiting.
        while let Some(Ok(count)) = stream.read(&mut [0; 1000]).now_or_never().or_else(|| panic!("a reader waits")) {
            if count == 0 {
                break;
            }
        }
    }
    sent
}

/// What came of a peer's bytes.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    streams: BTreeMap<u32, Arrived>,
    reason: String,
}

/// What came of one of its streams.
#[derive(Debug, PartialEq, Eq)]
struct Arrived {
    kind: Option<String>,
    bytes: Vec<u8>,
    /// How it ended: `None` with the peer's FIN.
    error: Option<std::io::ErrorKind>,
}

impl Outcome {
    fn expect_like(&self, other: &Self, sent: &[u8]) {
        // A peer that leaves and has no streams is not heard to its last byte; when that is so, is a matter of time.
        let left = |outcome: &Self| outcome.reason == "the session was closed";
        assert!(self.reason == other.reason || left(self) || left(other), "{} / {}", self.reason, other.reason);
        // One that the peer takes back before anybody has seen it is never seen, although it may have been ended before.
        let missed = |id: u32, arrived: Option<&Arrived>| match arrived.map(|arrived| arrived.error) {
            None | Some(Some(std::io::ErrorKind::ConnectionReset)) => true,
            Some(None) => {
                let begin = [&[0x80, 3, 0, 3, 0, 0, 0, 8], &id.to_be_bytes()[..]].concat();
                sent.windows(begin.len()).any(|bytes| bytes == begin)
            }
            Some(Some(_)) => false,
        };
        for id in self.streams.keys().chain(other.streams.keys()) {
            let (ours, theirs) = (self.streams.get(id), other.streams.get(id));
            let both = ours.is_some() && theirs.is_some();
            let alike = ours == theirs || (!both && missed(*id, ours) && missed(*id, theirs));
            assert!(alike, "stream {id}: {ours:?} / {theirs:?}");
        }
    }
}

/// Sends the pieces of a peer's bytes, with a server's user that takes and reads all.
async fn outcome(sent: &[u8], pieces: impl Iterator<Item = &[u8]>) -> Outcome {
    let (near, far) = duplex(2 * MAX_COMPARED);
    // Nothing may depend on what was answered by when: which resets count, say.
    let limits = Limits { streams: sent.len(), replies: 1 << 20, resets: u32::MAX, ..limits() };
    let (session, mut incoming) = server(far, limits);
    let (mut answers, mut io) = tokio::io::split(near);
    let sending = async {
        for piece in pieces {
            if io.write_all(piece).await.is_err() {
                break;
            }
            yield_now().await;
        }
        let _ = io.shutdown().await;
    };
    let hearing = async { while answers.read(&mut [0; 4096]).await.is_ok_and(|count| count > 0) {} };
    let using = async {
        let mut readers = Vec::new();
        while let Some(stream) = incoming.next().await {
            let kind = stream.header("streamtype").map(str::to_owned);
            readers.push(tokio::task::spawn_local(arrive(stream.accept(), kind)));
        }
        let ended = tokio::time::timeout(SOON, session.closed()).await;
        assert!(ended.is_ok(), "the session did not end");
        let mut arrived = Vec::new();
        for reader in readers {
            arrived.push(reader.await.expect("a reader ends"));
        }
        // All of them are held until here.
        arrived.into_iter().map(|(stream, arrived)| (stream.id(), arrived)).collect()
    };
    let all = async { tokio::join!(sending, hearing, using) };
    let ((), (), streams) = tokio::task::LocalSet::new().run_until(all).await;
    let reason = session.reason().expect("it has ended").to_string();
    Outcome { streams, reason }
}

async fn arrive(mut stream: Stream, kind: Option<String>) -> (Stream, Arrived) {
    let mut arrived = Arrived { kind, bytes: Vec::new(), error: None };
    let read = stream.read_to_end(&mut arrived.bytes).await;
    arrived.error = read.err().map(|error| error.kind());
    (stream, arrived)
}
