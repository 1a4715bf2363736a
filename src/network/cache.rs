//! The cache of results, in the place and the format of libcni, so that other tools find what cricket attached.
//!
//! An entry is written before ADD, without a result: whatever happens then, the configuration that DEL must be called with
//! is on the disk. It gets its result after ADD and goes after a DEL that succeeded.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::args::{Args, INTERFACE};

const KIND: &str = "cniCacheV1";
/// Largest entry that is read, in bytes: a configuration and a result of 1 MiB each, in base64 and with their names.
const ENTRY_MAX: u64 = 4 * 1024 * 1024;

/// One attachment, as libcni writes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub kind: String,
    pub container_id: String,
    /// The configuration that ADD was called with.
    #[serde(with = "base64_bytes")]
    pub config: Vec<u8>,
    pub if_name: String,
    pub network_name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub netns: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cni_args: Option<Args>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capability_args: Option<Map<String, Value>>,
    /// The result of the last plugin; missing until ADD succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Map<String, Value>>,
}

impl Entry {
    /// An entry for an attachment that is about to be made.
    #[must_use]
    pub fn new(container_id: &str, network: &str, config: Vec<u8>) -> Self {
        Self {
            kind: KIND.to_owned(),
            container_id: container_id.to_owned(),
            config,
            if_name: INTERFACE.to_owned(),
            network_name: network.to_owned(),
            netns: String::new(),
            cni_args: None,
            capability_args: None,
            result: None,
        }
    }
}

mod base64_bytes {
    //! Go writes a byte slice as base64.
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        BASE64_STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Why an entry could not be written, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("{}: the CNI result cache cannot be made", dir.display())]
    MakeDir { dir: PathBuf, source: io::Error },
    #[error("{}: the CNI result cache cannot be listed", dir.display())]
    List { dir: PathBuf, source: io::Error },
    #[error("{}: the CNI result cannot be written", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{}: the cached CNI result cannot be removed", path.display())]
    Remove { path: PathBuf, source: io::Error },
}

/// The cache. All methods block on the disk.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
    results: PathBuf,
}

impl Cache {
    #[must_use]
    pub fn new(cache_dir: &Path) -> Self {
        Self { root: cache_dir.to_owned(), results: cache_dir.join("results") }
    }

    /// Writes an entry over the one that may be there. The names in it must have been checked: they make the file's name.
    ///
    /// # Errors
    /// When the disk refuses; the former entry is then untouched.
    pub fn write(&self, entry: &Entry) -> Result<(), CacheError> {
        let make_dir = |source| CacheError::MakeDir { dir: self.results.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&self.results).map_err(make_dir)?;
        let name = file_name(&entry.network_name, &entry.container_id);
        let path = self.results.join(&name);
        let text = serde_json::to_vec(entry).expect("an entry is JSON: its maps have string keys");
        // Beside the results, where no reader takes the unfinished file for an entry.
        let unfinished = self.root.join(format!(".{name}.tmp"));
        let write = |source| CacheError::Write { path: path.clone(), source };
        let written = write_file(&unfinished, &text).and_then(|()| std::fs::rename(&unfinished, &path));
        written.map_err(|source| {
            // The write's error is the one that matters.
            let _ = std::fs::remove_file(&unfinished);
            write(source)
        })
    }

    /// The entries of a container's main interface; more than one when the network's name changed in between. Damaged
    /// ones are passed by: DEL does without.
    ///
    /// # Errors
    /// When the folder cannot be read. A missing one is empty.
    pub fn of_container(&self, container_id: &str) -> Result<Vec<Entry>, CacheError> {
        let end = format!("-{container_id}-{INTERFACE}");
        let mut found = self.list(|name| name.ends_with(&end))?;
        // Another id may end in this one.
        found.retain(|entry| entry.container_id == container_id);
        Ok(found)
    }

    /// All entries of a network's main interfaces.
    ///
    /// # Errors
    /// As for [`Self::of_container`].
    pub fn of_network(&self, network: &str) -> Result<Vec<Entry>, CacheError> {
        let start = format!("{network}-");
        let mut found = self.list(|name| name.starts_with(&start))?;
        found.retain(|entry| entry.network_name == network);
        Ok(found)
    }

