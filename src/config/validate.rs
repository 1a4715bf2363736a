//! Rules that a type cannot hold: absolute paths, ranges, names.

use std::ffi::OsStr;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};

use super::{CgroupDriver, Config, Handler, Streaming};
use crate::sys::cgroup::{Driver, Placement};

/// A value that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flaw {
    pub(super) key: String,
    pub(super) value: String,
    pub(super) why: String,
}

/// A unix socket's path has room for 107 bytes (unix(7)).
const SUN_PATH: usize = 107;

pub(super) fn check(config: &Config) -> Result<(), Flaw> {
    server(config)?;
    runtime(config)?;
    cgroup(config)?;
    let network = &config.network;
    network.subnets().map_err(|(key, wrong)| flaw(key, &wrong.text, wrong.why))?;
    absolute("network.conf_dir", &network.conf_dir)?;
    absolute_list("network.bin_dirs", &network.bin_dirs)?;
    absolute("network.cache_dir", &network.cache_dir)?;
    range("network.plugin_timeout", network.plugin_timeout, 1, 3600)?;
    let image = &config.image;
    absolute("image.registries_conf", &image.registries_conf)?;
    absolute("image.registries_conf_dir", &image.registries_conf_dir)?;
    absolute_list("image.certs_d", &image.certs_d)?;
    absolute("image.auth_file", &image.auth_file)?;
    absolute("image.auth_dir", &image.auth_dir)?;
    absolute("image.signature_policy", &image.signature_policy)?;
    absolute("image.signature_policy_dir", &image.signature_policy_dir)?;
    range("image.max_concurrent_downloads", image.max_concurrent_downloads, 1, 64)?;
    range("image.pull_progress_timeout", image.pull_progress_timeout, 1, 86_400)?;
    range("image.pull_min_rate", image.pull_min_rate, 0, 1 << 30)?;
    for pattern in &image.pinned {
        if pattern.is_empty() || pattern.len() > 512 {
            return Err(flaw("image.pinned", pattern, "a name or a glob of 1 to 512 bytes is wanted"));
        }
    }
    streaming(&config.streaming)?;
    if let Err(why) = crate::telemetry::check_filter(&config.log.level) {
        return Err(flaw("log.level", &config.log.level, &why.to_string()));
    }
    range("log.max_line_size", config.log.max_line_size, 256, 1 << 20)
}

fn server(config: &Config) -> Result<(), Flaw> {
    let server = &config.server;
    absolute("server.listen", &server.listen)?;
    absolute("server.root", &server.root)?;
    absolute("server.state", &server.state)?;
    if server.listen.as_os_str().len() > SUN_PATH {
        return Err(flaw(
            "server.listen",
            &server.listen.display().to_string(),
            "a socket's path has at most 107 bytes",
        ));
    }
    if server.listen.file_name().is_none() {
        return Err(flaw("server.listen", &server.listen.display().to_string(), "it names no file"));
    }
    if server.root.starts_with(&server.state) {
        let why = format!("images would be lost at a reboot: it is in server.state ({})", server.state.display());
        return Err(flaw("server.root", &server.root.display().to_string(), &why));
    }
    range("server.max_request_size", server.max_request_size, 16 << 20, 256 << 20)
}

fn streaming(streaming: &Streaming) -> Result<(), Flaw> {
    let Ok(address) = streaming.listen.parse::<SocketAddr>() else {
        let why = "an IP address and a port are wanted, as in \"127.0.0.1:0\" or \"[::1]:10010\"";
        return Err(flaw("streaming.listen", &streaming.listen, why));
    };
    // What a host may be in a URL: a name, or an address without zone.
    let host = &streaming.advertise;
    let is_name = |host: &str| host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'));
    let is_v6 = |host: &str| host.trim_start_matches('[').trim_end_matches(']').parse::<Ipv6Addr>().is_ok();
    if host.len() > 253 || !(is_name(host) || is_v6(host)) {
        return Err(flaw("streaming.advertise", host, "a host name or an IP address is wanted, without a port"));
    }
    if address.ip().is_unspecified() && host.is_empty() {
        let why = "URLs need a host that can be reached: set streaming.advertise, or listen on one address";
        return Err(flaw("streaming.listen", &streaming.listen, why));
    }
    let files = [
        ("streaming.tls_cert", &streaming.tls_cert),
        ("streaming.tls_key", &streaming.tls_key),
        ("streaming.tls_client_ca", &streaming.tls_client_ca),
    ];
    let is_set = |path: &Path| !path.as_os_str().is_empty();
    for (key, path) in files.into_iter().filter(|(_, path)| is_set(path)) {
        absolute(key, path)?;
    }
    let [cert, key, client_ca] = files.map(|(_, path)| is_set(path));
    if cert != key || (client_ca && !cert) {
        let why = "streaming.tls_cert and streaming.tls_key are set together, and tls_client_ca only with them";
        return Err(flaw("streaming.tls_cert", &streaming.tls_cert.display().to_string(), why));
    }
    range("streaming.idle_timeout", streaming.idle_timeout, 1, 604_800)?;
    range("streaming.creation_timeout", streaming.creation_timeout, 1, 3600)
}

