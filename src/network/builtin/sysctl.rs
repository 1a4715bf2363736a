//! The kernel's settings that the pod network needs, by `/proc/sys/net`, which shows those of the calling thread's network
//! namespace.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

use super::link::{BRIDGE, INSIDE};

/// A setting that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{key} cannot be set to {value}")]
pub struct SysctlError {
    pub key: String,
    pub value: String,
    pub source: io::Error,
}

/// Whether the kernel has IPv6, and it is not switched off for new links.
#[must_use]
pub fn has_ipv6() -> bool {
    read("net/ipv6/conf/default/disable_ipv6").is_some_and(|value| value == "0")
}

/// Lets the node forward, for the families that pods have.
///
/// With `all.forwarding` set, a link whose `accept_ra` is 1 hears router advertisements no more, and the node would lose the
/// default route that it has from one; such a link gets 2, which means the same for a node that forwards (ip-sysctl).
///
/// # Errors
/// When a setting is not as needed and cannot be changed.
pub fn forward(v4: bool, v6: bool) -> Result<(), SysctlError> {
    if v4 {
        ensure("net/ipv4/ip_forward", "1")?;
    }
    if v6 && read("net/ipv6/conf/all/forwarding").as_deref() != Some("1") {
        keep_router_advertisements()?;
        ensure("net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// Whether [`forward`] would succeed; nothing is changed.
///
/// # Errors
/// When a setting is not as needed and cannot be changed.
pub fn can_forward(v4: bool, v6: bool) -> Result<(), SysctlError> {
    let settings = [(v4, "net/ipv4/ip_forward"), (v6, "net/ipv6/conf/all/forwarding")];
    for (_, key) in settings.iter().filter(|(wanted, key)| *wanted && read(key).as_deref() != Some("1")) {
        // Opening says it: no byte is written.
        let opened = std::fs::OpenOptions::new().write(true).open(Path::new("/proc/sys").join(key));
        opened.map_err(|source| refused(key, "1", source))?;
    }
    Ok(())
}

fn keep_router_advertisements() -> Result<(), SysctlError> {
    let links = std::fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten();
    for link in links {
        let Some(name) = link.file_name().to_str().map(str::to_owned) else { continue };
        let key = format!("net/ipv6/conf/{name}/accept_ra");
        if !["all", "default", "lo"].contains(&name.as_str()) && read(&key).as_deref() == Some("1") {
            ensure(&key, "2")?;
        }
    }
    Ok(())
}

/// The bridge: no router advertisement of a pod changes the node's routes (CVE-2020-10749), and connections that the node
/// makes to 127.0.0.1 may leave through it to a pod. What comes *in* through it for 127.0.0.0/8 is dropped by a rule
/// (CVE-2020-8558).
///
/// # Errors
/// When a setting cannot be changed.
pub fn bridge(v4: bool, v6: bool) -> Result<(), SysctlError> {
    if v4 {
        ensure(&format!("net/ipv4/conf/{BRIDGE}/route_localnet"), "1")?;
    }
    if v6 {
        ensure(&format!("net/ipv6/conf/{BRIDGE}/accept_ra"), "0")?;
        ensure(&format!("net/ipv6/conf/{BRIDGE}/accept_dad"), "0")?;
    }
    Ok(())
}

/// The pod's end, from within the pod's namespace and before it is up: no routes from router advertisements, no
/// duplicate-address detection, and the link-local address that follows from the MAC. `v6` says that the pod gets an IPv6 address,
/// which its own settings may have switched off for all links; as with the plugins, `eth0` has it all the same.
///
/// # Errors
/// When a setting cannot be changed.
pub fn inside(v6: bool) -> Result<(), SysctlError> {
    let dir = format!("net/ipv6/conf/{INSIDE}");
    // Looked up once: a walk through /proc/sys asks every table on the way which namespace the caller is in.
    let Ok(conf) = std::fs::File::open(Path::new("/proc/sys").join(&dir)) else {
        return Ok(()); // no IPv6
    };
    let enable = v6.then_some(("disable_ipv6", "0"));
    for (key, value) in [("accept_ra", "0"), ("accept_dad", "0"), ("addr_gen_mode", "0")].into_iter().chain(enable) {
        ensure_at(&conf, Path::new(key), value)
            .map_err(|source| refused(&format!("{dir}/{key}"), value, source.into()))?;
    }
    Ok(())
}

/// The bridge's end of a pod's link: it carries frames and needs no IPv6 address of its own, which the kernel would give it, with
/// routes in the node's tables. They grow with the pods, and each change of a link walks through all of them.
///
/// A setting that cannot be changed is left: the network is slower by it, not wrong.
pub fn port(link: &str) {
    let path = Path::new("/proc/sys/net/ipv6/conf").join(link).join("disable_ipv6");
    if let Err(error) = std::fs::write(path, "1") {
        tracing::debug!(link, %error, "IPv6 stays on for the bridge's end of a pod's link");
    }
}

/// Writes only what is not so already: `/proc/sys` may be mounted read-only on a node that is set up rightly.
fn ensure_at(dir: impl AsFd, key: &Path, value: &str) -> rustix::io::Result<()> {
    let open = |flags| rustix::fs::openat(dir.as_fd(), key, flags | OFlags::CLOEXEC, Mode::empty());
    // These settings are small numbers.
    let mut now = [0; 16];
    let length = rustix::io::read(open(OFlags::RDONLY)?, &mut now)?;
    if now[..length].trim_ascii() == value.as_bytes() {
        return Ok(());
    }
    rustix::io::write(open(OFlags::WRONLY)?, value.as_bytes()).map(drop)
}

fn read(key: &str) -> Option<String> {
    std::fs::read_to_string(Path::new("/proc/sys").join(key)).ok().map(|value| value.trim().to_owned())
}

fn ensure(key: &str, value: &str) -> Result<(), SysctlError> {
    ensure_at(CWD, &Path::new("/proc/sys").join(key), value).map_err(|errno| refused(key, value, errno.into()))
}

fn refused(key: &str, value: &str, source: io::Error) -> SysctlError {
    SysctlError { key: key.replace('/', "."), value: value.to_owned(), source }
}
