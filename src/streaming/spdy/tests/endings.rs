//! How streams and sessions end.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::{Limits, Status};
use super::raw::{Seen, control, data, raw, words};
use super::{opened, pair, soon, until};

#[tokio::test]
async fn everything_finished_is_sent_before_the_goodbye() {
    let (mut peer, session, mut incoming) = raw(Limits::default());
    let bytes = [peer.syn(1, 0), peer.syn(3, 0), peer.syn(5, 0)].concat();
    peer.send(&bytes).await;
    let mut output = incoming.next().await.unwrap().accept();
    let mut verdict = incoming.next().await.unwrap().accept();
    let mut input = incoming.next().await.unwrap().accept();
    output.write_all(&[b'o'; 60_000]).await.unwrap();
    verdict.write_all(b"Success").await.unwrap();
    output.shutdown().await.unwrap();
    verdict.shutdown().await.unwrap();
    session.close();
    assert!(incoming.next().await.is_none());
    assert_eq!(input.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionAborted);
    assert_eq!(input.write(&[0]).await.unwrap_err().kind(), ErrorKind::ConnectionAborted);
    let (mut count, mut ended, mut reset) = (0, Vec::new(), Vec::new());
    loop {
        match peer.see_after_greeting().await.unwrap() {
            Seen::Data(id, fin, bytes) => {
                count += bytes.len();
                ended.extend(fin.then_some(id));
            }
            Seen::Reset(id, status) => reset.push((id, status)),
            Seen::SynReply(_) => {}
            Seen::GoAway(5, 0) => break,
            other => panic!("{other:?}"),
        }
    }
    ended.sort_unstable();
    assert_eq!((count, ended, reset), (60_007, vec![1, 3], vec![(5, Status::CANCEL)]));
    // The peer may still be sending; it is heard out until it hangs up, so that nothing of the above is lost.
    peer.send(&data(5, false, &[0; 200_000])).await;
    assert_eq!(peer.see().await, None);
    drop(peer);
    soon("the end", session.closed()).await;
    assert_eq!(session.reason().unwrap().to_string(), "the session was closed");
}

#[tokio::test]
async fn a_peer_that_does_not_hang_up_is_not_waited_for() {
    let limits = Limits { linger: Duration::from_millis(20), ..Limits::default() };
    let (mut peer, session, _incoming) = raw(limits);
    let syn = peer.syn(1, 0);
    peer.send(&syn).await;
    session.close();
    soon("the end", session.closed()).await;
    drop(peer);
}

#[tokio::test]
async fn a_peer_that_takes_nothing_is_not_waited_for() {
    let limits = Limits { stall: Duration::from_millis(20), ..Limits::default() };
    let (mut peer, session, mut incoming) = raw(limits);
    let syn = peer.syn(1, 0);
    peer.send(&syn).await;
    let mut stream = incoming.next().await.unwrap().accept();
    // More than the pipe and the connection's buffer hold: the end cannot be sent.
    let writing = crate::task::spawn("write", async move { while stream.write_all(&[0; 60_000]).await.is_ok() {} });
    until("the stream's buffer to be full", &session, |table| table.unsent() == 64 * 1024).await;
    session.close();
    soon("the end", session.closed()).await;
    soon("the writer to be woken", writing).await.unwrap();
    drop(peer);
}

#[tokio::test]
async fn finished_output_that_the_peer_never_takes_ends_in_a_stall() {
    let limits = Limits { stall: Duration::from_millis(20), ..Limits::default() };
    let (mut peer, session, mut incoming) = raw(limits);
    let bytes = [control(4, 0, &words(&[1, 7, 0])), peer.syn(1, 0)].concat();
    peer.send(&bytes).await;
    let mut stream = incoming.next().await.unwrap().accept();
    stream.write_all(b"text").await.unwrap();
    {
        let ending = stream.shutdown();
        tokio::select! {
            biased;
            done = ending => panic!("{done:?}"),
            () = tokio::task::yield_now() => {}
        }
    }
    drop(stream);
    session.close();
    soon("the end", session.closed()).await;
    assert!(session.reason().unwrap().to_string().starts_with("the peer took nothing for"));
}

