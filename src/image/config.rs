//! The image config: what an image says about the process to run. All of it is attacker's input.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::document::{ContentError, DOCKER_CONFIG, Descriptor, MAX_CONFIG, MAX_LAYERS, OCI_CONFIG, check_layer, cut};
use super::platform::Platform;
use crate::storage::Digest;

/// What an image's config says about the process to run; empty where it says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `user[:group]`, as written; see [`ImageUser`].
    pub user: String,
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub working_dir: String,
    /// Mount points of anonymous volumes, sorted.
    pub volumes: Vec<String>,
    pub stop_signal: String,
    pub labels: BTreeMap<String, String>,
    /// `port/protocol`, sorted.
    pub exposed_ports: Vec<String>,
}

/// A parsed config file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFile {
    pub config: ImageConfig,
    pub platform: Platform,
    /// RFC 3339 text as written, empty when absent.
    pub created: String,
    pub diff_ids: Vec<Digest>,
}

/// The user part of `USER`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageUser {
    /// Nothing is said: root.
    Unset,
    Uid(u32),
    /// To be looked up in the image's passwd file; never a text of only digits (CVE-2026-46680).
    Name(String),
}

/// A `USER` that no container can be started with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the image's user {0:?} is a number outside 0 to 2147483647")]
pub struct UserError(pub String);

impl ImageUser {
    /// Reads the part of `USER` before the colon. Uids end at 2^31-1, as runtimes take no more (CVE-2024-40635).
    ///
    /// # Errors
    /// [`UserError`] for a number out of range: creating a container must fail, not fall back to a name or to root.
    pub fn parse(user: &str) -> Result<Self, UserError> {
        let name = user.split(':').next().unwrap_or_default();
        if name.is_empty() {
            return Ok(Self::Unset);
        }
        // Signs count as numbers too, so that "-1" and "+0" are refused and never looked up.
        let digits = name.strip_prefix(['-', '+']).unwrap_or(name);
        if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
            let plain = digits.len() == name.len();
            return match name.parse::<u32>() {
                Ok(uid) if plain && i32::try_from(uid).is_ok() => Ok(Self::Uid(uid)),
                _ => Err(UserError(cut(name))),
            };
        }
        Ok(Self::Name(name.to_owned()))
    }
}

#[derive(Deserialize)]
struct RawConfigFile {
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    config: Option<RawConfig>,
    rootfs: Option<RawRootfs>,
}

#[derive(Deserialize)]
struct RawRootfs {
    diff_ids: Option<Vec<Digest>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawConfig {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    volumes: Option<BTreeMap<String, IgnoredAny>>,
    stop_signal: Option<String>,
    labels: Option<BTreeMap<String, Option<String>>>,
    exposed_ports: Option<BTreeMap<String, IgnoredAny>>,
}

/// Reads a config file.
///
/// # Errors
/// [`ContentError`] when it is too large, not a config, or has no list of layers.
pub fn parse(bytes: &[u8]) -> Result<ConfigFile, ContentError> {
    if bytes.len() > MAX_CONFIG {
        return Err(ContentError::TooLarge { what: "the image config", limit: MAX_CONFIG as u64 });
    }
    let json = |reason: String| ContentError::Json { what: "the image config", reason };
    let raw: RawConfigFile = serde_json::from_slice(bytes).map_err(|error| json(error.to_string()))?;
    let diff_ids = raw
        .rootfs
        .and_then(|rootfs| rootfs.diff_ids)
        .ok_or_else(|| json("it has no rootfs.diff_ids; it is an artifact's, not an image's".to_owned()))?;
    if diff_ids.len() > MAX_LAYERS {
        return Err(ContentError::TooManyLayers(diff_ids.len()));
    }
    let inner = raw.config.unwrap_or_default();
    let config = ImageConfig {
        user: inner.user.unwrap_or_default(),
        env: inner.env.unwrap_or_default(),
        entrypoint: inner.entrypoint.unwrap_or_default(),
        cmd: inner.cmd.unwrap_or_default(),
        working_dir: inner.working_dir.unwrap_or_default(),
        volumes: inner.volumes.unwrap_or_default().into_keys().collect(),
        stop_signal: inner.stop_signal.unwrap_or_default(),
        labels: inner.labels.unwrap_or_default().into_iter().map(|(k, v)| (k, v.unwrap_or_default())).collect(),
        exposed_ports: inner.exposed_ports.unwrap_or_default().into_keys().collect(),
    };
    let platform = Platform {
        os: raw.os.unwrap_or_default(),
        architecture: raw.architecture.unwrap_or_default(),
        variant: raw.variant.filter(|variant| !variant.is_empty()),
    };
    Ok(ConfigFile { config, platform, created: raw.created.unwrap_or_default(), diff_ids })
}

/// One layer of an image: what to fetch and what it must become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerPlan {
    pub chain: Digest,
    pub diff_id: Digest,
    /// Of the blob in the registry.
    pub digest: Digest,
    pub size: u64,
    /// Of an artifact: the blob becomes a file of this name, and nothing is unpacked.
    pub file: Option<String>,
}

