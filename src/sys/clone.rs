//! Forking in a process that has one thread: the keeper. What a child does after the fork is a plain closure.
#![allow(unsafe_code)] // raw system calls

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::panic::AssertUnwindSafe;

/// Proof that this process has one thread, so that a forked child may use locks and the allocator.
/// Whoever holds it must start no thread.
#[derive(Debug)]
pub struct SingleThread(());

/// Namespaces that a forked child gets new ones of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fresh {
    Nothing,
    PidAndMount,
    /// A user namespace, and those of the others that are asked for, which belong to it.
    User {
        net: bool,
        ipc: bool,
        uts: bool,
    },
}

/// A forked child, unreaped.
#[derive(Debug)]
pub struct Child {
    pub pid: i32,
    pub pidfd: OwnedFd,
}

/// `struct clone_args` of linux/sched.h in its first form.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

impl SingleThread {
    /// Counts the threads.
    ///
    /// # Errors
    /// When there is more than one, or `/proc` cannot be read.
    pub fn prove() -> io::Result<Self> {
        let threads = std::fs::read_dir("/proc/self/task")?.count();
        if threads == 1 {
            return Ok(Self(()));
        }
        Err(io::Error::other(format!("{threads} threads where one is allowed")))
    }

    /// Forks. The child runs `body` and ends with the code that it gives; a panic ends it with 101.
    ///
    /// # Errors
    /// What `clone3` refuses, in the parent.
    pub fn fork(&self, fresh: Fresh, body: impl FnOnce() -> i32) -> io::Result<Child> {
        let namespaces = match fresh {
            Fresh::Nothing => 0,
            Fresh::PidAndMount => libc::CLONE_NEWPID | libc::CLONE_NEWNS,
            Fresh::User { net, ipc, uts } => {
                let others = [(net, libc::CLONE_NEWNET), (ipc, libc::CLONE_NEWIPC), (uts, libc::CLONE_NEWUTS)];
                others.iter().filter(|(wanted, _)| *wanted).fold(libc::CLONE_NEWUSER, |all, (_, flag)| all | flag)
            }
        };
        let mut pidfd: libc::c_int = -1;
        let mut args = CloneArgs {
            flags: u64::try_from(namespaces | libc::CLONE_PIDFD).expect("flags are positive"),
            pidfd: u64::try_from((&raw mut pidfd).addr()).expect("an address has 64 bits"),
            exit_signal: u64::try_from(libc::SIGCHLD).expect("signals are positive"),
            ..CloneArgs::default()
        };
        // SAFETY: without CLONE_VM this is a fork: the child goes on with a copy of this stack and memory. There is one
        // thread (self), so no lock is held by a thread that the child lacks. Both structures outlive the call.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
        if pid == 0 {
            let code = std::panic::catch_unwind(AssertUnwindSafe(body)).unwrap_or(101);
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(code) }
        }
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has stored a new descriptor here, which nothing else owns.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Child { pid: i32::try_from(pid).expect("a pid fits"), pidfd })
    }
}

/// A program image: everything is converted before the fork, so that the child only makes system calls.
#[derive(Debug)]
pub struct Image {
    argv: Vec<CString>,
    envp: Vec<CString>,
}

impl Image {
    /// # Errors
    /// `InvalidInput` when there is no program, or a text holds a NUL byte.
    pub fn new(argv: &[String], env: &[(String, String)]) -> io::Result<Self> {
        if argv.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no program is named"));
        }
        let argv = argv.iter().map(|arg| CString::new(arg.as_str())).collect::<Result<_, _>>()?;
        let envp = env.iter().map(|(key, value)| CString::new(format!("{key}={value}"))).collect::<Result<_, _>>()?;
        Ok(Self { argv, envp })
    }

    /// Replaces this process; `argv[0]` is the path of the program. Descriptors above 2 are closed by it.
    /// Comes back only with the error.
    #[must_use]
    pub fn execute(&self) -> io::Error {
        if let Err(error) = close_on_exec_from(3) {
            return error;
        }
        let pointers = |texts: &[CString]| -> Vec<*const libc::c_char> {
            texts.iter().map(|text| text.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
        };
        let (argv, envp) = (pointers(&self.argv), pointers(&self.envp));
        // SAFETY: both arrays end with a null pointer, and they and their texts live through the call.
        unsafe { libc::execve(self.argv[0].as_ptr(), argv.as_ptr(), envp.as_ptr()) };
        io::Error::last_os_error()
    }
}

