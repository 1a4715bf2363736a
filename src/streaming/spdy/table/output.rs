//! From the state of the streams to the bytes that the connection writes.

use std::collections::VecDeque;

use super::super::frame::{self, Status};
use super::super::headers::Headers;
use super::{Broken, Entry, Fin, Phase, Table};

/// Bytes of a DATA frame at most. Between frames the streams take turns, so this is what one makes another wait.
const DATA_FRAME: usize = 32 * 1024;

/// Whether a stream has more to send.
enum Turn {
    Done,
    Again,
    /// A window is used up.
    Parked,
}

impl Table {
    /// Tells the peer our bounds, once.
    pub fn greet(&mut self, out: &mut Vec<u8>) {
        let streams = u32::try_from(self.limits.streams).unwrap_or(u32::MAX);
        frame::put_settings(
            out,
            &[(frame::MAX_CONCURRENT_STREAMS, streams), (frame::INITIAL_WINDOW_SIZE, self.limits.stream_window)],
        );
        let wider = self.limits.session_window.saturating_sub(frame::INITIAL_WINDOW);
        if wider > 0 {
            frame::put_window_update(out, 0, wider);
        }
    }

    /// Appends frames for the streams that have something to send, in turns, until `out` has `enough` bytes.
    pub fn collect(&mut self, out: &mut Vec<u8>, enough: usize) {
        if self.tells_windows()
            && let Some(delta) = self.credit.take()
        {
            frame::put_window_update(out, 0, delta);
        }
        while out.len() < enough
            && let Some(id) = self.ready.pop_front()
        {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            entry.queued = false;
            match self.turn(id, out) {
                Turn::Done => self.settle(id),
                Turn::Again => self.notice(id),
                Turn::Parked => self.park(id),
            }
        }
    }

    /// Nothing more can be written for any stream.
    pub fn is_drained(&self) -> bool {
        self.ready.is_empty() && self.unsent == 0
    }

    fn turn(&mut self, id: u32, out: &mut Vec<u8>) -> Turn {
        let tells_windows = self.tells_windows();
        let Some(entry) = self.entries.get_mut(&id) else { return Turn::Done };
        if let Some(status) = entry.reset_due.take() {
            if matches!(entry.phase, Phase::Accepting) {
                // It was accepted and dropped at once. Without its reply the opener would hear of a refusal, and Go's client
                // gives up all of a session for one.
                frame::put_syn_reply(out, id, &self.deflater.write(&Headers::default()));
                entry.phase = Phase::Open;
            }
            frame::put_rst_stream(out, id, status);
        }
        if entry.broken.is_some() {
            return Turn::Done;
        }
        match &mut entry.phase {
            Phase::Opening(headers) => {
                let headers = std::mem::take(headers);
                frame::put_syn_stream(out, id, &self.deflater.write(&headers));
                entry.phase = Phase::Waiting;
            }
            Phase::Accepting => {
                frame::put_syn_reply(out, id, &self.deflater.write(&Headers::default()));
                entry.phase = Phase::Open;
            }
            Phase::Offered(_) | Phase::Waiting | Phase::Open => {}
        }
        if tells_windows
            && !entry.peer_fin
            && entry.held
            && let Some(delta) = entry.credit.take()
        {
            frame::put_window_update(out, id, delta);
        }
        let turn = if matches!(entry.phase, Phase::Open) { self.send(id, out) } else { Turn::Done };
        self.stop_peer(id, out);
        turn
    }

    /// One DATA frame at most.
    fn send(&mut self, id: u32, out: &mut Vec<u8>) -> Turn {
        let Some(entry) = self.entries.get_mut(&id) else { return Turn::Done };
        let stream_room = entry.window.room(self.stream_size, self.sized);
        let session_room = self.window.room(frame::INITIAL_WINDOW, false);
        let count = entry.unsent.len().min(DATA_FRAME).min(stream_room).min(session_room);
        let fin = entry.fin == Fin::Asked && count == entry.unsent.len();
        if count > 0 || fin {
            put_data(out, id, fin, entry, count);
            self.unsent -= count;
            self.window.sent(count);
            if fin {
                entry.fin = Fin::Sent;
            }
            self.wakes.extend(entry.writer.take());
        }
        if entry.unsent.is_empty() {
            Turn::Done
        } else if count == stream_room || count == session_room {
            Turn::Parked
        } else {
            Turn::Again
        }
    }

    fn park(&mut self, id: u32) {
        if let Some(entry) = self.entries.get_mut(&id)
            && !std::mem::replace(&mut entry.parked, true)
        {
            self.parked.push(id);
        }
    }

    /// Our side has ended and nobody reads the stream any more: what the peer still sends is of no use.
    fn stop_peer(&mut self, id: u32, out: &mut Vec<u8>) {
        if let Some(entry) = self.entries.get_mut(&id)
            && !entry.held
            && entry.fin == Fin::Sent
            && !entry.peer_fin
        {
            entry.broken = Some(Broken::Here);
            frame::put_rst_stream(out, id, Status::CANCEL);
        }
    }
}

fn put_data(out: &mut Vec<u8>, id: u32, fin: bool, entry: &mut Entry, count: usize) {
    frame::put_data_head(out, id, fin, count);
    let (front, back) = entry.unsent.as_slices();
    let first = front.len().min(count);
    out.extend_from_slice(&front[..first]);
    out.extend_from_slice(&back[..count - first]);
    entry.unsent.drain(..count);
    if entry.unsent.is_empty() {
        // An idle stream holds no buffer.
        entry.unsent = VecDeque::new();
    }
    entry.window.sent(count);
}
