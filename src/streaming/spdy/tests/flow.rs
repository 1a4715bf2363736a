//! Windows, and what streams do to each other.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::Limits;
use super::raw::{Seen, control, data, raw, words};
use super::{opened, pair, pattern, soon, until};

#[tokio::test]
async fn a_peer_that_says_nothing_of_windows_gets_everything() {
    let (mut peer, _session, mut incoming) = raw(Limits::default());
    let syn = peer.syn(1, 0);
    peer.send(&syn).await;
    let mut stream = incoming.next().await.unwrap().accept();
    let sent = pattern(1, 1 << 20);
    let writing = async {
        stream.write_all(&sent).await.unwrap();
        stream.shutdown().await.unwrap();
    };
    let reading = async {
        assert_eq!(peer.see_after_greeting().await, Some(Seen::SynReply(1)));
        let mut got = Vec::new();
        loop {
            match peer.see().await {
                Some(Seen::Data(1, fin, bytes)) => {
                    assert!(bytes.len() <= 32 * 1024);
                    got.extend(bytes);
                    if fin {
                        return got;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    };
    let ((), got) = soon("all bytes", async { tokio::join!(writing, reading) }).await;
    assert!(got == sent);
}

#[tokio::test]
async fn a_stream_keeps_to_the_window_that_the_peer_sets() {
    let (mut peer, session, mut incoming) = raw(Limits::default());
    let bytes = [control(4, 0, &words(&[1, 7, 1000])), peer.syn(1, 0)].concat();
    peer.send(&bytes).await;
    let mut stream = incoming.next().await.unwrap().accept();
    stream.write_all(&[7; 5000]).await.unwrap();
    assert_eq!(peer.see_after_greeting().await, Some(Seen::SynReply(1)));
    assert_eq!(peer.see().await, Some(Seen::Data(1, false, vec![7; 1000])));
    peer.send(&control(9, 0, &words(&[1, 500]))).await;
    assert_eq!(peer.see().await, Some(Seen::Data(1, false, vec![7; 500])));
    // A smaller start makes the window negative: 1500 more are needed before anything goes.
    peer.send(&[control(4, 0, &words(&[1, 7, 0])), control(9, 0, &words(&[1, 900]))].concat()).await;
    peer.send(&control(6, 0, &words(&[1]))).await;
    assert_eq!(peer.see().await, Some(Seen::Ping(1)), "nothing was sent before the ping's answer");
    peer.send(&control(4, 0, &words(&[1, 7, 1100]))).await;
    assert_eq!(peer.see().await, Some(Seen::Data(1, false, vec![7; 1000])));
    // An end needs no window, once the data is out.
    peer.send(&control(9, 0, &words(&[1, 2500]))).await;
    assert_eq!(peer.see().await, Some(Seen::Data(1, false, vec![7; 2500])));
    stream.shutdown().await.unwrap();
    assert_eq!(peer.see().await, Some(Seen::Data(1, true, Vec::new())));
    assert!(session.reason().is_none());
}

#[tokio::test]
async fn a_session_keeps_to_the_window_that_the_peer_widens() {
    let (mut peer, _session, mut incoming) = raw(Limits::default());
    let bytes = [control(9, 0, &words(&[0, 1])), peer.syn(1, 0), peer.syn(3, 0)].concat();
    peer.send(&bytes).await;
    let mut first = incoming.next().await.unwrap().accept();
    let mut second = incoming.next().await.unwrap().accept();
    // Taken into the buffer, not sent.
    first.write_all(&[1; 60 * 1024]).await.unwrap();
    second.write_all(&[2; 60 * 1024]).await.unwrap();
    let mut count = 0;
    while count < 64 * 1024 + 1 {
        match peer.see_after_greeting().await {
            Some(Seen::Data(_, false, bytes)) => count += bytes.len(),
            Some(Seen::SynReply(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(count, 64 * 1024 + 1);
    peer.send(&control(6, 0, &words(&[1]))).await;
    assert_eq!(peer.see().await, Some(Seen::Ping(1)), "nothing was sent before the ping's answer");
    peer.send(&control(9, 0, &words(&[0, 1 << 20]))).await;
    while count < 120 * 1024 {
        match peer.see().await {
            Some(Seen::Data(_, false, bytes)) => count += bytes.len(),
            other => panic!("{other:?}"),
        }
    }
    drop((first, second));
}

#[tokio::test]
async fn a_peer_that_keeps_to_windows_is_given_them_back() {
    let limits = Limits { stream_window: 10_000, session_window: 64 * 1024, ..Limits::default() };
    let (mut peer, session, mut incoming) = raw(limits);
    let syn = peer.syn(1, 0);
    peer.send(&syn).await;
    let mut stream = incoming.next().await.unwrap().accept();
    assert_eq!(peer.see().await, Some(Seen::Settings(vec![(4, 1024), (7, 10_000)])));
    assert_eq!(peer.see().await, Some(Seen::SynReply(1)));
    let (mut stream_window, mut session_window) = (10_000, 64 * 1024_u32);
    let mut piece = [0; 1000];
    for _ in 0..1000 {
        while stream_window < 1000 || session_window < 1000 {
            match peer.see().await {
                Some(Seen::Window(0, delta)) => session_window += delta,
                Some(Seen::Window(1, delta)) => stream_window += delta,
                other => panic!("{other:?}"),
            }
        }
        peer.send(&data(1, false, &piece)).await;
        stream_window -= 1000;
        session_window -= 1000;
        soon("the bytes", stream.read_exact(&mut piece)).await.unwrap();
    }
    assert!(!session.0.with(|table| table.is_heedless()));
}

/// As a peer does that counts windows, but began before it had read how wide they are.
async fn given_back_late(settings_before_the_reader: bool) {
    let (mut peer, session, mut incoming) = raw(Limits { stream_window: 10_000, ..Limits::default() });
    let bytes = [peer.syn(1, 0), data(1, false, &[5; 30_000])].concat();
    peer.send(&bytes).await;
    let mut stream = incoming.next().await.unwrap().accept();
    until("more than a window", &session, |table| table.is_heedless()).await;
    let settings = control(4, 0, &words(&[1, 7, 10_000]));
    let mut got = vec![0; 30_000];
    if settings_before_the_reader {
        peer.send(&settings).await;
        soon("the bytes", stream.read_exact(&mut got)).await.unwrap();
    } else {
        soon("the bytes", stream.read_exact(&mut got)).await.unwrap();
        peer.send(&settings).await;
    }
    assert!(got.iter().all(|byte| *byte == 5));
    let mut room = 10_000 - 30_000_i64;
    while room < 10_000 {
        match peer.see_after_greeting().await {
            Some(Seen::Window(1, delta)) => room += i64::from(delta),
            Some(Seen::SynReply(1)) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(room, 10_000);
}

#[tokio::test]
async fn a_peer_that_learns_of_windows_late_is_given_them_back() {
    given_back_late(true).await;
    given_back_late(false).await;
}

#[tokio::test]
async fn bytes_that_nobody_wants_give_the_session_its_window_back() {
    let limits = Limits { session_window: 64 * 1024, ..Limits::default() };
    let (mut peer, session, mut incoming) = raw(limits);
    let bytes = [peer.syn(1, 0), data(1, false, &[0; 40_000])].concat();
    peer.send(&bytes).await;
    let stream = incoming.next().await.unwrap().accept();
    until("the bytes to be here", &session, |table| table.held() == 40_000).await;
    drop(stream);
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.push(peer.see_after_greeting().await.unwrap());
        peer.send(&control(6, 0, &words(&[1]))).await;
    }
    assert_eq!(session.0.with(|table| table.held()), 0);
    // The window came with the greeting or before it; a further round needs another one.
    let mut windows = 0;
    for _ in 0..4 {
        peer.send(&data(1, false, &[0; 40_000])).await;
    }
    peer.send(&control(6, 0, &words(&[3]))).await;
    loop {
        match peer.see().await {
            Some(Seen::Window(0, delta)) => windows += delta,
            Some(Seen::Ping(3)) => break,
            Some(_) => {}
            None => panic!("the session ended"),
        }
    }
    assert!(windows >= 120_000, "{windows}");
}

#[tokio::test]
async fn a_stream_that_nobody_reads_stalls_no_other() {
    let limits = Limits { stream_window: 20_000, ..Limits::default() };
    let ((session, _other), (served, mut incoming)) = pair(4096, &limits);
    let (mut stuck, _unread) = opened(&session, &mut incoming).await;
    let (mut near, mut far) = opened(&session, &mut incoming).await;
    // As much as the stuck stream takes: the peer's window, and the buffer on this side.
    let stuffing = crate::task::spawn("stuff", async move {
        let _ = stuck.write_all(&[0; 1 << 20]).await;
    });
    until("the window to be full", &served, |table| table.held() == 20_000).await;
    let sent = pattern(5, 500_000);
    let writing = async {
        near.write_all(&sent).await.unwrap();
        near.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    soon("the other stream's bytes", async { tokio::join!(writing, far.read_to_end(&mut got)) }).await.1.unwrap();
    assert!(got == sent);
    assert!(!stuffing.is_finished());
    drop(session);
    soon("the stuck writer to be woken", stuffing).await.unwrap();
}

#[tokio::test]
async fn writers_are_held_back_by_a_peer_that_does_not_read() {
    let limits = Limits { session_send_buffer: 100_000, ..Limits::default() };
    let (mut peer, session, mut incoming) = raw(limits);
    let mut streams = Vec::new();
    for id in [1, 3, 5, 7] {
        let syn = peer.syn(id, 0);
        peer.send(&syn).await;
        streams.push(incoming.next().await.unwrap().accept());
    }
    // Polled once each until none takes more: what they took is bounded, and each has taken something.
    let mut taken = [0; 4];
    let mut idle = 0;
    while idle < 1000 {
        idle += 1;
        for (stream, taken) in streams.iter_mut().zip(&mut taken) {
            tokio::select! {
                biased;
                count = stream.write(&[0; 5000]) => { *taken += count.unwrap(); idle = 0; }
                () = tokio::task::yield_now() => {}
            }
        }
    }
    let held = session.0.with(|table| table.unsent());
    assert!(held <= 100_000 + 64 * 1024 + 4 * Limits::SEND_FLOOR, "{held} bytes are held");
    assert!(taken.iter().all(|taken| *taken >= Limits::SEND_FLOOR), "{taken:?}");
    // All are woken when the peer has gone.
    drop(peer);
    for stream in &mut streams {
        soon("an error", stream.write_all(&[0; 100_000])).await.unwrap_err();
    }
}
