//! From what a client writes to the image that it means.

use std::sync::Arc;

use super::error::ImageError;
use super::record::ImageRecord;
use super::reference::Reference;
use super::registries::Registries;
use super::table::Snapshot;
use crate::storage::Digest;

/// Candidates named in an error.
const MAX_NAMED: usize = 8;

pub(super) fn find(
    images: &Snapshot,
    registries: &Registries,
    text: &str,
) -> Result<Option<Arc<ImageRecord>>, ImageError> {
    if let Some(rest) = text.strip_prefix("sha256:") {
        return by_prefix(images, rest, text);
    }
    if text.len() == 64 && is_hex(text) {
        return by_prefix(images, text, text);
    }
    // A short name is each of the names that it may be pulled by, in the same order.
    let named = registries.names(text);
    let found = |reference: &Reference| images.by_name.get(&reference.to_string());
    if let Some(id) = named.iter().flatten().find_map(found) {
        return Ok(images.by_id.get(id).cloned());
    }
    // A name wins over the beginning of an id that reads the same.
    if is_hex(text) {
        return by_prefix(images, text, text);
    }
    named?;
    Ok(None)
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn by_prefix(images: &Snapshot, hex: &str, text: &str) -> Result<Option<Arc<ImageRecord>>, ImageError> {
    if !is_hex(hex) {
        // Says in the digest's own words what is wrong.
        return Err(Reference::parse(&format!("x@{text}")).err().map_or(
            ImageError::Ambiguous { prefix: text.chars().take(80).collect(), candidates: Vec::new() },
            ImageError::from,
        ));
    }
    let mut found: Vec<(&Digest, &Arc<ImageRecord>)> =
        images.by_id.iter().filter(|(id, _)| id.hex().starts_with(hex)).take(MAX_NAMED).collect();
    match found.len() {
        0 => Ok(None),
        1 => Ok(found.pop().map(|(_, record)| record.clone())),
        _ => {
            let show = |(id, record): &(&Digest, &Arc<ImageRecord>)| {
                let name = record.repo_tags.first().or(record.repo_digests.first());
                format!("{} ({})", &id.hex()[..12], name.map_or("no name", String::as_str))
            };
            Err(ImageError::Ambiguous { prefix: text.to_owned(), candidates: found.iter().map(show).collect() })
        }
    }
}
