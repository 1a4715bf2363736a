//! The resize stream: JSON objects `{"Width":80,"Height":24}`, one after the other.

use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;

use crate::container::session::{Reader, WindowSize};

/// Longest object that is read, in bytes. A size needs about thirty.
const MAX_OBJECT: usize = 1024;

#[derive(serde::Deserialize)]
struct Size {
    #[serde(alias = "Width", alias = "width")]
    width: u16,
    #[serde(alias = "Height", alias = "height")]
    height: u16,
}

/// Hands sizes on until the client sends no more, or something that is none. A container that takes no sizes for a while
/// holds the client back.
pub(super) async fn forward(mut from: Reader, to: mpsc::Sender<WindowSize>) {
    let mut buffer = Vec::with_capacity(128);
    let mut chunk = [0_u8; 256];
    loop {
        let (sizes, used) = match parse(&buffer) {
            Ok(parsed) => parsed,
            Err(error) => {
                tracing::debug!(%error, "the client's window sizes are no longer read");
                return;
            }
        };
        buffer.drain(..used);
        for size in sizes {
            if to.send(size).await.is_err() {
                return;
            }
        }
        if buffer.len() > MAX_OBJECT {
            tracing::debug!("the client's window sizes are no longer read: one is longer than 1 KiB");
            return;
        }
        match from.read(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(count) => buffer.extend_from_slice(&chunk[..count]),
        }
    }
}

/// The whole sizes at the beginning, and how many bytes they take.
fn parse(buffer: &[u8]) -> Result<(Vec<WindowSize>, usize), serde_json::Error> {
    let mut objects = serde_json::Deserializer::from_slice(buffer).into_iter::<Size>();
    let (mut sizes, mut used) = (Vec::new(), 0);
    while let Some(object) = objects.next() {
        match object {
            Ok(Size { width, height }) => sizes.push(WindowSize { width, height }),
            Err(error) if error.is_eof() => break,
            Err(error) => return Err(error),
        }
        used = objects.byte_offset();
    }
    Ok((sizes, used))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sizes_of(text: &'static [u8]) -> Vec<(u16, u16)> {
        let (sender, mut sizes) = mpsc::channel(1);
        let ((), found) = tokio::join!(forward(Box::new(text), sender), async {
            let mut found = Vec::new();
            while let Some(WindowSize { width, height }) = sizes.recv().await {
                found.push((width, height));
            }
            found
        });
        found
    }

    #[tokio::test]
    async fn sizes_come_in_order() {
        let text =
            b"{\"Width\":80,\"Height\":24}\n{\"width\":1,\"height\":2} {\"Height\":65535,\"Width\":0,\"More\":1}";
        assert_eq!(sizes_of(text).await, [(80, 24), (1, 2), (0, 65535)]);
        assert_eq!(sizes_of(b"").await, []);
    }

    #[tokio::test]
    async fn nothing_is_taken_from_what_is_no_size() {
        let good = b"{\"Width\":80,\"Height\":24}";
        for bad in
            ["[]", "{\"Width\":65536,\"Height\":1}", "{\"Width\":-1,\"Height\":1}", "{\"Width\":1}", "\u{0}", "nope"]
        {
            let text: &'static [u8] = Box::leak([good, bad.as_bytes()].concat().into_boxed_slice());
            assert!(sizes_of(text).await.len() <= 1, "{bad}");
        }
    }

    #[tokio::test]
    async fn an_object_without_end_is_not_kept() {
        let text: &'static [u8] =
            Box::leak(format!("{{\"a\":\"{}", "x".repeat(1 << 20)).into_bytes().into_boxed_slice());
        assert_eq!(sizes_of(text).await, []);
    }
}
