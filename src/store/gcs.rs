//! Objects in a bucket of Google Cloud Storage: `gs://BUCKET[/PREFIX]`.
//!
//! Requests are ours, of the JSON interface, over the connections of the S3 client (`web.rs`). Credentials are `object_store`'s ([`account`]). [`answers`] is the table of
//! what answers mean, [`options`] what can be set.
//!
//! A PUT is one upload with `ifGenerationMatch=0`: of an object that is not there. (The interface that speaks S3 has no such condition: decision 0007.)
//! What is easily guessed wrong there:
//! * Errors of downloads are plain text, those of all else JSON.
//! * `startOffset` of a listing is inclusive.
//! * A 404 tells only in words whether the object or the bucket is not there. One without words is believed only once a listing has said the same.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Method, Request, Response, header};
use hyper::body::Incoming;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::s3::credentials::Environment;
use super::s3::http::PartsBody;
use super::s3::ranges::header_of;
use super::web::{Web, WebOptions};
use super::{ErrorKind, Front, Key, ListPage, Result, Store, StoreError};

pub mod options;
mod account;
mod answers;

use account::{Place, Signer};
use answers::{Answer, Page, failure};
use options::GcsOptions;

/// Deletes that are under way at once.
const DELETES: usize = 16;

/// Objects of a page.
const PAGE_OBJECTS: usize = 1000;

/// What objects are said to be.
const KIND: &str = "application/octet-stream";

/// A store in a bucket, below a prefix.
pub struct GcsStore {
    place: Place,
    web: Web,
    signer: Signer,
}

/// What was answered.
enum Answered {
    /// What was asked for.
    Done(Response<Incoming>),
    /// Something else.
    Refused(Answer),
}

impl GcsStore {
    /// The store at `BUCKET[/PREFIX]`. Sends nothing yet. `Invalid` for names, endpoints and credentials that cannot be.
    pub fn new(rest: &str, options: &GcsOptions, environment: &Environment) -> Result<GcsStore> {
        let place = Place::new(rest, options, environment)?;
        let web = WebOptions {
            section: "gcs",
            endpoint_key: "store.gcs.endpoint",
            ca_bundle: options.ca_bundle.clone(),
            connect_timeout: options.connect_timeout,
            stall_timeout: options.stall_timeout,
            request_timeout: options.request_timeout,
            idle_connections_max: options.idle_connections_max,
        };
        let web = Web::new(web, environment, &place.endpoint)?;
        let signer = Signer::new(&place, options, environment, web.http())?;
        Ok(GcsStore { place, web, signer })
    }

