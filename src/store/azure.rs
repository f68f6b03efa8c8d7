//! Objects as block blobs in a container of Azure Blob Storage: `az://CONTAINER[/PREFIX]`.
//!
//! Requests are ours, over the connections of the S3 client (`s3/http.rs`), so TLS, proxies and the watch over stalls are the same. Credentials and
//! signatures are `object_store`'s ([`account`]). [`answers`] is the table of what answers mean, [`options`] what can be set.
//!
//! A PUT is one Put Blob with `If-None-Match: *`. What is easily guessed wrong there:
//! * `BlobAlreadyExists` may speak of a blob of which only blocks are there, staged by somebody and never committed: a GET does not find it, no
//!   listing shows it, and no Put Blob succeeds for a week. So whoever is told that a key is taken looks, and if nothing is there commits a block of its own
//!   (Put Block List with the same condition), which does not mind others' blocks, but wants a name as long as theirs.
//! * A range that begins at the very end may be answered with 206 and a range that ends before it begins.
//! * The marker of a listing's next page is the server's own: none can be made of a key. So those of pages that were read are remembered, and a listing
//!   that goes on after such a page begins there; one that begins elsewhere reads from the front.

use std::collections::VecDeque;
use std::ops::Range;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use data_encoding::BASE64;
use futures::{StreamExt, TryStreamExt, stream};
use http::{HeaderMap, Method, Request, StatusCode, header};
use hyper::body::Incoming;
use parking_lot::Mutex;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::s3::credentials::Environment;
use super::s3::http::{Http, PartsBody, connect, next_piece, send, whole};
use super::s3::options::S3Options;
use super::s3::ranges::{cut, header_of, start_of, total_of};
use super::{ErrorKind, Front, Key, ListPage, Result, Store, StoreError};
use crate::outside::Random;

pub mod options;
mod account;
mod answers;

use account::{Place, Signer};
use answers::{Answer, Asked, Page, failure};
use options::AzureOptions;

/// Deletes that are under way at once.
const DELETES: usize = 16;

/// Objects of a page.
const PAGE_OBJECTS: usize = 1000;

/// An answer that is no object is read up to here.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Memory that is set aside for a body before any byte of it has come.
const RESERVE_BYTES_MAX: u64 = 16 << 20;

/// Pages whose next one is known.
const MARKERS: usize = 64;

/// A store in a container, below a prefix.
pub struct AzureStore {
    place: Place,
    options: AzureOptions,
    http: Http,
    signer: Signer,
    random: Random,
    markers: Mutex<VecDeque<Marker>>,
}

/// Where a listing of that prefix goes on after that key.
#[derive(Clone, Debug)]
struct Marker {
    prefix: String,
    after: Key,
    marker: String,
}

/// What was answered.
enum Answered {
    /// What was asked for.
    Done(HeaderMap, Incoming),
    /// Something else.
    Refused(Answer),
}

impl AzureStore {
    /// The store at `CONTAINER[/PREFIX]`. Sends nothing yet. `Invalid` for names, endpoints and credentials that cannot be.
    pub fn new(rest: &str, options: &AzureOptions, environment: &Environment, random: Random) -> Result<AzureStore> {
        let place = Place::new(rest, options, environment)?;
        let of_http = S3Options {
            ca_bundle: options.ca_bundle.clone(),
            connect_timeout: options.connect_timeout,
            idle_connections_max: options.idle_connections_max,
            ..S3Options::default()
        };
        let http = connect(&of_http, environment, &place.endpoint).map_err(in_our_words)?;
        let signer = Signer::new(&place, options, environment, &http)?;
        let markers = Mutex::default();
        Ok(AzureStore { place, options: options.clone(), http, signer, random, markers })
    }

