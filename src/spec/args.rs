//! The command line and the working directory.

use std::path::{Component, Path};

use cri_proto::runtime::v1 as cri;

use super::ImageFacts;

/// Linux's `MAX_ARG_STRLEN`: the longest single argument or environment string, in bytes with its NUL.
pub(super) const MAX_STRING: usize = 128 * 1024;

/// Why there is no command line, or no working directory.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    #[error("no command: neither the container nor its image names one")]
    Empty,
    #[error("args[{index}]: has a NUL byte")]
    Nul { index: usize },
    #[error("args[{index}]: {size} bytes, the kernel takes {MAX_STRING} at most")]
    TooLong { index: usize, size: usize },
    #[error("working_dir {path:?}: {reason}")]
    WorkingDir { path: String, reason: &'static str },
}

/// The command line: a `command` of the request replaces the image's entrypoint and its cmd, `args` replace only its cmd.
pub(super) fn args(config: &cri::ContainerConfig, image: &ImageFacts<'_>) -> Result<Vec<String>, ArgsError> {
    let (head, tail) = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => (config.command.as_slice(), config.args.as_slice()),
        (true, false) => (image.entrypoint, config.args.as_slice()),
        (true, true) => (image.entrypoint, image.cmd),
    };
    checked(head.iter().chain(tail).cloned().collect())
}

/// A command line that `execve` takes.
pub(super) fn checked(args: Vec<String>) -> Result<Vec<String>, ArgsError> {
    if args.is_empty() {
        return Err(ArgsError::Empty);
    }
    for (index, arg) in args.iter().enumerate() {
        if arg.contains('\0') {
            return Err(ArgsError::Nul { index });
        }
        if arg.len() >= MAX_STRING {
            return Err(ArgsError::TooLong { index, size: arg.len() });
        }
    }
    Ok(args)
}

/// The working directory: the request's, else the image's, else `/`. An image may name it relative to `/`, as Docker
/// allowed; a request may not.
///
/// A directory in `/proc/<process>` is refused: through a descriptor or a root that a runtime left open there, it was a way
/// to the host's files (CVE-2024-21626). `/dev/fd` is a link to such a place.
pub(super) fn cwd(config: &cri::ContainerConfig, image: &ImageFacts<'_>) -> Result<String, ArgsError> {
    let (text, from_image) = match (config.working_dir.as_str(), image.working_dir) {
        ("", "") => return Ok("/".to_owned()),
        ("", path) => (path, true),
        (path, _) => (path, false),
    };
    let refused = |reason| ArgsError::WorkingDir { path: text.chars().take(256).collect(), reason };
    if text.contains('\0') {
        return Err(refused("has a NUL byte"));
    }
    if text.len() > 4096 {
        return Err(refused("is longer than 4096 bytes"));
    }
    let path = match (text.starts_with('/'), from_image) {
        (true, _) => text.to_owned(),
        (false, true) => format!("/{text}"),
        (false, false) => return Err(refused("is not an absolute path")),
    };
    if Path::new(&path).components().any(|part| part == Component::ParentDir) {
        // Beyond a link, `..` leads elsewhere than the text says.
        return Err(refused("has `..` in it"));
    }
    if leads_through_a_process(Path::new(&path)) {
        return Err(refused("leads through a process's own directory in /proc"));
    }
    Ok(path)
}

fn leads_through_a_process(path: &Path) -> bool {
    let mut parts = path.components().filter_map(|part| match part {
        Component::Normal(name) => name.to_str(),
        _ => None,
    });
    match (parts.next(), parts.next()) {
        (Some("proc"), Some(entry)) => {
            matches!(entry, "self" | "thread-self") || entry.bytes().all(|b| b.is_ascii_digit())
        }
        (Some("dev"), Some(entry)) => matches!(entry, "fd" | "stdin" | "stdout" | "stderr"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn command_and_args_replace_what_kubernetes_says_they_replace() {
        let (entrypoint, cmd) = (strings(&["/entry"]), strings(&["cmd"]));
        let image = ImageFacts { entrypoint: &entrypoint, cmd: &cmd, ..ImageFacts::default() };
        let cases: [(&[&str], &[&str], &[&str]); 4] = [
            (&[], &[], &["/entry", "cmd"]),
            (&["/c"], &[], &["/c"]),
            (&[], &["a"], &["/entry", "a"]),
            (&["/c"], &["a", ""], &["/c", "a", ""]),
        ];
        for (command, arguments, want) in cases {
            let config =
                cri::ContainerConfig { command: strings(command), args: strings(arguments), ..Default::default() };
            assert_eq!(args(&config, &image).unwrap(), want, "{command:?} {arguments:?}");
        }
        assert_eq!(args(&cri::ContainerConfig::default(), &ImageFacts::default()), Err(ArgsError::Empty));
        assert_eq!(checked(strings(&["a", "b\0c"])), Err(ArgsError::Nul { index: 1 }));
        assert!(matches!(checked(vec!["x".repeat(MAX_STRING)]), Err(ArgsError::TooLong { index: 0, .. })));
    }

    fn cwd_of(request: &str, image: &str) -> Result<String, ArgsError> {
        let config = cri::ContainerConfig { working_dir: request.into(), ..Default::default() };
        cwd(&config, &ImageFacts { working_dir: image, ..ImageFacts::default() })
    }

    #[test]
    fn the_request_goes_before_the_image() {
        let cases = [("", "", "/"), ("", "/srv", "/srv"), ("/a", "/srv", "/a"), ("", "srv/x", "/srv/x")];
        for (request, image, want) in cases {
            assert_eq!(cwd_of(request, image).unwrap(), want, "{request:?} {image:?}");
        }
        assert!(cwd_of("relative", "").is_err() && cwd_of("/a\0b", "").is_err());
        assert!(cwd_of(&format!("/{}", "x".repeat(4096)), "").is_err());
    }

    #[test]
    fn cve_2024_21626_no_working_directory_in_a_process() {
        for path in [
            "/proc/self/fd/7",
            "/proc/self/fd/8/../../../..",
            "/proc/1/cwd",
            "/proc/thread-self/root",
            "//proc//self/fd/3",
            "/proc/./self/fd/3",
            "/x/../proc/12/root/etc",
            "/dev/fd/9",
            "/proc/self",
            "proc/self/fd/3",
        ] {
            assert!(cwd_of(path, "").is_err(), "{path}");
            assert!(cwd_of("", path).is_err(), "{path}");
        }
        for path in ["/proc/sys/net", "/process", "/proc", "/dev", "/srv/proc/self"] {
            assert!(cwd_of(path, "").is_ok(), "{path}");
        }
    }
}
