//! Plain HTTP/1.1 and TLS under the S3 client: connections, bodies, and the watch over requests that stall.
//!
//! Every request reports progress ([`Progress`]), each piece sent and each piece received, and fails after a time *without* any.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::error::Error;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use hyper_util::client::legacy::{Client, ResponseFuture};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::InvalidMessage;
use tower_service::Service;

use super::super::progress::Progress;
use super::super::{ErrorKind, Result, StoreError};
use super::credentials::Environment;
use super::options::S3Options;
use super::proxy::{Proxies, ProxyError, Way};
use super::tls;

/// A pool of connections; clones share it.
#[derive(Clone)]
pub struct Http {
    client: Client<HttpsConnector<Way>, PartsBody>,
    connector: HttpsConnector<Way>,
    proxies: Arc<Proxies>,
}

/// Makes a pool for requests to `endpoint` and to the services that give credentials for it.
pub fn connect(options: &S3Options, environment: &Environment, endpoint: &str) -> Result<Http> {
    let endpoint: Uri =
        endpoint.parse().map_err(|error| StoreError::invalid(format!("store.s3.endpoint is {endpoint}: {error}")))?;
    let mut tcp = HttpConnector::new_with_resolver(Names);
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_connect_timeout(Some(options.connect_timeout));
    let config = tls::config(options, environment, endpoint.scheme_str() == Some("https"))?;
    let proxies = Arc::new(Proxies::new(environment, &endpoint)?);
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_or_http()
        .enable_http1()
        .wrap_connector(Way::new(tcp, proxies.clone()));
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(options.idle_connections_max)
        .build(connector.clone());
    Ok(Http { client, connector, proxies })
}

impl Http {
    fn request(&self, mut request: Request<PartsBody>) -> ResponseFuture {
        if let Some(authorization) = self.proxies.authorization(request.uri()) {
            request.headers_mut().insert(http::header::PROXY_AUTHORIZATION, authorization);
        }
        self.client.request(request)
    }

    /// Whether what fails to answer requests of `http://` there speaks TLS. Tries it out, directly.
    pub async fn speaks_tls(&self, plain: &Uri) -> bool {
        let Some(authority) = plain.authority().filter(|_| !self.proxies.are_used_for(plain)) else { return false };
        let Ok(by_tls) = format!("https://{authority}/").parse() else { return false };
        match tokio::time::timeout(TRIAL_TIMEOUT, self.connector.clone().call(by_tls)).await {
            Err(_) => false,
            Ok(Ok(_)) => true,
            // A certificate that is not trusted, an alert, another version: all of these are TLS.
            Ok(Err(error)) => chain(&*error)
                .any(|cause| cause.downcast_ref().is_some_and(|e| !matches!(e, rustls::Error::InvalidMessage(_)))),
        }
    }
}

/// How long it may take to find out whether a server speaks TLS.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// TCP notices a peer that vanished.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Shorter than the time after which stores close idle connections, so that we rarely meet a closed one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// The system's names, and `*.localhost` as RFC 6761 wants it (glibc alone knows only `localhost`), so that the
/// bucket can stand in the host of a server on the loopback.
#[derive(Clone, Debug)]
pub struct Names;

impl Service<Name> for Names {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, std::io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(async move {
            let addresses: Vec<SocketAddr> = match name.as_str().ends_with(".localhost") {
                true => vec![(Ipv4Addr::LOCALHOST, 0).into(), (Ipv6Addr::LOCALHOST, 0).into()],
                false => GaiResolver::new().call(name).await?.collect(),
            };
            Ok(addresses.into_iter())
        })
    }
}

/// Sends a request and waits for the head of the response, for as long as there is progress.
pub async fn send(http: &Http, request: Request<PartsBody>, stall: Duration) -> Result<(Response<Incoming>, Progress)> {
    let progress = request.body().progress.clone();
    let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
    match progress.watch(stall, http.request(request)).await {
        None => Err(stalled(stall)),
        Some(Err(error)) if error.is_connect() && chain(&error).any(is_no_tls) => Err(no_tls(&authority)),
        Some(Err(error)) => Err(broken(&error)),
        Some(Ok(response)) => Ok((response, progress)),
    }
}

/// The next piece of a response, if one comes in time.
pub async fn next_piece(body: &mut Incoming, stall: Duration) -> Option<Result<Bytes>> {
    loop {
        match tokio::time::timeout(stall, body.frame()).await {
            Err(_) => return Some(Err(stalled(stall))),
            Ok(None) => return None,
            Ok(Some(Err(error))) => return Some(Err(broken(&error))),
            Ok(Some(Ok(frame))) => {
                if let Ok(piece) = frame.into_data() {
                    return Some(Ok(piece));
                }
            }
        }
    }
}