fn runtime(config: &Config) -> Result<(), Flaw> {
    let runtime = &config.runtime;
    if !runtime.default.is_empty() && !runtime.handlers.contains_key(&runtime.default) && !is_name(&runtime.default) {
        let why = "a handler of [runtime.handlers], or a program's name without a path, is wanted";
        return Err(flaw("runtime.default", &runtime.default, why));
    }
    absolute_list("runtime.cdi_spec_dirs", &runtime.cdi_spec_dirs)?;
    for (name, handler) in &runtime.handlers {
        self::handler(name, handler)?;
    }
    Ok(())
}

fn handler(name: &str, handler: &Handler) -> Result<(), Flaw> {
    let key = |leaf: &str| format!("runtime.handlers.{name}.{leaf}");
    // The rule of RuntimeClass.handler: a DNS label.
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let edge = |b: Option<&u8>| b.is_none_or(|b| *b == b'-');
    if name.len() > 63 || !name.bytes().all(legal) || edge(name.as_bytes().first()) || edge(name.as_bytes().last()) {
        let why = "a handler's name has 1 to 63 lower-case letters, digits and inner dashes (a DNS label)";
        return Err(flaw(&format!("runtime.handlers.{name}"), name, why));
    }
    let path = &handler.path;
    if !path.is_absolute() && !path.to_str().is_some_and(is_name) {
        let why = "an absolute path, or a program's name without a slash, is wanted";
        return Err(flaw(&key("path"), &path.display().to_string(), why));
    }
    for pattern in &handler.allowed_annotations {
        let body = pattern.strip_suffix('*').unwrap_or(pattern);
        if pattern.is_empty() || pattern.len() > 317 || body.contains('*') {
            return Err(flaw(
                &key("allowed_annotations"),
                pattern,
                "an annotation's key, or a prefix that ends in *, is wanted",
            ));
        }
    }
    Ok(())
}

/// One program's name: no slash, no dots alone, nothing unprintable.
fn is_name(text: &str) -> bool {
    !matches!(text, "" | "." | "..") && text.len() <= 255 && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
}

fn cgroup(config: &Config) -> Result<(), Flaw> {
    let parent = &config.cgroup.parent;
    if parent.is_empty() {
        return Ok(());
    }
    let legal = |driver| Placement::new(driver, parent, "").and_then(|placement| placement.parent());
    let checked = match config.cgroup.driver {
        CgroupDriver::Cgroupfs => legal(Driver::Cgroupfs),
        CgroupDriver::Systemd => legal(Driver::Systemd),
        CgroupDriver::Auto => legal(Driver::Systemd).or_else(|_| legal(Driver::Cgroupfs)),
    };
    checked.map(|_| ()).map_err(|error| flaw("cgroup.parent", parent, &error.to_string()))
}

fn absolute(key: &str, path: &Path) -> Result<(), Flaw> {
    let plain = |c: Component<'_>| matches!(c, Component::RootDir | Component::Normal(_));
    let has_nul = |text: &OsStr| text.as_bytes().contains(&0);
    if path.is_absolute() && path.components().all(plain) && !has_nul(path.as_os_str()) && path != Path::new("/") {
        return Ok(());
    }
    Err(flaw(key, &path.display().to_string(), "an absolute path without .. is wanted, and not / itself"))
}

fn absolute_list(key: &str, paths: &[std::path::PathBuf]) -> Result<(), Flaw> {
    paths.iter().try_for_each(|path| absolute(key, path))
}

fn range(key: &str, value: u32, low: u32, high: u32) -> Result<(), Flaw> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(Flaw { key: key.to_owned(), value: value.to_string(), why: format!("{low} to {high} is wanted") })
}

fn flaw(key: &str, value: &str, why: &str) -> Flaw {
    Flaw { key: key.to_owned(), value: format!("{value:?}"), why: why.to_owned() }
}
