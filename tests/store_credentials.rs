//! Credentials from each source, renewed and dropped at the right time: against services on the loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ashlar::outside::Clock;
use ashlar::store::ErrorKind;
use ashlar::store::s3::credentials::{Credentials, Environment, context};
use ashlar::store::s3::http::connect;
use ashlar::store::s3::options::{CredentialSource, S3Options};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpListener;

/// A service that answers each request by a function of method, path and headers, and remembers what was asked.
struct Service {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

type Answering = Arc<dyn Fn(&Request<Incoming>) -> (u16, String) + Send + Sync>;

impl Service {
    async fn start(answer: impl Fn(&Request<Incoming>) -> (u16, String) + Send + Sync + 'static) -> Service {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (answer, asking): (Answering, _) = (Arc::new(answer), asked.clone());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (answer, asking) = (answer.clone(), asking.clone());
                let serve = service_fn(move |request: Request<Incoming>| {
                    asking.lock().push(format!("{} {}", request.method(), request.uri()));
                    let (status, body) = answer(&request);
                    let response = Response::builder().status(status).body(Full::new(Bytes::from(body))).unwrap();
                    std::future::ready(Ok::<_, Infallible>(response))
                });
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), serve);
                tokio::spawn(connection);
            }
        });
        Service { address, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }
}

/// 2026-01-01T00:00:00Z, when these tests begin.
const BEGIN: u64 = 1_767_225_600_000;

const HOUR: u64 = 60 * 60 * 1000;

struct Fixture {
    now: Arc<AtomicU64>,
    credentials: Credentials,
}

fn fixture(options: S3Options, variables: &[(&str, &str)]) -> Fixture {
    fixture_at(Arc::new(AtomicU64::new(BEGIN)), options, variables)
}

fn fixture_at(now: Arc<AtomicU64>, options: S3Options, variables: &[(&str, &str)]) -> Fixture {
    let mut environment: HashMap<String, String> =
        variables.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    environment.entry("HOME".into()).or_insert("/nonexistent".into());
    let environment = Environment::Fixed(environment);
    let http = connect(&options, &environment, "http://localhost").unwrap();
    let context = context(&environment, &http);
    Fixture { credentials: Credentials::new(&options, context, Clock::Manual(now.clone())), now }
}

impl Fixture {
    /// Access key, secret and token, or the failure.
    async fn get(&self) -> Result<(String, String, Option<String>), (ErrorKind, String)> {
        let found = self.credentials.get().await.map_err(|error| (error.kind, error.message))?;
        Ok((found.aws_access_key_id().into(), found.aws_secret_access_key().into(), found.token().clone()))
    }

    async fn access(&self) -> String {
        self.get().await.unwrap().0
    }

    fn pass(&self, millis: u64) {
        self.now.fetch_add(millis, Ordering::Relaxed);
    }
}

fn from(source: CredentialSource) -> S3Options {
    S3Options { credentials: source, ..S3Options::default() }
}

