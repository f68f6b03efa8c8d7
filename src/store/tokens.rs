//! What `object_store` asks of services that give tokens goes over our own connections, as every request does.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};

use super::StoreError;
use super::s3::http::{Http, PartsBody, send, whole};

/// Bytes of an answer of a service that gives tokens, at most.
const TOKEN_BYTES_MAX: usize = 1 << 20;

/// Gives the library our connections.
#[derive(Clone)]
pub struct Connector {
    http: Http,
    stall: Duration,
}

impl Connector {
    /// Over these connections; a request without progress for so long has failed.
    pub fn new(http: Http, stall: Duration) -> Connector {
        Connector { http, stall }
    }
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connector")
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Connector {
    async fn call(&self, request: HttpRequest) -> std::result::Result<HttpResponse, HttpError> {
        let failed = |error: StoreError| HttpError::new(HttpErrorKind::Unknown, error);
        let (head, body) = request.into_parts();
        let body: Bytes = body.collect().await?.to_bytes();
        let request = Request::from_parts(head, PartsBody::new(vec![body]));
        let (response, _) = send(&self.http, request, self.stall).await.map_err(failed)?;
        let (head, body) = response.into_parts();
        let body = whole(body, self.stall, TOKEN_BYTES_MAX).await.map_err(failed)?;
        Ok(HttpResponse::from_parts(head, body.freeze().into()))
    }
}
