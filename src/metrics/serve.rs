//! The listener: accepts, and has each connection served by a task of its own, within the limits.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderName, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::gate::{Gate, is_open};
use super::{Options, Teller, family, fault, page, web};
use crate::nbd::Tls;
use crate::nbd::access::Refusals;
use crate::outside::Workers;

const CROSS_ORIGIN_RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// What this listener's options are called.
const SECTION: &str = "metrics.tls";

/// How long to wait when a connection cannot be accepted, for lack of file descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bytes of a request that are read at most; Prometheus sends some hundred.
const REQUEST_MAX: usize = 16 << 10;

/// The longest file with a token that is read, in bytes.
const TOKEN_FILE_MAX: u64 = 64 << 10;

/// Listens for those who watch, who wait until [`Listener::run`].
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    tls: Option<Tls>,
    gate: Gate,
    options: Options,
}

impl Listener {
    /// Listens on that address. Fails if it cannot be had, is open to everybody, or the files cannot be used; the error is a sentence.
    pub async fn open(options: &Options, address: SocketAddr) -> io::Result<Listener> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
        if let Some(fault) = fault(options, address) {
            return Err(invalid(format!("metrics.listen: {fault}")));
        }
        let (gate, tls) = files(options).await.map_err(invalid)?;
        if is_open(options, address) {
            warn!(
                "metrics.listen = {address}: the token goes over the network for everybody to read; set metrics.tls, or trust the network"
            );
        }
        let failed = |error: io::Error| io::Error::new(error.kind(), format!("metrics.listen = {address}: {error}"));
        let tcp = TcpListener::bind(address).await.map_err(failed)?;
        Ok(Listener { tcp, tls, gate, options: options.clone() })
    }

    /// Where the metrics are, with the port that was taken.
    pub fn url(&self) -> io::Result<String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        Ok(format!("{scheme}://{}/metrics", self.tcp.local_addr()?))
    }

    /// Answers with what `teller` tells, until the task is dropped.
    pub async fn run(self, teller: Arc<dyn Teller>) {
        let Listener { tcp, tls, gate, options } = self;
        let tls = tls.map(Arc::new);
        let listen = options.listen.clone().unwrap_or_default();
        let desk =
            Arc::new(Desk { teller, gate, listen, one_at_a_time: Mutex::new(()), turned_away: Refusals::default() });
        let accept = accept(tcp, tls.clone(), desk, &options);
        match &tls {
            Some(tls) => tokio::select! {
                () = accept => {}
                () = tls.keep_fresh() => {}
            },
            None => accept.await,
        }
    }
}

/// Whether the files that the options name can be used; the error is a sentence.
pub async fn check_files(options: &Options) -> Result<(), String> {
    files(options).await.map(drop)
}

async fn files(options: &Options) -> Result<(Gate, Option<Tls>), String> {
    let gate = match &options.token_file {
        None => Gate::open(),
        Some(path) => gate_of(path).await?,
    };
    let tls = Tls::load_as(SECTION, &options.tls.options()).await.map_err(|error| error.to_string())?;
    Ok((gate, tls))
}