/// Puts descriptors in the places 0, 1 and 2. They must lie above 2 themselves.
///
/// # Errors
/// What `dup2` refuses.
pub fn replace_stdio(stdio: [BorrowedFd<'_>; 3]) -> io::Result<()> {
    for (place, source) in (0..3).zip(stdio) {
        if source.as_raw_fd() < 3 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: the standard library uses these three places by number and expects them to be replaced.
        if unsafe { libc::dup2(source.as_raw_fd(), place) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn close_range(first: u32, last: u32, flags: u32) -> io::Result<()> {
    // SAFETY: the callers only close descriptors that nothing in this process owns, or mark them.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Marks every descriptor from `first` on to be closed when this process, or a child of it, runs another program.
///
/// # Errors
/// What `close_range` refuses (kernels before 5.11 do not know it).
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    close_range(first, u32::MAX, CLOSE_RANGE_CLOEXEC)
}

/// Closes every descriptor from 3 on that this process inherited from the one that started it.
/// Call it first thing: nothing in the process may own one of them yet.
///
/// # Errors
/// What `close_range` refuses.
pub fn close_inherited() -> io::Result<()> {
    close_range(3, u32::MAX, 0)
}

/// In a forked child that will never run another program: closes every descriptor but `keep`, 0 to 2 included.
/// Nothing that owns one of them may be used or dropped by the child after this.
///
/// # Errors
/// What `close_range` refuses.
pub fn close_all_but(keep: BorrowedFd<'_>) -> io::Result<()> {
    let keep = u32::try_from(keep.as_fd().as_raw_fd()).expect("an open descriptor is not negative");
    if keep > 0 {
        close_range(0, keep - 1, 0)?;
    }
    close_range(keep + 1, u32::MAX, 0)
}

/// Where the kernel reads this process's command line from (`/proc/<pid>/cmdline`).
#[derive(Debug, Clone, Copy)]
pub struct CommandLine {
    start: usize,
    end: usize,
}

impl CommandLine {
    /// # Errors
    /// When `/proc/self/stat` cannot be read or does not show the addresses.
    pub fn find() -> io::Result<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        let unreadable = || io::Error::new(io::ErrorKind::InvalidData, "/proc/self/stat does not show arg_start");
        // proc(5): arg_start and arg_end are the fields 48 and 49; the fields after the name start with the third.
        let rest = stat.rsplit_once(')').ok_or_else(unreadable)?.1;
        let mut fields = rest.split_ascii_whitespace().skip(45).map(str::parse);
        match (fields.next(), fields.next()) {
            (Some(Ok(start)), Some(Ok(end))) if start != 0 && start < end => Ok(Self { start, end }),
            _ => Err(unreadable()),
        }
    }

    /// In a forked child that never looks at its arguments again: shows `name` instead of them.
    pub fn replace(self, name: &[u8]) {
        let room = self.end - self.start;
        let length = name.len().min(room - 1);
        let area = std::ptr::with_exposed_provenance_mut::<u8>(self.start);
        // SAFETY: the kernel put the argument texts here, on the writable initial stack, and the area is `room` bytes
        // long. No reference to the texts exists: the standard library keeps only their addresses, and reads them on demand.
        unsafe {
            std::ptr::write_bytes(area, 0, room);
            std::ptr::copy_nonoverlapping(name.as_ptr(), area, length);
        }
    }
}

/// Ends this process at once: no destructor, no exit handler.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process; nothing runs after it.
    unsafe { libc::_exit(code) }
}
