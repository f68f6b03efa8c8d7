//! The way to a host: directly, or through the proxy that the environment names.
//!
//! The variables are those of curl and most other programs: `HTTPS_PROXY` for TLS, `HTTP_PROXY` without, `ALL_PROXY` for
//! what has none of its own, and `NO_PROXY` for hosts, domains and networks that are reached directly; each also in
//! lower case, which is looked at second. TLS goes through a tunnel (CONNECT), so that a proxy sees no more than the
//! host's name; without TLS the proxy is asked to forward each request.
//!
//! Metadata services of virtual machines and containers are never asked through a proxy: they tell who asks by where
//! the request comes from.
//!
//! A proxy's URL may hold a password. No message shows more than its host.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use reqsign_core::Env;
use tokio::net::TcpStream;
use tower_service::Service;

use super::super::{Result, StoreError};
use super::credentials::Environment;
use super::http::Names;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Where metadata services live, which are always reached directly.
const LINK_LOCAL: &str = "169.254.0.0/16,fe80::/10,fd00:ec2::/32,metadata.google.internal";

/// Which hosts are reached through which proxy.
#[derive(Debug)]
pub struct Proxies(Matcher);

impl Proxies {
    /// The proxies that the environment names. `Invalid` if the one for `endpoint` is none that can be used.
    pub fn new(environment: &Environment, endpoint: &Uri) -> Result<Proxies> {
        let set = |name: &str| {
            let value = |name: String| environment.var(&name).filter(|value| !value.is_empty());
            value(name.to_owned()).or_else(|| value(name.to_lowercase()))
        };
        let no = format!("{},{LINK_LOCAL}", set("NO_PROXY").unwrap_or_default());
        let own = if is_tls(endpoint) { "HTTPS_PROXY" } else { "HTTP_PROXY" };
        let used = [own, "ALL_PROXY"].into_iter().find_map(|name| Some((name, set(name)?)));
        if let Some((name, value)) = used
            && Matcher::builder().all("http://proxy").no(no.as_str()).build().intercept(endpoint).is_some()
        {
            let read = Matcher::builder().all(value).build().intercept(endpoint);
            read.filter(is_usable).ok_or_else(|| {
                StoreError::invalid(format!(
                    "{name} (not shown, since it may hold a password) names no proxy that can be used; it must be \
                     http://[USER:PASSWORD@]HOST[:PORT]; or name the store's host in NO_PROXY"
                ))
            })?;
        }
        let of = |name| set(name).unwrap_or_default();
        let matcher = Matcher::builder().all(of("ALL_PROXY")).http(of("HTTP_PROXY")).https(of("HTTPS_PROXY")).no(no);
        Ok(Proxies(matcher.build()))
    }

    /// Whether `uri` is reached through a proxy.
    pub fn are_used_for(&self, uri: &Uri) -> bool {
        self.0.intercept(uri).is_some()
    }

    /// The credentials for the proxy that is asked to forward requests for `uri`.
    pub fn authorization(&self, uri: &Uri) -> Option<HeaderValue> {
        match is_tls(uri) {
            true => None, // that is said when the tunnel is made
            false => self.0.intercept(uri)?.basic_auth().cloned(),
        }
    }
}

fn is_tls(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https")
}

fn is_usable(proxy: &Intercept) -> bool {
    proxy.uri().scheme_str() == Some("http")
}

/// Makes connections to where requests go, or to the proxy before it.
#[derive(Clone, Debug)]
pub struct Way {
    tcp: HttpConnector<Names>,
    proxies: Arc<Proxies>,
}

impl Way {
    /// Connections by `tcp`, and through `proxies`.
    pub fn new(tcp: HttpConnector<Names>, proxies: Arc<Proxies>) -> Way {
        Way { tcp, proxies }
    }
}

/// A failure on the way through a proxy.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ProxyError {
    message: String,
    /// Whether the proxy wants credentials, or others.
    pub is_denial: bool,
    #[source]
    cause: BoxError,
}

impl ProxyError {
    fn new(proxy: &Uri, cause: BoxError) -> ProxyError {
        let proxy = format!("the proxy {}", proxy.to_string().trim_end_matches('/'));
        // The type of this error is not public.
        let is_denial = cause.to_string().contains("proxy authorization required");
        let message = match is_denial {
            true => {
                format!("{proxy} wants credentials; put them into the URL of HTTPS_PROXY, or name the host in NO_PROXY")
            }
            false => format!("no way through {proxy}"),
        };
        ProxyError { message, is_denial, cause }
    }
}

