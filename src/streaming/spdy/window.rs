//! Flow control (SPDY protocol, draft 3.1, section 2.6.8), as far as peers take part in it.
//!
//! The clients that exist (spdystream of Go, in kubectl, crictl and the kubelet) know no windows: they send as much as they
//! like and never widen ours. So our side is limited by a window only after the peer has widened it or set its size once, and
//! a peer that sends too much is not reset but held back (docs/decisions/010).

use super::frame::MAX_WINDOW;

/// What may be sent. Counted from the first byte, obeyed once the peer has shown that it counts too.
#[derive(Debug, Default)]
pub struct SendWindow {
    /// What the peer added to the size with which the window began, less what was sent.
    balance: i64,
    obeyed: bool,
}

impl SendWindow {
    /// Bytes that may be sent now, if the window began with `size`. A peer that has ever set that size counts (`sized`).
    pub fn room(&self, size: u32, sized: bool) -> usize {
        if self.obeyed || sized {
            usize::try_from(self.balance.saturating_add(i64::from(size))).unwrap_or(0)
        } else {
            usize::MAX
        }
    }

    pub fn sent(&mut self, count: usize) {
        self.balance = self.balance.saturating_sub_unsigned(count as u64);
    }

    /// The peer widens it. `false`: beyond what a window can be.
    #[must_use]
    pub fn widen(&mut self, size: u32, delta: u32) -> bool {
        self.obeyed = true;
        self.balance = self.balance.saturating_add(i64::from(delta));
        self.balance.saturating_add(i64::from(size)) <= i64::from(MAX_WINDOW)
    }
}

/// What the peer may send, and what it is to be told.
#[derive(Debug)]
pub struct Credit {
    window: usize,
    /// Bytes received that the peer has not been given back.
    outstanding: usize,
    /// Those of them that were read.
    consumed: usize,
}

impl Credit {
    pub fn new(window: u32) -> Self {
        Self { window: window as usize, outstanding: 0, consumed: 0 }
    }

    /// Counts received bytes. `true`: more than the window.
    pub fn received(&mut self, count: usize) -> bool {
        self.outstanding = self.outstanding.saturating_add(count);
        self.outstanding > self.window
    }

    /// Counts bytes that left the buffer. `true`: enough of them to tell the peer.
    pub fn consumed(&mut self, count: usize) -> bool {
        self.consumed = self.consumed.saturating_add(count);
        self.is_due()
    }

    fn is_due(&self) -> bool {
        self.consumed >= self.window.div_ceil(2)
    }

    /// By how much the peer's window is to be widened now, if it is worth a frame.
    pub fn take(&mut self) -> Option<u32> {
        if !self.is_due() || self.consumed == 0 {
            return None;
        }
        let delta = u32::try_from(self.consumed).unwrap_or(MAX_WINDOW).min(MAX_WINDOW);
        self.consumed -= delta as usize;
        self.outstanding = self.outstanding.saturating_sub(delta as usize);
        Some(delta)
    }
}
