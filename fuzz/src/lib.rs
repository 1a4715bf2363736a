//! What the fuzzing targets do with their input: each has a module here with a function `check`, which panics on a finding.
//!
//! `make fuzz` runs them under libFuzzer. `tests/corpora.rs` compiles the same modules and replays `corpus/`, so that
//! `cargo test` keeps them alive without a fuzzer.
//!
//! A new target `x` is `src/x.rs` with its `check` (it reaches the crate's inside through `cricket::fuzzing`), a line in
//! [`targets!`], a copy of one of `fuzz_targets/` with its name changed, its `[[bin]]` in `Cargo.toml`, and some inputs in
//! `corpus/x/`; `cargo test --test corpora` says what is missing. An input that was once a finding stays in the corpus.

use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::io::{AsyncWriteExt as _, DuplexStream};
use tokio::task::yield_now;

mod client;
pub mod heap;

/// Names the targets, and makes the list of them.
macro_rules! targets {
    ($($name:ident),+ $(,)?) => {
        $(pub mod $name;)+

        /// Each target's name and what it does with an input.
        pub const TARGETS: &[(&str, fn(&[u8]))] = &[$((stringify!($name), $name::check)),+];
    };
}

targets!(image_layer, image_texts, spdy_frames, spdy_roundtrip, websocket_frames, websocket_roundtrip);

/// How long an end may take that comes about by itself. Only a failing input waits this long, and under the fuzzer nothing
/// waits at all.
const SOON: Duration = Duration::from_secs(120);

/// A runtime of this thread. Under the fuzzer its clock jumps over every wait; elsewhere waits are real, so a target must
/// not depend on long ones.
fn run<F: Future>(future: F) -> F::Output {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time();
    #[cfg(fuzzing)]
    builder.start_paused(true);
    builder.build().expect("a runtime of one thread").block_on(future)
}

/// Lets time pass under the fuzzer.
async fn elapse(duration: Duration) {
    #[cfg(fuzzing)]
    tokio::time::advance(duration).await;
    #[cfg(not(fuzzing))]
    let _ = duration;
    yield_now().await;
}

/// Cuts bytes into pieces, many of them short; how, is up to the bytes.
fn cuts(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut state = bytes.iter().fold(bytes.len() as u64 + 1, |state, byte| next(state ^ u64::from(*byte)));
    let mut rest = bytes;
    std::iter::from_fn(move || {
        state = next(state);
        let most = [1, 2, 7, 200, 5000][(state >> 40) as usize % 5];
        let length = ((state >> 20) as usize % most + 1).min(rest.len());
        let piece = rest.split_off(..length)?;
        (!piece.is_empty()).then_some(piece)
    })
}

/// A step of a linear congruential generator.
fn next(state: u64) -> u64 {
    state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)
}

/// Sends as far as the other side reads.
async fn send(io: &mut DuplexStream, mut bytes: &[u8]) {
    let mut idle = 0;
    while !bytes.is_empty() && idle < 4 {
        match io.write(bytes).now_or_never() {
            Some(Ok(count)) => (bytes, idle) = (&bytes[count..], 0),
            Some(Err(_)) => return,
            None => {
                idle += 1;
                yield_now().await;
            }
        }
    }
    yield_now().await;
}
