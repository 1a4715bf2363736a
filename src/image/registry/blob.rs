//! Layers as streams: begun, taken up again where they broke, and under a clock that minds their speed.
//!
//! A blob's content has a digest, so a wrong answer can cost time only. What can be seen early is seen early: the answer to
//! a range must be for that range and of a blob of the right size, and of the same version (`ETag`) as what came before it.

use std::time::Duration;

use reqwest::header::{CONTENT_LENGTH, ETAG, HeaderMap};
use reqwest::{Method, Response, StatusCode};
use tokio::time::Instant;

use super::{Bytes, Patience, Session, from_body_error, header};
use crate::image::document::ContentError;
use crate::image::error::Failure;
use crate::storage::Digest;

/// How far the download of a blob has come, and what the server calls the content.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// Bytes that are through, from the start.
    pub offset: u64,
    /// The strong `ETag` of the answers so far. It means something to the server that gave it only.
    version: Option<String>,
}

impl Progress {
    /// The same bytes, as far as another server is concerned.
    pub fn elsewhere(&mut self) {
        self.version = None;
    }
}

/// A body on its way.
#[derive(Debug)]
pub struct Download {
    response: Response,
    /// Bytes of the body that lie before the offset that was asked for: a server that knows no ranges sends all.
    skip: u64,
    pace: Pace,
}

impl Session {
    /// Starts the download of a blob of `size` bytes, or goes on with it.
    ///
    /// # Errors
    /// [`Failure`] when it is not served, or the answer is not for what was asked.
    pub async fn blob(&self, digest: &Digest, size: u64, progress: &mut Progress) -> Result<Download, Failure> {
        let (path, offset) = (format!("blobs/{digest}"), progress.offset);
        let range = (offset > 0).then(|| format!("bytes={offset}-"));
        let answer = match self.send(Method::GET, &path, None, range.as_deref()).await {
            // Some servers that know no ranges say so in this way.
            Err(Failure::Status { status: 416, .. }) if offset > 0 => self.send(Method::GET, &path, None, None).await,
            answer => answer,
        };
        let response = answer?;
        let skip = if response.status() == StatusCode::PARTIAL_CONTENT {
            check_range(&header(response.headers(), "content-range"), offset, size)?;
            0
        } else {
            check_length(response.headers(), size)?;
            offset
        };
        let version = strong(response.headers());
        if let (Some(before), Some(now)) = (&progress.version, &version)
            && before != now
        {
            return Err(ContentError::Changed { what: "the layer" }.into());
        }
        progress.version = progress.version.take().or(version);
        Ok(Download { response, skip, pace: Pace::default() })
    }

