//! Which entry of an index is for this machine.

use serde::Deserialize;

/// The platform of an index entry or an image config, in the words of the OCI image specification (those of Go).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platform {
    /// The machine that cricket runs on.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            "loongarch64" => "loong64",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: host_variant() }
    }

    /// How well an image suits this machine: `None` not at all, else the higher the better.
    ///
    /// A machine runs the images of its own variant and of every lower one; an image without a variant is of the lowest.
    #[must_use]
    pub fn suits(&self, image: &Self) -> Option<u32> {
        if image.os != self.os || image.architecture != self.architecture {
            return None;
        }
        let level = |variant: Option<&str>| match variant {
            None | Some("") => Some(0),
            Some(v) => v.strip_prefix('v').and_then(|n| n.split('.').next()).and_then(|n| n.parse::<u32>().ok()),
        };
        let have = level(self.variant.as_deref())?;
        let want = level(image.variant.as_deref())?;
        (want <= have).then_some(want)
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_deref() {
            Some(variant) if !variant.is_empty() => write!(f, "/{variant}"),
            _ => Ok(()),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn host_variant() -> Option<String> {
    let v2 = std::arch::is_x86_feature_detected!("sse4.2") && std::arch::is_x86_feature_detected!("popcnt");
    let v3 = v2
        && std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("bmi2")
        && std::arch::is_x86_feature_detected!("fma")
        && std::arch::is_x86_feature_detected!("movbe");
    let v4 = v3
        && std::arch::is_x86_feature_detected!("avx512f")
        && std::arch::is_x86_feature_detected!("avx512bw")
        && std::arch::is_x86_feature_detected!("avx512vl");
    Some(
        if v4 {
            "v4"
        } else if v3 {
            "v3"
        } else if v2 {
            "v2"
        } else {
            "v1"
        }
        .to_owned(),
    )
}

#[cfg(not(target_arch = "x86_64"))]
fn host_variant() -> Option<String> {
    match std::env::consts::ARCH {
        "aarch64" => Some("v8".to_owned()),
        "arm" => Some("v7".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        Platform {
            os: parts.next().unwrap_or_default(),
            architecture: parts.next().unwrap_or_default(),
            variant: parts.next(),
        }
    }

    #[test]
    fn a_machine_runs_its_variant_and_lower_ones() {
        for (host, image, want) in [
            ("linux/amd64/v2", "linux/amd64", Some(0)),
            ("linux/amd64/v2", "linux/amd64/v2", Some(2)),
            ("linux/amd64/v2", "linux/amd64/v3", None),
            ("linux/arm64/v8", "linux/arm64/v8", Some(8)),
            ("linux/arm64/v8", "linux/arm64", Some(0)),
            ("linux/arm64/v8", "linux/arm/v7", None),
            ("linux/arm/v7", "linux/arm/v6", Some(6)),
            ("linux/arm/v7", "linux/arm/v8", None),
            ("linux/amd64/v3", "windows/amd64", None),
            ("linux/amd64/v3", "unknown/unknown", None),
            ("linux/s390x", "linux/s390x", Some(0)),
            ("linux/amd64/v3", "linux/amd64/odd", None),
        ] {
            assert_eq!(platform(host).suits(&platform(image)), want, "{image} on {host}");
        }
    }
}
