//! An S3 server for tests, over any [`Store`] of ours: `s3s` reads the protocol and checks signatures, the store below
//! makes create-only PUTs atomic. It is also the design's claim made real that a directory and a bucket served over
//! that directory are the same store.
//!
//! It can misbehave: overwrite although asked not to (as Garage does), answer with any status and code, refuse batch
//! deletes, send no S3 at all, or fall silent in the middle.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use ashlar::store::{ErrorKind, Key, ObjectEntry, Store, StoreError, list_all};
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::auth::{S3Auth, SecretKey};
use s3s::dto::*;
use s3s::host::SingleDomain;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A running server; it stops when this is dropped.
pub struct S3Server {
    pub address: SocketAddr,
    pub bucket: String,
    pub access_key: String,
    pub secret_key: String,
    pub behaviour: Arc<Mutex<Behaviour>>,
    accepting: JoinHandle<()>,
}

/// What the server does wrong.
#[derive(Debug, Default)]
pub struct Behaviour {
    /// Overwrites although the request says `If-None-Match: *`.
    pub overwrites: bool,
    /// Every PUT with `If-None-Match` is answered with this.
    pub refuses_condition: Option<(u16, &'static str)>,
    /// Every batch delete is answered with this.
    pub batch_answer: Option<(u16, &'static str)>,
    /// The next requests of that HTTP method are answered so, one entry each, whatever they ask.
    pub answers: VecDeque<(&'static str, Misanswer)>,
    /// Keys that a listing shows besides those of the store, as if somebody else kept things in the bucket.
    pub foreign_keys: Vec<String>,
    /// Requests so far: method and path with query.
    pub requests: Vec<(String, String)>,
    /// The last PUT's headers that this project sets.
    pub put_headers: Vec<(String, String)>,
}

/// A wrong answer.
#[derive(Clone, Copy, Debug)]
pub enum Misanswer {
    /// An error of S3.
    Error(u16, &'static str),
    /// As a proxy would: a status and a page.
    Page(u16),
    /// Success, with this body.
    Xml(&'static str),
    /// Does what was asked, and answers with an error all the same.
    ErrorAfter(u16, &'static str),
    /// Never answers.
    Silence,
    /// Says that more bytes come than do, then falls silent.
    HalfABody,
    /// Closes the connection without an answer.
    Close,
}

impl S3Server {
    /// Serves `store` as the one bucket `disks` on a free port of the loopback.
    pub async fn start(store: Arc<dyn Store>) -> S3Server {
        S3Server::start_at("127.0.0.1:0".parse().unwrap(), "disks", "test-access", "test-secret", store).await.unwrap()
    }

    /// Serves `store` as the one bucket of that name.
    pub async fn start_at(
        address: SocketAddr,
        bucket: &str,
        access_key: &str,
        secret_key: &str,
        store: Arc<dyn Store>,
    ) -> std::io::Result<S3Server> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let behaviour: Arc<Mutex<Behaviour>> = Arc::default();
        let objects = Bucket { name: bucket.to_owned(), store, behaviour: behaviour.clone() };
        let mut builder = S3ServiceBuilder::new(objects);
        builder.set_auth(OneKey { access: access_key.to_owned(), secret: SecretKey::from(secret_key) });
        // Requests to `BUCKET.localhost:PORT` are of the virtual-host style, those to the address of the path style.
        builder.set_host(SingleDomain::new(&format!("localhost:{}", address.port())).unwrap());
        let accepting = tokio::spawn(accept(listener, builder.build(), behaviour.clone()));
        Ok(S3Server {
            address,
            bucket: bucket.to_owned(),
            access_key: access_key.to_owned(),
            secret_key: secret_key.to_owned(),
            behaviour,
            accepting,
        })
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next request of that method is answered so.
    pub fn answer_next(&self, method: &'static str, answer: Misanswer) {
        self.behaviour.lock().answers.push_back((method, answer));
    }

    /// How many requests of that method came.
    pub fn count(&self, method: &str) -> usize {
        self.behaviour.lock().requests.iter().filter(|(asked, _)| asked == method).count()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, service: S3Service, behaviour: Arc<Mutex<Behaviour>>) {
    let mut connections = tokio::task::JoinSet::new(); // aborted with this task
    while let Ok((socket, _)) = listener.accept().await {
        let _ = socket.set_nodelay(true);
        let (service, behaviour) = (service.clone(), behaviour.clone());
        connections.spawn(async move {
            let answer = service_fn(move |request| answer(service.clone(), behaviour.clone(), request));
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), answer).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

/// One pair of keys; any other is unknown, in Amazon's words.
struct OneKey {
    access: String,
    secret: SecretKey,
}

#[async_trait::async_trait]
impl S3Auth for OneKey {
    async fn get_secret_key(&self, access: &str) -> S3Result<SecretKey> {
        match access == self.access {
            true => Ok(self.secret.clone()),
            false => Err(s3_error!(InvalidAccessKeyId, "The access key id does not exist in our records.")),
        }
    }
}

type Answer = http::Response<UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>>;

async fn answer(
    service: S3Service,
    behaviour: Arc<Mutex<Behaviour>>,
    request: http::Request<Incoming>,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    let misanswer = {
        let mut behaviour = behaviour.lock();
        behaviour.requests.push((request.method().to_string(), request.uri().to_string()));
        if request.method() == "PUT" {
            let wanted = ["if-none-match", "x-amz-checksum-crc32c", "x-amz-content-sha256", "content-length", "host"];
            let header = |name: &str| Some((name.to_owned(), request.headers().get(name)?.to_str().ok()?.to_owned()));
            behaviour.put_headers = wanted.into_iter().filter_map(header).collect();
        }
        if request.headers().contains_key("if-none-match")
            && let Some((status, code)) = behaviour.refuses_condition
        {
            behaviour.answers.push_front(("PUT", Misanswer::Error(status, code)));
        }
        let place = behaviour.answers.iter().position(|(method, _)| *method == request.method().as_str());
        place.and_then(|place| behaviour.answers.remove(place)).map(|(_, misanswer)| misanswer)
    };
    match misanswer {
        None => serve(service, request).await,
        Some(Misanswer::Error(status, code)) => {
            drain(request).await;
            Ok(error(status, code))
        }
        Some(Misanswer::ErrorAfter(status, code)) => {
            serve(service, request).await?;
            Ok(error(status, code))
        }
        Some(Misanswer::Page(status)) => {
            drain(request).await;
            Ok(page(status, "text/html", "<html><body>Not here.<br></body></html>".into()))
        }
        Some(Misanswer::Xml(body)) => {
            drain(request).await;
            Ok(page(200, "application/xml", body.into()))
        }
        Some(Misanswer::Silence) => std::future::pending().await,
        Some(Misanswer::HalfABody) => {
            drain(request).await;
            let half = futures::stream::iter([Ok(hyper::body::Frame::data(Bytes::from_static(b"half")))]);
            let half = futures::StreamExt::chain(half, futures::stream::pending());
            let body = http_body_util::StreamBody::new(half);
            let response = http::Response::builder().header("content-length", "8").body(UnsyncBoxBody::new(body));
            Ok(response.unwrap())
        }
        Some(Misanswer::Close) => Err("closed on purpose".into()),
    }
}

async fn serve(
    service: S3Service,
    request: http::Request<Incoming>,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    let response = service.call(request.map(s3s::Body::from)).await.map_err(|error| format!("{error:?}"))?;
    Ok(response.map(UnsyncBoxBody::new))
}

async fn drain(request: http::Request<Incoming>) {
    let _ = request.into_body().collect().await;
}

fn error(status: u16, code: &str) -> Answer {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>on purpose</Message></Error>");
    page(status, "application/xml", body)
}

fn page(status: u16, kind: &str, body: String) -> Answer {
    let body = Full::new(Bytes::from(body)).map_err(|never: Infallible| match never {});
    http::Response::builder().status(status).header("content-type", kind).body(UnsyncBoxBody::new(body)).unwrap()
}

/// The S3 operations that ashlar (and a curious `aws s3 ls`) uses, over a store.
struct Bucket {
    name: String,
    store: Arc<dyn Store>,
    behaviour: Arc<Mutex<Behaviour>>,
}

impl Bucket {
    fn check(&self, bucket: &str) -> S3Result<()> {
        if bucket == self.name { Ok(()) } else { Err(s3_error!(NoSuchBucket, "The specified bucket does not exist")) }
    }

    fn key(&self, bucket: &str, key: &str) -> S3Result<Key> {
        self.check(bucket)?;
        Key::new(key).map_err(|_| s3_error!(NoSuchKey, "The specified key does not exist."))
    }

    async fn entries(&self, prefix: &str) -> S3Result<Vec<(String, u64)>> {
        let entries: Vec<ObjectEntry> = list_all(self.store.as_ref(), prefix).await.map_err(failed)?;
        let ours = entries.into_iter().map(|entry| (entry.key.to_string(), entry.size));
        let foreign = self.behaviour.lock().foreign_keys.clone();
        let foreign = foreign.into_iter().filter(|key| key.starts_with(prefix)).map(|key| (key, 1));
        let mut all: Vec<(String, u64)> = ours.chain(foreign).collect();
        all.sort_unstable();
        Ok(all)
    }
}

fn failed(error: StoreError) -> S3Error {
    let code = match error.kind {
        ErrorKind::NotFound => S3ErrorCode::NoSuchKey,
        ErrorKind::AlreadyExists => S3ErrorCode::PreconditionFailed,
        ErrorKind::Retryable => S3ErrorCode::SlowDown,
        ErrorKind::Denied => S3ErrorCode::AccessDenied,
        ErrorKind::Invalid => S3ErrorCode::InvalidArgument,
    };
    S3Error::with_message(code, error.message)
}

#[async_trait::async_trait]
impl S3 for Bucket {
    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        let key = self.key(&input.bucket, &input.key)?;
        let body: BytesMut = match input.body {
            Some(body) => body.try_collect().await.map_err(|_| s3_error!(IncompleteBody))?,
            None => BytesMut::new(),
        };
        if let Some(sum) = input.checksum_crc32c {
            let found = crc32c::crc32c(&body).to_be_bytes();
            if decode_base64(&sum) != found {
                return Err(s3_error!(BadDigest));
            }
        }
        let create_only = input.if_none_match.is_some_and(|condition| condition.is_any());
        if !create_only || self.behaviour.lock().overwrites {
            self.store.delete(std::slice::from_ref(&key)).await.map_err(failed)?;
        }
        self.store.put(&key, vec![body.freeze()]).await.map_err(failed)?;
        Ok(S3Response::new(PutObjectOutput { e_tag: Some(ETag::Strong("x".into())), ..PutObjectOutput::default() }))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        let key = self.key(&input.bucket, &input.key)?;
        let (body, content_range) = match input.range {
            None => (self.store.get(&key).await.map_err(failed)?, None),
            Some(Range::Int { first, last }) => {
                let end = last.map_or(u64::MAX, |last| last.saturating_add(1));
                let body = self.store.get_range(&key, first..end).await.map_err(failed)?;
                if body.is_empty() {
                    return Err(s3_error!(InvalidRange));
                }
                let last = first + body.len() as u64 - 1;
                (body, Some(format!("bytes {first}-{last}/*")))
            }
            Some(Range::Suffix { .. }) => return Err(s3_error!(NotImplemented)),
        };
        Ok(S3Response::new(GetObjectOutput {
            content_length: Some(body.len() as i64),
            body: Some(StreamingBlob::from(s3s::Body::from(body))),
            content_range,
            ..GetObjectOutput::default()
        }))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let key = self.key(&request.input.bucket, &request.input.key)?;
        let len = self.store.get(&key).await.map_err(failed)?.len();
        Ok(S3Response::new(HeadObjectOutput { content_length: Some(len as i64), ..HeadObjectOutput::default() }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        self.check(&input.bucket)?;
        let prefix = input.prefix.clone().unwrap_or_default();
        let after = input.continuation_token.clone().or(input.start_after.clone()).unwrap_or_default();
        let limit = input.max_keys.unwrap_or(1000).clamp(0, 1000) as usize;
        let encodes = input.encoding_type.is_some();
        let shown = |path: &str| match encodes {
            true => utf8_percent_encode(path, URL_ENCODED).to_string(),
            false => path.to_owned(),
        };
        let mut output = ListObjectsV2Output {
            encoding_type: input.encoding_type.clone(),
            is_truncated: Some(false),
            ..ListObjectsV2Output::default()
        };
        let (mut contents, mut prefixes, mut last): (Vec<Object>, Vec<CommonPrefix>, String) = Default::default();
        for (path, size) in self.entries(&prefix).await? {
            let end = input.delimiter.as_deref().and_then(|delimiter| path[prefix.len()..].find(delimiter));
            let summed = end.map(|end| path[..=prefix.len() + end].to_owned());
            let name = summed.clone().unwrap_or(path);
            if name <= after || name == last {
                continue;
            }
            if contents.len() + prefixes.len() == limit {
                output.is_truncated = Some(true);
                output.next_continuation_token = Some(last.clone());
                break;
            }
            match summed {
                Some(_) => prefixes.push(CommonPrefix { prefix: Some(shown(&name)) }),
                None => contents.push(Object { key: Some(shown(&name)), size: Some(size as i64), ..Object::default() }),
            }
            last = name;
        }
        output.contents = Some(contents);
        output.common_prefixes = Some(prefixes);
        Ok(S3Response::new(output))
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        let key = self.key(&request.input.bucket, &request.input.key)?;
        self.store.delete(&[key]).await.map_err(failed)?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let input = request.input;
        self.check(&input.bucket)?;
        if let Some((status, code)) = self.behaviour.lock().batch_answer {
            let mut error = S3Error::new(S3ErrorCode::Custom(code.into()));
            error.set_status_code(http::StatusCode::from_u16(status).unwrap());
            return Err(error);
        }
        let keys: Vec<Key> = input.delete.objects.iter().filter_map(|object| Key::new(&object.key).ok()).collect();
        self.store.delete(&keys).await.map_err(failed)?;
        Ok(S3Response::new(DeleteObjectsOutput::default()))
    }
}

/// As Amazon does it, but for `/`, which some servers encode too.
const URL_ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The 4 bytes of a CRC out of their 8 characters of base64.
fn decode_base64(text: &str) -> [u8; 4] {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let bits = text.bytes().take(6).fold(0u64, |bits, c| bits << 6 | u64::from(digit(c)));
    ((bits >> 4) as u32).to_be_bytes()
}
