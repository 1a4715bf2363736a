//! Long turns on the processor for threads that work through much data.
#![allow(unsafe_code)] // raw system calls

use std::io;
use std::marker::PhantomData;

/// The turn that a thread asks for. The kernel's own default is about 3 ms, and it takes at most 100 ms.
const TURN_NS: u64 = 20_000_000;

/// While this lives, the calling thread asks the scheduler for longer turns than others have. It gets no smaller and no larger
/// share of the processor; but a thread with shorter turns that wakes up (of this daemon or any other) need not wait for the
/// end of ours: EEVDF lets the shorter turn go first. Linux 6.12 and later; without effect before (`sched_setattr(2)`,
/// `sched_runtime` of `SCHED_OTHER`).
#[derive(Debug)]
pub struct LongTurns {
    before: Option<libc::sched_attr>,
    /// It is the calling thread's.
    _here: PhantomData<*const ()>,
}

impl LongTurns {
    /// Asks for them. What the kernel refuses is no error: everything works without.
    #[must_use]
    pub fn take() -> Self {
        let before = attributes().ok().filter(|found| found.sched_policy == 0);
        let before = before.filter(|found| set(libc::sched_attr { sched_runtime: TURN_NS, ..*found }).is_ok());
        Self { before, _here: PhantomData }
    }
}

impl Drop for LongTurns {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // A default is told as a number, and given back as nothing said.
            let kept = libc::sched_attr { sched_runtime: 0, ..before };
            let _ = set(kept);
        }
    }
}

fn size() -> u32 {
    u32::try_from(size_of::<libc::sched_attr>()).expect("a small structure")
}

fn attributes() -> io::Result<libc::sched_attr> {
    // SAFETY: the structure consists of numbers, for which zeros are values.
    let mut found: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a structure of the size that is stated, which lives during the call.
    let done = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut found, size(), 0) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(found) }
}

fn set(mut wanted: libc::sched_attr) -> io::Result<()> {
    wanted.size = size();
    // SAFETY: as above; the kernel only reads it.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gets_its_turns_back() -> anyhow::Result<()> {
        let before = attributes()?;
        let turns = LongTurns::take();
        let during = attributes()?;
        assert_eq!((during.sched_policy, during.sched_nice), (before.sched_policy, before.sched_nice));
        // Kernels before 6.12 know nothing of it, and say 0.
        assert!(
            during.sched_runtime == TURN_NS || during.sched_runtime == before.sched_runtime,
            "{}",
            during.sched_runtime
        );
        drop(turns);
        assert_eq!(attributes()?.sched_runtime, before.sched_runtime);
        Ok(())
    }
}
