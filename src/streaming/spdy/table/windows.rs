//! The windows of the streams and of the session: what was read is given back to the peer, and what the peer gives lets
//! streams send more.

use std::collections::VecDeque;

use super::super::error::SpdyError;
use super::super::frame::{self, Status};
use super::Table;

impl Table {
    /// `count` bytes went from a stream's buffer to its reader.
    pub fn consumed(&mut self, id: u32, count: usize) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if entry.received.is_empty() {
            // An idle stream holds no buffer.
            entry.received = VecDeque::new();
        }
        let (peer_sends, credit_due) = (!entry.peer_fin, entry.credit.consumed(count));
        self.buffered -= count;
        let session_due = self.credit.consumed(count);
        if credit_due && peer_sends && self.tells_windows() {
            self.notice(id);
        }
        // The data of one that is held back may wait for this room.
        if self.heedless || session_due {
            self.wake_task();
        }
    }

    /// The peer has a use for our windows. One that sent too much before it knew them has: it counts what it sent, and
    /// waits until that is given back.
    pub(super) fn tells_windows(&self) -> bool {
        self.counts || !self.heedless
    }

    /// The peer widens a stream's window, or the session's (stream 0).
    pub fn widened(&mut self, id: u32, delta: u32) -> Result<(), SpdyError> {
        self.shows_that_it_counts();
        if id == 0 {
            if delta == 0 || !self.window.widen(frame::INITIAL_WINDOW, delta) {
                return Err(SpdyError::WindowDelta { delta });
            }
            self.unpark();
            return Ok(());
        }
        self.check_opened(id, "WINDOW_UPDATE")?;
        if let Some(entry) = self.entries.get_mut(&id) {
            if delta == 0 {
                self.reset(id, Status::PROTOCOL_ERROR);
            } else if entry.window.widen(self.stream_size, delta) {
                self.notice(id);
            } else {
                self.reset(id, Status::FLOW_CONTROL_ERROR);
            }
        }
        Ok(())
    }

    /// The peer sets the window with which streams begin; those that exist change with it.
    pub fn initial_window(&mut self, size: u32) -> Result<(), SpdyError> {
        if size > frame::MAX_WINDOW {
            return Err(SpdyError::WindowSize { size });
        }
        self.shows_that_it_counts();
        self.stream_size = size;
        self.sized = true;
        self.unpark();
        Ok(())
    }

    /// What had been read before is given back only now, so every stream may have something to say.
    fn shows_that_it_counts(&mut self) {
        if !std::mem::replace(&mut self.counts, true) && self.heedless {
            for id in self.entries.keys().copied().collect::<Vec<_>>() {
                self.notice(id);
            }
            self.wake_task();
        }
    }

    fn unpark(&mut self) {
        for id in std::mem::take(&mut self.parked) {
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.parked = false;
                self.notice(id);
            }
        }
    }
}
