//! An S3 server for tests, over any [`Store`] of ours: `s3s` reads the protocol and checks signatures, the store below
//! makes create-only PUTs atomic. It is also the design's claim made real that a directory and a bucket served over
//! that directory are the same store.
//!
//! It can misbehave: overwrite although asked not to (as Garage does), answer with any status and code, refuse batch
//! deletes, send no S3 at all, or fall silent in the middle.

use std::collections::{BTreeMap, VecDeque};
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
    /// Keeps old versions, as a bucket with versioning does.
    pub keeps_versions: bool,
    /// All versions, by key, the oldest first: id, and content unless it is a marker.
    pub versions: BTreeMap<String, Vec<(String, Option<Bytes>)>>,
    /// A listing of versions has at most so many on a page.
    pub versions_page: Option<usize>,
    /// A listing of versions leaves out the first that stands behind a marker without a version, as moto's does.
    pub loses_first_version: bool,
    /// Versions made so far, for their ids.
    pub versions_made: u64,
    /// Keys that showed older content after something was deleted.
    pub undead: Vec<String>,
    /// Keys that a listing shows besides those of the store, as if somebody else kept things in the bucket.
    pub foreign_keys: Vec<String>,
    /// Requests so far: method and path with query.
    pub requests: Vec<(String, String)>,
    /// The bucket has object lock: what was locked, with the mode and until when.
    pub locks: Option<BTreeMap<String, (String, String)>>,
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

impl Bucket {
    /// Deletes an object, or with `version` that version of it, after which an older one may show again.
    async fn remove(&self, key: &Key, version: Option<&str>) -> S3Result<()> {
        let keeps_versions = self.behaviour.lock().keeps_versions;
        if keeps_versions && version.is_none() {
            self.behaviour.lock().keep(key.as_str(), None);
        }
        self.store.delete(std::slice::from_ref(key)).await.map_err(failed)?;
        let Some(version) = version else { return Ok(()) };
        let shows = {
            let mut behaviour = self.behaviour.lock();
            let history = behaviour.versions.entry(key.to_string()).or_default();
            let newest = history.last().map(|(id, _)| id.clone());
            history.retain(|(id, _)| id != version);
            let shows = history.last().and_then(|(_, content)| content.clone());
            if newest.as_deref() == Some(version) && shows.is_some() {
                behaviour.undead.push(key.to_string());
            }
            if behaviour.versions[key.as_str()].is_empty() {
                behaviour.versions.remove(key.as_str());
            }
            shows
        };
        match shows {
            Some(content) => self.store.put(key, vec![content]).await.map_err(failed),
            None => Ok(()),
        }
    }
}

