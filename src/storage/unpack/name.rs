//! Names in a layer: cleaned as text, before the kernel resolves them.

use std::os::unix::ffi::OsStrExt as _;

/// Longest name of one file that Linux takes.
const MAX_COMPONENT: usize = 255;

/// A path below the layer's root: no leading or doubled slash, no `.`, no `..`. Empty for the root itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::storage) struct CleanName(Vec<u8>);

/// What a name in the archive asks for.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::storage) enum Meaning<'a> {
    /// The entry itself.
    Entry,
    /// Hide this name of the layers below.
    Whiteout(&'a [u8]),
    /// Hide all that the layers below have in the parent directory.
    Opaque,
    /// Bookkeeping of AUFS, without meaning elsewhere.
    Ignored,
}

impl CleanName {
    /// Cleans a name as text. An absolute name is taken as relative to the layer's root.
    ///
    /// # Errors
    /// In words, why a name is refused: it is empty, holds a NUL, climbs above the root, or is too long.
    pub(in crate::storage) fn new(raw: &[u8], longest: usize) -> Result<Self, String> {
        if raw.is_empty() {
            return Err("its name is empty".to_owned());
        }
        if raw.contains(&0) {
            return Err("its name holds a NUL byte".to_owned());
        }
        if raw.len() > longest.saturating_mul(2) {
            return Err(format!("its name is longer than {longest} bytes"));
        }
        let mut clean: Vec<u8> = Vec::with_capacity(raw.len());
        for component in raw.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." if clean.is_empty() => return Err("its name climbs above the layer's root".to_owned()),
                b".." => clean.truncate(clean.iter().rposition(|byte| *byte == b'/').unwrap_or(0)),
                long if long.len() > MAX_COMPONENT => {
                    return Err(format!("a component of its name is longer than {MAX_COMPONENT} bytes"));
                }
                plain => {
                    if !clean.is_empty() {
                        clean.push(b'/');
                    }
                    clean.extend_from_slice(plain);
                }
            }
        }
        if clean.len() > longest { Err(format!("its name is longer than {longest} bytes")) } else { Ok(Self(clean)) }
    }

    pub(in crate::storage) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    pub(in crate::storage) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The parent's path and the last component. The root has neither.
    pub(in crate::storage) fn split(&self) -> (&[u8], &[u8]) {
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&self.0[..slash], &self.0[slash + 1..]),
            None => (b"", &self.0),
        }
    }

    /// Reads the markers that the OCI image specification puts into names.
    ///
    /// # Errors
    /// In words, for a whiteout that hides nothing that could be a name.
    pub(in crate::storage) fn meaning(&self) -> Result<Meaning<'_>, String> {
        let (parent, base) = self.split();
        if parent.split(|byte| *byte == b'/').any(|component| component.starts_with(b".wh..wh.")) {
            return Ok(Meaning::Ignored);
        }
        match base.strip_prefix(b".wh.") {
            None => Ok(Meaning::Entry),
            Some(b".wh..opq") => Ok(Meaning::Opaque),
            Some(rest) if rest.starts_with(b".wh.") => Ok(Meaning::Ignored),
            Some(b"" | b"." | b"..") => Err("it is a whiteout that names no file".to_owned()),
            Some(hidden) => Ok(Meaning::Whiteout(hidden)),
        }
    }
}

/// Bytes as the system calls want them.
pub(in crate::storage) fn os(bytes: &[u8]) -> &std::ffi::OsStr {
    std::ffi::OsStr::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_or_refused() {
        for (raw, want) in [
            ("a/b", "a/b"),
            ("./a//b/", "a/b"),
            ("/etc/passwd", "etc/passwd"),
            ("a/../b", "b"),
            ("a/b/../../c", "c"),
            (".", ""),
            ("./", ""),
            ("/", ""),
            ("a/..", ""),
            ("...", "..."),
        ] {
            assert_eq!(CleanName::new(raw.as_bytes(), 4096).map(|n| n.0), Ok(want.as_bytes().to_vec()), "{raw}");
        }
        let (long, deep) = ("x".repeat(256), "x/".repeat(3000));
        for raw in ["", "..", "../x", "/../x", "a/../../x", "a\0b", &long, &deep] {
            assert!(CleanName::new(raw.as_bytes(), 4096).is_err(), "{raw:?} was taken");
        }
    }

    #[test]
    fn markers_are_read_from_the_last_component() {
        let meaning = |raw: &str| {
            let name = CleanName::new(raw.as_bytes(), 4096).expect("clean");
            name.meaning().map(|meaning| format!("{meaning:?}"))
        };
        assert_eq!(meaning("a/b"), Ok("Entry".to_owned()));
        assert_eq!(meaning("a/.wh.b"), Ok(format!("{:?}", Meaning::Whiteout(b"b"))));
        assert_eq!(meaning("a/.wh..wh..opq"), Ok("Opaque".to_owned()));
        assert_eq!(meaning(".wh..wh.plnk/1.2"), Ok("Ignored".to_owned()));
        assert_eq!(meaning(".wh..wh.aufs"), Ok("Ignored".to_owned()));
        for bad in [".wh.", ".wh..", "d/.wh..."] {
            assert!(meaning(bad).is_err(), "{bad} was taken");
        }
    }
}
