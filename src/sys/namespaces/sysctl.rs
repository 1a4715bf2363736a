//! Sysctls of a pod: which ones a pod may set, and writing them inside its namespaces.
//!
//! A key that is not namespaced, or whose namespace is the host's, would change the host (CVE-2022-0532). A value is only
//! ever handed to one `write`, never joined into a string that somebody splits again (CVE-2022-0811).

use std::collections::BTreeMap;
use std::io;

use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use super::NamespaceError;

/// Longest key, in bytes; the deepest keys of the kernel with a 15 byte interface name stay far below.
const KEY_MAX: usize = 253;
/// Longest value, in bytes: the kernel takes less than a page in one write.
const VALUE_MAX: usize = 4095;

/// `kernel.*` keys that belong to the IPC namespace (`ipc/ipc_sysctl.c` of the kernel, bar the message-id controls).
const IPC_KEYS: [&str; 8] = ["msgmax", "msgmnb", "msgmni", "sem", "shm_rmid_forced", "shmall", "shmmax", "shmmni"];

/// A sysctl that a pod may not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("sysctl {key:?} = {value:?}: {reason}")]
pub struct SysctlError {
    pub key: String,
    pub value: String,
    pub reason: &'static str,
}

/// The namespace that a key belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Domain {
    Net,
    Ipc,
}

/// Checks the sysctls of a pod against the namespaces that it owns. Pure; to be called before anything is made.
///
/// # Errors
/// The first sysctl that is not legal: a malformed key, a value with control characters, a key that no namespace holds, or
/// one whose namespace is the host's.
pub fn validate_sysctls(sysctls: &BTreeMap<String, String>, host_net: bool, host_ipc: bool) -> Result<(), SysctlError> {
    for (key, value) in sysctls {
        check(key, value, host_net, host_ipc).map_err(|reason| SysctlError {
            key: key.chars().take(KEY_MAX).collect(),
            value: value.chars().take(KEY_MAX).collect(),
            reason,
        })?;
    }
    Ok(())
}

fn check(key: &str, value: &str, host_net: bool, host_ipc: bool) -> Result<(), &'static str> {
    let path = proc_path(key).ok_or("not a sysctl key")?;
    if value.is_empty() {
        return Err("the value is empty");
    }
    if value.len() > VALUE_MAX {
        return Err("the value is too long");
    }
    // What sysctls of these namespaces are made of. A value that a helper could split again never gets that far.
    let legal = |c: char| c.is_ascii_alphanumeric() || " \t,.:_/-".contains(c);
    if !value.chars().all(legal) {
        return Err("the value has characters that no such sysctl takes");
    }
    match domain(&path)? {
        Domain::Net if host_net => Err("the pod uses the host's network namespace"),
        Domain::Ipc if host_ipc => Err("the pod uses the host's IPC namespace"),
        Domain::Net | Domain::Ipc => Ok(()),
    }
}

fn domain(path: &str) -> Result<Domain, &'static str> {
    let parts: Vec<&str> = path.split('/').collect();
    match parts.as_slice() {
        ["net", _, ..] => Ok(Domain::Net),
        ["fs", "mqueue", _] => Ok(Domain::Ipc),
        ["kernel", name] if IPC_KEYS.contains(name) => Ok(Domain::Ipc),
        ["kernel", "hostname" | "domainname"] => Err("the hostname has a field of its own"),
        _ => Err("not a sysctl that belongs to a namespace of a pod"),
    }
}

/// The path of a key below `/proc/sys`. As in sysctl(8), the first separator decides: in the dot form a slash stands for a
/// dot inside a name (`net.ipv4.conf.eth0/100.rp_filter`), in the slash form nothing is exchanged.
fn proc_path(key: &str) -> Option<String> {
    if key.len() > KEY_MAX {
        return None;
    }
    let first = key.chars().find(|c| matches!(c, '.' | '/'))?;
    let path: String = if first == '/' {
        key.to_owned()
    } else {
        key.chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect()
    };
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '@');
    let sound = path.split('/').all(|part| !matches!(part, "" | "." | "..") && part.chars().all(legal));
    sound.then_some(path)
}