impl Behaviour {
    /// A new version, if they are kept; its id.
    fn keep(&mut self, path: &str, content: Option<Bytes>) -> Option<String> {
        if !self.keeps_versions {
            return None;
        }
        self.versions_made += 1;
        let id = format!("id-{}", self.versions_made);
        self.versions.entry(path.to_owned()).or_default().push((id.clone(), content));
        Some(id)
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
            if data_encoding::BASE64.decode(sum.as_bytes()).ok().as_deref() != Some(&found[..]) {
                return Err(s3_error!(BadDigest));
            }
        }
        let create_only = input.if_none_match.is_some_and(|condition| condition.is_any());
        if !create_only || self.behaviour.lock().overwrites {
            self.store.delete(std::slice::from_ref(&key)).await.map_err(failed)?;
        }
        let body = body.freeze();
        self.store.put(&key, vec![body.clone()]).await.map_err(failed)?;
        let version_id = self.behaviour.lock().keep(key.as_str(), Some(body));
        let e_tag = Some(ETag::Strong("x".into()));
        Ok(S3Response::new(PutObjectOutput { e_tag, version_id, ..PutObjectOutput::default() }))
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
                let total = self.store.get(&key).await.map_err(failed)?.len();
                (body, Some(format!("bytes {first}-{last}/{total}")))
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
        self.remove(&key, request.input.version_id.as_deref()).await?;
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
        for object in input.delete.objects {
            if let Ok(key) = Key::new(&object.key) {
                self.remove(&key, object.version_id.as_deref()).await?;
            }
        }
        Ok(S3Response::new(DeleteObjectsOutput::default()))
    }

    async fn get_object_lock_configuration(
        &self,
        request: S3Request<GetObjectLockConfigurationInput>,
    ) -> S3Result<S3Response<GetObjectLockConfigurationOutput>> {
        self.check(&request.input.bucket)?;
        let enabled = Some(ObjectLockEnabled::from_static(ObjectLockEnabled::ENABLED));
        let configuration = ObjectLockConfiguration { object_lock_enabled: enabled, rule: None };
        match self.behaviour.lock().locks {
            None => Err(S3Error::new(S3ErrorCode::ObjectLockConfigurationNotFoundError)),
            Some(_) => {
                Ok(S3Response::new(GetObjectLockConfigurationOutput { object_lock_configuration: Some(configuration) }))
            }
        }
    }

    async fn put_object_retention(
        &self,
        request: S3Request<PutObjectRetentionInput>,
    ) -> S3Result<S3Response<PutObjectRetentionOutput>> {
        let input = request.input;
        let key = self.key(&input.bucket, &input.key)?;
        self.store.get(&key).await.map_err(failed)?;
        let retention = input.retention.unwrap();
        let mut until = Vec::new();
        retention.retain_until_date.unwrap().format(TimestampFormat::DateTime, &mut until).unwrap();
        let lock = (retention.mode.unwrap().as_str().to_owned(), String::from_utf8(until).unwrap());
        let mut behaviour = self.behaviour.lock();
        let locks = behaviour.locks.as_mut().ok_or_else(|| s3_error!(InvalidRequest))?;
        locks.insert(key.to_string(), lock);
        Ok(S3Response::new(PutObjectRetentionOutput::default()))
    }

    async fn get_bucket_versioning(
        &self,
        request: S3Request<GetBucketVersioningInput>,
    ) -> S3Result<S3Response<GetBucketVersioningOutput>> {
        self.check(&request.input.bucket)?;
        let kept = self.behaviour.lock().keeps_versions;
        let status = kept.then(|| BucketVersioningStatus::from_static(BucketVersioningStatus::ENABLED));
        Ok(S3Response::new(GetBucketVersioningOutput { status, ..GetBucketVersioningOutput::default() }))
    }

    async fn list_object_versions(
        &self,
        request: S3Request<ListObjectVersionsInput>,
    ) -> S3Result<S3Response<ListObjectVersionsOutput>> {
        let input = request.input;
        self.check(&input.bucket)?;
        let prefix = input.prefix.unwrap_or_default();
        let (after, after_version) = (input.key_marker.unwrap_or_default(), input.version_id_marker);
        let (mut versions, mut markers, mut last) = (Vec::new(), Vec::new(), None);
        let mut output = ListObjectVersionsOutput { is_truncated: Some(false), ..ListObjectVersionsOutput::default() };
        let behaviour = self.behaviour.lock();
        let mut to_lose = usize::from(behaviour.loses_first_version && !after.is_empty() && after_version.is_none());
        'listing: for (path, history) in behaviour.versions.iter().filter(|(path, _)| path.starts_with(&prefix)) {
            let mut begun = *path > after;
            for (age, (id, content)) in history.iter().rev().enumerate() {
                if !begun {
                    begun = *path == after && after_version.as_ref() == Some(id);
                    continue;
                }
                if to_lose > 0 {
                    to_lose -= 1;
                    continue;
                }
                if versions.len() + markers.len() == behaviour.versions_page.unwrap_or(1000) {
                    output.is_truncated = Some(true);
                    (output.next_key_marker, output.next_version_id_marker) = last.unzip();
                    break 'listing;
                }
                let (key, version_id, is_latest) = (Some(path.clone()), Some(id.clone()), Some(age == 0));
                match content {
                    Some(content) => versions.push(ObjectVersion {
                        key,
                        version_id,
                        is_latest,
                        size: Some(content.len() as i64),
                        ..ObjectVersion::default()
                    }),
                    None => {
                        markers.push(DeleteMarkerEntry { key, version_id, is_latest, ..DeleteMarkerEntry::default() })
                    }
                }
                last = Some((path.clone(), id.clone()));
            }
        }
        output.versions = Some(versions);
        output.delete_markers = Some(markers);
        Ok(S3Response::new(output))
    }
}

/// As Amazon does it, but for `/`, which some servers encode too.
const URL_ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
