//! A server for tests that answers the requests of the JSON interface of Google Cloud Storage that the client makes, and keeps their conditions, as no
//! emulator does.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A running server; it stops when this is dropped. Its one bucket is `disks`.
pub struct GcsServer {
    pub address: SocketAddr,
    pub bucket: Arc<Mutex<Bucket>>,
    accepting: JoinHandle<()>,
}

/// What it has, and how it behaves.
#[derive(Debug, Default)]
pub struct Bucket {
    pub objects: BTreeMap<String, Bytes>,
    /// `ifGenerationMatch` means nothing to it, as to the emulator of PyPI.
    pub overwrites: bool,
    /// Its errors have no body, as the emulator's.
    pub is_terse: bool,
    /// It knows neither `maxResults` nor `startOffset`, as the emulator.
    pub lists_all: bool,
    /// Everything is answered so.
    pub refuses: Option<(u16, &'static str)>,
    /// `Authorization` of the last request.
    pub authorization: Option<String>,
}

impl GcsServer {
    pub async fn start() -> GcsServer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let bucket = Arc::<Mutex<Bucket>>::default();
        let of_connections = bucket.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let Ok((socket, _)) = listener.accept().await else { return };
                let bucket = of_connections.clone();
                let service = service_fn(move |request| answer(bucket.clone(), request));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service),
                );
            }
        });
        GcsServer { address, bucket, accepting }
    }
}

impl Drop for GcsServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

type Answer = Response<Full<Bytes>>;

fn plain(status: u16, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    answer
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8().unwrap().into_owned()
}

async fn answer(bucket: Arc<Mutex<Bucket>>, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return Ok(plain(400, "")) };
    let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let query: HashMap<String, String> = head
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), decoded(value)))
        .collect();
    let mut bucket = bucket.lock();
    bucket.authorization = header("authorization");
    if let Some((status, body)) = bucket.refuses {
        return Ok(plain(status, body));
    }
    let path = head.uri.path();
    if !path.contains("/storage/v1/b/disks/o") {
        return Ok(bucket.error(404, "notFound", "The specified bucket does not exist."));
    }
    let name = path.split_once("/o/").map(|(_, name)| decoded(name));
    Ok(match (head.method.as_str(), name) {
        ("POST", None) if path.starts_with("/upload/") => bucket.put(&query, body.to_bytes()),
        ("GET", None) => bucket.list(&query),
        ("GET", Some(name)) => bucket.get(&name, header("range").as_deref()),
        ("DELETE", Some(name)) => match bucket.objects.remove(&name) {
            Some(_) => plain(204, ""),
            None => bucket.error(404, "notFound", &format!("No such object: disks/{name}")),
        },
        other => panic!("{other:?} was asked"),
    })
}

impl Bucket {
    fn error(&self, code: u16, reason: &str, message: &str) -> Answer {
        let body =
            json!({"error": {"code": code, "message": message, "errors": [{"reason": reason, "message": message}]}});
        plain(code, if self.is_terse { String::new() } else { body.to_string() })
    }

    fn put(&mut self, query: &HashMap<String, String>, body: Bytes) -> Answer {
        assert_eq!((query["uploadType"].as_str(), query["ifGenerationMatch"].as_str()), ("media", "0"));
        let name = &query["name"];
        if !self.overwrites && self.objects.contains_key(name) {
            let message = "At least one of the pre-conditions you specified did not hold.";
            return self.error(412, "conditionNotMet", message);
        }
        self.objects.insert(name.clone(), body);
        plain(200, json!({"kind": "storage#object", "name": name, "generation": "1"}).to_string())
    }

    fn get(&self, name: &str, range: Option<&str>) -> Answer {
        let Some(body) = self.objects.get(name) else {
            // Errors of downloads are plain text.
            return plain(404, if self.is_terse { String::new() } else { format!("No such object: disks/{name}") });
        };
        let mut answer = match range.map(|range| range.strip_prefix("bytes=").unwrap().split_once('-').unwrap()) {
            None => plain(200, body.clone()),
            Some((start, end)) => {
                let start: usize = start.parse().unwrap();
                let end = end.parse::<usize>().map_or(body.len(), |last| body.len().min(last + 1));
                if start >= body.len() {
                    return plain(416, "The requested range cannot be satisfied.");
                }
                let mut answer = plain(206, body.slice(start..end));
                let said = format!("bytes {start}-{}/{}", end - 1, body.len());
                answer.headers_mut().insert("content-range", said.parse().unwrap());
                answer
            }
        };
        answer.headers_mut().insert("x-goog-generation", "1".parse().unwrap());
        answer
    }

    fn list(&self, query: &HashMap<String, String>) -> Answer {
        let of = |name: &str| query.get(name).map_or("", String::as_str);
        let prefix = of("prefix");
        let from = if self.lists_all { "" } else { of("startOffset").max(of("pageToken")) };
        let most = of("maxResults").parse().ok().filter(|_| !self.lists_all).unwrap_or(usize::MAX);
        let (mut items, mut prefixes, mut next) = (Vec::new(), Vec::new(), None);
        for (name, body) in self.objects.iter().filter(|(name, _)| name.starts_with(prefix) && name.as_str() >= from) {
            let folder = name[prefix.len()..].split_once('/').filter(|_| of("delimiter") == "/");
            if let Some((folder, _)) = folder {
                let folder = format!("{prefix}{folder}/");
                if prefixes.last() != Some(&folder) {
                    prefixes.push(folder);
                }
                continue;
            }
            if items.len() == most {
                next = Some(name.clone());
                break;
            }
            items.push(json!({"name": name, "size": body.len().to_string()}));
        }
        let mut page = json!({"kind": "storage#objects", "items": items, "prefixes": prefixes});
        if let Some(next) = next {
            page["nextPageToken"] = json!(next);
        }
        plain(200, page.to_string())
    }
}
