//! Objects in a bucket of S3 or of a store that speaks its language.
//!
//! The typed API is rusoto's; everything that faces the network is ours and current. Read downwards:
//! this file turns [`Store`] operations into requests and answers into results; [`dispatcher`] makes PUTs create-only,
//! addresses, signs and sends; [`http`] owns connections and the watch over stalls; [`credentials`] finds the keys;
//! [`errors`] is the table of what answers mean; [`options`] is what can be set, and [`address`] completes it. [`tls`] says
//! whom we trust, [`proxy`] which way a connection takes, [`versions`] what becomes of old versions of objects, [`lifecycle`] which
//! rules of a bucket harm us, [`lock`] how what is there is kept from being deleted, [`skew`] how far our clock is from the store's.
//!
//! One call is one attempt: [`super::retry`] repeats them, and every attempt is signed anew.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use rusoto_core::{ByteStream, Client, Region, RusotoError};
use rusoto_s3::{
    Delete, DeleteObjectRequest, DeleteObjectsRequest, GetObjectError, GetObjectRequest, ListObjectsV2Output,
    ListObjectsV2Request, ObjectIdentifier, PutObjectRequest, S3, S3Client,
};
use tracing::info;

use super::buffers::Buffers;
use super::memory::PAGE_OBJECTS;
use super::{ErrorKind, Front, Key, ListPage, ObjectEntry, Result, Store, StoreError};
use crate::outside::{Clock, panics};

pub mod options;
pub mod address;
pub(super) mod ranges;
pub mod errors;
mod answers;
pub mod http;
mod tls;
mod proxy;
pub mod credentials;
pub mod dispatcher;
pub mod versions;
pub mod lifecycle;
mod lock;
mod skew;

use address::Address;
use answers::{Refused, Typed, answer_of, strange};
use credentials::{Credentials, Environment};
use dispatcher::{Dispatcher, MISSING, Settings, from_text};
use errors::{Answer, Asked, Place, failure};
use options::{ObjectLock, S3Options};
use ranges::{collect, cut, header_of, start_of, total_of};
use skew::Skew;

/// A batch delete names at most this many keys.
const BATCH_KEYS_MAX: usize = 1000;

/// The version of an object in a bucket whose versioning is suspended, or was not yet switched on.
const NO_VERSION: &str = "null";

/// Single deletes, where there is no batch, that are under way at once.
const SINGLE_DELETES: usize = 8;

/// A store in a bucket, below a prefix.
pub struct S3Store {
    client: S3Client,
    place: Place,
    /// "" or ending in `/`.
    prefix: String,
    credentials: Arc<Credentials>,
    request_timeout: Duration,
    /// For the bodies of GETs.
    buffers: Buffers,
    /// Cleared once the store said that it has no batch delete, or none for us.
    batches: AtomicBool,
    /// Whether all versions of what is deleted are deleted.
    delete_versions: bool,
    versions: Mutex<VersionsSeen>,
    object_lock: ObjectLock,
    skew: Arc<Skew>,
}

/// What replies to PUTs said of versions.
#[derive(Clone, Copy, Debug, Default)]
struct VersionsSeen {
    /// The bucket has versions: it keeps them, or did once.
    exist: bool,
    /// The bucket keeps every version.
    are_kept: bool,
}

/// What is to be deleted: an object as it shows, or one version of it.
#[derive(Clone, Debug)]
struct Doomed<'a> {
    key: &'a Key,
    version: Option<String>,
}

impl Doomed<'_> {
    fn whole(key: &Key) -> Doomed<'_> {
        Doomed { key, version: None }
    }
}

impl S3Store {
    /// The store at `bucket`, below `prefix` ("" or a path without `/` at its ends). Sends nothing yet.
    /// `Invalid` for names and endpoints that cannot be.
    pub fn new(
        bucket: &str,
        prefix: &str,
        options: &S3Options,
        environment: &Environment,
        clock: Clock,
    ) -> Result<S3Store> {
        let Address { place, prefix, bucket_in_host } = Address::new(bucket, prefix, options, environment)?;
        let http = http::connect(options, environment, &place.endpoint)?;
        let credentials = Arc::new(Credentials::new(options, credentials::context(environment, &http), clock.clone()));
        let skew = Arc::new(Skew::new(clock));
        let dispatcher = Dispatcher::new(Settings {
            http,
            credentials: credentials.clone(),
            bucket_in_host: bucket_in_host.then(|| place.bucket.clone()),
            checksum: options.checksum,
            sign_payload: options.sign_payload,
            unconditional: options.unconditional,
            stall_timeout: options.stall_timeout,
            has_answered: AtomicBool::new(false),
            skew: Arc::clone(&skew),
        });
        let region = Region::Custom { name: place.region.clone(), endpoint: place.endpoint.clone() };
        Ok(S3Store {
            client: S3Client::new_with_client(Client::new_not_signing(dispatcher), region),
            prefix,
            place,
            credentials,
            request_timeout: options.request_timeout,
            buffers: Buffers::default(),
            batches: AtomicBool::new(true),
            delete_versions: options.delete_versions,
            versions: Mutex::default(),
            object_lock: options.object_lock,
            skew,
        })
    }

