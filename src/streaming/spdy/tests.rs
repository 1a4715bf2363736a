//! Both roles against each other over pipes in memory.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

use super::{Limits, Stream, client, server};

async fn echo(mut stream: Stream) {
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    tokio::io::copy(&mut reader, &mut writer).await.unwrap();
    writer.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_stream_carries_bytes_both_ways_and_ends() {
    let (near, far) = duplex(1000);
    let (session, _) = client(near, Limits::default());
    let (served, mut incoming) = server(far, Limits::default());
    let serving = crate::task::spawn("echo", async move {
        let stream = incoming.next().await.unwrap();
        assert_eq!(stream.header("StreamType"), Some("stdin"));
        assert_eq!(stream.header("port"), None);
        echo(stream.accept()).await;
        assert!(incoming.next().await.is_none());
        served.closed().await;
    });
    let stream = session.open([("streamType", "stdin")]).await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    let expected = sent.clone();
    let writing = crate::task::spawn("write", async move {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
        writer
    });
    let mut got = Vec::new();
    reader.read_to_end(&mut got).await.unwrap();
    assert!(got == expected, "{} bytes came back", got.len());
    drop((writing.await.unwrap(), reader));
    session.close();
    session.closed().await;
    serving.await.unwrap();
}
