//! Clients at any pace get every byte once and in order, and none costs more than its bound.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::monitor::Taker;
use crate::monitor::log::{LogFile, LogPlace};

const BOTH: Wants = Wants { stdout: true, stderr: true };
const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

/// A container's output side: what is written is kept here too.
struct Container {
    dir: tempfile::TempDir,
    taker: Taker,
    written: [Vec<u8>; 2],
    rotations: usize,
}

impl Container {
    fn new(logged: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = LogPlace { dir: dir.path().to_owned(), relative: "0.log".into() };
        let log = logged.then(|| LogFile::open(place, 1000).unwrap());
        Self { dir, taker: Taker { log, outlets: Arc::default() }, written: [Vec::new(), Vec::new()], rotations: 0 }
    }

    fn attach(&self, wants: Wants) -> Client {
        let outlet = Outlets::open(&self.taker.outlets, wants).unwrap();
        Client { outlet, got: [Vec::new(), Vec::new()] }
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("0.log")
    }

    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        self.written[at(stream)].extend_from_slice(bytes);
        self.taker.take(stream, bytes);
    }

    /// Some text, different from what came before it, with ends of lines in it.
    fn write_some(&mut self, stream: Stream, len: usize) {
        let from = self.written[at(stream)].len();
        let byte = |n: usize| if n.is_multiple_of(977) { b'\n' } else { u8::try_from(n % 251).unwrap() };
        let bytes: Vec<u8> = (from..from + len).map(byte).collect();
        self.write(stream, &bytes);
    }

    fn rotate(&mut self) {
        self.rotations += 1;
        std::fs::rename(self.log(), self.dir.path().join(format!("0.log.{}", self.rotations))).unwrap();
        self.taker.reopen().unwrap();
    }

    fn cost(&self) -> usize {
        self.taker.outlets.lock().queues.values().map(|queue| queue.cost).max().unwrap_or(0)
    }
}

fn at(stream: Stream) -> usize {
    usize::from(stream == Stream::Stderr)
}

/// What came of one step of a client.
#[derive(Debug, PartialEq, Eq)]
enum Came {
    Bytes,
    /// It would wait.
    Nothing,
    End,
    Error(String),
}

struct Client {
    outlet: Outlet,
    got: [Vec<u8>; 2],
}

impl Client {
    /// As `Outlet::next`, without waiting.
    fn read(&mut self) -> Came {
        loop {
            match self.outlet.step() {
                Next::Piece(piece) => {
                    self.got[at(piece.stream)].extend_from_slice(&piece.bytes);
                    return Came::Bytes;
                }
                Next::Wait => return Came::Nothing,
                Next::End => return Came::End,
                Next::Failed(error) => return Came::Error(error.to_string()),
                Next::Read(segment) => {
                    if let Err(error) = self.outlet.take(Outlet::read(&segment)) {
                        return Came::Error(error.to_string());
                    }
                }
            }
        }
    }

    fn read_all(&mut self) -> Came {
        loop {
            match self.read() {
                Came::Bytes => {}
                came => return came,
            }
        }
    }