    /// Keeps so many bytes of memory for the next reads, at most.
    pub fn with_idle_buffers(self, bytes: u64) -> S3Store {
        self.buffers.keep_at_most(bytes);
        self
    }

    /// By how many seconds this host's clock is ahead of the store's (or, below zero, behind), if an answer said.
    pub fn clock_ahead(&self) -> Option<i64> {
        self.skew.seconds()
    }

    /// The memory that waits for the next reads.
    pub fn buffers(&self) -> Buffers {
        self.buffers.clone()
    }

    fn path(&self, key: &Key) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Waits for one request, but not for ever, and reads what went wrong.
    async fn request<T, E: Typed>(
        &self,
        asked: Asked<'_>,
        work: impl Future<Output = std::result::Result<T, RusotoError<E>>>,
    ) -> std::result::Result<T, Refused> {
        let late = || {
            let limit = humantime::format_duration(self.request_timeout);
            StoreError::new(ErrorKind::Retryable, format!("no end after {limit}"))
        };
        let generation = self.credentials.generation();
        // rusoto panics on a number that is none; a strange server must not take a task of ours with it.
        let work = panics::contain(work);
        let error = match tokio::time::timeout(self.request_timeout, work).await {
            Ok(Ok(Ok(done))) => return Ok(done),
            Ok(Ok(Err(error))) => error,
            Ok(Err(_panic)) => return Err(Refused { answer: None, error: self.unanswered(asked, &strange("sense")) }),
            Err(_) => return Err(Refused { answer: None, error: self.unanswered(asked, &late()) }),
        };
        match answer_of(error) {
            Ok(answer) => {
                let mut error = failure(&self.place, asked, &answer);
                if answer.doubts_credentials() && self.credentials.replaced_since(generation).await {
                    error.kind = ErrorKind::Retryable;
                }
                Err(Refused { error, answer: Some(answer) })
            }
            Err(text) => Err(Refused { answer: None, error: self.unanswered(asked, &from_text(&text)) }),
        }
    }

    /// A request that got no answer, in a sentence.
    fn unanswered(&self, asked: Asked<'_>, cause: &StoreError) -> StoreError {
        StoreError::new(
            cause.kind,
            format!("{} got no answer from {}: {}", asked.text(), self.place.endpoint, cause.message),
        )
    }

    /// The bytes of `range`; `None` if it lies beyond the end.
    async fn fetch(&self, key: &Key, range: Option<Range<u64>>) -> Result<Option<Front>> {
        let asked = Asked::Get(key);
        let request = GetObjectRequest {
            bucket: self.place.bucket.clone(),
            key: self.path(key),
            range: range.as_ref().map(header_of),
            ..GetObjectRequest::default()
        };
        let work = async {
            let answer = self.client.get_object(request).await?;
            let expected = answer.content_length.map(|len| len.max(0) as u64);
            let range = answer.content_range.as_deref();
            let (start, total) = (range.and_then(start_of), range.and_then(total_of));
            let body =
                collect(answer.body, expected, &self.buffers).await.map_err(RusotoError::<GetObjectError>::from)?;
            Ok((body, start, total))
        };
        match self.request(asked, work).await {
            Ok((body, start, total)) => Ok(Some(Front { bytes: cut(key, body, start, range)?, total })),
            Err(Refused { answer: Some(answer), .. }) if answer.status == 416 => Ok(None),
            Err(refused) => Err(refused.error),
        }
    }

    /// One page of a listing; `more` says where it begins, and with which delimiter.
    async fn page(&self, prefix: &str, more: ListObjectsV2Request) -> Result<ListObjectsV2Output> {
        let request = ListObjectsV2Request {
            bucket: self.place.bucket.clone(),
            prefix: Some(format!("{}{prefix}", self.prefix)),
            encoding_type: Some("url".into()), // foreign keys may hold what XML cannot
            ..more
        };
        let asked = Asked::List(prefix);
        let listed = self.request(asked, self.client.list_objects_v2(request)).await?;
        match listed.is_truncated.is_some() || listed.contents.is_some() {
            true => Ok(listed),
            false => Err(self.unanswered(asked, &strange("a listing"))), // rusoto reads any page as an empty listing
        }
    }

