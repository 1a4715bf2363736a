//! Names of CDI devices, and the container annotations that carry them.
//!
//! A fully qualified name is `vendor/class=device`; `vendor/class` is the kind of a spec file.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

/// Annotations of a container whose keys begin so name devices, parted by commas (the form that device plugins used
/// before the CRI had a field).
const ANNOTATION_PREFIX: &str = "cdi.k8s.io/";

/// Most devices that one container may name.
pub const MAX_NAMES: usize = 4096;

/// Longest vendor, class and device name, in bytes: those of a DNS subdomain and of a DNS label.
const MAX_VENDOR: usize = 253;
const MAX_CLASS: usize = 63;
const MAX_DEVICE: usize = 253;

/// A device by its whole name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QualifiedName {
    /// `vendor/class`
    pub kind: String,
    pub device: String,
}

/// Text that names no device, and where it stood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {value:?}: {reason}")]
pub struct NameError {
    pub field: String,
    pub value: String,
    pub reason: &'static str,
}

impl NameError {
    fn new(field: &str, value: &str, reason: &'static str) -> Self {
        Self { field: field.to_owned(), value: value.chars().take(256).collect(), reason }
    }
}

impl fmt::Display for QualifiedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

impl QualifiedName {
    /// Reads a whole name; `field` is only for the error.
    ///
    /// # Errors
    /// [`NameError`] when it is not of the form, or has a character that the CDI specification does not allow.
    pub fn parse(field: &str, text: &str) -> Result<Self, NameError> {
        let parts = text.split_once('=');
        let (kind, device) = parts.ok_or_else(|| NameError::new(field, text, "want vendor/class=device"))?;
        check_kind(kind).map_err(|reason| NameError::new(field, text, reason))?;
        check_device(device).map_err(|reason| NameError::new(field, text, reason))?;
        Ok(Self { kind: kind.to_owned(), device: device.to_owned() })
    }
}

/// The devices that a container names: those of the `CDI_devices` field in order, then those of its own annotations in
/// the order of their keys; each once. The pod's annotations are not looked at (decision 019).
///
/// # Errors
/// [`NameError`], with the field or the annotation, for the first that is no name; and when there are more than
/// [`MAX_NAMES`].
pub fn requested<'a>(
    field: impl Iterator<Item = &'a str>,
    annotations: &HashMap<String, String>,
) -> Result<Vec<QualifiedName>, NameError> {
    let mut names = Vec::new();
    for (index, text) in field.enumerate() {
        names.push(QualifiedName::parse(&format!("config.CDI_devices[{index}]"), text)?);
    }
    let mut keys: Vec<_> = annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION_PREFIX)).collect();
    keys.sort();
    for (key, value) in keys {
        let field = format!("config.annotations[{key:?}]");
        if key.len() == ANNOTATION_PREFIX.len() {
            return Err(NameError::new(&field, value, "the annotation's key has no name after its prefix"));
        }
        for text in value.split(',') {
            names.push(QualifiedName::parse(&field, text)?);
        }
    }
    if names.len() > MAX_NAMES {
        return Err(NameError::new("config.CDI_devices", &names.len().to_string(), "more than 4096 devices"));
    }
    let mut seen = BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    Ok(names)
}

/// The kind of a spec file.
pub(super) fn check_kind(text: &str) -> Result<(), &'static str> {
    let (vendor, class) = text.split_once('/').ok_or("want a kind of the form vendor/class")?;
    if !is_word(vendor, MAX_VENDOR, u8::is_ascii_alphabetic, b"_-.") {
        return Err(
            "the vendor must begin with a letter and end with a letter or digit, with _ - . between, 253 at most",
        );
    }
    if !is_word(class, MAX_CLASS, u8::is_ascii_alphabetic, b"_-.") {
        return Err(
            "the class must begin with a letter and end with a letter or digit, with _ - . between, 63 at most",
        );
    }
    Ok(())
}

/// The name of a device within its kind.
pub(super) fn check_device(text: &str) -> Result<(), &'static str> {
    if is_word(text, MAX_DEVICE, u8::is_ascii_alphanumeric, b"_-.:") {
        Ok(())
    } else {
        Err("the device must begin and end with a letter or digit, with _ - . : between, 253 at most")
    }
}

fn is_word(text: &str, longest: usize, first: fn(&u8) -> bool, inner: &[u8]) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= longest
        && bytes.first().is_some_and(first)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || inner.contains(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(field: &[&str], annotations: &[(&str, &str)]) -> Result<Vec<String>, NameError> {
        let annotations = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let found = requested(field.iter().copied(), &annotations)?;
        Ok(found.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn names_are_taken_apart() {
        for good in ["vendor.com/gpu=0", "v/c=a", "a-b_c.d/e.f-g_h=GPU-1:2", "nvidia.com/gpu=all"] {
            assert_eq!(QualifiedName::parse("x", good).unwrap().to_string(), good);
        }
        for bad in [
            "",
            "gpu",
            "gpu=0",
            "vendor.com/gpu",
            "vendor.com/gpu=",
            "/gpu=0",
            "vendor.com/=0",
            "1vendor/gpu=0",
            "vendor./gpu=0",
            "vendor/1gpu=0",
            "vendor/gpu/x=0",
            "vendor/gpu==0",
            "vendor/gpu=a=b",
            "vendor/gpu=a,b",
            "vendor/gpu=../x",
            "vendor/gpu=-0",
            "vendor/gpu=0\n",
            "vendör/gpu=0",
            " vendor/gpu=0",
        ] {
            let error = QualifiedName::parse("the field", bad).expect_err(bad).to_string();
            assert!(error.contains("the field"), "{error}");
        }
    }

    #[test]
    fn the_field_goes_first_and_nothing_comes_twice() {
        let annotations = [("cdi.k8s.io/b_x", "v/c=2,v/c=0"), ("cdi.k8s.io/a_x", "v/c=3"), ("other", "v/c=9")];
        assert_eq!(names(&["v/c=1", "v/c=0", "v/c=1"], &annotations).unwrap(), ["v/c=1", "v/c=0", "v/c=3", "v/c=2"]);
        assert!(names(&[], &[]).unwrap().is_empty());
    }

    #[test]
    fn what_names_nothing_is_told_with_its_place() {
        for (field, annotations, place) in [
            (&["v/c=0", "x"][..], &[][..], "config.CDI_devices[1]"),
            (&[], &[("cdi.k8s.io/p_d", "v/c=0, v/c=1")], "cdi.k8s.io/p_d"),
            (&[], &[("cdi.k8s.io/p_d", "")], "cdi.k8s.io/p_d"),
            (&[], &[("cdi.k8s.io/", "v/c=0")], "cdi.k8s.io/"),
        ] {
            let error = names(field, annotations).expect_err(place).to_string();
            assert!(error.contains(place), "{error}");
        }
        let many = ["v/c=0"; MAX_NAMES + 1];
        assert!(names(&many, &[]).is_err());
    }
}
