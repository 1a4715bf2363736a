//! Channels against a client of another make, and against hostile ones. No socket: both ends are in memory.

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role};

use super::*;

/// A client, the readers of the server's channels, and the server's handle.
async fn pair(layout: &Layout) -> (WebSocketStream<DuplexStream>, Vec<Option<ChannelReader>>, Handle) {
    let (ours, theirs) = duplex(256 * 1024);
    let (readers, handle) = open(ours, layout);
    (WebSocketStream::from_raw_socket(theirs, Role::Client, None).await, readers, handle)
}

fn layout(base64: bool, closes: bool) -> Layout {
    Layout { inputs: vec![true, false, false, false, true], base64, closes }
}

fn binary(parts: &[&[u8]]) -> Message {
    Message::Binary(parts.concat().into())
}

async fn next(client: &mut WebSocketStream<DuplexStream>) -> Message {
    client.next().await.expect("a message").expect("a sound message")
}

#[tokio::test]
async fn both_ways_and_the_end() {
    let (mut client, mut readers, handle) = pair(&layout(false, true)).await;
    handle.send(1, Bytes::new()).await;
    assert_eq!(next(&mut client).await, binary(&[&[1]]));
    client.send(binary(&[&[0], b"to stdin"])).await.unwrap();
    client.send(binary(&[&[4], b"{}"])).await.unwrap();
    client.send(binary(&[&[1], b"not for stdout"])).await.unwrap();
    client.send(binary(&[&[77], b"nor for a channel that is not there"])).await.unwrap();
    client.send(binary(&[])).await.unwrap();
    client.send(binary(&[&[0], b", more"])).await.unwrap();
    client.send(binary(&[&[255, 0]])).await.unwrap();
    let (mut stdin, mut resize) = (readers[0].take().unwrap(), readers[4].take().unwrap());
    let mut text = String::new();
    stdin.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "to stdin, more", "the end of stdin is the closed channel");
    let mut size = [0; 2];
    resize.read_exact(&mut size).await.unwrap();
    assert_eq!(&size, b"{}");
    let mut stdout = handle.writer(1);
    stdout.write_all(b"out").await.unwrap();
    stdout.shutdown().await.unwrap();
    assert!(stdout.write_all(b"more").await.is_err(), "it was shut down");
    assert_eq!(next(&mut client).await, binary(&[&[1], b"out"]));
    let ((), closed) = tokio::join!(handle.close(), async {
        let closed = next(&mut client).await;
        // Reading on is what answers the close frame.
        assert!(client.next().await.is_none_or(|message| message.is_err()));
        closed
    });
    assert!(matches!(closed, Message::Close(Some(frame)) if u16::from(frame.code) == CLOSE_NORMAL));
}

#[tokio::test]
async fn a_message_of_any_size_and_cut_passes_through() {
    let (mut client, mut readers, _handle) = pair(&layout(false, false)).await;
    let sent: Vec<u8> = (0..5_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let mut stdin = readers[0].take().unwrap();
    let message = binary(&[&[0], &sent]);
    let (received, ()) = tokio::join!(
        async {
            let mut received = vec![0; sent.len()];
            stdin.read_exact(&mut received).await.unwrap();
            received
        },
        async { client.send(message).await.unwrap() }
    );
    assert!(received == sent, "5 MB in one message");
}

#[tokio::test]
async fn pings_are_answered_and_a_close_is_too() {
    let (mut client, _readers, handle) = pair(&layout(false, true)).await;
    client.send(Message::Ping("are you there".into())).await.unwrap();
    assert_eq!(next(&mut client).await, Message::Pong("are you there".into()));
    let frame = CloseFrame { code: 1001.into(), reason: "away".into() };
    client.send(Message::Close(Some(frame))).await.unwrap();
    assert!(matches!(next(&mut client).await, Message::Close(Some(frame)) if u16::from(frame.code) == 1001));
    handle.ended().await;
}

#[tokio::test]
async fn base64_both_ways() {
    let (mut client, mut readers, handle) = pair(&layout(true, false)).await;
    client.send(Message::Text("0aGVsbG8=".into())).await.unwrap();
    client.send(Message::Text("0IQ==".into())).await.unwrap();
    let mut text = [0; 6];
    readers[0].as_mut().unwrap().read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"hello!");
    handle.send(3, Bytes::from_static(b"{}")).await;
    assert_eq!(next(&mut client).await, Message::Text("3e30=".into()));
}

#[tokio::test]
async fn a_channel_that_nobody_reads_holds_the_client_back() {
    let (mut client, readers, _handle) = pair(&layout(false, false)).await;
    let chunk = vec![0; 64 * 1024];
    let mut taken = 0;
    // What the duplex, the decoder and the channel take, and not a byte more.
    let flood = async {
        loop {
            client.send(binary(&[&[0], &chunk])).await.unwrap();
            taken += chunk.len();
        }
    };
    assert!(tokio::time::timeout(Duration::from_millis(300), flood).await.is_err());
    assert!(taken < 1024 * 1024, "{taken} bytes were taken");
    drop(readers);
    // A reader that is gone: the rest is dropped and the client goes on.
    for _ in 0..64 {
        client.send(binary(&[&[0], &chunk])).await.unwrap();
    }
}

#[tokio::test]
async fn a_client_that_breaks_the_rules_is_told_and_left() {
    for (base64, message) in [
        (false, binary(&[&[255]])),
        (false, binary(&[&[255, 9]])),
        (false, binary(&[&[255, 0, 0]])),
        (true, Message::Text("0a".into())),
        (true, Message::Text("0!!!!".into())),
    ] {
        let (mut client, _readers, handle) = pair(&layout(base64, true)).await;
        client.send(message.clone()).await.unwrap();
        let closed = next(&mut client).await;
        let code = |closed: &Message| match closed {
            Message::Close(Some(frame)) => u16::from(frame.code),
            _ => 0,
        };
        assert_eq!(code(&closed), CLOSE_PROTOCOL, "{message:?}: {closed:?}");
        handle.ended().await;
    }
}

#[tokio::test]
async fn a_client_is_told_after_any_number_of_pings() {
    let (mut client, _readers, handle) = pair(&layout(false, true)).await;
    // All of them at once, so that they are dealt with in one go.
    for _ in 0..1000 {
        client.feed(Message::Ping("x".into())).await.unwrap();
    }
    client.feed(binary(&[&[255, 9]])).await.unwrap();
    client.flush().await.unwrap();
    let closed = loop {
        match next(&mut client).await {
            Message::Pong(_) => {}
            other => break other,
        }
    };
    assert!(matches!(&closed, Message::Close(Some(frame)) if u16::from(frame.code) == CLOSE_PROTOCOL), "{closed:?}");
    handle.ended().await;
}

#[tokio::test]
async fn noise_and_sudden_ends_end_it() {
    for noise in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64], &[0x82, 0x05, 1, 2, 3, 4, 5], b""] {
        let (ours, mut theirs) = duplex(4096);
        let (mut readers, handle) = open(ours, &layout(false, true));
        theirs.write_all(noise).await.unwrap();
        theirs.shutdown().await.unwrap();
        handle.ended().await;
        let mut rest = Vec::new();
        readers[0].take().unwrap().read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty());
        assert!(handle.writer(1).write_all(b"x").await.is_err());
    }
}

#[tokio::test]
async fn dropping_the_handle_ends_the_connection() {
    let (mut client, _readers, handle) = pair(&layout(false, true)).await;
    drop(handle);
    assert!(client.next().await.is_none_or(|message| message.is_err()));
}
