//! Between rusoto's typed API and the network: here a request gets what the typed API does not know, its address, its
//! signature, and its way over our own HTTP.
//!
//! rusoto builds a request and reads the response; its client is made with `Client::new_not_signing`, so that it
//! neither signs nor opens a connection. For each attempt this file, in this order,
//! 1. makes every PUT of an object create-only (`If-None-Match: *`) and adds a checksum;
//! 2. puts the bucket's name into the host, if the store wants it there;
//! 3. signs (so that a retry is signed anew, with credentials and a date of then);
//! 4. sends, watched by [`super::http`], and hands the response back.
//!
//! rusoto carries failures on this side of the server as text only; [`into_text`] and [`from_text`] take our
//! [`ErrorKind`] through it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use futures::StreamExt;
use futures::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use rusoto_core::request::{DispatchSignedRequestFuture, HttpResponse};
use rusoto_core::signature::{SignedRequest, SignedRequestPayload};
use rusoto_core::{ByteStream, DispatchSignedRequest, HttpDispatchError};

use super::super::{ErrorKind, Result, StoreError};
use super::credentials::Credentials;
use super::http::{Http, PartsBody, next_piece, send, whole};
use super::skew::Skew;

/// Signs and sends.
#[derive(Clone)]
pub struct Dispatcher(Arc<Settings>);

/// What a [`Dispatcher`] is made of.
pub struct Settings {
    /// The connections.
    pub http: Http,
    /// Who signs.
    pub credentials: Arc<Credentials>,
    /// The bucket's name, if it stands in the host.
    pub bucket_in_host: Option<String>,
    /// A CRC32C with every PUT.
    pub checksum: bool,
    /// A SHA-256 over every body.
    pub sign_payload: bool,
    /// PUTs overwrite: the store refuses the condition, and somebody accepted that.
    pub unconditional: bool,
    /// The longest time without progress.
    pub stall_timeout: Duration,
    /// Set once something answered that may be S3.
    pub has_answered: AtomicBool,
    /// Hears what time it is at the store.
    pub skew: Arc<Skew>,
}

impl Dispatcher {
    /// A dispatcher of these settings.
    pub fn new(settings: Settings) -> Dispatcher {
        Dispatcher(Arc::new(settings))
    }
}

impl DispatchSignedRequest for Dispatcher {
    /// rusoto's `timeout` is always `None` from the typed API; the caller limits the whole operation.
    fn dispatch(&self, request: SignedRequest, _timeout: Option<Duration>) -> DispatchSignedRequestFuture {
        let settings = self.0.clone();
        Box::pin(async move { settings.attempt(request).await.map_err(into_text) })
    }
}

impl Settings {
    async fn attempt(&self, mut request: SignedRequest) -> Result<HttpResponse> {
        let body = take_body(&mut request).await?;
        let puts_object = request.method == "PUT" && !request.params.contains_key(RETENTION);
        if puts_object {
            self.make_create_only(&mut request, &body);
        }
        if let Some(bucket) = &self.bucket_in_host {
            move_bucket_to_host(&mut request, bucket);
        }
        let missing = take_missing(&mut request);
        request.payload = self.payload_to_sign(puts_object, &body, missing);
        request.sign(&self.credentials.get().await?);
        let reads_object =
            request.method == "GET" && !DOCUMENTS.iter().any(|param| request.params.contains_key(*param));
        let response = self.send(on_the_wire(&request, PartsBody::that_stops(body, missing))?).await?;
        match reads_object && response.status().is_success() {
            true => Ok(object_to_rusoto(response, self.stall_timeout)),
            false => document_to_rusoto(response, self.stall_timeout).await,
        }
    }

    /// Sends, and if it is not S3 that answers over plain HTTP, finds out whether that is TLS.
    async fn send(&self, request: Request<PartsBody>) -> Result<Response<Incoming>> {
        let uri = request.uri().clone();
        let may_be_tls = uri.scheme_str() == Some("http") && !self.has_answered.load(Ordering::Relaxed);
        let sent = send(&self.http, request, self.stall_timeout).await;
        // Servers of TLS close the connection, or say in a page of their own what is wrong.
        let is_strange = match &sent {
            Ok((response, _)) => response.status() == StatusCode::BAD_REQUEST && !is_of_xml(response),
            Err(error) => error.kind == ErrorKind::Retryable,
        };
        if is_strange && may_be_tls && self.http.speaks_tls(&uri).await {
            let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
            return Err(StoreError::new(
                ErrorKind::Denied,
                format!(
                    "{authority} speaks TLS; if it is https://{authority} that is meant, name it so in store.s3.endpoint"
                ),
            ));
        }
        let (response, _) = sent?;
        self.has_answered.fetch_or(!is_strange, Ordering::Relaxed);
        self.skew.heard(response.headers().get(http::header::DATE).and_then(|date| date.to_str().ok()));
        Ok(response)
    }

