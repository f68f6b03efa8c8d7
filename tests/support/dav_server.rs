//! A WebDAV server for tests, over a tree in memory, which can do what real ones do wrong.

use std::collections::BTreeMap;
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
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A running server; it stops when this is dropped.
pub struct DavServer {
    pub address: SocketAddr,
    pub tree: Arc<Mutex<Tree>>,
    accepting: JoinHandle<()>,
}

/// What it has, and how it behaves.
#[derive(Debug)]
pub struct Tree {
    /// Files with their content, folders without; by path without `/` at its end.
    pub nodes: BTreeMap<String, Option<Bytes>>,
    /// What a MOVE to a taken name is answered with: 412 of nginx, 207 of lighttpd, 500 and 403 of Apache at times.
    pub taken: u16,
    /// What PUT and MOVE are answered with where a folder is missing: 409, or of nginx 500 and 404.
    pub missing: u16,
    /// The next MOVEs are done, and answered with an error all the same.
    pub lost_moves: usize,
    /// The next PUTs keep half of the body, and are answered with an error.
    pub cut_puts: usize,
    /// A MOVE looks whether the name is free, and then takes it whatever became of that.
    pub races: bool,
    /// Everything is answered so.
    pub refuses: Option<(u16, &'static str, &'static str)>,
    /// The value that Authorization must have.
    pub login: Option<&'static str>,
    /// Requests so far: method and path.
    pub requests: Vec<(String, String)>,
    /// When folders were changed.
    pub changed: BTreeMap<String, &'static str>,
}

impl Default for Tree {
    fn default() -> Tree {
        Tree {
            nodes: BTreeMap::from([(String::new(), None)]),
            taken: 412,
            missing: 409,
            lost_moves: 0,
            cut_puts: 0,
            races: false,
            refuses: None,
            login: None,
            requests: Vec::new(),
            changed: BTreeMap::new(),
        }
    }
}

impl DavServer {
    pub async fn start() -> DavServer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tree = Arc::<Mutex<Tree>>::default();
        let of_connections = tree.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let Ok((socket, _)) = listener.accept().await else { return };
                let tree = of_connections.clone();
                let service = service_fn(move |request| answer(tree.clone(), request));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service),
                );
            }
        });
        DavServer { address, tree, accepting }
    }

    pub fn url(&self, path: &str) -> String {
        format!("webdav://{}/{path}", self.address)
    }

    /// How often that was asked.
    pub fn count(&self, method: &str) -> usize {
        self.tree.lock().requests.iter().filter(|(asked, _)| asked == method).count()
    }
}

