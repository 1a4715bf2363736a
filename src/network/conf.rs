//! Network configurations: the text of a `.conflist`, or of a single plugin's `.conf`, to a checked [`NetworkList`].

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Map, Value, json};

use super::args::is_identifier;

/// Most plugins in one list; real ones have up to six.
const PLUGINS_MAX: usize = 32;

/// A version of the CNI specification that cricket speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    const ALL: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version that is written so, if cricket speaks it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }

    /// DEL gets the result of ADD since 0.4.0.
    #[must_use]
    pub fn del_has_result(self) -> bool {
        self >= Self::V0_4_0
    }

    /// CHECK exists since 0.4.0.
    #[must_use]
    pub fn has_check(self) -> bool {
        self >= Self::V0_4_0
    }

    /// A request does not repeat the plugin's `capabilities` since 1.0.0 ("Deriving request configuration").
    #[must_use]
    pub fn hides_capabilities(self) -> bool {
        self >= Self::V1_0_0
    }

    /// STATUS and GC exist since 1.1.0.
    #[must_use]
    pub fn has_status_and_gc(self) -> bool {
        self >= Self::V1_1_0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One plugin of a network.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginConf {
    /// The name of the program: one path component (CVE-2021-20206).
    pub kind: String,
    /// The capabilities that are set to true.
    pub capabilities: BTreeSet<String>,
    /// The program that it hands the addresses over to: `ipam.type`.
    pub ipam: Option<String>,
    /// The whole object, as it was written.
    pub object: Map<String, Value>,
}

/// A checked network configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkList {
    pub name: String,
    /// The highest version of the configuration that cricket speaks, or that [`Self::at`] was called with.
    pub version: Version,
    /// All of its versions that cricket speaks, in order; never empty.
    pub offered: Vec<Version>,
    /// CHECK must not be called.
    pub disable_check: bool,
    /// GC must not be called.
    pub disable_gc: bool,
    /// At least one, in the order of ADD.
    pub plugins: Vec<PluginConf>,
    /// The list as JSON with all its plugins in it, as it goes to the result cache.
    pub bytes: Vec<u8>,
}

impl NetworkList {
    /// The same network, spoken of in one of the versions that it offers. What is cached then names no other, so that DEL
    /// speaks the version of ADD whatever plugins are installed meanwhile.
    #[must_use]
    pub fn at(mut self, version: Version) -> Self {
        if self.version != version
            && let Ok(Value::Object(mut object)) = serde_json::from_slice(&self.bytes)
        {
            object.remove("cniVersions");
            object.insert("cniVersion".into(), version.as_str().into());
            self.bytes = Value::Object(object).to_string().into_bytes();
            self.version = version;
        }
        self
    }

    /// The programs that take part, each once: plugins, and those that give them addresses.
    pub fn programs(&self) -> BTreeSet<&str> {
        self.plugins.iter().flat_map(|plugin| [Some(plugin.kind.as_str()), plugin.ipam.as_deref()]).flatten().collect()
    }
}