    fn is_behind(&self) -> bool {
        !self.outlet.outlets.lock().queues[&self.outlet.key].behind.is_empty()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write(bool, usize),
    Read(usize, usize),
    Rotate,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (any::<bool>(), 1_usize..16 * 1024).prop_map(|(err, len)| Step::Write(err, len)),
        1 => (any::<bool>(), 0_usize..4).prop_map(|(err, len)| Step::Write(err, len)),
        4 => (0_usize..3, 1_usize..20).prop_map(|(client, count)| Step::Read(client, count)),
        1 => Just(Step::Rotate),
    ];
    proptest::collection::vec(step, 0..150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_byte_arrives_once_and_in_order(steps in steps()) {
        let mut container = Container::new(true);
        let wants = [BOTH, Wants { stdout: true, stderr: false }, Wants { stdout: false, stderr: true }];
        let mut clients = wants.map(|wants| container.attach(wants));
        for step in steps {
            match step {
                Step::Write(err, len) => container.write_some(STREAMS[usize::from(err)], len),
                Step::Read(client, count) => for _ in 0..count {
                    let came = clients[client].read();
                    prop_assert!(matches!(came, Came::Bytes | Came::Nothing), "{came:?}");
                },
                Step::Rotate if container.rotations < MAX_ROTATIONS => container.rotate(),
                Step::Rotate => {}
            }
            prop_assert!(container.cost() <= QUEUE);
        }
        // The exit comes while some of them are catching up.
        container.taker.outlets.end();
        for (client, wants) in clients.iter_mut().zip(wants) {
            prop_assert_eq!(client.read_all(), Came::End);
            for stream in STREAMS {
                let expected: &[u8] = if wants.has(stream) { &container.written[at(stream)] } else { &[] };
                prop_assert!(client.got[at(stream)] == expected, "{wants:?}: {stream:?} differs");
            }
        }
    }
}

#[test]
fn one_that_never_reads_costs_its_queue_and_nothing_is_lost() {
    let mut container = Container::new(true);
    let (mut asleep, mut awake) = (container.attach(BOTH), container.attach(BOTH));
    for _ in 0..1000 {
        container.write_some(Stream::Stdout, 16 * 1024);
        assert_eq!(awake.read_all(), Came::Nothing);
        assert!(container.cost() <= QUEUE);
    }
    assert!(asleep.is_behind() && !awake.is_behind());
    container.rotate();
    container.write_some(Stream::Stderr, 100);
    assert_eq!(asleep.read_all(), Came::Nothing);
    assert!(!asleep.is_behind(), "it has caught up");
    container.write_some(Stream::Stderr, 10);
    for client in [&mut asleep, &mut awake] {
        assert_eq!(client.read_all(), Came::Nothing);
        assert!(client.got == container.written);
    }
}

#[test]
fn single_bytes_are_bounded_too() {
    let mut container = Container::new(true);
    let mut client = container.attach(BOTH);
    for n in 0..20_000_u32 {
        container.write(Stream::Stdout, &[n.to_le_bytes()[0]]);
    }
    assert!(container.taker.outlets.lock().queues[&0].pieces.len() <= QUEUE / PIECE_COST);
    assert_eq!(client.read_all(), Came::Nothing);
    assert!(client.got == container.written);
}

#[test]
fn a_gap_is_an_error_and_what_came_before_it_is_delivered() {
    let fall_behind = |container: &mut Container| {
        for _ in 0..20 {
            container.write_some(Stream::Stdout, 16 * 1024);
        }
    };
    type Damage = fn(&mut Container);
    let cases: [(bool, Damage, &str); 5] = [
        (false, |_| (), "no log from which"),
        (true, |container| container.taker.outlets.push(Stream::Stdout, b"lost", None), "could not be written"),
        (true, |container| (0..=MAX_ROTATIONS).for_each(|_| container.rotate()), "rotations"),
        (
            true,
            |container| OpenOptions::new().write(true).open(container.log()).unwrap().set_len(0).unwrap(),
            "changed",
        ),
        (
            true,
            |container| {
                let mut log = OpenOptions::new().append(true).open(container.log()).unwrap();
                log.write_all(b"\n\nnot a record\n").unwrap();
                container.write_some(Stream::Stdout, 10);
            },
            "changed",
        ),
    ];
    for (logged, damage, expected) in cases {
        let mut container = Container::new(logged);
        let mut client = container.attach(BOTH);
        fall_behind(&mut container);
        damage(&mut container);
        let Came::Error(error) = client.read_all() else { panic!("{expected}: no error") };
        assert!(error.contains(expected), "{error}");
        assert!(client.got[0].len() >= 15 * 16 * 1024, "{expected}: only {} bytes came", client.got[0].len());
        assert!(container.written[0].starts_with(&client.got[0]), "{expected}: a gap");
        // It stays so, and nobody else is troubled.
        fall_behind(&mut container);
        assert!(matches!(client.read_all(), Came::Error(_)));
        let files: usize = container.taker.outlets.lock().queues.values().map(|queue| queue.behind.len()).sum();
        assert_eq!(files, 0, "{expected}: files are kept for a client that gets no more");
        assert_eq!(container.attach(BOTH).read(), Came::Nothing);
    }
}

/// CVE-2025-64329.
#[test]
fn cve_2025_64329_nothing_is_left_of_clients_of_a_silent_container() {
    let container = Container::new(true);
    for _ in 0..10_000 {
        drop(container.attach(BOTH));
    }
    assert!(container.taker.outlets.lock().queues.is_empty());
    assert_eq!(Arc::strong_count(&container.taker.outlets), 1);
}

#[tokio::test]
async fn the_end_wakes_those_who_wait_and_nobody_comes_after_it() {
    let mut container = Container::new(true);
    let outlets = container.taker.outlets.clone();
    let mut client = container.attach(BOTH);
    let waiting = crate::task::spawn("client", async move {
        let mut pieces = Vec::new();
        while let Some(piece) = client.outlet.next().await.unwrap() {
            pieces.push(piece.bytes.to_vec());
        }
        pieces.concat()
    });
    tokio::task::yield_now().await;
    container.write(Stream::Stdout, b"last words\n");
    drop(container);
    assert_eq!(waiting.await.unwrap(), b"last words\n");
    assert!(Outlets::open(&outlets, BOTH).is_none());
}
