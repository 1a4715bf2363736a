//! Counts the bytes that the process holds, so that a target can say how many it may.
#![allow(unsafe_code)] // an allocator cannot be written without

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The most that an input made a target hold, since the process began.
static RECORD: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counted.
#[derive(Debug)]
pub struct Counted;

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Watches what is held from its making on.
#[derive(Debug)]
pub struct Watch {
    before: usize,
}

impl Watch {
    /// Begins; only one may be at work at a time.
    pub fn begin() -> Self {
        let before = HELD.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        Self { before }
    }

    /// Fails if more than `bound` bytes were held at any time since.
    pub fn expect_below(&self, bound: usize) {
        let peak = PEAK.load(Ordering::Relaxed).saturating_sub(self.before);
        assert!(peak < bound, "{peak} bytes were held, {bound} are allowed");
        let record = RECORD.fetch_max(peak, Ordering::Relaxed);
        if cfg!(fuzzing) && peak > record + record / 50 {
            eprintln!("most bytes held so far: {peak}, allowed {bound}");
        }
    }
}

/// The most that was held under a [`Watch`] since the last call.
pub fn take_record() -> usize {
    RECORD.swap(0, Ordering::Relaxed)
}