    /// Sends one request, and waits for the head of its answer. `path` is what comes after the container, with its query.
    async fn ask(
        &self,
        asked: Asked<'_>,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: PartsBody,
    ) -> Result<Answered> {
        let uri = format!("{}/{}{path}", self.place.endpoint, self.place.container);
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.header(header::CONTENT_LENGTH, hyper::body::Body::size_hint(&body).lower());
        let request =
            request.body(()).map_err(|error| StoreError::invalid(format!("{} cannot be: {error}", asked.text())))?;
        let request = self.signer.sign(request).await?.map(|()| body);
        let (response, _) = send(&self.http, request, self.options.stall_timeout)
            .await
            .map_err(|error| self.unanswered(asked, error))?;
        let (head, body) = response.into_parts();
        if head.status.is_success() && !is_range_of_nothing(&head.headers) {
            return Ok(Answered::Done(head.headers, body));
        }
        let status = if head.status.is_success() { StatusCode::RANGE_NOT_SATISFIABLE } else { head.status };
        let code = head.headers.get("x-ms-error-code").and_then(|code| code.to_str().ok());
        let body = whole(body, self.options.stall_timeout, ANSWER_BYTES_MAX)
            .await
            .map_err(|error| self.unanswered(asked, error))?;
        Ok(Answered::Refused(Answer::read(status.as_u16(), code, &body)))
    }

    /// The same for what has no answer but yes or no.
    async fn tell(
        &self,
        asked: Asked<'_>,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: PartsBody,
    ) -> Result<()> {
        match self.ask(asked, method, path, headers, body).await? {
            Answered::Done(headers, _) if headers.contains_key("x-ms-request-id") => Ok(()),
            Answered::Done(..) => Err(self.strange(asked)),
            Answered::Refused(answer) => Err(failure(&self.place, asked, &answer)),
        }
    }

    /// Waits for what is one request to the caller, but not for ever.
    async fn within<T>(&self, asked: Asked<'_>, work: impl Future<Output = Result<T>>) -> Result<T> {
        let limit = self.options.request_timeout;
        match tokio::time::timeout(limit, work).await {
            Ok(done) => done,
            Err(_) => {
                let limit = humantime::format_duration(limit);
                let late = format!("no end after {limit} (store.azure.request_timeout)");
                Err(self.unanswered(asked, StoreError::new(ErrorKind::Retryable, late)))
            }
        }
    }

    fn unanswered(&self, asked: Asked<'_>, cause: StoreError) -> StoreError {
        let cause = in_our_words(cause);
        StoreError::new(
            cause.kind,
            format!("{} got no answer from {}: {}", asked.text(), self.place.endpoint, cause.message),
        )
    }

    fn strange(&self, asked: Asked<'_>) -> StoreError {
        let cause = "the answer is none of Azure Blob Storage; is a proxy in between?";
        self.unanswered(asked, StoreError::new(ErrorKind::Retryable, cause))
    }

    fn path(&self, key: &Key) -> String {
        format!("/{}{key}", self.place.prefix)
    }

    async fn create(&self, key: &Key, body: &[Bytes]) -> Result<()> {
        let asked = Asked::Put(key);
        let mut headers = vec![("x-ms-blob-type", "BlockBlob")];
        headers.extend(self.condition());
        let put = self.tell(asked, Method::PUT, &self.path(key), &headers, PartsBody::new(body.to_vec())).await;
        match put {
            Err(error) if error.kind == ErrorKind::AlreadyExists && !self.is_there(key).await? => {
                self.commit_a_block(key, body).await
            }
            put => put,
        }
    }

    fn condition(&self) -> Option<(&'static str, &'static str)> {
        (!self.options.unconditional).then_some(("if-none-match", "*"))
    }

    async fn is_there(&self, key: &Key) -> Result<bool> {
        match self.ask(Asked::Get(key), Method::HEAD, &self.path(key), &[], PartsBody::new(Vec::new())).await? {
            Answered::Done(..) => Ok(true),
            Answered::Refused(answer) => match failure(&self.place, Asked::Get(key), &answer) {
                error if error.kind == ErrorKind::NotFound => Ok(false),
                error => Err(error),
            },
        }
    }

