//! Peers that break the protocol or want memory. Each gets a clear end, and until then holds no more than the limits say.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::Limits;
use super::super::Status;
use super::raw::{Raw, Seen, control, data, plain, raw, words};
use super::{pattern, soon, until};

fn small() -> Limits {
    Limits { streams: 4, resets: 10, resets_per_second: 0, ..Limits::default() }
}

type Attack = fn(&mut Raw) -> Vec<u8>;

/// What the peer sends, and why its session ends.
const VIOLATIONS: &[(&str, Attack)] = &[
    ("control frame of version 2; only 3 is spoken here", |_| vec![0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]),
    // The length alone is enough; nobody waits for 16 MiB.
    ("control frame of kind 8 with 16777215 bytes; at most 16384 are taken", |_| {
        vec![0x80, 3, 0, 8, 0, 0xff, 0xff, 0xff]
    }),
    ("control frame of kind 99 with 16385 bytes; at most 16384 are taken", |_| vec![0x80, 3, 0, 99, 0, 0, 0x40, 1]),
    ("SETTINGS with 4294967295 entries; at most 64 are taken", |_| control(4, 0, &words(&[u32::MAX]))),
    ("SETTINGS with 4294967295 entries; at most 64 are taken", |_| control(4, 0, &words(&[u32::MAX, 7, 1]))),
    ("control frame of kind 4 cannot have 4 bytes", |_| control(4, 0, &words(&[1]))),
    ("INITIAL_WINDOW_SIZE of 2147483648", |_| control(4, 0, &words(&[1, 7, 1 << 31]))),
    ("control frame of kind 6 cannot have 8 bytes", |_| control(6, 0, &[0; 8])),
    ("control frame of kind 3 cannot have 4 bytes", |_| control(3, 0, &[0; 4])),
    ("control frame of kind 7 cannot have 4 bytes", |_| control(7, 0, &[0; 4])),
    ("control frame of kind 9 cannot have 12 bytes", |_| control(9, 0, &[0; 12])),
    ("control frame of kind 1 cannot have 9 bytes", |_| control(1, 0, &[0; 9])),
    ("the header block is damaged: it does not inflate", |peer| peer.syn_with(1, 0, b"plain text")),
    ("the header block is damaged: too many headers", |peer| {
        let block = peer.compress(&plain(1 << 31, &[(b"a", b"b")]));
        peer.syn_with(1, 0, &block)
    }),
    ("the header block has more than 8192 bytes", |peer| {
        let block = peer.compress(&plain(1, &[(b"a", &vec![0; 8 << 20])]));
        assert!(block.len() < 16 * 1024, "a bomb");
        peer.syn_with(1, 0, &block)
    }),
    ("a stream was opened with the id 0: ids of this side are not the peer's to use", |peer| peer.syn(0, 0)),
    ("a stream was opened with the id 2: ids of this side are not the peer's to use", |peer| peer.syn(2, 0)),
    ("a stream was opened with the id 5: it is not above the last one", |peer| {
        [peer.syn(5, 0), peer.syn(5, 0)].concat()
    }),
    ("a stream was opened with the id 3: it is not above the last one", |peer| {
        [peer.syn(5, 0), peer.syn(3, 0)].concat()
    }),
    // The id of a stream that is over is used up too.
    ("a stream was opened with the id 5: it is not above the last one", |peer| {
        [peer.syn(5, 1), control(3, 0, &words(&[5, 5])), peer.syn(5, 0)].concat()
    }),
    ("frame of kind DATA for stream 0, which was never opened", |_| data(0, false, b"x")),
    ("frame of kind DATA for stream 1, which was never opened", |_| data(1, true, b"")),
    ("frame of kind DATA for stream 2, which was never opened", |_| data(2, false, b"x")),
    ("frame of kind DATA for stream 3, which was never opened", |peer| [peer.syn(1, 0), data(3, false, b"x")].concat()),
    ("frame of kind RST_STREAM for stream 1, which was never opened", |_| control(3, 0, &words(&[1, 5]))),
    ("frame of kind WINDOW_UPDATE for stream 4, which was never opened", |_| control(9, 0, &words(&[4, 5]))),
    ("frame of kind SYN_REPLY for stream 2, which was never opened", |peer| {
        let block = peer.compress(&plain(0, &[]));
        control(2, 0, &[words(&[2]), block].concat())
    }),
    ("frame of kind HEADERS for stream 1, which was never opened", |peer| {
        let block = peer.compress(&plain(0, &[]));
        control(8, 0, &[words(&[1]), block].concat())
    }),
    ("a stream was opened with the id 1: a reply to a stream of the peer's own", |peer| {
        let syn = peer.syn(1, 0);
        let block = peer.compress(&plain(0, &[]));
        [syn, control(2, 0, &[words(&[1]), block].concat())].concat()
    }),
    ("the session's window was raised by 0, which is no step or too large", |_| control(9, 0, &words(&[0, 0]))),
    ("the session's window was raised by 2147483647, which is no step or too large", |_| {
        control(9, 0, &words(&[0, 0x7fff_ffff]))
    }),
];

