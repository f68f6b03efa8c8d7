//! The files of TLS: read, understood, and refused in one sentence.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{InconsistentKeys, RootCertStore, ServerConfig};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::TlsOptions;

/// A certificate that ends sooner than this is warned of, in seconds.
const SOON: u64 = 14 * 86_400;

/// The longest file that is read, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// The options of TLS that are meant where nobody says otherwise.
pub const NBD: &str = "nbd.tls";

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
#[error("{section}.{key}{}: {why}", path.as_ref().map(|path| format!(" = {}", path.display())).unwrap_or_default())]
pub struct TlsError {
    /// The section of the configuration.
    pub section: &'static str,
    /// The option in it.
    pub key: &'static str,
    /// The file that it names.
    pub path: Option<PathBuf>,
    /// What is wrong, and the way out.
    pub why: String,
}

impl TlsError {
    pub(super) fn new(key: &'static str, path: &Path, why: impl fmt::Display) -> TlsError {
        TlsError { section: NBD, key, path: Some(path.to_owned()), why: why.to_string() }
    }

    /// An option that must be set.
    pub fn missing(key: &'static str) -> TlsError {
        let why =
            "is not set, and TLS needs a certificate and its key; `ashlar tls init DIRECTORY` makes some to try with";
        TlsError { section: NBD, key, path: None, why: why.to_owned() }
    }

    /// The same of the options of that section.
    pub(super) fn of(self, section: &'static str) -> TlsError {
        TlsError { section, ..self }
    }
}

/// Where the files are.
pub struct Paths {
    certificate: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
}

impl Paths {
    /// The files that the options name; `None` if they name none.
    pub fn of(options: &TlsOptions) -> Result<Option<Paths>, TlsError> {
        let TlsOptions { certificate, key, client_ca, .. } = options;
        match (certificate, key) {
            (None, None) if client_ca.is_none() => Ok(None),
            (None, _) => Err(TlsError::missing("certificate")),
            (_, None) => Err(TlsError::missing("key")),
            (Some(certificate), Some(key)) => {
                Ok(Some(Paths { certificate: certificate.clone(), key: key.clone(), client_ca: client_ca.clone() }))
            }
        }
    }

    /// Reads them.
    pub fn read(self) -> Result<Contents, TlsError> {
        let certificate = read("certificate", self.certificate)?;
        let key = read("key", self.key)?;
        let client_ca = self.client_ca.map(|path| read("client_ca", path)).transpose()?;
        Ok(Contents { certificate, key, client_ca })
    }
}

/// One file. It is compared with what it was, key or not, so its bytes are kept.
#[derive(PartialEq, Eq)]
struct File {
    path: PathBuf,
    bytes: zeroize::Zeroizing<Vec<u8>>,
    mode: u32,
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("File").field(&self.path).finish()
    }
}

#[allow(clippy::disallowed_methods)] // no file of ours: the disk's door is for what must not be lost
fn read(key: &'static str, path: PathBuf) -> Result<File, TlsError> {
    let metadata = std::fs::metadata(&path).map_err(|error| TlsError::new(key, &path, error))?;
    if !metadata.is_file() || metadata.len() > FILE_MAX {
        return Err(TlsError::new(key, &path, "accepted is a file in PEM of at most 1 MiB"));
    }
    match std::fs::read(&path) {
        Ok(bytes) => Ok(File { path, bytes: bytes.into(), mode: metadata.permissions().mode() }),
        Err(error) => Err(TlsError::new(key, &path, error)),
    }
}

/// What the files held.
#[derive(Debug, PartialEq, Eq)]
pub struct Contents {
    certificate: File,
    key: File,
    client_ca: Option<File>,
}

impl Contents {
    /// How a server with these files speaks TLS.
    pub fn config(&self) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = certificates("certificate", &self.certificate)?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| self.of_certificate(error))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let of_file = |error: &dyn fmt::Display| TlsError::new("client_ca", &file.path, error);
                let mut roots = RootCertStore::empty();
                for root in certificates("client_ca", file)? {
                    roots.add(root).map_err(|error| of_file(&error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().map_err(|error| of_file(&error))?)
            }
        };
        let made = builder.with_single_cert(chain, self.private_key()?);
        let mut config = made.map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsError::new(
                "key",
                &self.key.path,
                format!("is not the key of the certificate in {}", self.certificate.path.display()),
            ),
            error => self.of_certificate(error),
        })?;
        // Who resumes a session is not asked for its certificate again, and one that has expired would go on.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// What there is to say of files that can be used: that others may read the key, and how long the certificate is good.
    pub fn remark(&self, section: &str, now_unix: u64) {
        let (key, certificate) = (self.key.path.display(), self.certificate.path.display());
        if self.key.mode & 0o077 != 0 {
            tracing::warn!("{section}.key = {key}: other users may read the key of this server: chmod 600 {key}");
        }
        let Some(end) = self.good_until() else { return };
        match end.checked_sub(now_unix) {
            None => tracing::warn!(
                "{section}.certificate = {certificate}: the certificate has expired; clients will refuse it"
            ),
            Some(left) if left < SOON => {
                let days = left / 86_400;
                tracing::warn!(
                    "{section}.certificate = {certificate}: the certificate expires in {days} days; renew it"
                );
            }
            Some(_) => {}
        }
    }

    /// The end of the server's certificate, in seconds since 1970.
    fn good_until(&self) -> Option<u64> {
        let chain = certificates("certificate", &self.certificate).ok()?;
        let (_, own) = X509Certificate::from_der(chain.first()?).ok()?;
        u64::try_from(own.validity().not_after.timestamp()).ok()
    }

    fn of_certificate(&self, error: rustls::Error) -> TlsError {
        TlsError::new("certificate", &self.certificate.path, error)
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_slice(&self.key.bytes).map_err(|_| {
            let text = String::from_utf8_lossy(&self.key.bytes);
            let why = match text.contains("ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED") {
                true => "the key is encrypted, and nobody is there to be asked; take the encryption off (openssl pkey -in … -out …) and chmod 600",
                false => "holds no private key in PEM",
            };
            TlsError::new("key", &self.key.path, why)
        })
    }
}