    /// A PUT where others' blocks are in the way.
    async fn commit_a_block(&self, key: &Key, body: &[Bytes]) -> Result<()> {
        let (asked, path) = (Asked::Put(key), self.path(key));
        // A block of nothing is refused.
        let blocks = match body.iter().all(Bytes::is_empty) {
            true => String::new(),
            false => {
                let id = self.id_beside_others(key).await?;
                let query = format!("{path}?comp=block&blockid={}", utf8_percent_encode(&id, NON_ALPHANUMERIC));
                self.tell(asked, Method::PUT, &query, &[], PartsBody::new(body.to_vec())).await?;
                format!("<Uncommitted>{id}</Uncommitted>")
            }
        };
        let list = format!("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>{blocks}</BlockList>");
        let headers: Vec<_> = self.condition().into_iter().collect();
        let list = PartsBody::new(vec![Bytes::from(list)]);
        match self.tell(asked, Method::PUT, &format!("{path}?comp=blocklist"), &headers, list).await {
            // Who was first has thrown all other blocks away.
            Err(error) if error.kind == ErrorKind::Invalid && self.is_there(key).await? => {
                Err(StoreError::already_exists(key))
            }
            committed => committed,
        }
    }

    /// The name of a block that nobody else has: as long as those that are there, since all of a blob must be.
    async fn id_beside_others(&self, key: &Key) -> Result<String> {
        let asked = Asked::Put(key);
        let path = format!("{}?comp=blocklist&blocklisttype=uncommitted", self.path(key));
        let answered = self.ask(asked, Method::GET, &path, &[], PartsBody::new(Vec::new())).await?;
        let listed = match answered {
            Answered::Done(_, body) => whole(body, self.options.stall_timeout, ANSWER_BYTES_MAX).await,
            Answered::Refused(answer) => return Err(failure(&self.place, asked, &answer)),
        };
        let listed = listed.map_err(|error| self.unanswered(asked, error))?;
        let Some(len) = block_id_len(&listed) else {
            let message = format!("{} was there a moment ago, and is not any more", asked.text());
            return Err(StoreError::new(ErrorKind::Retryable, message));
        };
        let uuid = *self.random.uuid().as_bytes();
        if len < uuid.len() {
            return Err(StoreError::new(
                ErrorKind::Denied,
                format!(
                    "{} in container {} finds blocks that somebody staged there and never committed, with names too short to stand beside: \
                     they are in the way until the server forgets them, or somebody commits and deletes them",
                    asked.text(),
                    self.place.container
                ),
            ));
        }
        let id: Vec<u8> = uuid.into_iter().cycle().take(len).collect();
        Ok(BASE64.encode(&id))
    }

    /// The bytes of `range`, or all; `None` if it lies beyond the end.
    async fn fetch(&self, key: &Key, range: Option<Range<u64>>) -> Result<Option<Front>> {
        let asked = Asked::Get(key);
        let range_header = range.as_ref().map(header_of);
        let headers: Vec<(&str, &str)> = range_header.iter().map(|range| ("range", range.as_str())).collect();
        let answered = self.ask(asked, Method::GET, &self.path(key), &headers, PartsBody::new(Vec::new())).await?;
        let (headers, mut body) = match answered {
            Answered::Done(headers, body) => (headers, body),
            Answered::Refused(answer) if answer.status == 416 => return Ok(None),
            Answered::Refused(answer) => return Err(failure(&self.place, asked, &answer)),
        };
        let text = |name| headers.get(name).and_then(|value: &header::HeaderValue| value.to_str().ok());
        let expected: u64 =
            text(header::CONTENT_LENGTH).and_then(|len| len.parse().ok()).ok_or_else(|| self.strange(asked))?;
        if !headers.contains_key("x-ms-blob-type") {
            return Err(self.strange(asked));
        }
        let mut came = BytesMut::with_capacity(expected.min(RESERVE_BYTES_MAX) as usize);
        while let Some(piece) = next_piece(&mut body, self.options.stall_timeout).await {
            came.extend_from_slice(&piece.map_err(|error| self.unanswered(asked, error))?);
        }
        if came.len() as u64 != expected {
            let message = format!("{} bytes came instead of {expected}", came.len());
            return Err(self.unanswered(asked, StoreError::new(ErrorKind::Retryable, message)));
        }
        let content_range = text(header::CONTENT_RANGE);
        let bytes = cut(key, came.freeze(), content_range.and_then(start_of), range)?;
        Ok(Some(Front { bytes, total: content_range.and_then(total_of) }))
    }