#[tokio::test]
async fn dropping_a_stream_says_how_it_ended() {
    let (mut peer, _session, mut incoming) = raw(Limits::default());
    for (id, end_ours, end_theirs, expected) in [
        (1, false, false, Some(Seen::Reset(1, Status::CANCEL))),
        (3, false, true, Some(Seen::Reset(3, Status::CANCEL))),
        (5, true, false, Some(Seen::Reset(5, Status::CANCEL))),
        (7, true, true, None),
    ] {
        let syn = peer.syn(id, u8::from(end_theirs));
        peer.send(&syn).await;
        let mut stream = soon("a stream", incoming.next()).await.unwrap().accept();
        assert_eq!(peer.see_after_greeting().await, Some(Seen::SynReply(id)));
        if end_ours {
            stream.write_all(b"end").await.unwrap();
            stream.shutdown().await.unwrap();
            assert_eq!(peer.see().await, Some(Seen::Data(id, true, b"end".to_vec())));
        }
        drop(stream);
        peer.send(&control(6, 0, &words(&[1]))).await;
        let mut seen = vec![peer.see().await.unwrap()];
        if seen[0] != Seen::Ping(1) {
            seen.push(peer.see().await.unwrap());
        } else if expected.is_some() {
            seen.insert(0, peer.see().await.unwrap());
        }
        assert_eq!(seen.pop(), Some(Seen::Ping(1)));
        assert_eq!(seen.pop(), expected);
    }
}

