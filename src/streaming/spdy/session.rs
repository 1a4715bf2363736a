//! The handles of a whole session: to end it, to open streams, to take those of the peer.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::error::SpdyError;
use super::headers::Headers;
use super::stream::{IncomingStream, Stream};
use super::table::{Phase, Table};

/// What the connection's task and the handles share.
#[derive(Debug)]
pub(super) struct Shared {
    table: Mutex<Table>,
    began: Instant,
    /// Milliseconds from `began` to the last byte that came or went.
    active: AtomicU64,
    ended: watch::Sender<bool>,
}

impl Shared {
    pub fn new(table: Table) -> Self {
        let (ended, _) = watch::channel(false);
        Self { table: Mutex::new(table), began: Instant::now(), active: AtomicU64::new(0), ended }
    }

    /// Works on the table, then wakes those who have to know.
    pub fn with<T>(&self, work: impl FnOnce(&mut Table) -> T) -> T {
        let (value, wakes) = {
            let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            let value = work(&mut table);
            (value, table.take_wakes())
        };
        for waker in wakes {
            waker.wake();
        }
        value
    }

    pub fn touch(&self) {
        let millis = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.active.store(millis, Ordering::Relaxed);
    }

    /// The connection's task has ended.
    pub fn end(&self) {
        self.ended.send_replace(true);
    }
}

/// One connection. Dropping it closes it.
#[derive(Debug)]
pub struct Session(pub(super) Arc<Shared>);

impl Session {
    /// Opens a stream and waits for the peer's reply. Dropping the future takes the stream back.
    ///
    /// # Errors
    /// [`SpdyError::Reset`] when the peer refuses it; [`SpdyError::StreamLimit`], [`SpdyError::GoneAway`] or
    /// [`SpdyError::Closed`] when the session takes no more streams.
    pub async fn open<'a>(&self, headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Stream, SpdyError> {
        let headers: Headers = headers.into_iter().collect();
        let id = self.0.with(|table| table.open(headers))?;
        let stream = Stream::new(id, self.0.clone());
        poll_fn(|cx| {
            self.0.with(|table| {
                let over = table.over.is_some();
                let Some(entry) = table.entry(id) else { return Poll::Ready(Err(SpdyError::Closed)) };
                match (entry.broken, &entry.phase) {
                    // A peer that replied may have reset it since; that, and what came before, is for the reader to see.
                    (_, Phase::Open) => Poll::Ready(Ok(())),
                    (Some(broken), _) => Poll::Ready(Err(broken.into_error())),
                    _ if over => Poll::Ready(Err(SpdyError::Closed)),
                    _ => {
                        entry.reader = Some(cx.waker().clone());
                        Poll::Pending
                    }
                }
            })
        })
        .await?;
        Ok(stream)
    }

    /// Ends the session: what finished streams have to send is sent, all others are reset, then comes the GOAWAY. Does not
    /// wait; see [`Session::closed`]. [`super::Limits::stall`] and [`super::Limits::linger`] bound how long it takes.
    pub fn close(&self) {
        self.0.with(Table::close);
    }

    /// Waits until the connection's task has ended and the connection is closed.
    pub async fn closed(&self) {
        // The sender lives in what this handle holds.
        let _ = self.0.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// Why the connection is over; `None` while it lasts.
    pub fn reason(&self) -> Option<Arc<SpdyError>> {
        self.0.with(|table| table.over.clone())
    }

    /// When a byte last came or went, to the millisecond.
    pub fn last_activity(&self) -> Instant {
        self.0.began + Duration::from_millis(self.0.active.load(Ordering::Relaxed))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.close();
    }
}

/// The streams that the peer opens, in order. When it is dropped, further ones are refused.
#[derive(Debug)]
pub struct Incoming(pub(super) Arc<Shared>);

impl Incoming {
    /// Waits for the next stream. `None` when the session is closing or the connection has ended. May be dropped while
    /// it waits without losing a stream.
    pub async fn next(&mut self) -> Option<IncomingStream> {
        poll_fn(|cx| {
            self.0.with(|table| {
                if let Some((id, headers)) = table.take_offered() {
                    return Poll::Ready(Some((id, headers)));
                }
                if table.closing || table.over.is_some() {
                    return Poll::Ready(None);
                }
                table.incoming = Some(cx.waker().clone());
                Poll::Pending
            })
        })
        .await
        .map(|(id, headers)| IncomingStream::new(Stream::new(id, self.0.clone()), headers))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.0.with(Table::deafen);
    }
}
