//! The client's deadline, from the header `grpc-timeout`.
//!
//! tonic keeps to it as well, but answers `Cancelled`, while every client of gRPC expects `DeadlineExceeded` and gets it as
//! long as its own clock is the first to ring. Which one that is would be chance; so this layer, inside of tonic's, rings
//! first and gives the code of the specification (gRPC over HTTP/2, "Timeout"). What the request had begun goes on: it
//! belongs to the daemon.

use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tonic::Status;
use tower::{Layer, Service};

/// Answers `DeadlineExceeded` when the client's time is over.
#[derive(Debug, Clone, Copy)]
pub struct DeadlineLayer;

impl<S> Layer<S> for DeadlineLayer {
    type Service = Punctual<S>;

    fn layer(&self, inner: S) -> Punctual<S> {
        Punctual { inner }
    }
}

/// The service of [`DeadlineLayer`].
#[derive(Debug, Clone)]
pub struct Punctual<S> {
    inner: S,
}

impl<S, B, A> Service<http::Request<B>> for Punctual<S>
where
    S: Service<http::Request<B>, Response = http::Response<A>>,
    S::Future: Send + 'static,
    S::Error: 'static,
    A: Default + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let header = request.headers().get("grpc-timeout").and_then(|value| value.to_str().ok());
        let Some(limit) = header.and_then(parse) else { return self.inner.call(request).boxed() };
        // The clock starts before the call, and so before tonic's, which is around this one.
        let clock = tokio::time::sleep(limit);
        let answer = self.inner.call(request);
        async move {
            tokio::select! {
                biased;
                answer = answer => answer,
                () = clock => Ok(Status::deadline_exceeded(format!("no answer within the {limit:?} that the client gave")).into_http()),
            }
        }
        .boxed()
    }
}

/// At most eight digits and a unit. `None` for anything else, which then is no deadline.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service that never answers.
    #[derive(Debug, Clone)]
    struct Silent;

    impl Service<http::Request<()>> for Silent {
        type Response = http::Response<String>;
        type Error = std::convert::Infallible;
        type Future = std::future::Pending<Result<Self::Response, Self::Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: http::Request<()>) -> Self::Future {
            std::future::pending()
        }
    }

    fn asked(timeout: &str) -> http::Request<()> {
        http::Request::builder().header("grpc-timeout", timeout).body(()).unwrap()
    }

    #[tokio::test]
    async fn the_code_is_that_of_a_deadline() {
        let answer = DeadlineLayer.layer(Silent).call(asked("1m")).await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "4", "DeadlineExceeded");
        assert!(DeadlineLayer.layer(Silent).call(asked("1H")).now_or_never().is_none());
        assert!(DeadlineLayer.layer(Silent).call(asked("soon")).now_or_never().is_none());
    }

    #[test]
    fn timeouts_are_read_as_the_specification_has_them() {
        for (text, millis) in
            [("1H", 3_600_000), ("2M", 120_000), ("30S", 30_000), ("99999999m", 99_999_999), ("1000u", 1)]
        {
            assert_eq!(parse(text), Some(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(parse("0n"), Some(Duration::ZERO));
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "m", "5", "-1S", "+1S", "1 S", "123456789S", "1s", "1é", "é"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