    /// Objects are never overwritten.
    fn make_create_only(&self, request: &mut SignedRequest, body: &[Bytes]) {
        if !self.unconditional {
            request.add_header("if-none-match", "*");
        }
        if self.checksum {
            let crc = body.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part));
            request.add_header("x-amz-checksum-crc32c", &BASE64.encode(&crc.to_be_bytes()));
        }
    }

    /// What the signature covers. Small bodies (lists of keys, dates) always; those of objects, which are large, on request.
    fn payload_to_sign(&self, is_object: bool, body: &[Bytes], missing: u64) -> Option<SignedRequestPayload> {
        match is_object && !self.sign_payload {
            true => {
                let len = body.iter().map(Bytes::len).sum::<usize>() + missing as usize;
                // An unread stream of that size makes rusoto sign "UNSIGNED-PAYLOAD" and the length.
                Some(SignedRequestPayload::Stream(ByteStream::new_with_size(stream::empty(), len)))
            }
            false if is_object || !body.is_empty() => Some(SignedRequestPayload::Buffer(Bytes::from(body.concat()))),
            false => None,
        }
    }
}

/// The parts of the request's body, not copied. They are all in memory already.
async fn take_body(request: &mut SignedRequest) -> Result<Vec<Bytes>> {
    match request.payload.take() {
        None => Ok(Vec::new()),
        Some(SignedRequestPayload::Buffer(body)) => Ok(vec![body]),
        Some(SignedRequestPayload::Stream(mut stream)) => {
            let mut parts = Vec::new();
            while let Some(part) = stream.next().await {
                parts.push(part.map_err(|error| StoreError::invalid(format!("the body cannot be read: {error}")))?);
            }
            Ok(parts)
        }
    }
}

/// How many bytes of a PUT are promised and never sent, for the probe of a store: a mark in its metadata, which is taken out.
fn take_missing(request: &mut SignedRequest) -> u64 {
    let header = format!("x-amz-meta-{MISSING}");
    let mark = request.headers().get(&header).and_then(|values| str::from_utf8(values.first()?).ok()?.parse().ok());
    request.remove_header(&header);
    mark.unwrap_or(0)
}

/// The name of the mark; its value is a decimal number.
pub const MISSING: &str = "ashlar-missing";

/// `host/bucket/key` becomes `bucket.host/key`.
fn move_bucket_to_host(request: &mut SignedRequest, bucket: &str) {
    let rest = request.path.strip_prefix('/').and_then(|path| path.strip_prefix(bucket)).unwrap_or_default();
    let path = if rest.is_empty() { "/".to_owned() } else { rest.to_owned() };
    let hostname = format!("{bucket}.{}", request.hostname());
    request.path = path;
    request.set_hostname(Some(hostname));
}

