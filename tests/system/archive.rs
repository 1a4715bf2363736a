//! Images by hand: honest ones, and ones that lie about their content or try to leave their folder.

use std::io::Write as _;

use sha2::Digest as _;

/// The digest of some bytes, as manifests spell it.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}

/// One entry of a layer, written byte by byte: the names that matter here are those that a tar library refuses.
pub struct Entry<'a> {
    pub kind: tar::EntryType,
    pub name: &'a str,
    pub link: &'a str,
    pub body: &'a [u8],
    pub mode: u32,
    pub owner: (u64, u64),
}

impl<'a> Entry<'a> {
    pub fn file(name: &'a str, body: &'a [u8]) -> Self {
        Self::new(tar::EntryType::Regular, name, "", body)
    }

    pub fn folder(name: &'a str) -> Self {
        Self::new(tar::EntryType::Directory, name, "", b"")
    }

    pub fn symlink(name: &'a str, link: &'a str) -> Self {
        Self::new(tar::EntryType::Symlink, name, link, b"")
    }

    pub fn hardlink(name: &'a str, link: &'a str) -> Self {
        Self::new(tar::EntryType::Link, name, link, b"")
    }

    /// An entry of any kind, root's, with mode 0755.
    pub fn new(kind: tar::EntryType, name: &'a str, link: &'a str, body: &'a [u8]) -> Self {
        Self { kind, name, link, body, mode: 0o755, owner: (0, 0) }
    }

    /// With another mode and owner.
    pub fn owned(mut self, mode: u32, uid: u64, gid: u64) -> Self {
        (self.mode, self.owner) = (mode, (uid, gid));
        self
    }
}

/// A tar archive of these entries, in order.
pub fn tarball(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut archive = Vec::new();
    for entry in entries {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(entry.kind);
        header.set_mode(entry.mode);
        header.set_uid(entry.owner.0);
        header.set_gid(entry.owner.1);
        header.set_mtime(1_700_000_000);
        header.set_size(entry.body.len() as u64);
        let fields = header.as_old_mut();
        fields.name[..entry.name.len()].copy_from_slice(entry.name.as_bytes());
        fields.linkname[..entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header.set_cksum();
        archive.extend_from_slice(header.as_bytes());
        archive.extend_from_slice(entry.body);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

/// Compresses with gzip.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory takes every byte");
    encoder.finish().expect("memory takes every byte")
}

/// An image of one gzip layer. What it states about its blobs may be changed before it is served.
#[derive(Debug, Clone)]
pub struct Image {
    pub config: Vec<u8>,
    pub layer: Vec<u8>,
    /// What the manifest says that the layer's digest is.
    pub layer_digest: String,
    pub layer_size: usize,
    pub config_digest: String,
    /// Bytes of an annotation that blow the manifest up.
    pub padding: usize,
}

impl Image {
    /// An honest image of this tar archive.
    pub fn of(archive: &[u8]) -> Self {
        Self::packed(gzip(archive), &digest(archive))
    }

    /// An image of a compressed layer, whose config states this digest of the unpacked archive.
    pub fn packed(layer: Vec<u8>, diff_id: &str) -> Self {
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = serde_json::json!({
            "architecture": architecture, "os": "linux", "created": "2025-01-01T00:00:00Z",
            "config": {"Cmd": ["/bin/none"]}, "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        });
        let config = config.to_string().into_bytes();
        Self {
            layer_digest: digest(&layer),
            layer_size: layer.len(),
            config_digest: digest(&config),
            config,
            layer,
            padding: 0,
        }
    }

    pub fn manifest_type(&self) -> &'static str {
        "application/vnd.oci.image.manifest.v1+json"
    }

    pub fn manifest(&self) -> Vec<u8> {
        let mut manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": self.manifest_type(),
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": self.config_digest,
                "size": self.config.len()},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": self.layer_digest,
                "size": self.layer_size}],
        });
        if self.padding > 0 {
            manifest["annotations"] = serde_json::json!({"org.example.padding": "p".repeat(self.padding)});
        }
        manifest.to_string().into_bytes()
    }

    /// The blobs, each under the digest that the manifest states.
    pub fn blobs(&self) -> [(String, Vec<u8>); 2] {
        [(self.config_digest.clone(), self.config.clone()), (self.layer_digest.clone(), self.layer.clone())]
    }
}