/// Checks a manifest against its config and this machine, and lists the layers, base first.
///
/// # Errors
/// [`ContentError`] when they do not fit together, or the image is not for this machine.
pub fn plan(
    config: &Descriptor,
    layers: &[Descriptor],
    file: &ConfigFile,
    host: &Platform,
) -> Result<Vec<LayerPlan>, ContentError> {
    check_config_type(&config.media_type)?;
    if layers.len() > MAX_LAYERS {
        return Err(ContentError::TooManyLayers(layers.len()));
    }
    if layers.len() != file.diff_ids.len() {
        return Err(ContentError::LayerCount { diff_ids: file.diff_ids.len(), layers: layers.len() });
    }
    // Old builders left these out; what they do say must fit. The variant is often wrong in configs, so it is not asked.
    let stated = |text: &str, ours: &str| text.is_empty() || text == ours;
    if !stated(&file.platform.os, &host.os) || !stated(&file.platform.architecture, &host.architecture) {
        return Err(ContentError::NoPlatform { host: host.clone(), offered: cut(&file.platform.to_string()) });
    }
    let mut plans = Vec::with_capacity(layers.len());
    for ((layer, diff_id), chain) in layers.iter().zip(&file.diff_ids).zip(Digest::chains(&file.diff_ids)) {
        check_layer(&layer.media_type)?;
        plans.push(LayerPlan {
            chain,
            diff_id: diff_id.clone(),
            digest: layer.digest()?,
            size: layer.size,
            file: None,
        });
    }
    Ok(plans)
}

/// Whether a config is one of a container image, by its media type.
#[must_use]
pub fn is_image_config(media_type: &str) -> bool {
    matches!(media_type, OCI_CONFIG | DOCKER_CONFIG)
}

/// Whether a manifest's config is that of a container image.
///
/// # Errors
/// [`ContentError::Artifact`] when it is something else.
pub fn check_config_type(media_type: &str) -> Result<(), ContentError> {
    if is_image_config(media_type) { Ok(()) } else { Err(ContentError::Artifact(cut(media_type))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_never_a_name() {
        for (text, want) in [
            ("", Ok(ImageUser::Unset)),
            (":5", Ok(ImageUser::Unset)),
            ("0", Ok(ImageUser::Uid(0))),
            ("1003:1004", Ok(ImageUser::Uid(1003))),
            ("www-data:1004", Ok(ImageUser::Name("www-data".into()))),
            ("www-data", Ok(ImageUser::Name("www-data".into()))),
            ("2147483647", Ok(ImageUser::Uid(2_147_483_647))),
            ("2147483648", Err(())),
            ("4294967295", Err(())),
            ("4294967296", Err(())),
            ("99999999999999999999999", Err(())),
            ("-1", Err(())),
            ("+0", Err(())),
            ("0x0", Ok(ImageUser::Name("0x0".into()))),
            ("1e10", Ok(ImageUser::Name("1e10".into()))),
            ("\u{ff11}", Ok(ImageUser::Name("\u{ff11}".into()))),
        ] {
            assert_eq!(ImageUser::parse(text).map_err(|_| ()), want, "{text}");
        }
    }

    #[test]
    fn nulls_are_empty_but_layers_must_be_listed() {
        let good = br#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Cmd":["sh"],"Volumes":{"/v":{}},
            "Labels":null,"Healthcheck":{"Test":["x"]}},"rootfs":{"type":"layers","diff_ids":[]},"history":null}"#;
        let file = parse(good).expect("a config");
        assert_eq!((file.config.cmd, file.config.volumes), (vec!["sh".to_owned()], vec!["/v".to_owned()]));
        for bad in [
            &br#"{"rootfs":{"diff_ids":null}}"#[..],
            br#"{"architecture":"amd64","os":"linux"}"#,
            br#"{"rootfs":{"diff_ids":["sha256:../../x"]}}"#,
            br#"{"rootfs":{"diff_ids":[]},"config":{"Env":"A=b"}}"#,
            br#"{"rootfs":{"diff_ids":[]},"rootfs":{"diff_ids":[]}}"#,
            b"",
        ] {
            assert!(parse(bad).is_err());
        }
    }
}