    async fn ask(
        &self,
        asked: &str,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: PartsBody,
    ) -> Result<Answered> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.place.endpoint));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(authorization) = self.signer.authorization().await? {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request
            .header(header::CONTENT_LENGTH, hyper::body::Body::size_hint(&body).lower())
            .header(header::USER_AGENT, concat!("ashlar/", env!("CARGO_PKG_VERSION")))
            .body(body)
            .map_err(|error| StoreError::invalid(format!("{asked} cannot be: {error}")))?;
        let response = self.web.ask(asked, request).await?;
        if response.status().is_success() {
            return Ok(Answered::Done(response));
        }
        let (head, body) = response.into_parts();
        Ok(Answered::Refused(Answer::read(head.status.as_u16(), &self.web.read(asked, body).await?)))
    }

    fn strange(&self, asked: &str) -> StoreError {
        let cause = "the answer is none of Google Cloud Storage; is a proxy in between?";
        self.web.unanswered(asked, StoreError::new(ErrorKind::Retryable, cause))
    }

    /// The name of an object, as a part of a path or a query.
    fn name(&self, key: &Key) -> String {
        encoded(&format!("{}{key}", self.place.prefix))
    }

    fn objects_path(&self) -> String {
        format!("/storage/v1/b/{}/o", self.place.bucket)
    }

    async fn create(&self, asked: &str, key: &Key, body: PartsBody) -> Result<()> {
        let path =
            format!("/upload{}?uploadType=media&ifGenerationMatch=0&name={}", self.objects_path(), self.name(key));
        match self.ask(asked, Method::POST, &path, &[("content-type", KIND)], body).await? {
            Answered::Done(response) => {
                let answer = self.web.read(asked, response.into_body()).await?;
                let is_object = serde_json::from_slice::<serde_json::Value>(&answer)
                    .is_ok_and(|answer| answer.get("generation").is_some());
                if is_object { Ok(()) } else { Err(self.strange(asked)) }
            }
            Answered::Refused(answer) => Err(failure(&self.place, asked, Some(key), &answer)),
        }
    }

    /// What a 404 means to who asked for an object: `NotFound`, or what else is not there.
    async fn absent(&self, asked: &str, key: &Key, answer: &Answer) -> StoreError {
        if answer.is_of_no_object() {
            return StoreError::not_found(key);
        }
        let name = format!("{}{key}", self.place.prefix);
        match self.page(asked, &[("prefix", &name), ("maxResults", "1")]).await {
            Ok(page) if !page.names(&name) => StoreError::not_found(key),
            Ok(_) => failure(&self.place, asked, None, answer),
            Err(error) => error,
        }
    }

    /// The bytes of `range`, or all; nothing of what lies beyond the end.
    async fn fetch(&self, asked: &str, key: &Key, range: Option<Range<u64>>) -> Result<Front> {
        let range_header = range.as_ref().map(header_of);
        let headers: Vec<(&str, &str)> = range_header.iter().map(|range| ("range", range.as_str())).collect();
        let path = format!("{}/{}?alt=media", self.objects_path(), self.name(key));
        match self.ask(asked, Method::GET, &path, &headers, PartsBody::new(Vec::new())).await? {
            Answered::Done(response) => {
                let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
                if !response.headers().contains_key("x-goog-generation") && kind != Some(KIND) {
                    return Err(self.strange(asked));
                }
                // Emulators answer a range beyond the end with one that ends before it begins.
                let nothing = range.clone().filter(|_| is_range_of_nothing(&response));
                match nothing {
                    Some(_) => Ok(Front { bytes: Bytes::new(), total: None }),
                    None => self.web.object(asked, key, response, range).await,
                }
            }
            Answered::Refused(answer) if answer.status == 416 => Ok(Front { bytes: Bytes::new(), total: None }),
            Answered::Refused(answer) if answer.status == 404 => Err(self.absent(asked, key, &answer).await),
            Answered::Refused(answer) => Err(failure(&self.place, asked, None, &answer)),
        }
    }

    async fn page(&self, asked: &str, query: &[(&str, &str)]) -> Result<Page> {
        let mut path =
            format!("{}?fields={}", self.objects_path(), encoded("kind,items(name,size),prefixes,nextPageToken"));
        for (name, value) in query.iter().filter(|(_, value)| !value.is_empty()) {
            path.push_str(&format!("&{name}={}", encoded(value)));
        }
        match self.ask(asked, Method::GET, &path, &[], PartsBody::new(Vec::new())).await? {
            Answered::Done(response) => {
                let body = self.web.read(asked, response.into_body()).await?;
                Page::read(&body).ok_or_else(|| self.strange(asked))
            }
            // Nothing but the bucket is asked for here.
            Answered::Refused(answer) if answer.status == 404 && answer.message.is_empty() => {
                let message = "the bucket does not exist, or something else than Google answered".to_owned();
                Err(failure(&self.place, asked, None, &Answer { message, ..answer }))
            }
            Answered::Refused(answer) => Err(failure(&self.place, asked, None, &answer)),
        }
    }

    async fn objects(&self, asked: &str, prefix: &str, after: Option<&Key>) -> Result<ListPage> {
        let (full, offset) = (
            format!("{}{prefix}", self.place.prefix),
            after.map(|after| format!("{}{after}", self.place.prefix)).unwrap_or_default(),
        );
        let (most, mut token) = (PAGE_OBJECTS.to_string(), String::new());
        loop {
            let query =
                [("prefix", full.as_str()), ("startOffset", &offset), ("maxResults", &most), ("pageToken", &token)];
            let page = self.page(asked, &query).await?;
            let mut objects = page.objects(&self.place.prefix);
            objects.retain(|object| after.is_none_or(|after| object.key > *after));
            let is_last = page.next_page_token.is_none();
            // A server that knows no maxResults sends all.
            let is_whole = objects.len() <= PAGE_OBJECTS;
            objects.truncate(PAGE_OBJECTS);
            if !objects.is_empty() || is_last {
                return Ok(ListPage::new(objects, is_last && is_whole));
            }
            token = page.next_page_token.unwrap_or_default();
        }
    }

    async fn tops(&self, asked: &str) -> Result<Vec<String>> {
        let (prefix, mut token, mut tops) = (self.place.prefix.clone(), String::new(), Vec::new());
        loop {
            let page = self.page(asked, &[("prefix", &prefix), ("delimiter", "/"), ("pageToken", &token)]).await?;
            let folders = page.prefixes.iter().filter_map(|folder| folder.strip_prefix(&prefix)?.strip_suffix('/'));
            let objects = page.objects(&prefix);
            let objects = objects.iter().map(|object| object.key.as_str());
            tops.extend(folders.chain(objects).filter(|top| Key::new(*top).is_ok()).map(str::to_owned));
            match page.next_page_token {
                Some(next) => token = next,
                None => break,
            }
        }
        tops.sort_unstable();
        tops.dedup();
        Ok(tops)
    }

    async fn remove(&self, asked: &str, key: &Key) -> Result<()> {
        let path = format!("{}/{}", self.objects_path(), self.name(key));
        match self.ask(asked, Method::DELETE, &path, &[], PartsBody::new(Vec::new())).await? {
            Answered::Done(_) => Ok(()),
            Answered::Refused(answer) if answer.status == 404 => match self.absent(asked, key, &answer).await {
                error if error.kind == ErrorKind::NotFound => Ok(()),
                error => Err(error),
            },
            Answered::Refused(answer) => Err(failure(&self.place, asked, None, &answer)),
        }
    }
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

