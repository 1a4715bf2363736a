//! Giving up privileges, for good.
#![allow(unsafe_code)] // raw system calls

use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets};

/// Which step of [`drop_everything`] the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub struct DropError {
    step: &'static str,
    source: io::Error,
}

fn step<T, E: Into<io::Error>>(step: &'static str, result: Result<T, E>) -> Result<T, DropError> {
    result.map_err(|error| DropError { step, source: error.into() })
}

/// Empties all five capability sets, the supplementary groups, becomes `id` as user and group, forbids gaining
/// privileges by running a program, and closes the process to ptrace and `/proc`. Acts on the calling thread.
///
/// # Errors
/// Names the step that was refused; the thread may then have dropped a part.
pub fn drop_everything(id: u32) -> Result<(), DropError> {
    step("PR_CAPBSET_DROP", drop_bounding_set())?;
    step("PR_CAP_AMBIENT_CLEAR_ALL", rustix::thread::clear_ambient_capability_set())?;
    match rustix::thread::set_thread_groups(&[]) {
        // A user namespace may forbid it for good ("deny" in its setgroups file); then there are none of the host's.
        Err(rustix::io::Errno::PERM) => {}
        other => step("setgroups", other)?,
    }
    let (gid, uid) = (rustix::fs::Gid::from_raw(id), rustix::fs::Uid::from_raw(id));
    step("setresgid", rustix::thread::set_thread_res_gid(gid, gid, gid))?;
    step("setresuid", rustix::thread::set_thread_res_uid(uid, uid, uid))?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    step("capset", rustix::thread::set_capabilities(None, sets))?;
    step("PR_SET_NO_NEW_PRIVS", rustix::thread::set_no_new_privs(true))?;
    let closed = rustix::process::DumpableBehavior::NotDumpable;
    step("PR_SET_DUMPABLE", rustix::process::set_dumpable_behavior(closed))
}

fn drop_bounding_set() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: the call takes plain numbers.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } < 0 {
            let error = io::Error::last_os_error();
            // The first number that the kernel does not know ends the list.
            return if error.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(error) };
        }
    }
    Ok(())
}
