//! Following the frames (RFC 9113, sections 3.4, 4.1, 6.2 and 6.10), without I/O: bytes in, bytes out, in pieces of any size.

use super::block::{self, Blocks, Verdict};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD: usize = 9;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// The largest header block that is followed, in bytes with its frames' headers. hyper's own limit is 16 KiB of decoded fields.
pub(super) const MAX_RAW: usize = 64 << 10;

/// The largest frame that every server must take, and h2's default.
const MAX_FRAME: usize = 16 << 10;

pub(super) struct Rewriter {
    state: State,
    blocks: Blocks,
    /// A block has been written anew: h2's header table is no longer the client's.
    rewriting: bool,
}

enum State {
    /// So many bytes of the preface have come.
    Preface(usize),
    /// A frame's header, as far as it has come.
    Head {
        bytes: [u8; HEAD],
        have: usize,
    },
    /// So many bytes of a frame that is not looked at are to come.
    Payload(usize),
    Block(Block),
    /// Nothing is looked at any more.
    Transparent,
}

/// A HEADERS frame and the CONTINUATION frames behind it.
struct Block {
    /// All of it, as it came.
    raw: Vec<u8>,
    /// Where in `raw` the last frame's header begins.
    frame: usize,
    /// The pieces of the header block in `raw`, without the HEADERS frame's padding and priority.
    fragments: Vec<std::ops::Range<usize>>,
}

/// A frame's header.
struct Head {
    length: usize,
    kind: u8,
    flags: u8,
    stream: [u8; 4],
}

impl Head {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, stream @ ..] = <[u8; HEAD]>::try_from(bytes).ok()?;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        // The top bit of a stream's number is reserved and ignored.
        Some(Self { length, kind, flags, stream: [stream[0] & 0x7f, stream[1], stream[2], stream[3]] })
    }
}