    async fn delete_batch(&self, batch: &[Doomed<'_>]) -> std::result::Result<(), Refused> {
        let objects = batch.iter().map(|doomed| doomed.identifier(self)).collect();
        let request = DeleteObjectsRequest {
            bucket: self.place.bucket.clone(),
            delete: Delete { objects, quiet: Some(true) },
            ..DeleteObjectsRequest::default()
        };
        let of_versions = batch.iter().any(|doomed| doomed.version.is_some());
        let asked = if of_versions { Asked::DeleteVersions(batch.len()) } else { Asked::DeleteBatch(batch.len()) };
        let answer = self.request(asked, self.client.delete_objects(request)).await?;
        let refusal = answer.errors.unwrap_or_default().into_iter().find(|error| !is_gone(error.code.as_deref()));
        let Some(refusal) = refusal else { return Ok(()) };
        let code = refusal.code.unwrap_or_default();
        // The batch as a whole was answered with 200; what each object's code would have been alone decides.
        let status = if code == "AccessDenied" { 403 } else { 500 };
        let answer = Answer { status, code, message: refusal.message.unwrap_or_default(), ..Answer::default() };
        Err(Refused { error: failure(&self.place, asked, &answer), answer: None })
    }

    async fn delete_single(&self, doomed: Doomed<'_>) -> Result<()> {
        let ObjectIdentifier { key, version_id } = doomed.identifier(self);
        let asked = if version_id.is_some() { Asked::DeleteVersions(1) } else { Asked::Delete(doomed.key) };
        let request = DeleteObjectRequest {
            bucket: self.place.bucket.clone(),
            key,
            version_id,
            ..DeleteObjectRequest::default()
        };
        match self.request(asked, self.client.delete_object(request)).await {
            Ok(_) => Ok(()),
            Err(Refused { answer: Some(answer), .. }) if is_gone(Some(&answer.code)) => Ok(()),
            Err(refused) => Err(refused.error),
        }
    }

    async fn delete_singly(&self, doomed: &[Doomed<'_>]) -> Result<()> {
        let deletes: Vec<_> = doomed.iter().map(|doomed| self.delete_single(doomed.clone())).collect();
        stream::iter(deletes).buffer_unordered(SINGLE_DELETES).try_collect().await
    }

    fn has_batches(&self) -> bool {
        self.batches.load(Ordering::Relaxed)
    }

    fn forget_batches(&self, status: u16) {
        if self.batches.swap(false, Ordering::Relaxed) {
            info!("{} answers batch deletes with {status}: deleting one by one", self.url());
        }
    }

    /// The key of a listed object; `None` if it is not one of ours.
    fn key_of(&self, listed: &ListObjectsV2Output, path: &str) -> Option<Key> {
        Key::new(decoded(listed.encoding_type.is_some(), path)?.strip_prefix(&self.prefix)?).ok()
    }

    /// The first segment of keys that a listing by delimiter sums up as `top/`, or of an object at the top.
    fn top_of(&self, listed: &ListObjectsV2Output, path: &str) -> Option<String> {
        let path = decoded(listed.encoding_type.is_some(), path)?;
        let top = path.strip_prefix(&self.prefix)?;
        let top = top.strip_suffix('/').unwrap_or(top);
        Key::new(top).ok().map(|key| key.to_string())
    }
}

#[async_trait]
impl Store for S3Store {
    fn url(&self) -> String {
        format!("s3://{}/{}", self.place.bucket, self.prefix).trim_end_matches('/').to_owned()
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> Result<()> {
        let len = body.iter().map(Bytes::len).sum();
        let body = stream::iter(body.into_iter().map(Ok));
        let request = PutObjectRequest {
            bucket: self.place.bucket.clone(),
            key: self.path(key),
            body: Some(ByteStream::new_with_size(body, len)),
            content_length: Some(len as i64),
            ..PutObjectRequest::default()
        };
        let asked = Asked::Put(key);
        let done = self.request(asked, self.client.put_object(request)).await?;
        if let Some(version) = done.version_id {
            *self.versions.lock() = VersionsSeen { exist: true, are_kept: version != NO_VERSION };
        }
        match done.e_tag {
            Some(_) => Ok(()),
            None => Err(self.unanswered(asked, &strange("the ETag of an object"))),
        }
    }

    async fn begin_put(&self, key: &Key, part: Bytes, missing: u64) -> bool {
        let len = part.len() + missing as usize;
        let request = PutObjectRequest {
            bucket: self.place.bucket.clone(),
            key: self.path(key),
            body: Some(ByteStream::new_with_size(stream::iter([Ok(part)]), len)),
            content_length: Some(len as i64),
            metadata: Some([(MISSING.to_owned(), missing.to_string())].into()),
            ..PutObjectRequest::default()
        };
        let _ = self.request(Asked::Put(key), self.client.put_object(request)).await;
        true
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        if range.is_empty() {
            // No range header asks for nothing; one byte tells whether there is such an object.
            self.fetch(key, Some(0..1)).await?;
            return Ok(Bytes::new());
        }
        Ok(self.fetch(key, Some(range)).await?.map(|front| front.bytes).unwrap_or_default())
    }

    async fn get_front(&self, key: &Key, len: u64) -> Result<Front> {
        let nothing = Front { bytes: Bytes::new(), total: None };
        Ok(self.fetch(key, Some(0..len.max(1))).await?.unwrap_or(nothing))
    }

    async fn get(&self, key: &Key) -> Result<Bytes> {
        Ok(self.fetch(key, None).await?.map(|front| front.bytes).unwrap_or_default())
    }

    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Result<ListPage> {
        let mut after = start_after.map(|key| self.path(key));
        loop {
            let from = ListObjectsV2Request { start_after: after, ..ListObjectsV2Request::default() };
            let listed = self.page(prefix, from).await?;
            let entry = |object: &rusoto_s3::Object| {
                let key = self.key_of(&listed, object.key.as_deref()?)?;
                Some(ObjectEntry { key, size: object.size.unwrap_or_default().max(0) as u64 })
            };
            let objects = listed.contents.as_deref().unwrap_or_default();
            let entries: Vec<ObjectEntry> = objects.iter().filter_map(entry).collect();
            after = objects.last().and_then(|object| decoded(listed.encoding_type.is_some(), object.key.as_deref()?));
            // A page of foreign objects only is not the end. What is not said plainly is asked for once more.
            let is_last = listed.is_truncated == Some(false) && objects.len() < PAGE_OBJECTS;
            if !entries.is_empty() || is_last || after.is_none() {
                return Ok(ListPage::new(entries, is_last));
            }
        }
    }

    async fn list_top(&self) -> Result<Vec<String>> {
        let mut tops: Vec<String> = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let delimiter = Some("/".to_owned());
            let from = ListObjectsV2Request { delimiter, continuation_token: token, ..ListObjectsV2Request::default() };
            let listed = self.page("", from).await?;
            let prefixes = listed.common_prefixes.as_deref().unwrap_or_default().iter();
            let objects = listed.contents.as_deref().unwrap_or_default().iter();
            let paths = prefixes.map(|found| found.prefix.as_deref()).chain(objects.map(|found| found.key.as_deref()));
            tops.extend(paths.filter_map(|path| self.top_of(&listed, path?)));
            token = listed.next_continuation_token.filter(|_| listed.is_truncated.unwrap_or_default());
            if token.is_none() {
                tops.sort_unstable();
                tops.dedup();
                return Ok(tops);
            }
        }
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        let of_versions = self.delete_versions && self.versions.lock().exist;
        for batch in keys.chunks(BATCH_KEYS_MAX) {
            match of_versions {
                true => self.delete_with_versions(batch).await?,
                false => self.delete_doomed(batch.iter().map(Doomed::whole).collect()).await?,
            }
        }
        Ok(())
    }

    fn retains(&self) -> bool {
        self.object_lock != ObjectLock::Off
    }

    async fn retain(&self, key: &Key, until_unix_millis: u64) -> Result<()> {
        self.put_retention(key, until_unix_millis).await
    }
}

/// Whether a code says that there is nothing to delete.
fn is_gone(code: Option<&str>) -> bool {
    matches!(code, Some("NoSuchKey" | "NoSuchVersion"))
}

impl std::fmt::Debug for S3Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Store").field("place", &self.place).field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// A path out of a listing, as it is.
fn decoded(is_encoded: bool, path: &str) -> Option<String> {
    match is_encoded {
        true => percent_encoding::percent_decode_str(path).decode_utf8().ok().map(|path| path.into_owned()),
        false => Some(path.to_owned()),
    }
}