    async fn page(&self, prefix: &str, delimiter: &str, marker: Option<&str>) -> Result<Page> {
        let asked = Asked::List(prefix);
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let mut query = format!("?restype=container&comp=list&maxresults={PAGE_OBJECTS}");
        for (name, value) in [("prefix", format!("{}{prefix}", self.place.prefix)), ("delimiter", delimiter.to_owned())]
        {
            if !value.is_empty() {
                query.push_str(&format!("&{name}={}", encoded(&value)));
            }
        }
        if let Some(marker) = marker {
            query.push_str(&format!("&marker={}", encoded(marker)));
        }
        match self.ask(asked, Method::GET, &query, &[], PartsBody::new(Vec::new())).await? {
            Answered::Done(_, body) => {
                let body = whole(body, self.options.stall_timeout, ANSWER_BYTES_MAX).await;
                let body = body.map_err(|error| self.unanswered(asked, error))?;
                Page::read(&body).ok_or_else(|| self.strange(asked))
            }
            Answered::Refused(answer) => Err(failure(&self.place, asked, &answer)),
        }
    }

    async fn objects(&self, prefix: &str, after: Option<&Key>) -> Result<ListPage> {
        let mut marker = after.and_then(|after| self.marker(prefix, after));
        loop {
            let page = self.page(prefix, "", marker.as_deref()).await?;
            let mut objects = page.objects(&self.place.prefix);
            if let Some((last, next)) = objects.last().zip(page.next.clone()) {
                self.remember(Marker { prefix: prefix.to_owned(), after: last.key.clone(), marker: next });
            }
            objects.retain(|object| after.is_none_or(|after| object.key > *after));
            marker = page.next;
            if !objects.is_empty() || marker.is_none() {
                return Ok(ListPage::new(objects, marker.is_none()));
            }
        }
    }

    fn marker(&self, prefix: &str, after: &Key) -> Option<String> {
        let markers = self.markers.lock();
        let known = markers.iter().find(|known| known.prefix == prefix && known.after == *after)?;
        Some(known.marker.clone())
    }

    fn remember(&self, marker: Marker) {
        let mut markers = self.markers.lock();
        markers.retain(|known| known.prefix != marker.prefix || known.after != marker.after);
        markers.push_back(marker);
        let more = markers.len().saturating_sub(MARKERS);
        markers.drain(..more);
    }

    async fn remove(&self, key: &Key) -> Result<()> {
        let asked = Asked::Delete(key);
        let headers = [("x-ms-delete-snapshots", "include")];
        match self.ask(asked, Method::DELETE, &self.path(key), &headers, PartsBody::new(Vec::new())).await? {
            Answered::Done(..) => Ok(()),
            Answered::Refused(answer) if answer.status == 404 && answer.code == "BlobNotFound" => Ok(()),
            Answered::Refused(answer) => Err(failure(&self.place, asked, &answer)),
        }
    }
}

/// The length of the names of blocks, of a list of them; `None` if it has none.
fn block_id_len(list: &[u8]) -> Option<usize> {
    let list = String::from_utf8_lossy(list);
    let (_, rest) = list.split_once("<Name>")?;
    Some(BASE64.decode(rest.split_once('<')?.0.as_bytes()).ok()?.len())
}

/// A range that ends before it begins: that is how a range at the very end may be answered.
fn is_range_of_nothing(headers: &HeaderMap) -> bool {
    let range = headers.get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
    let bounds = range.and_then(|range| range.strip_prefix("bytes ")?.split_once('/')?.0.split_once('-'));
    bounds.is_some_and(|(start, end)| match (start.parse::<u64>(), end.parse::<u64>()) {
        (Ok(start), Ok(end)) => end < start,
        _ => false,
    })
}