fn is_range_of_nothing(response: &Response<Incoming>) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
    let bounds = range.and_then(|range| range.strip_prefix("bytes ")?.split_once('/')?.0.split_once('-'));
    bounds.is_some_and(|(start, end)| match (start.parse::<u64>(), end.parse::<u64>()) {
        (Ok(start), Ok(end)) => end < start,
        _ => false,
    })
}

impl std::fmt::Debug for GcsStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GcsStore").field("place", &self.place).finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for GcsStore {
    fn url(&self) -> String {
        format!("gs://{}/{}", self.place.bucket, self.place.prefix).trim_end_matches('/').to_owned()
    }

    async fn put(&self, key: &Key, body: Vec<Bytes>) -> Result<()> {
        let asked = &format!("PUT of {key}");
        self.web.within(asked, self.create(asked, key, PartsBody::new(body))).await
    }

    async fn begin_put(&self, key: &Key, part: Bytes, missing: u64) -> bool {
        let asked = &format!("PUT of {key}");
        let body = PartsBody::that_stops(vec![part], missing);
        let _ = self.web.within(asked, self.create(asked, key, body)).await;
        true
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        let asked = &format!("GET of {key}");
        if range.is_empty() {
            // No range header asks for nothing; one byte tells whether there is such an object.
            self.web.within(asked, self.fetch(asked, key, Some(0..1))).await?;
            return Ok(Bytes::new());
        }
        Ok(self.web.within(asked, self.fetch(asked, key, Some(range))).await?.bytes)
    }

    async fn get_front(&self, key: &Key, len: u64) -> Result<Front> {
        let asked = &format!("GET of {key}");
        self.web.within(asked, self.fetch(asked, key, Some(0..len.max(1)))).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes> {
        let asked = &format!("GET of {key}");
        Ok(self.web.within(asked, self.fetch(asked, key, None)).await?.bytes)
    }

    async fn list(&self, prefix: &str, start_after: Option<&Key>) -> Result<ListPage> {
        let asked = &format!("listing of {prefix:?}");
        self.web.within(asked, self.objects(asked, prefix, start_after)).await
    }

    async fn list_top(&self) -> Result<Vec<String>> {
        let asked = "listing of the top";
        self.web.within(asked, self.tops(asked)).await
    }

    async fn delete(&self, keys: &[Key]) -> Result<()> {
        let asked = &format!("DELETE of {}", crate::human::counted(keys.len() as u64, "object"));
        let removals = keys.iter().map(|key| self.remove(asked, key)).collect::<Vec<_>>();
        // One that fails keeps none of the others from going: what is asked for again is less.
        let all = async {
            let removed: Vec<Result<()>> = stream::iter(removals).buffer_unordered(DELETES).collect().await;
            removed.into_iter().collect()
        };
        self.web.within(asked, all).await
    }
}
