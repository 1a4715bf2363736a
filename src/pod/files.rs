//! What every container of a pod shares on disk: resolv.conf, hostname, hosts and /dev/shm.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use cri_proto::runtime::v1::DnsConfig;

use super::{Paths, PodError};

/// Size of a pod's /dev/shm, in bytes: the field's default.
const SHM_SIZE: u64 = 64 * 1024 * 1024;

/// Makes the pod's folder, its files and, with an IPC namespace of its own, its shared memory; `root` are the host's ids of
/// the pod's root, whose the files are.
pub(super) fn make(
    paths: &Paths,
    hostname: &str,
    dns: Option<&DnsConfig>,
    own_ipc: bool,
    root: (u32, u32),
) -> Result<(), PodError> {
    // Others need to traverse: a container's user reads resolv.conf through a bind mount, not through this path, so the
    // folder itself stays closed.
    make_dir(&paths.files, 0o700)?;
    let resolv_conf = match dns.map(resolv_conf).filter(|text| !text.is_empty()) {
        Some(text) => text.into_bytes(),
        // A host without resolv.conf has pods without one.
        None => fs::read("/etc/resolv.conf").unwrap_or_default(),
    };
    write(&paths.resolv_conf(), &resolv_conf, root)?;
    write(&paths.hostname(), format!("{hostname}\n").as_bytes(), root)?;
    if own_ipc {
        make_dir(&paths.shm(), 0o1777)?;
        crate::sys::mount::tmpfs(&paths.shm(), SHM_SIZE, 0o1777, root)
            .map_err(|error| PodError::File { path: paths.shm(), source: io::Error::other(error) })?;
    }
    Ok(())
}

/// Writes the pod's `/etc/hosts`, for containers whose request brings none (the kubelet's always do): the node's own in the
/// node's network, else the loopback names, and the pod's name at its addresses.
pub(super) fn make_hosts(
    paths: &Paths,
    hostname: &str,
    ips: &[String],
    host_network: bool,
    root: (u32, u32),
) -> Result<(), PodError> {
    let text = if host_network {
        // A node without hosts has pods without hosts.
        fs::read("/etc/hosts").unwrap_or_default()
    } else {
        hosts(hostname, ips).into_bytes()
    };
    write(&paths.hosts(), &text, root)
}

fn hosts(hostname: &str, ips: &[String]) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    text.push_str("fe00::\tip6-localnet\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n");
    for ip in ips {
        text.push_str(&format!("{ip}\t{hostname}\n"));
    }
    text
}

/// Labels them for the pod's containers.
pub(super) fn label(paths: &Paths, level: &str, own_ipc: bool) -> Result<(), PodError> {
    let label = crate::spec::file_label(level);
    let files = [paths.resolv_conf(), paths.hostname(), paths.hosts()];
    // What is made in a folder has the folder's type, and its maker's level.
    for path in files.into_iter().chain(own_ipc.then(|| paths.shm())) {
        crate::security::selinux::label(&path, &label)?;
    }
    Ok(())
}

/// Takes them away; what is gone already is fine.
pub(super) fn remove(paths: &Paths) -> Result<(), PodError> {
    let failed = |source| PodError::File { path: paths.files.clone(), source };
    crate::sys::mount::detach(&paths.shm()).map_err(|error| failed(io::Error::other(error)))?;
    match fs::remove_dir_all(&paths.files) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed(source)),
        _ => Ok(()),
    }
}

/// The text of resolv.conf; empty when nothing is configured. Admission has refused line breaks in the parts.
fn resolv_conf(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

fn make_dir(path: &Path, mode: u32) -> Result<(), PodError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|source| PodError::File { path: path.to_owned(), source })
}

fn write(path: &Path, bytes: &[u8], (uid, gid): (u32, u32)) -> Result<(), PodError> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(path)
        .and_then(|mut file| {
            std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
            file.write_all(bytes)
        })
        .map_err(|source| PodError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_has_the_lines_of_the_dns_config() {
        let dns = DnsConfig {
            servers: vec!["10.10.10.10".into(), "fd00::1".into()],
            searches: vec!["a.example".into(), "b.example".into()],
            options: vec!["ndots:8".into()],
        };
        let want = "search a.example b.example\nnameserver 10.10.10.10\nnameserver fd00::1\noptions ndots:8\n";
        assert_eq!(resolv_conf(&dns), want);
        assert_eq!(resolv_conf(&DnsConfig::default()), "");
    }

    #[test]
    fn hosts_names_the_pod_at_each_of_its_addresses() {
        let text = hosts("web", &["10.85.0.7".into(), "fd00::7".into()]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "127.0.0.1\tlocalhost");
        assert_eq!(lines[lines.len() - 2..], ["10.85.0.7\tweb", "fd00::7\tweb"]);
    }
}
