//! Raw Linux: every `unsafe` block, and every system call that needs care, lives here. Functions take and return owned or
//! borrowed descriptors, and their errors name the call and the path.
#![allow(clippy::disallowed_methods)] // this room is where the banned calls are wrapped

pub mod calm;
pub mod caps;
pub mod cgroup;
pub mod clone;
pub mod exec;
pub mod host;
pub mod inotify;
pub mod instance;
pub mod mount;
pub mod namespaces;
pub mod netlink;
pub mod netns;
pub mod pidfd;
pub mod process;
pub mod reactor;
pub mod root;
pub mod seqpacket;
pub mod uncached;
pub mod xattr;
pub mod xtables;