async fn accept(tcp: TcpListener, tls: Option<Arc<Tls>>, desk: Arc<Desk>, options: &Options) {
    let (places, mut tasks) = (Arc::new(Semaphore::new(options.max_connections)), JoinSet::new());
    loop {
        // Who finds no place waits in the queue of the kernel. The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        while tasks.try_join_next().is_some() {}
        match tcp.accept().await {
            Ok((stream, peer)) => {
                let (tls, desk, timeout) = (tls.clone(), Arc::clone(&desk), options.timeout);
                tasks.spawn(async move {
                    match tokio::time::timeout(timeout, attend(stream, tls, desk)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => debug!(%peer, "a client of the metrics left: {error}"),
                        Err(_) => debug!(%peer, "a client of the metrics took longer than metrics.timeout"),
                    }
                    drop(place);
                });
            }
            Err(error) => {
                debug!("cannot accept a client of the metrics, trying again: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn attend(stream: TcpStream, tls: Option<Arc<Tls>>, desk: Arc<Desk>) -> io::Result<()> {
    match tls {
        Some(tls) => speak(tls.accept(stream).await?, desk).await,
        None => speak(stream, desk).await,
    }
}

/// One request and its answer.
async fn speak<S: AsyncRead + AsyncWrite + Unpin>(stream: S, desk: Arc<Desk>) -> io::Result<()> {
    let answer = service_fn(|request: Request<Incoming>| {
        let desk = Arc::clone(&desk);
        async move { Ok::<_, Infallible>(desk.answer(&request).await) }
    });
    // The deadline of the whole connection is also that of the request's head.
    let mut http = http1::Builder::new();
    http.keep_alive(false).max_buf_size(REQUEST_MAX).header_read_timeout(None);
    http.serve_connection(TokioIo::new(stream), answer).await.map_err(io::Error::other)
}

/// Where answers are made.
struct Desk {
    teller: Arc<dyn Teller>,
    gate: Gate,
    /// What the configuration says, if it does.
    listen: String,
    /// However many ask, one page is put together at a time.
    one_at_a_time: Mutex<()>,
    turned_away: Refusals,
}

/// An answer with this type of text.
pub(super) type Answer = Response<Full<Bytes>>;

const TEXT: &str = "text/plain; charset=utf-8";

/// What is there.
const PLACES: &str = "/          a page for people\n/metrics   for Prometheus\n/healthz   the process lives\n/readyz    its volumes can be used\n";

impl Desk {
    async fn answer<B>(&self, request: &Request<B>) -> Answer {
        if ![Method::GET, Method::HEAD].contains(request.method()) {
            return with(ALLOW, "GET, HEAD", text(StatusCode::METHOD_NOT_ALLOWED, "accepted are GET and HEAD\n"));
        }
        let path = request.uri().path();
        // That the process lives is no secret to whoever got this far.
        if path == "/healthz" {
            return text(StatusCode::OK, "ok\n");
        }
        let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
        if !self.gate.knows(host, &self.listen) {
            let refusal = "this listener has another name: ask for its address, for localhost, or for the name in metrics.listen\n";
            return text(StatusCode::MISDIRECTED_REQUEST, refusal);
        }
        let shown = request.headers().get(AUTHORIZATION).map(http::HeaderValue::as_bytes);
        if !self.gate.lets_in(shown) {
            if let Some(count) = self.turned_away.count() {
                warn!(count, "turned a client of the metrics away: it did not show the token of metrics.token_file");
            }
            let refusal =
                text(StatusCode::UNAUTHORIZED, "show the token: Authorization: Bearer TOKEN, or as a password\n");
            // Browsers look for the one that they know line by line, and ask for its password.
            let mut refusal = with(WWW_AUTHENTICATE, "Bearer", refusal);
            let basic = "Basic realm=\"ashlar: any name, and the token of metrics.token_file as the password\"";
            refusal.headers_mut().append(WWW_AUTHENTICATE, http::HeaderValue::from_static(basic));
            return refusal;
        }
        match path {
            "/metrics" => self.metrics().await,
            "/readyz" => self.ready().await,
            "/" => web::page(),
            "/status.json" => json(self.status().await),
            "/samples.json" => json(self.samples(request.uri().query()).await),
            _ => text(StatusCode::NOT_FOUND, PLACES),
        }
    }

    async fn metrics(&self) -> Answer {
        let _turn = self.one_at_a_time.lock().await;
        let families = self.teller.metrics().await;
        let page = Workers::Threads.run(move || page(families)).await;
        with(CONTENT_TYPE, family::CONTENT_TYPE, text(StatusCode::OK, page))
    }

    async fn status(&self) -> Vec<u8> {
        let _turn = self.one_at_a_time.lock().await;
        self.teller.status().await
    }

    async fn samples(&self, query: Option<&str>) -> Vec<u8> {
        let _turn = self.one_at_a_time.lock().await;
        self.teller.samples(after(query)).await
    }

    async fn ready(&self) -> Answer {
        let troubles = self.teller.troubles().await;
        match troubles.is_empty() {
            true => text(StatusCode::OK, "ok\n"),
            false => text(StatusCode::SERVICE_UNAVAILABLE, troubles.join("\n") + "\n"),
        }
    }
}

/// The moment in `after=MILLISECONDS`; else the beginning.
fn after(query: Option<&str>) -> u64 {
    let mut pairs = query.into_iter().flat_map(|query| query.split('&'));
    pairs.find_map(|pair| pair.strip_prefix("after=")?.parse().ok()).unwrap_or(0)
}

fn json(document: Vec<u8>) -> Answer {
    with(CONTENT_TYPE, "application/json", text(StatusCode::OK, document))
}

pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    // No other page may read what an answer says, or make something else of it than it is.
    let answer = with(CROSS_ORIGIN_RESOURCE_POLICY, "same-origin", with(X_CONTENT_TYPE_OPTIONS, "nosniff", answer));
    with(CACHE_CONTROL, "no-store", with(CONTENT_TYPE, TEXT, answer))
}

pub(super) fn with(name: HeaderName, value: &'static str, mut answer: Answer) -> Answer {
    let value = http::HeaderValue::from_static(value);
    answer.headers_mut().insert(name, value);
    answer
}

/// Who shows the token of that file may look.
async fn gate_of(path: &Path) -> Result<Gate, String> {
    let path = path.to_owned();
    Workers::Threads
        .run(move || {
            let said = |why: String| format!("metrics.token_file = {}: {why}", path.display());
            let text = read_token(&path).map_err(|error| said(error.to_string()))?;
            Gate::of_token(&text).map_err(said)
        })
        .await
}

#[allow(clippy::disallowed_methods)] // no file of ours: the disk's door is for what must not be lost
fn read_token(path: &Path) -> io::Result<zeroize::Zeroizing<String>> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() || metadata.len() > TOKEN_FILE_MAX {
        return Err(io::Error::other("accepted is a file of at most 64 KiB"));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        let path = path.display();
        warn!("metrics.token_file = {path}: other users may read the token: chmod 600 {path}");
    }
    std::fs::read_to_string(path).map(Into::into)
}