/// The client broke the protocol after its headers had been changed: the connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the HTTP/2 client sent {0}")]
pub(super) struct Broken(&'static str);

/// What a step came to.
enum Step {
    More,
    /// The bytes held back are to go on as they are, and nothing is to be followed from here.
    GiveUp,
}

impl Rewriter {
    pub(super) fn new() -> Self {
        Self { state: State::Preface(0), blocks: Blocks::new(), rewriting: false }
    }

    pub(super) fn is_transparent(&self) -> bool {
        matches!(self.state, State::Transparent)
    }

    /// How many of the next `available` bytes may go on unseen; they count as gone.
    pub(super) fn pass(&mut self, available: usize) -> usize {
        match &mut self.state {
            State::Transparent => available,
            State::Payload(left) => {
                let count = available.min(*left);
                *left -= count;
                if *left == 0 {
                    self.state = State::between_frames();
                }
                count
            }
            _ => 0,
        }
    }

    /// Takes some of `input`, at least one byte of it, and appends what may go on to `output`. It stops after each header
    /// block, so that `output` stays as small as one.
    pub(super) fn feed(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<usize, Broken> {
        let mut taken = 0;
        while taken < input.len() && output.is_empty() {
            let passed = self.pass(input.len() - taken);
            output.extend_from_slice(&input[taken..taken + passed]);
            taken += passed;
            if taken < input.len() && passed == 0 {
                taken += self.step(&input[taken..], output)?;
            }
        }
        Ok(taken)
    }

    /// The input has ended: what was held back goes on, for h2 to see how it was cut off.
    pub(super) fn flush(&mut self, output: &mut Vec<u8>) {
        match std::mem::replace(&mut self.state, State::Transparent) {
            State::Head { bytes, have } => output.extend_from_slice(&bytes[..have]),
            State::Block(block) => output.extend_from_slice(&block.raw),
            State::Preface(_) | State::Payload(_) | State::Transparent => {}
        }
    }

    /// Some bytes of the preface, of a frame's header or of a block.
    fn step(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<usize, Broken> {
        match &mut self.state {
            State::Preface(seen) => {
                let wanted = &PREFACE[*seen..];
                let same = wanted.iter().zip(input).take_while(|(want, is)| want == is).count();
                output.extend_from_slice(&input[..same]);
                *seen += same;
                if *seen == PREFACE.len() {
                    self.state = State::between_frames();
                } else if same < input.len() {
                    self.state = State::Transparent;
                }
                Ok(same)
            }
            State::Head { bytes, have } => {
                let count = input.len().min(HEAD - *have);
                bytes[*have..*have + count].copy_from_slice(&input[..count]);
                *have += count;
                if *have == HEAD {
                    let bytes = *bytes;
                    self.begin_frame(&bytes, output)?;
                }
                Ok(count)
            }
            State::Block(block) => {
                let count = input.len().min(block.wants());
                block.raw.extend_from_slice(&input[..count]);
                self.advance_block(output)?;
                Ok(count)
            }
            State::Payload(_) | State::Transparent => Ok(0),
        }
    }

    fn begin_frame(&mut self, bytes: &[u8; HEAD], output: &mut Vec<u8>) -> Result<(), Broken> {
        let head = Head::parse(bytes).expect("9 bytes are a frame's header");
        if head.kind == HEADERS {
            self.state = State::Block(Block { raw: bytes.to_vec(), frame: 0, fragments: Vec::new() });
            return self.advance_block(output);
        }
        output.extend_from_slice(bytes);
        self.state = if head.length == 0 { State::between_frames() } else { State::Payload(head.length) };
        Ok(())
    }

    /// Looks at a block of which a frame's header or body has become complete.
    fn advance_block(&mut self, output: &mut Vec<u8>) -> Result<(), Broken> {
        let State::Block(block) = &mut self.state else { return Ok(()) };
        if block.wants() > 0 && block.raw.len() + block.wants() <= MAX_RAW {
            return Ok(());
        }
        match block.advance() {
            Some(Step::More) => Ok(()),
            Some(Step::GiveUp) if self.rewriting => Err(Broken("a header block that is too large or out of order")),
            Some(Step::GiveUp) => {
                self.flush(output);
                Ok(())
            }
            None => self.finish_block(output),
        }
    }

    fn finish_block(&mut self, output: &mut Vec<u8>) -> Result<(), Broken> {
        let State::Block(block) = std::mem::replace(&mut self.state, State::between_frames()) else { return Ok(()) };
        let fragments: Vec<u8> = block.fragments.iter().flat_map(|range| &block.raw[range.clone()]).copied().collect();
        match self.blocks.decode(&fragments) {
            Ok(Verdict::Legal) if !self.rewriting => output.extend_from_slice(&block.raw),
            Ok(_) => {
                self.rewriting = true;
                block.write(self.blocks.written_anew(), output);
            }
            Err(block::Undecodable) if self.rewriting => return Err(Broken("a header block that cannot be decoded")),
            Err(block::Undecodable) => {
                output.extend_from_slice(&block.raw);
                self.state = State::Transparent;
            }
        }
        Ok(())
    }
}

impl State {
    fn between_frames() -> Self {
        Self::Head { bytes: [0; HEAD], have: 0 }
    }
}

impl Block {
    /// Bytes to come until the frame's header, and then its body, is complete.
    fn wants(&self) -> usize {
        let frame = &self.raw[self.frame..];
        match Head::parse(frame.get(..HEAD).unwrap_or_default()) {
            None => HEAD - frame.len(),
            Some(head) => HEAD + head.length - frame.len(),
        }
    }

    /// Takes a complete frame to its fragment. `None`: the block is complete.
    fn advance(&mut self) -> Option<Step> {
        let frame = &self.raw[self.frame..];
        let Some(head) = Head::parse(frame.get(..HEAD).unwrap_or_default()) else { return Some(Step::GiveUp) };
        let first = self.frame == 0;
        if !first && (head.kind != CONTINUATION || head.stream != self.stream()) {
            return Some(Step::GiveUp);
        }
        if frame.len() < HEAD + head.length {
            return Some(if self.raw.len() + self.wants() > MAX_RAW { Step::GiveUp } else { Step::More });
        }
        let body = self.frame + HEAD..self.raw.len();
        let Some(fragment) = (if first { self.strip(head.flags, body) } else { Some(body) }) else {
            return Some(Step::GiveUp);
        };
        self.fragments.push(fragment);
        self.frame = self.raw.len();
        if head.flags & END_HEADERS != 0 {
            return None;
        }
        Some(if self.raw.len() + HEAD > MAX_RAW { Step::GiveUp } else { Step::More })
    }

    /// The part of a HEADERS frame's body that is header block; `None` when padding or priority do not fit.
    fn strip(&self, flags: u8, mut body: std::ops::Range<usize>) -> Option<std::ops::Range<usize>> {
        if flags & PADDED != 0 {
            let padding = usize::from(*self.raw.get(body.start).filter(|_| !body.is_empty())?);
            body = body.start + 1..body.end.checked_sub(padding)?;
        }
        if flags & PRIORITY != 0 {
            body.start += 5;
        }
        (body.start <= body.end).then_some(body)
    }

    fn stream(&self) -> [u8; 4] {
        Head::parse(&self.raw[..HEAD]).map(|head| head.stream).unwrap_or_default()
    }

    /// The same HEADERS with another block, without padding, cut into frames that the server must take.
    fn write(&self, fields: &[u8], output: &mut Vec<u8>) {
        let Some(head) = Head::parse(&self.raw[..HEAD]) else { return };
        let padded = usize::from(head.flags & PADDED != 0);
        let priority: &[u8] =
            if head.flags & PRIORITY == 0 { &[] } else { &self.raw[HEAD + padded..HEAD + padded + 5] };
        let (mut kind, mut flags, mut extra) = (HEADERS, head.flags & (END_STREAM | PRIORITY), priority);
        let mut rest = fields;
        loop {
            let (now, later) = rest.split_at(rest.len().min(MAX_FRAME - extra.len()));
            if later.is_empty() {
                flags |= END_HEADERS;
            }
            let length = u32::try_from(extra.len() + now.len()).expect("a frame is at most 16 KiB").to_be_bytes();
            output.extend_from_slice(&[length[1], length[2], length[3], kind, flags]);
            output.extend_from_slice(&head.stream);
            output.extend_from_slice(extra);
            output.extend_from_slice(now);
            if later.is_empty() {
                return;
            }
            (kind, flags, extra, rest) = (CONTINUATION, 0, &[], later);
        }
    }
}