/// Interfaces that come into this network namespace do not listen to router advertisements: the network gives a pod its
/// addresses and routes, and on a shared link anybody could give it others (CVE-2020-10749, docs/decisions/035). The pod's
/// own sysctls are written later and may say otherwise. Fine on a kernel without IPv6.
pub(super) fn hear_no_routers() -> Result<(), NamespaceError> {
    const KEY: &str = "net.ipv6.conf.default.accept_ra";
    match write(KEY, "0") {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(NamespaceError::WriteSysctl { key: KEY.to_owned(), value: "0".to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Writes checked sysctls in the namespaces of the calling thread.
pub(super) fn write_all(sysctls: &BTreeMap<String, String>) -> Result<(), NamespaceError> {
    // Writing net.ipv4.ip_forward resets other net.ipv4 keys, so it goes first or it would undo them.
    let resets = |key: &str| proc_path(key).is_some_and(|path| path == "net/ipv4/ip_forward");
    let (first, rest): (Vec<_>, Vec<_>) = sysctls.iter().partition(|(key, _)| resets(key));
    for (key, value) in first.into_iter().chain(rest) {
        write(key, value).map_err(|source| NamespaceError::WriteSysctl {
            key: key.clone(),
            value: value.clone(),
            source,
        })?;
    }
    Ok(())
}

fn write(key: &str, value: &str) -> io::Result<()> {
    let path = proc_path(key).ok_or(io::ErrorKind::InvalidInput)?;
    let root: OwnedFd = rustix::fs::openat(
        CWD,
        "/proc/sys",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
    )?;
    // A mount over a part of /proc/sys would redirect the write (CVE-2025-52881), so none may be crossed.
    let file = rustix::fs::openat2(
        &root,
        path,
        OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOCTTY,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV,
    )?;
    if rustix::fs::fstatfs(&file)?.f_type != rustix::fs::PROC_SUPER_MAGIC {
        return Err(io::Error::other("/proc/sys is not procfs"));
    }
    // One write: a sysctl takes its value whole or not at all.
    match rustix::io::write(&file, value.as_bytes())? {
        written if written == value.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(key: &str, value: &str, host_net: bool, host_ipc: bool) -> Result<(), &'static str> {
        validate_sysctls(&BTreeMap::from([(key.to_owned(), value.to_owned())]), host_net, host_ipc)
            .map_err(|error| error.reason)
    }

    #[test]
    fn keys_are_legal_only_with_the_namespace_that_holds_them() {
        // key, with the pod's own namespaces, with the host's network, with the host's IPC
        for (key, own, host_net, host_ipc) in [
            ("net.ipv4.ip_forward", true, false, true),
            ("net/ipv4/ip_forward", true, false, true),
            ("net.ipv4.conf.eth0/100.rp_filter", true, false, true),
            ("net/ipv4/conf/eth0.100/rp_filter", true, false, true),
            ("net.core.somaxconn", true, false, true),
            ("kernel.shm_rmid_forced", true, true, false),
            ("kernel.shmmax", true, true, false),
            ("kernel.msgmnb", true, true, false),
            ("kernel.sem", true, true, false),
            ("fs.mqueue.msg_max", true, true, false),
            ("fs/mqueue/msg_max", true, true, false),
            ("kernel.core_pattern", false, false, false),
            ("kernel.shm", false, false, false),
            ("kernel.shmmax.x", false, false, false),
            ("kernel.hostname", false, false, false),
            ("kernel.domainname", false, false, false),
            ("kernel.pid_max", false, false, false),
            ("vm.swappiness", false, false, false),
            ("fs.file-max", false, false, false),
            ("fs.mqueue", false, false, false),
            ("net", false, false, false),
            ("net.", false, false, false),
            (".net.ipv4.ip_forward", false, false, false),
            ("/net/ipv4/ip_forward", false, false, false),
            ("", false, false, false),
            ("net..ipv4", false, false, false),
            ("net.//.kernel.core_pattern", false, false, false),
            ("net/../kernel/core_pattern", false, false, false),
            ("net/./ipv4", false, false, false),
            ("net.ipv4.ip_forward\0", false, false, false),
            ("net.ipv4 .ip_forward", false, false, false),
            ("net.ipv4.ip_forward=1+kernel.core_pattern", false, false, false),
            ("net.ipv4.ip_förward", false, false, false),
        ] {
            assert_eq!(verdict(key, "1", false, false).is_ok(), own, "{key:?} with own namespaces");
            assert_eq!(verdict(key, "1", true, false).is_ok(), host_net, "{key:?} with the host's network");
            assert_eq!(verdict(key, "1", false, true).is_ok(), host_ipc, "{key:?} with the host's IPC");
        }
    }

    #[test]
    fn values_are_one_line_of_text() {
        for (value, legal) in [
            ("1", true),
            ("0 2147483647", true),
            ("8080,9148-9200", true),
            ("1+kernel.core_pattern=|/bin/x", false),
            ("", false),
            ("1\n", false),
            ("1\0", false),
            ("\u{7f}", false),
            (&"1".repeat(VALUE_MAX), true),
            (&"1".repeat(VALUE_MAX + 1), false),
        ] {
            assert_eq!(verdict("net.ipv4.x", value, false, false).is_ok(), legal, "{value:?}");
        }
        assert!(verdict(&format!("net.{}", "a".repeat(KEY_MAX)), "1", false, false).is_err());
    }

    #[test]
    fn the_error_names_key_value_and_reason() {
        let sysctls = BTreeMap::from([("net.ipv4.ip_forward".to_owned(), "1".to_owned())]);
        let error = validate_sysctls(&sysctls, true, false).unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"sysctl "net.ipv4.ip_forward" = "1": the pod uses the host's network namespace"#
        );
    }

    proptest::proptest! {
        #[test]
        fn no_key_leads_out_of_its_tree(key in "(net|kernel|fs|[a-z]{0,3})[./]([a-z./@: -]{0,12}[./]){0,3}[a-z.]{0,6}") {
            if verdict(&key, "1", false, false).is_ok() {
                let path = proc_path(&key).unwrap();
                let inside = ["net/", "fs/mqueue/", "kernel/"].iter().any(|root| path.starts_with(root));
                assert!(inside && path.split('/').all(|part| !["", ".", ".."].contains(&part)), "{key:?} is {path:?}");
            }
        }
    }
}
