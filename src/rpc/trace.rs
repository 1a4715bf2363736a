//! A span for each request: the method, an operation id that every log line of the request carries, and the caller's W3C
//! trace context when it sent one.

use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tower::{Layer, Service};
use tracing::Instrument as _;

/// Puts each request into its span.
#[derive(Debug, Clone, Copy)]
pub struct TraceLayer;

impl<S> Layer<S> for TraceLayer {
    type Service = Traced<S>;

    fn layer(&self, inner: S) -> Traced<S> {
        Traced { inner }
    }
}

/// The service of [`TraceLayer`].
#[derive(Debug, Clone)]
pub struct Traced<S> {
    inner: S,
}

impl<S, B> Service<http::Request<B>> for Traced<S>
where
    S: Service<http::Request<B>>,
    S::Future: Send + 'static,
    S::Response: 'static,
    S::Error: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let parent = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
        let trace = parent.and_then(crate::telemetry::trace_id);
        let op = crate::telemetry::operation_id();
        let span = match trace {
            Some(trace) => tracing::info_span!("rpc", method, op, trace),
            None => tracing::info_span!("rpc", method, op),
        };
        let future = span.in_scope(|| self.inner.call(request));
        let started = std::time::Instant::now();
        Box::pin(
            async move {
                let result = future.await;
                tracing::debug!(elapsed_us = started.elapsed().as_micros(), "answered");
                result
            }
            .instrument(span),
        )
    }
}