impl Drop for DavServer {
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

async fn answer(tree: Arc<Mutex<Tree>>, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let (head, body) = request.into_parts();
    // A body that breaks off: the connection is over, and nobody hears of it.
    let Ok(body) = body.collect().await else { return Ok(plain(400, "")) };
    let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let raced = head.method.as_str() == "MOVE" && tree.lock().races;
    let destination = header("destination").map(|to| path_of(&to));
    let was_free = destination.as_ref().is_none_or(|to| !tree.lock().nodes.contains_key(to));
    if raced {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let mut tree = tree.lock();
    let path = path_of(head.uri.path());
    tree.requests.push((head.method.to_string(), path.clone()));
    if tree.login.is_some_and(|login| header("authorization").as_deref() != Some(login)) {
        return Ok(plain(401, ""));
    }
    if let Some((status, name, value)) = tree.refuses {
        let mut answer = plain(status, "<html>no</html>");
        answer.headers_mut().insert(name, value.parse().unwrap());
        return Ok(answer);
    }
    let range = header("range").map(|range| range.strip_prefix("bytes=").unwrap().to_owned());
    Ok(match head.method.as_str() {
        "MKCOL" => tree.make_folder(&path),
        "PUT" => tree.put(&path, body.to_bytes()),
        "MOVE" if raced => tree.rename(&path, &destination.unwrap(), was_free),
        "MOVE" => {
            let to = destination.unwrap();
            assert_eq!(header("overwrite").as_deref(), Some("F"));
            let is_free = !tree.nodes.contains_key(&to);
            tree.rename(&path, &to, is_free)
        }
        "PROPFIND" => tree.find(&path, header("depth").as_deref() == Some("1")),
        "DELETE" => tree.delete(&path),
        "GET" => tree.get(&path, range.as_deref()),
        other => panic!("{other} was asked"),
    })
}

fn path_of(target: &str) -> String {
    let path = target.split_once("://").map_or(target, |(_, rest)| &rest[rest.find('/').unwrap_or(rest.len())..]);
    percent_decode_str(path.trim_end_matches('/')).decode_utf8().unwrap().into_owned()
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

impl Tree {
    fn is_folder(&self, path: &str) -> bool {
        self.nodes.get(path).is_some_and(Option::is_none)
    }

    fn below(&self, path: &str) -> Vec<String> {
        let inside = format!("{path}/");
        self.nodes.keys().filter(|node| *node == path || node.starts_with(&inside)).cloned().collect()
    }

    fn make_folder(&mut self, path: &str) -> Answer {
        match (self.nodes.contains_key(path), self.is_folder(parent(path))) {
            (true, _) => plain(405, ""),
            (false, false) => plain(409, ""),
            (false, true) => {
                self.nodes.insert(path.to_owned(), None);
                plain(201, "")
            }
        }
    }

    fn put(&mut self, path: &str, body: Bytes) -> Answer {
        if !self.is_folder(parent(path)) {
            return plain(self.missing, "");
        }
        if self.cut_puts > 0 {
            self.cut_puts -= 1;
            self.nodes.insert(path.to_owned(), Some(body.slice(..body.len() / 2)));
            return plain(503, "");
        }
        self.nodes.insert(path.to_owned(), Some(body));
        plain(201, "")
    }

    fn rename(&mut self, from: &str, to: &str, is_free: bool) -> Answer {
        if !self.nodes.contains_key(from) {
            return plain(404, "");
        }
        if !is_free {
            return plain(self.taken, "");
        }
        if !self.is_folder(parent(to)) {
            return plain(self.missing, "");
        }
        for node in self.below(to) {
            self.nodes.remove(&node);
        }
        for node in self.below(from) {
            let content = self.nodes.remove(&node).unwrap();
            self.nodes.insert(format!("{to}{}", &node[from.len()..]), content);
        }
        if self.lost_moves > 0 {
            self.lost_moves -= 1;
            return plain(500, "");
        }
        plain(201, "")
    }

    fn find(&self, path: &str, with_inside: bool) -> Answer {
        if !self.nodes.contains_key(path) {
            return plain(404, "<html>not here</html>");
        }
        let inside = self.nodes.keys().filter(|node| with_inside && !node.is_empty() && parent(node) == path);
        let mut text = String::from("<?xml version=\"1.0\"?><D:multistatus xmlns:D=\"DAV:\">");
        for node in std::iter::once(path).chain(inside.map(String::as_str).filter(|node| *node != path)) {
            let changed = self.changed.get(node).copied().unwrap_or("Sun, 29 Nov 2026 00:00:00 GMT");
            let (end, what) = match &self.nodes[node] {
                None => ("/", "<D:resourcetype><D:collection/></D:resourcetype>".to_owned()),
                Some(body) => ("", format!("<D:resourcetype/><D:getcontentlength>{}</D:getcontentlength>", body.len())),
            };
            text.push_str(&format!(
                "<D:response><D:href>{node}{end}</D:href><D:propstat><D:prop>{what}<D:getlastmodified>{changed}</D:getlastmodified></D:prop>\
                 <D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>"
            ));
        }
        text.push_str("</D:multistatus>");
        let mut answer = plain(207, text);
        answer.headers_mut().insert("date", "Sun, 29 Nov 2026 01:00:00 GMT".parse().unwrap());
        answer
    }

    fn delete(&mut self, path: &str) -> Answer {
        let below = self.below(path);
        below.iter().for_each(|node| drop(self.nodes.remove(node)));
        plain(if below.is_empty() { 404 } else { 204 }, "")
    }

    fn get(&self, path: &str, range: Option<&str>) -> Answer {
        let Some(Some(body)) = self.nodes.get(path) else { return plain(404, "") };
        let Some(range) = range else { return plain(200, body.clone()) };
        let (start, end) = range.split_once('-').unwrap();
        let start: usize = start.parse().unwrap();
        let end = end.parse::<usize>().map_or(body.len(), |last| body.len().min(last + 1));
        if start >= body.len() {
            return plain(416, "");
        }
        let mut answer = plain(206, body.slice(start..end));
        let said = format!("bytes {start}-{}/{}", end - 1, body.len());
        answer.headers_mut().insert("content-range", said.parse().unwrap());
        answer
    }
}
