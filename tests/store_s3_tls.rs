//! The S3 client over TLS: a private authority is refused until `SSL_CERT_FILE` names it, and works then.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;

use ashlar::outside::Clock;
use ashlar::store::memory::MemoryStore;
use ashlar::store::s3::S3Store;
use ashlar::store::s3::credentials::Environment;
use ashlar::store::s3::options::S3Options;
use ashlar::store::{ErrorKind, Key, Store};
use bytes::Bytes;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use support::s3_server::S3Server;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

fn client(endpoint: &str) -> S3Store {
    let options = S3Options { endpoint: Some(endpoint.into()), ..S3Options::default() };
    let variables = [("AWS_ACCESS_KEY_ID", "test-access"), ("AWS_SECRET_ACCESS_KEY", "test-secret")];
    let variables = variables.map(|(name, value)| (name.into(), value.into())).into();
    S3Store::new("disks", "", &options, &Environment::Fixed(variables), Clock::System).unwrap()
}

/// Ends TLS in front of a plain server, with a certificate that it signed itself. Returns the certificate.
async fn terminate(plain: SocketAddr) -> (SocketAddr, String) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut outside = acceptor.accept(socket).await?;
                let mut inside = TcpStream::connect(plain).await?;
                tokio::io::copy_bidirectional(&mut outside, &mut inside).await
            });
        }
    });
    (address, made.cert.pem())
}

#[tokio::test]
async fn a_private_authority_is_refused_until_it_is_named() {
    let memory = MemoryStore::new();
    let server = S3Server::start(Arc::new(memory.clone())).await;
    let (address, certificate) = terminate(server.address).await;
    let endpoint = format!("https://{address}");

    let error = client(&endpoint).put(&Key::new("v/1").unwrap(), vec![]).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    assert!(error.message.contains("invalid peer certificate") && error.message.contains("SSL_CERT_FILE"), "{error}");
    assert_eq!(memory.object_count(), 0);

    // Roots are read from the environment of the process, so the rest needs one of its own.
    let roots = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(roots.path(), certificate).unwrap();
    let child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "with_the_authority_named", "--ignored", "--nocapture"])
        .env("SSL_CERT_FILE", roots.path())
        .env("ASHLAR_TEST_TLS_ENDPOINT", &endpoint)
        .output()
        .await
        .unwrap();
    assert!(
        child.status.success(),
        "{}{}",
        String::from_utf8_lossy(&child.stdout),
        String::from_utf8_lossy(&child.stderr)
    );
    assert_eq!(memory.object_count(), 1, "the child has put its object");
}

#[tokio::test]
#[ignore = "a part of a_private_authority_is_refused_until_it_is_named"]
async fn with_the_authority_named() {
    let endpoint = std::env::var("ASHLAR_TEST_TLS_ENDPOINT").unwrap();
    let (store, key) = (client(&endpoint), Key::new("v/1").unwrap());
    store.put(&key, vec![Bytes::from(vec![7; 3_000_000])]).await.unwrap();
    assert_eq!(store.get_range(&key, 2_999_990..u64::MAX).await.unwrap(), vec![7; 10]);
    assert_eq!(store.list("", None).await.unwrap().len(), 1);
}