#[tokio::test]
async fn violations_end_the_session_with_a_reason() {
    for (expected, attack) in VIOLATIONS {
        let (mut peer, session, mut incoming) = raw(small());
        let bytes = attack(&mut peer);
        peer.send(&bytes).await;
        let end = loop {
            match peer.see_after_greeting().await {
                Some(Seen::GoAway(_, status)) => break status,
                Some(_) => {}
                None => panic!("{expected}: the connection ended without a GOAWAY"),
            }
        };
        assert_eq!(end, 1, "{expected}");
        assert_eq!(session.reason().unwrap().to_string(), *expected);
        assert_eq!(peer.see().await, None, "{expected}: a GOAWAY is the last frame");
        while incoming.next().await.is_some() {}
        drop(peer);
        soon("the end", session.closed()).await;
    }
}

#[tokio::test]
async fn frames_without_meaning_change_nothing() {
    let (mut peer, _session, mut incoming) = raw(small());
    let block = peer.compress(&plain(1, &[(b"a", b"b")]));
    for bytes in [
        control(5, 0, &[]),
        control(10, 0, &[1; 100]),
        control(4097, 7, &[1; 16 * 1024]),
        control(4, 1, &words(&[0])),
        control(4, 0, &words(&[2, 0x0100_0004, 1, 99, 99])),
        peer.syn_with(1, 0, &block),
        control(6, 0, &words(&[2])),
        control(6, 0, &words(&[7])),
    ] {
        peer.send(&bytes).await;
    }
    assert_eq!(peer.see_after_greeting().await, Some(Seen::Ping(7)), "the answer to a ping of this side is no answer");
    let mut stream = incoming.next().await.unwrap().accept();
    assert_eq!(peer.see().await, Some(Seen::SynReply(1)));
    let block = peer.compress(&plain(1, &[(b"c", b"d")]));
    let more = control(8, 1, &[words(&[1]), block].concat());
    peer.send(&[data(1, false, b""), data(1, false, b"text"), more].concat()).await;
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"text", "the FIN of a HEADERS frame ends a stream too");
}

