//! How the mount that holds a source propagates, read from the text of `/proc/self/mountinfo`.

use std::path::Path;

/// Whether a mount passes its mounts on (shared), takes them (slave), or neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourcePropagation {
    Private,
    Slave,
    /// Shared, or shared and slave.
    Shared,
}

impl SourcePropagation {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Slave => "slave",
            Self::Shared => "shared",
        }
    }
}

/// The propagation of the mount that holds `path` (absolute, links resolved): the last one among those with the longest
/// mount point that leads to it. `None` when no line does.
#[must_use]
pub fn propagation_of(mountinfo: &str, path: &Path) -> Option<SourcePropagation> {
    let mut best: Option<(usize, SourcePropagation)> = None;
    for line in mountinfo.lines() {
        // id parent major:minor root mount-point options [optional…] - type source super-options
        let mut fields = line.split(' ');
        let Some(point) = fields.nth(4).map(unescape) else { continue };
        if !path.starts_with(&point) || best.is_some_and(|(length, _)| point.len() < length) {
            continue;
        }
        let optional = fields.skip(1).take_while(|field| *field != "-");
        let propagation = optional.fold(SourcePropagation::Private, |found, field| match found {
            SourcePropagation::Shared => found,
            _ if field.starts_with("shared:") => SourcePropagation::Shared,
            _ if field.starts_with("master:") => SourcePropagation::Slave,
            _ => found,
        });
        best = Some((point.len(), propagation));
    }
    best.map(|(_, propagation)| propagation)
}

/// The kernel writes blank, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(field.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
20 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
21 20 0:20 / /mnt rw - tmpfs tmpfs rw
22 21 0:21 / /mnt/a\\040b rw,nosuid master:7 propagate_from:2 - tmpfs tmpfs rw
23 20 0:22 / /over rw - tmpfs tmpfs rw
24 23 0:23 / /over rw shared:9 master:3 - tmpfs tmpfs rw
broken";

    #[test]
    fn the_nearest_and_topmost_mount_counts() {
        let cases = [
            ("/", SourcePropagation::Shared),
            ("/home", SourcePropagation::Shared),
            ("/mntx", SourcePropagation::Shared),
            ("/mnt", SourcePropagation::Private),
            ("/mnt/c", SourcePropagation::Private),
            ("/mnt/a b/c", SourcePropagation::Slave),
            ("/over/x", SourcePropagation::Shared),
        ];
        for (path, want) in cases {
            assert_eq!(propagation_of(TABLE, Path::new(path)), Some(want), "{path}");
        }
        assert_eq!(propagation_of("", Path::new("/")), None);
    }
}