    fn list(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<Entry>, CacheError> {
        let list = |source| CacheError::List { dir: self.results.clone(), source };
        let files = match std::fs::read_dir(&self.results) {
            Ok(files) => files,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(list(source)),
        };
        let mut found = Vec::new();
        for file in files {
            let name = file.map_err(list)?.file_name();
            let Some(name) = name.to_str().filter(|name| wanted(name)) else { continue };
            // The names inside must be the file's: they lead to the file that is removed.
            let entry = read_file(&self.results.join(name));
            found.extend(entry.filter(|entry| file_name(&entry.network_name, &entry.container_id) == name));
        }
        found.sort_by(|a, b| (&a.network_name, &a.container_id).cmp(&(&b.network_name, &b.container_id)));
        Ok(found)
    }

    /// Removes an entry; fine when it is gone.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn remove(&self, network: &str, container_id: &str) -> Result<(), CacheError> {
        let path = self.path(network, container_id);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(CacheError::Remove { path, source }),
            _ => Ok(()),
        }
    }

    /// The file of an entry.
    #[must_use]
    pub fn path(&self, network: &str, container_id: &str) -> PathBuf {
        self.results.join(file_name(network, container_id))
    }
}

fn file_name(network: &str, container_id: &str) -> String {
    format!("{network}-{container_id}-{INTERFACE}")
}

fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)
}

/// `None` when the file is no entry that can be used.
fn read_file(path: &Path) -> Option<Entry> {
    let file = std::fs::File::open(path).ok()?;
    let mut bytes = Vec::new();
    file.take(ENTRY_MAX).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice::<Entry>(&bytes).ok().filter(|entry| entry.kind == KIND)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn entries_have_the_form_of_libcni() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        let mut entry = Entry::new("abc", "pods", b"{}".to_vec());
        entry.netns = "/run/ns/abc/net".into();
        entry.cni_args = Some(vec![("IgnoreUnknown".into(), "1".into())]);
        entry.capability_args = json!({"dns": {"servers": ["10.0.0.1"]}}).as_object().cloned();
        entry.result = json!({"cniVersion": "1.0.0"}).as_object().cloned();
        cache.write(&entry).unwrap();
        let text = std::fs::read(dir.path().join("results/pods-abc-eth0")).unwrap();
        assert_eq!(
            serde_json::from_slice::<Value>(&text).unwrap(),
            json!({
                "kind": "cniCacheV1", "containerId": "abc", "config": "e30=", "ifName": "eth0", "networkName": "pods",
                "netns": "/run/ns/abc/net", "cniArgs": [["IgnoreUnknown", "1"]],
                "capabilityArgs": {"dns": {"servers": ["10.0.0.1"]}}, "result": {"cniVersion": "1.0.0"},
            })
        );
        assert_eq!(cache.of_container("abc").unwrap(), [entry]);
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["results"]);
    }

    #[test]
    fn entries_are_found_by_container_and_by_network() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        assert!(cache.of_container("abc").unwrap().is_empty());
        for (id, network) in [("abc", "pods"), ("abc", "old-pods"), ("x-abc", "pods"), ("def", "pods-abc")] {
            cache.write(&Entry::new(id, network, Vec::new())).unwrap();
        }
        std::fs::write(cache.path("torn", "abc"), "{").unwrap();
        std::fs::write(cache.path("foreign", "abc"), "{\"ips\": []}").unwrap();
        let lying = serde_json::to_vec(&Entry::new("abc", "..", Vec::new())).unwrap();
        std::fs::write(cache.path("lying", "abc"), lying).unwrap();
        let networks: Vec<_> = cache.of_container("abc").unwrap().into_iter().map(|entry| entry.network_name).collect();
        assert_eq!(networks, ["old-pods", "pods"]);
        let ids: Vec<_> = cache.of_network("pods").unwrap().into_iter().map(|entry| entry.container_id).collect();
        assert_eq!(ids, ["abc", "x-abc"]);
        for network in ["pods", "old-pods"] {
            cache.remove(network, "abc").unwrap();
            cache.remove(network, "abc").unwrap();
        }
        assert!(cache.of_container("abc").unwrap().is_empty());
    }
}