/// Why a text is no network configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    #[error("not JSON: {0}")]
    Json(serde_json::Error),
    #[error("not a JSON object")]
    NotObject,
    #[error("no {0:?}")]
    Missing(&'static str),
    #[error("{0:?} has the wrong type")]
    WrongType(&'static str),
    #[error("name {0:?}: want letters, digits, _ . and -, starting with a letter or digit")]
    Name(String),
    #[error("cniVersion {0}: cricket speaks 0.3.0 to 1.1.0")]
    Version(String),
    #[error("no plugins")]
    NoPlugins,
    #[error("more than {PLUGINS_MAX} plugins")]
    TooManyPlugins,
    #[error("plugin type {0:?}: want the name of a program, without a path")]
    PluginType(String),
    #[error("plugin {0:?} is its own ipam: it would call itself without end")]
    OwnIpam(String),
    #[error("only the loopback plugin: lo is set up without it")]
    OnlyLoopback,
    #[error("{path}: {source}")]
    PluginFile { path: String, source: Box<ConfError> },
    #[error("cannot be read: {0}")]
    Read(std::io::Error),
    #[error("larger than {0} bytes")]
    TooLarge(u64),
    #[error("not a regular file")]
    NotFile,
}

/// Plugins that are kept in files of their own, in a folder named after the network.
pub type Inlined<'a> = &'a dyn Fn(&str) -> Result<Vec<PluginConf>, ConfError>;

/// Reads a list. `more` gives the plugins that are kept in files beside it.
///
/// # Errors
/// When it is not a legal configuration, or one of a version that cricket does not speak.
pub fn parse_list(bytes: &[u8], more: Inlined<'_>) -> Result<NetworkList, ConfError> {
    let mut object = object(serde_json::from_slice(bytes).map_err(ConfError::Json)?)?;
    let name = name(&object)?;
    let offered = versions(&object)?;
    let disable_check = flag(&object, "disableCheck")?;
    let disable_gc = flag(&object, "disableGC")?;
    let only_inlined = flag(&object, "loadOnlyInlinedPlugins")?;
    let mut plugins = match object.get("plugins") {
        None if only_inlined => return Err(ConfError::Missing("plugins")),
        None => Vec::new(),
        Some(Value::Array(plugins)) if plugins.is_empty() => return Err(ConfError::NoPlugins),
        Some(Value::Array(plugins)) => plugins.iter().map(plugin).collect::<Result<_, _>>()?,
        Some(_) => return Err(ConfError::WrongType("plugins")),
    };
    let mut bytes = bytes.to_vec();
    let outside = if only_inlined { Vec::new() } else { more(&name)? };
    if !outside.is_empty() {
        plugins.extend(outside);
        // What is cached must be whole: on DEL the folder may hold something else.
        let objects = plugins.iter().map(|plugin| Value::Object(plugin.object.clone()));
        object.insert("plugins".into(), objects.collect());
        object.insert("loadOnlyInlinedPlugins".into(), true.into());
        bytes = Value::Object(object).to_string().into_bytes();
    }
    match plugins.len() {
        0 => return Err(ConfError::NoPlugins),
        count if count > PLUGINS_MAX => return Err(ConfError::TooManyPlugins),
        _ => {}
    }
    if plugins.iter().all(|plugin| plugin.kind == "loopback") {
        return Err(ConfError::OnlyLoopback);
    }
    let version = *offered.last().expect("versions() gives at least one");
    Ok(NetworkList { name, version, offered, disable_check, disable_gc, plugins, bytes })
}

/// Reads the configuration of a single plugin, as a list of one.
///
/// # Errors
/// As for [`parse_list`].
pub fn parse_single(bytes: &[u8]) -> Result<NetworkList, ConfError> {
    let object = object(serde_json::from_slice(bytes).map_err(ConfError::Json)?)?;
    if object.contains_key("plugins") && !object.contains_key("type") {
        // A list in a file with the suffix of a single one, which is a common slip.
        return parse_list(bytes, &|_| Ok(Vec::new()));
    }
    let mut list = json!({"name": name(&object)?, "loadOnlyInlinedPlugins": true});
    for key in ["cniVersion", "cniVersions", "disableCheck", "disableGC"] {
        if let Some(value) = object.get(key) {
            list[key] = value.clone();
        }
    }
    list["plugins"] = Value::Array(vec![Value::Object(object)]);
    parse_list(list.to_string().as_bytes(), &|_| Ok(Vec::new()))
}

/// Reads one plugin's object.
///
/// # Errors
/// When its type is no program's name or its capabilities are not booleans.
pub fn plugin(value: &Value) -> Result<PluginConf, ConfError> {
    let object = object(value.clone())?;
    let kind = match object.get("type") {
        Some(Value::String(kind)) => kind.clone(),
        Some(_) => return Err(ConfError::WrongType("type")),
        None => return Err(ConfError::Missing("type")),
    };
    check_program(&kind)?;
    // Plugins start it as we start them, and those that are older than CVE-2021-20206 do not look at its name.
    let ipam = match object.get("ipam").and_then(|ipam| ipam.get("type")) {
        None => None,
        Some(Value::String(ipam)) if ipam.is_empty() => None,
        Some(Value::String(ipam)) => {
            check_program(ipam)?;
            if *ipam == kind {
                return Err(ConfError::OwnIpam(kind));
            }
            Some(ipam.clone())
        }
        Some(_) => return Err(ConfError::WrongType("ipam.type")),
    };
    let mut capabilities = BTreeSet::new();
    match object.get("capabilities") {
        None | Some(Value::Null) => {}
        Some(Value::Object(declared)) => {
            for (capability, on) in declared {
                if on.as_bool().ok_or(ConfError::WrongType("capabilities"))? {
                    capabilities.insert(capability.clone());
                }
            }
        }
        Some(_) => return Err(ConfError::WrongType("capabilities")),
    }
    Ok(PluginConf { kind, capabilities, ipam, object })
}

/// The name of a program is one path component (CVE-2021-20206).
fn check_program(name: &str) -> Result<(), ConfError> {
    let legal = !matches!(name, "" | "." | "..")
        && name.len() <= 255
        && !name.contains(|c: char| matches!(c, '/' | '\\') || c.is_control());
    if legal { Ok(()) } else { Err(ConfError::PluginType(name.chars().take(128).collect())) }
}

fn object(value: Value) -> Result<Map<String, Value>, ConfError> {
    if let Value::Object(object) = value { Ok(object) } else { Err(ConfError::NotObject) }
}

fn name(object: &Map<String, Value>) -> Result<String, ConfError> {
    match object.get("name") {
        None => Err(ConfError::Missing("name")),
        Some(Value::String(name)) if is_identifier(name) => Ok(name.clone()),
        Some(Value::String(name)) => Err(ConfError::Name(name.chars().take(128).collect())),
        Some(_) => Err(ConfError::WrongType("name")),
    }
}

/// Those of `cniVersion` and `cniVersions` that cricket speaks, in order; at least one.
fn versions(object: &Map<String, Value>) -> Result<Vec<Version>, ConfError> {
    let mut offered = Vec::new();
    match object.get("cniVersion") {
        None => {}
        Some(Value::String(version)) => offered.push(version.as_str()),
        Some(_) => return Err(ConfError::WrongType("cniVersion")),
    }
    match object.get("cniVersions") {
        None => {}
        Some(Value::Array(versions)) => {
            for version in versions {
                offered.push(version.as_str().ok_or(ConfError::WrongType("cniVersions"))?);
            }
        }
        Some(_) => return Err(ConfError::WrongType("cniVersions")),
    }
    if offered.is_empty() {
        return Err(ConfError::Missing("cniVersion"));
    }
    let spoken: BTreeSet<Version> = offered.iter().filter_map(|text| Version::parse(text)).collect();
    if spoken.is_empty() {
        return Err(ConfError::Version(offered.join(", ").chars().take(128).collect()));
    }
    Ok(spoken.into_iter().collect())
}

/// A boolean, which may also be written as a string.
fn flag(object: &Map<String, Value>, key: &'static str) -> Result<bool, ConfError> {
    match object.get(key) {
        None => Ok(false),
        Some(Value::Bool(on)) => Ok(*on),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => Err(ConfError::WrongType(key)),
    }
}

#[cfg(test)]
mod tests;