/// All certificates of a file, one at least.
fn certificates(key: &'static str, file: &File) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&file.bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(TlsError::new(key, &file.path, "holds no certificate in PEM")),
        // The error holds bytes of the file, and the file may be the private key by mistake.
        Err(_) => Err(TlsError::new(
            key,
            &file.path,
            "is no PEM: each mark (-----BEGIN …-----) must be a line of its own, and each section must have its end",
        )),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    struct Files(tempfile::TempDir);

    impl Files {
        fn new() -> Files {
            Files(tempfile::tempdir().unwrap())
        }

        fn put(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        }
    }

    /// A certificate and its key.
    fn pair() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["nbd.example".to_owned()]).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn config(options: &TlsOptions) -> Result<(), String> {
        let read = || Paths::of(options)?.expect("files are named").read()?.config().map(drop);
        read().map_err(|error: TlsError| error.to_string())
    }

    #[test]
    fn files_that_cannot_be_used_are_refused_by_name_and_with_the_reason() {
        let files = Files::new();
        let ((certificate, key), (_, other_key)) = (pair(), pair());
        let good = TlsOptions {
            certificate: Some(files.put("a.pem", &certificate)),
            key: Some(files.put("a.key", &key)),
            client_ca: Some(files.put("ca.pem", &pair().0)),
            ..TlsOptions::default()
        };
        assert_eq!(config(&good), Ok(()));
        let place = |name: &str| files.0.path().join(name).display().to_string();
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let key_of = |name: &str, text: &str| TlsOptions { key: Some(files.put(name, text)), ..good.clone() };
        for (options, why) in [
            (TlsOptions { certificate: None, ..good.clone() }, "nbd.tls.certificate: is not set, and TLS needs a certificate and its key; `ashlar tls init DIRECTORY` makes some to try with".to_owned()),
            (TlsOptions { key: None, ..good.clone() }, "nbd.tls.key: is not set, and TLS needs".to_owned()),
            (TlsOptions { key: Some("/nowhere".into()), ..good.clone() }, "nbd.tls.key = /nowhere: No such file or directory".to_owned()),
            (TlsOptions { certificate: Some(files.put("no.pem", "hello")), ..good.clone() }, format!("nbd.tls.certificate = {}: holds no certificate in PEM", place("no.pem"))),
            (key_of("other.key", &other_key), format!("nbd.tls.key = {}: is not the key of the certificate in {}", place("other.key"), place("a.pem"))),
            (key_of("no.key", &certificate), format!("nbd.tls.key = {}: holds no private key in PEM", place("no.key"))),
            (key_of("locked.key", encrypted), format!("nbd.tls.key = {}: the key is encrypted", place("locked.key"))),
            (TlsOptions { client_ca: Some(files.put("no-ca.pem", &key)), ..good.clone() }, format!("nbd.tls.client_ca = {}: holds no certificate in PEM", place("no-ca.pem"))),
            (TlsOptions { client_ca: Some(files.0.path().into()), ..good.clone() }, format!("nbd.tls.client_ca = {}: accepted is a file", files.0.path().display())),
        ] {
            let said = config(&options).unwrap_err();
            assert!(said.starts_with(&why), "{said}\nbut expected was\n{why}");
        }
        assert!(Paths::of(&TlsOptions::default()).unwrap().is_none());
    }

    #[test]
    fn a_key_in_the_place_of_a_certificate_is_never_shown() {
        let files = Files::new();
        let (certificate, key) = pair();
        let secret = key.lines().nth(1).unwrap();
        let bytes = format!("{:?}", secret.as_bytes());
        let good = TlsOptions {
            certificate: Some(files.put("a.pem", &certificate)),
            key: Some(files.put("a.key", &key)),
            ..TlsOptions::default()
        };
        let one_line = key.trim_end().replace('\n', " ");
        let no_end = key.lines().take(2).collect::<Vec<_>>().join("\n");
        let odd_end = format!("-----BEGIN CERTIFICATE-----\nAAAA\n-----END {secret}-----\n");
        for text in [one_line, no_end, odd_end, format!("-----BEGIN {secret}\n")] {
            let wrong = || Some(files.put("wrong.pem", &text));
            for options in
                [TlsOptions { certificate: wrong(), ..good.clone() }, TlsOptions { client_ca: wrong(), ..good.clone() }]
            {
                let said = config(&options).unwrap_err();
                let place = files.0.path().join("wrong.pem").display().to_string();
                let (_, why) = said.split_once(&format!("{place}: ")).unwrap();
                assert!(why.starts_with("is no PEM: each mark"), "{said}");
                assert!(!said.contains(&secret[..8]) && !said.contains(&bytes[1..30]), "{said}");
            }
        }
    }

    #[test]
    fn the_end_of_a_certificate_is_known() {
        let files = Files::new();
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(vec![]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(2030, 1, 1);
        let certificate = files.put("a.pem", &parameters.self_signed(&key).unwrap().pem());
        let key = files.put("a.key", &key.serialize_pem());
        let options = TlsOptions { certificate: Some(certificate), key: Some(key), ..TlsOptions::default() };
        let contents = Paths::of(&options).unwrap().unwrap().read().unwrap();
        assert_eq!(contents.good_until(), Some(1_893_456_000));
    }
}