#[tokio::test]
async fn what_is_wrong_with_one_stream_ends_that_one() {
    let (mut peer, _session, mut incoming) = raw(small());
    for (id, bytes, status) in [
        (1, data(1, false, b"after the end"), Status::STREAM_ALREADY_CLOSED),
        (3, control(9, 0, &words(&[3, 0])), Status::PROTOCOL_ERROR),
        (5, control(9, 0, &words(&[5, 0x7fff_ffff])), Status::FLOW_CONTROL_ERROR),
    ] {
        let syn = peer.syn(id, u8::from(id == 1));
        peer.send(&syn).await;
        let mut stream = incoming.next().await.unwrap().accept();
        assert_eq!(peer.see_after_greeting().await, Some(Seen::SynReply(id)));
        peer.send(&bytes).await;
        assert_eq!(peer.see().await, Some(Seen::Reset(id, status)));
        // The stream whose input had ended before shows that end.
        let read = stream.read(&mut [0; 10]).await;
        assert_eq!(read.is_ok(), id == 1, "{read:?}");
        // What follows for it is of no interest.
        peer.send(&[data(id, true, &[0; 1000]), control(3, 0, &words(&[id, 5]))].concat()).await;
    }
    peer.send(&control(6, 0, &words(&[9]))).await;
    assert_eq!(peer.see().await, Some(Seen::Ping(9)), "the session is as before");
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused() {
    let (mut peer, session, mut incoming) = raw(small());
    for id in [1, 3, 5, 7, 9, 11] {
        let syn = peer.syn(id, 0);
        peer.send(&syn).await;
    }
    assert_eq!(peer.see_after_greeting().await, Some(Seen::Reset(9, Status::REFUSED_STREAM)));
    assert_eq!(peer.see().await, Some(Seen::Reset(11, Status::REFUSED_STREAM)));
    // A reset of the peer makes no room as long as somebody works on the stream.
    let taken = incoming.next().await.unwrap();
    let syn = peer.syn(13, 0);
    peer.send(&[control(3, 0, &words(&[1, 5])), syn].concat()).await;
    assert_eq!(peer.see().await, Some(Seen::Reset(13, Status::REFUSED_STREAM)));
    let mut taken = taken.accept();
    assert_eq!(taken.read(&mut [0]).await.unwrap_err().to_string(), "the peer reset the stream: CANCEL");
    drop(taken);
    let syn = peer.syn(15, 0);
    peer.send(&syn).await;
    let mut streams = Vec::new();
    for id in [3, 5, 7, 15] {
        streams.push(soon("a stream", incoming.next()).await.unwrap().accept());
        assert_eq!(peer.see().await, Some(Seen::SynReply(id)));
    }
    drop(session);
}

#[tokio::test]
async fn cve_2023_44487_reset_storms_end_the_session() {
    let (mut peer, session, mut incoming) = raw(Limits { streams: 1000, ..small() });
    let mut storm = Vec::new();
    for id in (1..).step_by(2).take(11) {
        storm.extend(peer.syn(id, 0));
        storm.extend(control(3, 0, &words(&[id, 5])));
    }
    peer.send(&storm).await;
    assert_eq!(peer.see_after_greeting().await, Some(Seen::GoAway(21, 1)));
    assert_eq!(session.reason().unwrap().to_string(), "the peer reset more than 10 streams");
    assert!(incoming.next().await.is_none(), "streams that were reset before anybody took them are not handed out");
}

#[tokio::test]
async fn resets_after_our_end_are_no_storm() {
    let (mut peer, session, mut incoming) = raw(small());
    for id in (1..).step_by(2).take(30) {
        let syn = peer.syn(id, 0);
        peer.send(&syn).await;
        let mut stream = soon("a stream", incoming.next()).await.unwrap().accept();
        stream.shutdown().await.unwrap();
        assert_eq!(peer.see_after_greeting().await, Some(Seen::SynReply(id)));
        assert_eq!(peer.see().await, Some(Seen::Data(id, true, Vec::new())));
        // As Go's port-forward client does when the pod has closed the connection.
        peer.send(&control(3, 0, &words(&[id, 5]))).await;
        assert!(soon("the reset", stream.read(&mut [0])).await.is_err());
    }
    assert!(session.reason().is_none());
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_not_read_either() {
    let limits = Limits { replies: 1000, ..Limits::default() };
    let (mut peer, session, _incoming) = raw(limits);
    let ping = control(6, 0, &words(&[1]));
    let flood = ping.repeat(1000);
    let (mut sent, mut idle) = (0, 0);
    while idle < 1000 {
        idle += 1;
        tokio::select! {
            biased;
            count = peer.io.write(&flood) => { sent += count.unwrap(); idle = 0; }
            () = tokio::task::yield_now() => {}
        }
        // The pipe, and what the session has read and not answered.
        assert!(sent < 500_000, "{sent} bytes of pings were taken");
    }
    drop(peer);
    soon("the end", session.closed()).await;
}

#[tokio::test]
async fn a_peer_that_sends_without_regard_to_windows_is_held_back() {
    let limits = Limits { stream_window: 10_000, session_window: 64 * 1024, ..Limits::default() };
    let (mut peer, session, mut incoming) = raw(limits);
    let sent = pattern(3, 1 << 20);
    let bytes = [peer.syn(1, 0), data(1, true, &sent)].concat();
    let reading = async {
        let mut stream = incoming.next().await.unwrap().accept();
        until("the stream to be full", &session, |table| table.is_heedless()).await;
        let mut got = Vec::new();
        let mut piece = [0; 7000];
        loop {
            let held = session.0.with(|table| table.held());
            assert!(held <= 10_000, "{held} bytes are held");
            match soon("more", stream.read(&mut piece)).await.unwrap() {
                0 => return got,
                count => got.extend_from_slice(&piece[..count]),
            }
        }
    };
    let ((), got) = tokio::join!(peer.send(&bytes), reading);
    assert!(got == sent);
}

#[tokio::test]
async fn a_peer_that_went_away_while_it_was_held_back_is_noticed() {
    let limits = Limits {
        stream_window: 1000,
        session_window: 64 * 1024,
        probe: std::time::Duration::from_millis(20),
        ..Limits::default()
    };
    let (mut peer, session, mut incoming) = raw(limits);
    let bytes = [peer.syn(1, 0), data(1, false, &[0; 5000])].concat();
    peer.send(&bytes).await;
    let _stream = incoming.next().await.unwrap().accept();
    until("the stream to be full", &session, |table| table.is_heedless()).await;
    let before = session.last_activity();
    assert_eq!(peer.see_after_greeting().await, Some(Seen::SynReply(1)));
    // The probes say nothing, and need no answer.
    assert_eq!(peer.see().await, Some(Seen::Settings(Vec::new())));
    assert_eq!(peer.see().await, Some(Seen::Settings(Vec::new())));
    drop(peer);
    soon("the end", session.closed()).await;
    let activity = session.last_activity();
    assert!(activity.duration_since(before) < std::time::Duration::from_secs(1), "a probe is no activity");
}