#[tokio::test]
async fn the_environment_with_a_session_token() {
    let variables = [("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "S"), ("AWS_SESSION_TOKEN", "T")];
    let fixture = fixture(S3Options::default(), &variables);
    assert_eq!(fixture.get().await.unwrap(), ("A".into(), "S".into(), Some("T".into())));
    let found = fixture.credentials.get().await.unwrap();
    let shown = format!("{found:?} {:?}", fixture.credentials);
    assert!(!shown.contains("\"S\"") && !shown.contains("\"T\""), "{shown}");
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

#[tokio::test]
async fn a_profile_by_default_by_name_and_read_again_once_it_was_refused() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join(".aws/credentials");
    let text = |key: &str| {
        format!(
            "[default]\naws_access_key_id = {key}\naws_secret_access_key = S\n\
             [ops]\naws_access_key_id = OPS\naws_secret_access_key = S2\naws_session_token = T2\n"
        )
    };
    write(&file, &text("OLD"));
    let home = home.path().to_str().unwrap();
    let by_default = fixture(S3Options::default(), &[("HOME", home)]);
    assert_eq!(by_default.access().await, "OLD");
    let by_name = fixture(S3Options { profile: Some("ops".into()), ..S3Options::default() }, &[("HOME", home)]);
    assert_eq!(by_name.get().await.unwrap(), ("OPS".into(), "S2".into(), Some("T2".into())));
    let by_variable = fixture(from(CredentialSource::Profile), &[("HOME", home), ("AWS_PROFILE", "ops")]);
    assert_eq!(by_variable.access().await, "OPS");

    // The store refuses them: nothing else is there, and another attempt would be in vain.
    let begun = by_default.credentials.generation();
    assert!(!by_default.credentials.replaced_since(begun).await);
    // Keys were rotated in the file. All requests that were refused with the old ones deserve another attempt.
    write(&file, &text("NEW"));
    assert_eq!(by_default.access().await, "OLD");
    assert!(by_default.credentials.replaced_since(begun).await);
    assert!(by_default.credentials.replaced_since(begun).await);
    assert_eq!(by_default.access().await, "NEW");
    assert!(!by_default.credentials.replaced_since(by_default.credentials.generation()).await);
}

#[tokio::test]
async fn a_named_profile_wins_over_the_environment_and_must_exist() {
    let variables = [("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "S")];
    let fixture = fixture(S3Options { profile: Some("absent".into()), ..S3Options::default() }, &variables);
    let (kind, message) = fixture.get().await.unwrap_err();
    assert_eq!(kind, ErrorKind::Denied);
    assert!(message.starts_with("no credentials for the store (profile: none)"), "{message}");
}

/// A metadata service of version 2: a token first, then the role, then the role's keys, which last an hour.
async fn metadata(now: Arc<AtomicU64>) -> Service {
    let keys = AtomicU64::new(0);
    Service::start(move |request| {
        let token = request.headers().get("x-aws-ec2-metadata-token").map(|token| token.to_str().unwrap());
        match (request.method().as_str(), request.uri().path(), token) {
            ("PUT", "/latest/api/token", _) => (200, "session".into()),
            ("GET", "/latest/meta-data/iam/security-credentials/", Some("session")) => (200, "role".into()),
            ("GET", "/latest/meta-data/iam/security-credentials/role", Some("session")) => {
                let end = humantime::format_rfc3339_seconds(
                    std::time::UNIX_EPOCH + std::time::Duration::from_millis(now.load(Ordering::Relaxed) + HOUR),
                );
                let n = keys.fetch_add(1, Ordering::Relaxed);
                let body = format!(
                    "{{\"Code\":\"Success\",\"AccessKeyId\":\"K{n}\",\"SecretAccessKey\":\"S\",\"Token\":\"T\",\
                     \"Expiration\":\"{end}\"}}"
                );
                (200, body)
            }
            _ => (401, "no".into()),
        }
    })
    .await
}

#[tokio::test]
async fn the_instance_role_by_imds_v2_renewed_ahead_of_its_end() {
    let now = Arc::new(AtomicU64::new(BEGIN));
    let service = metadata(now.clone()).await;
    let endpoint = format!("http://{}", service.address);
    let variables = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint.as_str())];
    let fixture = fixture_at(now, from(CredentialSource::Instance), &variables);
    assert_eq!(fixture.get().await.unwrap(), ("K0".into(), "S".into(), Some("T".into())));
    assert_eq!(service.asked()[0], "PUT /latest/api/token");

    // One fetch serves everybody until five minutes before the end.
    futures::future::join_all((0..20).map(|_| fixture.access())).await;
    fixture.pass(HOUR - 6 * 60 * 1000);
    assert_eq!(fixture.access().await, "K0");
    fixture.pass(2 * 60 * 1000);
    let renewed = futures::future::join_all((0..20).map(|_| fixture.access())).await;
    assert!(renewed.contains(&"K1".to_string()) && !renewed.contains(&"K2".to_string()), "{renewed:?}");
    assert_eq!(fixture.access().await, "K1");
}

#[tokio::test]
async fn a_renewal_that_fails_keeps_what_is_still_good_and_not_longer() {
    let up = Arc::new(AtomicU64::new(1));
    let upward = up.clone();
    let end = humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + std::time::Duration::from_millis(BEGIN + HOUR))
        .to_string();
    let service = Service::start(move |request| match upward.load(Ordering::Relaxed) {
        1 if request.headers()["authorization"] == "pod-token" => {
            let key = "{\"AccessKeyId\":\"K\",\"SecretAccessKey\":\"S\",\"Token\":\"T\",\"Expiration\":\"END\"}";
            (200, key.replace("END", &end))
        }
        _ => (500, "down".into()),
    })
    .await;
    let url = format!("http://{}/credentials", service.address);
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "pod-token\n").unwrap();
    let variables = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", url.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.path().to_str().unwrap()),
    ];
    let fixture = fixture(S3Options::default(), &variables);
    assert_eq!(fixture.access().await, "K");
    up.store(0, Ordering::Relaxed);

    fixture.pass(HOUR - 60 * 1000);
    let before = service.asked().len();
    assert_eq!(fixture.access().await, "K");
    assert_eq!(fixture.access().await, "K");
    assert_eq!(service.asked().len(), before + 1, "the next attempt comes after a pause");
    fixture.pass(30 * 1000);
    assert_eq!(fixture.access().await, "K");
    assert_eq!(service.asked().len(), before + 2);

    // Expired: an outage of a source that has delivered before passes; the store need not give up.
    fixture.pass(60 * 1000);
    let (kind, message) = fixture.get().await.unwrap_err();
    assert_eq!(kind, ErrorKind::Retryable, "{message}");
    assert!(message.contains("container: ECS metadata service error: down"), "{message}");
    up.store(1, Ordering::Relaxed);
    // What comes now has expired too, so it is used once and asked for again; it is not for us to judge.
    assert_eq!(fixture.access().await, "K");
}

#[tokio::test]
async fn web_identity_is_tried_when_it_is_set_up_and_its_token_is_not_shown() {
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "very-secret-jwt").unwrap();
    let variables = [
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.path().to_str().unwrap()),
        ("AWS_REGION", "no..such.region"),
        ("AWS_STS_REGIONAL_ENDPOINTS", "regional"),
    ];
    let fixture = fixture(from(CredentialSource::WebIdentity), &variables);
    let (_, message) = fixture.get().await.unwrap_err();
    assert!(message.contains("web identity: AWS STS signing region is invalid"), "{message}");
    assert!(!message.contains("very-secret-jwt"));
}
