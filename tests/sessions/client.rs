//! A client's ends of a session, as pipes in memory.

use cricket::container::session::{RESIZE_QUEUE, SessionStreams, WindowSize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;

use crate::place::soon;

/// What may be under way in one direction, in bytes.
const PIPE: usize = 16 * 1024;

pub struct Client {
    /// Dropping it is the end of the input.
    pub stdin: Option<DuplexStream>,
    pub stdout: DuplexStream,
    pub stderr: DuplexStream,
    pub resize: mpsc::Sender<WindowSize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    Yes,
    No,
}

impl Client {
    pub fn new(input: Input, tty: bool) -> (Self, SessionStreams) {
        let (stdin, server_stdin) = tokio::io::duplex(PIPE);
        let (stdout, server_stdout) = tokio::io::duplex(PIPE);
        let (stderr, server_stderr) = tokio::io::duplex(PIPE);
        let (resize, sizes) = mpsc::channel(RESIZE_QUEUE);
        let asked = input == Input::Yes;
        let streams = SessionStreams {
            stdin: asked.then(|| Box::new(server_stdin) as _),
            stdout: Some(Box::new(server_stdout)),
            stderr: (!tty).then(|| Box::new(server_stderr) as _),
            resize: sizes,
        };
        (Self { stdin: asked.then_some(stdin), stdout, stderr, resize }, streams)
    }

    /// All output, to its end.
    pub async fn output(&mut self) -> (String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let (stdout, stderr) = (&mut self.stdout, &mut self.stderr);
        let both = async { tokio::join!(stdout.read_to_end(&mut out), stderr.read_to_end(&mut err)) };
        let (read, read_err) = soon("the output's end", both).await;
        read.unwrap();
        read_err.unwrap();
        (String::from_utf8_lossy(&out).into_owned(), String::from_utf8_lossy(&err).into_owned())
    }

    pub async fn write(&mut self, text: &str) {
        soon("input is taken", self.stdin.as_mut().unwrap().write_all(text.as_bytes())).await.unwrap();
    }

    /// Sends lines until the answer to one, which is a line that starts with "size", is this. Input and sizes come by ways of
    /// their own, so it is not told which of them arrives first.
    pub async fn ask_until(&mut self, answer: &str) {
        for _ in 0..1000 {
            self.write("\n").await;
            self.expect("size").await;
            if format!("size{}", self.expect("\r\n").await) == answer {
                return;
            }
        }
        panic!("{answer:?} never came");
    }

    /// Output up to and with some text.
    pub async fn expect(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(text) {
            let byte = soon(&format!("{text:?} in {:?}", String::from_utf8_lossy(&seen)), self.stdout.read_u8()).await;
            let Ok(byte) = byte else {
                panic!("the output ended before {text:?}: {:?}", String::from_utf8_lossy(&seen))
            };
            seen.push(byte);
        }
        String::from_utf8_lossy(&seen).into_owned()
    }
}
