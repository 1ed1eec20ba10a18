//! Bodies of requests from pods, with a limit of size and of time.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::header,
};
use futures::StreamExt;

/// A request that is too large is read to its end, and thrown away, as far as this many times the
/// limit: a client that still writes when the connection is closed loses the answer that says why.
const PATIENCE: usize = 4;
/// One that waits for the answer before it sends a body that is announced as too large gets it after
/// this time.
const LINGER: Duration = Duration::from_secs(1);

/// Why a body was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    TooLarge,
    TooSlow,
    /// The connection broke off.
    Broken,
}

/// The body of a request, if it has at most `limit` bytes and is there `within` that time.
///
/// # Errors
///
/// What was wrong with it.
pub async fn read(request: Request, limit: usize, within: Duration) -> Result<Bytes, Unread> {
    let told = request.headers().get(header::CONTENT_LENGTH);
    let told = told.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let announced = told.is_some_and(|told| limit < told);
    let (within, late) =
        if announced { (LINGER, Unread::TooLarge) } else { (within, Unread::TooSlow) };
    let read = take(request.into_body(), told, limit);
    tokio::time::timeout(within, read).await.unwrap_or(Err(late))
}

async fn take(body: Body, told: Option<usize>, limit: usize) -> Result<Bytes, Unread> {
    let patience = limit.saturating_mul(PATIENCE);
    if told.is_some_and(|told| patience < told) {
        return Err(Unread::TooLarge);
    }
    let too_large = |seen: usize| limit < seen || told.is_some_and(|told| limit < told);
    let (mut parts, mut seen) = (Vec::new(), 0_usize);
    let mut stream = body.into_data_stream();
    while let Some(part) = stream.next().await {
        let Ok(part) = part else {
            return Err(if too_large(seen) { Unread::TooLarge } else { Unread::Broken });
        };
        seen = seen.saturating_add(part.len());
        if patience < seen {
            return Err(Unread::TooLarge);
        }
        if too_large(seen) {
            parts.clear();
        } else {
            parts.push(part);
        }
    }
    if too_large(seen) {
        return Err(Unread::TooLarge);
    }
    Ok(Bytes::from(parts.concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 8;

    async fn read_parts(
        parts: &[&'static str],
        told: Option<&str>,
    ) -> (Result<Bytes, Unread>, usize) {
        let taken = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = taken.clone();
        let parts: Vec<&'static str> = parts.to_vec();
        let stream = futures::stream::iter(parts).map(move |part| {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok::<_, std::io::Error>(part)
        });
        let mut request = Request::new(Body::from_stream(stream));
        if let Some(told) = told {
            request.headers_mut().insert(header::CONTENT_LENGTH, told.parse().expect("a number"));
        }
        let read = read(request, LIMIT, Duration::from_secs(5)).await;
        (read, taken.load(std::sync::atomic::Ordering::Relaxed))
    }

    #[tokio::test]
    async fn a_body_at_the_limit_is_whole() {
        let (read, _) = read_parts(&["1234", "5678"], Some("8")).await;
        assert_eq!(read, Ok(Bytes::from_static(b"12345678")));
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_read_to_its_end_before_it_is_refused() {
        for told in [Some("9"), None] {
            let (read, taken) = read_parts(&["1234", "5678", "9"], told).await;
            assert_eq!((read, taken), (Err(Unread::TooLarge), 3), "{told:?}");
        }
    }

    #[tokio::test]
    async fn nobody_reads_an_endless_body() {
        let (read, taken) = read_parts(&["12345678"; 100], None).await;
        assert_eq!((read, taken), (Err(Unread::TooLarge), PATIENCE + 1));
        let (read, taken) = read_parts(&["12345678"; 100], Some("800")).await;
        assert_eq!((read, taken), (Err(Unread::TooLarge), 0));
    }
}
