//! What the backends share that speak HTTP, and not S3's: one request over the connections of the S3 client (`s3/http.rs`), so TLS, proxies and the watch
//! over stalls are the same, and failures in the words of the backend's own settings.

use std::future::Future;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, Response, header};
use hyper::body::Incoming;

use super::s3::credentials::Environment;
use super::s3::http::{Http, PartsBody, connect, next_piece, send, whole};
use super::s3::options::S3Options;
use super::s3::ranges::{cut, start_of, total_of};
use super::{ErrorKind, Front, Key, Result, StoreError};

/// An answer that is no object is read up to here.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Memory that is set aside for a body before any byte of it has come.
const RESERVE_BYTES_MAX: u64 = 16 << 20;

/// What can be set of connections, and where it is set.
#[derive(Clone, Debug)]
pub struct WebOptions {
    /// The section of the configuration: `webdav` for `store.webdav`.
    pub section: &'static str,
    /// Where somebody says what the endpoint is.
    pub endpoint_key: &'static str,
    /// A file of certificates, and no others.
    pub ca_bundle: Option<PathBuf>,
    /// A connection that is not established by then has failed.
    pub connect_timeout: Duration,
    /// A request has failed if for this long neither side has sent anything.
    pub stall_timeout: Duration,
    /// A request has failed after this long.
    pub request_timeout: Duration,
    /// Connections that are kept open for the next request.
    pub idle_connections_max: usize,
}

/// Connections to one server.
pub struct Web {
    http: Http,
    endpoint: String,
    options: WebOptions,
}

impl Web {
    /// Connections to `endpoint`, `https://host[:port]`. Sends nothing yet.
    pub fn new(options: WebOptions, environment: &Environment, endpoint: &str) -> Result<Web> {
        let of_http = S3Options {
            ca_bundle: options.ca_bundle.clone(),
            connect_timeout: options.connect_timeout,
            idle_connections_max: options.idle_connections_max,
            ..S3Options::default()
        };
        let http = connect(&of_http, environment, endpoint).map_err(|error| in_words(&options, error))?;
        Ok(Web { http, endpoint: endpoint.to_owned(), options })
    }

    /// The connections themselves.
    pub fn http(&self) -> &Http {
        &self.http
    }

    /// Sends one request, and waits for the head of its answer. `asked` says what was asked.
    pub async fn ask(&self, asked: &str, request: Request<PartsBody>) -> Result<Response<Incoming>> {
        let sent = send(&self.http, request, self.options.stall_timeout).await;
        sent.map(|(response, _)| response).map_err(|error| self.unanswered(asked, error))
    }

    /// The whole of an answer that is no object.
    pub async fn read(&self, asked: &str, body: Incoming) -> Result<Bytes> {
        let body = whole(body, self.options.stall_timeout, ANSWER_BYTES_MAX).await;
        body.map(BytesMut::freeze).map_err(|error| self.unanswered(asked, error))
    }

    /// What was asked for of an object, out of a successful answer.
    pub async fn object(
        &self,
        asked: &str,
        key: &Key,
        response: Response<Incoming>,
        range: Option<Range<u64>>,
    ) -> Result<Front> {
        let (head, mut body) = response.into_parts();
        let text = |name| head.headers.get(name).and_then(|value: &header::HeaderValue| value.to_str().ok());
        let expected: Option<u64> = text(header::CONTENT_LENGTH).and_then(|len| len.parse().ok());
        let mut came = BytesMut::with_capacity(expected.unwrap_or(0).min(RESERVE_BYTES_MAX) as usize);
        while let Some(piece) = next_piece(&mut body, self.options.stall_timeout).await {
            came.extend_from_slice(&piece.map_err(|error| self.unanswered(asked, error))?);
        }
        if let Some(expected) = expected.filter(|expected| *expected != came.len() as u64) {
            let message = format!("{} bytes came instead of {expected}", came.len());
            return Err(self.unanswered(asked, StoreError::new(ErrorKind::Retryable, message)));
        }
        let content_range = text(header::CONTENT_RANGE);
        let bytes = cut(key, came.freeze(), content_range.and_then(start_of), range)?;
        Ok(Front { bytes, total: content_range.and_then(total_of) })
    }

    /// Waits for what is one request to the caller, but not for ever.
    pub async fn within<T>(&self, asked: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let limit = self.options.request_timeout;
        match tokio::time::timeout(limit, work).await {
            Ok(done) => done,
            Err(_) => {
                let limit = humantime::format_duration(limit);
                let late = format!("no end after {limit} (store.{}.request_timeout)", self.options.section);
                Err(self.unanswered(asked, StoreError::new(ErrorKind::Retryable, late)))
            }
        }
    }

    /// The failure of a request that never got its answer.
    pub fn unanswered(&self, asked: &str, cause: StoreError) -> StoreError {
        let cause = in_words(&self.options, cause);
        StoreError::new(cause.kind, format!("{asked} got no answer from {}: {}", self.endpoint, cause.message))
    }
}

/// The connections are those of the S3 client, and name its keys; those of others have the same names.
fn in_words(options: &WebOptions, error: StoreError) -> StoreError {
    let words = error.message.replace("store.s3.endpoint", options.endpoint_key);
    let words = words.replace("store.s3.", &format!("store.{}.", options.section)).replace(", AWS_CA_BUNDLE", "");
    StoreError::new(error.kind, words)
}