    /// The next bytes that are not known yet; `None` at the end of the body.
    ///
    /// # Errors
    /// [`Failure::Stalled`] when no byte came for a whole progress clock, [`Failure::Slow`] when too few did, and
    /// [`Failure::Connection`].
    pub async fn piece(&self, download: &mut Download) -> Result<Option<Bytes>, Failure> {
        loop {
            let asked = Instant::now();
            let Some(mut piece) = self.chunk(&mut download.response).await? else { return Ok(None) };
            let length = u64::try_from(piece.len()).unwrap_or(u64::MAX);
            download.pace.note(asked.elapsed(), length, self.patience())?;
            let known = download.skip.min(length);
            download.skip -= known;
            piece = piece.slice(usize::try_from(known).unwrap_or(piece.len())..);
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
    }

    /// The next piece of a body under the progress clock; `None` at its end.
    pub(super) async fn chunk(&self, response: &mut Response) -> Result<Option<Bytes>, Failure> {
        match tokio::time::timeout(self.patience().progress, response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(from_body_error(&error)),
            Err(_) => Err(Failure::Stalled { after: self.patience().progress }),
        }
    }
}

/// Measures the speed of a body in windows as long as the progress clock. Only time spent waiting for the network counts:
/// a slow disk makes the download wait for us, which is no fault of the server's.
#[derive(Debug, Default)]
struct Pace {
    waited: Duration,
    got: u64,
}

impl Pace {
    fn note(&mut self, waited: Duration, bytes: u64, patience: &Patience) -> Result<(), Failure> {
        self.waited += waited;
        self.got = self.got.saturating_add(bytes);
        if self.waited < patience.progress {
            return Ok(());
        }
        let Self { waited, got } = std::mem::take(self);
        let least = u128::from(patience.least_rate) * waited.as_millis() / 1000;
        if u128::from(got) < least { Err(Failure::Slow { got, over: waited }) } else { Ok(()) }
    }
}

/// `bytes <from>-<to>/<all or *>`, from where it was asked for and of a blob of the right size (RFC 9110, 14.4).
fn check_range(stated: &str, offset: u64, size: u64) -> Result<(), Failure> {
    let other = || Failure::Connection("it answered with another range than asked for".to_owned());
    let rest = stated.strip_prefix("bytes ").ok_or_else(other)?;
    let (range, all) = rest.split_once('/').ok_or_else(other)?;
    let (from, to) = range.split_once('-').ok_or_else(other)?;
    let (from, to) = (from.parse::<u64>().map_err(|_| other())?, to.parse::<u64>().map_err(|_| other())?);
    if all != "*" {
        let all = all.parse::<u64>().map_err(|_| other())?;
        if all != size {
            return Err(ContentError::Size { what: "the layer", want: size, got: all }.into());
        }
    }
    if from == offset && to >= from && to < size { Ok(()) } else { Err(other()) }
}

/// A whole body that states another length than the manifest need not be read.
fn check_length(headers: &HeaderMap, size: u64) -> Result<(), Failure> {
    let stated = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    match stated {
        Some(got) if got > size => Err(ContentError::Size { what: "the layer", want: size, got }.into()),
        Some(got) if got < size => Err(Failure::Truncated { got, want: size }),
        _ => Ok(()),
    }
}

/// An `ETag` that promises the same bytes; a weak one does not (RFC 9110, 8.8.1).
fn strong(headers: &HeaderMap) -> Option<String> {
    let tag = header(headers, ETAG.as_str());
    (tag.starts_with('"') && tag.len() > 2).then_some(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_the_one_that_was_asked_for() {
        for good in ["bytes 100-999/1000", "bytes 100-500/1000", "bytes 100-999/*"] {
            assert_eq!(check_range(good, 100, 1000), Ok(()), "{good}");
        }
        for bad in [
            "",
            "bytes",
            "bytes */1000",
            "items 100-999/1000",
            "bytes 0-999/1000",
            "bytes 101-999/1000",
            "bytes 100-99/1000",
            "bytes 100-1000/1000",
            "bytes 100-1000/*",
            "bytes 100-x/1000",
            "bytes 100-999/x",
            "bytes -100-999/1000",
            "bytes 100-999/18446744073709551616",
        ] {
            assert!(matches!(check_range(bad, 100, 1000), Err(Failure::Connection(_))), "{bad}");
        }
        let other = check_range("bytes 100-999/1001", 100, 1000);
        assert!(matches!(other, Err(Failure::Content(ContentError::Size { want: 1000, got: 1001, .. }))), "{other:?}");
    }

    #[test]
    fn only_waiting_for_the_network_counts_and_only_whole_windows() {
        let patience = Patience { least_rate: 1000, ..Patience::new(Duration::from_secs(10)) };
        let mut pace = Pace::default();
        // A byte every nine seconds is progress to a clock that knows only bytes.
        assert_eq!(pace.note(Duration::from_secs(9), 1, &patience), Ok(()));
        let slow = pace.note(Duration::from_secs(9), 1, &patience);
        assert_eq!(slow, Err(Failure::Slow { got: 2, over: Duration::from_secs(18) }));
        // Fast enough over the window, however uneven.
        let mut pace = Pace::default();
        assert_eq!(pace.note(Duration::ZERO, 9_000, &patience), Ok(()));
        assert_eq!(pace.note(Duration::from_secs(10), 1_000, &patience), Ok(()));
        // The next window stands for itself.
        assert_eq!(pace.note(Duration::from_secs(9), 0, &patience), Ok(()));
        assert!(pace.note(Duration::from_secs(1), 9_999, &patience).is_err());
        // However long we kept the server waiting.
        let mut pace = Pace::default();
        for _ in 0..1000 {
            assert_eq!(pace.note(Duration::ZERO, 1, &patience), Ok(()));
        }
        let off = Patience { least_rate: 0, ..patience };
        assert_eq!(Pace::default().note(Duration::from_secs(100), 1, &off), Ok(()));
    }

    #[test]
    fn only_strong_tags_name_a_version() {
        let tag = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ETAG, reqwest::header::HeaderValue::from_static(text));
            strong(&headers)
        };
        assert_eq!(tag("\"sha256:00\""), Some("\"sha256:00\"".to_owned()));
        for weak in ["W/\"1\"", "\"\"", "1", ""] {
            assert_eq!(tag(weak), None, "{weak}");
        }
    }
}
