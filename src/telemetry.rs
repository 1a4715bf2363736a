//! The daemon's own log, the ids that tie its lines together, and what systemd is told.
//!
//! Lines go to standard error, which under systemd is the journal. A request's span carries an [`operation_id`] of ours and,
//! where the client sent one, the trace id of its [`TraceParent`].

mod notify;
mod trace;

use std::io::IsTerminal as _;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

pub use notify::{Notifier, NotifyError};
pub use trace::{TraceParent, operation_id, trace_id};

/// Libraries below HTTP that log every frame, some with the headers in it and so with a registry's tokens. A bare level is
/// about cricket and leaves them at info; who needs them names them.
const QUIET: &[&str] = &["fluke_hpack", "h2", "hyper", "hyper_util", "reqwest", "rustls", "tower"];

/// The shape of the log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

/// Why logging could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("log filter {filter:?} is refused: {why}")]
    Filter { filter: String, why: String },
    #[error("a log was set up already")]
    Twice,
    #[error("the log's filter cannot be changed any more")]
    Gone,
}

/// Changes the filter of a running log.
#[derive(Debug, Clone)]
pub struct FilterHandle(reload::Handle<EnvFilter, Registry>);

impl FilterHandle {
    /// Replaces the filter, from the next line on.
    ///
    /// # Errors
    /// [`TelemetryError::Filter`] for a filter that does not parse (the old one stays), [`TelemetryError::Gone`].
    pub fn set(&self, filter: &str) -> Result<(), TelemetryError> {
        self.0.reload(parse(filter)?).map_err(|_| TelemetryError::Gone)
    }
}

/// Sets up the log of the process: lines on standard error, with RFC 3339 times in UTC.
///
/// # Errors
/// [`TelemetryError::Filter`], or [`TelemetryError::Twice`] when the process has a log already.
pub fn init(format: Format, filter: &str) -> Result<FilterHandle, TelemetryError> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let registry = tracing_subscriber::registry().with(filter);
    let lines = fmt::layer().with_writer(std::io::stderr);
    let done = match format {
        Format::Text => registry.with(lines.with_ansi(std::io::stderr().is_terminal())).try_init(),
        Format::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    done.map_err(|_| TelemetryError::Twice)?;
    Ok(FilterHandle(handle))
}

/// Whether a filter parses: a level, or directives as in `info,cricket::network=debug`.
///
/// # Errors
/// [`TelemetryError::Filter`] saying why it does not.
pub fn check_filter(filter: &str) -> Result<(), TelemetryError> {
    parse(filter).map(|_| ())
}

/// An unknown bare word parses as the name of a target, which would silence the whole log; a lone word must be a level.
fn parse(filter: &str) -> Result<EnvFilter, TelemetryError> {
    let refused = |why: String| TelemetryError::Filter { filter: filter.to_owned(), why };
    let bare = filter.trim();
    if bare.is_empty() {
        return Err(refused("it is empty".to_owned()));
    }
    let is_word = bare.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if is_word && bare.parse::<LevelFilter>().is_err() {
        return Err(refused("error, warn, info, debug, trace, off or directives (target=level) are wanted".to_owned()));
    }
    let is_chatty = bare.parse::<LevelFilter>().is_ok_and(|level| level > LevelFilter::INFO);
    let quiet = if is_chatty { QUIET } else { &[] };
    let directives = quiet.iter().fold(bare.to_owned(), |all, target| format!("{all},{target}=info"));
    EnvFilter::try_new(directives).map_err(|error| refused(error.to_string()))
}

/// An error and its causes on one line, outermost first. A cause that its outer error has spelled out already is not said
/// twice.
#[must_use]
pub fn chain<E: std::error::Error + ?Sized>(error: &E) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let inner = error.to_string();
        if !text.ends_with(&inner) {
            text.push_str(": ");
            text.push_str(&inner);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_levels_or_directives() {
        for good in
            ["error", "warn", "info", "debug", "trace", "off", "INFO", "info,cricket::pod=debug", "cricket[op]=trace"]
        {
            assert!(check_filter(good).is_ok(), "{good:?}");
        }
        for bad in ["", " ", "loud", "warning", "info,=", "cricket=loud"] {
            assert!(check_filter(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_bare_level_is_not_about_the_http_libraries() {
        let enabled = |filter: &str| {
            let log = tracing_subscriber::registry().with(parse(filter).unwrap());
            tracing::subscriber::with_default(log, || {
                let cricket = tracing::enabled!(target: "cricket::pod", tracing::Level::DEBUG);
                (cricket, tracing::enabled!(target: "h2::codec", tracing::Level::DEBUG))
            })
        };
        assert_eq!(enabled("info"), (false, false));
        assert_eq!(enabled("debug"), (true, false));
        assert_eq!(enabled("TRACE"), (true, false));
        assert_eq!(enabled("debug,h2=debug"), (true, true));
    }

    #[test]
    fn a_chain_says_everything_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] Inner);
        #[derive(Debug, thiserror::Error)]
        #[error("inner: {0}")]
        struct Inner(#[source] std::fmt::Error);
        let last = std::fmt::Error.to_string();
        assert_eq!(chain(&Outer(Inner(std::fmt::Error))), format!("outer: inner: {last}"));
    }

    #[test]
    fn the_filter_changes_while_running() {
        let (layer, handle) = reload::Layer::new(parse("warn").unwrap());
        let _log = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
        let handle = FilterHandle(handle);
        assert!(!tracing::enabled!(tracing::Level::DEBUG));
        handle.set("debug").unwrap();
        assert!(tracing::enabled!(tracing::Level::DEBUG));
        handle.set("loud").unwrap_err();
        assert!(tracing::enabled!(tracing::Level::DEBUG), "a refused filter changes nothing");
    }
}