#[tokio::test]
async fn a_stream_without_an_answer_takes_no_data_of_ours() {
    let (mut peer, _session, mut incoming) = raw(Limits::default());
    // FIN and one-way: nothing may ever be sent on it but the reply.
    let bytes = [peer.syn(1, 3), peer.syn(3, 2)].concat();
    peer.send(&bytes).await;
    let mut stream = incoming.next().await.unwrap().accept();
    assert_eq!(stream.write(b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    stream.shutdown().await.unwrap();
    drop(stream);
    assert_eq!(peer.see_after_greeting().await, Some(Seen::SynReply(1)));
    drop(incoming.next().await.unwrap());
    assert_eq!(peer.see().await, Some(Seen::Reset(3, Status::REFUSED_STREAM)));
}

#[tokio::test]
async fn a_peer_that_says_goodbye_keeps_its_streams() {
    let (mut peer, session, mut incoming) = raw(Limits::default());
    let bytes = [peer.syn(1, 0), control(7, 0, &words(&[0, 0])), peer.syn(3, 0)].concat();
    peer.send(&bytes).await;
    let mut stream = incoming.next().await.unwrap().accept();
    assert_eq!(peer.see_after_greeting().await, Some(Seen::Reset(3, Status::REFUSED_STREAM)));
    assert_eq!(peer.see().await, Some(Seen::SynReply(1)));
    peer.send(&data(1, true, b"last words")).await;
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.unwrap();
    stream.write_all(&got).await.unwrap();
    stream.shutdown().await.unwrap();
    drop(stream);
    assert_eq!(peer.see().await, Some(Seen::Data(1, true, b"last words".to_vec())));
    assert_eq!(peer.see().await, Some(Seen::GoAway(3, 0)));
    assert!(incoming.next().await.is_none());
    drop(peer);
    soon("the end", session.closed()).await;
}

#[tokio::test]
async fn a_lost_connection_wakes_everybody() {
    let (mut peer, session, mut incoming) = raw(Limits::default());
    let bytes = [peer.syn(1, 0), peer.syn(3, 0), data(1, false, b"here"), data(3, true, b"all")].concat();
    peer.send(&bytes).await;
    let mut cut = incoming.next().await.unwrap().accept();
    let mut whole = incoming.next().await.unwrap().accept();
    let (mut reader, mut writer) = tokio::io::split(incoming_pair(&mut peer, &mut incoming).await);
    let reading = crate::task::spawn("read", async move { reader.read(&mut [0]).await });
    let writing = crate::task::spawn("write", async move {
        loop {
            if let Err(error) = writer.write_all(&[0; 60_000]).await {
                return error;
            }
        }
    });
    let coming = crate::task::spawn("next", async move { incoming.next().await.is_none() });
    let ending = async { session.closed().await };
    until("the writer to be held back", &session, |table| table.unsent() == 64 * 1024).await;
    drop(peer);
    let mut got = Vec::new();
    assert_eq!(soon("a reader", reading).await.unwrap().unwrap_err().kind(), ErrorKind::ConnectionAborted);
    assert_eq!(soon("a writer", writing).await.unwrap().kind(), ErrorKind::ConnectionAborted);
    assert!(soon("the streams' end", coming).await.unwrap());
    soon("the end", ending).await;
    // What had come is still there, and only a FIN is an end.
    assert_eq!(cut.read_to_end(&mut got).await.unwrap_err().kind(), ErrorKind::ConnectionAborted);
    assert_eq!(got, b"here");
    got.clear();
    whole.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"all");
}

async fn incoming_pair(peer: &mut super::raw::Raw, incoming: &mut super::Incoming) -> super::Stream {
    let syn = peer.syn(5, 0);
    peer.send(&syn).await;
    soon("a stream", incoming.next()).await.unwrap().accept()
}

#[tokio::test]
async fn an_open_on_a_session_that_ends_is_an_error() {
    let ((session, _other), (served, mut incoming)) = pair(1000, &Limits::default());
    let opening = async { session.open([("a", "b")]).await.unwrap_err().to_string() };
    let closing = async {
        let offered = incoming.next().await.unwrap();
        served.close();
        offered
    };
    let (error, _offered) = soon("the end", async { tokio::join!(opening, closing) }).await;
    assert!(error == "the peer reset the stream: CANCEL" || error == "the session was closed", "{error}");
    soon("the end", session.closed()).await;
    assert_eq!(session.open([("a", "b")]).await.unwrap_err().to_string(), "the session was closed");
}

#[tokio::test]
async fn bytes_before_a_reset_are_not_lost() {
    let ((session, _other), (_served, mut incoming)) = pair(100_000, &Limits::default());
    let (mut near, mut far) = opened(&session, &mut incoming).await;
    near.write_all(b"before").await.unwrap();
    near.flush().await.unwrap();
    drop(near);
    let mut got = Vec::new();
    let error = soon("the reset", far.read_to_end(&mut got)).await.unwrap_err();
    assert_eq!((got.as_slice(), error.kind()), (b"before".as_slice(), ErrorKind::ConnectionReset));
    assert_eq!(far.write(b"x").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_stream_that_is_accepted_and_dropped_at_once_has_its_reply_first() {
    let (mut peer, _session, mut incoming) = raw(Limits::default());
    let syn = peer.syn(1, 0);
    peer.send(&syn).await;
    drop(incoming.next().await.unwrap().accept());
    assert_eq!(peer.see_after_greeting().await, Some(Seen::SynReply(1)));
    assert_eq!(peer.see().await, Some(Seen::Reset(1, Status::CANCEL)));
    // A client of ours gets its stream, and hears of the reset when it reads.
    let ((session, _other), (_served, mut incoming)) = pair(1000, &Limits::default());
    let dropping = async { drop(incoming.next().await.unwrap().accept()) };
    let (stream, ()) = tokio::join!(session.open([("a", "b")]), dropping);
    assert_eq!(stream.unwrap().read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn what_came_before_a_reset_of_ours_is_still_read() {
    let (mut peer, _session, mut incoming) = raw(Limits::default());
    // Data after the end: the stream is reset, but its reader is not to take less than there was for all of it.
    let bytes = [peer.syn(1, 0), data(1, true, b"all of it"), data(1, false, b"too late")].concat();
    peer.send(&bytes).await;
    let mut stream = incoming.next().await.unwrap().accept();
    assert_eq!(peer.see_after_greeting().await, Some(Seen::Reset(1, Status::STREAM_ALREADY_CLOSED)));
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"all of it");
    assert_eq!(stream.write(b"x").await.unwrap_err().kind(), ErrorKind::ConnectionAborted);
}
