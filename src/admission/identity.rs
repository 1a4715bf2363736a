//! Which two requests are about the same thing: the keys of the in-flight tables and of the name reservations.

use std::fmt;

use cri_proto::runtime::v1 as cri;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// One try at one pod. Two requests with the same key are one request and its retry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SandboxKey {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub attempt: u32,
}

impl SandboxKey {
    /// The key of a pod's metadata.
    #[must_use]
    pub fn of(metadata: &cri::PodSandboxMetadata) -> Self {
        Self {
            name: metadata.name.clone(),
            namespace: metadata.namespace.clone(),
            uid: metadata.uid.clone(),
            attempt: metadata.attempt,
        }
    }
}

impl fmt::Display for SandboxKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}_{}_{}", self.name, self.namespace, self.uid, self.attempt)
    }
}

/// One try at one container of a sandbox, which is named by its id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerKey {
    pub sandbox_id: String,
    pub name: String,
    pub attempt: u32,
}

impl ContainerKey {
    /// The key of a container's metadata in a sandbox.
    #[must_use]
    pub fn of(sandbox_id: &str, metadata: &cri::ContainerMetadata) -> Self {
        Self { sandbox_id: sandbox_id.to_owned(), name: metadata.name.clone(), attempt: metadata.attempt }
    }
}

impl fmt::Display for ContainerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{} in {}", self.name, self.attempt, self.sandbox_id)
    }
}

/// The SHA-256 of a config, in hexadecimal: equal for equal configs, whatever the order of their maps. A retry with the
/// same key but another hash is not a retry.
#[must_use]
pub fn config_hash<T: Serialize>(config: &T) -> String {
    let value =
        serde_json::to_value(config).expect("the contract's messages have string keys and no failing serializer");
    let mut hasher = Sha256::new();
    feed(&mut hasher, &value);
    hex::encode(hasher.finalize())
}

/// Every value goes in with a mark of its kind and its length before it, so that no two values feed the same bytes.
fn feed(hasher: &mut Sha256, value: &Value) {
    match value {
        Value::Null => hasher.update(b"z"),
        Value::Bool(bit) => hasher.update(if *bit { b"t" } else { b"f" }),
        Value::Number(number) => text(hasher, b'n', &number.to_string()),
        Value::String(string) => text(hasher, b's', string),
        Value::Array(items) => {
            text(hasher, b'a', &items.len().to_string());
            items.iter().for_each(|item| feed(hasher, item));
        }
        Value::Object(map) => {
            text(hasher, b'o', &map.len().to_string());
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by(|a, b| a.0.cmp(b.0));
            for (key, item) in entries {
                text(hasher, b'k', key);
                feed(hasher, item);
            }
        }
    }
}

fn text(hasher: &mut Sha256, mark: u8, content: &str) {
    hasher.update([mark]);
    hasher.update(u64::try_from(content.len()).unwrap_or(u64::MAX).to_be_bytes());
    hasher.update(content.as_bytes());
}
