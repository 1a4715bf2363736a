//! What refers to a manifest (OCI distribution specification 1.1, "Listing Referrers"), by the API or, at a registry that has
//! none, by the index under the tag that clients keep instead of it.

use reqwest::header::{CONTENT_TYPE, HeaderMap, LINK};

use super::{MAX_HEADER, Session, header};
use crate::image::document::{self, Descriptor, Document, MAX_MANIFEST, OCI_INDEX};
use crate::image::error::Failure;
use crate::image::reference::Version;
use crate::storage::Digest;

/// Most pages of a list that are read.
const MAX_PAGES: usize = 16;
/// Most referrers of one manifest: those after them are not looked at.
const MAX_REFERRERS: usize = 4096;

impl Session {
    /// The manifests whose subject a digest is. None is no failure.
    ///
    /// # Errors
    /// [`Failure`] when the registry does not answer, or not with a list.
    pub async fn referrers(&self, digest: &Digest) -> Result<Vec<Descriptor>, Failure> {
        let mut path = format!("referrers/{digest}");
        let mut all = Vec::new();
        for _ in 0..MAX_PAGES {
            let (headers, bytes) = match self.fetch(&path, Some(OCI_INDEX), "the list of referrers", MAX_MANIFEST).await
            {
                Ok(answer) => answer,
                // A registry without the API answers so to its first page, each in its own way.
                Err(Failure::NotFound(_) | Failure::Status { status: 400..=499 | 501, .. }) if all.is_empty() => {
                    return self.tagged_referrers(digest).await;
                }
                Err(failure) => return Err(failure),
            };
            let kind = header(&headers, CONTENT_TYPE.as_str());
            // A page for people, say, at an address that this registry does not know.
            if all.is_empty() && kind.split(';').next().map(str::trim) != Some(OCI_INDEX) {
                return self.tagged_referrers(digest).await;
            }
            let Document::Index(entries) = document::parse(&bytes, &kind)? else { return Ok(all) };
            all.extend(entries);
            all.truncate(MAX_REFERRERS);
            match next_page(&headers) {
                Some(query) if all.len() < MAX_REFERRERS => path = format!("referrers/{digest}?{query}"),
                _ => break,
            }
        }
        Ok(all)
    }

    async fn tagged_referrers(&self, digest: &Digest) -> Result<Vec<Descriptor>, Failure> {
        let fetched = match self.manifest(&Version::Tag(format!("sha256-{}", digest.hex()))).await {
            Ok(fetched) => fetched,
            Err(Failure::NotFound(_)) => return Ok(Vec::new()),
            Err(failure) => return Err(failure),
        };
        match document::parse(&fetched.bytes, &fetched.media_type)? {
            Document::Index(entries) => Ok(entries.into_iter().take(MAX_REFERRERS).collect()),
            Document::Manifest { .. } => Ok(Vec::new()),
        }
    }
}

/// The query of the next page. Nothing else is taken from the link: who is asked, and for what, is ours to say.
fn next_page(headers: &HeaderMap) -> Option<String> {
    let link = headers.get(LINK)?.to_str().ok().filter(|link| link.len() <= MAX_HEADER)?;
    let (target, params) = link.trim().strip_prefix('<')?.split_once('>')?;
    let next = params.split(';').any(|param| matches!(param.trim(), "rel=\"next\"" | "rel=next"));
    let (_, query) = target.split_once('?').filter(|_| next)?;
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'#' | b'?');
    query.bytes().all(plain).then(|| query.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_query_of_a_link_counts() {
        let next = |link: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(LINK, link.parse().ok()?);
            next_page(&headers)
        };
        assert_eq!(next("</v2/a/referrers/x?n=1&last=y>; rel=\"next\""), Some("n=1&last=y".into()));
        assert_eq!(next("<http://evil.lan/x?n=1>;rel=next"), Some("n=1".into()));
        for odd in
            ["", "</x?n=1>", "</x>; rel=\"next\"", "</x?n=1>; rel=\"prev\"", "/x?n=1; rel=next", "</x?a b>; rel=next"]
        {
            assert_eq!(next(odd), None, "{odd}");
        }
    }
}
