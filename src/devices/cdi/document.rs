//! One CDI spec file: its form (CDI 0.1.0 to 1.1.0, JSON or YAML), read strictly, then checked.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde_json::Value;

use super::edits::{Edits, Hook, HookPoint, Mount, Node, Rdt};
use super::{name, yaml};
use crate::devices::DeviceKind;

/// Released versions of the format, oldest first.
const VERSIONS: [&str; 10] = ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

/// Most entries of one list of a file: devices, or edits of one sort.
const MAX_ENTRIES: usize = 65_536;

/// Linux's `PATH_MAX`; also the bound of every other text of a file.
const MAX_TEXT: usize = 4096;

/// A file that was read and found good.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Document {
    /// `vendor/class`
    pub kind: String,
    /// For whoever gets any of the devices.
    pub edits: Edits,
    pub devices: BTreeMap<String, Edits>,
}

/// Reads a file's text.
///
/// # Errors
/// A sentence that names the field and its value.
pub(super) fn parse(bytes: &[u8], is_yaml: bool) -> Result<Document, String> {
    let raw: RawDocument = if is_yaml {
        let text = std::str::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned())?;
        let value: Value = yaml::parse(text)?;
        serde_json::from_value(value).map_err(|error| error.to_string())?
    } else {
        serde_json::from_slice(bytes).map_err(|error| error.to_string())?
    };
    check(raw)
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawDocument {
    cdi_version: String,
    kind: String,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    devices: Option<Vec<RawDevice>>,
    #[serde(default)]
    container_edits: Option<RawEdits>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawDevice {
    name: String,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    container_edits: Option<RawEdits>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawEdits {
    #[serde(default)]
    env: Option<Vec<String>>,
    #[serde(default)]
    device_nodes: Option<Vec<RawNode>>,
    #[serde(default)]
    net_devices: Option<Vec<RawNetDevice>>,
    #[serde(default)]
    mounts: Option<Vec<RawMount>>,
    #[serde(default)]
    hooks: Option<Vec<RawHook>>,
    #[serde(default, alias = "additionalGIDs")]
    additional_gids: Option<Vec<Int>>,
    #[serde(default)]
    intel_rdt: Option<RawRdt>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawNode {
    path: String,
    host_path: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    major: Option<Int>,
    minor: Option<Int>,
    file_mode: Option<Int>,
    permissions: Option<String>,
    uid: Option<Int>,
    gid: Option<Int>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawNetDevice {
    host_interface_name: String,
    name: String,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawMount {
    host_path: String,
    container_path: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    options: Option<Vec<String>>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawHook {
    hook_name: String,
    path: String,
    args: Option<Vec<String>>,
    env: Option<Vec<String>>,
    timeout: Option<Int>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawRdt {
    #[serde(rename = "closID")]
    clos_id: Option<String>,
    l3_cache_schema: Option<String>,
    mem_bw_schema: Option<String>,
    schemata: Option<Vec<String>>,
    enable_monitoring: Option<Flag>,
    #[serde(rename = "enableCMT")]
    enable_cmt: Option<Flag>,
    #[serde(rename = "enableMBM")]
    enable_mbm: Option<Flag>,
}

/// A number of JSON, or YAML's text of one.
#[derive(Debug, Clone, Copy)]
struct Int(i64);

impl<'de> Deserialize<'de> for Int {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Int;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer")
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Int, E> {
                Ok(Int(value))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Int, E> {
                i64::try_from(value).map(Int).map_err(|_| E::invalid_value(de::Unexpected::Unsigned(value), &self))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Int, E> {
                yaml::integer(text).map(Int).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Number)
    }
}

/// A boolean of JSON, or YAML's text of one.
#[derive(Debug, Clone, Copy)]
struct Flag(bool);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Bool(value) => Ok(Self(value)),
            Value::String(text) if text == "true" => Ok(Self(true)),
            Value::String(text) if text == "false" => Ok(Self(false)),
            other => Err(de::Error::custom(format_args!("{other}: want true or false"))),
        }
    }
}

fn check(raw: RawDocument) -> Result<Document, String> {
    let at = |version: &str| VERSIONS.iter().position(|known| *known == version);
    let stated = at(raw.cdi_version.trim_start_matches('v'))
        .ok_or_else(|| format!("cdiVersion {:?}: want one of {}", shown(&raw.cdi_version), VERSIONS.join(", ")))?;
    let (needed, why) = minimum(&raw);
    if at(needed).is_some_and(|needed| stated < needed) {
        return Err(format!("cdiVersion {:?}: {why} came with {needed}", shown(&raw.cdi_version)));
    }
    let new_monitoring = at("1.1.0").is_some_and(|new| stated >= new);
    if new_monitoring && all_edits(&raw).any(|e| e.intel_rdt.as_ref().is_some_and(RawRdt::has_dropped_flags)) {
        return Err("intelRdt: enableCMT and enableMBM went with 1.1.0; use enableMonitoring".to_owned());
    }
    name::check_kind(&raw.kind).map_err(|reason| format!("kind {:?}: {reason}", shown(&raw.kind)))?;
    let listed = raw.devices.unwrap_or_default();
    if listed.is_empty() || listed.len() > MAX_ENTRIES {
        return Err(format!("devices: {} entries; want 1 to {MAX_ENTRIES}", listed.len()));
    }
    let mut devices = BTreeMap::new();
    for device in listed {
        name::check_device(&device.name).map_err(|reason| format!("device {:?}: {reason}", shown(&device.name)))?;
        let edits = edits(device.container_edits.unwrap_or_default())
            .map_err(|problem| format!("device {:?}: {problem}", device.name))?;
        if edits == Edits::default() {
            return Err(format!("device {:?}: it has no containerEdits", device.name));
        }
        if devices.insert(device.name.clone(), edits).is_some() {
            return Err(format!("device {:?}: it is there twice", device.name));
        }
    }
    Ok(Document { kind: raw.kind, edits: edits(raw.container_edits.unwrap_or_default())?, devices })
}

impl RawRdt {
    fn has_dropped_flags(&self) -> bool {
        self.enable_cmt.is_some() || self.enable_mbm.is_some()
    }
}

fn all_edits(raw: &RawDocument) -> impl Iterator<Item = &RawEdits> {
    let of_devices = raw.devices.iter().flatten().filter_map(|device| device.container_edits.as_ref());
    raw.container_edits.iter().chain(of_devices)
}

/// The version that brought the newest thing in the file: a file that states an older one was written by a program that
/// does not know what it writes, and readers of that version would have ignored the thing.
fn minimum(raw: &RawDocument) -> (&'static str, &'static str) {
    let any = |test: fn(&RawEdits) -> bool| all_edits(raw).any(test);
    let devices = || raw.devices.iter().flatten();
    if any(|e| e.net_devices.is_some()) {
        return ("1.1.0", "netDevices");
    }
    if any(|e| e.intel_rdt.as_ref().is_some_and(|rdt| rdt.schemata.is_some() || rdt.enable_monitoring.is_some())) {
        return ("1.1.0", "intelRdt.schemata and enableMonitoring");
    }
    if any(|e| e.intel_rdt.is_some() || e.additional_gids.is_some()) {
        return ("0.7.0", "intelRdt and additionalGids");
    }
    if raw.annotations.is_some() || devices().any(|device| device.annotations.is_some()) {
        return ("0.6.0", "annotations");
    }
    if raw.kind.split_once('/').is_some_and(|(_, class)| class.contains('.')) {
        return ("0.6.0", "a dot in the class");
    }
    if devices().any(|device| device.name.starts_with(|c: char| c.is_ascii_digit())) {
        return ("0.5.0", "a device name that begins with a digit");
    }
    if any(|e| e.device_nodes.iter().flatten().any(|node| node.host_path.is_some())) {
        return ("0.5.0", "deviceNodes.hostPath");
    }
    if any(|e| e.mounts.iter().flatten().any(|mount| mount.kind.is_some())) {
        return ("0.4.0", "mounts.type");
    }
    (VERSIONS[0], "")
}

fn edits(raw: RawEdits) -> Result<Edits, String> {
    let env = list("env", raw.env)?;
    for entry in &env {
        text("env", entry)?;
        if entry.find('=').is_none_or(|at| at == 0) {
            return Err(format!("env {:?}: want NAME=value", shown(entry)));
        }
    }
    let mut gids = Vec::new();
    for Int(gid) in list("additionalGids", raw.additional_gids)? {
        // The specification ignores 0, which is what a program writes that has none.
        if gid != 0 {
            gids.push(id("additionalGids", gid)?);
        }
    }
    let mut unsupported = Vec::new();
    for device in list("netDevices", raw.net_devices)? {
        text("netDevices.hostInterfaceName", &device.host_interface_name)?;
        text("netDevices.name", &device.name)?;
        unsupported.push("netDevices (OCI runtime specification 1.3)");
    }
    let rdt = raw.intel_rdt.map(|raw| rdt(raw, &mut unsupported)).transpose()?;
    unsupported.dedup();
    Ok(Edits {
        env,
        nodes: list("deviceNodes", raw.device_nodes)?.into_iter().map(node).collect::<Result<_, _>>()?,
        mounts: list("mounts", raw.mounts)?.into_iter().map(mount).collect::<Result<_, _>>()?,
        hooks: list("hooks", raw.hooks)?.into_iter().map(hook).collect::<Result<_, _>>()?,
        additional_gids: gids,
        rdt,
        unsupported,
    })
}

fn list<T>(field: &str, entries: Option<Vec<T>>) -> Result<Vec<T>, String> {
    let entries = entries.unwrap_or_default();
    if entries.len() > MAX_ENTRIES {
        return Err(format!("{field}: {} entries, the limit is {MAX_ENTRIES}", entries.len()));
    }
    Ok(entries)
}

fn node(raw: RawNode) -> Result<Node, String> {
    let kind = match raw.kind.as_deref() {
        None | Some("") => None,
        Some("c" | "u") => Some(DeviceKind::Char),
        Some("b") => Some(DeviceKind::Block),
        Some("p") => Some(DeviceKind::Fifo),
        Some(other) => return Err(format!("deviceNodes.type {:?}: want b, c, u or p", shown(other))),
    };
    let number = |field: &str, value: Option<Int>| value.map(|Int(value)| id(field, value)).transpose();
    let mode = number("deviceNodes.fileMode", raw.file_mode)?;
    if let Some(mode) = mode.filter(|mode| mode & !0o7777 != 0) {
        return Err(format!("deviceNodes.fileMode {mode:#o}: want permission bits alone"));
    }
    let path = container_path("deviceNodes.path", raw.path)?;
    let host_path = match raw.host_path.filter(|path| !path.is_empty()) {
        Some(host) => absolute("deviceNodes.hostPath", host)?,
        None => path.clone(),
    };
    Ok(Node {
        path: path.into(),
        host_path: host_path.into(),
        kind,
        major: number("deviceNodes.major", raw.major)?.filter(|number| *number != 0),
        minor: number("deviceNodes.minor", raw.minor)?,
        mode,
        uid: number("deviceNodes.uid", raw.uid)?,
        gid: number("deviceNodes.gid", raw.gid)?,
        access: permissions(raw.permissions.as_deref().unwrap_or_default())?,
    })
}

fn permissions(text: &str) -> Result<String, String> {
    match text {
        "" => Ok("rwm".to_owned()),
        "none" => Ok(String::new()),
        text if text.chars().all(|c| "rwm".contains(c)) => Ok("rwm".chars().filter(|c| text.contains(*c)).collect()),
        other => Err(format!("deviceNodes.permissions {:?}: want letters of rwm, or none", shown(other))),
    }
}

/// The file is the operator's, so a mount below `/proc` or `/dev` is taken; but none over what a container stands on.
fn mount(raw: RawMount) -> Result<Mount, String> {
    let target = container_path("mounts.containerPath", raw.container_path)?;
    // Without `..`, the path by its parts is the path.
    let clean: PathBuf = Path::new(&target).components().collect();
    if ["/", "/proc", "/sys", "/dev"].iter().any(|system| clean == Path::new(system)) {
        return Err(format!("mounts.containerPath {:?}: nothing can be mounted over it", shown(&target)));
    }
    text("mounts.hostPath", &raw.host_path)?;
    let options = list("mounts.options", raw.options)?;
    for option in &options {
        text("mounts.options", option)?;
    }
    let kind = raw.kind.unwrap_or_default();
    if !kind.is_empty() {
        text("mounts.type", &kind)?;
    }
    Ok(Mount { source: raw.host_path.into(), target: target.into(), kind, options })
}

fn hook(raw: RawHook) -> Result<Hook, String> {
    let point = HookPoint::parse(&raw.hook_name)
        .ok_or_else(|| format!("hooks.hookName {:?}: unknown", shown(&raw.hook_name)))?;
    let (args, env) = (list("hooks.args", raw.args)?, list("hooks.env", raw.env)?);
    for argument in args.iter().filter(|argument| !argument.is_empty()) {
        text("hooks.args", argument)?;
    }
    for entry in &env {
        text("hooks.env", entry)?;
        if entry.find('=').is_none_or(|at| at == 0) {
            return Err(format!("hooks.env {:?}: want NAME=value", shown(entry)));
        }
    }
    let timeout = raw.timeout.map(|Int(seconds)| seconds);
    if let Some(seconds) = timeout.filter(|seconds| *seconds <= 0) {
        return Err(format!("hooks.timeout {seconds}: want more than 0 seconds"));
    }
    Ok(Hook { point, path: absolute("hooks.path", raw.path)?.into(), args, env, timeout })
}

fn rdt(raw: RawRdt, unsupported: &mut Vec<&'static str>) -> Result<Rdt, String> {
    if let Some(class) = raw.clos_id.as_deref() {
        // It becomes the name of a folder of resctrl.
        let legal = !class.is_empty() && class != "." && class != ".." && !class.contains(['/', '\n']);
        if !legal || class.len() > 255 {
            return Err(format!("intelRdt.closID {:?}: not a folder's name", shown(class)));
        }
    }
    for schema in raw.l3_cache_schema.iter().chain(&raw.mem_bw_schema) {
        text("intelRdt", schema)?;
    }
    if raw.schemata.is_some() || raw.enable_monitoring.is_some() {
        unsupported.push("intelRdt.schemata and enableMonitoring (OCI runtime specification 1.3)");
    }
    Ok(Rdt {
        clos_id: raw.clos_id,
        l3_cache_schema: raw.l3_cache_schema,
        mem_bw_schema: raw.mem_bw_schema,
        enable_cmt: raw.enable_cmt.map(|Flag(value)| value),
        enable_mbm: raw.enable_mbm.map(|Flag(value)| value),
    })
}

/// An id, or a device number: 32 bits.
fn id(field: &str, value: i64) -> Result<u32, String> {
    u32::try_from(value).map_err(|_| format!("{field} {value}: want 0 to {}", u32::MAX))
}

fn absolute(field: &str, path: String) -> Result<String, String> {
    text(field, &path)?;
    if path.starts_with('/') { Ok(path) } else { Err(format!("{field} {:?}: want an absolute path", shown(&path))) }
}

fn container_path(field: &str, path: String) -> Result<String, String> {
    let path = absolute(field, path)?;
    if path.split('/').any(|part| part == "..") {
        return Err(format!("{field} {:?}: `..` is not allowed", shown(&path)));
    }
    Ok(path)
}

fn text(field: &str, text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > MAX_TEXT || text.contains('\0') {
        return Err(format!("{field} {:?}: want 1 to {MAX_TEXT} bytes without NUL", shown(text)));
    }
    Ok(())
}

fn shown(text: &str) -> String {
    text.chars().take(128).collect()
}
