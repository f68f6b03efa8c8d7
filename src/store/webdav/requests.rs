//! The requests of a WebDAV store, one by one: what is asked, and what the answer is taken for.

use std::ops::Range;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};

use super::super::s3::http::PartsBody;
use super::super::web::Web;
use super::super::{ErrorKind, Front, Key, Result, StoreError};
use super::answers::{self, Listing};

/// What is asked of folders and files.
const WANTED: &str = "<?xml version=\"1.0\" encoding=\"utf-8\"?><propfind xmlns=\"DAV:\"><prop><resourcetype/><getcontentlength/>\
                      <getlastmodified/></prop></propfind>";

/// One server, and who asks it.
pub struct Requests {
    /// The connections.
    pub web: Web,
    /// `https://HOST[:PORT]`.
    pub endpoint: String,
    /// What every request says of who asks.
    pub login: Option<HeaderValue>,
}

/// An answer that is no object.
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// What was asked, for people, and how.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// For what: "PUT of v/1".
    pub words: &'a str,
    /// The method.
    pub verb: &'static str,
}

impl Requests {
    fn request(&self, verb: &str, path: &str, headers: &[(&str, &str)], body: PartsBody) -> Result<Request<PartsBody>> {
        let wrong = |error: &dyn std::fmt::Display| StoreError::invalid(format!("{verb} of {path} cannot be: {error}"));
        let method = Method::from_bytes(verb.as_bytes()).map_err(|error| wrong(&error))?;
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.endpoint));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(login) = &self.login {
            request = request.header(header::AUTHORIZATION, login);
        }
        let len = hyper::body::Body::size_hint(&body).lower();
        if len > 0 || verb == "PUT" {
            request = request.header(header::CONTENT_LENGTH, len);
        }
        request
            .header(header::USER_AGENT, concat!("ashlar/", env!("CARGO_PKG_VERSION")))
            .body(body)
            .map_err(|error| wrong(&error))
    }

    /// Asks, and reads the whole answer.
    pub async fn tell(
        &self,
        words: &str,
        verb: &'static str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<Bytes>,
    ) -> Result<Answer> {
        let request = self.request(verb, path, headers, PartsBody::new(body))?;
        let (head, body) = self.web.ask(words, request).await?.into_parts();
        let body = self.web.read(words, body).await?;
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    /// What an answer other than the one wanted means.
    pub fn failure(&self, asked: Asked<'_>, answer: &Answer) -> StoreError {
        answers::failure(&self.endpoint, asked.verb, asked.words, answer.status, &answer.headers)
    }

    /// PUT of a file.
    pub async fn put(&self, words: &str, path: &str, body: Vec<Bytes>) -> Result<Answer> {
        self.tell(words, "PUT", path, &[("content-type", "application/octet-stream")], body).await
    }

    /// Makes a folder. False if what it belongs into is not there.
    pub async fn make_folder(&self, words: &str, path: &str) -> Result<bool> {
        let verb = "MKCOL";
        let answer = self.tell(words, verb, path, &[], Vec::new()).await?;
        match answer.status.as_u16() {
            200..=299 => Ok(true),
            // A folder that is there is "not allowed", and in Apache "forbidden" if it was made a moment ago.
            405 | 403 if self.find(words, path, "0").await?.is_some_and(|(found, _)| found.itself.is_folder) => {
                Ok(true)
            }
            404 | 409 => Ok(false),
            _ => Err(self.failure(Asked { words, verb }, &answer)),
        }
    }

    /// Gives a folder another name, unless that is taken. The status, which says little: see `webdav.rs`.
    pub async fn rename(&self, words: &str, from: &str, to: &str) -> Result<Answer> {
        // Apache wants a whole URL here.
        let to = format!("{}{to}", self.endpoint);
        self.tell(words, "MOVE", from, &[("destination", &to), ("overwrite", "F")], Vec::new()).await
    }

    /// What is there, with the answer's own headers; `None` if nothing is. Depth "1": with what is in it.
    pub async fn find(&self, words: &str, path: &str, depth: &str) -> Result<Option<(Listing, HeaderMap)>> {
        let verb = "PROPFIND";
        let headers = [("depth", depth), ("content-type", "application/xml; charset=\"utf-8\"")];
        let answer = self.tell(words, verb, path, &headers, vec![Bytes::from_static(WANTED.as_bytes())]).await?;
        match answer.status.as_u16() {
            207 => match answers::read(&answer.body) {
                Some(listing) => Ok(Some((listing, answer.headers))),
                None => {
                    let cause = "the answer is none of WebDAV; is a proxy in between?";
                    Err(self.web.unanswered(words, StoreError::new(ErrorKind::Retryable, cause)))
                }
            },
            404 => Ok(None),
            200..=299 => {
                let cause = "PROPFIND was answered with a page; is there a WebDAV server at that path?";
                Err(self.web.unanswered(words, StoreError::invalid(cause)))
            }
            _ => Err(self.failure(Asked { words, verb }, &answer)),
        }
    }

    /// Deletes a folder with what is in it; one that is not there counts as deleted.
    pub async fn delete(&self, words: &str, path: &str) -> Result<()> {
        let verb = "DELETE";
        let answer = self.tell(words, verb, path, &[], Vec::new()).await?;
        match answer.status.as_u16() {
            200 | 202 | 204 | 404 => Ok(()),
            _ => Err(self.failure(Asked { words, verb }, &answer)),
        }
    }

    /// The bytes of `range` of a file, or all; `None` if there is none. Nothing of what lies beyond its end.
    pub async fn get(&self, words: &str, key: &Key, path: &str, range: Option<Range<u64>>) -> Result<Option<Front>> {
        let verb = "GET";
        let range_header = range.as_ref().map(super::super::s3::ranges::header_of);
        let headers: Vec<(&str, &str)> = range_header.iter().map(|range| ("range", range.as_str())).collect();
        let response = self.web.ask(words, self.request(verb, path, &headers, PartsBody::new(Vec::new()))?).await?;
        if matches!(response.status().as_u16(), 200 | 206) {
            return self.web.object(words, key, response, range).await.map(Some);
        }
        let (head, body) = response.into_parts();
        let body = self.web.read(words, body).await?;
        match head.status.as_u16() {
            404 => Ok(None),
            416 => Ok(Some(Front { bytes: Bytes::new(), total: None })),
            _ => Err(self.failure(Asked { words, verb }, &Answer { status: head.status, headers: head.headers, body })),
        }
    }
}
