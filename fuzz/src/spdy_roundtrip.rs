//! A client's session and a server's, used in any order: each byte that arrives is the next one that was sent, an end is only
//! where one was asked for, and what is neither reset nor cut off arrives in full.

use std::sync::LazyLock;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use cricket::fuzzing::spdy::{Incoming, Limits, Session, Stream, client, server};
use futures_util::FutureExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::task::yield_now;

use super::{SOON, run};

/// Plays an input.
pub fn check(input: &[u8]) {
    let Ok(plan) = Plan::arbitrary_take_rest(Unstructured::new(input)) else { return };
    run(play(plan));
}

#[derive(Debug, Arbitrary)]
struct Plan {
    pipe: u16,
    stream_window: u16,
    send_buffer: u16,
    session_send_buffer: u16,
    steps: Vec<Step>,
}

#[derive(Debug, Arbitrary)]
enum Step {
    Open,
    Write { stream: u8, side: Side, length: u16 },
    Read { stream: u8, side: Side, length: u16 },
    Shutdown { stream: u8, side: Side },
    Drop { stream: u8, side: Side },
    Wait(u8),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Side {
    Near,
    Far,
}

/// One direction's end at one side.
struct End {
    /// `None` once it is dropped.
    stream: Option<Stream>,
    written: usize,
    read: usize,
    shut: bool,
    ended: bool,
}

impl End {
    fn new(stream: Stream) -> Self {
        Self { stream: Some(stream), written: 0, read: 0, shut: false, ended: false }
    }
}

struct Pair {
    seed: usize,
    ends: [End; 2],
    /// One side was dropped, so resets are in order.
    broken: bool,
}

/// What a side of a stream sends repeats after so many bytes.
const PERIOD: usize = 65_521;

/// The piece at a place of what one side of a stream sends, at most [`PERIOD`] long.
fn piece(seed: usize, side: usize, at: usize, length: usize) -> &'static [u8] {
    static TABLE: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..2 * PERIOD).map(|at| at % PERIOD).map(|at| (at ^ (at >> 8)) as u8).collect());
    let begin = (at + 977 * seed + 491 * side) % PERIOD;
    &TABLE[begin..begin + length]
}

impl Pair {
    fn write(&mut self, side: usize, length: usize) -> bool {
        let end = &mut self.ends[side];
        let Some(stream) = &mut end.stream else { return false };
        match stream.write(piece(self.seed, side, end.written, length.min(PERIOD))).now_or_never() {
            Some(Ok(count)) => {
                assert!(!end.shut && count <= length);
                end.written += count;
                count > 0
            }
            Some(Err(error)) => {
                assert!(end.shut || self.broken, "{error}");
                false
            }
            None => false,
        }
    }

    fn read(&mut self, side: usize, length: usize) -> bool {
        let (written, shut) = (self.ends[1 - side].written, self.ends[1 - side].shut);
        let end = &mut self.ends[side];
        let Some(stream) = &mut end.stream else { return false };
        let mut bytes = [0; 8 * 1024];
        let bytes = &mut bytes[..length.clamp(1, 8 * 1024)];
        match stream.read(bytes).now_or_never() {
            Some(Ok(0)) => {
                assert!(shut && end.read == written, "an end after {} of {written} bytes", end.read);
                !std::mem::replace(&mut end.ended, true)
            }
            Some(Ok(count)) => {
                assert!(bytes[..count] == *piece(self.seed, 1 - side, end.read, count), "other bytes at {}", end.read);
                end.read += count;
                assert!(end.read <= written && !end.ended);
                true
            }
            Some(Err(error)) => {
                assert!(self.broken, "{error}");
                false
            }
            None => false,
        }
    }

    fn shutdown(&mut self, side: usize) {
        let end = &mut self.ends[side];
        if let Some(stream) = &mut end.stream {
            end.shut = true;
            if let Some(Err(error)) = stream.shutdown().now_or_never() {
                assert!(self.broken, "{error}");
            }
        }
    }
}

