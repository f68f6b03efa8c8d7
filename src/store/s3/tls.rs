//! Whom the S3 client trusts: the roots of TLS, and where they come from.
//!
//! The first of these that is set is used, alone: `store.s3.ca_bundle`, `AWS_CA_BUNDLE` (as in Amazon's own tools),
//! `SSL_CERT_FILE` and `SSL_CERT_DIR` (as in OpenSSL), and else the system's.
//!
//! A certificate that a server made for itself, with OpenSSL's defaults, says that it is an authority (`CA:TRUE`). webpki
//! takes none of these for a server's own, other programs do. [`OrItself`] does if that very certificate is among the
//! roots: then somebody has said so.

use std::path::PathBuf;
use std::sync::Arc;

use reqsign_core::Env;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore,
    SignatureScheme,
};
use rustls_native_certs::{CertificateResult, load_certs_from_paths, load_native_certs};
use tracing::warn;

use super::super::{Result, StoreError};
use super::credentials::Environment;
use super::options::S3Options;

/// How TLS is spoken. Without any root it fails if the store is reached by TLS; a host without roots can still reach
/// stores of `http://`.
pub fn config(options: &S3Options, environment: &Environment, needs_tls: bool) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (named, CertificateResult { certs, errors, .. }) = certificates(options, environment);
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(certs.iter().cloned());
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    if usable == 0 && needs_tls {
        let why = if errors.is_empty() { "it holds none".to_owned() } else { errors.join("; ") };
        return Err(match named {
            Some(named) => StoreError::invalid(format!(
                "{named} gives no root certificate to check the store's with ({why}); name a file with certificates in PEM"
            )),
            None => StoreError::invalid(format!(
                "no root certificates to check the store's with ({why}); install the package ca-certificates, or name \
                 a file of them in {ROOTS}"
            )),
        });
    }
    if !errors.is_empty() && needs_tls {
        warn!("some root certificates cannot be read: {}", errors.join("; "));
    }
    client_config(provider, roots, certs).map_err(|error| StoreError::invalid(format!("TLS cannot be set up: {error}")))
}

/// Where somebody can name a file of root certificates.
pub const ROOTS: &str = "store.s3.ca_bundle, AWS_CA_BUNDLE or SSL_CERT_FILE";

/// The certificates that are trusted, and the name of the setting that led to them, if one of the first two did.
fn certificates(options: &S3Options, environment: &Environment) -> (Option<String>, CertificateResult) {
    let variable = || Some(("AWS_CA_BUNDLE", environment.var("AWS_CA_BUNDLE").filter(|path| !path.is_empty())?.into()));
    let option = options.ca_bundle.clone().map(|path| ("store.s3.ca_bundle", path));
    match option.or_else(variable) {
        Some((name, path)) => {
            let path: PathBuf = path;
            (Some(format!("{name} ({})", path.display())), load_certs_from_paths(Some(&path), None))
        }
        None => (None, load_native_certs()),
    }
}

fn client_config(
    provider: Arc<CryptoProvider>,
    roots: RootCertStore,
    trusted: Vec<CertificateDer<'static>>,
) -> std::result::Result<ClientConfig, Box<dyn std::error::Error>> {
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    if roots.is_empty() {
        return Ok(builder.with_root_certificates(roots).with_no_client_auth());
    }
    let by_roots = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
    let verifier = Arc::new(OrItself { by_roots, trusted });
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// Whether an error says that an authority's certificate serves as a server's own.
pub fn is_authority_as_server(error: &rustls::Error) -> bool {
    let rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) = error else { return false };
    matches!(cause.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}

/// Checks certificates as webpki does, and accepts an authority's certificate as a server's own if it is trusted itself.
///
/// webpki has checked its dates before it complains of that; the name is checked here; that the server has the key is
/// proved by the handshake, as for any other.
#[derive(Debug)]
struct OrItself {
    by_roots: Arc<WebPkiServerVerifier>,
    trusted: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for OrItself {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        match self.by_roots.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(error) if is_authority_as_server(&error) && self.trusted.iter().any(|root| root == end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.by_roots.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.by_roots.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_roots.supported_verify_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        self.by_roots.root_hint_subjects()
    }
}
