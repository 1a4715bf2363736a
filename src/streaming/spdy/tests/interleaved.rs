//! Many streams at once, in every order: each byte arrives once and in its place.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::{Limits, Stream};
use super::{opened, pair, pattern, soon, until};

/// What one stream carries, and in which steps.
#[derive(Debug, Clone)]
struct Load {
    up: usize,
    down: usize,
    write: usize,
    read: usize,
}

fn load() -> impl Strategy<Value = Load> {
    let length = prop_oneof![Just(0_usize), 1..2000_usize, 50_000..150_000_usize];
    (length.clone(), length, 1..40_000_usize, 1..40_000_usize).prop_map(|(up, down, write, read)| Load {
        up,
        down,
        write,
        read,
    })
}

async fn carry(stream: Stream, out: Vec<u8>, expected: Vec<u8>, write: usize, read: usize) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let writing = async {
        for piece in out.chunks(write) {
            writer.write_all(piece).await.unwrap();
        }
        writer.shutdown().await.unwrap();
    };
    let reading = async {
        let mut piece = vec![0; read];
        let mut at = 0;
        loop {
            let count = reader.read(&mut piece).await.unwrap();
            if count == 0 {
                break;
            }
            assert!(piece[..count] == expected[at..at + count], "other bytes at {at}");
            at += count;
        }
        assert_eq!(at, expected.len());
    };
    tokio::join!(writing, reading);
}

async fn all(loads: Vec<Load>, pipe: usize, limits: Limits, greeted: bool) {
    let ((session, _other), (served, mut incoming)) = pair(pipe, &limits);
    if greeted {
        // The server may send what it likes until it has read that the client counts.
        drop(opened(&session, &mut incoming).await);
        until("the greeting", &served, |table| table.peer_counts()).await;
    }
    let mut tasks = Vec::new();
    for (at, load) in loads.into_iter().enumerate() {
        let (near, far) = opened(&session, &mut incoming).await;
        let (up, down) = (pattern(2 * at, load.up), pattern(2 * at + 1, load.down));
        let (write, read) = (load.write, load.read);
        tasks.push(crate::task::spawn("near", carry(near, up.clone(), down.clone(), write, read)));
        tasks.push(crate::task::spawn("far", carry(far, down, up, read, write)));
    }
    for task in tasks {
        soon("a stream's end", task).await.unwrap();
    }
    for session in [&session, &served] {
        assert!(!greeted || !session.0.with(|table| table.is_heedless()), "both sides keep to windows");
    }
    session.close();
    for session in [&session, &served] {
        soon("the end", session.closed()).await;
        assert_eq!(session.0.with(|table| (table.held(), table.unsent(), table.is_empty())), (0, 0, true));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn each_byte_arrives_once_and_in_order(
        loads in prop::collection::vec(load(), 1..7), pipe in prop_oneof![1..20_usize, 20..100_000_usize],
        stream_window in 1000..200_000_u32, send_buffer in 1..100_000_usize, greeted: bool,
    ) {
        let limits = Limits { stream_window, send_buffer, ..Limits::default() };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(all(loads, pipe, limits, greeted));
    }
}