/// A whole response of at most `bytes_max`.
pub async fn whole(mut body: Incoming, stall: Duration, bytes_max: usize) -> Result<BytesMut> {
    let mut whole = BytesMut::new();
    while let Some(piece) = next_piece(&mut body, stall).await {
        let piece = piece?;
        if whole.len() + piece.len() > bytes_max {
            return Err(StoreError::invalid(format!("an answer of more than {bytes_max} bytes makes no sense here")));
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole)
}

fn stalled(stall: Duration) -> StoreError {
    let stall = humantime::format_duration(stall);
    StoreError::new(ErrorKind::Retryable, format!("nothing sent or received for {stall}"))
}

/// A request that never got its answer. Waiting does not mend a certificate, somebody has to.
fn broken(error: &(dyn Error + 'static)) -> StoreError {
    let mut causes: Vec<String> = Vec::new();
    let mut advice = None;
    for error in chain(error) {
        let shown = match error.downcast_ref() {
            Some(tls) if tls::is_authority_as_server(tls) => {
                advice = Some(format!("; put that very certificate into {}, or issue one with CA:FALSE", tls::ROOTS));
                "invalid peer certificate: a CA certificate (CA:TRUE) serves as the server's own".to_owned()
            }
            Some(rustls::Error::InvalidCertificate(_)) => {
                advice = Some(format!(
                    "; check the endpoint's name, or name a file with its root certificate in {}",
                    tls::ROOTS
                ));
                error.to_string()
            }
            _ => error.to_string(),
        };
        if error.downcast_ref().is_some_and(|error: &ProxyError| error.is_denial) {
            advice = Some(String::new());
        }
        if causes.last().is_none_or(|last| !last.contains(&shown)) {
            causes.push(shown);
        }
    }
    let kind = if advice.is_some() { ErrorKind::Denied } else { ErrorKind::Retryable };
    StoreError::new(kind, format!("{}{}", causes.join(": "), advice.unwrap_or_default()))
}

/// Whether what answered a greeting of TLS is no TLS.
fn is_no_tls(cause: &(dyn Error + 'static)) -> bool {
    matches!(cause.downcast_ref(), Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)))
}

/// Waiting does not mend this either.
fn no_tls(authority: &str) -> StoreError {
    StoreError::new(
        ErrorKind::Denied,
        format!(
            "{authority} does not speak TLS; if it is http://{authority} that is meant, name it so in store.s3.endpoint \
             and set store.s3.allow_http = true"
        ),
    )
}

/// An error and what caused it, one after the other.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(unwrapped(error)), |error: &&'a (dyn Error + 'static)| (*error).source().map(unwrapped))
}

/// What an I/O error was made of; its `source()` would skip that.
fn unwrapped<'a>(mut error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    while let Some(inner) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        error = inner;
    }
    error
}

/// The body of a request: parts that are sent one after the other without being copied together, in pieces small
/// enough that taking one means progress.
#[derive(Debug)]
pub struct PartsBody {
    parts: VecDeque<Bytes>,
    left: u64,
    /// Bytes that are promised, and never come.
    missing: u64,
    progress: Progress,
}

/// A piece of a body that is handed to the connection at once.
const PIECE_BYTES: usize = 64 * 1024;

impl PartsBody {
    /// A body of these parts.
    pub fn new(parts: Vec<Bytes>) -> PartsBody {
        PartsBody::that_stops(parts, 0)
    }

    /// A body that promises `missing` bytes after these parts, and stops.
    pub fn that_stops(parts: Vec<Bytes>, missing: u64) -> PartsBody {
        let left = parts.iter().map(|part| part.len() as u64).sum::<u64>() + missing;
        PartsBody { parts: parts.into(), left, missing, progress: Progress::begin() }
    }
}

impl Body for PartsBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        this.progress.mark();
        while let Some(part) = this.parts.front_mut() {
            let piece = part.split_to(part.len().min(PIECE_BYTES));
            if part.is_empty() {
                this.parts.pop_front();
            }
            if !piece.is_empty() {
                this.left -= piece.len() as u64;
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
        }
        // Nobody wakes what stops: whoever began it drops it.
        if this.missing > 0 { Poll::Pending } else { Poll::Ready(None) }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_is_its_parts_in_small_pieces() {
        let parts = vec![Bytes::new(), Bytes::from(vec![1; PIECE_BYTES + 1]), Bytes::new(), Bytes::from_static(&[2])];
        let mut body = PartsBody::new(parts);
        let mut sizes = Vec::new();
        while let Some(frame) = body.frame().await {
            sizes.push(frame.unwrap().into_data().unwrap().len());
        }
        assert_eq!(sizes, [PIECE_BYTES, 1, 1]);
        assert!(body.is_end_stream());
    }
}
