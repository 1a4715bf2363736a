//! Seccomp profiles that an administrator put on the node (`Localhost`): strict JSON to the OCI form.
//!
//! Two dialects are in use. The OCI one is `linux.seccomp` of the runtime specification. The other, of Docker and Podman,
//! adds `archMap`, and per rule `includes` and `excludes` (capabilities, machines, kernel version), a `comment`, and the
//! old singular `name`. Both are taken; a key of neither is an error, since a misspelt key in a security profile would
//! otherwise mean "not enforced".

use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Arch as OciArch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
    LinuxSyscall,
};
use serde::Deserialize;

use super::{Arch, argument};
use crate::security::caps::{Cap, CapSet};

/// Largest profile taken, in bytes. Recorded profiles of big programs are below 100 KiB.
pub const MAX_PROFILE_SIZE: usize = 1024 * 1024;

/// Why a Localhost profile cannot be used. Such a container is never run unconfined instead (CVE-2023-2431).
#[derive(Debug, thiserror::Error)]
pub enum LocalhostError {
    #[error("seccomp profile {}: {size} bytes, the limit is {MAX_PROFILE_SIZE}", path.display())]
    TooLarge { path: PathBuf, size: usize },
    #[error("seccomp profile {}: not a seccomp profile in JSON: {source}", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("seccomp profile {}: {problem}", path.display())]
    Content { path: PathBuf, problem: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Profile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Option<Vec<OciArch>>,
    #[serde(default)]
    arch_map: Option<Vec<ArchMap>>,
    #[serde(default)]
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    listener_path: Option<PathBuf>,
    listener_metadata: Option<String>,
    #[serde(default)]
    syscalls: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ArchMap {
    architecture: OciArch,
    sub_architectures: Option<Vec<OciArch>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(default)]
    name: Option<String>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<RuleArg>>,
    #[serde(default, rename = "comment")]
    _comment: Option<String>,
    #[serde(default)]
    includes: Option<Filter>,
    #[serde(default)]
    excludes: Option<Filter>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RuleArg {
    index: usize,
    value: u64,
    value_two: Option<u64>,
    op: LinuxSeccompOperator,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Filter {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// Where a profile is going to be enforced: what the conditions of the second dialect are asked about.
struct Place {
    arch: Arch,
    caps: CapSet,
    kernel: (u32, u32),
}

/// Reads a profile. `kernel` is the host's major and minor version; `path` is only for the error.
///
/// # Errors
/// [`LocalhostError`], naming the path, when the bytes are too many, are not such a profile, or contradict themselves.
pub fn parse_localhost(
    path: &Path,
    json: &[u8],
    arch: Arch,
    caps: CapSet,
    kernel: (u32, u32),
) -> Result<LinuxSeccomp, LocalhostError> {
    if json.len() > MAX_PROFILE_SIZE {
        return Err(LocalhostError::TooLarge { path: path.to_owned(), size: json.len() });
    }
    let profile: Profile =
        serde_json::from_slice(json).map_err(|source| LocalhostError::Json { path: path.to_owned(), source })?;
    convert(profile, &Place { arch, caps, kernel })
        .map_err(|problem| LocalhostError::Content { path: path.to_owned(), problem })
}

fn convert(profile: Profile, place: &Place) -> Result<LinuxSeccomp, String> {
    let architectures = match (profile.architectures, profile.arch_map) {
        (Some(list), Some(map)) if !list.is_empty() && !map.is_empty() => {
            return Err("both architectures and archMap are given; use one".to_owned());
        }
        (_, Some(map)) if !map.is_empty() => Some(map_architectures(map, place.arch)),
        (list, _) => list,
    };
    let mut rules = Vec::new();
    for (number, rule) in profile.syscalls.unwrap_or_default().into_iter().enumerate() {
        let kept = convert_rule(rule, place).map_err(|problem| format!("syscalls[{number}]: {problem}"))?;
        rules.extend(kept);
    }
    let mut out = LinuxSeccomp::default();
    out.set_default_action(profile.default_action)
        .set_default_errno_ret(profile.default_errno_ret)
        .set_architectures(architectures)
        .set_flags(profile.flags.filter(|flags| !flags.is_empty()))
        .set_listener_path(profile.listener_path)
        .set_listener_metadata(profile.listener_metadata)
        .set_syscalls(Some(rules));
    Ok(out)
}

fn map_architectures(map: Vec<ArchMap>, arch: Arch) -> Vec<OciArch> {
    let native = arch.conventions()[0];
    map.into_iter()
        .filter(|entry| entry.architecture == native)
        .flat_map(|entry| std::iter::once(entry.architecture).chain(entry.sub_architectures.unwrap_or_default()))
        .collect()
}

fn convert_rule(rule: Rule, place: &Place) -> Result<Option<LinuxSyscall>, String> {
    let names = match (rule.names, rule.name) {
        (Some(_), Some(_)) => return Err("both name and names are given; use names".to_owned()),
        (Some(names), None) => names,
        (None, Some(name)) => vec![name],
        (None, None) => return Err("no names".to_owned()),
    };
    if names.is_empty() || names.iter().any(String::is_empty) {
        return Err("an empty list of names, or an empty name".to_owned());
    }
    if !includes(&rule.includes.unwrap_or_default(), place)? || excludes(&rule.excludes.unwrap_or_default(), place)? {
        return Ok(None);
    }
    let args: Vec<LinuxSeccompArg> =
        rule.args.unwrap_or_default().into_iter().map(convert_arg).collect::<Result<_, _>>()?;
    let mut syscall = LinuxSyscall::default();
    syscall.set_names(names).set_action(rule.action).set_errno_ret(rule.errno_ret).set_args(if args.is_empty() {
        None
    } else {
        Some(args)
    });
    Ok(Some(syscall))
}

fn convert_arg(arg: RuleArg) -> Result<LinuxSeccompArg, String> {
    if arg.index > 5 {
        return Err(format!("argument index {}: a system call has six arguments, 0 to 5", arg.index));
    }
    Ok(argument(arg.index, arg.value, arg.value_two, arg.op))
}

/// Every condition must hold; an absent one does.
fn includes(filter: &Filter, place: &Place) -> Result<bool, String> {
    let caps = parse_caps(filter)?;
    let arches = filter.arches.as_deref().unwrap_or_default();
    Ok(caps.iter().all(|cap| place.caps.contains(*cap))
        && (arches.is_empty() || arches.iter().any(|name| arch_named(name, place.arch)))
        && filter.min_kernel.as_deref().map_or(Ok(true), |text| parse_kernel(text).map(|min| place.kernel >= min))?)
}

/// Any condition that holds takes the rule out.
fn excludes(filter: &Filter, place: &Place) -> Result<bool, String> {
    let caps = parse_caps(filter)?;
    let arches = filter.arches.as_deref().unwrap_or_default();
    Ok(caps.iter().any(|cap| place.caps.contains(*cap))
        || arches.iter().any(|name| arch_named(name, place.arch))
        || filter.min_kernel.as_deref().map_or(Ok(false), |text| parse_kernel(text).map(|min| place.kernel >= min))?)
}

fn parse_caps(filter: &Filter) -> Result<Vec<Cap>, String> {
    let names = filter.caps.as_deref().unwrap_or_default();
    names.iter().map(|name| Cap::parse(name).ok_or_else(|| format!("unknown capability {name:?}"))).collect()
}

/// The second dialect names machines as Go does.
fn arch_named(name: &str, arch: Arch) -> bool {
    match arch {
        Arch::X86_64 => matches!(name, "amd64" | "x32" | "x86"),
        Arch::Aarch64 => matches!(name, "arm64" | "arm"),
        Arch::Riscv64 => name == "riscv64",
        Arch::S390x => matches!(name, "s390x" | "s390"),
        Arch::Ppc64le => name == "ppc64le",
        Arch::Loongarch64 => name == "loong64",
    }
}

fn parse_kernel(text: &str) -> Result<(u32, u32), String> {
    let parsed = text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parsed.ok_or_else(|| format!("minKernel {text:?} is not of the form major.minor"))
}
