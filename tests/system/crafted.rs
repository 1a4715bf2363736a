//! Images for one case: the test image with another layer on top and another configuration, imported without a registry.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::archive::{Entry, digest, gzip, tarball};
use crate::node::Node;
use crate::requests::BUSYBOX;
use crate::world::top;

/// Blobs larger than the ones of the test image are not expected here.
const LAYOUT: &str = "critest/images/out/layout";

/// A variant of the busybox test image.
#[derive(Default)]
pub struct Crafted<'a> {
    /// Entries of a layer on top.
    pub layer: Vec<Entry<'a>>,
    /// Keys of the image's `config` object that are replaced.
    pub config: Value,
}

impl<'a> Crafted<'a> {
    /// The test image with these entries over it.
    pub fn with(layer: Vec<Entry<'a>>) -> Self {
        Self { layer, config: json!({}) }
    }

    /// The test image with another configuration.
    pub fn configured(config: Value) -> Self {
        Self { layer: Vec::new(), config }
    }

    /// Changes keys of the configuration.
    pub fn and(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    /// Imports it as `localhost/<name>:latest` into the daemon of the node, and returns that name.
    ///
    /// The refusal of an import is an error with the daemon's words.
    pub async fn import(&self, node: &Node, name: &str) -> Result<String> {
        let folder = node.path(&format!("layouts/{name}"));
        self.write(&folder, name)?;
        let socket = node.path("state/cricket.sock");
        let (socket, folder) = (socket.to_string_lossy().into_owned(), folder.to_string_lossy().into_owned());
        let args = ["image", "--socket", &socket, "import", &folder];
        let done = node.world.run(env!("CARGO_BIN_EXE_cricket"), &args).await?;
        ensure!(done.status.success(), "import of {name}: {}", done.stderr.trim());
        Ok(format!("localhost/{name}:latest"))
    }

    fn write(&self, folder: &Path, name: &str) -> Result<()> {
        let blobs = folder.join("blobs/sha256");
        std::fs::create_dir_all(&blobs)?;
        let put = |bytes: &[u8]| -> Result<(String, usize)> {
            let digest = digest(bytes);
            std::fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes)?;
            Ok((digest, bytes.len()))
        };
        let base = Base::read()?;
        let mut layers = Vec::new();
        for (kind, bytes) in &base.layers {
            let (digest, size) = put(bytes)?;
            layers.push(json!({"mediaType": kind, "digest": digest, "size": size}));
        }
        let mut config = base.config;
        if !self.layer.is_empty() {
            let archive = tarball(&self.layer);
            let (digest_of_layer, size) = put(&gzip(&archive))?;
            let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
            layers.push(json!({"mediaType": kind, "digest": digest_of_layer, "size": size}));
            let ids = config["rootfs"]["diff_ids"].as_array_mut().context("diff_ids of the test image")?;
            ids.push(digest(&archive).into());
        }
        // Every image is one of its own, whatever else is equal.
        config["config"]["Env"] = json!(["PATH=/bin:/sbin", format!("CRAFTED={name}")]);
        if let Some(history) = config.as_object_mut() {
            history.remove("history");
        }
        for (key, value) in self.config.as_object().into_iter().flatten() {
            config["config"][key] = value.clone();
        }
        let (config_digest, config_size) = put(config.to_string().as_bytes())?;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config_size},
            "layers": layers,
        });
        let (manifest_digest, manifest_size) = put(manifest.to_string().as_bytes())?;
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest_digest, "size": manifest_size,
            "annotations": {"org.opencontainers.image.ref.name": format!("localhost/{name}:latest")},
        }]});
        std::fs::write(folder.join("index.json"), index.to_string())?;
        std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#)?;
        Ok(())
    }
}

/// The test image's parts.
struct Base {
    config: Value,
    /// Media type, in OCI's words, and bytes.
    layers: Vec<(String, Vec<u8>)>,
}

impl Base {
    fn read() -> Result<Self> {
        let layout = top().join(LAYOUT);
        let blob = |digest: &Value| -> Result<Vec<u8>> {
            let hex = digest.as_str().and_then(|text| text.strip_prefix("sha256:")).context("a digest")?;
            let path = layout.join("blobs/sha256").join(hex);
            std::fs::read(&path).with_context(|| format!("{}: run make images first", path.display()))
        };
        let object = |bytes: Vec<u8>| -> Result<Value> { Ok(serde_json::from_slice(&bytes)?) };
        let index = object(std::fs::read(layout.join("index.json")).context("run make images first")?)?;
        let named = |entry: &&Value| entry["annotations"]["io.containerd.image.name"] == BUSYBOX;
        let entry = index["manifests"].as_array().into_iter().flatten().find(named).context("no busybox")?;
        let mut manifest = object(blob(&entry["digest"])?)?;
        if let Some(platforms) = manifest["manifests"].as_array() {
            let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
            let own = |entry: &&Value| entry["platform"]["architecture"] == architecture;
            manifest = object(blob(&platforms.iter().find(own).context("no platform of ours")?["digest"])?)?;
        }
        let mut layers = Vec::new();
        for layer in manifest["layers"].as_array().into_iter().flatten() {
            let kind = layer["mediaType"].as_str().unwrap_or_default();
            let packing = match kind.rsplit(['.', '+']).next() {
                Some("gzip") => "+gzip",
                Some("zstd") => "+zstd",
                _ => "",
            };
            layers.push((format!("application/vnd.oci.image.layer.v1.tar{packing}"), blob(&layer["digest"])?));
        }
        Ok(Self { config: object(blob(&manifest["config"]["digest"])?)?, layers })
    }
}