impl Service<Uri> for Way {
    type Response = Stream;
    type Error = BoxError;
    type Future = BoxFuture<'static, std::result::Result<Stream, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<std::result::Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(BoxError::from)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let Some(intercept) = self.proxies.0.intercept(&to) else {
            let connecting = self.tcp.call(to);
            return Box::pin(async move { Ok(Stream { tcp: connecting.await?, is_forwarded: false }) });
        };
        let proxy = intercept.uri().clone();
        let failed = move |cause| BoxError::from(ProxyError::new(&proxy, cause));
        if !is_usable(&intercept) {
            return Box::pin(async move { Err(failed("it is none of http://".into())) });
        }
        if !is_tls(&to) {
            let connecting = self.tcp.call(intercept.uri().clone());
            return Box::pin(async move {
                let tcp = connecting.await.map_err(|error| failed(error.into()))?;
                Ok(Stream { tcp, is_forwarded: true })
            });
        }
        let mut tunnel = Tunnel::new(intercept.uri().clone(), self.tcp.clone());
        if let Some(authorization) = intercept.basic_auth() {
            tunnel = tunnel.with_auth(authorization.clone());
        }
        let connecting = tunnel.call(to);
        Box::pin(async move {
            let tcp = connecting.await.map_err(|error| failed(error.into()))?;
            Ok(Stream { tcp, is_forwarded: false })
        })
    }
}

/// A connection, which knows whether a proxy reads the requests on it.
#[derive(Debug)]
pub struct Stream {
    tcp: TokioIo<TcpStream>,
    is_forwarded: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.tcp.connected().proxy(self.is_forwarded)
    }
}

impl Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, into)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)], endpoint: &'static str) -> Result<Proxies> {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Proxies::new(&Environment::Fixed(variables), &Uri::from_static(endpoint))
    }

    #[test]
    fn which_hosts_are_reached_through_a_proxy() {
        const S3: &str = "https://s3.example.com";
        let p = "http://proxy:3128";
        for (variables, endpoint, is_used) in [
            (&[][..], S3, false),
            (&[("HTTPS_PROXY", p)], S3, true),
            (&[("https_proxy", p)], S3, true),
            (&[("HTTPS_PROXY", ""), ("https_proxy", "proxy:3128")], S3, true),
            (&[("HTTP_PROXY", p)], S3, false),
            (&[("HTTP_PROXY", p)], "http://s3.example.com", true),
            (&[("ALL_PROXY", p)], S3, true),
            (&[("HTTPS_PROXY", p), ("NO_PROXY", "example.com")], S3, false),
            (&[("HTTPS_PROXY", p), ("no_proxy", ".example.com,x")], S3, false),
            (&[("HTTPS_PROXY", p), ("NO_PROXY", "*")], S3, false),
            (&[("HTTPS_PROXY", p), ("NO_PROXY", "10.0.0.0/8")], "https://10.1.2.3:9000", false),
            (&[("HTTPS_PROXY", p), ("NO_PROXY", "ample.com")], S3, true),
            (&[("HTTP_PROXY", p)], "http://169.254.169.254", false),
            (&[("HTTP_PROXY", p)], "http://[fd00:ec2::254]", false),
            (&[("HTTP_PROXY", p)], "http://metadata.google.internal", false),
        ] {
            let found = proxies(variables, endpoint).unwrap();
            assert_eq!(found.are_used_for(&Uri::from_static(endpoint)), is_used, "{variables:?} {endpoint}");
        }
    }

    #[test]
    fn what_is_no_proxy_is_refused_without_its_password_unless_it_does_not_matter() {
        for bad in ["socks5://me:secret@proxy", "https://me:secret@proxy", "me:secret@", "http://me:secret@pro xy"] {
            let error = proxies(&[("HTTPS_PROXY", bad)], "https://s3").unwrap_err();
            assert!(error.message.starts_with("HTTPS_PROXY (not shown"), "{error}");
            assert!(!error.message.contains("secret"), "{error}");
            proxies(&[("HTTPS_PROXY", bad)], "http://s3").unwrap();
            proxies(&[("HTTPS_PROXY", bad), ("NO_PROXY", "s3")], "https://s3").unwrap();
        }
        let good = proxies(&[("HTTPS_PROXY", "http://me:secret@proxy")], "https://s3").unwrap();
        assert!(!format!("{good:?}").contains("secret"));
    }
}