async fn open(session: &Session, incoming: &mut Incoming, seed: usize) -> Pair {
    let accepting = async { incoming.next().await.expect("a stream comes").accept() };
    let (near, far) = tokio::join!(session.open([("streamtype", "data")]), accepting);
    Pair { seed, ends: [End::new(near.expect("it was accepted")), End::new(far)], broken: false }
}

async fn play(plan: Plan) {
    let limits = Limits {
        streams: 16,
        stream_window: u32::from(plan.stream_window).max(1),
        send_buffer: usize::from(plan.send_buffer).max(1),
        session_send_buffer: usize::from(plan.session_send_buffer).max(1),
        stall: Duration::from_millis(50),
        linger: Duration::from_millis(20),
        ..Limits::default()
    };
    let (near, far) = duplex(usize::from(plan.pipe).max(1));
    let (session, _refused) = client(near, limits.clone());
    let (served, mut incoming) = server(far, limits);
    let mut pairs: Vec<Pair> = Vec::new();
    for step in plan.steps {
        let count = pairs.len();
        let at = |stream: u8| usize::from(stream).checked_rem(count);
        match step {
            Step::Open if count < 8 => pairs.push(open(&session, &mut incoming, count).await),
            Step::Open => {}
            Step::Write { stream, side, length } => {
                at(stream).map(|at| pairs[at].write(side as usize, usize::from(length)));
            }
            Step::Read { stream, side, length } => {
                at(stream).map(|at| pairs[at].read(side as usize, usize::from(length)));
            }
            Step::Shutdown { stream, side } => {
                if let Some(at) = at(stream) {
                    pairs[at].shutdown(side as usize);
                }
            }
            Step::Drop { stream, side } => {
                if let Some(at) = at(stream) {
                    let pair = &mut pairs[at];
                    let end = &mut pair.ends[side as usize];
                    // One that was shut down and whose input has ended breaks nothing.
                    pair.broken |= !(end.shut && end.ended);
                    end.stream = None;
                }
            }
            Step::Wait(turns) => {
                for _ in 0..turns {
                    yield_now().await;
                }
            }
        }
    }
    finish(&mut pairs).await;
    drop(pairs);
    served.close();
    for session in [&session, &served] {
        let ended = tokio::time::timeout(SOON, session.closed()).await;
        assert!(ended.is_ok(), "a session did not end");
        let reason = session.reason().expect("it has ended").to_string();
        assert!(
            reason == "the session was closed" || reason.contains("hung up") || reason.contains("connection"),
            "{reason}"
        );
    }
}

/// Ends every stream that is whole, and reads it to its end.
async fn finish(pairs: &mut [Pair]) {
    for pair in pairs.iter_mut().filter(|pair| !pair.broken) {
        pair.shutdown(0);
        pair.shutdown(1);
    }
    let mut idle = 0;
    // What was written to a stream whose reader has gone still passes through the pipe, byte by byte if it is that narrow, and
    // nobody sees that.
    let unseen: usize = pairs.iter().flat_map(|pair| &pair.ends).map(|end| end.written).sum();
    let patience = 1000 + 4 * unseen;
    let whole = |pair: &Pair| pair.broken || pair.ends.iter().all(|end| end.ended);
    while idle < patience && !pairs.iter().all(whole) {
        idle += 1;
        for pair in pairs.iter_mut() {
            for side in [0, 1] {
                while pair.read(side, usize::MAX) {
                    idle = 0;
                }
            }
        }
        yield_now().await;
    }
    for pair in pairs.iter().filter(|pair| !pair.broken) {
        for side in [0, 1] {
            let (end, other) = (&pair.ends[side], &pair.ends[1 - side]);
            // A side that was dropped after both ends has read everything.
            assert!(end.ended, "{} of {} bytes arrived, and no end", end.read, other.written);
            assert_eq!(end.read, other.written);
        }
    }
}