/// The signed request in terms of hyper.
fn on_the_wire(request: &SignedRequest, body: PartsBody) -> Result<Request<PartsBody>> {
    let query = match request.canonical_query_string() {
        "" => String::new(),
        query => format!("?{query}"),
    };
    let uri = format!("{}://{}{}{query}", request.scheme(), request.hostname(), request.canonical_path());
    let build = || -> std::result::Result<Request<PartsBody>, http::Error> {
        let mut headers = HeaderMap::new();
        for (name, values) in request.headers() {
            for value in values {
                let mut value = HeaderValue::from_bytes(value)?;
                value.set_sensitive(matches!(name.as_str(), "authorization" | "x-amz-security-token"));
                headers.append(HeaderName::from_bytes(name.as_bytes())?, value);
            }
        }
        headers.insert(http::header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        let mut built = Request::new(body);
        *built.method_mut() = Method::from_bytes(request.method.as_bytes())?;
        *built.uri_mut() = uri.parse::<Uri>()?;
        *built.headers_mut() = headers;
        Ok(built)
    };
    // Not the cause: it could quote a header.
    build().map_err(|_| StoreError::invalid(format!("{uri} or the credentials hold bytes that HTTP does not permit")))
}

fn is_of_xml(response: &Response<Incoming>) -> bool {
    let kind = response.headers().get(http::header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.contains("xml"))
}

/// The parameters of GETs that are answered with a document and not with an object.
const DOCUMENTS: [&str; 5] = ["list-type", "versions", "versioning", "lifecycle", "object-lock"];

/// The parameter of PUTs that lock an object.
const RETENTION: &str = "retention";

const USER_AGENT: &str = concat!("ashlar/", env!("CARGO_PKG_VERSION"));

/// The headers of responses that we use. rusoto panics on strange values of some others.
const HEADERS: [&str; 5] = ["content-length", "content-range", "etag", "x-amz-bucket-region", "x-amz-version-id"];

/// A listing of 1000 keys of 1 KiB, each byte of them encoded, is shorter.
const DOCUMENT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// An object, in terms of rusoto: piece by piece.
fn object_to_rusoto(response: Response<Incoming>, stall: Duration) -> HttpResponse {
    let (head, body) = response.into_parts();
    let body = stream::unfold(body, move |mut body| async move {
        let piece = next_piece(&mut body, stall).await?;
        Some((piece.map_err(|error| std::io::Error::other(into_text(error))), body))
    });
    to_rusoto(&head, ByteStream::new(body))
}

/// Anything else, in terms of rusoto: read to its end and checked, because rusoto's reader loops for ever on XML that
/// breaks off. Of an error that is no XML only the status is left.
async fn document_to_rusoto(response: Response<Incoming>, stall: Duration) -> Result<HttpResponse> {
    let (head, body) = response.into_parts();
    let mut body = whole(body, stall, DOCUMENT_BYTES_MAX).await?;
    if !body.is_empty() && !is_xml(&body) {
        if head.status.is_success() {
            return Err(StoreError::new(ErrorKind::Retryable, "the answer is no XML; is a proxy in between?"));
        }
        body.clear();
    }
    Ok(to_rusoto(&head, ByteStream::from(body.to_vec())))
}

fn is_xml(body: &[u8]) -> bool {
    xml::EventReader::new(body).into_iter().all(|event| event.is_ok())
}

fn to_rusoto(head: &http::response::Parts, body: ByteStream) -> HttpResponse {
    let mut headers = http02::HeaderMap::default();
    for name in HEADERS {
        let value = head.headers.get(name).and_then(|value| value.to_str().ok());
        if let Some(value) = value.filter(|value| name != "content-length" || value.parse::<i64>().is_ok()) {
            headers.insert(name, value.to_owned());
        }
    }
    let status = http02::StatusCode::from_u16(head.status.as_u16()).unwrap_or(http02::StatusCode::BAD_GATEWAY);
    HttpResponse { status, body, headers }
}

/// Marks of kinds that are not [`ErrorKind::Retryable`].
const MARKS: [(ErrorKind, &str); 2] = [(ErrorKind::Denied, "\u{1}denied "), (ErrorKind::Invalid, "\u{1}invalid ")];

fn into_text(error: StoreError) -> HttpDispatchError {
    let mark = MARKS.iter().find(|(kind, _)| *kind == error.kind).map_or("", |(_, mark)| mark);
    HttpDispatchError::new(format!("{mark}{}", error.message))
}

/// The failure that [`into_text`] took through rusoto, which may have put words around it.
pub fn from_text(text: &str) -> StoreError {
    for (kind, mark) in MARKS {
        if let Some((_, message)) = text.split_once(mark) {
            return StoreError::new(kind, message);
        }
    }
    StoreError::new(ErrorKind::Retryable, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusoto_core::Region;

    #[test]
    fn only_whole_xml_is_xml() {
        let whole = "<?xml version='1.0'?>\n<!-- c --><a b='1'>text<c/><![CDATA[<]]> &amp;</a>\n";
        assert!(is_xml(whole.as_bytes()));
        for bad in ["<a>", "<a><b></a>", "no", "<a>&who;</a>", "<html><br></html>", "<a b=1/>"] {
            assert!(!is_xml(bad.as_bytes()), "{bad}");
        }
        for end in 0..whole.trim_end().len() {
            assert!(!is_xml(&whole.as_bytes()[..end]), "broken off at {end}");
        }
    }

    #[test]
    fn the_bucket_moves_into_the_host() {
        let region = Region::Custom { name: "r".into(), endpoint: "https://s3.example.com:8443".into() };
        for (path, moved) in [("/disks/v/meta/0", "/v/meta/0"), ("/disks", "/"), ("/disks/", "/")] {
            let mut request = SignedRequest::new("GET", "s3", &region, path);
            move_bucket_to_host(&mut request, "disks");
            let (host, path) = (request.hostname(), request.path.as_str());
            assert_eq!((host.as_str(), path), ("disks.s3.example.com:8443", moved));
        }
    }

    #[test]
    fn kinds_survive_the_way_through_rusoto() {
        for kind in [ErrorKind::Denied, ErrorKind::Invalid, ErrorKind::Retryable] {
            let text = into_text(StoreError::new(kind, "a cause")).to_string();
            let back = from_text(&format!("Error obtaining body: {text}"));
            assert_eq!(back.kind, kind);
            assert!(back.message.ends_with("a cause") && !back.message.contains('\u{1}'), "{back:?}");
        }
    }
}
