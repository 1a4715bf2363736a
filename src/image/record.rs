//! What is known of one image, and how the CRI shows it.

use std::collections::BTreeSet;

use cri_proto::runtime::v1::{Image, ImageSpec, Int64Value};
use serde::{Deserialize, Serialize};

use super::config::{ImageConfig, ImageUser};
use crate::storage::Digest;

/// One image, or an artifact. Its id is the digest of its config, whatever names lead to it; an artifact, whose config means
/// nothing and may be that of many, has that of its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRecord {
    pub id: Digest,
    /// Full names `registry/path:tag`, sorted.
    pub repo_tags: Vec<String>,
    /// Full names `registry/path@digest` as pulled (an index's digest when pulled through one), sorted.
    pub repo_digests: Vec<String>,
    /// Bytes on disk: unpacked layers and documents. Never 0.
    pub size: u64,
    /// The kubelet is to leave it alone.
    pub pinned: bool,
    /// Layers as chain ids, base first; empty for an image without layers.
    pub chain: Vec<Digest>,
    /// Of the manifest for this machine.
    pub manifest: Digest,
    /// Manifests and indexes that led here, all kept verbatim.
    pub documents: BTreeSet<Digest>,
    pub config: ImageConfig,
    pub architecture: String,
    pub os: String,
    /// RFC 3339 text as the image has it; empty when it says nothing.
    pub created: String,
}

impl ImageRecord {
    /// Whether it is files to be mounted, and no container can be made of it.
    #[must_use]
    pub fn is_artifact(&self) -> bool {
        self.id == self.manifest
    }

    /// The CRI's message. A user that is a number out of range gives neither uid nor name: the kubelet then takes the
    /// image for one of root, and creating a container refuses it.
    #[must_use]
    pub fn to_cri(&self) -> Image {
        let (uid, username) = match ImageUser::parse(&self.config.user) {
            Ok(ImageUser::Uid(uid)) => (Some(Int64Value { value: i64::from(uid) }), String::new()),
            Ok(ImageUser::Name(name)) => (None, name),
            Ok(ImageUser::Unset) | Err(_) => (None, String::new()),
        };
        Image {
            id: self.id.to_string(),
            repo_tags: self.repo_tags.clone(),
            repo_digests: self.repo_digests.clone(),
            size: self.size,
            uid,
            username,
            spec: Some(ImageSpec::default()),
            pinned: self.pinned,
        }
    }
}

impl From<&ImageRecord> for Image {
    fn from(record: &ImageRecord) -> Self {
        record.to_cri()
    }
}

/// What the database holds of an image; the rest is in its config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredRecord {
    pub manifest: Digest,
    pub documents: BTreeSet<Digest>,
    pub chain: Vec<Digest>,
    pub repo_tags: BTreeSet<String>,
    pub repo_digests: BTreeSet<String>,
    pub size: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_user(user: &str) -> Image {
        ImageRecord {
            id: Digest::of(b"config"),
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            size: 1,
            pinned: false,
            chain: Vec::new(),
            manifest: Digest::of(b"manifest"),
            documents: BTreeSet::new(),
            config: ImageConfig { user: user.into(), ..ImageConfig::default() },
            architecture: "amd64".into(),
            os: "linux".into(),
            created: String::new(),
        }
        .to_cri()
    }

    #[test]
    fn a_uid_or_a_username_is_shown() {
        for (user, uid, name) in [
            ("", None, ""),
            ("0", Some(0), ""),
            ("1002", Some(1002), ""),
            ("1003:1004", Some(1003), ""),
            ("www-data", None, "www-data"),
            ("www-data:1004", None, "www-data"),
            ("4294967296", None, ""),
        ] {
            let image = with_user(user);
            assert_eq!((image.uid.map(|v| v.value), image.username.as_str()), (uid, name), "{user}");
        }
    }
}