/// The connections are those of the S3 client, and name its keys; ours have the same names.
fn in_our_words(error: StoreError) -> StoreError {
    StoreError::new(error.kind, error.message.replace("store.s3.", "store.azure.").replace(", AWS_CA_BUNDLE", ""))
}

impl std::fmt::Debug for AzureStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AzureStore").field("place", &self.place).finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for AzureStore {
    fn url(&self) -> String {
        format!("az://{}/{}", self.place.container, self.place.prefix).trim_end_matches('/').to_owned()
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> Result<()> {
        self.within(Asked::Put(key), self.create(key, &body)).await
    }

    async fn begin_put(&self, key: &Key, part: Bytes, missing: u64) -> bool {
        let mut headers = vec![("x-ms-blob-type", "BlockBlob")];
        headers.extend(self.condition());
        let body = PartsBody::that_stops(vec![part], missing);
        let _ = self
            .within(Asked::Put(key), self.tell(Asked::Put(key), Method::PUT, &self.path(key), &headers, body))
            .await;
        true
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        let asked = Asked::Get(key);
        if range.is_empty() {
            // No range header asks for nothing; one byte tells whether there is such an object.
            self.within(asked, self.fetch(key, Some(0..1))).await?;
            return Ok(Bytes::new());
        }
        Ok(self.within(asked, self.fetch(key, Some(range))).await?.map(|front| front.bytes).unwrap_or_default())
    }

    async fn get_front(&self, key: &Key, len: u64) -> Result<Front> {
        let front = self.within(Asked::Get(key), self.fetch(key, Some(0..len.max(1)))).await?;
        Ok(front.unwrap_or(Front { bytes: Bytes::new(), total: None }))
    }

    async fn get(&self, key: &Key) -> Result<Bytes> {
        Ok(self.within(Asked::Get(key), self.fetch(key, None)).await?.map(|front| front.bytes).unwrap_or_default())
    }

    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Result<ListPage> {
        self.within(Asked::List(prefix), self.objects(prefix, start_after)).await
    }

    async fn list_top(&self) -> Result<Vec<String>> {
        let (mut tops, mut marker) = (Vec::new(), None);
        loop {
            let page = self.within(Asked::List(""), self.page("", "/", marker.as_deref())).await?;
            let names = page.prefixes.iter().chain(page.blobs.iter().map(|(name, _)| name));
            let tops_of_page = names.filter_map(|name| {
                let top = name.strip_prefix(&self.place.prefix)?;
                Key::new(top.strip_suffix('/').unwrap_or(top)).ok().map(|key| key.to_string())
            });
            tops.extend(tops_of_page);
            marker = page.next;
            if marker.is_none() {
                tops.sort_unstable();
                tops.dedup();
                return Ok(tops);
            }
        }
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        let deletes: Vec<_> = keys.iter().map(|key| self.within(Asked::Delete(key), self.remove(key))).collect();
        stream::iter(deletes).buffer_unordered(DELETES).try_collect().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_end_before_they_begin_are_nothing() {
        for (range, expected) in [
            ("bytes 100-99/100", true),
            ("bytes 0-99/100", false),
            ("bytes 5-5/6", false),
            ("bytes */100", false),
            ("", false),
        ] {
            let headers =
                HeaderMap::from_iter([(header::CONTENT_RANGE, header::HeaderValue::from_str(range).unwrap())]);
            assert_eq!(is_range_of_nothing(&headers), expected, "{range}");
        }
    }

    #[test]
    fn a_block_is_named_as_long_as_those_of_others() {
        let list = b"<BlockList><CommittedBlocks/><UncommittedBlocks><Block><Name>c29tZWJvZHk=</Name><Size>4</Size></Block></UncommittedBlocks></BlockList>";
        assert_eq!(block_id_len(list), Some(8));
        assert_eq!(block_id_len(b"<BlockList><CommittedBlocks/><UncommittedBlocks/></BlockList>"), None);
    }
}
